"""Numbers that change with the step: ramps, learning rate, EMA decay, entropy threshold. Plain Python floats.

Reference: SemiSAM (arXiv 2312.06316) and UA-MT (arXiv 1907.07034), values from shared/FACTS.md section 1.
"""

from __future__ import annotations

import math

# The published code ramps in units of 150 iterations, 40 units long; we keep the 40 levels and scale their length.
RAMP_LEVELS = 40


def sigmoid_rampup(current: float, length: float) -> float:
    """exp(-5 (1 - current/length)^2) with `current` held within [0, length]; 1 when `length` is 0."""
    if length == 0:
        return 1.0
    phase = 1.0 - min(max(current, 0.0), length) / length
    return math.exp(-5.0 * phase * phase)


def stepped_rampup(step: int, ramp_steps: int) -> float:
    """`sigmoid_rampup` in 40 equal stairs over `ramp_steps` steps (6000 gives the paper's `t // 150` of 40)."""
    if ramp_steps <= 0:
        return 1.0
    return sigmoid_rampup(max(step, 0) * RAMP_LEVELS // ramp_steps, RAMP_LEVELS)


def ema_decay(step: int, longest: float, warmup: float = 1.0) -> float:
    """Decay of the teacher's moving average at `step` (0-based): min(1 - W/(t+W), longest). 0 copies the student.

    Until it is as long as `longest`, the teacher is the mean of all students so far, each weighted by its step to the
    power W - 1 or so (polynomial-decay averaging, Shamir and Zhang 2013): W = 1, the paper's, weighs the first, which
    know nothing, as much as the last.
    """
    return min(1.0 - warmup / (step + warmup), longest)


def entropy_threshold(step: int, max_steps: int, n_classes: int) -> float:
    """UA-MT keeps voxels whose entropy (nats) lies below (0.75 + 0.25 ramp) ln K.

    Departs: the published code writes ln 2; ln K is the same for two classes and right for more.
    """
    return (0.75 + 0.25 * sigmoid_rampup(step, max_steps)) * math.log(n_classes)


def learning_rate(step: int, max_steps: int, base: float, schedule: str, decay_every: int) -> float:
    """Learning rate at `step` (0-based).

    Args:
        schedule: "step": x0.1 every `decay_every` steps (SemiSAM); "poly": (1 - t/T)^0.9 (SemiSAM+);
            "cosine": half a cosine to 0 after a warm-up of 5 % of the steps; "constant".
    """
    if schedule == "step":
        return base * 0.1 ** (step // decay_every)
    if schedule == "poly":
        return base * (1.0 - step / max_steps) ** 0.9
    if schedule == "cosine":
        warm_up = max(1, max_steps // 20)
        return base * min(1.0, (step + 1) / warm_up) * 0.5 * (1.0 + math.cos(math.pi * step / max_steps))
    if schedule == "constant":
        return base
    raise ValueError(f"Expected lr_schedule to be step, poly, cosine or constant. Received: {schedule!r}.")


def consistency_weight(step: int, longest: float, ramp_steps: int) -> float:
    """Weight of the consistency term: ramps up to `longest` (paper: 0.1) over `ramp_steps` (paper: 6000)."""
    return longest * stepped_rampup(step, ramp_steps)


def sam_weight(step: int, max_steps: int, longest: float, ramp_steps: int, start_step: int, direction: str) -> float:
    """Weight of the SAM term; 0 before `start_step`.

    Args:
        longest: Largest weight (paper: 0.05, that is 0.5 x 0.1).
        direction: "down": `longest` x ramp(T - t), SAM teaches early and lets go (paper). "constant": `longest`.
    """
    if step < start_step:
        return 0.0
    if direction == "down":
        return longest * stepped_rampup(max_steps - step, ramp_steps)
    if direction == "constant":
        return longest
    raise ValueError(f"Expected sam_ramp to be down or constant. Received: {direction!r}.")
