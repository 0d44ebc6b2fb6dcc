"""Spatial augmentation: crop, flip, quarter turn, affine and elastic as one resampling."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from semisam_tf.data.augment_config import AUGMENT_PRESETS, AUGMENTATIONS, AugmentConfig, augment_config
from semisam_tf.data.intensity import augment_intensity

__all__ = [
    "AUGMENTATIONS",
    "AUGMENT_PRESETS",
    "AugmentConfig",
    "SpatialTransform",
    "augment_config",
    "augment_intensity",
    "bspline_matrix",
    "rotation_matrix",
]


@dataclass(frozen=True, eq=False)
class SpatialTransform:
    """A sampled transform from a scan's grid to a patch, to be applied to anything on that grid.

    The patch's voxel `o` is read at `centre_in + matrix @ (o - centre_out) + displacement(o)`, with `matrix` the
    affine part times the flips and turns. Without affine and elastic part it is exact indexing, no interpolation.

    Attributes:
        volume_size: The scan's voxels, (X, Y, Z).
        patch_size: The patch's voxels.
        start: First voxel of the box that is read, before turns and flips; negative where the scan is smaller.
        turns: Quarter turns in the xy plane, as `np.rot90(..., turns, axes=(0, 1))`.
        flips: Axes mirrored after the turns.
        affine: float64 [3, 3] in voxels of the scan, or None.
        elastic: float32 [3, gx, gy, gz], displacement of control points in voxels, or None.
    """

    volume_size: tuple[int, int, int]
    patch_size: tuple[int, int, int]
    start: tuple[int, int, int]
    turns: int = 0
    flips: tuple[bool, bool, bool] = (False, False, False)
    affine: np.ndarray | None = None
    elastic: np.ndarray | None = None

    @classmethod
    def sample(
        cls,
        rng: np.random.Generator,
        volume_size: Sequence[int],
        patch_size: Sequence[int],
        config: AugmentConfig,
        centre_vox: Sequence[float] | None = None,
        spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> SpatialTransform:
        """Draws a transform.

        Args:
            rng: Source of all randomness.
            volume_size, patch_size: Voxels of the scan and of the patch.
            config: What is allowed, and how strongly.
            centre_vox: Where the patch's centre should lie; it is moved so that the box stays in the scan. None:
                anywhere in the scan with equal probability. A scan smaller than the box is centred in it.
            spacing_mm: Of the scan: rotations are rigid in millimetres, not in voxels.
        """
        if not config.crop:
            centre_vox = [(n - 1) / 2 for n in volume_size]
        turns = int(rng.integers(4)) if config.rotate90 else 0
        flip_x, flip_y, flip_z = (bool(axis in config.flip and rng.random() < 0.5) for axis in "xyz")
        start = []
        for n, p, c in zip(volume_size, _turned(patch_size, turns), centre_vox or (None,) * 3, strict=True):
            if n <= p:
                start.append(-((p - n) // 2))
            elif c is None:
                start.append(int(rng.integers(n - p + 1)))
            else:
                start.append(int(np.clip(np.ceil(c - p / 2), 0, n - p)))
        affine = elastic = None
        if (config.rotation_deg > 0 or config.scale > 0) and rng.random() < config.affine_probability:
            affine = _sample_affine(rng, config, spacing_mm)
        if config.elastic_vox > 0 and rng.random() < config.elastic_probability:
            grid = [max(2, int(np.ceil(p / config.elastic_spacing_vox))) + 3 for p in patch_size]
            elastic = np.float32(config.elastic_vox) * rng.standard_normal([3, *grid], np.float32)
        return cls(
            volume_size=_triple(volume_size),
            patch_size=_triple(patch_size),
            start=_triple(start),
            turns=turns,
            flips=(flip_x, flip_y, flip_z),
            affine=affine,
            elastic=elastic,
        )

    @property
    def exact(self) -> bool:
        """Whether the transform only moves voxels."""
        return self.affine is None and self.elastic is None

    def apply(self, array: np.ndarray, order: int, fill: float = 0.0) -> np.ndarray:
        """Reads the patch, and nothing of `array` beyond the box that it comes from.

        Args:
            array: [X, Y, Z] or [X, Y, Z, C] on the scan's grid; any real dtype, which is kept. What lies in a file and
                is read when it is sliced (a mapped array, an HDF5 dataset) does as well.
            order: 0 nearest voxel (labels), 1 linear (images, probabilities, weights).
            fill: Value outside the scan.

        Returns:
            [x, y, z] or [x, y, z, C] of `patch_size`.

        Raises:
            ValueError: The array is not on the scan's grid, or the order is neither 0 nor 1.
        """
        if array.ndim not in (3, 4) or array.shape[:3] != self.volume_size:
            raise ValueError(
                f"Expected an array on the scan's grid {self.volume_size}. Received: array.shape={array.shape}."
            )
        if order not in (0, 1):
            raise ValueError(f"Expected order 0 (nearest) or 1 (linear). Received: order={order}.")
        if self.exact:
            return self._index(array, fill)
        return self._interpolate(array, order, fill)

    def _index(self, array: np.ndarray, fill: float) -> np.ndarray:
        box = _turned(self.patch_size, self.turns)
        patch = np.full((*box, *array.shape[3:]), fill, array.dtype)
        inside = [(max(s, 0), min(s + b, n)) for s, b, n in zip(self.start, box, self.volume_size, strict=True)]
        to = tuple(slice(low - s, high - s) for (low, high), s in zip(inside, self.start, strict=True))
        patch[to] = array[tuple(slice(low, high) for low, high in inside)]
        patch = np.rot90(patch, self.turns, axes=(0, 1))
        return np.ascontiguousarray(np.flip(patch, tuple(axis for axis in range(3) if self.flips[axis])))

    def _interpolate(self, array: np.ndarray, order: int, fill: float) -> np.ndarray:
        matrix, offset = self._matrix_and_offset()
        where = None if self.elastic is None else self._coordinates(matrix, offset)
        low, high = self._box(matrix, offset, where)
        offset = offset + 1 - low
        if where is not None:
            where = where + (1 - low).astype(np.float32).reshape(3, 1, 1, 1)
        box = array[tuple(slice(first, last) for first, last in zip(low, high, strict=True))]
        # One voxel of fill around the scan: without it SciPy's "constant" cuts half a voxel off every face, and whole
        # faces by rounding errors of 1e-16. Its own "grid-constant" gives the same at 1.5 times the cost. Where the box
        # ends within the scan, nothing is read so far out.
        box = np.pad(box, [(1, 1)] * 3 + [(0, 0)] * (array.ndim - 3), constant_values=fill)
        channels = box[..., None] if array.ndim == 3 else box
        patch = np.empty((*self.patch_size, channels.shape[-1]), array.dtype)
        options: dict[str, Any] = {"order": order, "mode": "constant", "cval": fill, "prefilter": False}
        for channel in range(channels.shape[-1]):
            values = np.ascontiguousarray(channels[..., channel])
            if where is None:
                result = ndimage.affine_transform(values, matrix, offset, self.patch_size, **options)
            else:
                result = ndimage.map_coordinates(values, where, **options)
            patch[..., channel] = result
        return patch[..., 0] if array.ndim == 3 else patch

    def _box(self, matrix: np.ndarray, offset: np.ndarray, where: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """First voxels, and those after the last, of the part of the scan that the patch is interpolated from."""
        if where is None:
            # An affine map is extreme at corners.
            corners = np.array(list(itertools.product(*((0, n - 1) for n in self.patch_size))))
            where = (corners @ matrix.T + offset).T
        places = where.reshape(3, -1)
        # A voxel more than the neighbours on either side, so that rounding decides nothing.
        low = np.floor(places.min(axis=1)).astype(int) - 1
        high = np.ceil(places.max(axis=1)).astype(int) + 2
        size = np.asarray(self.volume_size)
        low = np.clip(low, 0, size - 1)
        return low, np.clip(high, low + 1, size)

    def _matrix_and_offset(self) -> tuple[np.ndarray, np.ndarray]:
        """float64 [3, 3] and [3]: patch voxel -> scan voxel, displacement left out."""
        flip = np.diag([-1.0 if flipped else 1.0 for flipped in self.flips])
        turn = np.linalg.matrix_power(np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]), self.turns % 4)
        matrix = (np.eye(3) if self.affine is None else self.affine) @ turn @ flip
        centre_in = np.asarray(self.start) + (np.asarray(_turned(self.patch_size, self.turns)) - 1) / 2
        return matrix, centre_in - matrix @ ((np.asarray(self.patch_size) - 1) / 2)

    def _coordinates(self, matrix: np.ndarray, offset: np.ndarray) -> np.ndarray:
        """float32 [3, x, y, z], scan voxels."""
        if self.elastic is None:
            raise ValueError("Expected an elastic transform. Received: elastic=None.")
        coordinates = self.elastic
        for axis, n in enumerate(self.patch_size):
            spline = bspline_matrix(n, self.elastic.shape[axis + 1])
            coordinates = np.moveaxis(np.tensordot(spline, coordinates, axes=(1, axis + 1)), 0, axis + 1)
        coordinates = np.ascontiguousarray(coordinates)
        for axis, n in enumerate(self.patch_size):
            ramp = matrix[:, axis, None] * np.arange(n) + (offset[:, None] if axis == 0 else 0.0)
            coordinates += ramp.astype(np.float32).reshape([3, *(n if a == axis else 1 for a in range(3))])
        return coordinates


def _sample_affine(rng: np.random.Generator, config: AugmentConfig, spacing_mm: Sequence[float]) -> np.ndarray:
    x, y, z = np.deg2rad(rng.uniform(-1, 1, 3) * config.rotation_deg)
    scale = np.exp(rng.uniform(-1, 1, 3) * np.log1p(config.scale))
    spacing = np.asarray(spacing_mm, np.float64)
    return np.diag(1 / spacing) @ rotation_matrix(x, y, z) @ np.diag(scale * spacing)


def rotation_matrix(x_rad: float, y_rad: float, z_rad: float) -> np.ndarray:
    """float64 [3, 3]: turns about x, then y, then z, each by the right-hand rule."""
    (cx, sx), (cy, sy), (cz, sz) = ((np.cos(a), np.sin(a)) for a in (x_rad, y_rad, z_rad))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


@functools.lru_cache(maxsize=64)
def bspline_matrix(size: int, controls: int) -> np.ndarray:
    """Cubic B-spline through `controls` (at least 4) control points, evaluated at `size` voxels.

    Twice continuously differentiable, so the displacement has no kinks; separable, so a whole patch costs three
    small products. Rows are non-negative and sum to 1.

    Returns:
        float32 [size, controls].
    """
    if controls < 4 or size < 1:
        raise ValueError(f"Expected at least 4 controls and 1 voxel. Received: controls={controls}, size={size}.")
    position = (np.arange(size) + 0.5) / size * (controls - 3)
    first = np.minimum(position.astype(int), controls - 4)
    t = position - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    matrix = np.zeros((size, controls), np.float32)
    np.put_along_axis(matrix, first[:, None] + np.arange(4), weights.astype(np.float32), axis=1)
    matrix.setflags(write=False)
    return matrix


def _turned(patch_size: Sequence[int], turns: int) -> tuple[int, int, int]:
    """Size of the box in the scan that a patch comes from."""
    x, y, z = patch_size
    return (y, x, z) if turns % 2 else (x, y, z)


def _triple(values: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = (int(v) for v in values)
    return x, y, z
