"""A batch through a network a few items at a time: the memory of those few, for the time of one more forward pass.

Gradient accumulation usually adds up the losses of parts. Here the logits of all parts are joined first, so that any
loss over the whole batch (Dice, UA-MT's mask, SAM's target) is what it would be, and every part is run once more, to
be kept in memory this time, when its gradient is due.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

Pass = Callable[[tf.Tensor], tf.Tensor]


def in_training(model: keras.Model, micro_batch: int) -> Pass:
    """The model in training mode, [B, X, Y, Z, C] -> logits [B, X, Y, Z, K], `micro_batch` items at a time.

    Gradients are of the trainable variables, not of the images. Where nothing ties the items of a batch together
    (instance norm, no dropout) they are those of one pass over all of them; batch norm sees a part at a time, and
    dropout draws for each part.

    Args:
        micro_batch: Items at a time; 0: all, in one plain pass.
    """

    def one_pass(images: tf.Tensor) -> tf.Tensor:
        return model(images, training=True)

    def in_parts(images: tf.Tensor) -> tf.Tensor:
        count = images.shape[0]
        sizes = [min(micro_batch, count - start) for start in range(0, count, micro_batch)]
        return one_pass(images) if len(sizes) == 1 else _joined(model, sizes)(images)

    return in_parts if micro_batch else one_pass


def _joined(model: keras.Model, sizes: list[int]) -> Pass:
    # A pass moves dropout's random state and the running statistics; the second pass of a part has to find them as the
    # first did, and to leave no trace.
    states = model.non_trainable_variables

    @tf.custom_gradient
    def joined(images: tf.Tensor) -> tuple[tf.Tensor, Callable[..., Any]]:
        parts = tf.split(images, sizes)
        found: list[list[tf.Tensor]] = []
        logits: list[tf.Tensor] = []
        for part in parts:
            found.append([tf.identity(state.value) for state in states])
            with tf.control_dependencies(logits[-1:]):
                logits.append(model(tf.identity(part), training=True))

        def gradient(upstream: tf.Tensor, variables: list[tf.Variable]) -> tuple[None, list[tf.Tensor]]:
            left = [tf.identity(state.value) for state in states]
            sums: list[tf.Tensor] = []
            for part, before, of_part in zip(parts, found, tf.split(upstream, sizes), strict=True):
                # One after the other, or all parts would be in memory together.
                with tf.control_dependencies(sums or [upstream]):
                    again = tf.identity(part)
                for state, value in zip(states, before, strict=True):
                    state.assign(value)
                with tf.GradientTape() as tape:
                    logits_again = model(again, training=True)
                gradients = tape.gradient(logits_again, variables, output_gradients=of_part)
                sums = gradients if not sums else [total + more for total, more in zip(sums, gradients, strict=True)]
            for state, value in zip(states, left, strict=True):
                state.assign(value)
            return None, sums

        return tf.concat(logits, axis=0), gradient

    return joined
