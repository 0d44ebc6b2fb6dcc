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
import time
from pathlib import Path
from typing import Any

from absl import app, flags
from machine import describe, keep

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
    import keras
    import tensorflow as tf

    from semisam_tf.config import PRESETS, Config
    from semisam_tf.data.batches import Prefetcher, stream_of
    from semisam_tf.data.label_access import outside_runs
    from semisam_tf.data.splits import Split, split_of
    from semisam_tf.options import parse
    from semisam_tf.training.loop import load_data
    from semisam_tf.training.sam_setup import sam_sessions
    from semisam_tf.training.state import Training

    words = [
        "--flagfile=configs/la_table.flags", "--labeled=1", "--method=mean_teacher", f"--data_dir={data_dir}",
        "--exclude_cases=configs/la_dev.list", f"--sam_cache_dir={_CACHE.value}", "--sam_mode=cached",
    ]  # fmt: skip
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    with tempfile.TemporaryDirectory() as folder:
        cached = dataclasses.replace(parse(Config, words, PRESETS), workdir=folder)
        split = split_of(cached)
        cases = Split(split.labelled, split.unlabelled[:scans])
        loaded = load_data(cached, cases, outside_runs("a benchmark"))
        trainings = {}
        for name, config in {"without": dataclasses.replace(cached, sam_mode="off"), "cached": cached}.items():
            training = Training.build(config, loaded[0][0].image.shape[-1], *loaded, sam_sessions(config))
            for which, network in training.networks().items():
                network.load_weights(workdir / f"{which}.weights.h5")
            trainings[name] = training
        found: dict[str, list[tuple[float, int, int]]] = {name: [] for name in trainings}
        for turn in range(turns + 1):
            for name, training in trainings.items():
                stream, first = stream_of(training.config, *loaded), training.step
                with Prefetcher(stream.batch, first, first + steps, workers=training.config.data_workers) as prefetcher:
                    began_s = time.perf_counter()
                    for _, batch in prefetcher:
                        before = _counts(training)
                        training.take_step(batch)["total"].numpy()
                        ended_s = time.perf_counter()
                        made = [after - old for after, old in zip(_counts(training), before, strict=True)]
                        # The first turn traces, and encodes most slices.
                        if turn:
                            found[name].append((round(ended_s - began_s, 4), *made))
                        began_s = ended_s
    return {
        name: dict(zip(("step_s", "targets", "slices_encoded"), map(list, zip(*rows, strict=True)), strict=True))
        for name, rows in found.items()
    }


def _counts(training: Any) -> tuple[int, int]:
    if training.sam is None:
        return 0, 0
    return int(training.sam.totals["targets"]), int(training.sam.totals["slices_encoded"])


def table(result: dict[str, Any]) -> str:
    """What the seconds say, as lines."""
    without = statistics.median(result["without"]["step_s"])
    cached = result["cached"]
    rows = list(zip(cached["step_s"], cached["targets"], cached["slices_encoded"], strict=True))
    cutting = statistics.median(taken_s for taken_s, made, _ in rows if not made)
    target = statistics.median((taken_s - cutting) / made for taken_s, made, encoded in rows if made and not encoded)
    lines = [
        f"a step without SAM {without:.3f} s; with cached targets, none due, {cutting:.3f} s: {cutting / without:.2f} "
        f"times; a target, its embeddings on disk, {target:.2f} s",
    ]
    for visits in _EVERY_SO_MANY_VISITS:
        mean = cutting + 2 * target / visits
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
