"""Before training: on the labelled scans, how good are SAM's targets for prompts of known quality?

A label is spoilt in ways that a network's prediction may be, more and more, SAM is prompted with the result, and what
would be taught is made of its answer. Where the target's Dice over the prompt's Dice falls below the diagonal, SAM has
nothing more to teach. It takes labels of labelled scans only, and one scan is enough.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage, optimize, special

from semisam_tf.sam.ensemble import SamEnsemble
from semisam_tf.sam.fusion import fuse
from semisam_tf.sam.target import class_dice

# How far borders are moved, as a share of the organ's equivalent radius.
SPOILS = (0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)
DRAWS = 2
# A gain in Dice from here on has full trust, and the same loss none.
_SURE_GAIN = 0.05


@dataclasses.dataclass(frozen=True)
class Point:
    """One prompt: Dice with the label, over the whole scan as a prediction is judged, of the spoilt mask and of what
    SAM makes the student learn instead; and Dice of the mask with SAM's answer where that says something.
    """

    case_id: str
    spoil: float
    prompt_dice: float
    target_dice: float
    agreement: float


@dataclasses.dataclass(frozen=True)
class SelfTest:
    """What the self-test found.

    Attributes:
        points: All prompts, at least two.
    """

    points: tuple[Point, ...]

    def gain(self, prompt_dice: float) -> float:
        """Expected Dice of the target less that of the prompt, for a prompt of a given Dice; falls with it."""
        ordered = sorted(self.points, key=lambda point: point.prompt_dice)
        known = np.array([point.prompt_dice for point in ordered])
        gains = np.array([point.target_dice - point.prompt_dice for point in ordered])
        fitted = optimize.isotonic_regression(gains, increasing=False).x
        return float(np.interp(prompt_dice, known, fitted))

    def estimated_dice(self, agreement: float) -> float:
        """Expected Dice of a prediction with the truth, from its Dice with SAM's answer to it; takes no label."""
        ordered = sorted(self.points, key=lambda point: point.agreement)
        known = np.array([point.agreement for point in ordered])
        fitted = optimize.isotonic_regression([point.prompt_dice for point in ordered]).x
        return float(np.interp(agreement, known, fitted))

    def trust(self, agreement: float) -> float:
        """How far to trust SAM on a scan where it and the prediction agree so far, in [0, 1].

        1 where SAM is expected to be better by a Dice of 0.05 or more, 0 where it is expected to be as much worse.
        """
        gain = self.gain(self.estimated_dice(agreement))
        return float(np.clip((gain + _SURE_GAIN) / (2 * _SURE_GAIN), 0, 1))

    @property
    def crossing(self) -> float:
        """The Dice up to which SAM's targets beat their prompts; 0 if they never do, at most what was tried."""
        tried = np.linspace(0, self.best_tried, 401)
        better = [d for d in tried if self.gain(d) > 0]
        return float(max(better, default=0.0))

    @property
    def best_tried(self) -> float:
        """Dice of the best prompt."""
        return max(point.prompt_dice for point in self.points)

    def verdict(self) -> str:
        """One line for people."""
        n = len({point.case_id for point in self.points})
        basis = f"(self-test: {len(self.points)} spoilt masks of {n} labelled scan{'s' if n > 1 else ''})"
        if self.crossing == 0:
            return f"SAM does not help on your data: what it teaches is worse than its prompts {basis}."
        if self.crossing == self.best_tried:
            return f"SAM helps on your data up to a Dice of {self.crossing:.2f} at least, the best tried {basis}."
        return f"SAM helps on your data until the student reaches a Dice of about {self.crossing:.2f} {basis}."

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "verdict": self.verdict(),
            "crossing": self.crossing,
            "points": [dataclasses.asdict(point) for point in self.points],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SelfTest:
        """Inverse of `to_dict`."""
        return cls(tuple(Point(**point) for point in values["points"]))


def spoilt(
    label: np.ndarray, n_classes: int, spacing_mm: Sequence[float], spoil: float, rng: np.random.Generator
) -> np.ndarray:
    """A label as a poor network would predict it: its borders moved in and out by smooth random distances.

    Args:
        label: uint8 [X, Y, Z].
        n_classes: Classes with background.
        spacing_mm: Size of a voxel.
        spoil: Standard deviation of the distances, and of their mean over the organ, as a share of the radius of a ball
            of the organ's volume. Distances vary over as much.
        rng: Source of all randomness.

    Returns:
        float32 [X, Y, Z, K], summing to 1; the organ's border is a voxel wide.
    """
    spacing = np.asarray(spacing_mm, np.float64)
    shares = np.zeros((*label.shape, n_classes), np.float32)
    for k in range(1, n_classes):
        organ = label == k
        if not organ.any():
            continue
        radius_mm = (0.75 * organ.sum() * np.prod(spacing) / np.pi) ** (1 / 3)
        inside = ndimage.distance_transform_edt(organ, sampling=spacing)
        outside = ndimage.distance_transform_edt(~organ, sampling=spacing)
        field = ndimage.gaussian_filter(rng.standard_normal(label.shape), radius_mm / 2 / spacing)
        field = field / max(float(field.std()), 1e-12) + rng.standard_normal()
        moved_mm = inside - outside + spoil * radius_mm * field
        shares[..., k] = special.expit(4 * moved_mm / spacing.min())
    total = shares.sum(axis=-1, keepdims=True)
    shares /= np.maximum(total, 1)
    shares[..., 0] = np.maximum(0, 1 - shares.sum(axis=-1))
    return shares


def run_selftest(
    ensemble: SamEnsemble,
    scans: Sequence[tuple[str, np.ndarray, np.ndarray, Sequence[float]]],
    n_classes: int,
    seed: int,
    fusion: str = "sam",
    smoothing_vox: float = 0.0,
) -> SelfTest:
    """Prompts SAM with spoilt labels.

    Args:
        ensemble: As it will teach, without the trust that this test is to give.
        scans: Name, image float32 [X, Y, Z, C], label uint8 [X, Y, Z] and spacing_mm of each labelled scan.
        n_classes: Classes with background; Dice is the mean over them.
        seed: Of the spoiling.
        fusion, smoothing_vox: What is made of SAM's answer, as `fuse` takes them. Where nothing is taught the prompt
            stands: a student keeps what it thinks there.

    Raises:
        ValueError: No spoilt mask got an answer.
    """
    points = []
    for number, (case_id, image, label, spacing_mm) in enumerate(scans):
        for spoil, draw in ((spoil, draw) for spoil in SPOILS for draw in range(DRAWS)):
            rng = np.random.default_rng([seed, number, draw, int(1000 * spoil)])
            prompt = spoilt(label, n_classes, spacing_mm, spoil, rng)
            said = ensemble.target(image, prompt, key=case_id, rng=rng, spacing_mm=spacing_mm)
            trusted = said.weight > 0
            if not trusted.any():
                continue
            probs, weight = fuse(said, prompt, fusion, smoothing_vox)
            asked, answer = prompt.argmax(axis=-1), said.probs.argmax(axis=-1)
            learnt = np.where(weight > 0, probs.argmax(axis=-1), asked)
            agreement = class_dice(answer[trusted], asked[trusted])
            points.append(Point(case_id, spoil, class_dice(asked, label), class_dice(learnt, label), agreement))
    if len(points) < 2:
        raise ValueError(
            f"Expected SAM to answer spoilt masks of the labelled scans. Received: {len(points)} answers; the organ "
            "may be too small for --sam_min_area_vox, or --sam_slice_step too large."
        )
    return SelfTest(tuple(points))
