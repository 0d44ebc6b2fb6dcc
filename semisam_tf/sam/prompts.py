"""Prompts from predictions, never from labels: boxes, points and mask logits."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

_EIGHT_CONNECTED = np.ones((3, 3), bool)


class ComponentPrompts(NamedTuple):
    """Prompts for the components of one slice, N of each; x runs along columns, y along rows.

    Attributes:
        boxes_vox: int64 [N, 4] as (x first, y first, x last, y last), both ends within.
        points_vox: int64 [N, 2] as (x, y), the innermost voxel of each component.
        too_small: bool [rows, columns], the voxels of components that get no prompt.
    """

    boxes_vox: np.ndarray
    points_vox: np.ndarray
    too_small: np.ndarray


def component_prompts(foreground_mask: np.ndarray, margin_vox: int = 0, min_area_vox: int = 1) -> ComponentPrompts:
    """A box around and a point inside each 8-connected component of a slice's foreground.

    The point is the voxel farthest from the component's border, so that it lies in the organ even where the border
    is wrong (and where the centre of a crescent would not).

    Args:
        foreground_mask: bool [rows, columns], from a prediction.
        margin_vox: Each box is widened by so many voxels on each side, and cut at the slice's border.
        min_area_vox: Components of fewer voxels get no prompt.

    Returns:
        N is 0 for an empty mask. Ordered by the components' first voxels.

    Raises:
        ValueError: The mask is not two-dimensional, or the margin is negative.
    """
    if foreground_mask.ndim != 2 or margin_vox < 0:
        raise ValueError(
            "Expected a mask [rows, columns] and a margin of at least 0. "
            f"Received: shape={foreground_mask.shape}, margin_vox={margin_vox}."
        )
    components, count = ndimage.label(foreground_mask, structure=_EIGHT_CONNECTED)
    areas = np.bincount(components.ravel(), minlength=count + 1)[1:]
    boxes, points = [], []
    for index, (rows, columns) in enumerate(ndimage.find_objects(components)):
        if areas[index] < min_area_vox:
            continue
        boxes.append((columns.start, rows.start, columns.stop - 1, rows.stop - 1))
        # Beyond the slice is border too, hence the padding.
        depth = ndimage.distance_transform_edt(np.pad(components[rows, columns] == index + 1, 1))
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        points.append((columns.start + x - 1, rows.start + y - 1))
    widened = np.array(boxes, np.int64).reshape(-1, 4) + np.array([-1, -1, 1, 1]) * margin_vox
    last_row, last_column = np.array(foreground_mask.shape) - 1
    clipped = np.clip(widened, 0, [last_column, last_row, last_column, last_row])
    too_small = np.concatenate([[False], areas < min_area_vox])[components]
    return ComponentPrompts(clipped, np.array(points, np.int64).reshape(-1, 2), too_small)


def mask_prompt_logits(probs: np.ndarray, limit: float = 10.0) -> np.ndarray:
    """Probabilities -> float32 logits in [-limit, limit], which is what SAM takes as a mask prompt.

    Departs: the published code hands over the probabilities themselves.
    """
    probs = np.asarray(probs, np.float64)
    with np.errstate(divide="ignore"):
        logits = np.log(probs) - np.log1p(-probs)
    return np.clip(logits, -limit, limit).astype(np.float32)
