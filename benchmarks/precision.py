"""What half precision does to Dice and time: the quick start's cohort, 8 labelled subjects, 300 supervised steps.

    python benchmarks/precision.py                        # run what is missing, then print the table
    python benchmarks/precision.py --print_only           # the table from the committed results
    python benchmarks/precision.py --precisions=float32,bfloat16,float16 --results=FOLDER --runs=FOLDER   # with a GPU

A seed's runs differ in --precision alone. Each is two commands in processes of their own (train, evaluate, in float32
both) and ends in one JSON below benchmarks/results/precision; figures are paired subject by subject.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from absl import app, flags
from machine import REPO, describe, keep, train_and_score

RESULTS = REPO / "benchmarks" / "results" / "precision"
DATA_DIR = "data/quickstart"
_WHOLE = "float32"
_TRAIN = (
    "--flagfile=configs/quickstart.flags", "--sam_mode=off", "--method=supervised", "--labeled=8", "--batch_size=2",
    "--labeled_per_batch=2", "--max_steps=300",
)  # fmt: skip

_PRECISIONS = flags.DEFINE_list("precisions", [_WHOLE, "float16"], "What to train in; bfloat16 wants a GPU.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1"], "Seeds.")
_RUNS = flags.DEFINE_string("runs", "runs/precision", "Folder for workdirs.")
_RESULTS = flags.DEFINE_string("results", str(RESULTS), "Folder of the results.")
_WORST_LOSS = flags.DEFINE_float(
    "worst_loss", None, "Exit code 1 where a precision loses more points of Dice than this, in the mean over the seeds."
)
_PRINT_ONLY = flags.DEFINE_boolean("print_only", False, "Run nothing.")


def run(precision: str, seed: str, runs: Path, results: Path) -> None:
    """Trains and scores one row and writes its JSON."""
    name = f"{precision}_seed{seed}"
    words = [*_TRAIN, f"--seed={seed}", f"--precision={precision}"]
    scored = train_and_score(words, runs / name, DATA_DIR, f"{DATA_DIR}/test.list")
    machine = describe(("tensorflow", "tensorflow-cpu", "keras", "numpy"))
    keep(results / f"{name}.json", {"precision": precision, "seed": int(seed), **scored, "machine": machine})


def gains(results: Path) -> dict[tuple[str, int], list[float]]:
    """(precision, seed) -> points of Dice above float32 of the same seed, one for each subject."""
    dice = {(found["precision"], found["seed"]): found["dice"] for found in _read(results)}
    return {
        (precision, seed): [100 * (value - dice[_WHOLE, seed][case]) for case, value in subjects.items()]
        for (precision, seed), subjects in dice.items()
        if precision != _WHOLE and (_WHOLE, seed) in dice
    }


def lost_most(results: Path) -> float:
    """Points of Dice that the worst precision loses to float32, in the mean over seeds and subjects.

    Raises:
        ValueError: There is nothing to compare.
    """
    by_precision: dict[str, list[float]] = {}
    for (precision, _), gained in gains(results).items():
        by_precision.setdefault(precision, []).append(statistics.mean(gained))
    if not by_precision:
        raise ValueError(f"Expected results of {_WHOLE} and of another precision in {results}.")
    return -min(statistics.mean(seeds) for seeds in by_precision.values())


def table(results: Path) -> str:
    """Markdown table of the results present."""
    lines = [
        "| precision | seed | Dice % | points above float32 | largest change of a subject | steps/s |",
        "|---|---|---|---|---|---|",
    ]
    gained = gains(results)
    for result in _read(results):
        key = result["precision"], result["seed"]
        changes = ["-", "-"]
        if key in gained:
            changes = [f"{change:+.2f}" for change in (statistics.mean(gained[key]), max(gained[key], key=abs))]
        dice = f"{100 * result['mean']['dice']:.1f} +- {100 * result['std']['dice']:.1f}"
        cells = [key[0], str(key[1]), dice, *changes, f"{result['training']['steps_per_s']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _read(results: Path) -> list[dict[str, Any]]:
    """All results, float32 first."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in results.glob("*.json")]
    return sorted(found, key=lambda result: (result["precision"] != _WHOLE, result["precision"], result["seed"]))


def main(argv: list[str]) -> None:
    """Runs what is missing and prints the table."""
    if argv[1:]:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}.")
    results = Path(_RESULTS.value)
    if not _PRINT_ONLY.value:
        for seed in _SEEDS.value:
            for precision in _PRECISIONS.value:
                if not (results / f"{precision}_seed{seed}.json").is_file():
                    run(precision, seed, Path(_RUNS.value), results)
    sys.stdout.write(table(results) + "\n")
    if _WORST_LOSS.value is not None and (lost := lost_most(results)) > _WORST_LOSS.value:
        sys.exit(f"Expected at most {_WORST_LOSS.value} points of Dice lost to {_WHOLE}. Received: {lost:.2f}.")


if __name__ == "__main__":
    app.run(main)
