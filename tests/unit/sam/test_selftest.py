"""The self-test: spoilt masks of known quality, and where SAM stops being of use."""

import itertools

import numpy as np
import pytest

from semisam_tf.sam.selftest import DRAWS, SPOILS, Point, SelfTest, run_selftest, spoilt
from semisam_tf.sam.target import SamTarget, dice

BALL = (np.linalg.norm(np.indices((24, 24, 16)).T - np.array([11, 12, 8]), axis=-1).T < 6).astype(np.uint8)


PROMPTS = np.linspace(0.1, 0.9, 9)


def answers(gain_at_zero, slope, agreement=lambda d: d):
    """A SAM whose gain is a line in the prompt's Dice."""
    return SelfTest(
        tuple(Point("a", 0.1, float(d), float(d + gain_at_zero + slope * d), float(agreement(d))) for d in PROMPTS)
    )


def test_spoiling_grows_with_its_strength_and_is_repeatable():
    scores = []
    for spoil in SPOILS:
        draws = [spoilt(BALL, 2, (1, 1, 1), spoil, np.random.default_rng(seed)) for seed in range(6)]
        np.testing.assert_allclose(draws[0].sum(axis=-1), 1, atol=1e-6)
        scores.append(np.mean([dice(d.argmax(axis=-1) > 0, BALL > 0) for d in draws]))
    assert scores[0] > 0.9
    assert scores[-1] < 0.75
    assert all(a > b - 0.02 for a, b in itertools.pairwise(scores))
    again = spoilt(BALL, 2, (1, 1, 1), SPOILS[-1], np.random.default_rng(5))
    np.testing.assert_array_equal(again, draws[-1])


def test_spoiling_is_relative_to_the_organ_whatever_the_voxels():
    """Twice the voxel, twice the organ: the same share of it is spoilt; and z counts by its own spacing."""
    one, two = (spoilt(BALL, 2, (n, n, n), 0.3, np.random.default_rng(3)) for n in (1, 2))
    np.testing.assert_allclose(two, one, atol=1e-5)
    tall = spoilt(BALL, 2, (1, 1, 3), 0.3, np.random.default_rng(3))
    assert np.abs(tall - one).max() > 0.5


def test_classes_never_sum_to_more_than_one():
    label = BALL.copy()
    label[11:][BALL[11:] > 0] = 2
    probs = spoilt(label, 3, (1, 1, 1), 0.6, np.random.default_rng(0))
    assert probs.min() >= 0
    np.testing.assert_allclose(probs.sum(axis=-1), 1, atol=1e-6)


def test_crossing_of_a_line():
    found = answers(0.3, -0.5)
    assert found.crossing == pytest.approx(0.6, abs=0.01)
    assert found.gain(0.5) == pytest.approx(0.05)
    assert found.verdict().startswith(
        "SAM helps on your data until the student reaches a Dice of about 0.60 (self-test"
    )
    never = answers(-0.1, 0.0)
    assert never.crossing == 0
    assert "does not help" in never.verdict()
    # It may always help: no more is claimed than was tried.
    always = answers(0.2, 0.0)
    assert always.crossing == pytest.approx(0.9)
    assert always.verdict().startswith("SAM helps on your data up to a Dice of 0.90 at least, the best tried")


def test_gains_of_noisy_points_fall_with_the_prompts_dice():
    rng = np.random.default_rng(0)
    points = tuple(
        Point("a", 0.1, float(d), float(d + 0.3 - 0.5 * d + rng.normal(0, 0.05)), float(d)) for d in rng.random(60)
    )
    gains = [SelfTest(points).gain(d) for d in np.linspace(0, 1, 50)]
    assert (np.diff(gains) <= 1e-12).all()
    assert SelfTest(points).crossing == pytest.approx(0.6, abs=0.1)


def test_trust_follows_the_agreement_that_takes_no_label():
    # Prompts of Dice d agree with SAM's answer by (1 + d) / 2.
    found = answers(0.3, -0.5, agreement=lambda d: (1 + d) / 2)
    assert found.estimated_dice(0.75) == pytest.approx(0.5)
    # Gains of 0.05, 0 and -0.05.
    assert found.trust(0.75) == pytest.approx(1.0)
    assert found.trust(0.8) == pytest.approx(0.5)
    assert found.trust(0.85) == pytest.approx(0.0, abs=1e-9)


def test_json_round_trip():
    found = answers(0.3, -0.5)
    assert SelfTest.from_dict(found.to_dict()) == found


class Perfect:
    """A SAM that knows the truth in the slices below 12, says nothing above. Keeps its prompts."""

    def __init__(self):
        self.prompts = []

    def target(self, image, class_probs, key, rng, spacing_mm):
        # A branch that sees some of the slices only draws them.
        assert isinstance(rng, np.random.Generator)
        self.prompts.append(class_probs)
        truth = np.eye(2, dtype=np.float32)[(image[..., 0] > 0).astype(int)]
        weight = np.ones(image.shape[:3], np.float32)
        weight[:, :, 12:] = 0
        return SamTarget(truth, weight, {}, truth)


@pytest.mark.parametrize("fusion", ["sam", "mean"])
def test_run_scores_what_is_taught_over_the_whole_scan(fusion):
    image, sam, truth = BALL[..., None].astype(np.float32), Perfect(), BALL > 0
    found = run_selftest(sam, [("a", image, BALL, (1, 1, 1)), ("b", image, BALL, (1, 1, 1))], 2, 0, fusion)
    assert len(found.points) == len(sam.prompts) == 2 * len(SPOILS) * DRAWS
    assert "of 2 labelled scans" in found.verdict()
    below = np.arange(16) < 12
    for point, prompt in zip(found.points, sam.prompts, strict=True):
        asked = prompt.argmax(axis=-1) > 0
        assert point.prompt_dice == dice(asked, truth)
        assert point.agreement == dice((asked & below)[..., :12], (truth & below)[..., :12])
        # Above, where SAM says nothing, the prompt stands. Averaged, what is surely wrong is a tie, and background.
        mixed = ((prompt + np.eye(2, dtype=np.float32)[BALL]) / 2).argmax(axis=-1) > 0 if fusion == "mean" else truth
        assert point.target_dice == dice(np.where(below, mixed, asked), truth)
    assert min(point.target_dice for point in found.points) < 1


def test_run_is_repeatable():
    image = BALL[..., None].astype(np.float32)
    found = run_selftest(Perfect(), [("a", image, BALL, (1, 1, 1)), ("b", image, BALL, (1, 1, 1))], 2, seed=0)
    assert found == run_selftest(Perfect(), [("a", image, BALL, (1, 1, 1)), ("b", image, BALL, (1, 1, 1))], 2, seed=0)


class Silent:
    def target(self, image, class_probs, key, rng, spacing_mm):
        return SamTarget.silent(class_probs.shape)


def test_a_sam_that_never_answers_is_an_error():
    with pytest.raises(ValueError, match="Received: 0 answers"):
        run_selftest(Silent(), [("a", BALL[..., None].astype(np.float32), BALL, (1, 1, 1))], 2, seed=0)
