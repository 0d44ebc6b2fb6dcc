"""Ramps and rates by closed forms and by the paper's numbers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semisam_tf.semi import schedules


def test_sigmoid_rampup_ends():
    assert schedules.sigmoid_rampup(0, 40) == math.exp(-5)
    assert schedules.sigmoid_rampup(40, 40) == 1.0
    assert schedules.sigmoid_rampup(99, 40) == 1.0
    assert schedules.sigmoid_rampup(0, 0) == 1.0


@given(st.floats(0, 100), st.floats(0, 100))
def test_sigmoid_rampup_never_falls(a, b):
    low, high = sorted((a, b))
    assert schedules.sigmoid_rampup(low, 40) <= schedules.sigmoid_rampup(high, 40)


def test_stepped_rampup_is_the_papers_stairs():
    # t // 150 of 40.
    assert schedules.stepped_rampup(149, 6000) == math.exp(-5)
    assert schedules.stepped_rampup(150, 6000) == math.exp(-5 * (1 - 1 / 40) ** 2)
    assert schedules.stepped_rampup(6000, 6000) == 1.0


def test_ema_decay_warms_up():
    assert schedules.ema_decay(0, 0.99) == 0.0
    assert schedules.ema_decay(1, 0.99) == 0.5
    assert schedules.ema_decay(98, 0.99) == pytest.approx(98 / 99)
    assert schedules.ema_decay(10_000, 0.99) == 0.99
    # Ten times the warm-up: the same decay ten times as late, and the first student is copied either way.
    assert schedules.ema_decay(0, 0.99, 10) == 0.0
    assert schedules.ema_decay(980, 0.99, 10) == pytest.approx(98 / 99)
    assert schedules.ema_decay(1000, 0.99, 10) == 0.99


def test_consistency_ramps_up_and_sam_ramps_down():
    up = [schedules.consistency_weight(t, 0.1, 6000) for t in range(0, 6001, 1500)]
    down = [schedules.sam_weight(t, 6000, 0.05, 6000, 0, "down") for t in range(0, 6001, 1500)]
    assert up == sorted(up)
    assert up[0] < up[-1] == 0.1
    assert down == sorted(down, reverse=True)
    assert down[0] == 0.05
    assert down[-1] == 0.05 * math.exp(-5)


def test_sam_weight_is_zero_before_its_start():
    assert schedules.sam_weight(9, 100, 0.5, 100, 10, "constant") == 0.0
    assert schedules.sam_weight(10, 100, 0.5, 100, 10, "constant") == 0.5
    with pytest.raises(ValueError, match="down or constant"):
        schedules.sam_weight(0, 1, 1.0, 1, 0, "up")


def test_learning_rates():
    step = [schedules.learning_rate(t, 6000, 0.01, "step", 2500) for t in (0, 2499, 2500, 5000)]
    assert step == pytest.approx([0.01, 0.01, 0.001, 0.0001])
    assert schedules.learning_rate(3000, 6000, 0.01, "poly", 1) == pytest.approx(0.01 * 0.5**0.9)
    assert schedules.learning_rate(7, 9, 0.3, "constant", 1) == 0.3
    # Warm-up over 5 of 100 steps, then half a cosine.
    assert schedules.learning_rate(0, 100, 1.0, "cosine", 1) == pytest.approx(0.2)
    assert schedules.learning_rate(50, 100, 1.0, "cosine", 1) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="lr_schedule"):
        schedules.learning_rate(0, 1, 1.0, "sawtooth", 1)


def test_entropy_threshold_of_three_classes():
    assert schedules.entropy_threshold(100, 100, 3) == pytest.approx(math.log(3))
    assert schedules.entropy_threshold(0, 100, 2) == pytest.approx((0.75 + 0.25 * math.exp(-5)) * math.log(2))
