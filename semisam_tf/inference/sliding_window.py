"""Whole-scan prediction from a network that sees windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from semisam_tf import geometry
from semisam_tf.config import WINDOW_BLEND, WINDOW_BLENDS, WINDOW_OVERLAP

# The networks halve a window four times.
STRIDE = 16
# See `predict_whole`.
WHOLE_SCAN_MOST = 256
WHOLE_SCAN_OVERLAP = 0.25

# Image windows float32 [B, x, y, z, C] -> class probabilities float32 [B, x, y, z, K].
Predict = Callable[[np.ndarray], np.ndarray]


def predict_probs(
    predict: Predict,
    image: np.ndarray,
    window: Sequence[int],
    overlap: float = WINDOW_OVERLAP,
    blend: str = WINDOW_BLEND,
    window_batch: int = 1,
    on_window: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Weighted mean of the probabilities of overlapping windows.

    Args:
        predict: The network. Gets batches of exactly `window`; the last one of a scan may hold fewer items.
        image: float32 [X, Y, Z, C], normalised. Where it is smaller than the window it is padded with zeros (the mean
            of a z-scored scan) on both sides, and the padding is cut off again.
        window: Voxels of the window, (x, y, z).
        overlap: Share of a window that neighbours have in common at least, in [0, 1).
        blend: "gaussian" trusts the middle of a window most; "uniform" is the plain mean, as published.
        window_batch: Windows per call of `predict`.
        on_window: Told after each call of `predict` how many windows are done, and of how many.

    Returns:
        float32 [X, Y, Z, K]; sums to 1 over K where the predictions do.

    Raises:
        ValueError: Bad image, blend, overlap or batch, or a prediction of another size than the window.
    """
    if image.ndim != 4:
        raise ValueError(f"Expected an image [X, Y, Z, C]. Received: image.shape={image.shape}.")
    if blend not in WINDOW_BLENDS:
        raise ValueError(f"Expected blend to be one of {WINDOW_BLENDS}. Received: blend={blend!r}.")
    if window_batch < 1:
        raise ValueError(f"Expected at least 1 window in a batch. Received: window_batch={window_batch}.")
    window = tuple(int(n) for n in window)
    padded, undo = geometry.pad_to(np.asarray(image, np.float32), window)
    starts = geometry.window_starts(padded.shape[:3], window, overlap)
    weights = geometry.gaussian_window(window) if blend == "gaussian" else np.ones(window, np.float32)

    total: np.ndarray | None = None
    weight_sum = np.zeros((*padded.shape[:3], 1), np.float32)
    for first in range(0, len(starts), window_batch):
        places = [_place(start, window) for start in starts[first : first + window_batch]]
        probs = np.asarray(predict(np.stack([padded[place] for place in places])))  # [b, x, y, z, K]
        if probs.ndim != 5 or probs.shape[:4] != (len(places), *window):
            raise ValueError(
                f"Expected predictions of the windows' size, {(len(places), *window)} and classes. "
                f"Received: predict(...).shape={probs.shape}."
            )
        if total is None:
            total = np.zeros((*padded.shape[:3], probs.shape[-1]), np.float32)
        for place, item in zip(places, probs, strict=True):
            total[place] += item * weights[..., None]
            weight_sum[place] += weights[..., None]
        if on_window is not None:
            on_window(first + len(places), len(starts))
    if total is None:
        raise RuntimeError(f"No window was placed on an image of shape {padded.shape}.")
    total /= weight_sum  # in place: the largest array of all
    return np.ascontiguousarray(total[undo[:3]])


def predict_whole(
    predict: Predict,
    image: np.ndarray,
    most: int | None = None,
    on_window: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """The probabilities of one window as large as the scan.

    Only for networks that say the same of a voxel however large the window is: instance and group norm do not.

    Args:
        predict: The network, on windows of any size that it takes: multiples of 16 voxels.
        image: float32 [X, Y, Z, C], normalised. Its last voxels are repeated up to such a size: zeros, and room at
            both ends, were worse where they were tried (README).
        most: Longest side of a window, which bounds the memory; None: `WHOLE_SCAN_MOST`. Longer scans take several,
            overlapping by a quarter.
        on_window: Told after each window how many are done, and of how many.

    Returns:
        float32 [X, Y, Z, K].
    """
    size = image.shape[:3]
    padded = np.pad(np.asarray(image, np.float32), [*((0, -n % STRIDE) for n in size), (0, 0)], mode="edge")
    window = [min(n, WHOLE_SCAN_MOST if most is None else most) for n in padded.shape[:3]]
    probs = predict_probs(predict, padded, window, WHOLE_SCAN_OVERLAP, "uniform", on_window=on_window)
    return np.ascontiguousarray(probs[tuple(slice(n) for n in size)])


def _place(start: Sequence[int], window: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(low, low + n) for low, n in zip(start, window, strict=True))
