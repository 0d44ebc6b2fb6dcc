"""From a scan as stored to the network's grid and back. Stored with the model; the same in training and serving.

The order is fixed:
  1. in the scan's own grid, each channel: clip to two percentiles of the whole scan, then z-score
  2. resample to the training spacing (linear, anti-aliased; the label by the largest resampled class)
  3. network: class probabilities in the training grid
  4. probabilities resampled to the scan's own grid; the mask is their argmax there
Normalising first makes the percentiles independent of the training spacing.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from semisam_tf import geometry
from semisam_tf.config import Config
from semisam_tf.data.volumes import Volume


@dataclass(frozen=True)
class Preprocessing:
    """Settings of the steps above.

    Attributes:
        lower_percentile, upper_percentile: Clipping range of intensities, in percent of the scan's voxels.
        training_spacing_mm: Voxel size that the network sees, or None for each scan's own grid.
    """

    lower_percentile: float = 0.5
    upper_percentile: float = 99.5
    training_spacing_mm: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.lower_percentile < self.upper_percentile <= 100:
            raise ValueError(
                "Expected 0 <= lower_percentile < upper_percentile <= 100. Received: "
                f"lower_percentile={self.lower_percentile}, upper_percentile={self.upper_percentile}."
            )
        spacing = self.training_spacing_mm
        if spacing is not None and (len(spacing) != 3 or not all(np.isfinite(s) and s > 0 for s in spacing)):
            raise ValueError(f"Expected three positive numbers (mm), or None. Received: training_spacing_mm={spacing}.")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`, also after a trip through JSON."""
        spacing = values["training_spacing_mm"]
        return cls(
            float(values["lower_percentile"]),
            float(values["upper_percentile"]),
            None if spacing is None else (float(spacing[0]), float(spacing[1]), float(spacing[2])),
        )

    def normalise(self, image: np.ndarray) -> np.ndarray:
        """Clips each channel of [X, Y, Z, C] to its percentiles, then z-scores it.

        A positive rescaling or shift of the intensities leaves the result alone. A channel that is constant after
        clipping becomes zeros.

        Returns:
            float32 of the same shape; mean 0 and standard deviation 1 per channel.
        """
        result = np.empty(image.shape, np.float32)
        for channel in range(image.shape[-1]):
            values = np.ascontiguousarray(image[..., channel], np.float32)
            low, high = np.percentile(values, (self.lower_percentile, self.upper_percentile))
            if low == high:
                result[..., channel] = 0.0
                continue
            values = np.clip(values, np.float32(low), np.float32(high))
            mean = values.mean(dtype=np.float64)
            # float32 sums of millions of voxels lose digits; the accumulators are wider.
            std = values.std(dtype=np.float64)
            result[..., channel] = (values - np.float32(mean)) / np.float32(std)
        return result

    def training_size(self, size: Sequence[int], spacing_mm: Sequence[float]) -> tuple[int, int, int]:
        """Voxels of a scan's training grid."""
        if self.training_spacing_mm is None:
            x, y, z = size
            return x, y, z
        return geometry.resampled_size(size, spacing_mm, self.training_spacing_mm)

    def to_training_grid(self, volume: Volume, n_classes: int) -> Volume:
        """Steps 1 and 2.

        Args:
            volume: As loaded.
            n_classes: Classes with background; label values must lie below it.

        Returns:
            A Volume that covers the same extent. Its spacing is extent / voxels, so it can differ from
            `training_spacing_mm` by half a voxel over the scan's length; its affine maps the new voxel centres.

        Raises:
            ValueError: The label has values that the network has no class for.
        """
        return self.on_training_grid(volume, self.training_image(volume), n_classes)

    def training_image(self, volume: Volume) -> np.ndarray:
        """The image of a scan as loaded after steps 1 and 2: float32 [x, y, z, C]."""
        image = self.normalise(volume.image)
        size = self.training_size(volume.size, volume.spacing_mm)
        return image if size == volume.size else geometry.resample(image, size)

    def on_training_grid(self, volume: Volume, image: np.ndarray, n_classes: int) -> Volume:
        """A scan as loaded with its image from `training_image`: the label, spacing and affine of `to_training_grid`.

        Raises: As `to_training_grid`.
        """
        if volume.label is not None and int(volume.label.max(initial=0)) >= n_classes:
            raise ValueError(
                f"Expected label values below n_classes={n_classes} in case {volume.case_id!r}; set --n_classes. "
                f"Received: values={np.unique(volume.label).tolist()}."
            )
        size = self.training_size(volume.size, volume.spacing_mm)
        if size == volume.size:
            return dataclasses.replace(volume, image=image)
        scale = np.asarray(volume.size) / np.asarray(size)
        to_old_voxels = np.diag([*scale, 1.0])
        to_old_voxels[:3, 3] = 0.5 * scale - 0.5
        x, y, z = np.asarray(volume.spacing_mm) * scale
        resample = functools.partial(geometry.resample, size=size)
        return dataclasses.replace(
            volume,
            image=image,
            label=None if volume.label is None else resample_label(volume.label, resample),
            spacing_mm=(float(x), float(y), float(z)),
            affine=volume.affine @ to_old_voxels,
            nifti_header=None,
        )

    def probs_to_own_grid(self, probs: np.ndarray, own_size: Sequence[int]) -> np.ndarray:
        """Step 4: float [x, y, z, K] in the training grid -> float32 [X, Y, Z, K]; classes still sum to 1."""
        return geometry.resample(probs, own_size)


def preprocessing_of(config: Config) -> Preprocessing:
    """The normalisation and training grid of a run."""
    spacing = config.training_spacing_mm
    return Preprocessing(
        config.lower_percentile, config.upper_percentile, (spacing[0], spacing[1], spacing[2]) if spacing else None
    )


def resample_label(label: np.ndarray, resample: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The class with the largest resampled one-hot value; background wins ties.

    The mask stays on its image, since both go through the same weights at the same positions.

    Args:
        label: uint8 [X, Y, Z].
        resample: What the image goes through: float32 [X, Y, Z] -> float32 [x, y, z].

    Returns:
        uint8 [x, y, z].
    """
    classes = [int(value) for value in np.unique(label) if value]
    shares = [resample((label == value).astype(np.float32)) for value in classes or [1]]
    best_share = np.float32(1.0) - sum(shares, np.zeros(shares[0].shape, np.float32))
    best = np.zeros(shares[0].shape, np.uint8)
    for value, share in zip(classes, shares, strict=False):
        wins = share > best_share
        best[wins] = value
        best_share = np.maximum(best_share, share)
    return best


def onto_grid(array: np.ndarray, affine: np.ndarray, other_affine: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Values of an array at the voxel centres of another grid in the same world, by linear interpolation.

    Args:
        array: [x, y, z, C], any real dtype.
        affine: [4, 4], its voxel indices -> world.
        other_affine: The same of the other grid, which may be turned, finer, or larger.
        size: Voxels of the other grid.

    Returns:
        float32 [*size, C]; 0 in voxels whose centre is beyond the array, whose edges are half a voxel from its centres.
    """
    to_array = np.linalg.inv(affine) @ other_affine
    inside = np.ones(tuple(size), bool)
    for axis, extent in enumerate(array.shape[:3]):
        weights = (to_array[axis, i] * np.arange(n) for i, n in enumerate(size))
        position = sum(np.ix_(*weights), to_array[axis, 3])
        # A little more, for centres that lie on the edge but for rounding.
        inside &= (position >= -0.5 - 1e-6) & (position <= extent - 0.5 + 1e-6)
    channels = [
        ndimage.affine_transform(
            np.asarray(array[..., c], np.float32), to_array[:3, :3], to_array[:3, 3], tuple(size), order=1,
            mode="nearest",
        )
        for c in range(array.shape[-1])
    ]  # fmt: skip
    return np.where(inside[..., None], np.stack(channels, axis=-1), np.float32(0))
