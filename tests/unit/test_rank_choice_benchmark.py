"""The test of the ranking is made of the result files alone, and draws the same random scans again."""

import json

import pytest


@pytest.fixture
def rank_choice(load_benchmark):
    return load_benchmark("rank_choice")


def test_the_gain_is_over_the_mean_of_the_random_draws_of_the_same_seed(rank_choice, tmp_path):
    for name, seed, dice in (
        ("first_choice_seed0", 0, 0.86), ("random_1_seed0", 0, 0.84), ("random_2_seed0", 0, 0.82),
        ("first_choice_seed1", 1, 0.80), ("random_1_seed1", 1, 0.81),
        # Its first choice has not been trained yet.
        ("random_1_seed2", 2, 0.5),
    ):  # fmt: skip
        (tmp_path / f"{name}.json").write_text(
            json.dumps({"name": name, "seed": seed, "mean": {"dice": dice}}), encoding="utf-8"
        )
    assert rank_choice.table().splitlines()[2:] == [
        "| 0 | 86.0 | 83.0 (84.0, 82.0) | +3.0 |",
        "| 1 | 80.0 | 81.0 (81.0) | -1.0 |",
        "| all | | | +1.0 (-1.0 to +3.0) |",
    ]


def test_random_scans_are_different_ones_and_never_the_first_choice(rank_choice):
    order = [f"case{i}" for i in range(6)]
    drawn = rank_choice.random_choices(order, "3", 5)
    assert sorted(drawn) == order[1:]
    assert rank_choice.random_choices(order, "3", 5) == drawn
