"""Copy-paste mixing: which crop gets a box of which other, and where the box lies.

A mixture is crop `around[k]` with a box of crop `pasted[k]` in it. Masks are [B, X, Y, Z], True outside the box.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf


class Mixtures(NamedTuple):
    """How B crops become B mixtures.

    Attributes:
        around: [B] int32, the item that surrounds the box.
        pasted: [B] int32, the item that fills it.
        outside: [B, X, Y, Z] bool, False in the box.
    """

    around: tf.Tensor
    pasted: tf.Tensor
    outside: tf.Tensor

    def of(self, values: tf.Tensor) -> tf.Tensor:
        """The mixtures of `values` [B, X, Y, Z, ...] (or of any shape that broadcasts to it, such as [B, 1, 1, 1])."""
        outside = tf.reshape(self.outside, [*self.outside.shape, *([1] * (values.shape.rank - 4))])
        return tf.where(outside, tf.gather(values, self.around), tf.gather(values, self.pasted))


def partners(labelled: int, batch: int) -> tuple[list[int], list[int]]:
    """(around, pasted): every crop surrounds a box of the other kind, labelled items coming first.

    Labelled item i gets unlabelled item i's box, unlabelled item j that of labelled item j + 1 (both counted round), so
    that with two or more labelled items the two mixtures that an unlabelled crop is in have different partners.
    """
    unlabelled = batch - labelled
    pasted = [labelled + i % unlabelled for i in range(labelled)] + [(j + 1) % labelled for j in range(unlabelled)]
    return list(range(batch)), pasted


def labelled_partners(labelled: int, batch: int) -> tuple[list[int], list[int]]:
    """(around, pasted) among the labelled items alone, as many mixtures as the batch has items."""
    return [k % labelled for k in range(batch)], [(k + 1) % labelled for k in range(batch)]


def outside_boxes(key: tf.Tensor, count: int, size: Sequence[int]) -> tf.Tensor:
    """[count, X, Y, Z] bool: False in a box of two thirds of each side, at a uniformly drawn place in each item.

    Args:
        key: int64 [2]; the same key draws the same boxes.
        size: X, Y, Z in voxels.
    """
    outside = tf.zeros([count, 1, 1, 1], tf.bool)
    drawn = tf.random.stateless_uniform([count, 3], key)
    for axis, side in enumerate(size):
        box = side * 2 // 3
        first = tf.cast(drawn[:, axis, None] * (side - box + 1), tf.int32)
        position = tf.range(side)[None]
        shape = [count, *(side if other == axis else 1 for other in range(3))]
        outside |= tf.reshape((position < first) | (position >= first + box), shape)
    return outside


def draw(key: tf.Tensor, labelled: int, batch: int, size: Sequence[int], with_unlabelled: tf.Tensor) -> Mixtures:
    """Mixtures of labelled with unlabelled crops both ways, or among the labelled ones where `with_unlabelled` is not.

    Args:
        with_unlabelled: Scalar bool.
    """
    around, pasted = (
        tf.where(with_unlabelled, *columns)
        for columns in zip(partners(labelled, batch), labelled_partners(labelled, batch), strict=True)
    )
    return Mixtures(around, pasted, outside_boxes(key, batch, size))
