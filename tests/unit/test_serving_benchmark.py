"""What the serving benchmark makes of its figures, and the order in which it takes them."""

import itertools
import json

import numpy as np
import pytest

from semisam_tf.config import Config
from semisam_tf.data.itk import read_image
from semisam_tf.data.volumes import Volume


@pytest.fixture
def benchmark(load_benchmark):
    return load_benchmark("serving")


def times(predict, server, predict_file, nifti):
    return {"predict": predict, "serving_default": server, "predict_file": predict_file, "nifti": nifti}


def result(benchmark):
    same = {"probability_difference": 2e-6, "mask_voxels_differing": 3, "voxels": 1000}
    seconds = times(
        [[1.0, 3.0], [2.0, 2.0]], [[2.0, 4.0], [2.0, 2.0]], [[2.0, 2.0], [4.0, 4.0]], [[1.0, 1.0], [4.0, 4.0]]
    )
    memory = {"overlap": 0.75, "size_vox": [100, 50, 20], "windows": 7,
              "before_bytes": 2**29, "peak_bytes": 2**29 + 5_000_000}  # fmt: skip
    return {"run": "r", "time": {"scan_s": seconds, "agreement": same}, "memory": [memory], "machine": {"time": 1}}


def test_the_tables(benchmark):
    benchmark.write(result(benchmark))
    times_of, memory_of = benchmark.table().split("\n\n")
    # By turn: (2 + 4) / (1 + 3) and (2 + 2) / (2 + 2); 2 / 4 and 8 / 8.
    assert times_of.splitlines()[2:] == [
        "| r | predict | 2.00 | - | - | - |",
        "| r | serving_default | 2.50 | 1.25 (1.00 to 1.50) | 2.0e-06 | 3 of 1000 |",
        "| r | predict_file | 3.00 | - | - | - |",
        "| r | nifti | 2.50 | 0.75 (0.50 to 1.00) | - | - |",
    ]
    assert memory_of.splitlines()[2:] == ["| r | 0.75 | 100 x 50 x 20 | 7 | 512 | 517 | 5 | 50 |"]


def test_a_part_measured_again_keeps_the_other(benchmark):
    benchmark.write(result(benchmark))
    benchmark.write({"run": "r", "memory": [], "machine": {"memory": 2}})
    (path,) = benchmark.RESULTS.glob("*.json")
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert kept["time"] == result(benchmark)["time"]
    assert kept["memory"] == []
    assert kept["machine"] == {"time": 1, "memory": 2}


def test_every_way_is_timed_for_every_scan_and_goes_first_in_its_turn(benchmark, monkeypatch):
    clock, called = itertools.count(), []
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: float(next(clock)))
    ways = {name: lambda scan, name=name: called.append((name, scan)) for name in "abc"}
    seconds = benchmark.timings(ways, scans=2, turns=2)
    assert seconds == {name: [[1.0, 1.0], [1.0, 1.0]] for name in "abc"}
    warm_up, timed = called[:3], called[3:]
    assert warm_up == [("a", 0), ("b", 0), ("c", 0)]
    orders = ("abc", "bca")
    assert timed == [(name, scan) for order in orders for scan in range(2) for name in order]


@pytest.mark.parametrize(("size", "overlap", "windows"), [((32, 32, 16), 0.5, 9), ((10, 33, 16), 0.0, 3)])
def test_windows_are_counted_as_they_are_laid(benchmark, size, overlap, windows):
    assert benchmark.n_windows(size, Config(patch_size=(16, 16, 16)), overlap) == windows


def test_the_scan_that_is_sent_is_the_scan(benchmark, tmp_path):
    image = np.random.default_rng(0).normal(size=(5, 4, 3, 1)).astype(np.float32)
    volume = Volume("a", image, None, (0.5, 1.5, 2.5), np.eye(4), has_orientation=False)
    stored = read_image(benchmark.write_nifti(tmp_path / "a.nii.gz", volume), None)
    np.testing.assert_array_equal(stored.array, image)
    assert stored.spacing_mm == (0.5, 1.5, 2.5)
    assert not stored.has_orientation
    doubled = np.tile(image, (2, 1, 1, 1))
    stored = read_image(benchmark.write_nifti(tmp_path / "b.nii.gz", volume, doubled), None)
    np.testing.assert_array_equal(stored.array, doubled)
