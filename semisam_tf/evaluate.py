"""Scores a finished run: `python -m semisam_tf.evaluate --workdir=DIR --data_dir=DIR --cases=FILE`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semisam_tf.config import WINDOW_BLEND, WINDOW_BLENDS, WINDOW_OVERLAP
from semisam_tf.options import OptionError, option, run_command
from semisam_tf.workdir import METRICS_FILE, SCORED_OVERLAYS_FILE

if TYPE_CHECKING:
    import numpy as np

    from semisam_tf.data.volumes import Volume
    from semisam_tf.inference.predictor import Predictor


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Scores a finished run on labelled scans: overlap and surface distances on the scans' own grid."""

    workdir: str = option("", "Folder of a finished run.")
    data_dir: str = option("", "Folder of scans, in any layout that README lists.")
    cases: str = option("", "File of case names to score, one a line.")
    output: str = option("", "JSON file to write. Empty: <workdir>/metrics.json.")
    model: str = option("auto", "auto: as the run decided.", choices=("auto", "student", "teacher"))
    overlap: float = option(WINDOW_OVERLAP, "Share of a sliding window that neighbours have in common.", unit="0..1")
    blend: str = option(
        WINDOW_BLEND,
        "How overlapping windows are averaged: uniform is the plain mean, gaussian trusts the middle of a window most.",
        choices=WINDOW_BLENDS,
    )
    whole_scan: bool = option(
        False,
        "The network sees the whole scan at once: faster. For runs with --normalisation=batch or none; --overlap and "
        "--blend do not count then.",
    )
    default_spacing_mm: tuple[float, ...] = option(
        (), "Voxel spacing x,y,z of files that store none. Empty: as in training.", unit="mm"
    )
    picture: str = option("", "PNG of the best, median and worst case. Empty: beside the output.")
    both_networks: bool = option(
        True, "Predict the cases that report.html draws with the other network as well, student or teacher."
    )
    sam_pictures: bool = option(
        True, "Ask the run's SAM, where it had one that is there still, about the cases that report.html draws."
    )
    save_masks: str = option("", "Folder for predicted masks (NIfTI, in each scan's own geometry). Empty: none.")
    min_dice: float = option(0.0, "Exit with 1 when the mean Dice is below this.", unit="0..1")


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Scores every case, writes JSON and picture, and brings the run's report up to date.

    The report of a run shows `<workdir>/metrics.json`: an evaluation that is written elsewhere leaves it as it is.

    Returns:
        The JSON's contents (see README), and under "output", "picture" and "report" the files' names; "report" is
        empty where there is none of this evaluation.

    Raises:
        ValueError, FileNotFoundError: A case, its label or the run is missing or unreadable; all cases are looked up
            before the first is predicted.
    """
    for name in ("workdir", "data_dir", "cases"):
        if not getattr(config, name):
            raise OptionError(f"--{name} is needed (--help lists every flag).")
    from absl import logging

    from semisam_tf.atomic import write_json
    from semisam_tf.data.label_access import LabelLedger
    from semisam_tf.data.splits import read_cases
    from semisam_tf.data.volumes import find_case, load_volume, save_mask
    from semisam_tf.inference.evaluation import evaluate_cases
    from semisam_tf.inference.picture import save_picture
    from semisam_tf.inference.predictor import load_predictor
    from semisam_tf.inference.region import RegionTally
    from semisam_tf.inference.run_folder import read_result, read_run, run_id_of

    workdir = Path(config.workdir)
    predictor, which = load_predictor(
        workdir, config.model, config.overlap, blend=config.blend, whole_scan=config.whole_scan
    )
    case_ids = read_cases(config.cases)
    files = {case_id: find_case(config.data_dir, case_id) for case_id in case_ids}
    unlabelled = [case_id for case_id, found in files.items() if found.label is None]
    if unlabelled:
        raise ValueError(f"Expected a label file for every case of {config.cases}. Received none for: {unlabelled}.")
    run = read_run(workdir)
    behind_targets = run.get("targets_learned_from") or []
    trained_on = sorted({*run["labelled"], *run["unlabelled"], *behind_targets} & set(case_ids))
    if trained_on:
        logging.warning("%d of these cases were trained on: %s. This is no score on unseen scans.", *_few(trained_on))
    spacing_mm = config.default_spacing_mm or predictor.config.default_spacing_mm or None
    masks: dict[str, np.ndarray] = {}
    ledger = LabelLedger(workdir, run_id_of(run))

    def load(case_id: str) -> Volume:
        return load_volume(files[case_id], with_label=ledger.access("scoring"), default_spacing_mm=spacing_mm)

    def load_image(case_id: str) -> Volume:
        return load_volume(files[case_id], with_label=False, default_spacing_mm=spacing_mm)

    def keep(volume: Volume, mask: np.ndarray, scores: dict[str, Any]) -> None:
        masks[volume.case_id] = mask
        if config.save_masks:
            save_mask(Path(config.save_masks) / f"{volume.case_id}.nii.gz", mask, volume)
        logging.info("%d/%d  %s  Dice %.4f", len(masks), len(case_ids), volume.case_id, scores["dice"])

    regions = RegionTally()

    def predict(volume: Volume) -> np.ndarray:
        prediction = predictor.predict(volume)
        regions.add(volume, prediction.region)
        return prediction.mask

    report = evaluate_cases(predict, load, case_ids, predictor.config.n_classes, keep)
    output = Path(config.output or workdir / METRICS_FILE)
    picture = Path(config.picture or output.with_suffix(".png"))
    report |= {"model": which, "trained_on": trained_on, "sam": read_result(workdir)["sam"]}
    report |= {"oracle_prompts": run.get("oracle_prompts", False), "label_ledger": ledger.mark()}
    report["command"] = sys.argv
    if predictor.config.coarse_to_fine:
        report["coarse_to_fine"] = regions.summary()
    write_json(output, report)
    save_picture(picture, report, load, masks)
    report |= {"output": str(output), "picture": str(picture), "report": ""}
    if output.resolve() == (workdir / METRICS_FILE).resolve():
        report["report"] = _refresh_report(config, predictor, which, report, load, load_image, masks)
    return report


def _refresh_report(
    config: EvaluateConfig,
    predictor: Predictor,
    which: str,
    report: dict[str, Any],
    load: Callable[[str], Volume],
    load_image: Callable[[str], Volume],
    masks: Mapping[str, np.ndarray],
) -> str:
    """Draws the best, the median and the worst case for the run's report and writes it; returns its path.

    The scores are safe by now: what goes wrong here is a warning, and the path is empty.
    """
    from absl import logging

    from semisam_tf.atomic import write_json
    from semisam_tf.inference.evaluation import best_median_worst
    from semisam_tf.inference.overlays import scored_overlays
    from semisam_tf.inference.predictor import load_predictor
    from semisam_tf.report.page import write_report
    from semisam_tf.report.run_files import sha256_of

    workdir, n_classes = Path(config.workdir), predictor.config.n_classes
    drawn = [case_id for _, case_id in best_median_worst(report)]
    predictions: dict[str, Mapping[str, np.ndarray]] = {which: masks}
    try:
        other = {"teacher": "student", "student": "teacher"}[which]
        # predict and serving need one network's weights only; the other's may have been removed.
        if config.both_networks and (workdir / f"{other}.weights.h5").is_file():
            second, _ = load_predictor(workdir, other, config.overlap, blend=config.blend, whole_scan=config.whole_scan)
            predictions[other] = {case_id: second.mask(load_image(case_id)) for case_id in drawn}
        if config.sam_pictures:
            predictions["sam"] = _sam_masks(workdir, predictor, drawn, load_image)
        overlays = scored_overlays(report, load, predictions, n_classes)
        sha256 = sha256_of(workdir / METRICS_FILE)
        write_json(workdir / SCORED_OVERLAYS_FILE, {"metrics_sha256": sha256, "cases": overlays})
        return str(write_report(workdir))
    except (OSError, ValueError) as error:
        logging.warning("The report of %s is not up to date: %s", workdir, error)
        return ""


def _sam_masks(
    workdir: Path, predictor: Predictor, case_ids: list[str], load_image: Callable[[str], Volume]
) -> dict[str, np.ndarray]:
    """What the run's SAM answers to the prediction of each case, uint8 [X, Y, Z] on the scan's own grid.

    Nothing, and a line in the log, where the run's SAM is not to be had: scores do not need it.
    """
    import numpy as np
    from absl import logging

    from semisam_tf.training.sam_setup import sam_ensemble, sam_of_run, sam_sessions

    masks: dict[str, np.ndarray] = {}
    try:
        if not sam_of_run(workdir, predictor.config):
            return masks
        # As on one crop: nothing is kept on disk, and no trust decides about the picture.
        asked = dataclasses.replace(
            predictor.config, sam_mode="online", sam_max_slices=0, sam_axis=predictor.config.sam_axis[:1],
            sam_trust="one", sam_selftest=False, oracle_prompts=False, sam_allow_cpu=True,
        )  # fmt: skip
        logging.info("SAM is asked about %d scans for the report; --nosam_pictures leaves that out.", len(case_ids))
        ensemble = sam_ensemble(asked, [], sam_sessions(asked))
        for case_id in case_ids:
            scan = load_image(case_id)
            grid = predictor.training_grid(scan)
            said = ensemble.target(grid.image, predictor.probs_for_targets(grid.image), spacing_mm=grid.spacing_mm)
            masks[case_id] = predictor.mask_to_own_grid(said.probs.argmax(axis=-1).astype(np.uint8), scan)
    except Exception as error:  # ONNX Runtime's own have no common base; a picture is no reason to lose the report
        logging.warning("The report's cases are drawn without SAM. %s: %s", type(error).__name__, error)
    return masks


def _few(names: list[str]) -> tuple[int, str]:
    return len(names), ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def evaluate_command(config: EvaluateConfig) -> int:
    """Evaluates, prints the means, and holds them against `--min_dice`."""
    from semisam_tf.flavour import require_tensorflow

    require_tensorflow()
    report = evaluate(config)
    mean, std = report["mean"], report["std"]
    shown = "  ".join(f"{name} {_figure(mean[name])} +- {_figure(std[name])}" for name in mean)
    sys.stdout.write(f"{len(report['cases'])} cases, {report['model']}: {shown}, empty {report['n_empty']}\n")
    if "coarse_to_fine" in report:
        found = report["coarse_to_fine"]
        sys.stdout.write(
            f"Coarse to fine: regions of {found['mean_region_share']:.1%} of a scan; {len(found['taken_whole'])} of "
            f"{len(report['cases'])} cases taken whole, since the coarse pass missed a class\n"
        )
    if report["sam"]:
        sam = report["sam"]
        calls = (
            f"{sam['sam_calls']:.0f} SAM calls ({sam['slices_encoded']:.0f} slices encoded, "
            f"{sam['prompts_decoded']:.0f} prompts decoded)"
        )
        if "sam_share" in sam:  # older versions do not say
            calls += f", SAM has a part in {sam['sam_share']:.1%} of a scan's target"
        sys.stdout.write(
            f"In training: {calls}, {sam['taught_share']:.1%} of the unlabelled voxels taught, mean weight "
            f"{sam['mean_weight']:.3f}\n"
        )
    sys.stdout.write(f"Metrics: {report['output']}\nPicture: {report['picture']}\n")
    if report["oracle_prompts"]:
        sys.stdout.write("ORACLE PROMPTS: SAM saw the labels of the unlabelled scans. No semi-supervised result.\n")
    if report["report"]:
        sys.stdout.write(f"Report: {report['report']}\n")
    if mean["dice"] < config.min_dice:
        sys.stderr.write(f"error: mean Dice {mean['dice']:.4f} is below --min_dice={config.min_dice}.\n")
        return 1
    return 0


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(EvaluateConfig, "semisam_tf.evaluate", sys.argv[1:] if argv is None else argv, evaluate_command)


if __name__ == "__main__":
    sys.exit(main())
