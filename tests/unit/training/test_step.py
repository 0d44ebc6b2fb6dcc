"""The step: what moves, what does not, and what the SAM branch adds."""

import collections
import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from semisam_tf.config import FRAMEWORK_NAMES, Config
from semisam_tf.models.discriminator import build_discriminator
from semisam_tf.models.normalisation import normalisation_layer
from semisam_tf.semi.frameworks import USES_DISCRIMINATOR, USES_SECOND
from semisam_tf.training.optimizers import build_discriminator_optimizer, build_optimizer
from semisam_tf.training.step import Adversary, Schedule, TrainStep, input_noise

CONFIG = Config(
    method="mean_teacher", optimizer="sgd", learning_rate=0.1, consistency_ramp_steps=0, consistency_weight=1.0
)


def network(seed, normalisation):
    """Two convolutions: the step is the same for any network, and this one is traced in no time."""
    image = keras.Input((16, 16, 16, 1))
    x = keras.layers.Conv3D(4, 3, padding="same", kernel_initializer=keras.initializers.GlorotUniform(seed))(image)
    x = keras.layers.ReLU()(normalisation_layer(normalisation, "norm", 4)(x))
    return keras.Model(image, keras.layers.Conv3D(2, 1, kernel_initializer=keras.initializers.GlorotUniform(seed))(x))


def build(config, normalisation="instance"):
    networks = [network(seed, normalisation) for seed in (0, 1, 2)]
    second = networks[2] if config.method in USES_SECOND else None
    adversary = None
    if config.method in USES_DISCRIMINATOR:
        adversary = Adversary(build_discriminator(filters=2, seed=3), build_discriminator_optimizer(config))
    return TrainStep(config, *networks[:2], build_optimizer(config), second=second, adversary=adversary)


def batch(seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(3, 16, 16, 16, 1)).astype(np.float32)
    return images, (images[:1, ..., 0] > 0).astype(np.uint8)


def trained(config, sam=None, changed_image=None):
    """Student's weights after one step."""
    step = build(config)
    images, labels = batch()
    if changed_image is not None:
        images[-1] = changed_image
    step(Schedule.at(config, 0), images, labels, *(sam or ()))
    return np.concatenate([v.numpy().ravel() for v in step.student.trainable_variables])


def test_schedules_do_not_retrace_the_step():
    step = build(CONFIG)
    for t in (0, 1, 2):
        step(Schedule.at(CONFIG, t), *batch(t))
    assert step.traces == 1


def test_total_is_the_weighted_sum_of_the_terms():
    schedule = Schedule.at(CONFIG, 0)._replace(weights={"cross_entropy": 0.5, "dice": 2.0, "consistency": 3.0})
    terms = {name: float(value) for name, value in build(CONFIG)(schedule, *batch()).items()}
    expected = 0.5 * terms["cross_entropy"] + 2.0 * terms["dice"] + 3.0 * terms["consistency"]
    assert terms["total"] == pytest.approx(expected, rel=1e-6)


def test_unlabelled_images_teach_the_mean_teacher_and_not_the_supervised_network():
    other = np.zeros((16, 16, 16, 1), np.float32)
    # At step 0 the teacher has its own weights, so the two disagree on the unlabelled items.
    assert np.any(trained(CONFIG) != trained(CONFIG, changed_image=other))
    alone = dataclasses.replace(CONFIG, method="supervised")
    # Instance norm: items of a batch do not touch each other.
    np.testing.assert_allclose(trained(alone), trained(alone, changed_image=other), atol=1e-7)


def test_sam_moves_the_student_only_where_it_has_weight():
    config = dataclasses.replace(CONFIG, sam_mode="online", sam_dir="s", sam_weight=1.0, sam_ramp="constant")
    probs = np.zeros((2, 16, 16, 16, 2), np.float32)
    probs[..., 1] = 1
    none, full = np.zeros(probs.shape[:-1], np.float32), np.ones(probs.shape[:-1], np.float32)
    without = trained(CONFIG)
    np.testing.assert_array_equal(trained(config, (probs, none)), without)
    assert np.abs(trained(config, (probs, full)) - without).max() > 1e-4


def test_sam_target_without_a_branch_is_refused():
    with pytest.raises(ValueError, match="SAM target exactly when"):
        build(CONFIG)(Schedule.at(CONFIG, 0), *batch(), np.zeros((2, 16, 16, 16, 2)), np.zeros((2, 16, 16, 16)))


def test_first_step_makes_the_teacher_a_copy_of_the_student():
    step = build(CONFIG)
    step(Schedule.at(CONFIG, 0), *batch())
    for slow, fast in zip(step.teacher.trainable_variables, step.student.trainable_variables, strict=True):
        np.testing.assert_array_equal(slow.numpy(), fast.numpy())


def test_teacher_of_a_supervised_run_follows_the_students_statistics():
    config = dataclasses.replace(CONFIG, method="supervised")
    step = build(config, normalisation="batch")
    step(Schedule.at(config, 0), *batch())
    means = [
        [v.numpy() for v in model.non_trainable_variables if "mean" in v.path] for model in (step.student, step.teacher)
    ]
    assert np.abs(means[0][0]).max() > 0
    np.testing.assert_array_equal(means[0][0], means[1][0])


COPY_PASTE = dataclasses.replace(CONFIG, method="bidirectional_copy_paste")


class Counted:
    """A network that notes how many items each of its passes had when the step was traced."""

    def __init__(self, model, passes):
        self.model, self.passes = model, passes

    def __call__(self, seen, training):
        self.passes.append(tf.nest.flatten(seen)[0].shape[0])
        return self.model(seen, training=training)

    def __getattr__(self, name):
        return getattr(self.model, name)


def passes(method, sam_mode):
    """Items of each pass in one step on one labelled and two unlabelled items, by network; those that have a pass."""
    config = dataclasses.replace(CONFIG, method=method, sam_mode=sam_mode, uncertainty_passes=3)
    step, made = build(config), collections.defaultdict(list)
    step.student, step.teacher = Counted(step.student, made["student"]), Counted(step.teacher, made["teacher"])
    if step.second is not None:
        step.second = Counted(step.second, made["second"])
    if step.adversary is not None:
        judge = Counted(step.adversary.network, made["discriminator"])
        step.adversary = step.adversary._replace(network=judge)
    sam = (np.zeros((2, 16, 16, 16, 2), np.float32), np.zeros((2, 16, 16, 16), np.float32))
    for t in range(2):
        step(Schedule.at(config, t), *batch(), *(sam if sam_mode == "online" else ()))
    # Passes are noted when the step is traced, so a step has as many as there were in the one trace.
    assert step.traces == 1
    return {name: items for name, items in made.items() if items}


PASSES = {
    "supervised": {"student": [3]},
    "mean_teacher": {"student": [3], "teacher": [3]},
    # The target, and three passes for its uncertainty, of the unlabelled items.
    "uncertainty_aware_mean_teacher": {"student": [3], "teacher": [2, 2, 2, 2]},
    "bidirectional_copy_paste": {"student": [3], "teacher": [2]},
    "cross_pseudo_supervision": {"student": [3], "second": [3]},
    # Misled about the unlabelled items, told apart all of them.
    "deep_adversarial_network": {"student": [3], "discriminator": [2, 3]},
}


@pytest.mark.parametrize("method", FRAMEWORK_NAMES)
def test_no_network_is_run_in_vain(method):
    assert passes(method, "off") == PASSES[method]


@pytest.mark.parametrize("method", FRAMEWORK_NAMES)
def test_sam_takes_no_pass_where_the_student_saw_the_plain_crops(method):
    # Copy-paste alone never shows them to it.
    student = [3, 2] if method == "bidirectional_copy_paste" else [3]
    assert passes(method, "online") == {**PASSES[method], "student": student}


def test_copy_paste_learns_from_unlabelled_images_from_its_start_step_on():
    other = np.zeros((16, 16, 16, 1), np.float32)
    assert np.any(trained(COPY_PASTE) != trained(COPY_PASTE, changed_image=other))
    later = dataclasses.replace(COPY_PASTE, copy_paste_start_step=1)
    np.testing.assert_array_equal(trained(later), trained(later, changed_image=other))


def test_copy_paste_is_traced_once_and_draws_new_boxes_every_step():
    config = dataclasses.replace(COPY_PASTE, copy_paste_start_step=1, learning_rate=0.0, ema_decay=0.0)
    step = build(config)
    terms = [step(Schedule.at(config, t), *batch())["cross_entropy"].numpy() for t in (0, 1, 2, 2)]
    assert step.traces == 1
    assert len({float(term) for term in terms}) == 3
    assert terms[2] == terms[3]


def test_the_teachers_labels_weigh_a_share_of_the_supervised_weight():
    config = dataclasses.replace(COPY_PASTE, supervised_weight=0.5, pseudo_label_weight=0.4)
    weights = Schedule.at(config, 0).weights
    assert weights == {"cross_entropy": 0.5, "dice": 0.5, "pseudo_cross_entropy": 0.2, "pseudo_dice": 0.2}


CROSS = dataclasses.replace(CONFIG, method="cross_pseudo_supervision")


def arrays(model):
    return np.concatenate([v.numpy().ravel() for v in model.trainable_variables])


def crossed(images=None, labels=None, **changes):
    """(first student, second student, teacher) after one step of cross pseudo supervision."""
    config = dataclasses.replace(CROSS, **changes)
    step, (plain, truth) = build(config), batch()
    step(Schedule.at(config, 0), plain if images is None else images, truth if labels is None else labels)
    return arrays(step.student), arrays(step.second), arrays(step.teacher)


def test_both_students_of_cross_pseudo_supervision_learn_labels_and_from_each_other():
    before = build(CROSS)
    plain = crossed()
    assert np.any(plain[0] != arrays(before.student))
    assert np.any(plain[1] != arrays(before.second))
    other_labels, alone = crossed(labels=1 - batch()[1]), crossed(consistency_weight=0.0)
    for student in (0, 1):
        assert np.any(plain[student] != other_labels[student])
        assert np.any(plain[student] != alone[student])


def test_cross_pseudo_supervision_averages_the_first_student_and_keeps_statistics():
    first, _, teacher = crossed()
    np.testing.assert_array_equal(first, teacher)
    step = build(CROSS, normalisation="batch")
    step(Schedule.at(CROSS, 0), *batch())
    means = [[v.numpy() for v in m.non_trainable_variables if "mean" in v.path] for m in (step.student, step.teacher)]
    assert np.abs(means[0][0]).max() > 0
    np.testing.assert_array_equal(*(mean[0] for mean in means))


def test_sam_teaches_the_first_student_alone():
    config = dataclasses.replace(CROSS, sam_mode="online", sam_dir="s", sam_weight=1.0, sam_ramp="constant")
    probs = np.zeros((2, 16, 16, 16, 2), np.float32)
    probs[..., 1] = 1
    after = []
    for weight in (0.0, 1.0):
        step = build(config)
        step(Schedule.at(config, 0), *batch(), probs, np.full(probs.shape[:-1], weight, np.float32))
        after.append((arrays(step.student), arrays(step.second)))
    assert np.abs(after[0][0] - after[1][0]).max() > 1e-4
    np.testing.assert_array_equal(after[0][1], after[1][1])


ADVERSARIAL = dataclasses.replace(CONFIG, method="deep_adversarial_network", discriminator_learning_rate=0.01)


def opposed(images=None, **changes):
    """(student, discriminator) after one step, and the discriminator before."""
    config = dataclasses.replace(ADVERSARIAL, **changes)
    step, (plain, truth) = build(config), batch()
    before = arrays(step.adversary.network)
    step(Schedule.at(config, 0), plain if images is None else images, truth)
    return arrays(step.student), arrays(step.adversary.network), before


def test_student_and_discriminator_descend_each_their_own_term():
    student, discriminator, before = opposed()
    alone, same, _ = opposed(consistency_weight=0.0)
    assert np.any(discriminator != before)
    assert np.any(student != alone)
    # What the student descends does not move the discriminator, nor the reverse.
    np.testing.assert_array_equal(discriminator, same)
    np.testing.assert_allclose(alone, trained(dataclasses.replace(CONFIG, method="supervised")), atol=1e-7)


def test_the_discriminator_learns_to_tell_labelled_from_unlabelled():
    config = dataclasses.replace(ADVERSARIAL, learning_rate=0.0, discriminator_learning_rate=0.003)
    step, (images, labels) = build(config), batch()
    images[1:] += 2.0
    terms = [float(step(Schedule.at(config, t), images, labels)["discriminator"]) for t in range(60)]
    assert step.traces == 1
    # One item in three is labelled: knowing no more than that costs 0.637 nats. Dropout makes the terms jump.
    assert np.mean(terms[:10]) > 0.6
    assert np.mean(terms[-10:]) < 0.5


def test_noise_is_clipped_and_a_function_of_seed_step_and_pass():
    noise = input_noise(seed=1, deviation=0.1)
    shape = [1, 32, 32, 32, 1]
    first = noise(shape, np.int64(4), 0).numpy()
    np.testing.assert_array_equal(first, noise(shape, np.int64(4), 0).numpy())
    for other in (
        noise(shape, np.int64(5), 0),
        noise(shape, np.int64(4), 1),
        input_noise(2, 0.1)(shape, np.int64(4), 0),
    ):
        assert np.any(other.numpy() != first)
    assert np.abs(first).max() == np.float32(0.2)
    assert first.std() == pytest.approx(0.1, rel=0.1)
