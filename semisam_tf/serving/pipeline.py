"""From a scan to its mask in one graph of core TensorFlow ops: what `inference.predictor` does in NumPy and Keras."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import tensorflow as tf

from semisam_tf.config import WINDOW_BLEND, WINDOW_OVERLAP, Config
from semisam_tf.serving import components, normalising, region, resampling, windows
from semisam_tf.serving.checks import checked

# Rows along X that go back to the scan's own grid at a time: all K classes of a whole scan never lie in memory there.
_SLAB = 16


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may ask for.

    Attributes:
        axis_vox: Voxels along one axis, of the scan and of its training grid.
        scan_vox: Voxels of the scan, and of its training grid.
        compressed_bytes: Size of a compressed file. gzip expands at most 1032 to 1 and TensorFlow's DecodeCompressed
            takes no limit of its own but 2 GiB, so a hostile file costs at most min(2 GiB, 1032 * compressed_bytes).
    """

    axis_vox: int = 4096
    scan_vox: int = 512**3
    compressed_bytes: int = 128 * 1024**2


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """What the graph says of a scan, in the scan's own grid.

    Attributes:
        mask: uint8 [X, Y, Z], class of each voxel.
        foreground: float32 [X, Y, Z] in [0, 1], probability of not being background.
        confidence: float32 scalar in [0, 1]; see `soft_dice`.
        located: Of coarse-to-fine runs: bool scalar, False where the coarse pass missed a class and the network looked
            everywhere. None of other runs.
    """

    mask: tf.Tensor
    foreground: tf.Tensor
    confidence: tf.Tensor
    located: tf.Tensor | None


class Pipeline:
    """The steps, for a network and the settings that it was trained with.

    Args:
        config: Settings of the run.
        model: [B, x, y, z, C] -> logits [B, x, y, z, K].
        overlap: Share of a window that neighbouring windows have in common.
        blend: "uniform" or "gaussian" weights of a window's voxels.
        limits: What a request may ask for.
        coarse_model: The coarse network; exactly of coarse-to-fine runs.
        whole_scan: Windows are as large as the scan, whatever `overlap` and `blend` say.
    """

    def __init__(
        self,
        config: Config,
        model: keras.Model,
        overlap: float = WINDOW_OVERLAP,
        blend: str = WINDOW_BLEND,
        limits: Limits | None = None,
        coarse_model: keras.Model | None = None,
        whole_scan: bool = False,
    ) -> None:
        if config.coarse_to_fine != (coarse_model is not None):
            raise ValueError(
                "Expected a coarse network exactly where the run is coarse to fine. Received: "
                f"coarse_to_fine={config.coarse_to_fine}, coarse_model={coarse_model}."
            )
        self.config, self.overlap, self.blend, self.limits = config, overlap, blend, limits or Limits()
        self.model, self.coarse_model, self.whole_scan = model, coarse_model, whole_scan
        self.channels = model.input_shape[-1]

    def __call__(self, image: tf.Tensor, spacing_mm: tf.Tensor) -> Segmentation:
        """float32 [X, Y, Z, C] and float64 [3] -> Segmentation."""
        image, spacing_mm = self._checked(image, spacing_mm)
        if self.coarse_model is None:
            mask, foreground = self._segment(image, spacing_mm)
            return Segmentation(mask, foreground, soft_dice(mask, foreground), None)
        size = tf.shape(image)[:3]
        found = self._locate(image, size, spacing_mm)
        mask, foreground = (found.paste(part, size) for part in self._segment(found.crop(image), spacing_mm))
        return Segmentation(mask, foreground, soft_dice(mask, foreground), found.found)

    def _locate(self, image: tf.Tensor, size: tf.Tensor, spacing_mm: tf.Tensor) -> region.Region:
        config = self.config
        scan = normalising.normalise(image, config.lower_percentile, config.upper_percentile)
        coarse_size = self._size_at(size, spacing_mm, config.coarse_spacing_mm)
        return region.locate(config, self.coarse_model, scan, coarse_size, size, spacing_mm)

    def _segment(self, image: tf.Tensor, spacing_mm: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """float32 [X, Y, Z, C] and float64 [3] -> mask uint8 and foreground float32, [X, Y, Z]."""
        config, own_size = self.config, tf.shape(image)[:3]
        training_size = own_size
        if config.training_spacing_mm:
            training_size = self._size_at(own_size, spacing_mm, config.training_spacing_mm)
        scan = normalising.normalise(image, config.lower_percentile, config.upper_percentile)
        scan = tf.transpose(resampling.resample(scan, training_size), [1, 2, 3, 0])
        scan = tf.ensure_shape(scan, [None, None, None, self.channels])
        probs = self._probs(scan)
        mask, foreground = to_own_grid(tf.transpose(probs, [3, 0, 1, 2]), own_size)
        if config.largest_component:
            mask = components.largest_component(mask, config.n_classes)
        return mask, foreground

    def _probs(self, scan: tf.Tensor) -> tf.Tensor:
        """A scan in the training grid, [X, Y, Z, C] -> softmax [X, Y, Z, K]."""
        config = self.config

        def network(window: tf.Tensor) -> tf.Tensor:
            return self.model(window, training=False)

        if self.whole_scan:
            return windows.predict_whole(network, scan, config.n_classes)
        return windows.predict_probs(network, scan, config.patch_size, config.n_classes, self.overlap, self.blend)

    def _checked(self, image: tf.Tensor, spacing_mm: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The image and its spacing, after what can be said against them."""
        size = tf.shape(image)
        size = checked(
            size, tf.equal(size[3], self.channels), f"{self.channels} image channels, as in training", size[3]
        )
        size = self._checked_size(tf.cast(size[:3], tf.float64), "a scan")
        with tf.control_dependencies([size]):
            image = tf.identity(image)
        image = checked(image, tf.reduce_all(tf.math.is_finite(image)), "finite values; repair or leave out the scan",
                        "NaN or infinity")  # fmt: skip
        image = tf.ensure_shape(image, [None, None, None, self.channels])
        spacing_mm = checked(
            spacing_mm,
            tf.reduce_all(tf.math.is_finite(spacing_mm) & (spacing_mm > 0)),
            "spacing_mm to be three voxel sizes above 0 mm",
            spacing_mm,
        )
        return image, spacing_mm

    def _size_at(self, size: tf.Tensor, spacing_mm: tf.Tensor, wanted_mm: Sequence[float]) -> tf.Tensor:
        """`geometry.resampled_size`: int32 [3] -> int32 [3]."""
        extent_mm = tf.cast(size, tf.float64) * spacing_mm
        # tf.round rounds halves to even numbers, as Python does; float64, so that the halves are the same.
        found = tf.maximum(tf.ones([3], tf.float64), tf.round(extent_mm / tf.constant(wanted_mm, tf.float64)))
        text = "a scan that in the training spacing has"
        return tf.cast(self._checked_size(found, text), tf.int32)

    def _checked_size(self, size: tf.Tensor, what: str) -> tf.Tensor:
        """float64 [3], which no product overflows."""
        limits = self.limits
        fits = tf.reduce_all((size >= 1) & (size <= limits.axis_vox)) & (tf.reduce_prod(size) <= limits.scan_vox)
        text = f"{what} 1 to {limits.axis_vox} voxels along each axis and at most {limits.scan_vox} in all"
        return checked(size, fits, text, size)


def to_own_grid(probs: tf.Tensor, own_size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Class and foreground probability of every voxel of the scan, from the training grid, slab by slab.

    Args:
        probs: float32 [K, x, y, z].
        own_size: int32 [3].

    Returns:
        uint8 [X, Y, Z], the argmax of the interpolated probabilities, and float32 [X, Y, Z] in [0, 1].
    """
    matrix = resampling.resampling_matrix(tf.shape(probs)[1], own_size[0])  # [X, x]
    n_classes = probs.shape[0]

    def slab(first: tf.Tensor, mask: tf.Tensor, foreground: tf.Tensor) -> tuple[tf.Tensor, ...]:
        last = tf.minimum(first + _SLAB, own_size[0])
        part = tf.tensordot(matrix[first:last], probs, [[1], [1]])  # [s, K, y, z]
        part = tf.transpose(part, [1, 0, 2, 3])
        for axis in (2, 3):
            part = resampling.resample_axis(part, axis, own_size[axis - 1])
        part = tf.ensure_shape(part, [n_classes, None, None, None])
        classes = tf.cast(tf.argmax(part, axis=0), tf.uint8)
        shares = tf.clip_by_value(tf.reduce_sum(part[1:], axis=0), 0.0, 1.0)
        return last, _write_rows(mask, first, last, classes), _write_rows(foreground, first, last, shares)

    shape = tf.TensorShape([None, None, None])
    _, mask, foreground = tf.while_loop(
        lambda first, *_: first < own_size[0],
        slab,
        [0, tf.zeros(own_size, tf.uint8), tf.zeros(own_size)],
        shape_invariants=[tf.TensorShape([]), shape, shape],
        parallel_iterations=1,
    )
    return mask, foreground


def _write_rows(volume: tf.Tensor, first: tf.Tensor, last: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.TensorStridedSliceUpdate(
        input=volume, begin=tf.stack([first]), end=tf.stack([last]), strides=[1], value=rows
    )


def soft_dice(mask: tf.Tensor, foreground: tf.Tensor) -> tf.Tensor:
    """Confidence in a mask: its Dice with the foreground probability, 2 sum(p m) / (sum(p) + sum(m)).

    What the network expects its Dice to be, as far as its probabilities are right. 1: every voxel is certain; 0: the
    mask is empty. Voxels that `largest_component` took away count against it.

    Reference: Soft Dice Confidence (Borges, Pacheco, Silva; arXiv 2402.10665), there for one foreground class.

    Args:
        mask: uint8 [X, Y, Z].
        foreground: float32 [X, Y, Z] in [0, 1].

    Returns:
        float32 scalar in [0, 1].
    """
    inside = tf.cast(mask > 0, tf.float32)
    total = tf.reduce_sum(foreground) + tf.reduce_sum(inside)
    return tf.clip_by_value(tf.math.divide_no_nan(2 * tf.reduce_sum(foreground * inside), total), 0.0, 1.0)
