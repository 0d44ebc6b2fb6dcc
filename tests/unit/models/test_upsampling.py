"""Trilinear upsampling against numbers by hand and against the interpolation of `geometry`."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from semisam_tf import geometry
from semisam_tf.models.upsampling import TrilinearUpsampling

sizes = st.tuples(*[st.integers(1, 5)] * 3)


def test_a_step_by_hand():
    x = np.array([0.0, 4.0], np.float32).reshape(1, 1, 2, 1, 1)
    y = TrilinearUpsampling()(x).numpy()
    assert y.shape == (1, 2, 4, 2, 1)
    np.testing.assert_allclose(y[0, 0, :, 0, 0], [0, 1, 3, 4])


@given(sizes, st.integers(1, 2), st.integers(1, 3))
@settings(max_examples=20)
def test_equals_linear_interpolation_with_edges_aligned(size: tuple[int, int, int], batch: int, channels: int):
    x = np.random.default_rng(0).normal(size=(batch, *size, channels)).astype(np.float32)
    expected = np.stack([geometry.resample(item, [2 * n for n in size]) for item in x])
    np.testing.assert_allclose(TrilinearUpsampling()(x).numpy(), expected, atol=1e-6)


def test_size_may_be_unknown_when_traced():
    layer = TrilinearUpsampling()
    traced = tf.function(layer, input_signature=[tf.TensorSpec([None, None, None, None, 2], tf.float32)])
    x = np.random.default_rng(0).normal(size=(1, 3, 2, 4, 2)).astype(np.float32)
    np.testing.assert_array_equal(traced(x).numpy(), layer(x).numpy())
    assert layer.compute_output_shape((None, None, 4, 2, 3)) == (None, None, 8, 4, 3)


def test_gradient_of_the_sum_is_eight_everywhere():
    # Each voxel's weight is spread over eight times the voxels; borders lose nothing.
    x = tf.ones([1, 3, 2, 2, 1])
    with tf.GradientTape() as tape:
        tape.watch(x)
        total = tf.reduce_sum(TrilinearUpsampling()(x))
    np.testing.assert_allclose(tape.gradient(total, x), 8.0)
