"""Where errors lie, on a small organ by hand."""

import numpy as np
import pytest


@pytest.fixture
def errors(load_benchmark):
    return load_benchmark("errors")


def test_errors_are_shares_of_the_organ_by_its_slices(errors):
    truth = np.zeros((4, 4, 12), bool)
    truth[:2, :2, 1:11] = True  # 40 voxels, ten slices: two a fifth
    found = truth.copy()
    found[:2, :2, 9:11] = False  # the highest fifth is missed
    found[2, :2, 1] = True  # two voxels more in the lowest slice
    found[:2, :2, 11] = True  # and a slice beyond
    place = errors.by_place(found, truth)
    assert place["missed"] == pytest.approx([0, 0, 0, 0, 0.2])
    assert place["added"] == pytest.approx([0.05, 0, 0, 0, 0])
    assert place["added_beyond"] == pytest.approx(0.1)
    assert place["recall"] == pytest.approx(0.8)
    assert place["precision"] == pytest.approx(32 / 38)


def test_the_worst_case_comes_first_and_the_mean_last(errors):
    def case(name, dice):
        return {
            "case_id": name, "rounds": [0.5, dice], "mean_of_rounds": 0.9, "grid": 0.97, "precision": 0.8,
            "recall": 0.7, "missed": [0.1] * 5, "added": [0.0] * 5, "added_beyond": 0.0,
        }  # fmt: skip

    lines = errors.table({"name": "r", "cases": [case("a", 0.9), case("b", 0.8)]}).splitlines()
    assert lines[0] == "r: Dice by round 50.0, 85.0; of the rounds' mean 90.0; of the labels on the training grid 97.0"
    tens, zeros = ", ".join(["10.0"] * 5), ", ".join(["0.0"] * 5)
    assert lines[4] == f"| b | 80.0 | 80.0 | 70.0 | {tens} | {zeros} |"
    assert [line.split(" | ")[:2] for line in lines[4:]] == [["| b", "80.0"], ["| a", "90.0"], ["| mean", "85.0"]]
