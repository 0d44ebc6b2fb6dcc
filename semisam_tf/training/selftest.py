"""SAM's self-test as part of a run: made once, kept in the workdir, drawn, and said in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from semisam_tf.atomic import replacing, write_json
from semisam_tf.config import Config
from semisam_tf.data.volumes import Volume
from semisam_tf.sam.ensemble import SamEnsemble
from semisam_tf.sam.selftest import SelfTest, run_selftest

SELFTEST_FILE, SELFTEST_PICTURE = "sam_selftest.json", "sam_selftest.png"


def selftest_of(config: Config, ensemble: SamEnsemble, labelled: list[Volume], asking: dict[str, Any]) -> SelfTest:
    """The run's self-test: from its workdir, or made now from the labelled scans and written there.

    Args:
        asking: JSON values that decide what SAM says: a test that asked in another way is made anew.
    """
    workdir = Path(config.workdir)
    path = workdir / SELFTEST_FILE
    fused = (config.sam_fusion, config.sam_smoothing_vox)
    asking = asking | {"--sam_fusion": fused[0], "--sam_smoothing_vox": fused[1]}
    there = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if there.get("asking") == asking:
        found = SelfTest.from_dict(there)
    else:
        logging.info("SAM self-test on %d labelled scans.", len(labelled))
        scans = [(v.case_id, v.image, v.label, v.spacing_mm) for v in labelled if v.label is not None]
        found = run_selftest(ensemble, scans, config.n_classes, config.seed, *fused)
        write_picture(workdir / SELFTEST_PICTURE, found)
        write_json(path, found.to_dict() | {"asking": asking})
    logging.info("%s", found.verdict())
    return found


def write_picture(path: Path, found: SelfTest) -> None:
    """The target's Dice over the prompt's, with the line that the trust is from."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.6), layout="constrained")
    axes = figure.subplots()
    prompts = np.array([point.prompt_dice for point in found.points])
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, label="no better than its prompt")
    axes.scatter(prompts, [point.target_dice for point in found.points], s=18, label="a spoilt mask")
    grid = np.linspace(prompts.min(), prompts.max(), 200)
    axes.plot(grid, [d + found.gain(float(d)) for d in grid], color="tab:red", label="expected")
    if found.crossing:
        axes.axvline(found.crossing, color="tab:red", linestyle=":", label=f"SAM helps below {found.crossing:.2f}")
    axes.set(xlabel="Dice of the prompt", ylabel="Dice of what SAM teaches", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
