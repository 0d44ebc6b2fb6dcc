"""`inference.sliding_window` as a loop in the graph: one window in memory at a time, however many there are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import tensorflow as tf

from semisam_tf import geometry
from semisam_tf.inference.sliding_window import STRIDE, WHOLE_SCAN_MOST, WHOLE_SCAN_OVERLAP
from semisam_tf.models.softmax import softmax

# Windows float32 [1, x, y, z, C] -> logits float32 [1, x, y, z, K].
Network = Callable[[tf.Tensor], tf.Tensor]


def pad_to(image: tf.Tensor, minimum_size: Sequence[int | tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """`geometry.pad_to` with zeros: [X, Y, Z, C] -> the padded image and the voxels added before, int32 [4]."""
    missing = tf.maximum(0, tf.stack([*minimum_size, 0]) - tf.shape(image))
    before = missing // 2
    return tf.pad(image, tf.stack([before, missing - before], axis=1)), before


def window_starts(size: tf.Tensor, window: int | tf.Tensor, overlap: float) -> tf.Tensor:
    """`geometry.window_starts` of one axis: int32 scalar, at least `window` -> int32 [count]."""
    stride = tf.maximum(1, tf.cast(tf.cast(window, tf.float64) * (1 - overlap), tf.int32))
    room = size - window
    count = -(-room // stride) + 1
    steps = tf.range(count) * room
    # tf.round rounds halves to even numbers, as Python does.
    return tf.cast(tf.round(steps / tf.maximum(1, count - 1)), tf.int32)


def predict_whole(network: Network, image: tf.Tensor, n_classes: int) -> tf.Tensor:
    """`sliding_window.predict_whole`: [X, Y, Z, C] -> the softmax of one window as large as the scan, [X, Y, Z, K]."""
    size = tf.unstack(tf.shape(image)[:3])
    padded = image
    for axis, n in enumerate(size):
        wanted = STRIDE * -(-n // STRIDE)
        padded = tf.gather(padded, tf.minimum(tf.range(wanted), n - 1), axis=axis)
    window = tf.unstack(tf.minimum(tf.shape(padded)[:3], WHOLE_SCAN_MOST))
    probs = predict_probs(network, padded, window, n_classes, WHOLE_SCAN_OVERLAP, "uniform")
    return probs[: size[0], : size[1], : size[2]]


def predict_probs(
    network: Network, image: tf.Tensor, window: Sequence[int | tf.Tensor], n_classes: int, overlap: float, blend: str
) -> tf.Tensor:
    """Weighted mean of the softmax of overlapping windows.

    Args:
        network: The network; gets one window at a time.
        image: float32 [X, Y, Z, C], normalised; padded with zeros where it is smaller than the window.
        window: Voxels of the window; numbers known only when the graph runs with `blend="uniform"`.
        n_classes: Classes K that `network` returns.
        overlap: Share of a window that neighbours have in common at least, in [0, 1).
        blend: "uniform" or "gaussian" weights.

    Returns:
        float32 [X, Y, Z, K].
    """
    padded, before = pad_to(image, window)
    channels = image.shape[-1]
    size = tf.unstack(tf.shape(padded)[:3])
    starts = [window_starts(n, w, overlap) for n, w in zip(size, window, strict=True)]
    counts = [tf.size(axis) for axis in starts]
    weights = (tf.constant(geometry.gaussian_window(window)) if blend == "gaussian" else tf.ones(window))[..., None]
    patch_size = tf.stack([*window, n_classes + 1])

    def add_window(index: tf.Tensor, total: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        x = starts[0][index // (counts[1] * counts[2])]
        y = starts[1][(index // counts[2]) % counts[1]]
        z = starts[2][index % counts[2]]
        begin = tf.stack([x, y, z, 0])
        patch = tf.ensure_shape(tf.slice(padded, begin, [*window, channels]), [None, None, None, channels])
        probs = softmax(network(patch[None]))[0]
        # The sum of weights is one more channel: probabilities and weights are then written in one step.
        added = tf.slice(total, begin, patch_size) + tf.concat([probs * weights, weights], axis=-1)
        # In place, as nothing else holds `total` by then; `tf.pad` and a sum would cost a volume for each window.
        total = tf.raw_ops.TensorStridedSliceUpdate(
            input=total, begin=begin, end=begin + patch_size, strides=[1, 1, 1, 1], value=added
        )
        return index + 1, total

    _, total = tf.while_loop(
        lambda index, _: index < counts[0] * counts[1] * counts[2],
        add_window,
        [0, tf.zeros(tf.stack([*size, n_classes + 1]))],
        shape_invariants=[tf.TensorShape([]), tf.TensorShape([None, None, None, n_classes + 1])],
        parallel_iterations=1,
    )
    kept = tf.slice(total, before, tf.concat([tf.shape(image)[:3], [n_classes + 1]], axis=0))
    return kept[..., :-1] / kept[..., -1:]
