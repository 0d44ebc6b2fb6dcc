"""What each framework takes from student, teacher and batch."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from semisam_tf.config import FRAMEWORK_NAMES
from semisam_tf.semi import copy_paste, losses
from semisam_tf.semi.frameworks import FRAMEWORKS, TERMS, USES_TEACHER, Inputs


def inputs(student_logits, teacher_logits, threshold=10.0, asked=None, seen=None, second_logits=None):
    """Two items of one voxel; the first is labelled 1. The second student is like the first unless told."""
    second_logits = student_logits if second_logits is None else second_logits

    def student(images):
        if seen is not None:
            seen.append(images.shape[0])
        return tf.constant(student_logits, tf.float32)[-images.shape[0] :]

    def teacher(images, index):
        if asked is not None:
            asked.append((index, images.shape[0]))
        return tf.constant(teacher_logits, tf.float32)[-images.shape[0] :]

    return Inputs(
        images=tf.zeros([2, 1, 1, 1, 1]),
        labels=tf.ones([1, 1, 1, 1], tf.uint8),
        student=student,
        teacher=teacher,
        key=tf.constant([0, 63], tf.int64),
        mixes_unlabelled=tf.constant(True),
        entropy_threshold=tf.constant(threshold),
        passes=3,
        second=lambda images: tf.constant(second_logits, tf.float32)[-images.shape[0] :],
        discriminator=lambda probs, images, training: probs[:, 0, 0, 0],
    )


def logits(*rows):
    return np.array(rows, np.float32)[:, None, None, None, :]


def test_config_offers_every_framework():
    assert set(FRAMEWORK_NAMES) == set(FRAMEWORKS) == set(TERMS)
    assert set(FRAMEWORKS) >= USES_TEACHER


@pytest.mark.parametrize("name", FRAMEWORK_NAMES)
def test_every_framework_returns_the_terms_it_is_listed_with(name):
    asked = []
    terms = FRAMEWORKS[name](inputs(logits((0, 0), (0, 0)), logits((0, 0), (0, 0)), asked=asked))
    assert tuple(terms) == TERMS[name]
    assert bool(asked) == (name in USES_TEACHER)
    for term in terms.values():
        assert term.shape == ()
        assert term.dtype == tf.float32


@pytest.mark.parametrize("name", sorted({*FRAMEWORK_NAMES} - {"bidirectional_copy_paste"}))
def test_sam_takes_the_unlabelled_part_of_the_pass_that_the_framework_made(name):
    seen = []
    given = inputs(logits((0, 0), (3, 4)), logits((0, 0), (0, 0)), seen=seen)
    FRAMEWORKS[name](given)
    np.testing.assert_array_equal(given.unlabelled_logits, logits((3, 4)))
    assert seen == [2]


def test_sam_has_a_pass_of_its_own_where_the_framework_looks_at_mixtures_only():
    seen = []
    given = inputs(logits((0, 0), (3, 4)), logits((0, 0), (0, 0)), seen=seen)
    FRAMEWORKS["bidirectional_copy_paste"](given)
    assert seen == [2]
    np.testing.assert_array_equal(given.unlabelled_logits, logits((3, 4)))
    assert seen == [2, 1]


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


def test_each_student_of_cross_pseudo_supervision_learns_the_others_argmax():
    first, second = logits((0, 0), (2, 0)), logits((0, np.log(3)), (0, 1))
    terms = FRAMEWORKS["cross_pseudo_supervision"](inputs(first, logits((0, 0), (0, 0)), second_logits=second))
    # On the unlabelled voxel the first says class 0, the second class 1.
    np.testing.assert_allclose(terms["consistency"], np.log(1 + np.e**2) + np.log(1 + np.e), rtol=1e-6)
    np.testing.assert_allclose(terms["cross_entropy"], np.log(2), rtol=1e-6)
    np.testing.assert_allclose(terms["second_cross_entropy"], np.log(4 / 3), rtol=1e-6)
    # Dice of one voxel of the class: 1 - 2 p / (p^2 + 1).
    np.testing.assert_allclose(terms["dice"], 1 - 1 / 1.25, rtol=1e-4)
    np.testing.assert_allclose(terms["second_dice"], 1 - 1.5 / 1.5625, rtol=1e-4)


def test_cross_pseudo_supervision_without_a_second_student_is_refused():
    given = dataclasses.replace(inputs(logits((0, 0), (0, 0)), logits((0, 0), (0, 0))), second=None)
    with pytest.raises(ValueError, match="Expected a second student"):
        FRAMEWORKS["cross_pseudo_supervision"](given)


def test_the_discriminator_tells_all_items_apart_and_the_student_misleads_it_about_unlabelled_ones():
    student = tf.constant(logits((0, 0), (np.log(3), 0)))
    judged = []

    def discriminator(probs, images, training):
        # Sure by ln(p0 / p1) that the item is unlabelled.
        judged.append((probs.shape[0], images.shape[0], training))
        return tf.math.log(probs[:, 0, 0, 0])

    given = inputs(student, logits((0, 0), (0, 0)))
    given = dataclasses.replace(given, student=lambda images: student, discriminator=discriminator)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(student)
        terms = FRAMEWORKS["deep_adversarial_network"](given)
    assert judged == [(1, 1, False), (2, 2, True)]
    # The unlabelled item has odds 3 to 1: -ln(1/4) to pass for labelled; told apart -ln(1/2) and -ln(3/4).
    np.testing.assert_allclose(terms["consistency"], np.log(4), rtol=1e-6)
    np.testing.assert_allclose(terms["discriminator"], (np.log(2) + np.log(4 / 3)) / 2, rtol=1e-6)
    assert tape.gradient(terms["discriminator"], student) is None
    gradient = tape.gradient(terms["consistency"], student)[:, 0, 0, 0]
    # Softmax odds are the logits, so the gradient is that of a cross entropy; the labelled item has none.
    np.testing.assert_allclose(gradient, [[0, 0], [0.75, -0.75]], atol=1e-6)


def test_a_deep_adversarial_network_without_a_discriminator_is_refused():
    given = dataclasses.replace(inputs(logits((0, 0), (0, 0)), logits((0, 0), (0, 0))), discriminator=None)
    with pytest.raises(ValueError, match="Expected a discriminator"):
        FRAMEWORKS["deep_adversarial_network"](given)


SIZE = (6, 6, 6)


def copy_paste_inputs(labels, teacher_logits, images=None, mixes=True, weights=None, asked=None):
    """Two labelled and two unlabelled crops; the student is 1x1x1 convolution by `weights` [1, 2]."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, *SIZE, 1)) if images is None else images
    weights = tf.constant([[-1.0, 1.0]]) if weights is None else weights

    def teacher(clean, index):
        if asked is not None:
            asked.append((index, clean.numpy()))
        return teacher_logits

    return Inputs(
        images=tf.constant(images, tf.float32),
        labels=tf.constant(labels, tf.uint8),
        student=lambda seen: seen @ weights,
        teacher=teacher,
        key=tf.constant([1, 63], tf.int64),
        mixes_unlabelled=tf.constant(mixes),
        entropy_threshold=tf.constant(1.0),
        passes=1,
    )


def drawn(seed=1):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, (2, *SIZE)), tf.constant(rng.normal(size=(2, *SIZE, 2)), tf.float32)


def copy_paste_terms(*args, **kwargs):
    terms = FRAMEWORKS["bidirectional_copy_paste"](copy_paste_inputs(*args, **kwargs))
    return {name: float(value) for name, value in terms.items()}


def test_copy_paste_without_boxes_is_supervision_of_whole_crops(monkeypatch):
    labels, teacher_logits = drawn()
    monkeypatch.setattr(copy_paste, "outside_boxes", lambda key, count, size: tf.ones([count, *size], tf.bool))
    terms = copy_paste_terms(labels, teacher_logits)
    given = copy_paste_inputs(labels, teacher_logits)
    plain, pseudo = given.student_logits, tf.argmax(teacher_logits, -1)
    for logits_, target, prefix in ((plain[:2], labels, ""), (plain[2:], pseudo, "pseudo_")):
        np.testing.assert_allclose(terms[prefix + "cross_entropy"], losses.cross_entropy(logits_, target), rtol=1e-6)
        np.testing.assert_allclose(terms[prefix + "dice"], losses.dice_loss(tf.nn.softmax(logits_), target), rtol=1e-6)


def test_copy_paste_by_hand_with_a_box_of_half_the_crop(monkeypatch):
    labels, teacher_logits = drawn()
    outside = np.zeros((4, *SIZE), bool)
    outside[:, :3] = True
    monkeypatch.setattr(copy_paste, "outside_boxes", lambda key, count, size: tf.constant(outside))
    given = copy_paste_inputs(labels, teacher_logits)
    images, pseudo = given.images.numpy(), np.argmax(teacher_logits, -1)
    truth = np.concatenate([labels, pseudo])
    around, pasted = [0, 1, 2, 3], [2, 3, 1, 0]
    mixed = np.concatenate([images[around, :3], images[pasted, 3:]], axis=1)
    target = np.concatenate([truth[around, :3], truth[pasted, 3:]], axis=1)
    real = np.zeros((4, *SIZE), bool)
    real[:2, :3], real[2:, 3:] = True, True
    log_probs = np.log(np.exp([-mixed, mixed]) / np.exp([-mixed, mixed]).sum(0))[..., 0]
    by_voxel = -np.where(target == 1, log_probs[1], log_probs[0])
    terms = copy_paste_terms(labels, teacher_logits)
    np.testing.assert_allclose(terms["cross_entropy"], by_voxel[real].mean(), rtol=1e-5)
    np.testing.assert_allclose(terms["pseudo_cross_entropy"], by_voxel[~real].mean(), rtol=1e-5)
    probs = np.exp(log_probs[1])
    for name, where in (("dice", real), ("pseudo_dice", ~real)):
        p, t = probs[where], target[where]
        np.testing.assert_allclose(terms[name], 1 - 2 * (p * t).sum() / ((p * p).sum() + t.sum()), rtol=1e-5)


def test_copy_paste_takes_labels_and_the_teachers_each_into_its_own_terms():
    labels, teacher_logits = drawn()
    before = copy_paste_terms(labels, teacher_logits)
    other_labels = copy_paste_terms(1 - labels, teacher_logits)
    other_teacher = copy_paste_terms(labels, -teacher_logits)
    for name in before:
        assert (before[name] == other_labels[name]) == name.startswith("pseudo"), name
        assert (before[name] == other_teacher[name]) == (not name.startswith("pseudo")), name


def test_copy_paste_asks_the_teacher_once_about_plain_unlabelled_crops_without_noise():
    labels, teacher_logits = drawn()
    asked = []
    copy_paste_terms(labels, teacher_logits, asked=asked)
    [(index, seen)] = asked
    assert index is None
    np.testing.assert_array_equal(seen, copy_paste_inputs(labels, teacher_logits).images[2:])


def test_copy_paste_pre_training_has_labelled_crops_and_no_teacher():
    labels, teacher_logits = drawn()
    asked = []
    terms = copy_paste_terms(labels, teacher_logits, mixes=False, asked=asked)
    assert asked == []
    assert terms["pseudo_cross_entropy"] == terms["pseudo_dice"] == 0.0
    # Unlabelled crops are not looked at, labelled ones are.
    images = copy_paste_inputs(labels, teacher_logits).images.numpy()
    changed = [images.copy(), images.copy()]
    changed[0][2:] = 100.0
    changed[1][:1] = 100.0
    assert copy_paste_terms(labels, teacher_logits, images=changed[0], mixes=False) == terms
    assert copy_paste_terms(labels, teacher_logits, images=changed[1], mixes=False) != terms


@pytest.mark.parametrize("name", TERMS["bidirectional_copy_paste"])
def test_copy_paste_gradient_reaches_the_student_and_not_the_teacher(name):
    labels, teacher_logits = drawn()
    weights = tf.constant([[-1.0, 1.0]])
    with tf.GradientTape() as tape:
        tape.watch([weights, teacher_logits])
        terms = FRAMEWORKS["bidirectional_copy_paste"](copy_paste_inputs(labels, teacher_logits, weights=weights))
    student, teacher = tape.gradient(terms[name], [weights, teacher_logits])
    assert np.abs(student).max() > 1e-4
    assert teacher is None
