"""Where a finished run is wrong, and what could be had from it: errors by place, rounds, their mean, the grid's limit.

    python benchmarks/errors.py --workdir=runs/la_table/config_n4_seed0 --data_dir=../shared/la --name=la_4
    python benchmarks/errors.py --print_only

Of each scoring case: Dice, precision and recall; which share of the organ is missed and which is added in each fifth of
its slices, lowest to highest; Dice of each round's teacher and of the mean of their probabilities; and the Dice of the
label itself once it has been brought to the training grid and back, which no network on that grid can pass.
No network is trained; one JSON a run below benchmarks/results/errors.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging
from machine import describe, measure_and_print

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "benchmarks" / "results" / "errors"
sys.path.insert(0, str(REPO))

FIFTHS = 5

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run, with its rounds.")
_NAME = flags.DEFINE_string("name", None, "Name of the result.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the scans and their labels.")
_CASES = flags.DEFINE_string("cases", "configs/la_dev.list", "File of the cases to look at.")
_PRINT_ONLY = flags.DEFINE_boolean("print_only", False, "Run nothing.")


def by_place(found: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """Errors of a mask bool [X, Y, Z], as shares of the organ's voxels, and of the slices that it spans.

    Returns:
        "precision", "recall", "missed" and "added" (a share for each fifth of the organ's slices), "added_beyond" them.
    """
    slices = np.flatnonzero(truth.any(axis=(0, 1)))
    fifths = np.array_split(np.arange(slices[0], slices[-1] + 1), FIFTHS)
    size, missed, added = int(truth.sum()), truth & ~found, found & ~truth
    inside = np.concatenate(fifths)
    return {
        "precision": float((found & truth).sum() / max(1, found.sum())),
        "recall": float((found & truth).sum() / size),
        "missed": [float(missed[:, :, part].sum() / size) for part in fifths],
        "added": [float(added[:, :, part].sum() / size) for part in fifths],
        "added_beyond": float((added.sum() - added[:, :, inside].sum()) / size),
    }


def measure(workdir: Path, data_dir: str, cases: list[str]) -> list[dict[str, Any]]:
    """What there is to say of each case."""
    from semisam_tf.data.label_access import LabelLedger
    from semisam_tf.data.volumes import find_case, load_volume
    from semisam_tf.inference.evaluation import largest_component
    from semisam_tf.inference.predictor import load_predictor
    from semisam_tf.inference.run_folder import read_run, rounds_of, run_id_of
    from semisam_tf.sam.target import dice

    run = read_run(workdir)
    if seen := sorted({*run["labelled"], *run["unlabelled"]} & {*cases}):
        raise app.UsageError(f"{workdir} was trained on {', '.join(seen[:3])}, ...: name cases that it has not seen.")
    access = LabelLedger(workdir, run_id_of(run)).access("scoring")
    teachers = [load_predictor(folder, "teacher")[0] for folder in rounds_of(workdir)]
    preprocessing, n_classes = teachers[-1].preprocessing, run["config"].n_classes
    if n_classes != 2:
        raise app.UsageError("Errors are taken apart for one organ; the run has more classes.")
    rows = []
    for case_id in cases:
        spacing_mm = run["config"].default_spacing_mm or None
        scan = load_volume(find_case(data_dir, case_id), with_label=access, default_spacing_mm=spacing_mm)
        truth, predictions = scan.label > 0, [teacher.predict(scan) for teacher in teachers]
        mean = np.mean([p.probs for p in predictions], axis=0).argmax(axis=-1).astype(np.uint8)
        if run["config"].largest_component:
            mean = largest_component(mean)
        grid = preprocessing.to_training_grid(scan, n_classes)
        back = preprocessing.probs_to_own_grid(np.eye(n_classes, dtype=np.float32)[grid.label], scan.size)
        rows.append(
            {
                "case_id": case_id,
                "rounds": [dice(prediction.mask > 0, truth) for prediction in predictions],
                "mean_of_rounds": dice(mean > 0, truth),
                "grid": dice(back.argmax(axis=-1) > 0, truth),
                **by_place(predictions[-1].mask > 0, truth),
            }
        )
        logging.info("%s: Dice %.3f", case_id, rows[-1]["rounds"][-1])
    return rows


def table(result: dict[str, Any]) -> str:
    """Markdown: a row a case, the worst first, and the means."""
    cases = sorted(result["cases"], key=lambda row: row["rounds"][-1])
    lines = [
        f"{result['name']}: Dice by round {', '.join(_mean(cases, 'rounds'))}; of the rounds' mean "
        f"{_mean(cases, 'mean_of_rounds')[0]}; of the labels on the training grid {_mean(cases, 'grid')[0]}",
        "",
        "| case | Dice % | precision % | recall % | missed, lowest to highest fifth, % of the organ | added |",
        "|---|---|---|---|---|---|",
    ]
    for row in cases:
        lines.append(_line(row["case_id"], [row]))
    lines.append(_line("mean", cases))
    return "\n".join(lines)


def _mean(rows: list[dict[str, Any]], name: str) -> list[str]:
    return [f"{value:.1f}" for value in np.atleast_1d(100 * np.mean([row[name] for row in rows], axis=0))]


def _line(title: str, rows: list[dict[str, Any]]) -> str:
    names = ("precision", "recall", "missed", "added")
    cells = [title, _mean(rows, "rounds")[-1], *(", ".join(_mean(rows, name)) for name in names)]
    return "| " + " | ".join(cells) + " |"


def main(argv: list[str]) -> None:
    """Measures, writes the JSON, prints the tables of all results present."""
    from semisam_tf.data.splits import read_cases

    def measured() -> dict[str, Any]:
        cases = measure(Path(_WORKDIR.value), _DATA_DIR.value, read_cases(_CASES.value))
        return {"cases": cases, "machine": describe()}

    needed = {"workdir": _WORKDIR.value, "data_dir": _DATA_DIR.value, "name": _NAME.value}
    measure_and_print(argv, RESULTS, measured, table, needed, _PRINT_ONLY.value)


if __name__ == "__main__":
    app.run(main)
