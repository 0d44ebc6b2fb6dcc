"""What the benchmark of half precision makes of its results."""

import json

import pytest


@pytest.fixture
def precision(load_benchmark):
    return load_benchmark("precision")


def write(folder, name, seed, **dice):
    result = {
        "precision": name, "seed": seed, "dice": dice, "mean": {"dice": sum(dice.values()) / len(dice)},
        "std": {"dice": 0.01}, "training": {"steps_per_s": 1.5},
    }  # fmt: skip
    (folder / f"{name}_seed{seed}.json").write_text(json.dumps(result), encoding="utf-8")


def test_subjects_are_paired_within_a_seed(precision, tmp_path):
    write(tmp_path, "float16", 1, first=0.91, second=0.79)
    write(tmp_path, "float16", 2, first=0.5, second=0.5)  # of no other's seed
    write(tmp_path, "float32", 0, first=0.1, second=0.1)
    write(tmp_path, "float32", 1, second=0.8, first=0.9)
    write(tmp_path, "bfloat16", 1, first=0.86, second=0.8)
    assert precision.gains(tmp_path) == {
        ("float16", 1): pytest.approx([1, -1]), ("bfloat16", 1): pytest.approx([-4, 0]),
    }  # fmt: skip
    assert precision.lost_most(tmp_path) == pytest.approx(2)
    assert precision.table(tmp_path).splitlines()[2:] == [
        "| float32 | 0 | 10.0 +- 1.0 | - | - | 1.50 |",
        "| float32 | 1 | 85.0 +- 1.0 | - | - | 1.50 |",
        "| bfloat16 | 1 | 83.0 +- 1.0 | -2.00 | -4.00 | 1.50 |",
        "| float16 | 1 | 85.0 +- 1.0 | +0.00 | +1.00 | 1.50 |",
        "| float16 | 2 | 50.0 +- 1.0 | - | - | 1.50 |",
    ]


def test_nothing_to_compare_is_no_pass(precision, tmp_path):
    write(tmp_path, "float32", 0, first=0.9)
    with pytest.raises(ValueError, match="Expected results of float32 and of another precision"):
        precision.lost_most(tmp_path)
