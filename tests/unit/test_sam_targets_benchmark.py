"""The table of SAM's targets compares scan by scan with what would be learned without SAM."""

import pytest


@pytest.fixture
def sam_targets(load_benchmark):
    return load_benchmark("sam_targets")


def test_gains_are_paired_by_scan(sam_targets):
    said = {"agreement": [0.9] * 3, "weighted_share": [0.7, 0.7, 0.7], "mean_weight": [0.5, 0.6, 0.7]}
    ways = {
        "prediction": {"dice": [0.7, 0.7, 0.7]},
        "prediction, smoothed": {"dice": [0.8, 0.7, 0.9]},
        "mean with SAM, margin 2": {"dice": [0.82, 0.74, 0.9]} | said,
    }
    lines = sam_targets.table({"name": "r", "cases": ["a", "b", "c"], "ways": ways}).splitlines()
    assert lines[0] == "3 unlabelled scans of r"
    assert lines[4:] == [
        "| prediction | 70.0 | - | - | - |",
        "| prediction, smoothed | 80.0 | - | - | - |",
        # Gains of 2, 4 and 0: their standard deviation is 2.
        "| mean with SAM, margin 2 | 82.0 | 2 | +2.00 +- 1.15 | 70.0%, 0.60 |",
    ]


def test_every_way_can_be_set(sam_targets):
    from semisam_tf.sam.fusion import FUSIONS
    from semisam_tf.sam.trust import TRUSTS, parse

    assert {way.fusion for way in sam_targets.WAYS.values()} == set(FUSIONS)
    assert {name for way in sam_targets.WAYS.values() for name in parse(way.trust)} == set(TRUSTS)
