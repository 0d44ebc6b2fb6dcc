"""Which way a scan's axes run through the body, and the exact way from one order to another.

An axis code has a letter per array axis, the direction in which its index grows: "RAS" is right, anterior, superior,
"LPS" left, posterior, superior. There are 48. An oblique scan has the code of the nearest one: bringing a scan to
another code permutes and flips its axes, moves no voxel in the world and interpolates nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from semisam_tf.data.volumes import Volume

# World axes are NIfTI's, so the positive directions are right, anterior, superior.
_POSITIVE, _NEGATIVE = "RAS", "LPI"
AXIS_CODES = tuple(
    "".join(letters)
    for order in itertools.permutations(range(3))
    for letters in itertools.product(*((_POSITIVE[world], _NEGATIVE[world]) for world in order))
)


@dataclass(frozen=True)
class AxisOrder:
    """How an array is turned: result axis i is axis `permutation[i]` of the array, reversed where `flips[i]`."""

    permutation: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    @property
    def inverse(self) -> AxisOrder:
        """The order that undoes this one."""
        x, y, z = (self.permutation.index(axis) for axis in range(3))
        return AxisOrder((x, y, z), (self.flips[x], self.flips[y], self.flips[z]))

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Turns the first three axes of an array; a view where nothing has to move."""
        turned = array.transpose(*self.permutation, *range(3, array.ndim))
        return turned[tuple(slice(None, None, -1) if flip else slice(None) for flip in self.flips)]

    def affine_of(self, affine: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
        """The affine [4, 4] of the turned array, from that of the array of `size` voxels."""
        to_old_voxels = np.zeros((4, 4))
        to_old_voxels[3, 3] = 1.0
        for axis, (old_axis, flip) in enumerate(zip(self.permutation, self.flips, strict=True)):
            to_old_voxels[old_axis, axis] = -1.0 if flip else 1.0
            to_old_voxels[old_axis, 3] = size[old_axis] - 1.0 if flip else 0.0
        return affine @ to_old_voxels

    def apply_to(self, volume: Volume) -> Volume:
        """The same scan, turned: image, label, spacing and affine."""
        if self == AxisOrder():
            return volume
        x, y, z = (volume.spacing_mm[axis] for axis in self.permutation)
        return dataclasses.replace(
            volume,
            image=np.ascontiguousarray(self.apply(volume.image)),
            label=None if volume.label is None else np.ascontiguousarray(self.apply(volume.label)),
            spacing_mm=(x, y, z),
            affine=self.affine_of(volume.affine, volume.size),
            nifti_header=None,
        )


def axis_code(affine: np.ndarray) -> str:
    """The code, such as "RAS", whose axes lie nearest to those of an affine (voxel -> RAS+ millimetres).

    Each world axis is given to one array axis so that the cosines add up to the most; of equal choices the first in
    the order of `itertools.permutations`.

    Raises:
        ValueError: The affine has an axis of no length, or is not finite.
    """
    columns = np.asarray(affine, np.float64)[:3, :3]
    lengths = np.linalg.norm(columns, axis=0)
    if not np.isfinite(columns).all() or (lengths == 0).any():
        raise ValueError(f"Expected an affine with three finite axes of some length. Received: affine={affine}.")
    cosines = columns / lengths  # [world axis, array axis]
    best = max(
        itertools.permutations(range(3)),
        # Rounded: cosines that differ by the last digit of a header's float32 are equal.
        key=lambda order: round(sum(abs(cosines[world, axis]) for axis, world in enumerate(order)), 6),
    )
    return "".join((_POSITIVE if cosines[world, axis] > 0 else _NEGATIVE)[world] for axis, world in enumerate(best))


def axis_order(have: str, want: str) -> AxisOrder:
    """The way from an array of axis code `have` to one of `want`.

    Raises:
        ValueError: One of them is no axis code.
    """
    for code in (have, want):
        if code not in AXIS_CODES:
            raise ValueError(f"Expected an axis code such as 'RAS' or 'LPS'. Received: {code!r}.")
    have_world = [_world_axis(letter) for letter in have]
    x, y, z = (have_world.index(_world_axis(letter)) for letter in want)
    return AxisOrder((x, y, z), (have[x] != want[0], have[y] != want[1], have[z] != want[2]))


def common_axis_code(volumes: Iterable[Volume]) -> str | None:
    """The axis code that all scans share; None where one stores none, where they differ, and of no scans."""
    codes = {axis_code(volume.affine) if volume.has_orientation else None for volume in volumes}
    return codes.pop() if len(codes) == 1 else None


def _world_axis(letter: str) -> int:
    return _POSITIVE.index(letter) if letter in _POSITIVE else _NEGATIVE.index(letter)
