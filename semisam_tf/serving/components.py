"""`evaluation.largest_component` in the graph: connected components by hooking and pointer jumping over runs of voxels.

Propagating labels by max pooling takes as many passes over the scan as a piece is long, hundreds for a vessel. Here
the voxels of a line that touch are one node, touching lines make edges, and a node's label jumps to its label's
label, so that the number of passes grows with the logarithm of the length.
"""

from __future__ import annotations

import itertools

import tensorflow as tf

from semisam_tf.inference.region import PIECE_SHARE

# The lines beside a line. Of two runs that touch, one begins no earlier than the other, and then it begins beside a
# voxel of the other or one behind its last: looking from every run's first voxel at these finds every pair.
_LINES = [(dx, dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1) if (dx, dy) != (0, 0)]


def largest_component(mask: tf.Tensor, n_classes: int) -> tf.Tensor:
    """Keeps the largest connected piece of each class: uint8 [X, Y, Z] -> uint8 [X, Y, Z].

    Pieces connect over faces, edges and corners; of equal pieces the first in array order stays.
    """
    if n_classes == 2:
        return tf.cast(_largest_piece(mask > 0), tf.uint8)

    def keep(k: tf.Tensor, kept: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        label = tf.cast(k, tf.uint8)
        return k + 1, tf.where(_largest_piece(tf.equal(mask, label)), label, kept)

    start = [tf.constant(1), tf.zeros_like(mask)]
    return tf.while_loop(lambda k, _: k < n_classes, keep, start, parallel_iterations=1)[1]


def large_pieces(mask: tf.Tensor, n_classes: int) -> tf.Tensor:
    """`inference.evaluation.large_pieces` with the region's share: uint8 [X, Y, Z] -> bool [X, Y, Z]."""

    def keep(k: tf.Tensor, kept: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return k + 1, kept | _largest_piece(tf.equal(mask, tf.cast(k, tf.uint8)), PIECE_SHARE)

    start = [tf.constant(1), tf.zeros_like(mask, tf.bool)]
    return tf.while_loop(lambda k, _: k < n_classes, keep, start, parallel_iterations=1)[1]


def _largest_piece(mask: tf.Tensor, share: float | None = None) -> tf.Tensor:
    """bool [X, Y, Z] -> bool [X, Y, Z]; with `share` all pieces of at least that share of the largest one's voxels."""
    # An empty voxel around: steps over a border land in it.
    padded = tf.pad(mask, [[1, 1]] * 3)
    _, ny, nz = tf.unstack(tf.shape(padded, out_type=tf.int64))
    flat = tf.reshape(padded, [-1])
    voxels = tf.where(flat)[:, 0]  # int64 [F], in array order

    def largest() -> tf.Tensor:
        first = tf.concat([[True], voxels[1:] != voxels[:-1] + 1], axis=0)
        run = tf.cumsum(tf.cast(first, tf.int32))  # int32 [F], 1 for the first run of voxels along Z, and so on
        run_at = tf.scatter_nd(voxels[:, None], run, tf.shape(flat, out_type=tf.int64))
        offsets = tf.stack([(dx * ny + dy) * nz for dx, dy in _LINES])
        piece = tf.gather(_roots(_edges(tf.boolean_mask(voxels, first), run_at, offsets), run[-1] + 1), run)
        size = tf.math.bincount(piece)
        if share is None:
            kept = tf.equal(piece, tf.argmax(size, output_type=tf.int32))
        else:
            voxels_of = tf.cast(size, tf.float64)
            kept = tf.gather(voxels_of >= share * tf.reduce_max(voxels_of), piece)
        return tf.reshape(tf.scatter_nd(voxels[:, None], tf.cast(kept, tf.uint8), tf.shape(flat, tf.int64)) > 0,
                          tf.shape(padded))[1:-1, 1:-1, 1:-1]  # fmt: skip

    return tf.cond(tf.size(voxels) > 0, largest, lambda: mask)


def _edges(starts: tf.Tensor, run_at: tf.Tensor, offsets: tf.Tensor) -> tf.Tensor:
    """Pairs of runs that touch: int32 [E, 2].

    Args:
        starts: int64 [R], the first voxel of runs 1 to R.
        run_at: int32, the run of each voxel, 0 for none.
        offsets: int64, the steps from a line to those beside it.
    """
    beside = starts[None, :] + offsets[:, None]  # [8, R]
    here, before = tf.gather(run_at, beside), tf.gather(run_at, beside - 1)
    before = tf.where(tf.equal(before, here), tf.zeros_like(before), before)  # one pair is enough
    other = tf.reshape(tf.stack([here, before]), [-1])
    run = tf.tile(tf.range(1, tf.size(starts) + 1), [2 * len(_LINES)])
    touches = other > 0
    return tf.stack([tf.boolean_mask(run, touches), tf.boolean_mask(other, touches)], axis=1)


def _roots(edges: tf.Tensor, n_nodes: tf.Tensor) -> tf.Tensor:
    """The smallest node of each node's component: int32 [E, 2] -> int32 [n_nodes].

    Reference: FastSV (Zhang, Azad, Hu 2020), a form of Shiloach and Vishkin's algorithm.
    """
    left, right = edges[:, :1], edges[:, 1:]

    def jump(parent: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        grand = tf.gather(parent, parent)
        lowest = tf.minimum(tf.gather(grand, left[:, 0]), tf.gather(grand, right[:, 0]))
        new = grand
        for side, node in itertools.product((left, right), ("parent", "itself")):
            place = tf.gather(parent, side) if node == "parent" else side
            new = tf.tensor_scatter_nd_min(new, place, lowest)
        return new, tf.reduce_any(new != parent)

    start = [tf.range(n_nodes), tf.constant(True)]
    return tf.while_loop(lambda _, changed: changed, jump, start, parallel_iterations=1)[0]
