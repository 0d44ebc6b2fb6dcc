"""What a training step with cached SAM targets costs: the same steps with and without SAM, taking turns in one process.

    python benchmarks/cached_step.py --workdir=runs/la_table/supervised_n1_seed0 --data_dir=../shared/la

Mean teacher on the batches of configs/la_table.flags, deterministic and prepared by threads as in a run, with the
weights of a finished one, so that SAM is prompted as in the middle of it. A step in which no scan's target is due only
cuts targets out; a scan is due every `sam_refresh_visits` visits, a step visits two, so that the mean step costs that
and a share of a target. Steps in which a slice had to be encoded, which is once for ever, are left out.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from absl import app, flags
from machine import describe, keep
from sam_steps import be_deterministic, costs, la_config, load, mean_step_s, steps_in_turns

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "benchmarks" / "results" / "cached_step"
sys.path.insert(0, str(REPO))

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run whose weights are taken.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the scans.")
_CACHE = flags.DEFINE_string("sam_cache_dir", "runs/sam_cache", "SAM's embeddings.")
_SCANS = flags.DEFINE_integer("scans", 6, "Unlabelled scans: few, so that targets fall due.")
_STEPS = flags.DEFINE_integer("steps", 10, "Steps of a turn.")
_TURNS = flags.DEFINE_integer("turns", 6, "Turns of both.")
_PRINT_ONLY = flags.DEFINE_boolean("print_only", False, "Run nothing.")

_EVERY_SO_MANY_VISITS = (10, 50)


def measure(workdir: Path, data_dir: str, scans: int, steps: int, turns: int) -> dict[str, Any]:
    """Seconds of every step, with how many targets were made in it."""
    from semisam_tf.training.sam_setup import sam_sessions
    from semisam_tf.training.state import Training

    be_deterministic()
    with tempfile.TemporaryDirectory() as folder:
        config = la_config(data_dir, 1, f"--sam_cache_dir={_CACHE.value}", "--sam_mode=cached")
        cached = dataclasses.replace(config, workdir=folder)
        loaded = load(cached, scans)
        trainings = {}
        for name, config in {"without": dataclasses.replace(cached, sam_mode="off"), "cached": cached}.items():
            training = Training.build(config, loaded[0][0].image.shape[-1], *loaded, sam_sessions(config))
            for which, network in training.networks().items():
                network.load_weights(workdir / f"{which}.weights.h5")
            trainings[name] = training
        return steps_in_turns(trainings, loaded, dict.fromkeys(trainings, steps), turns)


def table(result: dict[str, Any]) -> str:
    """What the seconds say, as lines."""
    without = statistics.median(result["without"]["step_s"])
    cutting, target = costs(result["cached"])
    lines = [
        f"a step without SAM {without:.3f} s; with cached targets, none due, {cutting:.3f} s: {cutting / without:.2f} "
        f"times; a target, its embeddings on disk, {target:.2f} s",
    ]
    for visits in _EVERY_SO_MANY_VISITS:
        mean = mean_step_s(result["cached"], visits)
        lines.append(f"a target every {visits} visits: {mean / without:.2f} times the step without SAM")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Measures, writes the JSON, prints."""
    if argv[1:]:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}.")
    if not _PRINT_ONLY.value:
        if not (_WORKDIR.value and _DATA_DIR.value):
            raise app.UsageError("--workdir and --data_dir are needed.")
        result = measure(Path(_WORKDIR.value), _DATA_DIR.value, _SCANS.value, _STEPS.value, _TURNS.value)
        keep(RESULTS / "mean_teacher.json", result | {"machine": describe(("keras", "tensorflow-cpu", "onnxruntime"))})
    sys.stdout.write(table(json.loads((RESULTS / "mean_teacher.json").read_text(encoding="utf-8"))) + "\n")


if __name__ == "__main__":
    app.run(main)
