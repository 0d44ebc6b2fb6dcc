"""What training leaves for the report: entries before checkpoints, pictures of a few scans, and never a failure."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest

from semisam_tf.config import Config
from semisam_tf.data.volumes import Volume
from semisam_tf.report.history import read_history
from semisam_tf.sam.target import SamTarget
from semisam_tf.training import live_report
from semisam_tf.training.live_report import LiveReport
from semisam_tf.training.sam_teaching import SamTeaching
from semisam_tf.training.step import Schedule

CONFIG = Config(method="mean_teacher", max_steps=100, sam_mode="cached", sam_dir="s", sam_start_step=10)
SIZE = (12, 10, 8)


def volume(case_id):
    image = np.random.default_rng(0).normal(size=(*SIZE, 1)).astype(np.float32)
    return Volume(case_id, image, None, (1.0, 1.0, 2.0), np.eye(4), False)


def target_on(slices):
    """SAM marks a box in the slices of that share of the third axis; nothing is taught elsewhere."""
    mask, weight = np.zeros(SIZE, int), np.zeros(SIZE, np.float32)
    mask[3:9, 2:7, slices] = 1
    weight[:, :, slices] = 0.5
    scores = {"prompts": 2.0, "slices_prompted": 1.0, "agreement": 0.9}
    probs = np.eye(2, dtype=np.float32)[mask]
    return SamTarget(probs, weight, scores, probs)


@pytest.fixture
def training(tmp_path):
    """As far as the report looks at a `Training`: five unlabelled scans, 40 s of training."""
    config = dataclasses.replace(CONFIG, workdir=str(tmp_path), data_dir="d")
    run = {"config": config.to_dict(), "labelled": ["a"], "unlabelled": list("bcdef"), "command": ["train"]}
    (tmp_path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    totals = {"voxels": 100, "voxels_taught": 50, "weight_sum": 25.0, "targets": 1, "slices_encoded": 3}
    totals |= {"encoder_calls": 3, "decoder_calls": 4, "prompts_decoded": 4, "duration_s": 1.0}
    sam = SamTeaching(config, None, None, None, [volume(name) for name in "bcdef"])
    sam.totals |= totals
    return SimpleNamespace(config=config, step=0, duration_s=40.0, data_wait_s=1.0, sam=sam)


def record(report, training, step):
    training.step = step
    report.record({"dice": 1.0 / step, "total": 2.0 / step}, Schedule.at(training.config, step - 1))


def test_an_entry_says_what_the_step_was(training, tmp_path):
    report = LiveReport(training)
    record(report, training, 20)
    (entry,) = read_history(tmp_path / "history.jsonl")
    schedule = Schedule.at(training.config, 19)
    assert entry["step"] == 20
    assert entry["terms"] == {"dice": 0.05, "total": 0.1}
    assert entry["weights"] == schedule.weights
    assert (entry["learning_rate"], entry["ema_decay"]) == (schedule.learning_rate, schedule.ema_decay)
    assert (entry["duration_s"], entry["data_wait_s"]) == (40.0, 1.0)
    assert entry["sam"].items() >= {"sam_calls": 7, "taught_share": 0.5, "voxels": 100, "weight_sum": 25.0}.items()


def test_a_run_without_sam_has_no_sam_in_its_entries(training, tmp_path):
    training.sam, training.config = None, dataclasses.replace(training.config, sam_mode="off")
    report = LiveReport(training)
    record(report, training, 20)
    report.write()
    assert "sam" not in read_history(tmp_path / "history.jsonl")[0]
    assert "0.1 at step 20" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not (tmp_path / "overlays").exists()


def test_a_resumed_run_drops_what_it_takes_again(training, tmp_path):
    report = LiveReport(training)
    for step in (20, 40, 60):
        record(report, training, step)
    for step, case_id in ((30, "b"), (50, "c")):
        training.step = step - 1
        training.sam.on_target(case_id, np.zeros((*SIZE, 2)), target_on(slice(2, 3)))
    training.step = 60
    report.write_last()
    training.step = 40
    resumed = LiveReport(training)
    assert [entry["step"] for entry in read_history(tmp_path / "history.jsonl")] == [20, 40]
    resumed.write_last()
    cases = json.loads((tmp_path / "overlays" / "sam.json").read_text(encoding="utf-8"))["cases"]
    assert [(case["case_id"], case["step"]) for case in cases] == [("b", 30)]


def test_sam_is_drawn_for_the_first_scans_where_it_marked_most(training, tmp_path):
    report = LiveReport(training)
    predicted = np.zeros((*SIZE, 2), np.float32)
    predicted[..., 0], predicted[4:8, 3:6, :, 1] = 0.5, 0.9
    for case_id in "fedcb":
        training.sam.on_target(case_id, predicted, target_on(slice(5, 6)))
    report.write_last()
    cases = json.loads((tmp_path / "overlays" / "sam.json").read_text(encoding="utf-8"))["cases"]
    assert [case["case_id"] for case in cases] == ["b", "c", "d"]
    cut = cases[0]["cuts"][0]
    assert cut["name"] == "xy, z = 5"
    assert cut["outlines"].keys() == {"teacher", "sam"}
    assert all(cut["outlines"].values())
    assert (cases[0]["taught_share"], cases[0]["mean_weight"], cases[0]["step"]) == (1.0, 0.5, 1)
    assert "xy, z = 5" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("broken", ["history", "report", "picture"])
def test_nothing_that_goes_wrong_here_stops_training(training, tmp_path, monkeypatch, caplog, broken):
    def fail(*_args, **_kwargs):
        raise RuntimeError("out of luck")

    if broken == "history":
        (tmp_path / "history.jsonl").mkdir()  # cannot be opened
    if broken == "report":
        monkeypatch.setattr(live_report, "write_report", fail)
    if broken == "picture":
        monkeypatch.setattr(live_report, "sam_overlay", fail)
    report = LiveReport(training)
    record(report, training, 20)
    training.sam.on_target("b", np.zeros((*SIZE, 2)), target_on(slice(2, 3)))
    report.write()
    report.write_last()
    assert "not written, training goes on" in caplog.text
    assert (tmp_path / "report.html").exists() == (broken != "report")


def test_a_report_that_takes_too_long_is_left_out_until_the_end(training, monkeypatch):
    written, now_s = [], [0.0]

    def slow(workdir):
        written.append(workdir)
        now_s[0] += 3.0

    monkeypatch.setattr(live_report, "write_report", slow)
    monkeypatch.setattr(live_report, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    report = LiveReport(training)
    for duration_s in (40.0, 80.0, 299.0, 301.0, 310.0):
        training.duration_s = duration_s
        report.write()
    # 3 s are one per cent of 300 s.
    assert len(written) == 2
    report.write_last()
    assert len(written) == 3
