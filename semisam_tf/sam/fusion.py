"""From what SAM says and what the network says to the target that the student learns."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from semisam_tf.sam.target import SamTarget

FUSIONS = ("sam", "mean")


def fuse(
    target: SamTarget, class_probs: np.ndarray, how: str, smoothing_vox: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """The student's target for one scan or crop.

    Args:
        target: What SAM says.
        class_probs: float32 [X, Y, Z, K], the prediction that prompted it.
        how: "sam": SAM's classes, one-hot, where it says something (the paper). "mean": the mean of both probabilities,
            each weighted by its trust: SAM's by the target's weight, the network's by 1; where SAM says nothing the
            network's own probabilities are the target.
        smoothing_vox: Standard deviation of the Gaussian that smooths the probabilities of "mean".

    Returns:
        probs float32 [X, Y, Z, K], weight float32 [X, Y, Z] in [0, 1].
    """
    if how not in FUSIONS:
        raise ValueError(f"Expected fusion of {FUSIONS}. Received: how={how!r}.")
    if how == "sam":
        return np.eye(class_probs.shape[-1], dtype=np.float32)[target.probs.argmax(axis=-1)], target.weight
    share = (target.weight / (1 + target.weight))[..., None]
    probs = (1 - share) * class_probs + share * target.soft
    if smoothing_vox > 0:
        probs = ndimage.gaussian_filter(probs, [smoothing_vox] * 3 + [0], truncate=3.0)
    return probs.astype(np.float32), np.ones(class_probs.shape[:3], np.float32)
