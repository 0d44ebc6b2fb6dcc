"""Trilinear upsampling by two."""

from __future__ import annotations

import keras
import tensorflow as tf


def _double(x: tf.Tensor, axis: int) -> tf.Tensor:
    """Linear interpolation to twice the length along one spatial axis of [B, X, Y, Z, C], edges aligned.

    The new centres lie at -1/4 and +1/4 of a voxel from the old ones, so each value is 3/4 of its voxel and 1/4 of
    the neighbour's on that side, the border repeated.
    """
    n = tf.shape(x)[axis]
    first = tf.gather(x, [0], axis=axis)
    last = tf.gather(x, [n - 1], axis=axis)
    before = [slice(None)] * 5
    after = [slice(None)] * 5
    before[axis], after[axis] = slice(None, -1), slice(1, None)
    previous = tf.concat([first, x[tuple(before)]], axis)
    following = tf.concat([x[tuple(after)], last], axis)
    pairs = tf.stack([0.75 * x + 0.25 * previous, 0.75 * x + 0.25 * following], axis + 1)
    shape = tf.unstack(tf.shape(x))
    shape[axis] = 2 * n
    static = x.shape.as_list()
    static[axis] = None if static[axis] is None else 2 * static[axis]
    return tf.ensure_shape(tf.reshape(pairs, tf.stack(shape)), static)


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
