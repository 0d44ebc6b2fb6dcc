"""What the audit says of runs that keep to their labels, of leaks, of records that were touched, and of the oracle."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from semisam_tf import audit as command
from semisam_tf.config import Config
from semisam_tf.data.label_access import LEDGER_FILE, LabelLedger
from semisam_tf.findings import FAIL, OK, WARN, Finding
from semisam_tf.inference.label_audit import audit_run, budget, labels_behind
from semisam_tf.inference.run_folder import read_run


@pytest.fixture
def workdir(tmp_path):
    """A run with labelled a and b, unlabelled c and d, that trained, resumed and scored e."""
    ledger = LabelLedger(tmp_path, "run1")
    for case in "ab":
        ledger.append(case, Path(case), "training")
    write_run(tmp_path, ledger)
    for case in "ab":
        ledger.append(case, Path(case), "training")
    ledger.append("e", Path("e"), "scoring")
    write(tmp_path, "result.json", steps=3, oracle_prompts=False, label_ledger=ledger.mark())
    write(tmp_path, "metrics.json", cases=[{"case_id": "e"}], oracle_prompts=False, label_ledger=ledger.mark())
    return tmp_path


def write(workdir, name, **values):
    (workdir / name).write_text(json.dumps(values), encoding="utf-8")


def write_run(workdir, ledger, **changes):
    config = dataclasses.replace(Config(data_dir="nowhere", workdir=str(workdir)), **changes)
    write(
        workdir, "run.json", config=config.to_dict(), channels=1, labelled=["a", "b"], unlabelled=["c", "d"],
        oracle_prompts=config.oracle_prompts, label_ledger=ledger.mark(), resumed=[],
    )  # fmt: skip


def by_subject(workdir, status):
    return {f.subject: f.found for f in audit_run(workdir).findings if f.status == status}


def opened(workdir, case, purpose, run_id="run1"):
    LabelLedger(workdir, run_id).append(case, Path(f"/data/{case}.h5"), purpose)


def test_a_run_that_kept_to_its_labels(workdir):
    audit = audit_run(workdir, {"c": True, "d": False})
    assert {f.status for f in audit.findings} == {OK}
    assert [f.subject for f in audit.findings] == ["record", "labelled", "unlabelled", "scoring"]
    assert audit.findings[2].found == "no label of 2 unlabelled cases was ever opened; 1 of them have one on file"
    assert audit.learned_from == ("a", "b")
    rows = budget(audit)
    assert rows["training"]["cases"] == {"a": 2, "b": 2}
    assert rows["scoring"]["cases"] == {"e": 1}
    assert [name for name, row in rows.items() if row["cases"]] == ["training", "scoring"]


@pytest.mark.parametrize("purpose", ["training", "crops", "self_test", "model_choice", "oracle_prompts"])
def test_the_label_of_an_unlabelled_case_is_a_leak_whatever_for(workdir, purpose):
    opened(workdir, "c", purpose)
    found = by_subject(workdir, FAIL)
    assert set(found) == {"leak"}
    assert (
        f"the label of c was opened once for {purpose}, and run.json calls it unlabelled; /data/c.h5" in (found["leak"])
    )
    assert audit_run(workdir).learned_from == ("a", "b", "c")


@pytest.fixture
def of_two_rounds(workdir):
    """The run of `workdir` as the second of two rounds; the first, without unlabelled cases, has its own record."""
    first = workdir / "rounds" / "1"
    first.mkdir(parents=True)
    ledger = LabelLedger(first, "round1")
    for case in "ab":
        ledger.append(case, Path(case), "training")
    write_run(first, ledger)
    write(first, "run.json", **(json.loads((first / "run.json").read_text(encoding="utf-8")) | {"unlabelled": []}))
    run = json.loads((workdir / "run.json").read_text(encoding="utf-8"))
    offline = run["config"] | {"rounds": 2, "sam_mode": "offline"}
    write(workdir, "run.json", **(run | {"config": offline, "targets_learned_from": ["a", "b"]}))
    return workdir


def test_every_round_is_audited(of_two_rounds):
    audit = audit_run(of_two_rounds)
    assert {f.status for f in audit.findings} == {OK}
    compared = ["record", "labelled", "unlabelled", "scoring"]
    assert [f.subject for f in audit.findings] == [*compared, *compared[:3], "targets", *compared[3:]]
    assert audit.findings[2].found == "round 1: no label of 2 unlabelled cases was ever opened"
    assert budget(audit)["training"]["cases"] == {"a": 3, "b": 3}


@pytest.mark.parametrize("purpose", ["training", "self_test", "scoring"])
def test_a_leak_in_an_earlier_round_is_one_of_the_run(of_two_rounds, purpose):
    opened(of_two_rounds / "rounds" / "1", "c", purpose, run_id="round1")
    (fault,) = by_subject(of_two_rounds, FAIL).values()
    assert fault.startswith("round 1: ")
    assert " c" in fault


def with_targets_of(workdir, cases):
    run = json.loads((workdir / "run.json").read_text(encoding="utf-8"))
    config = run["config"] | {"sam_mode": "offline", "targets_dir": "targets"}
    write(workdir, "run.json", **(run | {"config": config, "targets_learned_from": cases}))


@pytest.mark.parametrize("case", ["c", "z"])
def test_labels_that_came_by_way_of_targets_are_a_leak(workdir, case):
    with_targets_of(workdir, ["a", case])
    assert f"the targets rest on the labels of {case}, which run.json" in by_subject(workdir, FAIL)["leak"]
    assert audit_run(workdir).learned_from == ("a", "b", case)


def test_scoring_a_case_whose_label_made_the_targets_is_caught(workdir):
    with_targets_of(workdir, ["a", "e"])
    assert "scored on scans whose label the run had used: e" in by_subject(workdir, FAIL)["scoring"]


def test_targets_of_unknown_origin_are_said(workdir):
    with_targets_of(workdir, None)
    assert by_subject(workdir, WARN) == {"targets": "whose labels the targets of targets rest on is not on record"}


def test_a_run_whose_last_round_has_not_begun_says_where_the_others_are(of_two_rounds):
    (of_two_rounds / "run.json").unlink()
    with pytest.raises(FileNotFoundError, match="Its last round has not begun; those before are runs of their own in"):
        audit_run(of_two_rounds)


def test_a_round_that_is_gone_is_named(of_two_rounds):
    (of_two_rounds / "rounds" / "1" / "run.json").unlink()
    with pytest.raises(FileNotFoundError, match="rounds/1"):
        audit_run(of_two_rounds)


def test_a_stranger_in_training_is_a_leak_and_one_for_choosing_is_counted(workdir):
    opened(workdir, "v", "model_choice")
    assert by_subject(workdir, FAIL) == {}
    assert "label of v was opened once for model_choice" in by_subject(workdir, WARN)["budget"]
    assert audit_run(workdir).learned_from == ("a", "b", "v")
    opened(workdir, "w", "training")
    assert "of w was opened once for training, and run.json calls it a stranger" in by_subject(workdir, FAIL)["leak"]


@pytest.mark.parametrize("case", ["a", "c"])
def test_scoring_a_case_of_training_is_caught(workdir, case):
    opened(workdir, case, "scoring")
    found = by_subject(workdir, FAIL)
    assert set(found) == {"scoring"}
    assert found["scoring"].startswith(f"scored on scans of training: {case}; by: ")


def test_scoring_a_case_that_weights_were_chosen_by_is_caught(workdir):
    opened(workdir, "e", "model_choice")
    assert by_subject(workdir, FAIL) == {"scoring": "scored on scans whose label the run had used: e"}


def test_metrics_of_a_case_that_was_never_opened_are_caught(workdir):
    write(workdir, "metrics.json", cases=[{"case_id": "e"}, {"case_id": "f"}], oracle_prompts=False)
    assert by_subject(workdir, FAIL)["scoring"].startswith("metrics.json reports f, and no opening")


def test_a_labelled_case_without_an_opening_is_an_incomplete_record(workdir):
    run = json.loads((workdir / "run.json").read_text(encoding="utf-8")) | {"labelled": ["a", "b", "x"]}
    write(workdir, "run.json", **run)
    assert by_subject(workdir, FAIL)["labelled"].startswith("run.json calls x labelled")


def test_a_missing_record_fails_and_an_old_run_is_told_why(workdir):
    (workdir / LEDGER_FILE).unlink()
    assert "is missing, and the run had written it" in by_subject(workdir, FAIL)["record"]
    run = json.loads((workdir / "run.json").read_text(encoding="utf-8"))
    del run["label_ledger"]
    write(workdir, "run.json", **run)
    assert "by a version that recorded no openings" in by_subject(workdir, FAIL)["record"]
    opened(workdir, "e", "scoring", "unknown")
    assert "began with a version that recorded no openings" in by_subject(workdir, FAIL)["record"]


@pytest.mark.parametrize(
    ("keep", "fault"),
    [
        (5, ""),
        (4, "result.json knows of 5 openings, the record has 4"),
        (1, "run.json knows of 2 openings, the record has 1"),
    ],
)
def test_a_record_that_was_cut_does_not_fit_the_runs_files(workdir, keep, fault):
    lines = (workdir / LEDGER_FILE).read_text(encoding="utf-8").splitlines(keepends=True)
    (workdir / LEDGER_FILE).write_text("".join(lines[:keep]), encoding="utf-8")
    assert fault in by_subject(workdir, FAIL).get("record", "")


def test_a_changed_line_is_named(workdir):
    path = workdir / LEDGER_FILE
    path.write_text(
        path.read_text(encoding="utf-8").replace('"purpose": "scoring"', '"purpose": "training"'), encoding="utf-8"
    )
    assert "line 5 was changed" in by_subject(workdir, FAIL)["record"]


def test_an_earlier_start_with_other_labels_is_said_and_not_counted(workdir):
    opened(workdir, "c", "training", run_id="run0")
    assert by_subject(workdir, FAIL) == {}
    assert by_subject(workdir, WARN)["other starts"].startswith("1 openings by starts in this folder")
    assert audit_run(workdir).learned_from == ("a", "b")


def test_the_doctor_is_a_row_and_no_leak(workdir):
    opened(workdir, "a", "data_check", run_id="doctor")
    assert by_subject(workdir, FAIL) == by_subject(workdir, WARN) == {}
    assert budget(audit_run(workdir))["doctor"]["cases"] == {"a": 1}


@pytest.fixture
def oracle(workdir):
    """The same run with --oracle_prompts."""
    ledger = LabelLedger(workdir, "run1")
    for case in "cd":
        opened(workdir, case, "oracle_prompts")
    write_run(workdir, ledger, oracle_prompts=True)
    for name in ("result.json", "metrics.json"):
        write(workdir, name, **(json.loads((workdir / name).read_text(encoding="utf-8")) | {"oracle_prompts": True}))
    return workdir


def test_an_oracle_run_is_an_alarm_and_its_budget_is_every_scan(oracle):
    audit = audit_run(oracle)
    (alarm,) = [f for f in audit.findings if f.alarm]
    assert (alarm.status, alarm.subject) == (WARN, "ORACLE")
    assert "the label budget is all 4 scans whose label was opened" in alarm.found
    assert audit.learned_from == ("a", "b", "c", "d")
    assert by_subject(oracle, FAIL) == {}
    assert budget(audit)["prompts"]["cases"] == {"c": 1, "d": 1}


@pytest.mark.parametrize("name", ["result.json", "metrics.json"])
def test_an_oracle_mark_that_was_taken_away_fails(oracle, name):
    write(oracle, name, **(json.loads((oracle / name).read_text(encoding="utf-8")) | {"oracle_prompts": False}))
    assert f"{name} and run.json disagree" in by_subject(oracle, FAIL)["oracle"]


def test_oracle_openings_of_an_unmarked_run_are_leaks(oracle):
    write_run(oracle, LabelLedger(oracle, "run1"))
    assert "opened once for oracle_prompts" in by_subject(oracle, FAIL)["leak"]


class Terminal:
    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text


@pytest.mark.parametrize("no_color", ["", "1"])
def test_oracle_runs_are_red_on_a_terminal_unless_told_not_to(oracle, monkeypatch, no_color):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm")
    assert command.audit_command(command.AuditConfig(workdir=str(oracle))) == 0
    lines = {line.split()[0].removeprefix("\033[31m"): line for line in terminal.text.splitlines() if line}
    for word in ("Label", "prompts"):
        assert lines[word].startswith("\033[31m") == (not no_color)
    (alarm,) = [line for line in terminal.text.splitlines() if "ORACLE" in line]
    assert alarm.startswith("\033[31m") == (not no_color)
    assert ("\033" in terminal.text) == (not no_color)


def test_a_line_is_one_line_without_anybodys_colours():
    finding = Finding(FAIL, "x", "two\nlines \033[1mbold", "do\nthis")
    assert finding.line() == "fail  x             two lines [1mbold -> do this"


def test_the_command_fails_prints_and_writes(workdir, tmp_path):
    opened(workdir, "c", "training")
    words = [sys.executable, "-m", "semisam_tf.audit", f"--workdir={workdir}", f"--output={tmp_path}/audit.json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "Label budget: 3 scans learned from (run.json lists 2 as labelled)" in done.stdout
    assert "training           3        5  a (2), b (2), c" in done.stdout
    assert "\033" not in done.stdout
    report = json.loads((tmp_path / "audit.json").read_text(encoding="utf-8"))
    assert (report["failed"], report["learned_from"]) == (True, ["a", "b", "c"])
    absent = subprocess.run([*words[:3], f"--workdir={tmp_path}/none"], capture_output=True, text=True, check=False)
    assert absent.returncode == 1
    assert "Expected a training run in" in absent.stderr
    assert "Traceback" not in absent.stderr


def test_another_process_of_the_run_that_opens_a_label_is_seen(workdir):
    """Whichever of its starts it was: what it taught is in the chief's checkpoints."""
    other = workdir / "workers" / "1"
    other.mkdir(parents=True)
    for start in ("run2", "run3"):  # killed once, so started twice
        ledger = LabelLedger(other, start)
        for case in "ab":
            ledger.append(case, Path(case), "training")
        write_run(other, ledger)
    (workdir / "workers" / "2").mkdir()  # of a process that opened none
    assert {finding.status for finding in audit_run(workdir).findings} == {OK}
    opened(other, "c", "training", "run2")
    audit = audit_run(workdir)
    (leak,) = [finding for finding in audit.findings if finding.subject == "leak"]
    assert leak.status == FAIL
    assert leak.found.startswith("process 1: the label of c was opened once for training")
    assert audit.learned_from == ("a", "b", "c")
    assert labels_behind(workdir, read_run(workdir)) == ["a", "b", "c"]


def test_another_process_that_ended_before_its_record_is_audited_by_the_chiefs(workdir):
    other = workdir / "workers" / "1"
    other.mkdir(parents=True)
    for case in "ab":
        opened(other, case, "training", "run2")
    assert {finding.status for finding in audit_run(workdir).findings} == {OK}
