"""What makes a command another run, and what does not."""

import dataclasses
import json

import pytest

from semisam_tf.config import Config
from semisam_tf.options import OptionError
from semisam_tf.training import record

FACTS = {"labelled": ["a"], "unlabelled": ["b", "c"], "sam_sha256": {"encoder.onnx": "1"}}


@pytest.fixture
def config(tmp_path):
    return Config(data_dir="data", workdir=str(tmp_path / "run"))


@pytest.fixture
def started(config, tmp_path):
    """A workdir with a record and a checkpoint."""
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    record.write(config, 1, FACTS)
    (tmp_path / "run" / "checkpoints" / "step_00000010.h5").write_bytes(b"")
    return config


def test_a_failed_start_binds_nobody(config, tmp_path):
    (tmp_path / "run").mkdir()
    record.write(config, 1, FACTS)
    other = dataclasses.replace(config, batch_size=2)
    record.check_same_run(other, FACTS)
    record.write(other, 1, FACTS)
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["config"]["batch_size"] == 2


def test_other_settings_are_listed(started):
    with pytest.raises(OptionError, match=r"--batch_size=2 \(was 4\); --seed=1 \(was 0\)"):
        record.check_same_run(dataclasses.replace(started, batch_size=2, seed=1), FACTS)


@pytest.mark.parametrize(
    "facts", [{"labelled": ["b"]}, {"unlabelled": ["b"]}, {"sam_sha256": {"encoder.onnx": "2"}}, {"sam_sha256": None}]
)
def test_other_cases_or_another_sam_under_the_same_flags_are_refused(started, facts):
    with pytest.raises(OptionError, match=next(iter(facts))):
        record.check_same_run(started, FACTS | facts)


def test_moved_folders_cadence_and_another_gpu_are_no_other_run(started, tmp_path):
    moved = dataclasses.replace(
        started, workdir=str(tmp_path / "x" / ".." / "run"), data_dir="/elsewhere", labeled="names.txt", log_every=1,
        sam_gpu_id=1, sam_gpu_mem_gib=2.0,
    )  # fmt: skip
    (tmp_path / "x").mkdir()
    record.check_same_run(moved, FACTS)


def test_the_orientation_is_recorded_and_binds_no_older_run(config, started, tmp_path):
    path = tmp_path / "run" / "run.json"
    assert json.loads(path.read_text(encoding="utf-8"))["orientation"] is None
    older = json.loads(path.read_text(encoding="utf-8"))
    del older["orientation"]
    path.write_text(json.dumps(older), encoding="utf-8")
    record.check_same_run(started, FACTS)
    record.write(started, 1, FACTS, "RAS")
    assert "orientation" not in json.loads(path.read_text(encoding="utf-8"))
    fresh = dataclasses.replace(config, workdir=str(tmp_path / "fresh"))
    (tmp_path / "fresh").mkdir()
    record.write(fresh, 1, FACTS, "RAS")
    assert json.loads((tmp_path / "fresh" / "run.json").read_text(encoding="utf-8"))["orientation"] == "RAS"


def test_resuming_keeps_the_first_record_and_adds_to_it(started, tmp_path):
    path = tmp_path / "run" / "run.json"
    first = json.loads(path.read_text(encoding="utf-8"))
    record.write(dataclasses.replace(started, log_every=7), 1, FACTS)
    second = json.loads(path.read_text(encoding="utf-8"))
    resumed = second.pop("resumed")
    assert first.pop("resumed") == []
    assert second == first
    assert [set(session) for session in resumed] == [
        {"command", "git_commit", "semisam_tf", "python", "versions", "label_ledger"}
    ]


def test_scans_that_changed_are_refused_and_older_runs_did_not_note_them(config, started, tmp_path):
    path = tmp_path / "run" / "run.json"
    record.check_same_scans(started, {"a": "2"})
    older = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(older | {"scans": {"a": "1", "b": "1", "c": "1"}}), encoding="utf-8")
    record.check_same_scans(started, {"a": "1", "b": "1", "c": "1"})
    with pytest.raises(OptionError, match=r"other scans under the same names: a, c\."):
        record.check_same_scans(started, {"a": "2", "b": "1", "c": "0"})
    record.check_same_scans(dataclasses.replace(config, workdir=str(tmp_path / "fresh")), {"a": "2"})
