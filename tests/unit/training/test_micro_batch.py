"""A few items at a time: the logits and gradients of all at once. What it saves is measured: docs/speed.md."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from semisam_tf.models.vnet import build_vnet
from semisam_tf.training.micro_batch import in_training

SIZE = (32, 16, 16)


def batch(items):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(items, *SIZE, 1)).astype(np.float32)
    # Of the whole batch: a sum over parts of their own losses would be another.
    weight = rng.uniform(size=(items, *SIZE)).astype(np.float32)
    return tf.constant(images), tf.constant(weight)


def gradients(model, micro_batch, items=4):
    """Logits and gradients of a loss that is a ratio of sums over the batch, compiled as in a step."""
    images, weight = batch(items)

    @tf.function
    def compute():
        with tf.GradientTape() as tape:
            logits = in_training(model, micro_batch)(images)
            organ = tf.nn.softmax(logits)[..., 1]
            loss = tf.reduce_sum(organ * weight) / tf.reduce_sum(organ**2)
        return logits, tape.gradient(loss, model.trainable_variables)

    logits, found = compute()
    return logits.numpy(), [gradient.numpy() for gradient in found]


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_gradients_are_those_of_one_pass(micro_batch):
    model = build_vnet(filters=2, normalisation="instance", dropout=0.0)
    whole_logits, whole = gradients(model, 0)
    logits, parts = gradients(model, micro_batch)
    np.testing.assert_allclose(logits, whole_logits, atol=1e-5)
    scale = max(np.abs(gradient).max() for gradient in whole)
    for found, expected in zip(parts, whole, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * scale)


def two_layers(dropout_seed=3):
    """A network of which the gradient can be told from the logits: logits = kept channels x kernel."""
    from semisam_tf.models.dropout import SeededDropout

    image = keras.Input((*SIZE, 1))
    x = keras.layers.Conv3D(8, 1, use_bias=False, kernel_initializer="ones")(image)
    x = SeededDropout(0.5, dropout_seed, name="dropout")(x)
    return keras.Model(image, keras.layers.Conv3D(1, 1, use_bias=False, kernel_initializer="ones", name="out")(x))


def test_second_pass_drops_what_the_first_dropped():
    model, (images, _) = two_layers(), batch(4)

    @tf.function
    def compute():
        with tf.GradientTape() as tape:
            logits = in_training(model, 1)(images)
            # One voxel of each item: the gradient of the last kernel is that voxel times what was kept.
            loss = tf.reduce_sum(logits[:, 0, 0, 0, 0])
        return logits, tape.gradient(loss, model.get_layer("out").trainable_variables)

    logits, (gradient,) = compute()
    assert len(np.unique(np.round(logits.numpy()[:, 0, 0, 0, 0] / images.numpy()[:, 0, 0, 0, 0]))) > 1
    np.testing.assert_allclose(gradient.numpy().sum(), logits.numpy()[:, 0, 0, 0, 0].sum(), rtol=1e-5)


def test_states_move_once():
    model = build_vnet(filters=2, normalisation="batch", dropout=0.5)
    other = build_vnet(filters=2, normalisation="batch", dropout=0.5)
    gradients(model, 2)
    images, _ = batch(4)
    for part in (images[:2], images[2:]):
        other(part, training=True)
    for moved, expected in zip(model.non_trainable_variables, other.non_trainable_variables, strict=True):
        np.testing.assert_allclose(moved.numpy(), expected.numpy(), rtol=1e-4, atol=1e-6)
