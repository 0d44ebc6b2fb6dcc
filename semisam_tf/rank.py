"""Orders unlabelled scans by how much labelling them should help: `python -m semisam_tf.rank --workdir=DIR`."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import logging

from semisam_tf.options import OptionError, option, run_command

if TYPE_CHECKING:
    import numpy as np

    from semisam_tf.data.volumes import Volume
    from semisam_tf.inference.predictor import Predictor
    from semisam_tf.inference.ranking import Opinion
    from semisam_tf.sam.ensemble import SamEnsemble


@dataclasses.dataclass(frozen=True)
class RankConfig:
    """Orders unlabelled scans by how much labelling them should help, with a picture of each."""

    workdir: str = option("", "Folder of a finished run.")
    data_dir: str = option("", "Folder of scans. Empty: the run's.")
    cases: str = option("", "File of case names, one a line. Empty: the training cases that the run has no label of.")
    output: str = option("", "Folder for rank.json and the pictures. Empty: <workdir>/rank.")
    sam_dir: str = option("", "Folders of SAM exports whose disagreement counts, too. Empty: none.")
    sam_slice_step: int = option(4, "Every so manieth slice is prompted.", unit="slices")
    sam_cache_dir: str = option("", "Embeddings on disk. Empty: <output>/sam_cache.")
    sam_cache_gib: float = option(
        0.0, "Embeddings on disk take at most this much; scans unused for longest go first. 0: no limit.", unit="GiB"
    )
    sam_providers: str = option("", "ONNX Runtime providers, separated by commas. Empty: the run's.")
    sam_gpu_id: int = option(-1, "CUDA's number of the GPU that SAM runs on; -1: the run's.")
    sam_gpu_mem_gib: float = option(
        0.0, "Most memory that each of a SAM's two graphs may take on the GPU; 0: the run's limit.", unit="GiB"
    )
    pictures: int = option(10, "Pictures of so many scans, best first.", unit="scans")


def rank(config: RankConfig) -> list[dict[str, Any]]:
    """Ranks, writes `rank.json` and the pictures; opens no label but those of the run's labelled scans' features.

    Returns:
        An entry a scan, best first: "case_id", "score" and the measures of `ranking.DISAGREEMENTS`; null where there
        is none, since SAM was not asked, or nothing was found in the scan.
    """
    from semisam_tf.atomic import write_json
    from semisam_tf.data.label_access import LabelLedger
    from semisam_tf.data.splits import read_cases
    from semisam_tf.inference.predictor import load_predictor
    from semisam_tf.inference.ranking import features_of, order
    from semisam_tf.inference.run_folder import read_run, run_id_of, unlabelled_cases
    from semisam_tf.training.coarse import RegionCutter
    from semisam_tf.training.loop import load_labelled, load_unlabelled
    from semisam_tf.training.sam_setup import sam_ensemble, sam_sessions

    if not config.workdir:
        raise OptionError("--workdir is needed (--help lists every flag).")
    workdir = Path(config.workdir)
    output = Path(config.output or workdir / "rank")
    run = read_run(workdir)
    settings = dataclasses.replace(
        run["config"].with_device_of(config),
        data_dir=config.data_dir or run["config"].data_dir,
        sam_mode="offline",
        sam_dir=config.sam_dir,
        sam_slice_step=config.sam_slice_step,
        sam_trust="one",
        sam_selftest=False,
        sam_cache_dir=config.sam_cache_dir or str(output / "sam_cache"),
        sam_cache_gib=config.sam_cache_gib,
    )
    cases = read_cases(config.cases) if config.cases else unlabelled_cases(run, config.data_dir)
    access = LabelLedger(workdir, run_id_of(run)).access("self_test")
    predictors = {which: load_predictor(workdir, which)[0] for which in ("student", "teacher")}
    cut = RegionCutter(predictors["teacher"].locator)
    labelled = load_labelled(settings, run["labelled"], access, cut)
    ensemble = sam_ensemble(settings, labelled, sam_sessions(settings)) if settings.sam_folders() else None
    opinions, masks = {}, {}
    for case_id in cases:
        (volume,) = load_unlabelled(settings, [case_id], cut)
        predictors["teacher"].require_own_orientation(volume)
        opinions[case_id], masks[case_id] = opinion_of(volume, predictors, ensemble)
    known = [features_of(v.image, v.label, v.spacing_mm) for v in labelled if v.label is not None]
    entries = [
        {"case_id": case_id, "score": round(score, 5), **_as_json(opinions[case_id].disagreement)}
        for case_id, score in order(opinions, known)
    ]
    write_json(output / "rank.json", {"labelled": run["labelled"], "scans": entries})
    for place, entry in enumerate(entries[: config.pictures], start=1):
        (volume,) = load_unlabelled(settings, [str(entry["case_id"])], cut)
        _draw(output, place, entry, volume, masks[volume.case_id])
    return entries


def opinion_of(
    volume: Volume, predictors: dict[str, Predictor], ensemble: SamEnsemble | None
) -> tuple[Opinion, np.ndarray]:
    """What student, teacher and SAM make of a scan in the training grid, and the teacher's mask."""
    import numpy as np

    from semisam_tf.inference.ranking import Opinion, features_of, mean_entropy
    from semisam_tf.sam.session import SamCallError
    from semisam_tf.sam.target import class_dice

    probs = {which: predictor.probs(volume.image) for which, predictor in predictors.items()}
    masks = {which: array.argmax(axis=-1).astype(np.uint8) for which, array in probs.items()}
    disagreement: dict[str, float | None] = {
        "student_teacher": 1 - class_dice(masks["student"], masks["teacher"]),
        "uncertainty": mean_entropy(probs["teacher"]),
    }
    if ensemble is not None:
        prompting = predictors["teacher"].for_targets(probs["teacher"])
        disagreement["sam_teacher"] = None
        try:
            said = ensemble.target(volume.image, prompting, key=volume.case_id, spacing_mm=volume.spacing_mm)
        except SamCallError as error:
            logging.warning("SAM failed on %s, which is ranked without its opinion: %s", volume.case_id, error)
        else:
            if said.scores["prompts"]:
                disagreement["sam_teacher"] = 1 - said.scores["agreement"]
    if not masks["teacher"].any():
        # Student, teacher and SAM agree on nothing at all: no certainty, but the network's worst failure.
        logging.warning("Nothing is found in %s: it counts as the most doubtful in all measures.", volume.case_id)
        disagreement = dict.fromkeys(disagreement, math.inf)
    return Opinion(disagreement, features_of(volume.image, masks["teacher"], volume.spacing_mm)), masks["teacher"]


def _as_json(disagreement: dict[str, float | None]) -> dict[str, float | None]:
    """JSON has no infinity."""
    return {name: None if value is None or math.isinf(value) else value for name, value in disagreement.items()}


def _draw(output: Path, place: int, entry: dict[str, Any], volume: Volume, mask: np.ndarray) -> None:
    from semisam_tf.inference.picture import CasePicture, save_rows

    title = f"{place}: {volume.case_id}\nscore {entry['score']:.3f}"
    name = volume.case_id.replace("/", "_")
    save_rows(output / f"{place:03d}_{name}.png", [CasePicture(title, volume, mask)])


def rank_command(config: RankConfig) -> int:
    """Ranks and prints the order."""
    from semisam_tf.flavour import require_onnxruntime, require_tensorflow

    require_tensorflow()
    require_onnxruntime()
    for place, entry in enumerate(rank(config), start=1):
        shown = "  ".join(
            f"{name} {'-' if value is None else f'{value:.3f}'}" for name, value in entry.items() if name != "case_id"
        )
        sys.stdout.write(f"{place:3d}  {entry['case_id']}  {shown}\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(RankConfig, "semisam_tf.rank", sys.argv[1:] if argv is None else argv, rank_command)


if __name__ == "__main__":
    sys.exit(main())
