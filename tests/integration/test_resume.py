"""kill -9 and the same command again ends with the arrays of an uninterrupted run, in every SAM mode."""

import json
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from semisam_tf.report.history import read_history

STEPS = 6


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


def final_arrays(workdir):
    """Weights of all networks and, from the last checkpoint, their whole state, the optimiser's and SAM's."""
    arrays = {}
    for path in sorted(workdir.glob("*.weights.h5")):
        with h5py.File(path) as file:
            file.visititems(
                lambda name, item, path=path: (
                    arrays.update({f"{path.name}/{name}": item[()]}) if isinstance(item, h5py.Dataset) else None
                )
            )
    with h5py.File(workdir / "checkpoints" / f"step_{STEPS:08d}.h5") as file:
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
    assert f"finished after {STEPS} steps" in (killed / "report.html").read_text()
    if sam_mode != "off":
        assert json.loads((killed / "result.json").read_text())["sam"]["prompts_decoded"] > 0
