"""Dropout: what is dropped, how often, and that the random state can be carried over by name."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from semisam_tf.models.dropout import SeededDropout


@pytest.mark.parametrize("whole_channels", [True, False])
def test_values_are_dropped_or_scaled_up_at_the_given_rate(whole_channels: bool):
    x = np.random.default_rng(0).normal(5, 1, (4, 3, 4, 5, 256)).astype(np.float32)
    ratio = SeededDropout(0.2, 0, whole_channels)(x, training=True).numpy() / x
    np.testing.assert_allclose(np.unique(ratio.round(5)), [0, 1.25])
    assert (ratio == 0).mean() == pytest.approx(0.2, abs=0.05)  # of 1024 channels at least: four standard deviations
    spread = np.ptp(ratio.reshape(4, -1, 256), axis=1).round(5)  # within a channel
    assert spread.max() == (0 if whole_channels else 1.25)
    channels = ratio[:, 0, 0, 0] == 0
    assert not np.array_equal(channels[0], channels[1])  # items are drawn apart


@pytest.mark.parametrize("whole_channels", [True, False])
def test_inference_and_rate_zero_leave_the_input(whole_channels: bool):
    x = np.ones((1, 2, 2, 2, 8), np.float32)
    np.testing.assert_array_equal(SeededDropout(0.5, 0, whole_channels)(x), x)
    np.testing.assert_array_equal(SeededDropout(0.0, 0, whole_channels)(x, training=True), x)


@pytest.mark.parametrize("whole_channels", [True, False])
def test_state_is_named_after_the_layer_and_can_be_carried_over(whole_channels: bool):
    x = np.ones((2, 2, 2, 2, 32), np.float32)
    first, second = (SeededDropout(0.5, seed, whole_channels, name="drop") for seed in (1, 2))
    assert (
        [v.path for v in first.variables] == [v.path for v in second.variables] == ["drop_state/seed_generator_state"]
    )
    draw = tf.function(lambda layer: layer(x, training=True))
    one = draw(first)
    assert not np.array_equal(one, draw(first))
    second.variables[0].assign(first.variables[0])
    np.testing.assert_array_equal(draw(first), draw(second))
    again = SeededDropout(0.5, 1, whole_channels)
    np.testing.assert_array_equal(again(x, training=True), one)


def test_shape_may_be_unknown_when_traced():
    layer = SeededDropout(0.5, 0)
    traced = tf.function(
        lambda x: layer(x, training=True), input_signature=[tf.TensorSpec([None, None, None, None, 8], tf.float32)]
    )
    y = traced(np.ones((2, 3, 4, 5, 8), np.float32)).numpy()
    assert y.shape == (2, 3, 4, 5, 8)
    assert set(np.unique(y)) == {0.0, 2.0}


def test_config_and_bad_rate():
    layer = SeededDropout(0.25, 7, whole_channels=False, name="drop")
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert (again.rate, again.seed, again.whole_channels, again.name) == (0.25, 7, False, "drop")
    with pytest.raises(ValueError, match="Received: rate=1"):
        SeededDropout(1.0, 0)
