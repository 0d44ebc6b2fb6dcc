"""`inference.region` in the graph: the coarse pass, the box around what it found, and the way back to the scan."""

from __future__ import annotations

import dataclasses

import keras
import tensorflow as tf

from semisam_tf.config import WINDOW_BLEND, Config
from semisam_tf.inference.region import BORDER_TOLERANCE_VOX, COARSE_OVERLAP, FOUND_PROBABILITY
from semisam_tf.serving import components, resampling, windows


@dataclasses.dataclass(frozen=True)
class Region:
    """A box of a scan's voxels.

    Attributes:
        low: int32 [3], its first voxel.
        size: int32 [3], its voxels.
        found: bool scalar; False where the coarse pass missed a class and the box is therefore the whole scan.
    """

    low: tf.Tensor
    size: tf.Tensor
    found: tf.Tensor

    def crop(self, image: tf.Tensor) -> tf.Tensor:
        """[X, Y, Z, C] -> [x, y, z, C]."""
        begin, size = tf.concat([self.low, [0]], axis=0), tf.concat([self.size, [-1]], axis=0)
        return tf.ensure_shape(tf.slice(image, begin, size), [None, None, None, image.shape[-1]])

    def paste(self, array: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
        """[x, y, z] -> [X, Y, Z] of `size`, int32 [3]: zeros around the box."""
        return tf.pad(array, tf.stack([self.low, size - self.low - self.size], axis=1))


def locate(
    config: Config, model: keras.Model, scan: tf.Tensor, coarse_size: tf.Tensor, size: tf.Tensor, spacing_mm: tf.Tensor
) -> Region:
    """`inference.region.Locator.locate`.

    Args:
        config: Settings of the run.
        model: The coarse network, [B, x, y, z, C] -> logits [B, x, y, z, K].
        scan: float32 [C, X, Y, Z], normalised, in the scan's own grid.
        coarse_size: int32 [3], voxels of the coarse grid.
        size: int32 [3], voxels of the scan.
        spacing_mm: float64 [3], of the scan.
    """
    grid = tf.transpose(resampling.resample(scan, coarse_size), [1, 2, 3, 0])
    probs = windows.predict_probs(
        lambda x: model(x, training=False),
        tf.ensure_shape(grid, [None, None, None, model.input_shape[-1]]),
        config.coarse_patch_size,
        config.n_classes,
        COARSE_OVERLAP,
        WINDOW_BLEND,
    )
    organ = tf.cast(tf.argmax(probs[..., 1:], axis=-1) + 1, tf.uint8)
    mask = tf.where(1.0 - probs[..., 0] > FOUND_PROBABILITY, organ, tf.zeros_like(organ))
    classes = tf.range(1, config.n_classes)
    found = tf.reduce_all(tf.reduce_any(tf.equal(tf.cast(mask, tf.int32)[..., None], classes), axis=[0, 1, 2]))

    def around() -> tuple[tf.Tensor, tf.Tensor]:
        return box_around(components.large_pieces(mask, config.n_classes), size, spacing_mm, config.region_margin_mm)

    low, high = tf.cond(found, around, lambda: (tf.zeros_like(size), size))
    return Region(low, high - low, found)


def box_around(
    found: tf.Tensor, size: tf.Tensor, spacing_mm: tf.Tensor, margin_mm: float | tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """`inference.region.box_around`: bool [x, y, z] with a voxel -> int32 [3] twice, first voxel and first beyond."""
    where = tf.where(found)  # int64 [F, 3]
    first, last = tf.reduce_min(where, axis=0), tf.reduce_max(where, axis=0)
    # float64 and in the order of the Python code, so that borders are the same.
    scale = tf.cast(size, tf.float64) / tf.cast(tf.shape(found), tf.float64)
    margin = tf.cast(margin_mm, tf.float64) / spacing_mm
    low = tf.floor(tf.cast(first, tf.float64) * scale - margin + BORDER_TOLERANCE_VOX)
    high = tf.math.ceil(tf.cast(last + 1, tf.float64) * scale + margin - BORDER_TOLERANCE_VOX)
    # Bounded before they are int32: a margin may be larger than any scan.
    whole = tf.cast(size, tf.float64)
    return tf.cast(tf.maximum(low, 0), tf.int32), tf.cast(tf.minimum(high, whole), tf.int32)
