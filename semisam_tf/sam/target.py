"""What the SAM branch says of one scan or crop."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class SamTarget:
    """SAM's masks as a target for the student.

    Attributes:
        probs: float32 [X, Y, Z, K], over the classes (0 is background); background where SAM said nothing. One-hot from
            a single branch, the mean of its branches' `soft` from several.
        weight: float32 [X, Y, Z] in [0, 1], how far to trust `probs`; 0 means that the student ignores the voxel.
        scores: Numbers the target was judged by:
            "slices_prompted", "prompts": how many slices (or windows) and prompts the target is from;
            "weighted_share": share of voxels with a weight above 0; "mean_weight": mean weight over those voxels;
            "predicted_iou": mean of SAM's own opinion of its masks;
            "agreement": Dice of SAM's classes and the prediction's where the weight is above 0 (`class_dice`).
            The last three are 0 where there is nothing to take them over.
        soft: float32 [X, Y, Z, K], the probabilities that SAM's logits stand for: the sigmoid of the surest class's
            logit above the threshold, the rest background.
    """

    probs: np.ndarray
    weight: np.ndarray
    scores: dict[str, float]
    soft: np.ndarray

    @classmethod
    def silent(cls, shape: tuple[int, ...]) -> SamTarget:
        """What a SAM says that was not asked: background with weight 0, for probabilities of `shape` [X, Y, Z, K]."""
        probs = np.zeros(shape, np.float32)
        probs[..., 0] = 1
        return cls(probs, np.zeros(shape[:3], np.float32), {}, probs)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice of two boolean masks, in [0, 1]; two empty masks agree wholly."""
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2 * int(np.count_nonzero(a & b)) / total if total else 1.0


def class_dice(a: np.ndarray, b: np.ndarray) -> float:
    """Mean Dice over the classes but background that either of two masks shows; two empty masks agree wholly.

    Of two organs that are taken for each other the foregrounds agree, and the classes do not.

    Args:
        a, b: Classes, whole numbers of one shape.
    """
    shown = np.union1d(np.unique(a), np.unique(b))
    return float(np.mean([dice(a == k, b == k) for k in shown if k])) if shown.any() else 1.0
