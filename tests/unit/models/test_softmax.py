"""Probabilities of two classes are those of any number, and so are their gradients."""

import numpy as np
import tensorflow as tf

from semisam_tf.models.softmax import softmax


def test_two_classes_and_their_gradient():
    logits = np.random.default_rng(0).normal(0, 4, (2, 3, 4, 5, 2)).astype(np.float32)
    towards = tf.constant(np.random.default_rng(1).normal(size=logits.shape), tf.float32)
    found = []
    for function in (softmax, tf.nn.softmax):
        watched = tf.constant(logits)
        with tf.GradientTape() as tape:
            tape.watch(watched)
            probs = function(watched)
            total = tf.reduce_sum(probs * towards)
        found.append((probs.numpy(), tape.gradient(total, watched).numpy()))
    (ours, our_gradient), (theirs, their_gradient) = found
    np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=1e-9)
    np.testing.assert_allclose(our_gradient, their_gradient, rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(ours.sum(axis=-1), 1, rtol=3e-7)


def test_logits_far_apart_are_finite():
    probs = softmax(tf.constant([[1e4, -1e4], [-80.0, 80.0]])).numpy()
    np.testing.assert_allclose(probs, [[1, 0], [0, 1]], atol=1e-30)
    assert np.isfinite(probs).all()


def test_three_classes():
    np.testing.assert_allclose(softmax(tf.math.log([[1.0, 2.0, 5.0]])), [[0.125, 0.25, 0.625]], rtol=1e-6)
