"""Scores predictions of whole cases on the data's own grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from semisam_tf.data.volumes import Volume
from semisam_tf.inference import metrics

# A scan as stored -> uint8 [X, Y, Z] class of each voxel, in the scan's own grid.
PredictVolume = Callable[[Volume], np.ndarray]


def largest_component(mask: np.ndarray) -> np.ndarray:
    """Keeps the largest connected piece of each class; the rest becomes background.

    Args:
        mask: uint8 [X, Y, Z].

    Returns:
        uint8 [X, Y, Z]. Pieces connect over faces, edges and corners; of equal pieces the first in array order stays.

    Reference: `getLargestCC` of UA-MT, for more than one class.
    """
    kept = np.zeros_like(mask)
    for k in np.unique(mask[mask > 0]):
        pieces, sizes = _pieces(mask == k)
        kept[pieces == sizes.argmax()] = k
    return kept


def large_pieces(mask: np.ndarray, smallest_share: float) -> np.ndarray:
    """Where a class has its largest connected piece, or one of at least that share of its voxels.

    Args:
        mask: uint8 [X, Y, Z].
        smallest_share: In (0, 1].

    Returns:
        bool [X, Y, Z]; False in the background.
    """
    kept = np.zeros(mask.shape, bool)
    for k in np.unique(mask[mask > 0]):
        pieces, sizes = _pieces(mask == k)
        kept |= (sizes >= smallest_share * sizes.max())[pieces]
    return kept


def _pieces(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of each voxel's connected piece, and the pieces' sizes in voxels; 0 is what is not in the mask."""
    pieces, _ = ndimage.label(mask, structure=np.ones((3, 3, 3), int))
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return pieces, sizes


def without_islands(probs: np.ndarray, smallest_share: float) -> np.ndarray:
    """Probabilities in which a class is out of the question in small pieces of its mask, away from its largest.

    More careful than `largest_component`: of a prediction that has fallen in two it is not known which half is wrong.

    Args:
        probs: float32 [X, Y, Z, K] summing to 1.
        smallest_share: Pieces stay that have at least this share of the largest piece's voxels.

    Returns:
        float32 [X, Y, Z, K]: in the pieces that do not stay the other classes share what theirs had.
    """
    mask = probs.argmax(axis=-1).astype(np.uint8)
    lost = (mask > 0) & ~large_pieces(mask, smallest_share)
    others = np.where(np.eye(probs.shape[-1], dtype=bool)[mask[lost]], 0, probs[lost])
    total = others.sum(axis=-1, keepdims=True)
    result = probs.copy()
    result[lost] = np.where(total > 0, others / np.maximum(total, 1e-30), np.eye(probs.shape[-1])[0])
    return result


def evaluate_cases(
    predict_volume: PredictVolume,
    load: Callable[[str], Volume],
    case_ids: Sequence[str],
    n_classes: int,
    on_case: Callable[[Volume, np.ndarray, dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Predicts and scores cases, one in memory at a time.

    Args:
        predict_volume: The model.
        load: Case name -> scan with its label.
        case_ids: Names of the cases.
        n_classes: Classes, background included.
        on_case: Told each case as it is done: scan, predicted mask uint8 [X, Y, Z], its entry of "cases".

    Returns:
        JSON-ready values. "cases": one entry per case, "case_id" and the metrics of `metrics.case_metrics`. "mean" and
        "std" (population): over the cases, distances that do not exist left out; None where none exists. "n_empty":
        predicted masks without a voxel, counted per class. With more than two classes also "classes": by class "mean",
        "std" and "n_empty".

    Raises:
        ValueError: No cases, a case without label, or a mask that is not on the scan's grid; the case is named.
    """
    if not case_ids:
        raise ValueError("Expected at least one case to evaluate. Received an empty list; check --cases.")
    cases: list[dict[str, Any]] = []
    empty = dict.fromkeys((str(k) for k in range(1, n_classes)), 0)
    for case_id in case_ids:
        volume = load(case_id)
        if volume.label is None:
            raise ValueError(f"Case {case_id!r} has no label to score against; take it out of --cases.")
        mask = predict_volume(volume)
        if mask.shape != volume.label.shape:
            raise ValueError(
                f"Expected a mask on the scan's own grid {volume.label.shape} of case {case_id!r}. "
                f"Received: mask.shape={mask.shape}."
            )
        for k in range(1, n_classes):
            empty[str(k)] += not np.any(mask == k)
        cases.append({"case_id": case_id, **metrics.case_metrics(mask, volume.label, volume.spacing_mm, n_classes)})
        if on_case is not None:
            on_case(volume, mask, cases[-1])
    report = {"cases": cases, **_summary(cases), "n_empty": sum(empty.values())}
    if n_classes > 2:
        report["classes"] = {
            k: {**_summary([case["classes"][k] for case in cases]), "n_empty": empty[k]} for k in empty
        }
    return report


def _summary(entries: Sequence[dict[str, Any]]) -> dict[str, dict[str, float | None]]:
    columns = {name: [entry[name] for entry in entries] for name in metrics.METRICS}
    return {
        "mean": {name: metrics.mean(values) for name, values in columns.items()},
        "std": {name: metrics.std(values) for name, values in columns.items()},
    }


def best_median_worst(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The cases worth a look: [("best", case_id), ("median", ...), ("worst", ...)] by Dice; fewer if there are fewer.

    Of equal Dice the first in the list counts as better. Of an even number the median is the better of the middle two.
    """
    ranked = sorted(report["cases"], key=lambda case: -case["dice"])
    last = len(ranked) - 1
    places = {0: "best", last // 2: "median", last: "worst"} if last >= 2 else {0: "best", last: "worst"}
    if last == 0:
        places = {0: "only"}
    return [(name, ranked[index]["case_id"]) for index, name in sorted(places.items())]
