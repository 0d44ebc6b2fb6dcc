"""What SAM's targets are worth: trusts, margins, axes and fusion compared on scans that a finished run has no label of.

    python benchmarks/sam_targets.py --workdir=runs/la_1/rounds/1 --data_dir=../shared/la --name=la_1_round_1
    python benchmarks/sam_targets.py --print_only

The run's prediction prompts SAM as `semisam_tf.pseudolabel` does; the targets of each way of asking, trusting and
fusing are held against the labels of the run's unlabelled scans, or of those in the list --cases. The labels are opened
here only, after all training. Of unlabelled scans this explains a choice and does not make one; choices are made on the
development scans, `--cases=configs/la_dev.list`. No network is trained; one JSON a run below
benchmarks/results/sam_targets.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging
from machine import describe, measure_and_print

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "benchmarks" / "results" / "sam_targets"
sys.path.insert(0, str(REPO))

SMOOTHING_VOX = 0.7


@dataclasses.dataclass(frozen=True)
class Way:
    """How SAM is asked (boxes with these margins, slices across these axes), how far believed, and how fused."""

    margin_vox: tuple[int, ...]
    trust: str
    fusion: str = "mean"
    axis: tuple[int, ...] = (2,)


WAYS = {
    "SAM alone, margin 0": Way((0,), "one", "sam"),
    "SAM alone, margin 2": Way((2,), "one", "sam"),
    "SAM alone, margin 4": Way((4,), "one", "sam"),
    "SAM alone, margins fused": Way((0, 2, 4), "one", "sam"),
    "mean with SAM, margin 2": Way((2,), "one"),
    **{
        f"mean with SAM, margins fused, trust {trust}": Way((0, 2, 4), trust)
        for trust in ("one", "iou", "prediction", "continuity", "agreement", "prior", "selftest")
    },
    **{f"mean with SAM, margins fused, axis {axis}": Way((0, 2, 4), "agreement", axis=(axis,)) for axis in (0, 1)},
    "mean with SAM, margins and three axes fused": Way((0, 2, 4), "agreement", axis=(0, 1, 2)),
}
PREDICTION = "prediction"
# What SAM is prompted with; and what self-training without SAM learns from, and so what SAM has to beat.
PIECES = "prediction without islands"
SMOOTHED = "prediction, smoothed"

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run.")
_NAME = flags.DEFINE_string("name", None, "Name of the result.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the scans and their labels.")
_SAM_DIR = flags.DEFINE_string("sam_dir", "models/sam_lite_medsam", "SAM export.")
_CASES = flags.DEFINE_string("cases", None, "File of cases to look at instead of the run's unlabelled ones.")
_EVERY = flags.DEFINE_integer("every", 3, "Every so manieth of the scans is looked at.")
_CACHE = flags.DEFINE_string("sam_cache_dir", "runs/sam_cache", "SAM's embeddings.")
_PRINT_ONLY = flags.DEFINE_boolean("print_only", False, "Run nothing.")


def measure(workdir: Path, data_dir: str, every: int) -> dict[str, Any]:
    """Dice of every way's target, scan by scan, with what SAM said of itself."""
    from semisam_tf.data.label_access import LabelLedger, outside_runs
    from semisam_tf.data.preprocess import preprocessing_of
    from semisam_tf.data.splits import read_cases
    from semisam_tf.data.volumes import find_case, load_volume
    from semisam_tf.inference.predictor import load_predictor
    from semisam_tf.inference.run_folder import read_run, run_id_of, unlabelled_cases
    from semisam_tf.sam.fusion import fuse
    from semisam_tf.sam.target import SamTarget, dice
    from semisam_tf.training.loop import load_labelled
    from semisam_tf.training.sam_setup import sam_ensemble, sam_sessions
    from semisam_tf.training.selftest import SELFTEST_FILE

    run = read_run(workdir)
    predictor, which = load_predictor(workdir)
    settings = dataclasses.replace(
        run["config"], data_dir=data_dir, sam_mode="offline", sam_dir=_SAM_DIR.value, sam_slice_step=4,
        sam_cache_dir=_CACHE.value, sam_prompts="auto", sam_selftest=False, workdir=str(workdir / "sam_targets"),
    )  # fmt: skip
    Path(settings.workdir).mkdir(exist_ok=True)
    sessions = sam_sessions(settings)
    labelled = load_labelled(settings, run["labelled"], LabelLedger(workdir, run_id_of(run)).access("self_test"))
    ensembles = {}
    for name, way in WAYS.items():
        config = dataclasses.replace(
            settings, sam_margin_vox=way.margin_vox, sam_trust=way.trust, sam_axis=way.axis, sam_fusion=way.fusion,
            sam_smoothing_vox=SMOOTHING_VOX,
        )  # fmt: skip
        ensembles[name] = sam_ensemble(config, labelled, sessions)
    cases = (read_cases(_CASES.value) if _CASES.value else unlabelled_cases(run, data_dir))[::every]
    found: dict[str, dict[str, list[float]]] = {}
    preprocessing = preprocessing_of(settings)
    for number, case_id in enumerate(cases, start=1):
        scan = load_volume(
            find_case(data_dir, case_id), with_label=outside_runs("a benchmark"),
            default_spacing_mm=settings.default_spacing_mm or None,
        )  # fmt: skip
        grid = preprocessing.to_training_grid(scan, settings.n_classes)
        raw = predictor.probs(grid.image)
        predicted = predictor.for_targets(raw)
        truth = grid.label > 0
        alone, _ = fuse(SamTarget.silent(predicted.shape), predicted, "mean", SMOOTHING_VOX)
        rows = {
            PREDICTION: {"dice": dice(raw.argmax(axis=-1) > 0, truth)},
            PIECES: {"dice": dice(predicted.argmax(axis=-1) > 0, truth)},
            SMOOTHED: {"dice": dice(alone.argmax(axis=-1) > 0, truth)},
        }
        for name, ensemble in ensembles.items():
            way = WAYS[name]
            said = ensemble.target(grid.image, predicted, key=case_id, spacing_mm=grid.spacing_mm)
            probs, _ = fuse(said, predicted, way.fusion, SMOOTHING_VOX)
            if way.fusion == "sam":
                # Where SAM was not asked or has no answer the prediction stands, as it does in a mean.
                probs = np.where((said.weight > 0)[..., None], probs, predicted)
            rows[name] = {"dice": dice(probs.argmax(axis=-1) > 0, truth)} | {
                score: said.scores.get(score, 0.0) for score in ("agreement", "weighted_share", "mean_weight")
            }
        for name, row in rows.items():
            for score, value in row.items():
                found.setdefault(name, {}).setdefault(score, []).append(round(float(value), 4))
        logging.log_every_n_seconds(logging.INFO, "%d of %d scans.", 15, number, len(cases))
    kind = "development" if _CASES.value else "unlabelled"
    return {
        "kind": kind,
        "model": which,
        "labelled": run["labelled"],
        "cases": cases,
        "selftest": json.loads((Path(settings.workdir) / SELFTEST_FILE).read_text(encoding="utf-8"))["verdict"],
        "ways": found,
        "machine": describe(),
    }


def table(result: dict[str, Any]) -> str:
    """Markdown table of one run: mean Dice of each way's target, and its gain scan by scan."""
    lines = [
        f"{len(result['cases'])} {result.get('kind', 'unlabelled')} scans of {result['name']}",
        *(["", f"The self-test beforehand: {result['selftest']}"] if "selftest" in result else []),
        "",
        "| target | Dice % | scans better than the smoothed prediction | gain over it | SAM's share, weight |",
        "|---|---|---|---|---|",
    ]
    before = result["ways"][SMOOTHED]["dice"]
    for name, scores in result["ways"].items():
        gains = [100 * (a - b) for a, b in zip(scores["dice"], before, strict=True)]
        cells = [name, f"{100 * statistics.mean(scores['dice']):.1f}", "-", "-", "-"]
        if name not in (PREDICTION, PIECES, SMOOTHED):
            error = statistics.stdev(gains) / len(gains) ** 0.5
            cells[2] = f"{sum(gain > 0 for gain in gains)}"
            cells[3] = f"{statistics.mean(gains):+.2f} +- {error:.2f}"
            share, weight = (statistics.mean(scores[score]) for score in ("weighted_share", "mean_weight"))
            cells[4] = f"{share:.1%}, {weight:.2f}"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Measures, writes the JSON, prints the tables of all results present."""

    def measured() -> dict[str, Any]:
        return measure(Path(_WORKDIR.value), _DATA_DIR.value, _EVERY.value)

    needed = {"workdir": _WORKDIR.value, "data_dir": _DATA_DIR.value, "name": _NAME.value}
    measure_and_print(argv, RESULTS, measured, table, needed, _PRINT_ONLY.value)


if __name__ == "__main__":
    app.run(main)
