"""Rounds of self-training: each trains afresh on the targets that the one before made for the unlabelled scans.

Reference: self-training with a SAM's help, as in SemiSAM-O1; the fusion of both opinions is ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from absl import logging

from semisam_tf.atomic import sweep
from semisam_tf.config import Config, validate
from semisam_tf.data.label_access import LabelLedger
from semisam_tf.data.splits import split_of
from semisam_tf.data.volumes import Volume, find_case
from semisam_tf.distribution.devices import together
from semisam_tf.distribution.shares import require_shares
from semisam_tf.inference.label_audit import labels_behind
from semisam_tf.inference.predictor import SMALLEST_PIECE, load_predictor
from semisam_tf.inference.run_folder import read_run, run_id_of
from semisam_tf.options import OptionError
from semisam_tf.sam.ensemble import SamEnsemble
from semisam_tf.sam.fusion import fuse
from semisam_tf.sam.session import SamCallError
from semisam_tf.sam.target import SamTarget
from semisam_tf.shards import Shard, locked_for
from semisam_tf.training import record
from semisam_tf.training.coarse import RegionCutter
from semisam_tf.training.loop import load_labelled, load_unlabelled, scan_cache_of, train_once
from semisam_tf.training.pseudolabels import LEARNED_FROM, making_of, require_same_making, target_path, write_target
from semisam_tf.training.sam_setup import asking_of, looks_at_labels, sam_ensemble, sam_sessions
from semisam_tf.training.sam_teaching import MOST_FAILURES
from semisam_tf.workdir import ROUNDS_FOLDER

# Apart enough that the rounds of neighbouring seeds never meet.
_SEED_STRIDE = 1000


def train(config: Config) -> dict[str, Any]:
    """Trains, or goes on training, the run that `config` describes, with all its rounds.

    Round r of those before the last lies in `<workdir>/rounds/<r>`, a run like any other, and its targets in `targets`
    below it. Nothing in them comes from a label outside the labelled N.

    Returns, raises: As `train_once` of the last round.
    """
    validate(config)
    require_shares(config)
    with together():
        return _train(config)


def _train(config: Config) -> dict[str, Any]:
    if config.rounds > 1:
        _refuse_what_would_fail_later(config)
    targets_dir = config.targets_dir
    for number in range(1, config.rounds):
        earlier = earlier_round(config, number, targets_dir)
        logging.info("Round %d of %d.", number, config.rounds)
        train_once(earlier)
        targets_dir = str(Path(earlier.workdir) / "targets")
        split = split_of(config)
        with targets_held(Path(targets_dir)):
            make_targets(config, Path(earlier.workdir), Path(targets_dir), split.unlabelled, labelled=split.labelled)
    if config.rounds > 1:
        logging.info("Round %d of %d.", config.rounds, config.rounds)
    return train_once(dataclasses.replace(config, targets_dir=targets_dir))


def _refuse_what_would_fail_later(config: Config) -> None:
    """Says now what else would be found after a round or two: the first looks at no SAM and at no unlabelled scan."""
    record.check_same_run(config, {})
    sam_sessions(config)
    if config.quickstart_cohort and not (Path(config.data_dir) / "train.list").is_file():
        return  # the first round makes it, and its scans are as they should be
    unlabelled = split_of(config).unlabelled
    if not unlabelled:
        raise OptionError("No case is unlabelled, and --rounds learn from such: lower --labeled.")
    for case_id in unlabelled:
        find_case(config.data_dir, case_id)
    (volume,) = load_unlabelled(config, unlabelled[:1])
    if config.sam_folders() and config.sam_channel >= volume.image.shape[-1]:
        raise OptionError(f"--sam_channel: expected less than the scans' {volume.image.shape[-1]} channels.")


def earlier_round(config: Config, number: int, targets_dir: str) -> Config:
    """Settings of round `number` (from 1) before the last: the first has no target to learn from."""
    return dataclasses.replace(
        config,
        workdir=str(Path(config.workdir) / ROUNDS_FOLDER / str(number)),
        rounds=1,
        round_steps=0,
        max_steps=config.round_steps or config.max_steps,
        sam_mode="offline" if targets_dir else "off",
        targets_dir=targets_dir,
        seed=config.seed + _SEED_STRIDE * number,
        quickstart_cohort=config.quickstart_cohort and number == 1,
    )


@contextlib.contextmanager
def targets_held(folder: Path, shard: Shard | None = None) -> Iterator[None]:
    """Holds a folder of targets: alone, and cleared of what killed processes left, or with the other shards.

    Raises:
        RuntimeError: Another process writes targets there.
    """
    with locked_for(folder, "folder of targets", shard):
        if shard is None:
            sweep(folder)
        yield


def make_targets(
    config: Config,
    workdir: Path,
    folder: Path,
    case_ids: Sequence[str],
    labelled: Sequence[str],
    wanted: str = "auto",
) -> None:
    """Writes the targets of those scans that have none yet, from the finished run in `workdir`.

    Args:
        config: How scans are read and SAM is asked.
        workdir: The run that predicts.
        folder: Where targets go; `targets_held` by the caller.
        case_ids: The scans; their labels are not opened.
        labelled: Cases whose labels the trusts "prior" and "selftest" may look at.
        wanted: "student", "teacher", or "auto" for what the run decided.

    Raises:
        OptionError: The folder holds targets that were made otherwise.
        ValueError: A scan lies otherwise than those that the run was trained on.
        RuntimeError: SAM does not answer.
    """
    predictor, which = load_predictor(workdir, wanted)
    run = read_run(workdir)
    making: dict[str, Any] = {
        "run": run_id_of(run),
        "model": which,
        LEARNED_FROM: labels_behind(workdir, run),
        **asking_of(config),
        **{f"--{name}": getattr(config, name) for name in ("sam_fusion", "sam_smoothing_vox")},
    }
    missing = [case_id for case_id in case_ids if not target_path(folder, case_id).is_file()]
    if config.largest_component:
        # Older versions taught islands: what they left whole stands.
        making["smallest_piece"] = SMALLEST_PIECE if missing else (making_of(folder) or {}).get("smallest_piece")
    require_same_making(folder, making)
    if not missing:
        return
    ensemble, cut, cache = None, RegionCutter(predictor.locator), scan_cache_of(config)
    if config.sam_folders():
        scans = []
        if looks_at_labels(config):
            scans = load_labelled(config, labelled, LabelLedger(workdir, run_id_of(run)).access("self_test"), cut)
        ensemble = sam_ensemble(config, scans, sam_sessions(config))
    sam = _Asking(config, ensemble, folder)
    for number, case_id in enumerate(missing, start=1):
        (volume,) = load_unlabelled(config, [case_id], cut, cache)
        predictor.require_own_orientation(volume)
        predicted = predictor.probs_for_targets(volume.image)
        said = sam.target(volume, predicted)
        probs, weight = fuse(said, predicted, config.sam_fusion, config.sam_smoothing_vox)
        write_target(folder, case_id, probs, weight, said.scores, cut.regions[case_id])
        logging.log_every_n_seconds(logging.INFO, "Targets from the %s: %d of %d.", 15, which, number, len(missing))
    sam.require_an_answer()


class _Asking:
    """Asks SAM of scan after scan. Where one call fails the prediction is the target; where all do, the run stops."""

    def __init__(self, config: Config, ensemble: SamEnsemble | None, folder: Path) -> None:
        self.config, self.ensemble, self.folder = config, ensemble, folder
        self.failed: list[str] = []  # since SAM's last answer
        self.answered, self.reason = False, ""

    def target(self, volume: Volume, predicted: np.ndarray) -> SamTarget:
        """What SAM says of a prediction; nothing, with a warning, where its call failed.

        Raises:
            RuntimeError: So many failed in a row that SAM is broken.
        """
        if self.ensemble is None:
            return SamTarget.silent(predicted.shape)
        try:
            said = self.ensemble.target(volume.image, predicted, key=volume.case_id, spacing_mm=volume.spacing_mm)
        except SamCallError as error:
            self.failed.append(volume.case_id)
            self.reason = str(error)
            if len(self.failed) >= MOST_FAILURES:
                self._stop()
            logging.warning("SAM failed on %s; its target is made without SAM: %s", volume.case_id, error)
            return SamTarget.silent(predicted.shape)
        # Where nothing was predicted SAM was not asked.
        if said.scores.get("prompts"):
            self.failed, self.answered = [], True
        return said

    def require_an_answer(self) -> None:
        """Raises RuntimeError if SAM was asked of several scans and answered of none."""
        if len(self.failed) > 1 and not self.answered:
            self._stop()

    def _stop(self) -> NoReturn:
        # They would count as made, and training as taught by SAM.
        for case_id in self.failed:
            target_path(self.folder, case_id).unlink(missing_ok=True)
        raise RuntimeError(
            f"Expected answers from SAM in {self.config.sam_dir}. Received: {len(self.failed)} failures in a row, the "
            f"last for {self.failed[-1]}: {self.reason}. Mend that and give the same command again, or leave out "
            "--sam_dir."
        )
