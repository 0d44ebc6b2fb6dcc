"""The benchmark's memory is a process's own, and its table is what was measured."""

import time

import numpy as np


def test_the_peak_is_seen_and_mapped_pages_are_not_anonymous(load_benchmark, tmp_path):
    many_scans = load_benchmark("many_scans")
    path, mib = tmp_path / "mapped", 64
    np.zeros(mib * 2**20, np.uint8).tofile(path)
    before = many_scans.memory_mib()
    mapped = np.memmap(path, np.uint8, "r")
    assert mapped.sum() == 0
    now = many_scans.memory_mib()
    assert now["rss_mib"] - before["rss_mib"] > 0.9 * mib
    assert now["anonymous_mib"] - before["anonymous_mib"] < 0.5 * mib
    with many_scans.peaks() as largest:
        own = np.ones(mib * 2**20, np.uint8)
        time.sleep(1)
        del own
    assert largest["anonymous_mib"] - before["anonymous_mib"] > 0.9 * mib
    assert many_scans.memory_mib()["anonymous_mib"] - before["anonymous_mib"] < 0.5 * mib


def test_cases_are_made_once_and_a_line_says_what_each_way_takes(load_benchmark, tmp_path):
    many_scans = load_benchmark("many_scans")
    many_scans.make_cases(tmp_path, 2)
    assert (tmp_path / "train.list").read_text(encoding="utf-8").split() == ["case_00000", "case_00001"]
    made = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*/mri_norm2.h5"))]
    many_scans.make_cases(tmp_path, 2)
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*/mri_norm2.h5"))] == made
    row = {
        "cases": 1000, "steps": 300, "set_up_s": 12.34, "steps_per_s": 5.678, "wait_share": 0.25, "voxel_mib": 1600.0,
        "before": {"rss_mib": 500.0, "anonymous_mib": 200.0}, "peak": {"rss_mib": 3000.0, "anonymous_mib": 2200.0},
    }  # fmt: skip
    title, _, head, _, *lines = many_scans.table(dict.fromkeys(many_scans.KINDS, row)).splitlines()
    assert title == "1,000 scans, 1600 MiB in the training grid; 300 steps"
    assert lines[0] == "| memory | 12.3 | 5.68 | 25.0% | 3000 | 2200 | 2000 |"
    assert [line.split(" | ")[0].strip("| ") for line in lines] == list(many_scans.KINDS)
    assert head.count("|") == lines[0].count("|")
