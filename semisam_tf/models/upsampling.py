"""Trilinear upsampling by two."""

from __future__ import annotations

import keras
import tensorflow as tf


def _doubling_matrix(n: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """`geometry.resampling_matrix(n, 2 n)` for a size known only when the graph runs: [2n, n].

    The new centres lie at -1/4 and +1/4 of a voxel from the old ones, so each value is 3/4 of its voxel and 1/4 of
    the neighbour's on that side, the border repeated.
    """
    centres = (tf.range(2 * n, dtype=tf.float32) + 0.5) / 2 - 0.5
    centres = tf.clip_by_value(centres, 0.0, tf.cast(n - 1, tf.float32))
    distance = tf.abs(centres[:, None] - tf.range(n, dtype=tf.float32)[None, :])
    return tf.cast(tf.maximum(0.0, 1.0 - distance), dtype)


def _double(x: tf.Tensor, axis: int) -> tf.Tensor:
    """Linear interpolation to twice the length along one spatial axis of [B, X, Y, Z, C], edges aligned.

    A dense matrix although only two entries of a row are not zero: on a CPU, forward and backward, it takes an eighth
    of the time of adding shifted slices (57 ms for 460 ms at 4 x 32x32x24 x 16).
    """
    shape = tf.unstack(tf.shape(x))
    n = shape[axis]
    behind = tf.reduce_prod(shape[axis + 1 :])
    matrix = _doubling_matrix(n, x.dtype)
    y = tf.matmul(matrix[None], tf.reshape(x, tf.stack([-1, n, behind])))  # [before, 2n, behind]
    shape[axis] = 2 * n
    static = x.shape.as_list()
    static[axis] = None if static[axis] is None else 2 * static[axis]
    return tf.ensure_shape(tf.reshape(y, tf.stack(shape)), static)


@keras.saving.register_keras_serializable("semisam_tf")
class TrilinearUpsampling(keras.layers.Layer):
    """[B, X, Y, Z, C] -> [B, 2X, 2Y, 2Z, C], one axis after the other; differentiable, any dtype.

    Reference: torch.nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False).
    """

    def call(self, x: tf.Tensor) -> tf.Tensor:
        for axis in (3, 2, 1):  # the last axis first: its pieces are smallest while the tensor is small
            x = _double(x, axis)
        return x

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        batch, *size, channels = input_shape
        return (batch, *(None if n is None else 2 * n for n in size), channels)
