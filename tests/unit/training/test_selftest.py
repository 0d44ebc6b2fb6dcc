"""A run's self-test is kept, and made anew once SAM is asked in another way."""

import dataclasses
import json

import pytest

from semisam_tf.config import Config
from semisam_tf.sam.selftest import Point, SelfTest
from semisam_tf.training import selftest


@pytest.fixture
def made(monkeypatch):
    """How many self-tests were made."""
    calls = []

    def run_selftest(ensemble, scans, n_classes, seed, fusion, smoothing_vox):
        calls.append(ensemble)
        points = [dict.fromkeys((f.name for f in dataclasses.fields(Point)), 0.1 * i) for i in range(1, 9)]
        return SelfTest(tuple(Point(**point) for point in points))

    monkeypatch.setattr(selftest, "run_selftest", run_selftest)
    return calls


def test_another_way_of_asking_makes_it_anew(made, tmp_path):
    config = Config(workdir=str(tmp_path))
    first = selftest.selftest_of(config, "a", [], {"SAM": ["1"], "--sam_margin_vox": [0]})
    assert selftest.selftest_of(config, "a", [], {"SAM": ["1"], "--sam_margin_vox": [0]}) == first
    assert made == ["a"]
    selftest.selftest_of(config, "b", [], {"SAM": ["2"], "--sam_margin_vox": [0]})
    assert made == ["a", "b"]
    selftest.selftest_of(
        dataclasses.replace(config, sam_fusion="mean"), "c", [], {"SAM": ["2"], "--sam_margin_vox": [0]}
    )
    assert made == ["a", "b", "c"]
    kept = json.loads((tmp_path / selftest.SELFTEST_FILE).read_text(encoding="utf-8"))
    assert kept["asking"]["SAM"] == ["2"]
