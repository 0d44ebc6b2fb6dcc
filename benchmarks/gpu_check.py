"""Whether an NVIDIA GPU computes what the CPU does; `benchmarks/gpu_check.sh` runs this among its other checks.

    python benchmarks/gpu_check.py --check=sam       # SAM's masks of the quick-start's test scans, CUDA and CPU
    python benchmarks/gpu_check.py --check=step      # the losses of two training steps, on the GPU and on the CPU
    python benchmarks/gpu_check.py --check=run --workdir=DIR    # whether SAM taught in a finished run

Prints a line, keeps the figures below benchmarks/results/gpu_check, and exits with 1 where they differ by more than
they may. To be run from the repository's root, with TF_FORCE_GPU_ALLOW_GROWTH=true. `--providers=CPUExecutionProvider`
and `--device=cpu` compare the CPU with itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import app, flags
from machine import describe, keep

if TYPE_CHECKING:
    from semisam_tf.config import Config
    from semisam_tf.data.volumes import Volume

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "benchmarks" / "results" / "gpu_check"
sys.path.insert(0, str(REPO))

LEAST_DICE = 0.995
LARGEST_DIFFERENCE = 1e-3
# SAM is asked about so many scans of the test list.
SCANS = 2
# The second step's loss depends on the first one's gradient.
STEPS = 2

_CHECK = flags.DEFINE_enum("check", None, ["sam", "step", "run", "losses"], "What to check; losses: a part of step.")
_DATA_DIR = flags.DEFINE_string("data_dir", "data/quickstart", "Folder of the quick-start's scans.")
_SAM_DIR = flags.DEFINE_string("sam_dir", "models/sam_lite_medsam", "SAM export.")
_PROVIDERS = flags.DEFINE_string("providers", "CUDAExecutionProvider,CPUExecutionProvider", "sam: to be compared.")
_DEVICE = flags.DEFINE_string("device", "gpu", "step: to be compared, as semisam_tf.predict takes it.")
_WORKDIR = flags.DEFINE_string("workdir", None, "run: folder of a finished run.")


def quickstart(data_dir: str) -> Config:
    """Settings of the quick-start without SAM, on scans that are there.

    With plain gradient descent: AdamW moves a weight as far whatever its gradient, and so by rounding alone.
    """
    from semisam_tf.config import PRESETS, Config
    from semisam_tf.options import parse

    words = [
        f"--flagfile={REPO / 'configs' / 'quickstart.flags'}", "--noquickstart_cohort", f"--data_dir={data_dir}",
        "--sam_mode=off", "--optimizer=sgd",
    ]  # fmt: skip
    return parse(Config, words, PRESETS)


def sam_masks(sam_dir: str, providers: str, scans: Sequence[Volume]) -> list[np.ndarray]:
    """What SAM answers to the label of each scan, bool [X, Y, Z]."""
    from semisam_tf.config import Config
    from semisam_tf.training.sam_setup import sam_ensemble, sam_sessions

    config = Config(sam_mode="online", sam_dir=sam_dir, sam_providers=providers, sam_trust="one")
    ensemble = sam_ensemble(config, [], sam_sessions(config))
    masks = []
    for scan in scans:
        label_probs = np.eye(2, dtype=np.float32)[(scan.label > 0).astype(int)]
        said = ensemble.target(scan.image, label_probs, spacing_mm=scan.spacing_mm)
        masks.append(said.probs.argmax(axis=-1) > 0)
    return masks


def least_dice(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> float:
    """Of the pairs of masks.

    Raises:
        ValueError: One of the first is empty: two masks of nothing would agree.
    """
    from semisam_tf.sam.target import dice

    if not all(mask.any() for mask in first):
        raise ValueError("Expected SAM to mark something in each scan. Received: an empty mask.")
    return min(dice(a, b) for a, b in zip(first, second, strict=True))


def check_sam(data_dir: str, sam_dir: str, providers: str) -> dict[str, Any]:
    """The least Dice of SAM's masks on `providers` and on the CPU."""
    from semisam_tf.data.label_access import outside_runs
    from semisam_tf.data.splits import read_cases
    from semisam_tf.training.loop import load_labelled

    cases = read_cases(Path(data_dir) / "test.list")[:SCANS]
    scans = load_labelled(quickstart(data_dir), cases, outside_runs("a benchmark"))
    on_cpu, there = (sam_masks(sam_dir, on, scans) for on in ("CPUExecutionProvider", providers))
    found = least_dice(on_cpu, there)
    return {"providers": providers, "cases": cases, "least_dice": found, "passed": found >= LEAST_DICE}


def losses(data_dir: str, device: str) -> dict[str, Any]:
    """Loss of each of the first steps, and where TensorFlow computed them; for a process of its own."""
    import keras
    import tensorflow as tf

    from semisam_tf.data.batches import stream_of
    from semisam_tf.data.label_access import outside_runs
    from semisam_tf.data.splits import split_of
    from semisam_tf.inference.device import choose_device
    from semisam_tf.training.loop import load_data
    from semisam_tf.training.state import Training

    choose_device(device)
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    # Otherwise a GPU multiplies with 10 bits of the mantissa, and a difference says nothing.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    config = quickstart(data_dir)
    scans = load_data(config, split_of(config), outside_runs("a benchmark"))
    training = Training.build(config, scans[0][0].image.shape[-1], *scans, [])
    stream = stream_of(config, *scans)
    totals = [training.take_step(stream.batch(step))["total"] for step in range(STEPS)]
    return {"device": totals[0].device, "losses": [float(total) for total in totals]}


def losses_apart(data_dir: str, device: str) -> dict[str, Any]:
    """`losses` of a process of its own: TensorFlow chooses its devices once.

    Raises:
        RuntimeError: It failed; with what it said last.
    """
    words = [sys.executable, __file__, "--check=losses", f"--device={device}", f"--data_dir={data_dir}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"The steps on {device} failed: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def largest_difference(first: Sequence[float], second: Sequence[float]) -> float:
    """Relative to the first; infinite where one is not finite."""
    a, b = np.array(first), np.array(second)
    if not np.isfinite([a, b]).all():
        return float("inf")
    return float(np.max(np.abs(a - b) / np.abs(a)))


def check_step(data_dir: str, device: str) -> dict[str, Any]:
    """The largest relative difference of the losses on `device` and on the CPU."""
    on_cpu, there = (losses_apart(data_dir, on) for on in ("cpu", device))
    found = largest_difference(on_cpu["losses"], there["losses"])
    where_asked = f":{device.partition(':')[0].upper()}:" in there["device"]
    return {
        "cpu": on_cpu,
        "there": there,
        "largest_difference": found,
        "passed": found <= LARGEST_DIFFERENCE and where_asked,
    }


def check_run(workdir: Path) -> dict[str, Any]:
    """Whether SAM on CUDA taught a finished run."""
    from semisam_tf.inference.run_folder import read_result, read_run

    sam, config = read_result(workdir)["sam"] or {}, read_run(workdir)["config"]
    asked, taught = sam.get("sam_calls", 0), sam.get("taught_share", 0.0)
    on_cuda = config.sam_providers.startswith("CUDA") and not config.sam_allow_cpu
    return {"sam_calls": asked, "taught_share": taught, "on_cuda": on_cuda, "passed": on_cuda and asked * taught > 0}


def line(check: str, result: dict[str, Any]) -> str:
    """A check's figures for people."""
    said = {
        "sam": "SAM's masks: least Dice with the CPU's {least_dice:.5f} (at least " + f"{LEAST_DICE})",
        "step": "training steps: largest relative difference from the CPU's loss {largest_difference:.2e} (at most "
        f"{LARGEST_DIFFERENCE:.0e}), " + "computed on {there[device]}",
        "run": "training: {sam_calls:.0f} SAM calls, {taught_share:.1%} of the unlabelled voxels taught; "
        "CUDA asked for without leave to go on with the CPU: {on_cuda}",
    }[check]
    return said.format(**result)


def main(argv: list[str]) -> None:
    """Checks, keeps the JSON, prints; exits with 1 unless it passed."""
    if argv[1:] or not _CHECK.value or (_CHECK.value == "run" and not _WORKDIR.value):
        raise app.UsageError(f"Expected --check, with --workdir for run, and flags only. Received: {argv[1:]}.")
    if _CHECK.value == "losses":
        sys.stdout.write(json.dumps(losses(_DATA_DIR.value, _DEVICE.value)) + "\n")
        return
    if _CHECK.value == "sam":
        result = check_sam(_DATA_DIR.value, _SAM_DIR.value, _PROVIDERS.value)
    elif _CHECK.value == "step":
        result = check_step(_DATA_DIR.value, _DEVICE.value)
    else:
        result = check_run(Path(_WORKDIR.value))
    from semisam_tf.health.devices import nvidia_gpus

    machine = describe(("keras", "numpy")) | {"gpus": nvidia_gpus()}
    keep(RESULTS / f"{_CHECK.value}.json", result | {"machine": machine})
    sys.stdout.write(line(_CHECK.value, result) + "\n")
    if not result["passed"]:
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
