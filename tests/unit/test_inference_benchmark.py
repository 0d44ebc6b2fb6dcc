"""The published procedure that ours is timed against, and what each procedure is told to do."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from semisam_tf.config import WINDOW_BLEND, WINDOW_OVERLAP, Config
from semisam_tf.inference.predictor import preprocessing_of


@pytest.fixture
def benchmark(load_benchmark):
    return load_benchmark("inference")


def test_published_windows_of_a_left_atrium_scan(benchmark):
    """175 x 132 x 88 with windows of 112 x 112 x 80, by hand: 5 x 3 x 3 windows, the last of an axis at its end."""
    starts = benchmark.published_starts((175, 132, 88), (112, 112, 80), (18, 18, 4))
    assert len(starts) == 45
    assert sorted({x for x, _, _ in starts}) == [0, 18, 36, 54, 63]
    assert sorted({y for _, y, _ in starts}) == [0, 18, 20]
    assert sorted({z for _, _, z in starts}) == [0, 4, 8]


def test_published_probabilities_are_the_plain_mean_over_windows(benchmark):
    image = np.random.default_rng(0).normal(size=(9, 6, 3, 1)).astype(np.float32)
    window, stride = (4, 4, 4), (3, 3, 3)

    def leaning(windows):  # what a voxel gets depends on where in the window it is
        ramp = np.arange(64, dtype=np.float32).reshape(1, 4, 4, 4, 1)
        return np.concatenate([windows + ramp, windows - ramp], axis=-1)

    padded = np.zeros((9, 6, 4, 1), np.float32)
    padded[:, :, :3] = image  # one voxel is missing; it goes to the far side
    per_axis = [[0, 3, 5], [0, 2], [0]]
    total, count = np.zeros((9, 6, 4, 2)), np.zeros((9, 6, 4, 1))
    for x, y, z in itertools.product(*per_axis):
        total[x : x + 4, y : y + 4, z : z + 4] += leaning(padded[None, x : x + 4, y : y + 4, z : z + 4])[0]
        count[x : x + 4, y : y + 4, z : z + 4] += 1
    probs = benchmark.published_probs(leaning, image, window, stride)
    np.testing.assert_allclose(probs, (total / count)[:, :, :3], atol=1e-4)


def test_a_whole_scan_is_what_the_predictor_makes_of_it(benchmark):
    class WholeScan:
        config = Config(patch_size=(64, 64, 32))
        preprocessing = preprocessing_of(config)

        def crop_probs(self, images):
            return images + 1

        def probs(self, image):
            return self.crop_probs(image[None])[0]

    predictor = WholeScan()
    counts = benchmark.install(predictor, benchmark.PROCEDURES["whole_scan"])
    np.testing.assert_array_equal(predictor.probs(np.ones((32, 16, 16, 1))), np.full((32, 16, 16, 1), 2))
    assert counts == [1]


def test_ours_is_what_the_commands_do(benchmark):
    ours = benchmark.PROCEDURES["ours"]
    assert (ours.overlap, ours.blend) == (WINDOW_OVERLAP, WINDOW_BLEND)


@pytest.mark.parametrize(
    ("name", "windows"),
    # A training grid of 100 x 70 x 44 voxels of 1.25 mm, crops of 64 x 64 x 32: strides of 18, 18, 4 or 9, 9, 2.
    [
        ("published", 3 * 2 * 4),
        ("published_mm", 5 * 2 * 7),
        ("ours", 4 * 2 * 3),
        ("gaussian", 3 * 2 * 2),
        ("fast", 2 * 2 * 2),
        ("scan_window", 1),
    ],
)
def test_windows_of_each_procedure(benchmark, name, windows):
    class Counted:
        config = Config(patch_size=(64, 64, 32), training_spacing_mm=(1.25, 1.25, 1.25))
        preprocessing = preprocessing_of(config)

        def crop_probs(self, images):
            assert all(n % 16 == 0 for n in images.shape[1:4])
            return images

    predictor = Counted()
    counts = benchmark.install(predictor, benchmark.PROCEDURES[name])
    image = np.ones((100, 70, 44, 1), np.float32)
    np.testing.assert_allclose(predictor.probs(image), image, atol=1e-6)
    assert counts == [windows]


def test_the_table_compares_times_within_a_run_and_a_timing_keeps_the_dice(benchmark):
    for name, seconds in (("published", 4.0), ("ours", 0.5)):
        result = {
            "run": "r", "procedure": name, "windows_per_scan": 3, "mean_scan_s": seconds, "peak_rss_bytes": 10**9,
            "dice": {"a": 0.8, "b": 0.9}, "mean_dice": 0.85, **dataclasses.asdict(benchmark.PROCEDURES[name]),
        }  # fmt: skip
        benchmark.write(result)
        benchmark.write(result | {"dice": {"a": 0.8}, "mean_dice": 0.8})
    rows = benchmark.table().splitlines()[2:]
    assert rows[0] == "| r | published | 3.0 | 4.00 | 1.0 | - | - | 85.00 (2) | 1.00 |"
    assert rows[1] == "| r | ours | 3.0 | 0.50 | 8.0 | - | - | 85.00 (2) | 1.00 |"
    assert math.isclose(benchmark.PUBLISHED_SPACING_MM, 0.625)


def test_confidence_that_ranks_and_one_that_does_not(load_benchmark):
    module = load_benchmark("confidence")
    dice = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
    ranks = module.rank_correlation([d**3 for d in dice], dice)
    assert ranks["spearman"] == pytest.approx(1)
    assert ranks["p"] == pytest.approx(2 / math.factorial(6))  # the order itself and its reverse, of all
    # By hand: ranks 2 1 4 3 6 5, 1 - 6 * 6 / (6 * 35).
    assert module.rank_correlation([0.2, 0.1, 0.4, 0.3, 0.6, 0.5], dice)["spearman"] == pytest.approx(1 - 36 / 210)
    assert module.rank_correlation([0.1] * 6, dice) == {"spearman": None, "p": None}
    common = {"dice": {"a": 0.5, "b": 0.85}, "confidence": {"a": 0.9, "b": 0.8}}
    module.write({"run": "r", "spearman": -0.25, "p": 0.5, **common})
    module.write({"run": "s", "spearman": None, "p": None, **common})
    assert module.table().splitlines()[2:] == [
        "| r | 2 | 50.0 to 85.0 | 80.0 to 90.0 | -0.25 (0.5) |",
        "| s | 2 | 50.0 to 85.0 | 80.0 to 90.0 | - |",
    ]
