"""The checks for whoever has a GPU: the CPU agrees with itself, differences are seen, and the script sums up."""

import json
import os
import shutil
import subprocess

import numpy as np
import pytest

from semisam_tf.config import Config
from semisam_tf.data.volumes import Volume
from semisam_tf.sam.runtime import CPU
from semisam_tf.sam.target import dice


@pytest.fixture
def gpu_check(load_benchmark):
    return load_benchmark("gpu_check")


def ball():
    """A scan of 16^3 voxels with a bright ball, and its label."""
    axes = np.meshgrid(*[np.arange(16) - 7.5] * 3, indexing="ij")
    label = (sum(axis**2 for axis in axes) < 25).astype(np.uint8)
    return Volume("ball", label[..., None].astype(np.float32), label, (1.0, 1.0, 1.0), np.eye(4))


def test_the_cpu_agrees_with_itself(gpu_check, write_double, tmp_path):
    write_double(tmp_path / "sam")
    first, second = (gpu_check.sam_masks(str(tmp_path / "sam"), CPU, [ball()]) for _ in range(2))
    # The double fills the box around each slice of the ball, where the picture is bright.
    assert dice(first[0], ball().label > 0) > 0.7
    assert gpu_check.least_dice(first, second) == 1.0


def test_the_least_dice_of_several_counts(gpu_check):
    whole, half = np.ones(200, bool), np.arange(200) < 199
    # 2 * 199 / 399.
    assert gpu_check.least_dice([whole, whole], [whole, half]) == pytest.approx(398 / 399)
    assert gpu_check.least_dice([whole], [half]) > gpu_check.LEAST_DICE > gpu_check.least_dice([whole], [whole & False])
    with pytest.raises(ValueError, match="Received: an empty mask"):
        gpu_check.least_dice([whole & False], [whole & False])


def test_the_largest_difference_is_relative(gpu_check):
    assert gpu_check.largest_difference([2.0, 4.0], [2.001, 3.9999]) == pytest.approx(5e-4)
    assert gpu_check.largest_difference([2.0], [float("nan")]) == float("inf")


@pytest.mark.parametrize(
    ("losses", "device", "passed"),
    [
        ([1.0005, 2.0], "/job:localhost/replica:0/task:0/device:GPU:0", True),
        ([1.0, 2.004], "/job:localhost/replica:0/task:0/device:GPU:0", False),
        # Asked for a GPU, TensorFlow computed on the CPU.
        ([1.0, 2.0], "/job:localhost/replica:0/task:0/device:CPU:0", False),
    ],
)
def test_a_step_has_to_be_near_and_on_the_gpu(gpu_check, monkeypatch, losses, device, passed):
    answers = {"cpu": {"losses": [1.0, 2.0], "device": "cpu"}, "gpu:0": {"losses": losses, "device": device}}
    monkeypatch.setattr(gpu_check, "losses_apart", lambda data_dir, on: answers[on])
    result = gpu_check.check_step("data", "gpu:0")
    assert result["passed"] is passed
    assert gpu_check.line("step", result).endswith(f"computed on {device}")


@pytest.mark.parametrize(
    ("providers", "calls", "taught", "passed"),
    [
        ("CUDAExecutionProvider,CPUExecutionProvider", 7, 0.5, True),
        ("CUDAExecutionProvider,CPUExecutionProvider", 7, 0.0, False),
        ("CPUExecutionProvider", 7, 0.5, False),
    ],
)
def test_sam_has_to_have_taught_on_cuda(gpu_check, tmp_path, providers, calls, taught, passed):
    config = Config(workdir=str(tmp_path), sam_providers=providers).to_dict()
    (tmp_path / "run.json").write_text(json.dumps({"config": config, "channels": 1}), encoding="utf-8")
    result = {"sam": {"sam_calls": calls, "taught_share": taught}}
    (tmp_path / "result.json").write_text(json.dumps(result), encoding="utf-8")
    found = gpu_check.check_run(tmp_path)
    assert found["passed"] is passed
    assert gpu_check.line("run", found).startswith(f"training: 7 SAM calls, {taught:.1%} of the unlabelled voxels")


def test_the_quickstart_is_taken_without_sam(gpu_check):
    config = gpu_check.quickstart("elsewhere")
    assert (config.data_dir, config.sam_mode, config.optimizer) == ("elsewhere", "off", "sgd")
    assert (config.patch_size, config.quickstart_cohort) == ((64, 64, 32), False)


PROGRAM = """#!/usr/bin/env bash
echo "$*" >> "$LOG"
if [[ "$*" == "-m venv "* ]]; then mkdir -p "$3/bin" && cp "$0" "$3/bin/python"; fi
[[ -z "$BROKEN" || "$*" != *"$BROKEN"* ]]
"""


@pytest.fixture
def script(repo_root, tmp_path):
    """(what nvidia-smi does, the command that fails) -> the script's end, and what its Python was asked to run.

    Neither GPU nor Python is real: both are programs of a line.
    """

    def run(nvidia_smi, broken=""):
        programs = {"nvidia-smi": f"#!/usr/bin/env bash\n{nvidia_smi}\n", "a-python": PROGRAM}
        for name, text in programs.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
            (tmp_path / name).chmod(0o755)
        log = tmp_path / "log"
        environment = os.environ | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": "a-python", "VENV": str(tmp_path / "venv"),
            "LOG": str(log), "BROKEN": broken,
        }  # fmt: skip
        words = [shutil.which("bash"), str(repo_root / "benchmarks" / "gpu_check.sh")]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        return done, log.read_text(encoding="utf-8").splitlines() if log.is_file() else []

    return run


@pytest.mark.parametrize("nvidia_smi", ["exit 9", "exit 0"])
def test_without_a_gpu_nothing_is_installed(script, nvidia_smi):
    done, asked = script(nvidia_smi)
    assert (done.returncode, done.stderr) == (2, "no NVIDIA GPU found: nvidia-smi failed\n")
    assert asked == []


def test_every_check_is_made_and_passes(script):
    done, asked = script("echo 'H200, 143771 MiB, 570'")
    assert done.returncode == 0, done.stdout + done.stderr
    assert any("pip install" in line and ".[gpu,dev]" in line for line in asked)
    lines = done.stdout.splitlines()
    summary = lines[lines.index("", 1) + 1 :]
    assert summary[0] == "GPU: H200, 143771 MiB, 570"
    assert len(summary) == 12
    assert all(line.startswith("PASS  ") for line in summary[1:-1])
    # What was not looked at is no pass.
    assert summary[-1] == "NOT MADE  speed with SAM (LA_DIR is not set)"
    (speed,) = [line for line in asked if line.startswith("benchmarks/speed.py")]
    assert "--sam_providers=CUDAExecutionProvider,CPUExecutionProvider" in speed
    # The tests that a GPU is needed for, by the files that have any.
    (tests,) = [line for line in asked if line.startswith("-m pytest")]
    assert "tests/unit/sam/test_resident.py" in tests


def test_a_failed_check_stops_none_after_it_and_is_in_the_sum(script):
    done, asked = script("echo H200", broken="semisam_tf.doctor")
    assert done.returncode == 1
    last = done.stdout.splitlines()[-12:]
    assert [line for line in last if line.startswith("FAIL")] == ["FAIL  doctor (exit code 1)"]
    assert sum(line.startswith("PASS") for line in last) == 9
    assert asked[-1].startswith("benchmarks/speed.py")


def test_a_failed_installation_checks_nothing(script):
    done, asked = script("echo H200", broken="torch --extra-index-url")
    assert done.returncode == 2
    assert "Expected an environment in" in done.stderr
    assert not any("semisam_tf" in line for line in asked)
