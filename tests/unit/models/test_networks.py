"""What every registered network must do; V-Net's own naming and dropout."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from semisam_tf.models.registry import (
    NETWORKS,
    RECORDED_PARAMETERS,
    build_network,
    trainable_parameters,
)
from semisam_tf.models.vnet import build_vnet

ALL = sorted(NETWORKS)


def _image(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", ALL)
def test_every_network_has_its_recorded_size(name: str):
    assert name in RECORDED_PARAMETERS, f"record the published size of {name} in RECORDED_PARAMETERS"
    assert trainable_parameters(build_network(name)) == RECORDED_PARAMETERS[name]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("normalisation", ["batch", "instance", "group", "none"])
def test_any_size_channels_and_classes(name: str, normalisation: str):
    model = build_network(name, input_channels=2, n_classes=5, filters=2, normalisation=normalisation)
    assert model(_image(1, 32, 16, 48, 2)).shape == (1, 32, 16, 48, 5)


@pytest.mark.parametrize("name", ALL)
def test_the_seed_decides_weights_and_dropout(name: str):
    x = _image(2, 16, 16, 16, 1)
    first, same, other = (build_network(name, filters=2, seed=s) for s in (1, 1, 2))
    for a, b in zip(first.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(first.get_weights(), other.get_weights(), strict=True))
    drawn = first(x, training=True).numpy()
    np.testing.assert_array_equal(drawn, same(x, training=True).numpy())
    assert not np.array_equal(drawn, first(x, training=True).numpy())  # the next pass draws anew


@pytest.mark.parametrize("name", ALL)
def test_dropout_is_off_in_inference_and_by_zero(name: str):
    x = _image(2, 16, 16, 16, 1)
    model = build_network(name, filters=2)
    np.testing.assert_array_equal(model(x, training=False), model(x, training=False))
    without = build_network(name, filters=2, dropout=0.0, normalisation="instance")
    np.testing.assert_array_equal(without(x, training=True), without(x, training=True))
    assert not any("dropout" in layer.name for layer in without.layers)


@pytest.mark.parametrize("name", ALL)
def test_the_random_state_is_among_the_variables(name: str):
    # Of `variables`, which a checkpoint has to save; `weights`, and so save_weights, leave it out.
    x = _image(2, 16, 16, 16, 1)
    first, second = build_network(name, filters=2, seed=1), build_network(name, filters=2, seed=2)
    first(x, training=True)
    for source, target in zip(first.variables, second.variables, strict=True):
        assert source.path == target.path  # no counter of the process in the name
        target.assign(source)
    np.testing.assert_array_equal(first(x, training=True), second(x, training=True))


# Keras hands its variables to h5py, which asks NumPy for them without a copy.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
@pytest.mark.parametrize("name", ALL)
def test_weights_go_through_a_file(name: str, tmp_path: Path):
    x = _image(2, 16, 16, 16, 1)
    first, second = build_network(name, filters=2, seed=1), build_network(name, filters=2, seed=2)
    first(x, training=True)  # so that running statistics are not what a fresh model has
    first.save_weights(tmp_path / "a.weights.h5")
    second.load_weights(tmp_path / "a.weights.h5")
    np.testing.assert_array_equal(first(x), second(x))


@pytest.mark.parametrize("name", ALL)
def test_a_model_comes_back_from_its_config(name: str):
    x = _image(1, 16, 32, 16, 1)
    model = build_network(name, filters=2, normalisation="instance")
    again = keras.Model.from_config(model.get_config())
    again.set_weights(model.get_weights())
    np.testing.assert_array_equal(model(x), again(x))
    assert [layer.name for layer in model.layers] == [layer.name for layer in again.layers]


@pytest.mark.parametrize("name", ALL)
def test_batch_and_size_may_be_unknown_when_traced(name: str):
    # Batch normalisation: an instance's statistics over the two voxels at the bottom would magnify rounding.
    model = build_network(name, filters=2, normalisation="batch")
    traced = tf.function(model, input_signature=[tf.TensorSpec([None, None, None, None, 1], tf.float32)])
    for batch, size in [(1, (16, 16, 32)), (2, (32, 16, 16))]:
        x = _image(batch, *size, 1)
        np.testing.assert_allclose(traced(x), model(x), atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_every_weight_gets_a_gradient_and_twice_the_same(name: str):
    # Without normalisation: behind one, a bias has no influence.
    model = build_network(name, filters=2, normalisation="none", dropout=0.0)
    x = _image(2, 16, 16, 16, 1)

    @tf.function
    def gradients() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True)))
        return tape.gradient(loss, [v.value for v in model.trainable_variables])

    first, second = gradients(), gradients()
    for variable, a, b in zip(model.trainable_variables, first, second, strict=True):
        assert np.abs(a).max() > 0, variable.path
        np.testing.assert_array_equal(a, b, err_msg=variable.path)


def test_logits_are_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = build_vnet(filters=2)
    finally:
        keras.config.set_dtype_policy("float32")
    logits = model(_image(1, 16, 16, 16, 1), training=True)
    assert logits.dtype == tf.float32
    assert np.isfinite(logits).all()


@pytest.mark.parametrize(("normalisation", "second"), [("batch", "block_two.conv.3"), ("none", "block_two.conv.2")])
def test_vnet_layers_carry_torch_names_whose_index_counts_every_layer(normalisation: str, second: str):
    model = build_vnet(filters=2, normalisation=normalisation)
    assert isinstance(model.get_layer(second), keras.layers.Conv3D)
    assert isinstance(model.get_layer("block_one_dw.conv.0"), keras.layers.Conv3D)
    assert isinstance(model.get_layer("block_five_up.conv.0"), keras.layers.Conv3DTranspose)


def test_vnet_drops_whole_channels():
    model = build_vnet(filters=4, dropout=0.5)
    layer = model.get_layer("dropout_output")
    y = layer(np.ones((2, 4, 4, 4, 64), np.float32), training=True).numpy()
    per_channel = y.reshape(2, -1, 64)
    np.testing.assert_array_equal(per_channel.min(axis=1), per_channel.max(axis=1))
    assert set(np.unique(y)) == {0.0, 2.0}


def test_unknown_network_and_bad_sizes_are_named():
    with pytest.raises(ValueError, match=r"one of \['unet3d', 'vnet'\]\. Received: network='unet'"):
        build_network("unet")
