"""From trained runs to the audit: an honest one, a leak in broken code, a score on training scans, and the oracle."""

import json
import subprocess
import sys

import pytest

from semisam_tf.data.label_access import LEDGER_FILE, read_ledger

TINY = [
    "--labeled=1", "--filters=2", "--normalisation=instance", "--patch_size=16,16,16", "--max_steps=2",
    "--checkpoint_every=1",
]  # fmt: skip


def run(*words):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)


def train(cohort, workdir, *words, code=None):
    """Trains with the command, or with `code` that breaks something before it calls the command's main."""
    program = ["-m", "semisam_tf.train"]
    if code:
        program = ["-c", f"import sys\nfrom semisam_tf.train import main\n{code}\nsys.exit(main(sys.argv[1:]))"]
    return run(*program, f"--data_dir={cohort}", f"--workdir={workdir}", *TINY, *words)


def audit(workdir):
    return run("-m", "semisam_tf.audit", f"--workdir={workdir}")


def evaluate(cohort, workdir, cases):
    return run("-m", "semisam_tf.evaluate", f"--workdir={workdir}", f"--data_dir={cohort}", f"--cases={cases}")


@pytest.fixture(scope="module")
def honest(tiny_cohort, tmp_path_factory):
    """A run that was interrupted after its first step, resumed, and scored on an unseen case."""
    workdir = tmp_path_factory.mktemp("runs") / "honest"
    # The last checkpoint is there, the result is not: as a process leaves it that is killed in between.
    killed = train(
        tiny_cohort, workdir,
        code="from semisam_tf.training import loop\nloop._finish = lambda *_: sys.exit(9)",
    )  # fmt: skip
    assert killed.returncode == 9, killed.stderr
    done = train(tiny_cohort, workdir)
    assert done.returncode == 0, done.stderr
    done = evaluate(tiny_cohort, workdir, tiny_cohort / "test.list")
    assert done.returncode == 0, done.stderr
    return workdir


def test_a_resumed_run_appends_and_the_audit_passes(honest):
    openings = read_ledger(honest).openings
    assert [(o.case_id, o.purpose) for o in openings[:2]] == [("case0", "training")] * 2
    assert {(o.case_id, o.purpose) for o in openings[2:]} == {("case4", "scoring")}
    assert len({o.run_id for o in openings}) == 1
    assert len({o.pid for o in openings}) == 3
    done = audit(honest)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "Label budget: 1 scan learned from (run.json lists 1 as labelled)" in done.stdout
    assert "no label of 3 unlabelled cases was ever opened; 3 of them have one on file" in done.stdout
    assert "the chain is whole and fits " in done.stdout
    assert {line.split()[0] for line in done.stdout.splitlines()[-4:]} == {"ok"}


@pytest.mark.parametrize("name", ["run.json", "result.json", "metrics.json"])
def test_a_run_without_oracle_says_so(honest, name):
    assert json.loads((honest / name).read_text(encoding="utf-8"))["oracle_prompts"] is False


def test_broken_code_that_reads_the_label_of_an_unlabelled_scan_is_caught(tiny_cohort, tmp_path):
    # The scans come back without their label, so nothing in training notices: only the record does.
    code = """
import dataclasses
from semisam_tf.training import loop
load = loop.load_cohort
opened = []
def leaky(data_dir, case_ids, with_label, **grid):
    if with_label:
        opened.append(with_label)
        return load(data_dir, case_ids, with_label=with_label, **grid)
    scans = load(data_dir, case_ids, with_label=opened[0], **grid)
    return [dataclasses.replace(scan, label=None) for scan in scans]
loop.load_cohort = leaky
"""
    done = train(tiny_cohort, tmp_path / "run", code=code)
    assert done.returncode == 0, done.stderr
    done = audit(tmp_path / "run")
    assert done.returncode == 1
    # In the order of opening, which several readers share.
    leaks = sorted(line for line in done.stdout.splitlines() if line.startswith("fail  leak"))
    assert len(leaks) == 3
    assert "the label of case1 was opened once for training, and run.json calls it unlabelled" in leaks[0]
    assert "Label budget: 4 scans learned from (run.json lists 1 as labelled)" in done.stdout


def test_code_that_does_not_say_why_it_reads_a_label_does_not_read_it(tiny_cohort, tmp_path):
    code = """
from semisam_tf.training import loop
load = loop.load_cohort
loop.load_cohort = lambda data_dir, case_ids, with_label, **grid: load(data_dir, case_ids, with_label=True, **grid)
"""
    done = train(tiny_cohort, tmp_path / "run", code=code)
    assert done.returncode == 1
    assert "Expected with_label=False, or what the label is opened for" in done.stderr
    assert not (tmp_path / "run" / LEDGER_FILE).exists()


def test_a_score_on_a_scan_of_training_is_caught(honest, tiny_cohort, tmp_path):
    cases = tmp_path / "cases.txt"
    cases.write_text("case4\ncase2\n", encoding="utf-8")
    lines = (honest / LEDGER_FILE).read_text(encoding="utf-8")
    try:
        assert evaluate(tiny_cohort, honest, cases).returncode == 0
        done = audit(honest)
    finally:
        (honest / LEDGER_FILE).write_text(lines, encoding="utf-8")
    assert done.returncode == 1
    assert "scored on scans of training: case2; by: " in done.stdout
    assert f"--cases={cases}" in done.stdout
    # And putting the old record back does not help: metrics.json knows how far it had come.
    done = audit(honest)
    assert done.returncode == 1
    assert "metrics.json knows of" in done.stdout


@pytest.mark.parametrize("mode", ["cached", pytest.param("online", marks=pytest.mark.slow)])
def test_the_oracle_is_loud_marked_and_counted(tiny_cohort, tiny_sam, tmp_path, mode):
    words = [f"--sam_mode={mode}", f"--sam_dir={tiny_sam}", "--oracle_prompts"]
    done = train(tiny_cohort, tmp_path / "run", *words)
    assert done.returncode == 0, done.stderr
    assert "SAM IS PROMPTED WITH THE GROUND TRUTH of 3 scans" in done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["oracle_prompts"] is True
    # The balls of the cohort are found at once, where an untrained network would prompt all over.
    assert result["sam"]["prompts_decoded"] > 0
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["oracle_prompts"] is True
    openings = read_ledger(tmp_path / "run").openings
    assert sorted(o.case_id for o in openings if o.purpose == "oracle_prompts") == ["case1", "case2", "case3"]
    done = evaluate(tiny_cohort, tmp_path / "run", tiny_cohort / "test.list")
    assert "ORACLE PROMPTS" in done.stdout
    assert json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))["oracle_prompts"] is True
    done = audit(tmp_path / "run")
    assert done.returncode == 0, done.stdout
    assert "warn  ORACLE" in done.stdout
    assert "the label budget is all 4 scans whose label was opened" in done.stdout
    assert "Label budget: 4 scans learned from (run.json lists 1 as labelled)" in done.stdout


def test_the_oracle_needs_a_sam(tiny_cohort, tmp_path):
    done = train(tiny_cohort, tmp_path / "run", "--oracle_prompts")
    assert done.returncode == 2
    assert "--oracle_prompts prompts SAM with labels: choose --sam_mode=online or cached" in done.stderr


def test_the_doctor_takes_steps_of_the_run_and_names_what_keeps_it_from_them(tiny_cohort, tiny_sam, tmp_path):
    words = [f"--data_dir={tiny_cohort}", f"--workdir={tmp_path}", *TINY, f"--sam_dir={tiny_sam}", "--sam_mode=cached"]
    done = run("-m", "semisam_tf.doctor", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {line[6:20].strip(): line for line in done.stdout.splitlines()}
    assert "s a step (mean of 8; the first took " in found["step time"]
    assert ", SAM adds about " in found["run time"]
    assert " for a step" in found["memory"]
    assert [o.purpose for o in read_ledger(tmp_path).openings] == ["data_check", "timing"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [LEDGER_FILE]
