"""Whether a run's best network can be told without labels: networks of every round, label-free signals, and Dice.

    python benchmarks/model_choice.py --workdir=runs/la_table/config_n4_seed0 --data_dir=../shared/la --name=la_4
    python benchmarks/model_choice.py --print_only

Candidates are student and teacher of each round. A signal is the mean, over some of the run's unlabelled scans, of
something known without a label; each would choose the candidate where it is largest. What semisam_tf does, whatever the
signals say, is the last round's teacher. Dice is that of the scoring cases, whose labels nothing else here sees.
No network is trained; one JSON a run below benchmarks/results/model_choice.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from machine import describe, measure_and_print

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "benchmarks" / "results" / "model_choice"
sys.path.insert(0, str(REPO))

# Signal -> what it is, in the table. All are the better the larger.
SIGNALS = {
    "agreement": "Dice of student and teacher",
    "certainty": "less entropy in and around the organ",
    "own_dice": "Dice of the mask with its own probabilities",
}
NETWORKS = ("student", "teacher")

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run, with its rounds.")
_NAME = flags.DEFINE_string("name", None, "Name of the result.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the scans and their labels.")
_CASES = flags.DEFINE_string("cases", "configs/la_dev.list", "File of the cases to score.")
_EVERY = flags.DEFINE_integer("every", 4, "Every so manieth unlabelled scan is asked for the signals.")
_PRINT_ONLY = flags.DEFINE_boolean("print_only", False, "Run nothing.")


def measure(workdir: Path, data_dir: str, cases: list[str], every: int) -> dict[str, Any]:
    """Signals and Dice of every candidate."""
    from semisam_tf.data.label_access import LabelLedger
    from semisam_tf.data.volumes import find_case, load_volume
    from semisam_tf.inference.metrics import case_metrics
    from semisam_tf.inference.predictor import load_predictor
    from semisam_tf.inference.ranking import mean_entropy
    from semisam_tf.inference.run_folder import read_run, rounds_of, run_id_of, unlabelled_cases
    from semisam_tf.sam.target import dice
    from semisam_tf.training.loop import load_unlabelled

    run = read_run(workdir)
    config = dataclasses.replace(run["config"], data_dir=data_dir)
    if config.coarse_to_fine:
        raise app.UsageError("Signals are taken of whole scans: name a run without --coarse_to_fine.")
    if seen := sorted({*run["labelled"], *run["unlabelled"]} & {*cases}):
        raise app.UsageError(f"{workdir} was trained on {', '.join(seen[:3])}, ...: name cases that it has not seen.")
    access = LabelLedger(workdir, run_id_of(run)).access("scoring")
    asked = unlabelled_cases(run, data_dir)[::every]
    candidates = []
    for number, folder in enumerate(rounds_of(workdir), start=1):
        predictors = {name: load_predictor(folder, name)[0] for name in NETWORKS}
        signals: dict[str, dict[str, list[float]]] = {name: {signal: [] for signal in SIGNALS} for name in NETWORKS}
        for case_id in asked:
            (grid,) = load_unlabelled(config, [case_id])
            probs = {name: predictor.probs(grid.image) for name, predictor in predictors.items()}
            masks = {name: found.argmax(axis=-1) > 0 for name, found in probs.items()}
            for name, found in signals.items():
                foreground = 1 - probs[name][..., 0]
                found["agreement"].append(dice(masks["student"], masks["teacher"]))
                found["certainty"].append(-mean_entropy(probs[name]))
                total = float(foreground.sum() + masks[name].sum())
                found["own_dice"].append(2 * float(foreground[masks[name]].sum()) / max(total, 1e-9))
        for name, predictor in predictors.items():
            scores = []
            for case_id in cases:
                spacing_mm = config.default_spacing_mm or None
                scan = load_volume(find_case(data_dir, case_id), with_label=access, default_spacing_mm=spacing_mm)
                scores.append(case_metrics(predictor.mask(scan), scan.label, scan.spacing_mm, config.n_classes)["dice"])
            means = {signal: round(statistics.mean(values), 5) for signal, values in signals[name].items()}
            candidates.append(
                {"round": number, "network": name, "dice": round(statistics.mean(scores), 5), "signals": means}
            )
            logging.info("Round %d, %s: Dice %.4f, %s.", number, name, candidates[-1]["dice"], means)
    return {"labelled": run["labelled"], "unlabelled_asked": asked, "candidates": candidates, "machine": describe()}


def table(result: dict[str, Any]) -> str:
    """Markdown table of one run: candidates, what each signal says of them (chosen: bold), and the Dice lost by it."""
    candidates = result["candidates"]
    best = max(candidate["dice"] for candidate in candidates)
    # Of equal ones the last, which is what would be taken anyway: student and teacher agree alike with each other.
    chosen = {signal: max(reversed(candidates), key=lambda c: c["signals"][signal]) for signal in SIGNALS}
    lines = [
        f"{result['name']}, signals over {len(result['unlabelled_asked'])} unlabelled scans",
        "",
        "| round | network | Dice % | " + " | ".join(SIGNALS.values()) + " |",
        "|---|---|---|" + "---|" * len(SIGNALS),
    ]
    for candidate in candidates:
        cells = [str(candidate["round"]), candidate["network"], f"{100 * candidate['dice']:.1f}"]
        for signal in SIGNALS:
            shown = f"{candidate['signals'][signal]:.3f}"
            cells.append(f"**{shown}**" if chosen[signal] is candidate else shown)
        lines.append("| " + " | ".join(cells) + " |")
    last = candidates[-1]
    losses = [f"{100 * (best - found['dice']):.1f}" for found in chosen.values()]
    lines.append(
        f"| points below the best | last teacher: {100 * (best - last['dice']):.1f} | | {' | '.join(losses)} |"
    )
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Measures, writes the JSON, prints the tables of all results present."""
    from semisam_tf.data.splits import read_cases

    def measured() -> dict[str, Any]:
        return measure(Path(_WORKDIR.value), _DATA_DIR.value, read_cases(_CASES.value), _EVERY.value)

    needed = {"workdir": _WORKDIR.value, "data_dir": _DATA_DIR.value, "name": _NAME.value}
    measure_and_print(argv, RESULTS, measured, table, needed, _PRINT_ONLY.value)


if __name__ == "__main__":
    app.run(main)
