"""Metrics on masks small enough to measure with a ruler."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from semisam_tf.inference.metrics import METRICS, case_metrics, dice, jaccard, mask_metrics, mean, std


def _mask(shape: tuple[int, int, int], *voxels: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


def test_on_two_single_voxels_two_apart():
    scores = mask_metrics(_mask((5, 1, 1), (1, 0, 0)), _mask((5, 1, 1), (3, 0, 0)), (1.5, 9.0, 9.0))
    assert scores == pytest.approx({"dice": 0.0, "jaccard": 0.0, "hd95_mm": 3.0, "asd_mm": 3.0, "assd_mm": 3.0})


def test_spacing_follows_the_axes():
    shape = (3, 3, 3)
    origin = _mask(shape, (0, 0, 0))
    for axis, expected in enumerate((0.5, 2.0, 7.0)):
        voxel = [0, 0, 0]
        voxel[axis] = 1
        assert mask_metrics(_mask(shape, tuple(voxel)), origin, (0.5, 2.0, 7.0))["asd_mm"] == pytest.approx(expected)


def test_asd_is_directed_from_prediction_to_truth():
    truth = _mask((7, 1, 1), (0, 0, 0))
    predicted = _mask((7, 1, 1), (0, 0, 0), (6, 0, 0))
    scores = mask_metrics(predicted, truth, (1, 1, 1))
    # Prediction's voxels lie 0 and 6 from the truth, the truth's lies 0 from the prediction.
    assert scores["asd_mm"] == pytest.approx(3.0)
    assert scores["assd_mm"] == pytest.approx(1.5)
    assert mask_metrics(truth, predicted, (1, 1, 1))["asd_mm"] == pytest.approx(0.0)
    # Pooled 0, 0, 6: the 95th percentile lies nine tenths of the way from the second to the third.
    assert scores["hd95_mm"] == pytest.approx(0.9 * 6)
    assert scores["dice"] == pytest.approx(2 / 3)
    assert scores["jaccard"] == pytest.approx(1 / 2)


def test_only_the_surface_counts():
    cube, hollow = np.zeros((9, 9, 9), bool), np.zeros((9, 9, 9), bool)
    cube[2:7, 2:7, 2:7] = True
    hollow[2:7, 2:7, 2:7] = True
    hollow[4, 4, 4] = False
    scores = mask_metrics(cube, hollow, (1, 1, 1))
    # The solid cube's surface lies on the hollow one's; the six faces around the hole lie 1 inside the cube's shell.
    assert scores["asd_mm"] == 0
    outer, around_hole = 125 - 27, 6
    assert scores["assd_mm"] == pytest.approx((0 + around_hole * 1 / (outer + around_hole)) / 2)


def test_a_mask_that_touches_the_edge_has_its_surface_there():
    full = np.ones((4, 4, 4), bool)
    corner = _mask((4, 4, 4), (0, 0, 0))
    assert mask_metrics(corner, full, (1, 1, 1))["asd_mm"] == 0


def test_empty_masks():
    empty, one = np.zeros((3, 3, 3), bool), _mask((3, 3, 3), (1, 1, 1))
    nothing = {"hd95_mm": None, "asd_mm": None, "assd_mm": None}
    assert mask_metrics(empty, one, (1, 1, 1)) == {"dice": 0.0, "jaccard": 0.0, **nothing}
    assert mask_metrics(one, empty, (1, 1, 1)) == {"dice": 0.0, "jaccard": 0.0, **nothing}
    assert mask_metrics(empty, empty, (1, 1, 1)) == {"dice": 1.0, "jaccard": 1.0, **nothing}


masks = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).random((2, 6, 5, 4)) < 0.3)


@given(masks)
@settings(max_examples=30)
def test_against_all_pairs_of_surface_voxels(pair: np.ndarray):
    predicted, truth = pair
    if not predicted.any() or not truth.any():
        return
    spacing = np.array([0.7, 1.3, 2.9])

    def surface_mm(mask: np.ndarray) -> np.ndarray:
        padded = np.pad(mask, 1)
        inside = np.ones(mask.shape, bool)
        for axis in range(3):
            for shift in (-1, 1):
                inside &= np.roll(padded, shift, axis)[1:-1, 1:-1, 1:-1]
        return np.argwhere(mask & ~inside) * spacing

    between = cdist(surface_mm(predicted), surface_mm(truth))
    to_truth, to_predicted = between.min(axis=1), between.min(axis=0)
    scores = mask_metrics(predicted, truth, tuple(spacing))
    assert scores["asd_mm"] == pytest.approx(to_truth.mean())
    assert scores["assd_mm"] == pytest.approx((to_truth.mean() + to_predicted.mean()) / 2)
    assert scores["hd95_mm"] == pytest.approx(np.percentile(np.concatenate([to_truth, to_predicted]), 95))


@given(masks)
def test_overlap_is_symmetric_and_the_two_agree(pair: np.ndarray):
    predicted, truth = pair
    assert dice(predicted, truth) == dice(truth, predicted)
    assert dice(truth, truth) == jaccard(truth, truth) == 1.0
    shared = jaccard(predicted, truth)
    assert dice(predicted, truth) == pytest.approx(2 * shared / (1 + shared))


def test_position_in_the_array_does_not_matter():
    pair = np.random.default_rng(0).random((2, 6, 5, 4)) < 0.5
    padded = np.pad(pair, ((0, 0), (7, 3), (2, 9), (4, 4)))
    # A mask inside the array has the same surface as one at its edge: outside is background either way.
    assert mask_metrics(*padded, (1, 2, 3)) == pytest.approx(mask_metrics(*pair, (1, 2, 3)))


def test_classes_are_scored_apart_and_averaged():
    truth, predicted = np.zeros((6, 1, 1), np.uint8), np.zeros((6, 1, 1), np.uint8)
    truth[:, 0, 0] = [1, 1, 0, 2, 2, 3]
    predicted[:, 0, 0] = [1, 1, 0, 0, 2, 0]
    scores = case_metrics(predicted, truth, (1, 1, 1), n_classes=4)
    assert {k: c["dice"] for k, c in scores["classes"].items()} == pytest.approx({"1": 1.0, "2": 2 / 3, "3": 0.0})
    assert scores["dice"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert scores["classes"]["3"]["asd_mm"] is None
    # Class 3 has no distance; the mean is over the other two, of which class 1 is perfect.
    assert scores["assd_mm"] == pytest.approx((0 + (0 + 0.5) / 2) / 2)
    assert "classes" not in case_metrics(predicted == 1, truth == 1, (1, 1, 1), n_classes=2)
    assert set(scores) == {*METRICS, "classes"}


def test_what_does_not_fit_is_named():
    mask = np.zeros((2, 2, 2), np.uint8)
    with pytest.raises(ValueError, match=r"Received: truth\.max\(\)=2"):
        case_metrics(mask, mask + 2, (1, 1, 1), n_classes=2)
    with pytest.raises(ValueError, match=r"truth\.shape=\(2, 2, 1\)"):
        mask_metrics(mask > 0, mask[..., :1] > 0, (1, 1, 1))
    with pytest.raises(ValueError, match=r"spacing_mm=\(1, 0, 1\)"):
        mask_metrics(mask > 0, mask > 0, (1, 0, 1))


def test_mean_and_std_leave_out_what_does_not_exist():
    assert mean([1.0, None, 3.0]) == 2.0
    assert std([1.0, None, 3.0]) == 1.0
    assert mean([None]) is None
    assert std([]) is None


def test_a_whole_scan_is_scored_within_seconds():
    grid = np.indices((244, 160, 88)) - np.array([120, 80, 44])[:, None, None, None]
    distance = np.sqrt((grid**2).sum(axis=0))
    started = time.process_time()
    scores = mask_metrics(distance < 40, distance < 36, (0.625, 0.625, 0.625))
    # About 0.3 s; the bound only catches a lost crop.
    assert time.process_time() - started < 5
    assert scores["asd_mm"] == pytest.approx(4 * 0.625, abs=0.1)
