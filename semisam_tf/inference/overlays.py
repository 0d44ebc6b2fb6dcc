"""What the report draws of scans: a few scored cases with truth and predictions, and SAM's targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from semisam_tf.data.volumes import Volume
from semisam_tf.inference.evaluation import best_median_worst
from semisam_tf.inference.metrics import dice
from semisam_tf.inference.outputs import view_of
from semisam_tf.inference.picture import organ_centre_vox
from semisam_tf.report.pictures import Cut, cut_through
from semisam_tf.sam.target import SamTarget

# Of a scan as it is looked at: the axial cut, or the one across the file's last axis, comes first.
_CUT_AXES = (2, 1, 0)


def scored_overlays(
    report: Mapping[str, Any],
    load: Callable[[str], Volume],
    predictions: Mapping[str, Mapping[str, np.ndarray]],
    n_classes: int,
) -> list[dict[str, Any]]:
    """Three cuts through the best, the median and the worst case of an evaluation.

    Args:
        report: As `evaluation.evaluate_cases` returns it.
        load: Case name -> scan with its label.
        predictions: Who ("student", "teacher", "sam") -> case name -> uint8 [X, Y, Z] in the scan's own grid. Not
            everybody has to have something of every case.
        n_classes: With background.

    Returns:
        JSON-ready values for each case: "case_id", "rank", "dice" (by whom; mean over the classes), "cuts" with the
        outlines "truth" and one for everybody who has something of the case.
    """
    overlays = []
    for rank, case_id in best_median_worst(dict(report)):
        volume = load(case_id)
        if volume.label is None:
            raise ValueError(f"Expected case {case_id!r} with its label. Received: none.")
        masks = {who: of[case_id] for who, of in predictions.items() if case_id in of}
        # SAM is silent on slices that were not prompted: a Dice of its mask would say that it is wrong there.
        scores = {who: mean_dice(mask, volume.label, n_classes) for who, mask in masks.items() if who != "sam"}
        masks = {"truth": volume.label, **masks}
        order, names = view_of(volume)
        turned, masks = order.apply_to(volume), {who: order.apply(mask) for who, mask in masks.items()}
        centre = organ_centre_vox(*masks.values())
        cuts = [_cut(turned, masks, axis, centre[axis], names[axis]) for axis in _CUT_AXES]
        overlays.append({"case_id": case_id, "rank": rank, "dice": scores, "cuts": cuts})
    return overlays


def mean_dice(predicted: np.ndarray, truth: np.ndarray, n_classes: int) -> float:
    """Mean over the foreground classes of the Dice of two masks uint8 [X, Y, Z]: "dice" of `metrics.case_metrics`."""
    return float(np.mean([dice(predicted == k, truth == k) for k in range(1, n_classes)]))


def sam_overlay(
    volume: Volume, predicted: np.ndarray, target: SamTarget, *, prompted_by: str, axis: int, channel: int
) -> dict[str, Any]:
    """The slice of an unlabelled scan in which SAM marked most: what prompted it, and what it said.

    Args:
        volume: In the training grid, as SAM saw it.
        predicted: uint8 [X, Y, Z], the prediction that prompted SAM.
        target: SAM's answer.
        prompted_by: "student" or "teacher".
        axis: The cut is across this axis of `volume`.
        channel: Image channel to show.

    Returns:
        JSON-ready values: "case_id"; "prompted_by"; "scores" of the target; "taught_share" and "mean_weight", which
        are of the voxels of this cut; "cuts", one with the outlines `prompted_by` and "sam".
    """
    taught, mask = target.weight > 0, np.argmax(target.probs, axis=-1).astype(np.uint8)
    marked = (mask > 0) & taught
    index = next((_fullest(m, axis) for m in (marked, predicted > 0) if m.any()), volume.size[axis] // 2)
    weight = target.weight.take(index, axis=axis)
    order, names = view_of(volume)
    turned, masks = order.apply_to(volume), {prompted_by: order.apply(predicted), "sam": order.apply(mask)}
    axis_seen = order.permutation.index(axis)
    index_seen = volume.size[axis] - 1 - index if order.flips[axis_seen] else index
    return {
        "case_id": volume.case_id,
        "prompted_by": prompted_by,
        "scores": target.scores,
        "taught_share": float(np.mean(weight > 0)),
        "mean_weight": float(weight[weight > 0].mean()) if (weight > 0).any() else 0.0,
        "cuts": [_cut(turned, masks, axis_seen, index_seen, names[axis_seen], channel)],
    }


def _fullest(mask: np.ndarray, axis: int) -> int:
    """Index along `axis` of the slice with most voxels of a boolean mask."""
    return int(mask.sum(axis=tuple(other for other in range(3) if other != axis)).argmax())


def _cut(volume: Volume, masks: Mapping[str, np.ndarray], axis: int, index: int, name: str, channel: int = 0) -> Cut:
    image = volume.image[..., channel]
    return cut_through(image, masks, volume.spacing_mm, axis, index, f"{name} = {index}")
