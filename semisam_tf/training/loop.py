"""Training from flags to weights: wiring, cadence, resuming."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from semisam_tf.atomic import replacing, require_room, sweep, write_json
from semisam_tf.config import Config, validate
from semisam_tf.data.augment_config import augment_of
from semisam_tf.data.batches import Prefetcher, TwoStream, stream_of
from semisam_tf.data.cohort import check_channels, load_cohort
from semisam_tf.data.label_access import LabelAccess, LabelLedger
from semisam_tf.data.orientation import common_axis_code
from semisam_tf.data.preprocess import preprocessing_of
from semisam_tf.data.scan_cache import ScanCache
from semisam_tf.data.splits import Split, split_of
from semisam_tf.data.volumes import Volume
from semisam_tf.distribution.devices import devices_of
from semisam_tf.inference.region import COARSE_FOLDER
from semisam_tf.inference.run_folder import read_result
from semisam_tf.options import OptionError
from semisam_tf.training import checkpoint, record
from semisam_tf.training.board import Board
from semisam_tf.training.coarse import CoarseStage
from semisam_tf.training.live_report import LiveReport, write_again
from semisam_tf.training.oracle import OraclePrompts
from semisam_tf.training.pseudolabels import target_region, targets_learned_from, targets_sha256
from semisam_tf.training.sam_setup import sam_sessions
from semisam_tf.training.state import Training
from semisam_tf.training.step import Schedule
from semisam_tf.workdir import RESULT_FILE

# Cuts a scan, as loaded, before it is brought to the training grid.
Crop = Callable[[Volume], Volume]


def due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens after `step` steps of `last`."""
    return step % every == 0 or step == last


def load_labelled(
    config: Config,
    case_ids: Sequence[str],
    labels: LabelAccess,
    crop: Crop | None = None,
    cache: ScanCache | None = None,
) -> list[Volume]:
    """Scans with their labels, in the training grid: images in memory, or in the cache."""
    return load_cohort(config.data_dir, case_ids, with_label=labels, crop=crop, cache=cache, **grid_of(config))


def load_unlabelled(
    config: Config, case_ids: Sequence[str], crop: Crop | None = None, cache: ScanCache | None = None
) -> list[Volume]:
    """Scans without any label, in the training grid: in memory, or in the cache."""
    return load_cohort(config.data_dir, case_ids, with_label=False, crop=crop, cache=cache, **grid_of(config))


def load_data(
    config: Config, split: Split, labels: LabelAccess, crop: Crop | None = None
) -> tuple[list[Volume], list[Volume]]:
    """Labelled scans with labels and unlabelled scans without, in the training grid.

    Unlabelled scans are not loaded where nothing learns from them (`Config.labelled_items`).

    Args:
        crop: What each scan is cut to before it is brought to the training grid; None: nothing.
    """
    cache = scan_cache_of(config)
    labelled = load_labelled(config, split.labelled, labels, crop, cache)
    if config.labelled_items() == config.batch_size:
        return labelled, []
    if not split.unlabelled:
        raise OptionError(
            "No case is unlabelled: lower --labeled, or train with --method=supervised and --sam_mode=off."
        )
    unlabelled = load_unlabelled(config, split.unlabelled, crop, cache)
    check_channels([*labelled, *unlabelled])
    return labelled, unlabelled


def scan_cache_of(config: Config) -> ScanCache | None:
    """Where the run keeps its scans in the training grid; None: in memory."""
    return ScanCache(config.scan_cache_dir) if config.scan_cache_dir else None


def grid_of(config: Config) -> dict[str, Any]:
    """What `load_cohort` has to know of a run besides its cases."""
    return {
        "preprocessing": preprocessing_of(config),
        "default_spacing_mm": config.default_spacing_mm or None,
        "n_classes": config.n_classes,
    }


def train_once(config: Config) -> dict[str, Any]:
    """Trains, or goes on training, one round: the run that `config` describes, whatever its `rounds`.

    Returns:
        The contents of `<workdir>/result.json`. The weights are in `student.weights.h5` and `teacher.weights.h5`, and
        `second.weights.h5` where there is a second student.

    Raises:
        OptionError: Settings that contradict each other or the run already in the workdir.
        RuntimeError: A second process in the same workdir; a loss that is not finite.
    """
    validate(config)
    if config.sam_mode != "off" and config.sam_start_step >= config.max_steps:
        logging.warning("SAM will not teach: --sam_start_step=%d is not below --max_steps.", config.sam_start_step)
    devices = devices_of(config)
    chief_workdir, config = Path(config.workdir), devices.own(config)
    workdir = Path(config.workdir)
    augment = augment_of(config)
    if augment.flip and config.n_classes > 2:
        logging.warning(
            "Training mirrors scans along %s: organs that are mirror images of each other, as left and right lung, "
            "cannot be told apart then; --augment_off=flip.", augment.flip,
        )  # fmt: skip
    with checkpoint.locked(workdir):
        for folder in (workdir, workdir / COARSE_FOLDER):
            sweep(folder)
            sweep(folder / "checkpoints")
        if config.quickstart_cohort and devices.is_chief:
            from semisam_tf.data.simulate import make_quickstart

            make_quickstart(config.data_dir, classes=config.cohort_classes)
        devices.require_agreement("settings", record.lasting(config))
        split = split_of(config)
        facts: dict[str, Any] = {"labelled": list(split.labelled), "unlabelled": list(split.unlabelled)}
        if config.labelled_items() == config.batch_size:
            facts["unlabelled"] = []
        record.check_same_run(config, facts)
        if (chief_workdir / RESULT_FILE).is_file():
            logging.info("%s is finished; a longer or another run takes another --workdir.", chief_workdir)
            if devices.is_chief:
                write_again(workdir)
            return read_result(chief_workdir)
        sessions = sam_sessions(config) if config.sam_mode in ("online", "cached") else []
        facts["sam_sha256"] = [dict(session.manifest.sha256) for session in sessions]
        if config.sam_mode == "offline":
            facts["targets_sha256"] = targets_sha256(Path(config.targets_dir), split.unlabelled)
            if config.coarse_to_fine:
                for case_id in split.unlabelled:  # before the first network is trained
                    target_region(Path(config.targets_dir), case_id)
        record.check_same_run(config, facts)
        if config.sam_mode == "offline":
            facts["targets_learned_from"] = _origin_of_targets(config, split)
        logging.info("Reading scans of %s.", config.data_dir)
        ledger = LabelLedger(workdir, record.run_id(config))
        coarse = None
        if config.coarse_to_fine:
            low = dataclasses.replace(config, training_spacing_mm=config.coarse_spacing_mm)
            scans = load_data(low, split, ledger.access("crops"))
            _write_record(config, facts, [*scans[0], *scans[1]], ledger)
            coarse = CoarseStage(config, scans[0], _run)
        crop = None if coarse is None else coarse.crop
        labelled, unlabelled = load_data(config, split, ledger.access("training"), crop)
        oracle = None
        if config.oracle_prompts:
            cache = scan_cache_of(config)
            oracle = OraclePrompts.load(config, split.unlabelled, ledger, crop=crop, cache=cache, **grid_of(config))
        logging.info("Training on %d labelled and %d unlabelled scans.", len(labelled), len(unlabelled))
        keras.utils.set_random_seed(config.seed)
        tf.config.experimental.enable_op_determinism()
        channels = labelled[0].image.shape[-1]
        if sessions and config.sam_channel >= channels:
            raise OptionError(f"--sam_channel: expected less than the scans' {channels} channels.")
        if coarse is None:
            _write_record(config, facts, [*labelled, *unlabelled], ledger)
        devices.require_agreement("data", facts)
        with devices.strategy.scope():
            training = Training.build(config, channels, labelled, unlabelled, sessions, oracle, devices.replicas)
            training.restore(None if devices.is_chief else chief_workdir)
            devices.require_agreement("checkpoint", {"step": training.step})
            stream = stream_of(config, labelled, unlabelled, devices.share(config.batch_size, config.labelled_items()))
            if not devices.is_chief:
                _run(training, stream, writes=False)
                # Not before the chief has written what all worked for: a scheduler starts nobody again who is done.
                devices.require_agreement("end", {"step": training.step})
                return training.result()
            training.require_room()
            report = LiveReport(training)
            _run(training, stream, report)
            # With its pictures, which nobody could draw again; the second time with the result.
            report.write_last()
            result = _finish(training, ledger, {} if coarse is None else {"coarse": coarse.result()})
            report.write_last()
            devices.require_agreement("end", {"step": training.step})
            return result


def _origin_of_targets(config: Config, split: Split) -> list[str] | None:
    """Cases whose labels the targets rest on, for the record; says so where they are more than this run's."""
    known = targets_learned_from(Path(config.targets_dir))
    more = sorted({*(known or [])} - {*split.labelled})
    if more:
        logging.warning(
            "The targets in %s rest on the labels of %d scans that this run does not call labelled: %s. They count in "
            "the label budget.", config.targets_dir, len(more), ", ".join(more[:5]),
        )  # fmt: skip
    return known


def _write_record(config: Config, facts: dict[str, Any], volumes: Sequence[Volume], ledger: LabelLedger) -> None:
    facts["scans"] = {volume.case_id: volume.content for volume in volumes}
    record.check_same_scans(config, facts["scans"])
    orientation = common_axis_code(volumes)
    if orientation is None:
        logging.info("Training scans have no common orientation on file: predict will take scans in file order.")
    record.write(config, volumes[0].image.shape[-1], facts, orientation, ledger.mark())


def _run(training: Training, stream: TwoStream, report: LiveReport | None = None, writes: bool = True) -> None:
    config, last = training.config, training.config.max_steps
    pending: list[dict[str, tf.Tensor]] = []
    with (
        _memory_errors_said(),
        Board(Path(config.workdir)) as board,
        Prefetcher(training.batches_of(stream), training.step, last, workers=config.data_workers) as prefetcher,
    ):
        mark, wait_mark = time.monotonic(), 0.0
        while training.step < last:
            _, batch = prefetcher.next()
            pending.append(training.take_step(batch))
            step = training.step
            if due(step, config.image_every, last):
                board.images(step, batch, training.student, training.teacher)
            log_now, save_now = due(step, config.log_every, last), due(step, config.checkpoint_every, last)
            if not (log_now or save_now):
                continue
            means = _finite_means(pending, step)
            now = time.monotonic()
            elapsed, waited = now - mark, prefetcher.wait_s - wait_mark
            training.duration_s += elapsed
            training.data_wait_s += waited
            mark, wait_mark = now, prefetcher.wait_s
            schedule = Schedule.at(config, step - 1)
            if log_now:
                _log_progress(training, means, len(pending) / elapsed, waited / elapsed)
                board.scalars(step, means, schedule, training.sam.summary() if training.sam else {})
            if report is not None:
                report.record(means, schedule)
            if save_now and writes:
                training.save()
                if report is not None:
                    report.write()
            pending.clear()


@contextlib.contextmanager
def _memory_errors_said() -> Iterator[None]:
    """TensorFlow's error has a page of the graph and no advice."""
    try:
        yield
    except tf.errors.ResourceExhaustedError as error:
        raise RuntimeError(
            "A step does not fit into the memory of the device. Start again, in another --workdir, with "
            "--micro_batch=1, on a GPU with --precision=bfloat16, or with a smaller --batch_size, --patch_size or "
            "--filters. Received: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _finite_means(pending: list[dict[str, tf.Tensor]], step: int) -> dict[str, float]:
    values = {name: np.array([float(terms[name]) for terms in pending]) for name in pending[0]}
    bad = {name: np.flatnonzero(~np.isfinite(series)) for name, series in values.items()}
    if any(len(where) for where in bad.values()):
        first = step - len(pending) + 1 + min(int(where[0]) for where in bad.values() if len(where))
        names = sorted(name for name, where in bad.items() if len(where))
        raise RuntimeError(
            f"The loss became nan or inf: {', '.join(names)}, first at step {first} (looked at within steps "
            f"[{step - len(pending) + 1}, {step}]). No checkpoint holds it: lower --learning_rate and start again in "
            "another --workdir."
        )
    return {name: float(series.mean()) for name, series in values.items()}


def _log_progress(training: Training, means: dict[str, float], steps_per_s: float, wait_share: float) -> None:
    step, last = training.step, training.config.max_steps
    seconds = round((last - step) / steps_per_s)
    terms = "  ".join(f"{name} {value:.4f}" for name, value in means.items())
    sam = ""
    if training.sam is not None:
        summary = training.sam.summary()
        on_file = training.config.sam_mode == "offline"
        source = "targets on file" if on_file else f"SAM calls {summary['sam_calls']:.0f}"
        sam = (
            f"  | {source}, SAM in {summary['sam_share']:.1%}, taught {summary['taught_share']:.1%}, mean weight "
            f"{summary['mean_weight']:.3f}"
        )
    logging.info(
        "step %d/%d  %s  | %.2f steps/s, data wait %.1f %%, %d:%02d left%s",
        step, last, terms, steps_per_s, 100 * wait_share, seconds // 60, seconds % 60, sam,
    )  # fmt: skip


def _finish(training: Training, ledger: LabelLedger, more: dict[str, Any]) -> dict[str, Any]:
    workdir = Path(training.config.workdir)
    for name, model in training.networks().items():
        # Keras writes HDF5, which takes the process down with it on a full disk.
        require_room(workdir, 2 * model.count_params() * 4 + 2**20)
        with replacing(workdir / f"{name}.weights.h5") as temporary:
            model.save_weights(temporary)
    result = training.result() | more | {"label_ledger": ledger.mark()}
    write_json(workdir / RESULT_FILE, result)
    logging.info("Finished %d steps in %.0f s; weights in %s.", training.step, training.duration_s, workdir)
    return result
