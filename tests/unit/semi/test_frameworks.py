"""What each framework takes from student, teacher and batch."""

import numpy as np
import pytest
import tensorflow as tf

from semisam_tf.config import FRAMEWORK_NAMES
from semisam_tf.semi.frameworks import FRAMEWORKS, USES_TEACHER, Inputs


def inputs(student_logits, teacher_logits, threshold=10.0, asked=None):
    """Two items of one voxel; the first is labelled 1."""

    def teacher(images, index):
        if asked is not None:
            asked.append((index, images.shape[0]))
        return tf.constant(teacher_logits, tf.float32)[-images.shape[0] :]

    return Inputs(
        images=tf.zeros([2, 1, 1, 1, 1]),
        labels=tf.ones([1, 1, 1, 1], tf.uint8),
        student_logits=tf.constant(student_logits, tf.float32),
        teacher=teacher,
        entropy_threshold=tf.constant(threshold),
        passes=3,
    )


def logits(*rows):
    return np.array(rows, np.float32)[:, None, None, None, :]


def test_config_offers_every_framework():
    assert set(FRAMEWORK_NAMES) == set(FRAMEWORKS)
    assert set(FRAMEWORKS) >= USES_TEACHER


def test_supervised_never_asks_the_teacher_and_never_sees_unlabelled_items():
    asked = []
    terms = FRAMEWORKS["supervised"](inputs(logits((0, 0), (0, 0)), logits((0, 0), (0, 0)), asked=asked))
    other = FRAMEWORKS["supervised"](inputs(logits((0, 0), (9, -9)), logits((0, 0), (0, 0))))
    assert asked == []
    assert set(terms) == {"cross_entropy", "dice"}
    assert float(terms["cross_entropy"]) == float(other["cross_entropy"]) == pytest.approx(np.log(2))


def test_mean_teacher_compares_all_items_once():
    asked = []
    terms = FRAMEWORKS["mean_teacher"](inputs(logits((0, 0), (0, 0)), logits((0, 0), (50, -50)), asked=asked))
    assert asked == [(0, 2)]
    # Item 1 agrees, item 2 differs by 0.5 in both classes: half the mean of (0, 0, 0.25, 0.25).
    np.testing.assert_allclose(terms["consistency"], 0.0625, rtol=1e-6)


def test_ua_mt_compares_unlabelled_items_and_asks_one_pass_and_the_uncertain_ones():
    asked = []
    framework = FRAMEWORKS["uncertainty_aware_mean_teacher"]
    terms = framework(inputs(logits((50, -50), (0, 0)), logits((-50, 50), (50, -50)), asked=asked))
    assert asked == [(0, 1), (1, 1), (2, 1), (3, 1)]
    np.testing.assert_allclose(terms["consistency"], 0.25, rtol=1e-6)


def test_ua_mt_drops_voxels_above_the_threshold():
    framework = FRAMEWORKS["uncertainty_aware_mean_teacher"]
    terms = framework(inputs(logits((0, 0), (5, 0)), logits((0, 0), (0, 0)), threshold=0.5))
    assert float(terms["consistency"]) == 0.0
