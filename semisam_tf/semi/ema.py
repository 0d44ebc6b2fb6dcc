"""The teacher: an exponential moving average of the student."""

from __future__ import annotations

import keras
import tensorflow as tf


def update_teacher(teacher: keras.Model, student: keras.Model, decay: tf.Tensor, follow_statistics: bool) -> None:
    """teacher <- decay teacher + (1 - decay) student, over trainable parameters. Usable inside tf.function.

    Args:
        decay: Scalar in [0, 1]; 0 copies the student.
        follow_statistics: Also move batch-norm statistics. False where the teacher runs in training mode and so
            gathers its own (paper); True where it never does and its statistics would stay at their initial values.
    """
    pairs = list(zip(teacher.trainable_variables, student.trainable_variables, strict=True))
    if follow_statistics:
        pairs += zip(statistics(teacher), statistics(student), strict=True)
    for slow, fast in pairs:
        slow.assign(decay * slow + (1.0 - decay) * fast)


def statistics(model: keras.Model) -> list[keras.Variable]:
    """Floating-point state that is not trained (batch-norm moments); generator seeds are left out."""
    return [v for v in model.non_trainable_variables if v.dtype.startswith("float")]


def copy_weights(target: keras.Model, source: keras.Model) -> None:
    """Sets trainable parameters and statistics of `target` to those of `source`; generator seeds stay apart."""
    for to, of in zip(target.trainable_variables, source.trainable_variables, strict=True):
        to.assign(of)
    for to, of in zip(statistics(target), statistics(source), strict=True):
        to.assign(of)
