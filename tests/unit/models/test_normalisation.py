"""Normalisation layers against numbers worked by hand and against their formulas in NumPy."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from semisam_tf.models.normalisation import (
    NORMALISATIONS,
    InstanceNormalization,
    TorchBatchNormalization,
    normalisation_layer,
)

EPSILON = 1e-5


def _random(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(3.0, 2.0, shape).astype(np.float32)


def test_batch_norm_of_two_voxels_by_hand():
    layer = TorchBatchNormalization()
    x = np.array([1.0, 3.0], np.float32).reshape(1, 2, 1, 1, 1)
    y = layer(x, training=True).numpy().ravel()
    # mean 2, biased variance 1; the running ones start from 0 and 1 and move by a tenth, to the UNBIASED variance 2.
    np.testing.assert_allclose(y, np.array([-1.0, 1.0]) / np.sqrt(1 + EPSILON), rtol=1e-6)
    np.testing.assert_allclose(layer.moving_mean.numpy(), [0.2], rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance.numpy(), [0.9 * 1.0 + 0.1 * 2.0], rtol=1e-6)


def test_batch_norm_in_inference_uses_the_running_statistics_and_leaves_them():
    layer = TorchBatchNormalization()
    layer.build((None, None, None, None, 2))
    layer.moving_mean.assign([1.0, 2.0])
    layer.moving_variance.assign([4.0 - EPSILON, 1.0 - EPSILON])
    layer.gamma.assign([3.0, 1.0])
    layer.beta.assign([0.5, 0.0])
    y = layer(np.full((1, 2, 2, 2, 2), 5.0, np.float32), training=False).numpy()
    np.testing.assert_allclose(y[0, 0, 0, 0], [(5 - 1) / 2 * 3 + 0.5, 3.0], rtol=1e-6)
    np.testing.assert_array_equal(layer.moving_mean.numpy(), [1.0, 2.0])


def test_batch_norm_follows_training_even_where_it_is_not_trainable():
    layer = TorchBatchNormalization(trainable=False)
    y = layer(_random((2, 4, 4, 4, 3)), training=True).numpy()
    np.testing.assert_allclose(y.mean(axis=(0, 1, 2, 3)), 0.0, atol=1e-5)
    np.testing.assert_allclose(y.std(axis=(0, 1, 2, 3)), 1.0, atol=1e-4)


@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_is_each_items_own_z_score(affine: bool):
    x = _random((3, 4, 5, 6, 2))
    layer = InstanceNormalization(affine=affine)
    expected = (x - x.mean(axis=(1, 2, 3), keepdims=True)) / np.sqrt(x.var(axis=(1, 2, 3), keepdims=True) + EPSILON)
    if affine:
        layer.build(x.shape)
        layer.gamma.assign([2.0, 3.0])
        layer.beta.assign([-1.0, 1.0])
        expected = expected * np.array([2.0, 3.0]) + np.array([-1.0, 1.0])
    np.testing.assert_allclose(layer(x).numpy(), expected, atol=2e-5)
    assert len(layer.trainable_variables) == (2 if affine else 0)


def test_instance_norm_of_an_unknown_batch_gives_the_same_numbers():
    layer = InstanceNormalization()
    x = _random((3, 4, 4, 6, 2))
    known = layer(x).numpy()
    unknown = tf.function(layer, input_signature=[tf.TensorSpec([None, None, None, None, 2], tf.float32)])
    np.testing.assert_allclose(unknown(x).numpy(), known, atol=1e-6)


@pytest.mark.parametrize("kind", ["batch", "instance"])
def test_gradients_are_those_of_the_formula(kind: str):
    x, weight = tf.constant(_random((2, 4, 4, 4, 3))), tf.constant(_random((2, 4, 4, 4, 3), seed=1))
    layer = normalisation_layer(kind, "norm", 3)
    assert layer is not None
    axes = [0, 1, 2, 3] if kind == "batch" else [1, 2, 3]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        ours = tf.reduce_sum(layer(x, **({"training": True} if kind == "batch" else {})) * weight)
        mean, variance = tf.nn.moments(x, axes, keepdims=True)
        formula = tf.reduce_sum((x - mean) / tf.sqrt(variance + EPSILON) * weight)
    np.testing.assert_allclose(tape.gradient(ours, x), tape.gradient(formula, x), atol=1e-4)


def test_group_norm_takes_sixteen_groups_or_as_many_as_divide_the_channels():
    assert [normalisation_layer("group", "norm", c).groups for c in (32, 16, 8, 24)] == [16, 16, 8, 12]


def test_none_is_no_layer_and_an_unknown_kind_is_named():
    assert normalisation_layer("none", "norm", 4) is None
    with pytest.raises(ValueError, match=r"Received: normalisation='layer'"):
        normalisation_layer("layer", "norm", 4)
    assert "none" in NORMALISATIONS


def test_layers_come_back_from_their_config():
    layer = InstanceNormalization(affine=False, name="block.conv.1")
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    assert isinstance(again, InstanceNormalization)
    assert (again.affine, again.name) == (False, "block.conv.1")
