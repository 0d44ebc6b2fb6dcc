"""Losses on inputs small enough to work out by hand."""

import math

import numpy as np
import tensorflow as tf

from semisam_tf.semi import losses


def voxels(*probs):
    """One item, one row of voxels: [1, len, 1, 1, K]."""
    return tf.constant(probs, tf.float32)[None, :, None, None, :]


def labels(*values):
    return tf.constant(values, tf.uint8)[None, :, None, None]


def test_cross_entropy_of_even_odds_is_ln_2():
    np.testing.assert_allclose(
        losses.cross_entropy(voxels((0.0, 0.0), (5.0, 5.0)), labels(0, 1)), math.log(2), rtol=1e-6
    )


def test_dice_loss_by_hand():
    # overlap 0.5, sizes 0.25 + 1: 1 - 1 / 1.25.
    np.testing.assert_allclose(losses.dice_loss(voxels((0.5, 0.5), (1, 0)), labels(1, 0), 0.0), 0.2, rtol=1e-6)


def test_only_voxels_that_count_are_in_cross_entropy_and_dice():
    logits, target = tf.math.log(voxels((0.5, 0.5), (0.9, 0.1))), labels(1, 0)
    first, none = tf.constant([1.0, 0.0])[None, :, None, None], tf.zeros([1, 2, 1, 1])
    np.testing.assert_allclose(losses.cross_entropy(logits, target, first), math.log(2), rtol=1e-6)
    # overlap 0.5, sizes 0.25 + 1; the second voxel's 0.1 is not in.
    np.testing.assert_allclose(losses.dice_loss(tf.nn.softmax(logits), target, 0.0, first), 0.2, rtol=1e-6)
    assert float(losses.cross_entropy(logits, target, none)) == 0.0
    assert float(losses.dice_loss(tf.nn.softmax(logits), target, where=none)) == 0.0


def test_dice_loss_of_three_classes_is_the_mean_over_the_foreground():
    perfect_and_missed = losses.dice_loss(voxels((0, 1, 0), (1, 0, 0)), labels(1, 2), 0.0)
    np.testing.assert_allclose(perfect_and_missed, (0.0 + 1.0) / 2, rtol=1e-6)


def test_sam_distance_ignores_voxels_of_weight_zero():
    student, target = voxels((0.5, 0.5), (0.5, 0.5)), voxels((0, 1), (1, 0))
    both = losses.sam_distance(student, target, tf.constant([1.0, 1.0])[None, :, None, None])
    half = losses.sam_distance(student, target, tf.constant([1.0, 0.0])[None, :, None, None])
    none = losses.sam_distance(student, target, tf.constant([0.0, 0.0])[None, :, None, None])
    np.testing.assert_allclose([both, half, none], [0.25, 0.125, 0.0])


def test_sam_distance_pulls_towards_the_target():
    logits = tf.zeros([1, 1, 1, 1, 2])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = losses.sam_distance(tf.nn.softmax(logits), voxels((0, 1)), tf.ones([1, 1, 1, 1]))
    gradient = tape.gradient(loss, logits)[0, 0, 0, 0]
    assert gradient[1] < 0 < gradient[0]


def test_uncertain_voxels_do_not_count():
    distance, uncertainty = voxels((1, 1), (5, 5)), tf.constant([0.1, 0.6])[None, :, None, None]
    # Only the first voxel is kept: (1 + 1) / (2 x 1).
    np.testing.assert_allclose(losses.uncertainty_masked_distance(distance, uncertainty, 0.5), 1.0)
    np.testing.assert_allclose(losses.uncertainty_masked_distance(distance, uncertainty, 0.05), 0.0)


def test_distances_of_a_sure_teacher_from_an_undecided_student():
    logits, sure = voxels((0, 0)), voxels((0, 1))
    np.testing.assert_allclose(losses.squared_distance(logits, sure)[0, 0, 0, 0], [0.25, 0.25])
    np.testing.assert_allclose(losses.kl_distance(logits, sure)[0, 0, 0, 0], [0, math.log(2)], rtol=1e-6)


def test_entropy_of_even_odds():
    np.testing.assert_allclose(losses.entropy(voxels((0.5, 0.5), (1, 0)))[0, :, 0, 0], [math.log(2), 0.0], atol=5e-6)
