"""Which unlabelled scan to label next: where opinions differ most, and what is least like the scans chosen before."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

DISAGREEMENTS = ("student_teacher", "sam_teacher", "uncertainty")


@dataclasses.dataclass(frozen=True)
class Opinion:
    """What is known of a scan without its label.

    Attributes:
        disagreement: Each of `DISAGREEMENTS`, from 0 up: 1 - Dice of student and teacher, 1 - Dice of SAM and teacher
            (not in the ranking without a SAM; None where it was not asked about this scan), and the teacher's mean
            entropy in and around the organ. Infinite where the teacher found nothing.
        features: float64 [F], what the scan looks like.
    """

    disagreement: dict[str, float | None]
    features: np.ndarray


def features_of(image: np.ndarray, mask: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """What a scan looks like: deciles of its intensities, in and outside the predicted organ, and the organ's volume.

    Args:
        image: float32 [X, Y, Z, C], normalised.
        mask: uint8 [X, Y, Z], predicted classes.
        spacing_mm: Size of a voxel.
    """
    deciles = np.linspace(10, 90, 9)
    organ = mask > 0
    parts = [np.percentile(image[..., c][where], deciles) if where.any() else np.zeros(9)
             for c in range(image.shape[-1]) for where in (organ, ~organ)]  # fmt: skip
    return np.concatenate([*parts, [np.log1p(organ.sum() * np.prod(spacing_mm))]])


def mean_entropy(probs: np.ndarray) -> float:
    """Mean entropy in nats over the voxels that are not surely background; probs [X, Y, Z, K]."""
    entropy = -(probs * np.log(np.maximum(probs, 1e-6))).sum(axis=-1)
    near = probs[..., 0] < 0.99
    return float(entropy[near].mean()) if near.any() else 0.0


def order(opinions: Mapping[str, Opinion], labelled: Sequence[np.ndarray]) -> list[tuple[str, float]]:
    """Case names, best first, with the score that each was chosen by.

    A scan's disagreement is the mean of its ranks in each measure that it has, from 0 to 1. The next scan is the one
    with the largest product of disagreement and distance to the nearest scan that is labelled or chosen already, as a
    share of the largest such distance; features are divided by their spread over all scans.

    Args:
        opinions: Case name -> opinion; all with the same measures.
        labelled: Features of the scans that are labelled.
    """
    names = sorted(opinions)
    measures = sorted(opinions[names[0]].disagreement)
    # A scan without a measure has the rank NaN in it and takes no place from the others. None becomes NaN here.
    values = np.array([[opinions[n].disagreement[m] for n in names] for m in measures], np.float64)
    ranks = stats.rankdata(values, axis=1, nan_policy="omit") / (~np.isnan(values)).sum(axis=1, keepdims=True)
    disagreement = np.nanmean(ranks, axis=0)
    features = np.array([opinions[name].features for name in names])
    spread = np.std([*features, *labelled], axis=0)
    scale = np.where(spread > 0, spread, 1.0)
    chosen = [np.asarray(known) for known in labelled]
    left, result = list(range(len(names))), []
    while left:
        apart = np.ones(len(left))
        if chosen:
            apart = np.array([min(np.linalg.norm((features[i] - c) / scale) for c in chosen) for i in left])
            apart = apart / apart.max() if apart.max() > 0 else np.ones(len(left))
        scores = disagreement[left] * apart
        best = int(scores.argmax())
        result.append((names[left[best]], float(scores[best])))
        chosen.append(features[left.pop(best)])
    return result
