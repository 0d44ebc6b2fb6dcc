"""Frameworks: from what student and teacher say on a batch to named loss terms. SAM is a branch beside them.

A framework never sees SAM and never sees weights: `training.step` adds the SAM term and multiplies by the schedules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from semisam_tf.semi import losses

Terms = dict[str, tf.Tensor]
# (images, index of the pass) -> logits of the teacher on images with that pass's own input noise.
NoisyTeacher = Callable[[tf.Tensor, int], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a framework may look at. L labelled items come first, then B - L unlabelled ones.

    Attributes:
        images: [B, X, Y, Z, C] float32.
        labels: [L, X, Y, Z]; unlabelled items have none.
        student_logits: [B, X, Y, Z, K], the student in training mode.
        teacher: Noisy teacher passes; gradients are stopped by the caller.
        entropy_threshold: Scalar in nats, for UA-MT.
        passes: Number of teacher passes for UA-MT.
        distance: (student logits, teacher probs) -> [B, X, Y, Z, K], one of `losses.DISTANCES`.
    """

    images: tf.Tensor
    labels: tf.Tensor
    student_logits: tf.Tensor
    teacher: NoisyTeacher
    entropy_threshold: tf.Tensor
    passes: int
    distance: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] = losses.squared_distance


def supervised(inputs: Inputs) -> Terms:
    """Cross entropy and foreground Dice on the labelled items."""
    logits = inputs.student_logits[: inputs.labels.shape[0]]
    return {
        "cross_entropy": losses.cross_entropy(logits, inputs.labels),
        "dice": losses.dice_loss(tf.nn.softmax(logits), inputs.labels),
    }


def mean_teacher(inputs: Inputs) -> Terms:
    """Mean teacher: one noisy teacher pass, distance over all items, labelled ones too (as published)."""
    teacher_probs = tf.nn.softmax(inputs.teacher(inputs.images, 0))
    consistency = losses.mean_teacher_distance(inputs.distance(inputs.student_logits, teacher_probs))
    return supervised(inputs) | {"consistency": consistency}


def uncertainty_aware_mean_teacher(inputs: Inputs) -> Terms:
    """UA-MT: the teacher's target counts where the mean of further noisy passes has low entropy; unlabelled items.

    Reference: arXiv 1907.07034. Departs: the published code stacks the passes in pairs in one batch, so that its batch
    statistics are over the same items twice; here each pass is its own batch, with the same statistics.
    """
    first = inputs.labels.shape[0]
    images = inputs.images[first:]
    target = tf.nn.softmax(inputs.teacher(images, 0))
    mean = tf.add_n([tf.nn.softmax(inputs.teacher(images, 1 + i)) for i in range(inputs.passes)]) / inputs.passes
    consistency = losses.uncertainty_masked_distance(
        inputs.distance(inputs.student_logits[first:], target), losses.entropy(mean), inputs.entropy_threshold
    )
    return supervised(inputs) | {"consistency": consistency}


FRAMEWORKS: dict[str, Callable[[Inputs], Terms]] = {
    "supervised": supervised,
    "mean_teacher": mean_teacher,
    "uncertainty_aware_mean_teacher": uncertainty_aware_mean_teacher,
}
USES_TEACHER = frozenset({"mean_teacher", "uncertainty_aware_mean_teacher"})
