"""What the copies of a network on several devices have in common: `tf.distribute`'s replicas, seen from inside a step.

Code that sums over a batch (Dice, batch statistics) asks here, so that several devices compute what one would on the
whole batch. On one device, and outside a step, there is one replica and nothing is done.
"""

from __future__ import annotations

import tensorflow as tf


def replica_count() -> int:
    """Replicas that take this step together; 1 outside of `strategy.run`."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def replica_index() -> int | tf.Tensor:
    """This replica's number, from 0, over all processes."""
    context = tf.distribute.get_replica_context()
    return 0 if context is None else context.replica_id_in_sync_group


def summed(value: tf.Tensor) -> tf.Tensor:
    """The sum of every replica's `value`. Its gradient is summed over the replicas, too.

    Each replica's loss is therefore that of the whole batch, and the MEAN of the replicas' gradients is its gradient.
    """
    if replica_count() == 1:
        return value
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def averaged(gradients: list[tf.Tensor]) -> list[tf.Tensor]:
    """The mean of the replicas' gradients, the same on each."""
    if replica_count() == 1:
        return gradients
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.MEAN, gradients)
