"""What a served model says of itself: facts from its run, without the names of any scan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from semisam_tf.config import Config
from semisam_tf.serving.pipeline import Pipeline


def describe(workdir: Path, record: dict[str, Any], which: str, pipeline: Pipeline, name: str) -> dict[str, Any]:
    """Metadata of a run.

    Args:
        workdir: Of the run; its `metrics.json`, if there is one, gives the scores.
        record: From `predictor.read_run`.
        which: "student" or "teacher".
        pipeline: What is served.
        name: Of the model on the server.

    Returns:
        JSON values by name. Case names stay out: they may tell who was scanned.
    """
    config: Config = record["config"]
    limits = pipeline.limits
    return {
        "name": name,
        "classes": config.n_classes,
        "channels": record["channels"],
        "training_spacing_mm": list(config.training_spacing_mm) or None,
        "orientation": record.get("orientation"),
        "clip_percentiles": [config.lower_percentile, config.upper_percentile],
        "window_vox": list(config.patch_size),
        "coarse_to_fine": _coarse_to_fine(config),
        "overlap": pipeline.overlap,
        "whole_scan": pipeline.whole_scan,
        "blend": pipeline.blend,
        "largest_component": config.largest_component,
        "network": {"name": config.network, "filters": config.filters, "normalisation": config.normalisation},
        "weights": which,
        "method": config.method,
        "sam_mode": config.sam_mode,
        "label_budget": {"labelled": len(record["labelled"]), "unlabelled": len(record["unlabelled"])},
        "training_steps": config.max_steps,
        "training_commit": record["git_commit"],
        "training_versions": record["versions"],
        "metrics": _metrics(workdir, which),
        "confidence": "Dice of mask and foreground probability: 2 sum(p m) / (sum(p) + sum(m)); 0 for an empty mask",
        "limits": {
            "axis_vox": limits.axis_vox,
            "scan_vox": limits.scan_vox,
            "compressed_bytes": limits.compressed_bytes,
        },
    }


def _coarse_to_fine(config: Config) -> dict[str, Any] | None:
    """How the region is found that the network sees; None where it sees the whole scan."""
    if not config.coarse_to_fine:
        return None
    return {
        "spacing_mm": list(config.coarse_spacing_mm),
        "window_vox": list(config.coarse_patch_size),
        "region_margin_mm": config.region_margin_mm,
        "located": "false where the first pass missed a class and the whole scan was segmented",
    }


def _metrics(workdir: Path, which: str) -> dict[str, Any] | None:
    """Means of `evaluate`, of the weights that are served; None where it has not been run on those."""
    path = workdir / "metrics.json"
    if not path.is_file():
        return None
    report = json.loads(path.read_text(encoding="utf-8"))
    if report.get("model") != which:
        return None
    return {
        "cases": len(report["cases"]),
        "trained_on": len(report.get("trained_on", [])),
        **{key: report[key] for key in ("mean", "std", "n_empty")},
    }
