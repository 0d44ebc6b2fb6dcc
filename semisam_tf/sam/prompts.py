"""Prompts from predictions, never from labels: which kinds, and boxes, points and mask logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from semisam_tf.sam.decoder_inputs import refuse_unsupported
from semisam_tf.sam.manifest import Manifest
from semisam_tf.sam.manifest_rules import PROMPT_KINDS

AUTO = "auto"


class ComponentPrompts(NamedTuple):
    """Prompts for the components of one mask, N of each; positions are along the mask's axes.

    Attributes:
        boxes_vox: int64 [N, 2, dims], first and last corner, both within.
        points_vox: int64 [N, p, dims], voxels of the component, the innermost first.
        components: int32, the mask's shape: i + 1 where component i is, 0 elsewhere.
        too_small: bool, the mask's shape: the voxels of components that get no prompt.
    """

    boxes_vox: np.ndarray
    points_vox: np.ndarray
    components: np.ndarray
    too_small: np.ndarray


def prompt_kinds(manifest: Manifest, wanted: str = AUTO) -> tuple[str, ...]:
    """Kinds of prompts to make from a prediction.

    Args:
        manifest: The model's.
        wanted: "auto": a box if the model knows boxes, else a point, else the mask. Or some of "box", "point" and
            "mask", separated by commas.

    Raises:
        ValueError: A kind that does not exist, that the model does not support (the message says why), or that its
            decoder cannot do without and that is not among them.
    """
    inputs = manifest.decoder_inputs
    needed = [
        kind
        for kind, needs in {"box": "boxes" in inputs, "mask": "masks" in inputs and "has_masks" not in inputs}.items()
        if needs
    ]
    if wanted == AUTO:
        kinds = needed or [kind for kind in PROMPT_KINDS if manifest.prompts[kind]][:1]
    else:
        kinds = [part.strip() for part in wanted.split(",") if part.strip()]
    if not kinds or set(kinds) - set(PROMPT_KINDS):
        raise ValueError(f"Expected prompts as 'auto' or some of {PROMPT_KINDS}. Received: {wanted!r}.")
    for kind in kinds:
        refuse_unsupported(manifest, kind)
    if not set(needed) <= set(kinds):
        raise ValueError(
            f"Expected {needed} among the prompts: the decoder of {manifest.family} does not run without. "
            f"Received: {wanted!r}."
        )
    return tuple(kind for kind in PROMPT_KINDS if kind in kinds)


def component_prompts(
    foreground_mask: np.ndarray,
    uncertainty: np.ndarray | None = None,
    margin_vox: int = 0,
    min_area_vox: int = 1,
    n_points: int = 1,
    spacing: Sequence[float] | None = None,
) -> ComponentPrompts:
    """A box around and points inside each component of a mask; voxels that touch at a corner are of one component.

    The first point is the voxel farthest from the component's border, so that it lies in the organ even where the
    border is wrong (and where the centre of a crescent would not). Each further one is farthest from the border and
    from the points before, whichever is nearer. Of equal voxels the first counts.

    With `uncertainty` all this is done to that half of a component which is least uncertain, so that no click is where
    the prediction only may be right. SemiSAM+ describes points of low uncertainty; its published code reduces the
    uncertainty of a batch to one number, which then cancels out.

    Args:
        foreground_mask: bool [rows, columns] or [X, Y, Z], from a prediction.
        uncertainty: Of each voxel, the larger the less sure, in any unit; None to go by the border alone.
        margin_vox: Each box is widened by so many voxels on each side, and cut at the mask's border.
        min_area_vox: Components of fewer voxels get no prompt.
        n_points: Points in each component, at least 1; where there are fewer voxels to click the first is repeated.
        spacing: Size of a voxel along each axis, for the distances; None for cubes.

    Returns:
        N is 0 for an empty mask. Ordered by the components' first voxels.

    Raises:
        ValueError: The mask is of another rank, the uncertainty of another shape, the margin is negative, or there are
            to be no points.
    """
    dims = foreground_mask.ndim
    if uncertainty is not None and uncertainty.shape != foreground_mask.shape:
        raise ValueError(f"Expected uncertainty of shape {foreground_mask.shape}. Received: {uncertainty.shape}.")
    if dims not in (2, 3) or margin_vox < 0 or n_points < 1:
        raise ValueError(
            "Expected a mask [rows, columns] or [X, Y, Z], a margin of at least 0 and at least 1 point. "
            f"Received: shape={foreground_mask.shape}, margin_vox={margin_vox}, n_points={n_points}."
        )
    labels, count = ndimage.label(foreground_mask, structure=np.ones((3,) * dims, bool))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    boxes, points = [], []
    for index, place in enumerate(ndimage.find_objects(labels)):
        if areas[index] < min_area_vox:
            continue
        boxes.append([[part.start for part in place], [part.stop - 1 for part in place]])
        clicked = labels[place] == index + 1
        if uncertainty is not None:
            # "lower": a value that one of the voxels has, so that there is one to click.
            clicked &= uncertainty[place] <= np.quantile(uncertainty[place][clicked], 0.5, method="lower")
        inner = _innermost(clicked, n_points, spacing)
        points.append(inner + boxes[-1][0])
    widened = np.array(boxes, np.int64).reshape(-1, 2, dims) + np.array([[-1], [1]]) * margin_vox
    clipped = np.clip(widened, 0, np.array(foreground_mask.shape) - 1)
    large = np.concatenate([[False], areas >= min_area_vox])
    components = np.where(large, np.cumsum(large), 0).astype(np.int32)[labels]
    too_small = (components == 0) & (labels > 0)
    return ComponentPrompts(clipped, np.array(points, np.int64).reshape(-1, n_points, dims), components, too_small)


def _innermost(component: np.ndarray, n_points: int, spacing: Sequence[float] | None) -> np.ndarray:
    """int64 [n_points, dims], voxels of a component, or of the part of it that may be clicked, in its array."""
    # Beyond the array is border too, hence the padding.
    room = ndimage.distance_transform_edt(np.pad(component, 1), sampling=spacing)
    room = room[(slice(1, -1),) * component.ndim]
    scale = np.ones(component.ndim) if spacing is None else np.asarray(spacing, np.float64)
    points: list[np.ndarray] = []
    for _ in range(n_points):
        # No room is left where all voxels are points already.
        best = np.array(np.unravel_index(room.argmax(), room.shape), np.int64)
        points.append(best if room.max() > 0 else points[0])
        if len(points) < n_points:
            offsets = (np.indices(room.shape).T - points[-1]) * scale
            room = np.minimum(room, np.linalg.norm(offsets, axis=-1).T)
    return np.array(points)


def mask_prompt_logits(probs: np.ndarray, limit: float = 10.0) -> np.ndarray:
    """Probabilities -> float32 logits in [-limit, limit], which is what SAM takes as a mask prompt.

    Departs: the published code hands over the probabilities themselves.
    """
    probs = np.asarray(probs, np.float64)
    with np.errstate(divide="ignore"):
        logits = np.log(probs) - np.log1p(-probs)
    return np.clip(logits, -limit, limit).astype(np.float32)
