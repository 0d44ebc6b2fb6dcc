"""Loss terms against values computed with the original PyTorch code."""

import numpy as np
import pytest
import tensorflow as tf

from semisam_tf.semi import losses, schedules


@pytest.fixture
def values(golden):
    return golden("losses")


def channels_last(array):
    return tf.constant(np.moveaxis(array, 1, -1))


@pytest.fixture
def student_logits(values):
    return channels_last(values["student_logits"])


@pytest.fixture
def teacher_probs(values):
    return tf.nn.softmax(channels_last(values["teacher_logits"]))


def test_cross_entropy(values, student_logits):
    np.testing.assert_allclose(
        losses.cross_entropy(student_logits, values["label"]), values["cross_entropy"], rtol=1e-5
    )


def test_dice_loss(values, student_logits):
    probs = tf.nn.softmax(student_logits)
    np.testing.assert_allclose(losses.dice_loss(probs, values["label"]), values["dice_loss"], rtol=1e-5)


def test_mean_teacher_distance(values, student_logits, teacher_probs):
    distance = losses.mean_teacher_distance(losses.squared_distance(student_logits, teacher_probs))
    np.testing.assert_allclose(distance, values["mean_teacher_distance"], rtol=1e-5)


def test_entropy_of_the_mean_of_the_passes(values):
    mean = channels_last(values["mc_probs"].mean(axis=0))
    np.testing.assert_allclose(losses.entropy(mean), values["entropy"][:, 0], rtol=1e-5, atol=1e-6)


def test_uncertainty_masked_distance(values, student_logits, teacher_probs):
    distance = losses.uncertainty_masked_distance(
        losses.squared_distance(student_logits, teacher_probs),
        tf.constant(values["entropy"][:, 0]),
        tf.constant(values["uamt_threshold_at_1200_of_6000"], tf.float32),
    )
    np.testing.assert_allclose(distance, values["uamt_distance"], rtol=1e-5)


def test_entropy_threshold(values):
    threshold = schedules.entropy_threshold(1200, 6000, 2)
    np.testing.assert_allclose(threshold, values["uamt_threshold_at_1200_of_6000"], rtol=1e-12)


def test_sigmoid_rampup(values):
    ramp = [schedules.sigmoid_rampup(int(step), 40) for step in values["ramp_steps"]]
    np.testing.assert_allclose(ramp, values["sigmoid_rampup_40"], rtol=1e-12)


def test_gradient_of_cross_entropy_dice_and_mean_teacher(values, student_logits, teacher_probs):
    with tf.GradientTape() as tape:
        tape.watch(student_logits)
        probs = tf.nn.softmax(student_logits)
        total = (
            losses.cross_entropy(student_logits, values["label"])
            + losses.dice_loss(probs, values["label"])
            + losses.mean_teacher_distance(losses.squared_distance(student_logits, teacher_probs))
        )
    gradient = np.moveaxis(tape.gradient(total, student_logits).numpy(), -1, 1)
    np.testing.assert_allclose(gradient, values["grad_ce_dice_mt"], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize(("kind", "key"), [("mse", "softmax_mse_map"), ("kl", "softmax_kl_map")])
def test_distances_by_voxel(values, student_logits, teacher_probs, kind, key):
    distance = losses.DISTANCES[kind](student_logits, teacher_probs)
    np.testing.assert_allclose(np.moveaxis(distance.numpy(), -1, 1), values[key], rtol=1e-4, atol=1e-6)
