"""Reports over cases with masks whose scores are known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from semisam_tf.data.volumes import Volume
from semisam_tf.inference.evaluation import best_median_worst, evaluate_cases, largest_component, without_islands

SIZE = (4, 4, 4)


def _volume(case_id: str, label: np.ndarray | None) -> Volume:
    return Volume(case_id, np.zeros((*SIZE, 1), np.float32), label, (2.0, 1.0, 1.0), np.eye(4))


def _label(*voxels: tuple[int, int, int], value: int = 1) -> np.ndarray:
    label = np.zeros(SIZE, np.uint8)
    for voxel in voxels:
        label[voxel] = value
    return label


TRUTH = {"hit": _label((0, 0, 0)), "miss": _label((0, 0, 0)), "blank": _label((0, 0, 0))}
PREDICTED = {"hit": _label((0, 0, 0)), "miss": _label((1, 0, 0)), "blank": _label()}


def _report(**kwargs):
    return evaluate_cases(
        lambda volume: PREDICTED[volume.case_id],
        lambda case_id: _volume(case_id, TRUTH[case_id]),
        ["hit", "miss", "blank"],
        2,
        **kwargs,
    )


def test_the_whole_report_by_hand():
    perfect = {"dice": 1.0, "jaccard": 1.0, "hd95_mm": 0.0, "asd_mm": 0.0, "assd_mm": 0.0}
    beside = {"dice": 0.0, "jaccard": 0.0, "hd95_mm": 2.0, "asd_mm": 2.0, "assd_mm": 2.0}
    nothing = {"dice": 0.0, "jaccard": 0.0, "hd95_mm": None, "asd_mm": None, "assd_mm": None}
    third, spread = pytest.approx(1 / 3), pytest.approx(np.sqrt(2) / 3)
    assert _report() == {
        "cases": [{"case_id": "hit", **perfect}, {"case_id": "miss", **beside}, {"case_id": "blank", **nothing}],
        "mean": {"dice": third, "jaccard": third, "hd95_mm": 1.0, "asd_mm": 1.0, "assd_mm": 1.0},
        "std": {"dice": spread, "jaccard": spread, "hd95_mm": 1.0, "asd_mm": 1.0, "assd_mm": 1.0},
        "n_empty": 1,
    }


def test_the_report_is_plain_json():
    report = _report()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert type(report["n_empty"]) is int


def test_cases_are_told_as_they_are_done():
    told = []
    _report(on_case=lambda volume, mask, entry: told.append((volume.case_id, int(mask.sum()), entry["dice"])))
    assert told == [("hit", 1, 1.0), ("miss", 1, 0.0), ("blank", 0, 0.0)]


def test_classes_are_summed_up_apart():
    truth = _label((0, 0, 0)) + _label((3, 3, 3), value=2)
    predicted = {"a": truth, "b": _label((0, 0, 0))}
    report = evaluate_cases(lambda v: predicted[v.case_id], lambda c: _volume(c, truth), ["a", "b"], 3)
    assert report["n_empty"] == 1
    assert report["cases"][1]["dice"] == 0.5
    assert report["mean"]["dice"] == 0.75
    assert report["classes"]["1"]["mean"]["dice"] == 1.0
    assert report["classes"]["2"]["mean"] == {
        "dice": 0.5, "jaccard": 0.5, "hd95_mm": 0.0, "asd_mm": 0.0, "assd_mm": 0.0,
    }  # fmt: skip
    assert (report["classes"]["1"]["n_empty"], report["classes"]["2"]["n_empty"]) == (0, 1)


def test_errors_name_the_case():
    with pytest.raises(ValueError, match="at least one case"):
        evaluate_cases(lambda v: TRUTH["hit"], lambda c: _volume(c, TRUTH["hit"]), [], 2)
    with pytest.raises(ValueError, match="Case 'x' has no label"):
        evaluate_cases(lambda v: TRUTH["hit"], lambda c: _volume(c, None), ["x"], 2)
    with pytest.raises(ValueError, match=r"case 'x'.*mask\.shape=\(2, 4, 4\)"):
        evaluate_cases(lambda v: TRUTH["hit"][:2], lambda c: _volume(c, TRUTH["hit"]), ["x"], 2)


def _report_of(*dice: float) -> dict:
    return {"cases": [{"case_id": f"c{i}", "dice": value} for i, value in enumerate(dice)]}


def test_best_median_and_worst():
    assert best_median_worst(_report_of(0.2, 0.9, 0.5, 0.1, 0.7)) == [("best", "c1"), ("median", "c2"), ("worst", "c3")]
    assert best_median_worst(_report_of(0.2, 0.9, 0.5, 0.1)) == [("best", "c1"), ("median", "c2"), ("worst", "c3")]
    assert best_median_worst(_report_of(0.2, 0.9)) == [("best", "c1"), ("worst", "c0")]
    assert best_median_worst(_report_of(0.2)) == [("only", "c0")]


def test_the_largest_piece_of_each_class_stays():
    mask = np.zeros((8, 4, 4), np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = 1  # joined by a corner: two voxels
    mask[4, 0, 0] = 1
    mask[6:, 3, 3] = 2
    mask[6, 0, 0] = 2
    kept = largest_component(mask)
    expected = np.zeros_like(mask)
    expected[0, 0, 0] = expected[1, 1, 1] = 1
    expected[6:, 3, 3] = 2
    np.testing.assert_array_equal(kept, expected)
    assert kept.dtype == np.uint8
    np.testing.assert_array_equal(largest_component(np.zeros_like(mask)), 0)
    np.testing.assert_array_equal(largest_component(kept), kept)


def test_small_islands_become_background():
    probs = np.zeros((12, 2, 2, 3), np.float32)
    probs[..., 0] = 1
    probs[:2] = (0.2, 0.7, 0.1)  # eight voxels
    probs[3] = (0.6, 0.4, 0)  # background, most likely
    probs[5, 0, 0] = (0.1, 0.9, 0)  # an eighth of the largest
    probs[5, 1, 1] = (0.3, 0, 0.7)  # of another class, its only piece
    probs[11, 1, 1] = (0.1, 0.6, 0.3)  # an island in the other class's place
    probs[7:9, 0, :] = (0, 1, 0)  # half of the largest
    expected = probs.copy()
    expected[5, 0, 0] = (1, 0, 0)
    expected[11, 1, 1] = (0.25, 0, 0.75)
    found = without_islands(probs, 0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32
    expected[7:9, 0, :] = (1, 0, 0)
    np.testing.assert_allclose(without_islands(probs, 0.6), expected, rtol=1e-6)
    np.testing.assert_array_equal(without_islands(probs, 0.1), probs)
