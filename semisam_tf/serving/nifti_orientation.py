"""`data.orientation` in the graph: a scan turned to the axis code of training by its header, and its mask back."""

from __future__ import annotations

import dataclasses
import itertools

import tensorflow as tf

from semisam_tf.data.orientation import AXIS_CODES
from semisam_tf.serving.checks import checked
from semisam_tf.serving.nifti_header import Header, numbers

_WORLD_AXIS = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
_ORDERS = list(itertools.permutations(range(3)))
# Largest cosine between two columns of an sform that still counts as a grid of right angles; ITK's.
_SHEAR = 1e-4
# NIfTI's code of a form that leads to the scanner's own coordinates.
_SCANNER = 1


@dataclasses.dataclass(frozen=True)
class AxisOrder:
    """Result axis i is axis `permutation[i]` of the array, reversed where `flips[i]`: int32 [3] and bool [3]."""

    permutation: tf.Tensor
    flips: tf.Tensor

    def apply(self, volume: tf.Tensor) -> tf.Tensor:
        """[X, Y, Z, C] in the file's order -> in training's order."""
        turned = tf.transpose(volume, tf.concat([self.permutation, [3]], axis=0))
        return tf.reverse(turned, tf.where(self.flips)[:, 0])

    def undo(self, mask: tf.Tensor) -> tf.Tensor:
        """[X, Y, Z] in training's order -> in the file's order."""
        return tf.transpose(tf.reverse(mask, tf.where(self.flips)[:, 0]), tf.math.invert_permutation(self.permutation))


def axis_order(header: Header, want: str) -> AxisOrder:
    """The way from a file's axes to the axis code `want`, such as "RAS".

    A file that says nothing of its orientation (qform_code and sform_code 0) is taken to have that of training.

    Raises:
        ValueError: `want` is no axis code.
    """
    if want not in AXIS_CODES:
        raise ValueError(f"Expected an axis code such as 'RAS' or 'LPS'. Received: {want!r}.")
    world = tf.constant([_WORLD_AXIS[letter] for letter in want])
    positive = tf.constant([letter in "RAS" for letter in want])
    direction, is_known = _direction(header)
    cosines = direction / tf.norm(direction, axis=0, keepdims=True)  # [world axis, array axis]
    # As `data.orientation.axis_code`: each world axis to one array axis, the largest rounded sum, the first of equals.
    sums = [sum(abs(cosines[w, axis]) for axis, w in enumerate(order)) for order in _ORDERS]
    best = tf.gather(tf.constant(_ORDERS), tf.argmax(tf.round(tf.stack(sums) * 1e6)))  # int32 [3], of array axes
    permutation = tf.gather(tf.math.invert_permutation(best), world)
    grows = tf.gather_nd(cosines, tf.stack([best, tf.range(3)], axis=1)) > 0
    flips = tf.not_equal(tf.gather(grows, permutation), positive)
    return AxisOrder(tf.where(is_known, permutation, tf.range(3)), flips & is_known)


def _direction(header: Header) -> tuple[tf.Tensor, tf.Tensor]:
    """Directions of the array's axes in the world, float64 [3, 3], and whether the header knows them.

    Which of two forms counts is as in ITK, which reads the scans of training and `predict`: the qform, unless there
    is none or the sform is the scanner's. A sform that is no grid of right angles gives way to the qform, and alone it
    is refused.
    """

    def at(offset: int, count: int) -> tf.Tensor:
        return tf.cast(numbers(header.raw, header.big_endian, offset, count, tf.float32), tf.float64)

    codes = numbers(header.raw, header.big_endian, 252, 2, tf.int16)
    sform = tf.reshape(at(280, 12), [3, 4])[:, :3]
    sform_is_right = tf.reduce_all(tf.math.is_finite(sform)) & tf.reduce_all(tf.norm(sform, axis=0) > 0)
    cosines = sform / tf.norm(sform, axis=0, keepdims=True)
    shear = tf.reduce_max(tf.abs(tf.linalg.matmul(cosines, cosines, transpose_a=True) - tf.eye(3, dtype=tf.float64)))
    has_qform, has_sform = codes[0] > 0, codes[1] > 0
    is_grid = sform_is_right & (shear <= _SHEAR)
    sform = checked(
        sform, has_qform | ~has_sform | is_grid,
        f"axes at right angles (to {_SHEAR}) in the sform, or a qform", "a sheared sform alone, largest cosine", shear,
    )  # fmt: skip
    takes_sform = has_sform & is_grid & (~has_qform | tf.equal(codes[1], _SCANNER))
    quaternion = at(256, 3)
    b, c, d = tf.unstack(tf.where(tf.math.is_finite(quaternion), quaternion, tf.zeros_like(quaternion)))
    a = tf.sqrt(tf.maximum(tf.zeros([], tf.float64), 1 - (b * b + c * c + d * d)))
    qform = tf.stack(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    handedness = tf.where(at(76, 1)[0] < 0, tf.constant(-1.0, tf.float64), tf.constant(1.0, tf.float64))
    qform *= tf.stack([tf.ones_like(handedness), tf.ones_like(handedness), handedness])
    return tf.where(takes_sform, sform, qform), has_sform | has_qform
