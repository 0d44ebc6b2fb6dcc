"""Loss terms. `probs` are softmax outputs [B, X, Y, Z, K]; `labels` are class indices [B, X, Y, Z].

Every function returns a float32 scalar. Where several devices share a batch, the sums that a ratio is made of are over
all of it; a mean is over each device's own items, which are as many on each.

Reference: shared/FACTS.md section 1; golden values in tests/parity.
"""

from __future__ import annotations

import tensorflow as tf

from semisam_tf.distribution.replicas import summed
from semisam_tf.models.softmax import softmax


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor, where: tf.Tensor | None = None) -> tf.Tensor:
    """Mean over voxels of the softmax cross entropy in nats.

    Args:
        where: [B, X, Y, Z] float32 in {0, 1}: only voxels with a 1 count; without any the mean is 0.
    """
    values = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(labels, tf.int32), logits)
    if where is None:
        return tf.reduce_mean(values)
    return tf.math.divide_no_nan(summed(tf.reduce_sum(where * values)), summed(tf.reduce_sum(where)))


def dice_loss(probs: tf.Tensor, labels: tf.Tensor, smooth: float = 1e-5, where: tf.Tensor | None = None) -> tf.Tensor:
    """1 - Dice with squared denominator, over the whole batch, mean over the foreground classes.

    Args:
        where: [B, X, Y, Z] float32 in {0, 1}: only voxels with a 1 count; without any the loss is 0.

    Departs: the published loss knows one foreground class; with two classes the value is the same.
    """
    one_hot = tf.one_hot(tf.cast(labels, tf.int32), probs.shape[-1], dtype=probs.dtype)[..., 1:]
    foreground = probs[..., 1:]
    if where is not None:
        one_hot, foreground = one_hot * where[..., None], foreground * where[..., None]
    axes = [0, 1, 2, 3]
    overlap = summed(tf.reduce_sum(foreground * one_hot, axes))
    size = summed(tf.reduce_sum(foreground * foreground, axes) + tf.reduce_sum(one_hot, axes))
    return tf.reduce_mean(1.0 - (2.0 * overlap + smooth) / (size + smooth))


def squared_distance(student_logits: tf.Tensor, teacher_probs: tf.Tensor) -> tf.Tensor:
    """Squared differences of softmax and target, [B, X, Y, Z, K]."""
    return tf.math.squared_difference(softmax(student_logits), teacher_probs)


def kl_distance(student_logits: tf.Tensor, teacher_probs: tf.Tensor) -> tf.Tensor:
    """Terms of the Kullback-Leibler divergence of the softmax from the target, [B, X, Y, Z, K], in nats."""
    return tf.math.xlogy(teacher_probs, teacher_probs) - teacher_probs * tf.nn.log_softmax(student_logits)


# Of what is drawn between student and teacher; the published code has both.
DISTANCES = {"mse": squared_distance, "kl": kl_distance}


def mean_teacher_distance(distance: tf.Tensor) -> tf.Tensor:
    """A distance [B, X, Y, Z, K] over items, classes and voxels, halved: sum / (2 numel)."""
    return 0.5 * tf.reduce_mean(distance)


def entropy(probs: tf.Tensor) -> tf.Tensor:
    """Entropy in nats over the class axis, [B, X, Y, Z]; 1e-6 inside the logarithm as in UA-MT."""
    return -tf.reduce_sum(probs * tf.math.log(probs + 1e-6), axis=-1)


def uncertainty_masked_distance(distance: tf.Tensor, uncertainty: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """UA-MT: a distance [B, X, Y, Z, K] in the voxels whose `uncertainty` [B, X, Y, Z] is below `threshold`.

    sum(mask distance) / (2 sum(mask)), the mask without a class axis: with two classes a full mean, not a half.
    No voxel kept gives 0.
    """
    mask = tf.cast(uncertainty < threshold, distance.dtype)
    kept = summed(tf.reduce_sum(mask * tf.reduce_sum(distance, axis=-1)))
    return kept / (2.0 * summed(tf.reduce_sum(mask)) + 1e-16)


def sam_distance(student_logits: tf.Tensor, sam_probs: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """Weighted softmax MSE to SAM's target, mean over ALL voxels and classes.

    Dividing by all voxels rather than by the trusted ones lets a target that is trusted in few voxels pull little.

    Args:
        student_logits: [U, X, Y, Z, K], the unlabelled items.
        sam_probs: [U, X, Y, Z, K], SAM's target.
        weight: [U, X, Y, Z] in [0, 1]; 0 means that the student ignores the voxel.
    """
    return tf.reduce_mean(weight[..., None] * squared_distance(student_logits, sam_probs))


def target_cross_entropy(student_logits: tf.Tensor, target_probs: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    """Cross entropy and foreground Dice with a soft target [U, X, Y, Z, K], weighted by voxel, mean over ALL voxels.

    What the supervised terms are for labels, so that a target may teach as strongly as a label does.

    Args:
        student_logits: [U, X, Y, Z, K], the unlabelled items.
        target_probs: [U, X, Y, Z, K].
        weight: [U, X, Y, Z] in [0, 1].
    """
    entropy = tf.reduce_mean(weight * tf.nn.softmax_cross_entropy_with_logits(target_probs, student_logits))
    student, target = softmax(student_logits)[..., 1:], target_probs[..., 1:]
    axes, voxel_weight = [0, 1, 2, 3], weight[..., None]
    overlap = summed(tf.reduce_sum(voxel_weight * student * target, axes))
    size = summed(tf.reduce_sum(voxel_weight * (student * student + target * target), axes))
    return entropy + tf.reduce_mean(1.0 - (2.0 * overlap + 1e-5) / (size + 1e-5))


# Of the student from SAM's target; the paper has the first.
SAM_DISTANCES = {"mse": sam_distance, "cross_entropy": target_cross_entropy}
