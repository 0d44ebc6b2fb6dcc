"""`evaluation.largest_component` in the graph: connected components by hooking and pointer jumping over runs of voxels.

Propagating labels by max pooling takes as many passes over the scan as a piece is long, hundreds for a vessel. Here
the voxels of a line that touch are one node, touching lines make edges, and a node's label jumps to its label's
label, so that the number of passes grows with the logarithm of the length.
"""

from __future__ import annotations

import itertools

import tensorflow as tf

from semisam_tf.inference.region import PIECE_SHARE

# Half of the 26 neighbours, the other half being the same edges from the other side; along Z a run is one node.
_FORWARD = [(dx, dy, dz) for dx, dy in ((0, 1), (1, -1), (1, 0), (1, 1)) for dz in (-1, 0, 1)]


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
    """`inference.region.large_pieces`: uint8 [X, Y, Z] -> bool [X, Y, Z]."""

    def keep(k: tf.Tensor, kept: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return k + 1, kept | _largest_piece(tf.equal(mask, tf.cast(k, tf.uint8)), PIECE_SHARE)

    start = [tf.constant(1), tf.zeros_like(mask, tf.bool)]
    return tf.while_loop(lambda k, _: k < n_classes, keep, start, parallel_iterations=1)[1]


def _largest_piece(mask: tf.Tensor, share: float | None = None) -> tf.Tensor:
    """bool [X, Y, Z] -> bool [X, Y, Z]; with `share` all pieces of at least that share of the largest one's voxels."""
    # One empty voxel at the end of each axis: steps over a border then land in it, on the far side of the line.
    padded = tf.pad(mask, [[0, 1]] * 3)
    _, ny, nz = tf.unstack(tf.shape(padded, out_type=tf.int64))
    flat = tf.reshape(padded, [-1])
    voxels = tf.where(flat)[:, 0]  # int64 [F], in array order

    def largest() -> tf.Tensor:
        first = tf.concat([[True], voxels[1:] != voxels[:-1] + 1], axis=0)
        run = tf.cumsum(tf.cast(first, tf.int32))  # int32 [F], 1 for the first run of voxels along Z, and so on
        run_at = tf.scatter_nd(voxels[:, None], run, tf.shape(flat, out_type=tf.int64))
        offsets = tf.stack([(dx * ny + dy) * nz + dz for dx, dy, dz in _FORWARD])
        piece = tf.gather(_roots(_edges(voxels, run, run_at, offsets), run[-1] + 1), run)
        size = tf.math.bincount(piece)
        if share is None:
            kept = tf.equal(piece, tf.argmax(size, output_type=tf.int32))
        else:
            voxels_of = tf.cast(size, tf.float64)
            kept = tf.gather(voxels_of >= share * tf.reduce_max(voxels_of), piece)
        return tf.reshape(tf.scatter_nd(voxels[:, None], tf.cast(kept, tf.uint8), tf.shape(flat, tf.int64)) > 0,
                          tf.shape(padded))[:-1, :-1, :-1]  # fmt: skip

    return tf.cond(tf.size(voxels) > 0, largest, lambda: mask)


def _edges(voxels: tf.Tensor, run: tf.Tensor, run_at: tf.Tensor, offsets: tf.Tensor) -> tf.Tensor:
    """Pairs of runs that touch: int32 [E, 2]. One offset at a time, since each takes arrays as long as `voxels`."""
    last = tf.size(run_at, out_type=tf.int64) - 1

    def add(index: tf.Tensor, found: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        other = tf.gather(run_at, tf.minimum(voxels + offsets[index], last))
        pair = tf.stack([run, other], axis=1)
        # Two runs touch in many voxels; one pair is enough.
        new = tf.concat([[True], tf.reduce_any(pair[1:] != pair[:-1], axis=1)], axis=0)
        return index + 1, found.write(index, tf.boolean_mask(pair, new & (other > 0)))

    found = tf.TensorArray(tf.int32, len(_FORWARD), infer_shape=False, element_shape=[None, 2])
    _, found = tf.while_loop(lambda i, _: i < len(_FORWARD), add, [0, found], parallel_iterations=1)
    return found.concat()


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
