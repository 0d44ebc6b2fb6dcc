"""kill -9 and the same command again ends with the arrays of an uninterrupted run, in every SAM mode.

Once in each mode after a checkpoint; and twenty times in one run, at moments drawn from a seed.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from semisam_tf.data.label_access import read_ledger
from semisam_tf.report.history import read_history

STEPS = 6
KILLS, KILLED_STEPS, CHECKPOINT_EVERY = 20, 40, 2
# Another seed draws other moments.
SEED = int(os.environ.get("SEMISAM_KILL_SEED", "0"))


def command(data_dir, workdir, sam_mode, sam_dir, method="mean_teacher"):
    """A run small enough for a test with all that is random in it: augmentation, dropout, noise, UA-MT's passes.

    Between them the three modes have both optimisers, batch and instance norm.

    Args:
        method: Without SAM; with it the method is UA-MT.
    """
    words = [
        sys.executable, "-m", "semisam_tf.train", f"--data_dir={data_dir}", f"--workdir={workdir}", "--labeled=1",
        "--filters=2",
        "--dropout=0.5", "--patch_size=16,16,16", f"--max_steps={STEPS}", "--checkpoint_every=2", "--log_every=1",
        "--augment_on=elastic", f"--sam_mode={sam_mode}",
    ]  # fmt: skip
    if sam_mode == "off":
        words += ["--normalisation=batch", f"--method={method}", "--optimizer=sgd", "--copy_paste_start_step=3"]
    else:
        # Instance norm, no lower limit of area and this seed: a network this young has some foreground to prompt with.
        words += ["--normalisation=instance", "--sam_min_area_vox=1", "--learning_rate=0.05", "--seed=1"]
        words += ["--method=uncertainty_aware_mean_teacher", "--uncertainty_passes=2", "--optimizer=adamw"]
        words += [f"--sam_dir={sam_dir}", "--sam_start_step=1", "--sam_refresh_visits=2"]
        words += ["--sam_prompts_from=student", "--sam_max_slices=4"]
    return words


def final_arrays(workdir, steps=STEPS):
    """Weights of all networks and, from the last checkpoint, their whole state, the optimiser's and SAM's."""
    arrays = {}
    for path in sorted(workdir.glob("*.weights.h5")):
        with h5py.File(path) as file:
            file.visititems(
                lambda name, item, path=path: (
                    arrays.update({f"{path.name}/{name}": item[()]}) if isinstance(item, h5py.Dataset) else None
                )
            )
    with h5py.File(workdir / "checkpoints" / f"step_{steps:08d}.h5") as file:
        for group in file.values():
            for item in group.values():
                arrays[f"{group.name}/{item.attrs['name']}"] = item[()]
    return arrays


def history_of(workdir):
    """What the run was at each step, without how long it took."""
    entries = read_history(workdir / "history.jsonl")
    for entry in entries:
        for timed in (entry, entry.get("sam", {})):
            timed.pop("duration_s", None)
            timed.pop("data_wait_s", None)
    return entries


def kill_after_checkpoint(words, workdir, step):
    """Starts a run and kills it, unasked, once the checkpoint of `step` is there."""
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    path = workdir / "checkpoints" / f"step_{step:08d}.h5"
    give_up = time.monotonic() + 240
    while not path.exists():
        if process.poll() is not None or time.monotonic() > give_up:
            process.kill()
            pytest.fail(f"the run ended before its checkpoint: {process.stderr.read()}")
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert process.returncode == -signal.SIGKILL
    assert not (workdir / "student.weights.h5").exists()


@pytest.mark.parametrize(
    ("sam_mode", "sam", "method"),
    [
        ("off", "tiny_sam", "mean_teacher"),
        ("cached", "tiny_sam", ""),
        pytest.param("online", "tiny_sam", "", marks=pytest.mark.slow),
        pytest.param("cached", "tiny_volume_sam", "", marks=pytest.mark.slow),
        # It has no state of its own; resumed between its two stages.
        pytest.param("off", "tiny_sam", "bidirectional_copy_paste", marks=pytest.mark.slow),
        pytest.param("off", "tiny_sam", "cross_pseudo_supervision", marks=pytest.mark.slow),
        ("off", "tiny_sam", "deep_adversarial_network"),
    ],
)
def test_killed_run_ends_equal_to_an_uninterrupted_one(tmp_path, tiny_cohort, request, sam_mode, sam, method):
    sam_dir = request.getfixturevalue(sam)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = command(tiny_cohort, whole, sam_mode, sam_dir, method)
    reference = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    words = command(tiny_cohort, killed, sam_mode, sam_dir, method)
    kill_after_checkpoint(words, killed, 2)
    _, log = reference.communicate(timeout=240)
    assert reference.returncode == 0, log
    resumed = subprocess.run(words, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert "Resuming" in resumed.stderr

    expected, received = final_arrays(whole), final_arrays(killed)
    assert expected.keys() == received.keys()
    networks = {"student", "teacher"} | ({"second"} if method == "cross_pseudo_supervision" else set())
    assert {path.name for path in killed.glob("*.weights.h5")} == {f"{name}.weights.h5" for name in networks}
    for name, array in expected.items():
        np.testing.assert_array_equal(received[name], array, err_msg=name)
    # No step of the history is there twice, and none is missing.
    assert [entry["step"] for entry in history_of(killed)] == list(range(1, STEPS + 1))
    assert history_of(killed) == history_of(whole)
    assert f"finished after {STEPS} steps" in (killed / "report.html").read_text(encoding="utf-8")
    if sam_mode != "off":
        assert json.loads((killed / "result.json").read_text(encoding="utf-8"))["sam"]["prompts_decoded"] > 0


# Imports while the run before it is being killed, so that a kill costs the work of a run and not TensorFlow's import.
STANDBY = """
import sys
import semisam_tf.training.rounds
from semisam_tf.train import main
if sys.stdin.readline():
    sys.exit(main(sys.argv[1:]))
"""


class Run:
    """One process of a training that waits for `go`; its log goes to a file."""

    def __init__(self, words, log):
        self.log, self._errors = log, log.open("w", encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, "-c", STANDBY, *words], stdin=subprocess.PIPE, stderr=self._errors, text=True
        )

    def go(self):
        self.process.stdin.write("go\n")
        self.process.stdin.close()

    def wait_for(self, happened):
        give_up = time.monotonic() + 240
        while not happened():
            if self.process.poll() is not None or time.monotonic() > give_up:
                self.kill()
                pytest.fail(f"the run ended before its moment: {self.log.read_text(encoding='utf-8')}")
            time.sleep(0.001)

    def kill(self):
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self._errors.close()
        return self.process.returncode


def moments(rng):
    """Twenty of (kind, number, delay in seconds), in an order in which there is something to interrupt.

    data: the cohort's subject of this number is being written. start: so many seconds after the start. cache: SAM's
    embeddings of the so manieth scan from here are. checkpoint: the so manieth is. end: the last files are, in turn.
    """
    middle = ["start"] * 2 + ["cache"] * 5 + ["checkpoint"] * 7
    kinds = ["data"] * 3 + [str(kind) for kind in rng.permutation(middle)] + ["end"] * 3
    number = {"data": 6, "checkpoint": 2, "cache": 3, "start": 1, "end": 1}
    most_s = {"data": 0.05, "checkpoint": 0.003, "cache": 0.02, "start": 6.0, "end": 0.005}
    return [(kind, int(rng.integers(1, number[kind] + 1)), float(rng.uniform(0, most_s[kind]))) for kind in kinds]


def changes(folder):
    """Files of a folder with the time of their last change; those that vanish meanwhile left out."""
    found = {}
    for path in folder.glob("*") if folder.is_dir() else ():
        try:
            found[path.name] = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
    return found


def being_written(folder, ending):
    """Whether a file of this name is being written: it has a temporary name until it is whole."""
    return any(folder.glob(f".partial.*{ending}"))


def watch(kind, number, data_dir, workdir, ends):
    """-> () -> whether the moment has come. Every moment but those of the end comes with a checkpoint at the latest."""
    checkpoints, cache = workdir / "checkpoints", workdir / "sam_cache"
    newest = max((int(path.stem[5:]) for path in checkpoints.glob("step_*.h5")), default=0)
    due = min(newest + number * CHECKPOINT_EVERY, KILLED_STEPS)
    before = changes(cache).items()
    if kind == "data":
        return lambda: being_written(data_dir / f"subject_{number:02d}", ".nii.gz")
    if kind == "start":
        return lambda: True
    if kind == "end":
        name = next(ends)
        return lambda: being_written(workdir, name) or (workdir / name).exists()
    return lambda: (
        (kind == "cache" and len(changes(cache).items() - before) >= number)
        or being_written(checkpoints, f"step_{due:08d}.h5")
        or (checkpoints / f"step_{due:08d}.h5").exists()
    )


def quickstart_command(folder, sam_dir):
    """A run that also makes its cohort. Coarse scans and a light network: a start is most of its time."""
    return [
        f"--data_dir={folder}/data", f"--workdir={folder}/run", "--quickstart_cohort", "--training_spacing_mm=16,16,16",
        "--labeled=1", "--batch_size=2", "--labeled_per_batch=1", "--patch_size=16,16,16", "--filters=2",
        "--network=unet3d", "--normalisation=instance", "--dropout=0.3", "--optimizer=adamw", "--learning_rate=0.001",
        "--lr_schedule=constant", "--seed=8", f"--max_steps={KILLED_STEPS}", f"--checkpoint_every={CHECKPOINT_EVERY}",
        "--log_every=1", "--sam_mode=cached", f"--sam_dir={sam_dir}", "--sam_min_area_vox=1",
        "--sam_refresh_visits=2", "--sam_prompts_from=student",
    ]  # fmt: skip


@pytest.fixture
def stand_by():
    """(words, log) -> Run; none outlives the test."""
    runs = []

    def start(words, log):
        runs.append(Run(words, log))
        return runs[-1]

    yield start
    for run in runs:
        run.kill()


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(tmp_path, tiny_sam, stand_by):
    schedule = moments(np.random.default_rng(SEED))
    print(f"SEMISAM_KILL_SEED={SEED}: {schedule}")  # noqa: T201
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    words = quickstart_command(killed, tiny_sam)
    data_dir, workdir = killed / "data", killed / "run"
    ends = itertools.chain(["student.weights.h5", "teacher.weights.h5", "result.json"])
    reference = stand_by(quickstart_command(whole, tiny_sam), tmp_path / "whole.log")
    reference.go()
    run, torn = stand_by(words, tmp_path / "0.log"), set()
    for number, (kind, nth, delay_s) in enumerate(schedule, start=1):
        happened = watch(kind, nth, data_dir, workdir, ends)
        run.go()
        following = stand_by(words, tmp_path / f"{number}.log")
        run.wait_for(happened)
        time.sleep(delay_s)
        assert run.kill() == -signal.SIGKILL
        torn |= {path.name.removeprefix(".partial.") for path in killed.rglob(".partial.*")}
        run = following
    run.go()
    assert run.process.wait(240) == 0, run.log.read_text(encoding="utf-8")
    assert reference.process.wait(240) == 0, reference.log.read_text(encoding="utf-8")
    print(f"killed while being written: {sorted(torn)}")  # noqa: T201

    logs = [path.read_text(encoding="utf-8") for path in tmp_path.glob("*.log")]
    assert sum("Resuming" in log for log in logs) > KILLS // 3
    # What a killed process leaves under a file's own name is whole.
    assert not [log for log in logs if "damaged" in log or "encoding it again" in log]
    # How many depends on the disk: a checkpoint is written within milliseconds.
    assert any(".step_" in name for name in torn)
    assert any(name.endswith(".nii.gz") for name in torn)
    assert not list(workdir.glob("**/.partial.*.h5"))
    for path in sorted((whole / "data").rglob("*.*")):
        assert (data_dir / path.relative_to(whole / "data")).read_bytes() == path.read_bytes(), path
    expected, received = final_arrays(whole / "run", KILLED_STEPS), final_arrays(workdir, KILLED_STEPS)
    assert expected.keys() == received.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(received[name], array, err_msg=name)
    assert json.loads((whole / "run" / "result.json").read_text(encoding="utf-8"))["sam"]["prompts_decoded"] > 0
    # The report, its curves and the record of labels have gone on as well.
    assert f"finished after {KILLED_STEPS} steps" in (workdir / "report.html").read_text(encoding="utf-8")
    steps = [[entry["step"] for entry in read_history(path / "history.jsonl")] for path in (whole / "run", workdir)]
    assert steps[0] == steps[1]
    terms = [[entry["terms"] for entry in read_history(path / "history.jsonl")] for path in (whole / "run", workdir)]
    assert terms[0] == terms[1]
    assert read_ledger(workdir).faults == ()
