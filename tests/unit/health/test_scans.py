"""Every scan is opened, only labelled ones with their label, and one bad file hides no other."""

import dataclasses

import h5py
import numpy as np
import pytest

from semisam_tf.config import Config
from semisam_tf.data.label_access import LabelLedger, read_ledger
from semisam_tf.data.splits import Split
from semisam_tf.findings import FAIL, OK, WARN
from semisam_tf.health.scans import check_scan_cache, check_scans, look_at


def write(folder, case, label=True, channels=0):
    (folder / case).mkdir(exist_ok=True)
    with h5py.File(folder / case / "mri_norm2.h5", "w") as file:
        file["image"] = np.ones((8, 10, 12, channels) if channels else (8, 10, 12), np.float32)
        file.attrs["spacing_mm"] = (1.0, 1.0, 2.0)
        if label:
            values = np.zeros((8, 10, 12), np.uint8)
            values[2:4, :5, 3:6] = 1
            file["label"] = values


@pytest.fixture
def run(tmp_path):
    """Settings and split: a labelled, b and c not, d to score."""
    for case in "abcd":
        write(tmp_path, case, label=case != "c")
    config = Config(data_dir=str(tmp_path), workdir=str(tmp_path), training_spacing_mm=(2.0, 2.0, 2.0))
    return config, Split(("a",), ("b", "c"))


def check(run, scored=("d",)):
    config, split = run
    labels = LabelLedger(config.workdir, "doctor").access("data_check")
    findings, facts = check_scans(config, split, scored, labels)
    return {(f.status, f.subject): f.found for f in findings}, facts


def test_good_data_is_said_to_be_good_and_labels_stay_closed(run, tmp_path):
    found, facts = check(run)
    assert {status for status, _ in found} == {OK}
    assert found[OK, "scans"].startswith(f"all 4 of {tmp_path} can be read")
    assert found[OK, "labels"] == ("1 labelled (a), 2 unlabelled (1 of them have a label on file, which stays closed)")
    assert found[OK, "scoring"] == "1 cases to score, none of them in training"
    assert [fact.case_id for fact in facts] == ["a", "b", "c", "d"]
    assert [o.case_id for o in read_ledger(tmp_path).openings] == ["a"]


def test_facts_by_hand(run):
    (fact, *_) = check(run)[1]
    assert fact.grid_vox == (4, 5, 12)
    assert fact.grid_spacing_mm == (2.0, 2.0, 2.0)
    assert fact.grid_bytes == 4 * 4 * 5 * 12
    assert fact.own_bytes == 4 * 8 * 10 * 12
    assert fact.shown == (0.25, 0.5, 0.25)
    assert fact.on_file


def test_one_bad_file_hides_no_other(run, tmp_path):
    (tmp_path / "b" / "mri_norm2.h5").write_bytes(b"broken")
    (tmp_path / "c" / "mri_norm2.h5").unlink()
    config, split = run
    findings, facts = check_scans(config, split, (), LabelLedger(tmp_path, "doctor").access("data_check"))
    bad = [f.found for f in findings if f.status == FAIL]
    assert len(bad) == 2
    assert bad[0].startswith("b: ")
    assert "truncated or damaged" in bad[0]
    assert bad[1].startswith("c: Expected case 'c'")
    assert [fact.case_id for fact in facts] == ["a"]


def test_what_is_wrong_with_lists_and_contents(run, tmp_path):
    write(tmp_path, "b", channels=2)
    with h5py.File(tmp_path / "a" / "mri_norm2.h5", "r+") as file:
        file["label"][:] = 0
    found, _ = check(run, scored=("c", "d"))
    assert found[FAIL, "channels"] == "scans with 1 and 2 channels"
    assert found[WARN, "labels"] == "labelled scans whose label is empty: a"
    assert found[WARN, "scoring"] == "1 of 2 cases to score are trained on: c"
    assert found[FAIL, "scoring"] == "cases to score without a label on file: c"


def test_label_values_beyond_the_classes_name_the_flag(run, tmp_path):
    with h5py.File(tmp_path / "a" / "mri_norm2.h5", "r+") as file:
        file["label"][0, 0, 0] = 7
    assert "label values up to 7, expected below --n_classes=2" in check(run)[0][FAIL, "scan"]


def test_a_scan_on_its_own_grid(run):
    config = dataclasses.replace(run[0], training_spacing_mm=())
    fact = look_at(config, "b", False)
    assert (fact.grid_vox, fact.grid_spacing_mm, fact.shown) == ((8, 10, 12), (1.0, 1.0, 2.0), None)


def test_scans_kept_on_disk_are_counted_against_the_disk(run, tmp_path, monkeypatch):
    config, _ = run
    facts = [look_at(config, case, False) for case in "ab"]
    config = dataclasses.replace(config, scan_cache_dir=str(tmp_path / "scans"))
    needed = 2 * 4 * (4 * 5 * 12)  # two scans of float32 at 2 mm
    free = {"bytes": needed}
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free["bytes"]})())
    assert check_scan_cache(config, facts).status != FAIL
    free["bytes"] = needed - 1
    finding = check_scan_cache(config, facts)
    assert finding.status == FAIL
    assert "--scan_cache_dir" in finding.fix
    (tmp_path / "scans").mkdir()
    # Another cohort's, and more of one scan than it takes, make no room.
    (tmp_path / "scans" / f"other-{'0' * 16}.scan").write_bytes(b"x" * needed)
    (tmp_path / "scans" / f"a-2-{'0' * 16}.scan").write_bytes(b"x" * needed)
    assert check_scan_cache(config, facts).status == FAIL
    (tmp_path / "scans" / f"a-{'0' * 16}.scan").write_bytes(b"x" * needed)
    free["bytes"] = needed // 2 - 1
    assert check_scan_cache(config, facts).status == FAIL
    free["bytes"] = needed // 2
    assert check_scan_cache(config, facts).status != FAIL
