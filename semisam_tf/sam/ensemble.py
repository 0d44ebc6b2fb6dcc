"""Several questions about one scan, and one answer: axes, margins and SAMs fused, and how far to trust the whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from semisam_tf.sam.branch import SamBranch
from semisam_tf.sam.target import SamTarget, class_dice
from semisam_tf.sam.trust import OrganPrior, voxel_agreement


class SamEnsemble:
    """Asks each of its branches and fuses what they say.

    A voxel's probabilities are the mean of the branches' `soft`, weighted by how far each is trusted there; its weight
    is the mean of those trusts over the branches that say something, times the agreement of their masks (trust
    "agreement") and the scan's likeness to the labelled ones (trust "prior").

    Args:
        branches: One for each combination of model, axis and margin; of one or more `SamSession`s.
        prior: Size and place of the organs in the labelled scans; needed where `trust` names "prior".
        trusts: Names from `trust.parse`; the branches see to those of single views themselves.

    Raises:
        ValueError: No branch, or no prior where one is needed.
    """

    def __init__(
        self,
        branches: Sequence[SamBranch],
        trusts: Sequence[str] = (),
        prior: OrganPrior | None = None,
    ) -> None:
        if not branches or ("prior" in trusts and prior is None):
            raise ValueError(
                "Expected at least one branch, and an OrganPrior where trust names 'prior'. Received: "
                f"{len(branches)} branches, trusts={tuple(trusts)}, prior={prior}."
            )
        self.branches, self.trusts = list(branches), tuple(trusts)
        self.prior = prior
        # Agreement of SAM with the prediction -> trust; the self-test's, which needs this object to be made.
        self.scan_trust: Callable[[float], float] = lambda agreement: 1.0

    def counts(self) -> dict[str, int]:
        """Work of all models so far, as `SamSession.counts`."""
        sessions = {id(branch.session): branch.session for branch in self.branches}
        counts = [session.counts() for session in sessions.values()]
        return {name: sum(count[name] for count in counts) for name in counts[0]}

    def target(
        self,
        image: np.ndarray,
        class_probs: np.ndarray,
        key: str | None = None,
        rng: np.random.Generator | None = None,
        spacing_mm: Sequence[float] | None = None,
    ) -> SamTarget:
        """The fused target; arguments as `SamBranch.target`.

        Returns:
            `probs` and `soft` are the same, the mean of the branches. `scores` are the branches' means, with
            "agreement" that of the fused mask with the prediction.
        """
        answers = [branch.target(image, class_probs, key, rng, spacing_mm) for branch in self.branches]
        weights = np.stack([answer.weight for answer in answers])
        total, said = weights.sum(axis=0), (weights > 0).sum(axis=0)
        soft = sum(answer.soft * weight[..., None] for answer, weight in zip(answers, weights, strict=True))
        probs = np.where(total[..., None] > 0, soft / np.maximum(total, 1e-12)[..., None], 0).astype(np.float32)
        probs[..., 0] = np.where(total > 0, probs[..., 0], 1)
        weight = total / np.maximum(said, 1)
        if "agreement" in self.trusts and len(answers) > 1:
            weight = weight * voxel_agreement(np.stack([answer.probs for answer in answers]), weights > 0)
        fused_mask = probs.argmax(axis=-1).astype(np.uint8)
        if "prior" in self.trusts and self.prior is not None:
            if spacing_mm is None:
                raise ValueError("Expected spacing_mm for the trust 'prior'. Received: None.")
            weight = weight * np.float32(self.prior.trust(_whole_mask(fused_mask, weight, class_probs), spacing_mm))
        weight = weight.astype(np.float32)
        scores = {name: float(np.mean([answer.scores[name] for answer in answers])) for name in answers[0].scores}
        trusted = weight > 0
        predicted = class_probs.argmax(axis=-1)
        scores["agreement"] = class_dice(fused_mask[trusted], predicted[trusted]) if trusted.any() else 0.0
        weight *= np.float32(self.scan_trust(scores["agreement"]))
        trusted = weight > 0
        scores["weighted_share"] = float(np.mean(trusted))
        scores["mean_weight"] = float(weight[trusted].mean(dtype=np.float64)) if trusted.any() else 0.0
        return SamTarget(probs, weight, scores, probs)


def _whole_mask(fused_mask: np.ndarray, weight: np.ndarray, class_probs: np.ndarray) -> np.ndarray:
    """SAM's mask where it says something, the prediction's elsewhere: what SAM was not asked about has a size, too."""
    return np.where(weight > 0, fused_mask, class_probs.argmax(axis=-1).astype(np.uint8))
