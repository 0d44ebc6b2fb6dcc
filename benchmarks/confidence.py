"""Whether the served model's confidence ranks scans by their Dice: `python benchmarks/inference.py --confidence ...`.

The confidence is that of the signatures, `serving.pipeline.soft_dice`, of the mask that `predict` writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from machine import describe, keep

RESULTS = Path(__file__).resolve().parent / "results" / "confidence"
# Orders of the scans drawn for the p-value, all of them where there are fewer.
_ORDERS = 9999


def rank_correlation(confidence: list[float], dice: list[float]) -> dict[str, float | None]:
    """Spearman's rank correlation, and how often a chance order of the scans reaches it, either sign.

    Both None where one of the two is the same for all scans.
    """
    import numpy as np
    from scipy import stats

    if len(set(confidence)) < 2 or len(set(dice)) < 2:
        return {"spearman": None, "p": None}
    ranks = stats.rankdata(dice)
    test = stats.permutation_test(
        (confidence,), lambda x: stats.spearmanr(x, ranks).statistic, permutation_type="pairings",
        n_resamples=_ORDERS, rng=np.random.default_rng(0), vectorized=False,
    )  # fmt: skip
    return {"spearman": float(test.statistic), "p": float(test.pvalue)}


def measure(workdir: str, data_dir: str, cases: list[str]) -> dict[str, Any]:
    """Confidence and Dice of every scan, and their rank correlation."""
    import tensorflow as tf

    from semisam_tf.data.label_access import LabelLedger
    from semisam_tf.data.volumes import find_case, load_volume
    from semisam_tf.inference.metrics import case_metrics
    from semisam_tf.inference.predictor import load_predictor
    from semisam_tf.inference.run_folder import read_run, run_id_of
    from semisam_tf.serving.pipeline import soft_dice

    predictor, which = load_predictor(Path(workdir))
    config = predictor.config
    scoring = LabelLedger(workdir, run_id_of(read_run(Path(workdir)))).access("scoring")
    confidence, dice = {}, {}
    for case in cases:
        files = find_case(data_dir, case)
        volume = load_volume(files, with_label=scoring, default_spacing_mm=config.default_spacing_mm or None)
        found = predictor.predict(volume)
        foreground = tf.constant(found.probs[..., 1:].sum(-1).clip(0, 1))
        confidence[case] = round(float(soft_dice(tf.constant(found.mask), foreground)), 5)
        dice[case] = round(case_metrics(found.mask, volume.label, volume.spacing_mm, config.n_classes)["dice"], 5)
    return {
        "run": Path(workdir).name,
        "model": which,
        "confidence": confidence,
        "dice": dice,
        **rank_correlation(list(confidence.values()), list(dice.values())),
        "machine": describe(("keras", "numpy", "scipy")) | {"tensorflow": tf.__version__},
    }


def write(result: dict[str, Any]) -> None:
    """One JSON per run."""
    keep(RESULTS / f"{result['run']}.json", result)


def table() -> str:
    """Markdown table of all results present."""
    lines = ["| run | scans | Dice % | confidence % | rank correlation (p) |", "|---|---|---|---|---|"]
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        spans = [
            f"{100 * min(values):.1f} to {100 * max(values):.1f}"
            for values in (result["dice"].values(), result["confidence"].values())
        ]
        known = result["spearman"] is not None
        found = f"{result['spearman']:.2f} ({result['p']:.2g})" if known else "-"
        lines.append("| " + " | ".join([result["run"], str(len(result["dice"])), *spans, found]) + " |")
    return "\n".join(lines)
