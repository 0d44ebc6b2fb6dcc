"""Boxes around what there is to see, from the image alone: a box around the label would tell where the organ is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from semisam_tf.geometry import resample, resampled_size

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

# The body is looked for on voxels of this size: fine enough for a margin in millimetres, and fast.
_COARSE_MM = 4.0


def crop_box(image: np.ndarray, spacing_mm: Sequence[float], crop: str, margin_mm: float) -> Box:
    """The part of an image to keep.

    Args:
        image: float32 [X, Y, Z, C].
        spacing_mm: Along X, Y, Z.
        crop: "none": all of it. "foreground": what is not padding, which is the most frequent value on the image's
            six faces, exactly. "body": the largest connected piece above Otsu's threshold in any channel.
        margin_mm: Kept around it, as far as the image goes.

    Returns:
        (first, last + 1) along each axis.
    """
    whole: Box = ((0, image.shape[0]), (0, image.shape[1]), (0, image.shape[2]))
    if crop == "none":
        return whole
    if crop == "foreground":
        return _widened(_bounds(_not_padding(image)) or whole, whole, spacing_mm, margin_mm)
    coarse_size = resampled_size(image.shape[:3], spacing_mm, (_COARSE_MM,) * 3)
    # Never finer than the image: that would only cost time.
    size = tuple(min(c, n) for c, n in zip(coarse_size, image.shape, strict=False))
    bounds = _bounds(_body(resample(image, size)))
    if bounds is None:
        return whole
    scale = [n / c for n, c in zip(image.shape, size, strict=False)]
    (x0, x1), (y0, y1), (z0, z1) = (
        (int(np.floor(low * s)), int(np.ceil(high * s))) for (low, high), s in zip(bounds, scale, strict=True)
    )
    return _widened(((x0, x1), (y0, y1), (z0, z1)), whole, spacing_mm, margin_mm)


def slices(box: Box) -> tuple[slice, slice, slice]:
    """The box as an index."""
    x, y, z = (slice(low, high) for low, high in box)
    return x, y, z


def _not_padding(image: np.ndarray) -> np.ndarray:
    """bool [X, Y, Z]: voxels that differ from the padding in any channel."""
    found = np.zeros(image.shape[:3], bool)
    for channel in range(image.shape[-1]):
        values = image[..., channel]
        faces = [values.take(index, axis=axis).ravel() for axis in range(3) for index in (0, -1)]
        levels, counts = np.unique(np.concatenate(faces), return_counts=True)
        found |= values != levels[counts.argmax()]
    return found


def _body(image: np.ndarray) -> np.ndarray:
    """bool [X, Y, Z]: in each channel the largest connected piece above Otsu's threshold, thin parts taken off."""
    found = np.zeros(image.shape[:3], bool)
    for channel in range(image.shape[-1]):
        values = image[..., channel]
        low, high = np.percentile(values, (0.5, 99.5))
        if low == high:
            continue
        # A few bright voxels, metal say, would draw the threshold up.
        bright = sitk.GetArrayFromImage(sitk.OtsuThreshold(sitk.GetImageFromArray(np.clip(values, low, high)), 0, 1))
        # A scanner's table is thin; what is left of the body grows back to its size.
        opened = ndimage.binary_opening(bright)
        pieces, n = ndimage.label(opened if opened.any() else bright)
        if n:
            found |= pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
    return found


def _bounds(found: np.ndarray) -> Box | None:
    """The smallest box around all True voxels; None without any."""
    if not found.any():
        return None
    spans = []
    for axis in range(3):
        where = np.flatnonzero(found.any(axis=tuple(other for other in range(3) if other != axis)))
        spans.append((int(where[0]), int(where[-1]) + 1))
    return spans[0], spans[1], spans[2]


def _widened(box: Box, whole: Box, spacing_mm: Sequence[float], margin_mm: float) -> Box:
    spans = []
    for (low, high), (_, n), spacing in zip(box, whole, spacing_mm, strict=True):
        margin = int(np.ceil(margin_mm / spacing))
        low, high = max(0, low - margin), min(n, high + margin)
        # One slice is no volume.
        high = min(n, max(high, low + 2))
        spans.append((max(0, min(low, high - 2)), high))
    return spans[0], spans[1], spans[2]
