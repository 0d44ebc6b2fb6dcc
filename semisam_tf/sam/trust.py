"""How far a SAM's answer is to be believed, judged without any label of the scan it is about.

Each trust is in [0, 1]; those that are named are multiplied. By view (slice or window): what SAM says of itself, how
far it agrees with the prediction that prompted it, and with its own answers in the neighbouring slices. By voxel: how
far SAM's answers to perturbed prompts agree. By scan: whether the organ has a size and place that the labelled scans
make likely, and whether SAM is expected to be better than its prompt (`selftest`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from semisam_tf.sam.target import class_dice

NONE = "one"
VIEW_TRUSTS = ("iou", "prediction", "continuity")
VOXEL_TRUSTS = ("agreement",)
SCAN_TRUSTS = ("prior", "selftest")
TRUSTS = (*VIEW_TRUSTS, *VOXEL_TRUSTS, *SCAN_TRUSTS)
# Spread of organs among people, where one or two labelled scans cannot show it: a third of the volume, a tenth of the
# scan's length.
_LEAST_LOG_VOLUME_STD = 0.33
_LEAST_CENTRE_STD = 0.1

Region = tuple[slice, ...]


def parse(names: str) -> tuple[str, ...]:
    """Names of trusts separated by commas; none for "one".

    Raises:
        ValueError: A name that does not exist, or "one" beside others.
    """
    words = tuple(word.strip() for word in names.split(",") if word.strip())
    if words == (NONE,):
        return ()
    if not words or set(words) - set(TRUSTS):
        raise ValueError(
            f"Expected trust {NONE!r} or some of {TRUSTS}, separated by commas. Received: trust={names!r}."
        )
    return words


def view_trust(
    names: Iterable[str],
    view_ious: Mapping[int, Sequence[float]],
    regions: Mapping[int, Region],
    sam_mask: np.ndarray,
    predicted_mask: np.ndarray,
) -> dict[int, float]:
    """Trust of each prompted view.

    Args:
        names: Those of `VIEW_TRUSTS` to multiply; others are passed over.
        view_ious: SAM's predicted IoU of each of a view's masks.
        regions: Where each view lies, in view order.
        sam_mask: uint8, SAM's classes, in view order.
        predicted_mask: uint8, classes of the prediction that prompted it.
    """
    trust = dict.fromkeys(view_ious, 1.0)
    ordered = sorted(view_ious)
    for position, view in enumerate(ordered):
        said = sam_mask[regions[view]]
        if "iou" in names:
            trust[view] *= float(np.clip(view_ious[view], 0, 1).mean())
        if "prediction" in names:
            trust[view] *= class_dice(said, predicted_mask[regions[view]])
        # Windows of a 3D model have no neighbours to lie over.
        if "continuity" in names and len(ordered) > 1 and len(said) == 1:
            beside = [ordered[i] for i in (position - 1, position + 1) if 0 <= i < len(ordered)]
            # The better of two: at its ends an organ has a neighbour on one side only.
            trust[view] *= max(class_dice(said, sam_mask[regions[other]]) for other in beside)
    return trust


def voxel_agreement(masks: np.ndarray, said: np.ndarray) -> np.ndarray:
    """How far answers to perturbed prompts agree voxel by voxel.

    Args:
        masks: float32 [A, X, Y, Z, K], one-hot classes of each answer.
        said: bool [A, X, Y, Z], where each answer says something.

    Returns:
        float32 [X, Y, Z]: 1 where all that say something say the same, 0 where the largest party has half of the votes
        or less, or nobody says anything.

    Reference: SemiSAM+ (arXiv 2502.20749), which takes one number for the batch.
    """
    votes = (masks * said[..., None]).sum(axis=0).max(axis=-1) / np.maximum(said.sum(axis=0), 1)
    return np.maximum(0, 2 * votes - 1).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class OrganPrior:
    """Size and place of each class in the labelled scans.

    Attributes:
        log_volume: float64 [K - 1], mean logarithm of cubic millimetres.
        log_volume_std: Its spread, never below a third of the volume.
        centre: float64 [K - 1, 3], centre of mass as a share of the scan's extent along X, Y, Z.
        centre_std: Its spread, never below a tenth.
    """

    log_volume: np.ndarray
    log_volume_std: np.ndarray
    centre: np.ndarray
    centre_std: np.ndarray

    @classmethod
    def of(cls, labels: Sequence[np.ndarray], spacings_mm: Sequence[Sequence[float]], n_classes: int) -> OrganPrior:
        """Prior from label maps uint8 [X, Y, Z]; a class that a scan does not show is left out there.

        Raises:
            ValueError: A class that no label shows.
        """
        found: list[list[tuple[float, np.ndarray]]] = [
            [
                _size_and_place(label == k, spacing_mm)
                for label, spacing_mm in zip(labels, spacings_mm, strict=True)
                if (label == k).any()
            ]
            for k in range(1, n_classes)
        ]
        absent = [k for k, seen in enumerate(found, start=1) if not seen]
        if absent:
            raise ValueError(
                f"Expected every class in some labelled scan, for the trust 'prior'. Received: none of class {absent}."
            )
        volumes = [np.log([volume for volume, _ in seen]) for seen in found]
        centres = [np.array([centre for _, centre in seen]) for seen in found]
        return cls(
            np.array([values.mean() for values in volumes]),
            np.array([max(values.std(), _LEAST_LOG_VOLUME_STD) for values in volumes]),
            np.array([values.mean(axis=0) for values in centres]),
            np.array([np.maximum(values.std(axis=0), _LEAST_CENTRE_STD) for values in centres]),
        )

    def trust(self, mask: np.ndarray, spacing_mm: Sequence[float]) -> float:
        """exp(-z^2 / 2) of the least likely of size and place, over the classes; 0 for a class that is not there.

        Args:
            mask: uint8 [X, Y, Z], a whole scan's classes.
            spacing_mm: Of its voxels.
        """
        worst = 0.0
        for index in range(len(self.log_volume)):
            organ = mask == index + 1
            if not organ.any():
                return 0.0
            volume, centre = _size_and_place(organ, spacing_mm)
            size = abs(np.log(volume) - self.log_volume[index]) / self.log_volume_std[index]
            place = np.max(np.abs(centre - self.centre[index]) / self.centre_std[index])
            worst = max(worst, float(size), float(place))
        return float(np.exp(-0.5 * worst**2))


def _size_and_place(organ: np.ndarray, spacing_mm: Sequence[float]) -> tuple[float, np.ndarray]:
    """Cubic millimetres, and the centre of mass as a share of the extent."""
    where = np.argwhere(organ)
    return float(len(where) * np.prod(spacing_mm)), (where.mean(axis=0) + 0.5) / organ.shape
