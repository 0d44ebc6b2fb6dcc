"""Overlap and surface distance of two masks, in millimetres.

Reference: MedPy 0.5 (`medpy.metric.binary`), which the papers score with: surfaces are the voxels that a face-connected
erosion takes away (the edge of the array counts as background), distances run between voxel centres.
Departs: MedPy raises on an empty mask, and the published code then scores a distance of 0. Here the distances of a pair
with an empty mask do not exist (None) and enter no mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

METRICS = ("dice", "jaccard", "hd95_mm", "asd_mm", "assd_mm")

Scores = dict[str, float | None]


def dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) of two boolean masks; 1 if both are empty."""
    size = int(np.count_nonzero(predicted)) + int(np.count_nonzero(truth))
    return 2 * int(np.count_nonzero(predicted & truth)) / size if size else 1.0


def jaccard(predicted: np.ndarray, truth: np.ndarray) -> float:
    """|A and B| / |A or B| of two boolean masks; 1 if both are empty."""
    union = int(np.count_nonzero(predicted | truth))
    return int(np.count_nonzero(predicted & truth)) / union if union else 1.0


def surface_distances_mm(
    predicted: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Distance of each surface voxel to the nearest surface voxel of the other mask.

    Args:
        predicted, truth: bool [X, Y, Z].
        spacing_mm: Size of a voxel along X, Y, Z.

    Returns:
        float64 distances of the prediction's surface voxels to the truth's, and the other way; None if a mask is empty.
    """
    if not predicted.any() or not truth.any():
        return None
    # Nothing outside the box around both masks can change a surface or a nearest voxel.
    (box,) = ndimage.find_objects((predicted | truth).astype(np.uint8))
    predicted, truth = predicted[box], truth[box]
    predicted_surface = predicted & ~ndimage.binary_erosion(predicted)
    truth_surface = truth & ~ndimage.binary_erosion(truth)
    to_truth = ndimage.distance_transform_edt(~truth_surface, sampling=spacing_mm)[predicted_surface]
    to_predicted = ndimage.distance_transform_edt(~predicted_surface, sampling=spacing_mm)[truth_surface]
    return to_truth, to_predicted


def mask_metrics(predicted: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float]) -> Scores:
    """Scores one predicted mask.

    Args:
        predicted, truth: bool [X, Y, Z].
        spacing_mm: Size of a voxel along X, Y, Z.

    Returns:
        dice, jaccard: in [0, 1].
        hd95_mm: 95th percentile of the surface distances of both directions, pooled.
        asd_mm: Mean surface distance from the prediction to the truth (directed).
        assd_mm: Mean of the two directed means.
        The three distances are None if either mask is empty; dice and jaccard are then 0, or 1 if both are.

    Raises:
        ValueError: Shapes differ, or the spacing is not three positive numbers.
    """
    if predicted.shape != truth.shape or predicted.ndim != 3:
        raise ValueError(
            "Expected two masks [X, Y, Z] of one shape. "
            f"Received: predicted.shape={predicted.shape}, truth.shape={truth.shape}."
        )
    if len(spacing_mm) != 3 or min(spacing_mm) <= 0:
        raise ValueError(f"Expected three positive sizes in mm. Received: spacing_mm={tuple(spacing_mm)}.")
    scores: Scores = {"dice": dice(predicted, truth), "jaccard": jaccard(predicted, truth)}
    distances = surface_distances_mm(predicted, truth, spacing_mm)
    if distances is None:
        return {**scores, "hd95_mm": None, "asd_mm": None, "assd_mm": None}
    to_truth, to_predicted = distances
    scores["hd95_mm"] = float(np.percentile(np.concatenate(distances), 95))
    scores["asd_mm"] = float(to_truth.mean())
    scores["assd_mm"] = float((to_truth.mean() + to_predicted.mean()) / 2)
    return scores


def case_metrics(
    predicted: np.ndarray, truth: np.ndarray, spacing_mm: Sequence[float], n_classes: int
) -> dict[str, Any]:
    """Scores one case.

    Args:
        predicted, truth: uint8 [X, Y, Z], class of each voxel, 0 is background.
        spacing_mm: Size of a voxel along X, Y, Z.
        n_classes: Classes, background included.

    Returns:
        `mask_metrics` of the foreground. With more than two classes: each metric's mean over the foreground classes
        (a class without distances is left out of their means), and under "classes" the scores by class, keyed "1",
        "2" and so on.

    Raises:
        ValueError: A voxel of a class that does not exist; shapes or spacing as in `mask_metrics`.
    """
    for name, mask in (("predicted", predicted), ("truth", truth)):
        if mask.size and int(mask.max()) >= n_classes:
            raise ValueError(
                f"Expected classes below n_classes={n_classes}; raise --n_classes or correct the file. "
                f"Received: {name}.max()={int(mask.max())}."
            )
    scores = {str(k): mask_metrics(predicted == k, truth == k, spacing_mm) for k in range(1, n_classes)}
    if n_classes == 2:
        return dict(scores["1"])
    means = {metric: mean([s[metric] for s in scores.values()]) for metric in METRICS}
    return {**means, "classes": scores}


def mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that exist; None if none does."""
    present = [v for v in values if v is not None]
    return float(np.mean(present)) if present else None


def std(values: Sequence[float | None]) -> float | None:
    """Population standard deviation of the values that exist; None if none does."""
    present = [v for v in values if v is not None]
    return float(np.std(present)) if present else None
