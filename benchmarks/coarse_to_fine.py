"""A small organ in the full field of view, with and without coarse to fine: docs/coarse_to_fine.md has the table.

    python benchmarks/coarse_to_fine.py                 # run what is missing, then print the table
    python benchmarks/coarse_to_fine.py --print_only    # the table from the committed results

The cohort is the lumbar spine of the simulated subjects (configs/coarse_to_fine.flags). Both runs take the same number
of steps in all and differ in nothing else. Each is two commands in processes of their own and ends in one JSON below
benchmarks/results/coarse_to_fine. Prediction of two scans is timed in this process, after one that is not counted.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from absl import app, flags
from machine import REPO, describe, keep, train_and_score

RESULTS = REPO / "benchmarks" / "results" / "coarse_to_fine"
FLAGFILE = "configs/coarse_to_fine.flags"
COARSE_STEPS, FINE_STEPS = 150, 200
# Half the default's overlap: without coarse to fine a scan has hundreds of windows.
OVERLAP = 0.5
DATA_DIR = "data/lumbar_spine"
CASES = f"{DATA_DIR}/test.list"
ROWS: dict[str, tuple[str, ...]] = {
    "with": (f"--coarse_steps={COARSE_STEPS}", f"--max_steps={FINE_STEPS}"),
    "without": ("--nocoarse_to_fine", f"--max_steps={COARSE_STEPS + FINE_STEPS}"),
}

_ROWS = flags.DEFINE_list("rows", list(ROWS), f"Rows to run, of {', '.join(ROWS)}.")
_RUNS = flags.DEFINE_string("runs", "runs/coarse_to_fine_benchmark", "Folder for workdirs.")
_PRINT_ONLY = flags.DEFINE_boolean("print_only", False, "Run nothing.")


def run(name: str, runs: Path) -> None:
    """Trains, scores and times one row and writes its JSON."""
    workdir = runs / name
    words = [f"--flagfile={FLAGFILE}", *ROWS[name]]
    result = {
        "row": name,
        **train_and_score(words, workdir, DATA_DIR, CASES, [f"--overlap={OVERLAP}"]),
        **time_scans(workdir),
        "machine": describe(("keras", "numpy")),
    }
    keep(RESULTS / f"{name}.json", result)


def time_scans(workdir: Path) -> dict[str, Any]:
    """Seconds from a scan in memory to its mask in memory, and windows of the (fine) network."""
    from semisam_tf.data.splits import read_cases
    from semisam_tf.data.volumes import find_case, load_volume
    from semisam_tf.inference.predictor import load_predictor

    predictor, _ = load_predictor(workdir, overlap=OVERLAP)
    cases = read_cases(REPO / CASES)[:2]
    volumes = [load_volume(find_case(REPO / DATA_DIR, case), with_label=False) for case in cases]
    predictor.predict(volumes[0])  # the network is traced
    seconds, windows = [], []
    for volume in volumes:
        totals: list[int] = []
        began_s = time.perf_counter()
        predictor.predict(volume, lambda _, total, totals=totals: totals.append(total))
        seconds.append(round(time.perf_counter() - began_s, 3))
        windows.append(totals[-1])
    return {"scan_s": seconds, "windows": windows}


def table() -> str:
    """Markdown table of the results present."""
    lines = [
        "| coarse to fine | steps | training s | Dice | 95HD mm | windows a scan | s a scan | region, taken whole |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in ROWS:
        path = RESULTS / f"{name}.json"
        if path.is_file():
            lines.append(_line(json.loads(path.read_text(encoding="utf-8"))))
    return "\n".join(lines)


def _line(result: dict[str, Any]) -> str:
    training, coarse, regions = result["training"], result["training"].get("coarse"), result["coarse_to_fine"]
    hd95_mm = result["mean"]["hd95_mm"]
    figures = [
        result["row"],
        f"{coarse['steps']} + {training['steps']}" if coarse else str(training["steps"]),
        f"{coarse['duration_s']:.0f} + {training['duration_s']:.0f}" if coarse else f"{training['duration_s']:.0f}",
        f"{result['mean']['dice']:.3f} +- {result['std']['dice']:.3f}",
        "-" if hd95_mm is None else f"{hd95_mm:.1f}",
        f"{statistics.mean(result['windows']):.0f}",
        f"{statistics.mean(result['scan_s']):.2f}",
        f"{regions['mean_region_share']:.1%}, {len(regions['taken_whole'])}" if regions else "-",
    ]
    return "| " + " | ".join(figures) + " |"


def main(argv: list[str]) -> None:
    """Runs what is missing and prints the table."""
    if argv[1:] or set(_ROWS.value) - set(ROWS):
        raise app.UsageError(
            f"Expected flags only, and --rows of {', '.join(ROWS)}. Received: {argv[1:]}, {_ROWS.value}."
        )
    if not _PRINT_ONLY.value:
        for name in _ROWS.value:
            if not (RESULTS / f"{name}.json").is_file():
                run(name, Path(_RUNS.value))
    sys.stdout.write(table() + "\n")


if __name__ == "__main__":
    app.run(main)
