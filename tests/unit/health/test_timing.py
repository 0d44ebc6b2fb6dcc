"""What a run will take, from measured times, by hand."""

import dataclasses

import pytest

from semisam_tf.config import Config
from semisam_tf.data.splits import Split
from semisam_tf.findings import FAIL, OK, WARN
from semisam_tf.health import timing
from semisam_tf.health.probe import Answer
from semisam_tf.health.scans import ScanFacts
from semisam_tf.health.timing import SamWork, check_time, duration, sam_work
from semisam_tf.sam.manifest import load_manifest

CONFIG = Config(max_steps=100, sam_start_step=40, sam_mode="cached", sam_refresh_visits=10, batch_size=4)
SPLIT = Split(("a",), ("b", "c", "d"))
TIMES = {"first_step_s": 9.0, "step_s": 0.5, "steps": 8, "view_s": 0.6, "again_s": 0.1, "scan_s": 2.0}


@pytest.fixture
def manifest(tmp_path, write_double):
    write_double(tmp_path / "sam")
    return load_manifest(tmp_path / "sam")


def facts():
    scans = [ScanFacts(case, True, 1, (20, 20, 12), (1.0, 1.0, 1.0), 0, None) for case in "bcd"]
    return [ScanFacts("a", True, 1, (20, 20, 12), (1.0, 1.0, 1.0), 0, (1.0, 1.0, 0.5)), *scans]


def test_cached_sam_encodes_once_and_decodes_at_each_refresh(manifest):
    # 60 steps draw 2 scans each: 40 visits a scan, so 4 refreshes of 3 scans of 12 slices, half of them with organ.
    work = sam_work(CONFIG, [manifest], facts(), SPLIT)
    assert work == SamWork(encodes=18, decodes=72, scans=12)
    assert work.seconds(TIMES) == pytest.approx(18 * 0.5 + 72 * 0.1 + 12 * 2.0)


def test_online_sam_sees_every_slice_of_every_crop(manifest):
    config = dataclasses.replace(CONFIG, sam_mode="online", patch_size=(64, 64, 48), sam_slice_step=2)
    assert sam_work(config, [manifest], facts(), SPLIT) == SamWork(120 * 24, 120 * 24, 0)
    assert sam_work(dataclasses.replace(config, sam_max_slices=5), [manifest], facts(), SPLIT).encodes == 600


def test_a_sam_that_starts_too_late_costs_nothing(manifest):
    assert sam_work(dataclasses.replace(CONFIG, sam_start_step=100), [manifest], facts(), SPLIT).seconds(TIMES) == 0


def test_the_whole_run():
    step, run = check_time(CONFIG, TIMES, "", SamWork(18, 72, 12))
    assert (step.status, run.status) == (OK, OK)
    assert step.found == "0.50 s a step (mean of 8; the first took 9.0 s)"
    # 9 + 100 x 0.5 + 18 x 0.5 + 72 x 0.1 + 12 x 2
    assert run.found.startswith("about 2 min: 100 steps take 59 s, SAM adds about 40 s")
    (_, without) = check_time(CONFIG, {k: TIMES[k] for k in ("first_step_s", "step_s", "steps")}, "", None)
    assert without.found == "about 59 s: 100 steps take 59 s"
    rounds = dataclasses.replace(CONFIG, sam_mode="offline", rounds=3, round_steps=40)
    (_, of_rounds) = check_time(rounds, {k: TIMES[k] for k in ("first_step_s", "step_s", "steps")}, "", None)
    # 3 x 9 + (100 + 2 x 40) x 0.5
    assert of_rounds.found == (
        "about 2 min: 180 steps take 2 min in 3 rounds; the predictions between the rounds are not counted"
    )
    times = TIMES | {"coarse_first_step_s": 3.0, "coarse_step_s": 0.2}
    (_, coarse) = check_time(dataclasses.replace(rounds, coarse_to_fine=True, coarse_steps=285), times, "", None)
    # 117 + 3 x (3 + 285 x 0.2)
    assert coarse.found.startswith("about 5 min: 180 steps take 2 min in 3 rounds, the coarse stage before them 3 min")


def test_rounds_ask_sam_of_every_scan_between_them(manifest):
    # Three scans of 12 slices, half of them with organ: encoded once, asked about twice.
    rounds = dataclasses.replace(CONFIG, sam_mode="offline", rounds=3)
    assert sam_work(rounds, [manifest], facts(), SPLIT) == SamWork(encodes=18, decodes=36, scans=6)


@pytest.mark.parametrize(("load", "warned"), [(0.4, False), (1.4, False), (1.6, True), (9.0, True)])
def test_times_taken_beside_other_programs_are_doubted(monkeypatch, load, warned):
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    findings = check_time(CONFIG, TIMES, "", None, timing.other_load())
    assert [f.subject for f in findings if f.status == WARN] == ["load"] * warned
    if warned:
        assert findings[-1].found == (
            f"other programs are at work, load {load} on 2 processors: the times are too long"
        )


def test_steps_that_fail_are_a_failure():
    (finding,) = check_time(CONFIG, {}, "the loss became nan", None)
    assert (finding.status, finding.found) == (FAIL, "a few steps of the run fail: the loss became nan")


def test_the_request_names_a_few_cases_and_leaves_the_workdir_alone(monkeypatch, tmp_path):
    asked = {}

    def run_probe(module, timeout_s, standard_input):
        asked.update(timing.json.loads(standard_input))
        return Answer([TIMES], "", [])

    monkeypatch.setattr(timing, "run_probe", run_probe)
    config = dataclasses.replace(CONFIG, workdir=str(tmp_path / "run"))
    times, error = timing.time_run(config, Split(tuple("abc"), tuple("defgh")), "")
    assert (times, error) == (TIMES, "")
    assert (asked["labelled"], asked["unlabelled"]) == (["a", "b"], ["d", "e", "f"])
    assert str(tmp_path) not in asked["workdir"]
    assert asked["ledger_dir"]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h")])
def test_seconds_for_people(seconds, text):
    assert duration(seconds) == text
