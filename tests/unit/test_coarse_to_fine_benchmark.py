"""The table of coarse to fine is made of the result files alone."""

import json


def test_a_row_with_and_one_without(load_benchmark, tmp_path):
    benchmark = load_benchmark("coarse_to_fine")
    common = {"mean": {"dice": 0.81234, "hd95_mm": 9.876}, "std": {"dice": 0.02}, "scan_s": [1.0, 2.0]}
    coarse = {"steps": 150, "duration_s": 61.2}
    regions = {"mean_region_share": 0.052, "taken_whole": ["subject_09"]}
    training = {"steps": 250, "duration_s": 99.6}
    rows = [
        {**common, "row": "without", "windows": [100, 202], "training": training, "coarse_to_fine": None},
        {**common, "row": "with", "windows": [1, 3], "training": training | {"coarse": coarse},
         "coarse_to_fine": regions},
    ]  # fmt: skip
    for row in rows:
        (tmp_path / f"{row['row']}.json").write_text(json.dumps(row), encoding="utf-8")
    with_line, without_line = benchmark.table().splitlines()[2:]
    assert with_line == "| with | 150 + 250 | 61 + 100 | 0.812 +- 0.020 | 9.9 | 2 | 1.50 | 5.2%, 1 |"
    assert without_line == "| without | 250 | 100 | 0.812 +- 0.020 | 9.9 | 151 | 1.50 | - |"


def test_both_rows_take_the_same_steps(load_benchmark):
    rows = load_benchmark("coarse_to_fine").ROWS
    steps = {name: sum(int(word.split("=")[1]) for word in words if "steps=" in word) for name, words in rows.items()}
    assert steps["with"] == steps["without"]
