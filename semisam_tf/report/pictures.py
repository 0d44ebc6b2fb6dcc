"""Cuts through a scan for the report: the grey image as a small PNG, masks as outlines that the page draws over it.

All of it is text, so that it goes into JSON and from there into the page.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import contourpy
import numpy as np
from matplotlib.path import Path as Polyline
from PIL import Image

# A page of ten such images stays below 1 MB.
_MAX_SIDE_PX = 256
# Around the masks: a quarter of their extent, and at least this.
_MARGIN_SHARE, _MARGIN_MM = 0.25, 12.0
# Points of an outline may be left out if it moves by less than this.
_OUTLINE_TOLERANCE_VOX = 0.1

Cut = dict[str, Any]


def cut_through(
    image: np.ndarray,
    masks: Mapping[str, np.ndarray],
    spacing_mm: Sequence[float],
    axis: int,
    index: int,
    name: str,
) -> Cut:
    """One cut, cropped to the masks and some of what is around them; uncropped where no mask has a voxel in it.

    Args:
        image: [X, Y, Z], any intensities.
        masks: Name -> uint8 [X, Y, Z], class of each voxel.
        spacing_mm: Size of a voxel along X, Y, Z.
        axis, index: The cut is across `axis` at this voxel. Of the two other axes the first runs to the right, the
            second upwards.
        name: Shown with the cut.

    Returns:
        JSON-ready values. "name"; "width_mm", "height_mm"; "png": base64; "outlines": mask name -> path in SVG's
        notation, in millimetres, origin at the top left; empty for a mask without a voxel in the cut.
    """
    across, up = (other for other in range(3) if other != axis)
    size_mm = np.array([spacing_mm[up], spacing_mm[across]])
    planes = {key: mask.take(index, axis=axis).T for key, mask in masks.items()}  # [up, across]
    rows, columns = _window(planes, image.take(index, axis=axis).T.shape, size_mm)
    crop = image.take(index, axis=axis).T[rows, columns]
    height_mm, width_mm = np.array(crop.shape) * size_mm
    return {
        "name": name,
        "width_mm": round(float(width_mm), 2),
        "height_mm": round(float(height_mm), 2),
        "png": _png(crop[::-1]),
        "outlines": {key: _outline(plane[rows, columns], size_mm) for key, plane in planes.items()},
    }


def _window(planes: Mapping[str, np.ndarray], shape: Sequence[int], size_mm: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns around the foreground of all planes."""
    foreground = np.zeros(tuple(shape), bool)
    for plane in planes.values():
        foreground |= plane > 0
    found = np.argwhere(foreground)
    if not len(found):
        return slice(0, shape[0]), slice(0, shape[1])
    low, high = found.min(axis=0), found.max(axis=0) + 1
    margin = np.ceil(np.maximum(_MARGIN_SHARE * (high - low), _MARGIN_MM / size_mm)).astype(int)
    low, high = np.maximum(low - margin, 0), np.minimum(high + margin, shape)
    return slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1]))


def _png(plane: np.ndarray) -> str:
    """Grey PNG in base64 of a plane [row, column], first row on top, between its own 0.5 and 99.5 percentiles."""
    low, high = np.percentile(plane, (0.5, 99.5))
    grey = np.clip((plane - low) / max(float(high - low), 1e-6), 0.0, 1.0)
    picture = Image.fromarray(np.round(255.0 * grey).astype(np.uint8))
    # Never enlarged: a browser does that as well.
    picture.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")


def _outline(plane: np.ndarray, size_mm: np.ndarray) -> str:
    """SVG path around each class of a plane [up, across], in millimetres from the top left."""
    height_mm = plane.shape[0] * size_mm[0]
    parts = []
    for k in np.unique(plane[plane > 0]):
        # A rim of background closes the outlines of what reaches the edge.
        inside = np.pad((plane == k).astype(np.float32), 1)
        lines: Any = contourpy.contour_generator(z=inside, line_type="Separate").lines(0.5)
        for line in lines:
            columns, rows = _simplified(line).T
            x, y = (columns - 0.5) * size_mm[1], height_mm - (rows - 0.5) * size_mm[0]
            points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
            parts.append(f"M{points}Z")
    return "".join(parts)


def _simplified(line: np.ndarray) -> np.ndarray:
    """A closed line [n, 2] in voxels without the points that hardly matter."""
    polyline = Polyline(line)
    polyline.should_simplify = True
    polyline.simplify_threshold = _OUTLINE_TOLERANCE_VOX
    cleaned = polyline.cleaned(simplify=True)
    vertices, codes = np.asarray(cleaned.vertices), np.asarray(cleaned.codes)
    return vertices[codes != Polyline.STOP]
