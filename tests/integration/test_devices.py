"""Several devices move as one would on the whole batch: two parts of a processor, and two processes over loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

STEPS = 6


@pytest.fixture(scope="module")
def compared(tmp_path_factory, repo_root):
    """What `devices_run.py` found, by case."""
    output = tmp_path_factory.mktemp("devices") / "found.json"
    script = repo_root / "tests" / "integration" / "devices_run.py"
    environment = os.environ | {"PYTHONPATH": str(repo_root)}
    done = subprocess.run(
        [sys.executable, str(script), str(output)], env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", ["mean teacher", "batch norm", "uncertainty", "two students", "micro batch"])
def test_two_devices_end_with_the_weights_of_one(compared, case):
    found = compared[case]
    assert found["moved"] > 5e-4
    assert found["weights"] < 2e-5
    assert found["terms"] < 5e-4
    assert found["traces"] == 1


def test_two_devices_learn_what_sam_says_to_one(compared):
    # Adam moves a weight whose gradient is but rounding as far as any other, so the losses are compared.
    assert compared["with SAM"]["terms"] < 1e-5
    assert compared["with SAM"]["moved"] > 5e-4


def test_optimisers_take_the_mean_of_the_gradients_and_not_their_sum(compared):
    # SGD keeps the gradient, Adam a tenth of it.
    assert compared["momenta"] == pytest.approx({"sgd": 1.0, "adamw": 0.1, "discriminator": 0.1}, rel=1e-5)


@pytest.mark.parametrize("kind", ["channels", "values"])
def test_devices_drop_each_for_itself(compared, kind):
    first, second = compared["dropped"][kind]
    assert set(first) == set(second) == {0.0, 2.0}
    assert first != second


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("localhost", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def command(data_dir, workdir, *more):
    return [
        sys.executable, "-m", "semisam_tf.train", f"--data_dir={data_dir}", f"--workdir={workdir}", "--labeled=2",
        "--filters=2", "--dropout=0", "--patch_size=32,32,32", f"--max_steps={STEPS}", "--checkpoint_every=2",
        "--log_every=1", "--method=mean_teacher", "--optimizer=sgd", "--learning_rate=0.0003",
        *more,
    ]  # fmt: skip


@pytest.fixture
def start():
    """Starts the processes of one cluster on this machine, one for each command, the chief first; none is left."""
    started = []

    def cluster(*commands):
        workers = [f"localhost:{port}" for port in free_ports(len(commands))]
        for index, words in enumerate(commands):
            task = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
            environment = os.environ | {"TF_CONFIG": json.dumps(task)}
            started.append(subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, encoding="utf-8"))
        return started[-len(commands) :]

    yield cluster
    for process in started:
        process.kill()


def end(processes, timeout_s=300):
    logs = [process.communicate(timeout=timeout_s)[1] for process in processes]
    return [process.returncode for process in processes], logs


def weights(workdir, step):
    """The student's state after so many steps, array by array."""
    with h5py.File(workdir / "checkpoints" / f"step_{step:08d}.h5") as file:
        arrays = {name: item[()] for name, item in file["student"].items()}
    return {name: array for name, array in arrays.items() if array.dtype.kind == "f"}


@pytest.fixture(scope="module", params=["instance", "batch"])
def alone(request, tmp_path_factory, tiny_cohort):
    """The workdir of the same run in one process, and its normalisation."""
    workdir = tmp_path_factory.mktemp("alone")
    words = command(tiny_cohort, workdir, f"--normalisation={request.param}")
    done = subprocess.run(words, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return workdir, request.param


def assert_like(workdir, alone):
    """Each kernel moved in the last steps as it did alone; with batch norm its statistics are the same.

    Batch norm divides by sums over a batch that TensorFlow adds up one by one, in float32: in another order they differ
    by 1e-4, and twenty layers make a tenth of it in the gradient of the first. So gradients are compared without it.
    """
    alone_in, normalisation = alone
    before, after, found = weights(alone_in, STEPS - 2), weights(alone_in, STEPS), weights(workdir, STEPS)
    if normalisation == "batch":
        moved = max(np.abs(after[name] - before[name]).max() for name in after)
        assert max(np.abs(found[name] - after[name]).max() for name in after) < 0.01 * moved
        return
    kernels = [name for name, array in after.items() if array.ndim == 5]
    assert len(kernels) == 30
    for name in kernels:
        off = np.linalg.norm(found[name] - after[name]) / np.linalg.norm(after[name] - before[name])
        assert off < 0.01, (name, after[name].shape)


def test_two_processes_end_with_the_weights_of_one_and_the_chief_alone_writes(tmp_path, tiny_cohort, alone, start):
    workdir = tmp_path / "shared"
    words = command(tiny_cohort, workdir, f"--normalisation={alone[1]}")
    codes, logs = end(start(words, words))
    assert codes == [0, 0], logs
    assert "each batch is shared by 2 devices" in logs[1]
    assert_like(workdir, alone)
    other = workdir / "workers" / "1"
    assert not [*other.glob("**/*.weights.h5"), *other.glob("checkpoints/*")]


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_all_go_on_from_the_checkpoint(tmp_path, tiny_cohort, alone, start):
    workdir = tmp_path / "shared"
    words = command(tiny_cohort, workdir, f"--normalisation={alone[1]}")
    processes = start(words, words)
    path, give_up = workdir / "checkpoints" / "step_00000002.h5", time.monotonic() + 240
    while not path.exists():
        if time.monotonic() > give_up or processes[0].poll() is not None:
            pytest.fail(f"the run ended before its checkpoint: {end(processes)}")
        time.sleep(0.02)
    processes[1].send_signal(signal.SIGKILL)
    codes, logs = end(processes)
    assert codes[0] == 1, logs[0]
    assert "lost another process" in logs[0]
    codes, logs = end(start(words, words))
    assert codes == [0, 0], logs
    assert all("Resuming" in log for log in logs)
    assert_like(workdir, alone)


def test_processes_with_other_settings_are_refused(tmp_path, tiny_cohort, start):
    words = command(tiny_cohort, tmp_path / "shared")
    codes, logs = end(start(words, [*words, "--ema_decay=0.5"]))
    assert codes == [1, 1]
    said = logs[0] + logs[1]
    assert "the same settings in all 2 processes" in said
    assert "something else elsewhere: ema_decay: 0." in said


def test_a_process_that_cannot_begin_ends_the_others(tmp_path, tiny_cohort, start):
    words = command(tiny_cohort, tmp_path / "shared")
    codes, logs = end(start(words, [*words, f"--data_dir={tmp_path / 'absent'}"]))
    assert codes == [1, 2], logs
    assert "lost another process" in logs[0]
    assert str(tmp_path / "absent") in logs[1]
