"""Frameworks: from what student and teacher say on a batch to named loss terms. SAM is a branch beside them.

A framework never sees SAM and never sees weights: `training.step` adds the SAM term and multiplies by the schedules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from semisam_tf.models.softmax import softmax
from semisam_tf.semi import copy_paste, losses

Terms = dict[str, tf.Tensor]
# The one term that no student descends.
DISCRIMINATOR_TERM = "discriminator"
# Images [B, X, Y, Z, C] -> logits [B, X, Y, Z, K] in training mode.
Student = Callable[[tf.Tensor], tf.Tensor]
# (images, index of the pass) -> logits of the teacher on images with that pass's own input noise; None: without noise.
NoisyTeacher = Callable[[tf.Tensor, int | None], tf.Tensor]
# (probs [b, X, Y, Z, K], images [b, X, Y, Z, C], training) -> logits [b, 2]: unlabelled, labelled.
Discriminator = Callable[[tf.Tensor, tf.Tensor, bool], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a framework may look at. L labelled items come first, then B - L unlabelled ones.

    Attributes:
        images: [B, X, Y, Z, C] float32.
        labels: [L, X, Y, Z]; unlabelled items have none.
        student: The student in training mode. Each call is a pass.
        teacher: Teacher passes; gradients are stopped by the caller.
        key: int64 [2] for what a framework draws; a function of seed and step, and no pass's noise has it.
        mixes_unlabelled: Scalar bool, for copy-paste: False while labelled crops are mixed among themselves.
        entropy_threshold: Scalar in nats, for UA-MT.
        passes: Number of teacher passes for UA-MT.
        distance: (student logits, teacher probs) -> [B, X, Y, Z, K], one of `losses.DISTANCES`.
        second: The second student in training mode, for those of `USES_SECOND`.
        discriminator: For those of `USES_DISCRIMINATOR`.
    """

    images: tf.Tensor
    labels: tf.Tensor
    student: Student
    teacher: NoisyTeacher
    key: tf.Tensor
    mixes_unlabelled: tf.Tensor
    entropy_threshold: tf.Tensor
    passes: int
    distance: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = losses.squared_distance
    second: Student | None = None
    discriminator: Discriminator | None = None
    _passed: list[tf.Tensor] = dataclasses.field(default_factory=list, init=False, repr=False)

    @property
    def student_logits(self) -> tf.Tensor:
        """[B, X, Y, Z, K]: the student on the batch as it is. One pass, however often it is asked for."""
        # No functools.cached_property: until Python 3.12 it holds one lock for all objects, and the threads in which
        # several devices trace this wait for each other in the pass.
        if not self._passed:
            self._passed.append(self.student(self.images))
        return self._passed[0]

    @property
    def unlabelled_logits(self) -> tf.Tensor:
        """[B - L, X, Y, Z, K], for SAM: of `student_logits` if the framework asked for it, else a pass of its own."""
        first = self.labels.shape[0]
        return self.student_logits[first:] if self._passed else self.student(self.images[first:])


def supervised(inputs: Inputs) -> Terms:
    """Cross entropy and foreground Dice on the labelled items."""
    return _supervised(inputs.student_logits, inputs.labels)


def _supervised(batch_logits: tf.Tensor, labels: tf.Tensor, prefix: str = "") -> Terms:
    logits = batch_logits[: labels.shape[0]]
    return {
        f"{prefix}cross_entropy": losses.cross_entropy(logits, labels),
        f"{prefix}dice": losses.dice_loss(softmax(logits), labels),
    }


def mean_teacher(inputs: Inputs) -> Terms:
    """Mean teacher: one noisy teacher pass, distance over all items, labelled ones too (as published)."""
    teacher_probs = softmax(inputs.teacher(inputs.images, 0))
    consistency = losses.mean_teacher_distance(inputs.distance(inputs.student_logits, teacher_probs))
    return supervised(inputs) | {"consistency": consistency}


def uncertainty_aware_mean_teacher(inputs: Inputs) -> Terms:
    """UA-MT: the teacher's target counts where the mean of further noisy passes has low entropy; unlabelled items.

    Reference: arXiv 1907.07034. Departs: the published code stacks the passes in pairs in one batch, so that its batch
    statistics are over the same items twice; here each pass is its own batch, with the same statistics.
    """
    first = inputs.labels.shape[0]
    images = inputs.images[first:]
    target = softmax(inputs.teacher(images, 0))
    mean = tf.add_n([softmax(inputs.teacher(images, 1 + i)) for i in range(inputs.passes)]) / inputs.passes
    consistency = losses.uncertainty_masked_distance(
        inputs.distance(inputs.student_logits[first:], target), losses.entropy(mean), inputs.entropy_threshold
    )
    return supervised(inputs) | {"consistency": consistency}


def bidirectional_copy_paste(inputs: Inputs) -> Terms:
    """BCP: the student sees labelled crops with boxes of unlabelled ones in them and the reverse, never a whole crop.

    The target is mixed alike, of labels and the argmax of what the teacher says of the plain unlabelled crops. Cross
    entropy and Dice over the voxels with a label, and over those with the teacher's. As many student crops as the mean
    teacher has, fewer teacher crops. While `mixes_unlabelled` is False, the published pre-training: labelled crops with
    boxes of labelled ones, no teacher.

    Reference: arXiv 2305.00673 and its code for LA: boxes of 2/3 of each side, the teacher in training mode on images
    without noise, weight 0.5 for its labels.
    Departs: every crop of the batch surrounds a box, and each mixture has a box of its own (published: half of the
    crops, one box for all). Dice is that of `supervised`, and it and cross entropy are over all voxels of a kind in the
    batch (published: by item and mixture, so that a voxel of the smaller part weighs more). Teacher and optimiser go on
    from the pre-training (published: two trainings, the second from the first's best checkpoint). The teacher's labels
    are taken as they are (published: the largest component in each crop): a crop may well hold an organ in two pieces,
    and finding components would take a callback to the host inside the compiled step.
    """
    first, (batch, *size) = inputs.labels.shape[0], inputs.images.shape[:4]

    def guessed() -> tf.Tensor:
        return tf.argmax(inputs.teacher(inputs.images[first:], None), axis=-1, output_type=tf.int32)

    nothing = tf.zeros([batch - first, *size], tf.int32)
    labels = tf.concat(
        [tf.cast(inputs.labels, tf.int32), tf.cond(inputs.mixes_unlabelled, guessed, lambda: nothing)], axis=0
    )
    mixtures = copy_paste.draw(inputs.key, first, batch, size, inputs.mixes_unlabelled)
    logits, target = inputs.student(mixtures.of(inputs.images)), mixtures.of(labels)
    probs = softmax(logits)
    real = mixtures.of(tf.reshape(tf.cast(tf.range(batch) < first, probs.dtype), [batch, 1, 1, 1]))
    return {
        "cross_entropy": losses.cross_entropy(logits, target, where=real),
        "dice": losses.dice_loss(probs, target, where=real),
        "pseudo_cross_entropy": losses.cross_entropy(logits, target, where=1.0 - real),
        "pseudo_dice": losses.dice_loss(probs, target, where=1.0 - real),
    }


def cross_pseudo_supervision(inputs: Inputs) -> Terms:
    """CPS: two students from different initial weights; each learns the labels, and the other's argmax elsewhere.

    "consistency" is the cross entropy of either with the other's argmax on the unlabelled items, summed. SAM teaches
    the first student; what it says reaches the second by way of the first. The run's teacher, which takes no part, is
    the average of the first student, and a run is judged by these two; the second's weights are kept beside theirs.

    Reference: arXiv 2106.01226, as SSL4MIS has it.
    Departs: the paper has labelled items among those of "consistency"; SSL4MIS has not, and neither has this. One
    optimiser trains both students, so that adamw's clipping is by their common norm. The students differ by their seeds
    (SSL4MIS: Kaiming's and Xavier's distributions).
    """
    if inputs.second is None:
        raise ValueError("Expected a second student: cross pseudo supervision has two. Received: none.")
    first, ours, theirs = inputs.labels.shape[0], inputs.student_logits, inputs.second(inputs.images)
    consistency = losses.cross_entropy(ours[first:], tf.argmax(theirs[first:], axis=-1)) + losses.cross_entropy(
        theirs[first:], tf.argmax(ours[first:], axis=-1)
    )
    return supervised(inputs) | _supervised(theirs, inputs.labels, "second_") | {"consistency": consistency}


def deep_adversarial_network(inputs: Inputs) -> Terms:
    """DAN: a discriminator tells predictions on unlabelled items from those on labelled ones; the student misleads it.

    "consistency" is the cross entropy of calling the unlabelled items labelled: the student's. "discriminator" is the
    discriminator's own, over all items, and reaches no student: `training.step` gives it to its own optimiser. The
    run's teacher, which takes no part, is the average of the student.

    Reference: Zhang et al., MICCAI 2017, as SSL4MIS and SemiSAM+ have it: no dropout in the discriminator where it
    judges the student; Adam with rate 1e-4, betas 0.9 and 0.99.
    Departs: the discriminator learns from the predictions that the student is judged by in the same step (SSL4MIS: from
    another pass, of the student after its step and in inference mode).
    """
    if inputs.discriminator is None:
        raise ValueError("Expected a discriminator: a deep adversarial network has one. Received: none.")
    first, probs = inputs.labels.shape[0], softmax(inputs.student_logits)
    labelled = tf.cast(tf.range(probs.shape[0]) < first, tf.int32)
    misled = inputs.discriminator(probs[first:], inputs.images[first:], False)
    told = inputs.discriminator(tf.stop_gradient(probs), inputs.images, True)
    return supervised(inputs) | {
        "consistency": losses.cross_entropy(misled, tf.ones_like(labelled[first:])),
        DISCRIMINATOR_TERM: losses.cross_entropy(told, labelled),
    }


FRAMEWORKS: dict[str, Callable[[Inputs], Terms]] = {
    "supervised": supervised,
    "mean_teacher": mean_teacher,
    "uncertainty_aware_mean_teacher": uncertainty_aware_mean_teacher,
    "bidirectional_copy_paste": bidirectional_copy_paste,
    "cross_pseudo_supervision": cross_pseudo_supervision,
    "deep_adversarial_network": deep_adversarial_network,
}
_SUPERVISED = ("cross_entropy", "dice")
# The terms that each returns: `training.step` has a weight for every name, but for the discriminator's own term.
TERMS: dict[str, tuple[str, ...]] = {
    "supervised": _SUPERVISED,
    "mean_teacher": (*_SUPERVISED, "consistency"),
    "uncertainty_aware_mean_teacher": (*_SUPERVISED, "consistency"),
    "bidirectional_copy_paste": (*_SUPERVISED, "pseudo_cross_entropy", "pseudo_dice"),
    "cross_pseudo_supervision": (*_SUPERVISED, "second_cross_entropy", "second_dice", "consistency"),
    "deep_adversarial_network": (*_SUPERVISED, "consistency", DISCRIMINATOR_TERM),
}
USES_TEACHER = frozenset({"mean_teacher", "uncertainty_aware_mean_teacher", "bidirectional_copy_paste"})
# Those with a second student, trained like the first.
USES_SECOND = frozenset({"cross_pseudo_supervision"})
# Those with a discriminator, trained by an optimiser of its own.
USES_DISCRIMINATOR = frozenset({"deep_adversarial_network"})
