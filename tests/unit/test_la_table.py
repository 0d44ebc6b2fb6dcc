"""The table of results is made of the result files alone."""

import json

import pytest


@pytest.fixture
def la_table(load_benchmark):
    return load_benchmark("la_table")


def result(method, labeled, seed, dice, sam=None):
    figures = {"dice": dice, "jaccard": 0.5, "hd95_mm": 4.0, "asd_mm": None, "assd_mm": 1.0}
    return {
        "method": method, "labeled": labeled, "seed": seed, "mean": figures, "std": figures | {"dice": 0.1},
        "training": {"sam": sam, "duration_s": 120.0}, "command": f"train {method}",
    }  # fmt: skip


def test_rows_are_grouped_by_seed_and_ordered(la_table, tmp_path):
    sam = {"sam_calls": 40, "taught_share": 0.25, "mean_weight": 0.8, "duration_s": 60.0}
    for number, row in enumerate(
        [
            result("mean_teacher_sam", 1, 0, 0.8, sam),
            result("supervised", 4, 0, 0.9),
            result("supervised", 1, 1, 0.72),
            result("supervised", 1, 0, 0.7),
        ]
    ):
        (tmp_path / f"{number}.json").write_text(json.dumps(row), encoding="utf-8")
    lines = la_table.table().splitlines()[2:]
    assert [line.split(" | ")[:3] for line in lines] == [
        ["| 1", "supervised", "2"], ["| 1", "mean_teacher_sam", "1"], ["| 4", "supervised", "1"],
    ]  # fmt: skip
    assert "71.0 +- 10.0 (70.0 to 72.0)" in lines[0]
    assert "40 calls, 25.0%, 0.80" in lines[1]
    assert "2.0 (1.0)" in lines[1]
    # No finite surface distance: a dash, not a crash.
    assert " | - | " in lines[0]


def test_rows_by_default_are_what_the_page_shows_and_more(la_table):
    rows = la_table.rows_to_run(None, None, None)
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert {"supervised_n1_seed2", "supervised_1200_steps_n60_seed0", "config_n2_seed0", "bcp_n4_seed0"} <= set(names)
    assert "supervised_n4_seed1" not in names
    seeds = [row.seed for row in rows]
    assert seeds == sorted(seeds)
    assert [row.name for row in la_table.rows_to_run(["dan"], ["2"], ["3", "1"])] == ["dan_n2_seed1", "dan_n2_seed3"]


def test_targets_show_their_dice_and_what_sam_had_to_say(la_table, tmp_path):
    training = {"sam_calls": 0, "taught_share": 0.9, "mean_weight": 1.0, "duration_s": 0.0}
    own, sam = (result(f"supervised_{whose}_targets", 1, 0, 0.8, training) for whose in ("own", "sam"))
    own["targets"] = {"dice": 0.787, "scans": 59}
    sam["targets"] = {"dice": 0.8061, "agreement": 0.84, "weighted_share": 0.7, "mean_weight": 0.91, "scans": 59}
    sam["resumed"] = True
    for row in (own, sam):
        row["wall_s"] = {"teacher": 240.0, "targets": 60.0, "train": 300.0, "evaluate": 60.0}
        (tmp_path / f"{row['method']}.json").write_text(json.dumps(row), encoding="utf-8")
    lines = la_table.table().splitlines()[2:]
    assert [line.split(" | ")[7:] for line in lines] == [
        ["targets' Dice 78.7", "10.0 |"], ["targets' Dice 80.6, SAM on 70.0%, 0.91", "more than 10.0 |"],
    ]  # fmt: skip


def test_gains_pair_scans_and_seeds(la_table, tmp_path):
    """By hand: the differences are 10, 0, 2 points in seed 0 and 6, 4, 2 in seed 1, so 8, 2, 2 by scan."""
    scans = {
        ("supervised_own_targets", 0): (0.5, 0.7, 0.8), ("supervised_own_targets", 1): (0.5, 0.6, 0.8),
        ("supervised_sam_targets", 0): (0.6, 0.7, 0.82), ("supervised_sam_targets", 1): (0.56, 0.64, 0.82),
        # Of a seed that only one of them has.
        ("supervised_sam_targets", 2): (0.1, 0.1, 0.1),
    }  # fmt: skip
    for (method, seed), values in scans.items():
        row = result(method, 1, seed, 0.6) | {"dice": dict(zip("abc", values, strict=True))}
        (tmp_path / f"{method}_{seed}.json").write_text(json.dumps(row), encoding="utf-8")
    lines = la_table.gains().splitlines()
    assert len(lines) == 3
    # Mean 4, standard error 2, t of 2 degrees of freedom 4.303.
    assert lines[2] == (
        "| 1 | supervised_own_targets | supervised_sam_targets | 2 | +4.0 | -4.6 to +12.6 | +4.0, +4.0 | 3 of 3 |"
    )


def test_every_row_names_settings_that_exist(la_table, repo_root, monkeypatch, tmp_path):
    from semisam_tf.config import PRESETS, Config, validate
    from semisam_tf.options import parse

    monkeypatch.chdir(repo_root)
    # Both of a comparison learn in the same way, and only SAM's targets have asked SAM.
    for name in ("supervised", "mean_teacher", "ua_mt"):
        own, sam = la_table.METHODS[f"{name}_own_targets"], la_table.METHODS[f"{name}_sam_targets"]
        assert (own.flags, own.teacher, own.targets) == (sam.flags, name, ())
        assert sam.targets[0] == "--sam_dir=models/sam_lite_medsam"
    for method in [*la_table.METHODS, *la_table.CONFIGS]:
        row = la_table.Row(method, "1", "0")
        words = row.train_command()[2:]
        if method in la_table.METHODS and la_table.METHODS[method].teacher:
            words.append(f"--targets_dir={la_table.targets_of(row, tmp_path)}")
        validate(parse(Config, [*words, "--data_dir=d", "--workdir=w"], PRESETS))
