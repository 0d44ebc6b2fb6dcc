"""From a case as read to the scan that training reads: canonical axes, crop, common spacing, classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from semisam_tf.data.preprocess import resample_label
from semisam_tf.data.volumes import Volume
from semisam_tf.geometry import interpolated, resampled_size
from semisam_tf.preparation.classes import ClassMap
from semisam_tf.preparation.cropping import Box, crop_box, slices
from semisam_tf.preparation.reading import RawCase

# Spacings that differ by less are one: headers keep four digits or so, and interpolating over that would only blur.
_SAME_SPACING = 1e-3


@dataclass(frozen=True)
class Target:
    """What every case is brought to.

    Attributes:
        orientation: Axis code.
        spacing_mm: Voxel size along the axes of that orientation, or None for each case's own.
        crop, crop_margin_mm: As `crop_box` takes them.
        label_map: (value, class) pairs.
        keep_integers: Whether an image of whole numbers from 0 to 255 is stored as uint8, which is exact.
    """

    orientation: str
    spacing_mm: tuple[float, ...] | None
    crop: str
    crop_margin_mm: float
    label_map: tuple[tuple[int, int], ...]
    keep_integers: bool

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            **dataclasses.asdict(self),
            "spacing_mm": None if self.spacing_mm is None else list(self.spacing_mm),
            "label_map": [list(pair) for pair in self.label_map],
        }


@dataclass(frozen=True, eq=False)
class Prepared:
    """A case on its new grid.

    Attributes:
        volume: Image float32, or uint8 where that is exact, [X, Y, Z, C]; label uint8 or None.
        crop_vox: Box that was kept, on the case's own grid in canonical orientation.
        uncropped_vox: Size of that grid before the crop.
        warnings: What a person should know.
    """

    volume: Volume
    crop_vox: Box
    uncropped_vox: tuple[int, int, int]
    warnings: tuple[str, ...]


def prepare_case(case: RawCase, target: Target) -> Prepared:
    """Brings a case to the target.

    The box is cut and the image resampled before the label is looked at: neither can depend on it.
    """
    turned = case.turned(target.orientation)
    whole = turned.volume
    box = crop_box(whole.image, whole.spacing_mm, target.crop, target.crop_margin_mm)
    volume = cropped(whole, box)
    grid = Grid.of(volume.size, volume.spacing_mm, target.spacing_mm)
    image = volume.image if grid.is_identity else grid.resample(volume.image)
    prepared = dataclasses.replace(
        volume,
        image=_as_bytes(image) if target.keep_integers else image,
        spacing_mm=grid.spacing_mm,
        affine=volume.affine @ grid.to_old_voxels(),
    )
    warnings = list(case.warnings)
    if turned.values is not None:
        label = ClassMap(target.label_map).apply(turned.values)
        kept = np.ascontiguousarray(label[slices(box)])
        resampled = kept if grid.is_identity else resample_label(kept, grid.resample)
        prepared = dataclasses.replace(prepared, label=resampled)
        warnings += _label_warnings(label, kept, resampled)
    return Prepared(prepared, box, whole.size, tuple(warnings))


def cropped(volume: Volume, box: Box) -> Volume:
    """The part of a scan in a box; what stays does not move in the world."""
    shift = np.eye(4)
    shift[:3, 3] = [low for low, _ in box]
    image = np.ascontiguousarray(volume.image[slices(box)])
    return dataclasses.replace(volume, image=image, affine=volume.affine @ shift)


@dataclass(frozen=True)
class Grid:
    """A new grid over an old one, with the same centre.

    Attributes:
        old_size, size: Voxels of the old and the new grid.
        spacing_mm: Of the new grid: exactly what was asked for, or the old one's.
        step: Distance of new voxels, in old ones.
    """

    old_size: tuple[int, ...]
    size: tuple[int, ...]
    spacing_mm: tuple[float, float, float]
    step: tuple[float, ...]

    @classmethod
    def of(cls, size: Sequence[int], spacing_mm: Sequence[float], target_mm: Sequence[float] | None) -> Grid:
        """The grid that covers `size` voxels of `spacing_mm` best with voxels of `target_mm`.

        An axis whose spacing is right already is left alone. Elsewhere half a new voxel at most is left over, or
        covered beyond the old grid, at both ends together; there the outermost voxel is repeated.
        """
        wanted = spacing_mm if target_mm is None else target_mm
        goal = [have if abs(want / have - 1) < _SAME_SPACING else want
                for have, want in zip(spacing_mm, wanted, strict=True)]  # fmt: skip
        x, y, z = (float(value) for value in goal)
        step = tuple(want / have for have, want in zip(spacing_mm, goal, strict=True))
        return cls(tuple(size), resampled_size(size, spacing_mm, goal), (x, y, z), step)

    @property
    def is_identity(self) -> bool:
        """Whether every voxel is an old one."""
        return all(step == 1 for step in self.step)

    @property
    def first(self) -> tuple[float, ...]:
        """Where the first new voxel's centre lies, in old voxels."""
        return tuple((o - 1) / 2 - s * (n - 1) / 2 for o, n, s in zip(self.old_size, self.size, self.step, strict=True))

    def to_old_voxels(self) -> np.ndarray:
        """Affine [4, 4], new voxel index -> old one."""
        matrix = np.diag([*self.step, 1.0])
        matrix[:3, 3] = self.first
        return matrix

    def resample(self, array: np.ndarray) -> np.ndarray:
        """Linear interpolation, antialiased where it shrinks: [X, Y, Z] or [X, Y, Z, C] -> float32 on the new grid."""
        result = np.asarray(array, np.float32)
        # The axis that shrinks most goes first: the later products are then smaller.
        for axis in sorted(range(3), key=lambda axis: -self.step[axis]):
            if self.step[axis] != 1:
                positions = self.first[axis] + self.step[axis] * np.arange(self.size[axis])
                result = interpolated(result, axis, positions, self.step[axis])
        return np.ascontiguousarray(result)


def _as_bytes(image: np.ndarray) -> np.ndarray:
    """The image as uint8 where every value is one, else as it is."""
    if image.min() < 0 or image.max() > 255:
        return image
    whole = image.astype(np.uint8)
    return whole if np.array_equal(whole, image) else image


def _label_warnings(label: np.ndarray, kept: np.ndarray, resampled: np.ndarray) -> list[str]:
    """What crop and resampling took from the mask. The remedy is a person's: the crop does not look at the mask."""
    warnings = []
    lost = int(np.count_nonzero(label)) - int(np.count_nonzero(kept))
    if lost:
        warnings.append(f"the crop cut off {lost} voxels of the mask; take --crop=none or a larger --crop_margin_mm.")
    gone = sorted(set(np.unique(kept)) - set(np.unique(resampled)) - {0})
    if gone:
        warnings.append(f"resampling left nothing of class {', '.join(map(str, gone))}; take a finer --spacing_mm.")
    return warnings
