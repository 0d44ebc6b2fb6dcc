"""Everything that changes while a run goes on: how it is built, saved, restored, and moved on by a step."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from semisam_tf.config import Config
from semisam_tf.data.batches import Batch
from semisam_tf.data.volumes import Volume
from semisam_tf.inference.predictor import Predictor, chosen_model, network_of
from semisam_tf.sam.branch import SamBranch
from semisam_tf.sam.cache import EmbeddingCache
from semisam_tf.sam.ensemble import SamEnsemble
from semisam_tf.sam.session import SamSession
from semisam_tf.sam.trust import OrganPrior, parse
from semisam_tf.semi.ema import copy_weights
from semisam_tf.training import checkpoint
from semisam_tf.training.optimizers import build_optimizer
from semisam_tf.training.pseudolabels import StoredTargets
from semisam_tf.training.sam_teaching import SamTeaching
from semisam_tf.training.selftest import selftest_of
from semisam_tf.training.step import Schedule, TrainStep

# Settings that mean something for a SAM of slices only.
_SLICE_FLAGS = ("sam_axis", "sam_margin_vox", "sam_slice_step", "sam_max_slices")


@dataclasses.dataclass
class Training:
    """Everything that changes while a run goes on, and how it is saved and restored."""

    config: Config
    student: keras.Model
    teacher: keras.Model
    optimizer: keras.optimizers.Optimizer
    train_step: TrainStep
    sam: SamTeaching | StoredTargets | None
    step: int = 0
    duration_s: float = 0.0
    data_wait_s: float = 0.0

    @classmethod
    def build(
        cls,
        config: Config,
        channels: int,
        labelled: list[Volume],
        unlabelled: list[Volume],
        sessions: list[SamSession],
    ) -> Training:
        """A run at step 0; the teacher starts as a copy of the student."""
        student, teacher = network_of(config, channels, "student"), network_of(config, channels, "teacher")
        copy_weights(teacher, student)
        optimizer = build_optimizer(config)
        sam: SamTeaching | StoredTargets | None = None
        if config.sam_mode == "offline":
            sam = StoredTargets(config.targets_dir, unlabelled, config.n_classes, config.sam_start_step)
        elif sessions:
            predictor = Predictor(config, student if config.sam_prompts_from == "student" else teacher)
            ensemble = sam_ensemble(config, labelled, sessions)
            sam = SamTeaching(config, ensemble, predictor.crop_probs, predictor.probs, unlabelled)
        return cls(config, student, teacher, optimizer, TrainStep(config, student, teacher, optimizer), sam)

    def save(self) -> None:
        """Writes a checkpoint of the state after `step` steps.

        Raises:
            RuntimeError: A weight is not finite, which a finite loss does not rule out.
        """
        arrays = {
            "student": checkpoint.arrays_of(self.student.variables),
            "teacher": checkpoint.arrays_of(self.teacher.variables),
            "optimizer": checkpoint.arrays_of(self.optimizer.variables),
        }
        broken = [n for group in arrays.values() for n, a in group.items() if not np.isfinite(a).all()]
        if broken:
            raise RuntimeError(
                f"Weights became nan or inf at or before step {self.step}, so no checkpoint is written: lower "
                f"--learning_rate and start again in another --workdir. First: {broken[0]}."
            )
        state: dict[str, Any] = {"duration_s": self.duration_s, "data_wait_s": self.data_wait_s}
        if self.sam is not None:
            arrays["sam"], state["sam"] = self.sam.state()
        checkpoint.save(Path(self.config.workdir) / "checkpoints", self.step, arrays, state)

    def restore(self) -> None:
        """Goes on from the newest checkpoint of the workdir, if there is one."""
        found = checkpoint.load_latest(Path(self.config.workdir) / "checkpoints")
        if found is None:
            return
        self.step, arrays, state = found
        checkpoint.assign(self.student.variables, arrays["student"], "student")
        checkpoint.assign(self.teacher.variables, arrays["teacher"], "teacher")
        checkpoint.assign(self.optimizer.variables, arrays["optimizer"], "optimizer")
        self.duration_s, self.data_wait_s = state["duration_s"], state["data_wait_s"]
        if self.sam is not None:
            self.sam.restore(arrays.get("sam", {}), state["sam"])
        logging.info("Resuming %s at step %d.", self.config.workdir, self.step)

    def take_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """One step on `batch`; `step` counts on. Returns the loss terms."""
        sam_probs, sam_weight = (None, None) if self.sam is None else self.sam.targets(self.step, batch)
        schedule = Schedule.at(self.config, self.step)
        terms = self.train_step(schedule, batch.images, batch.labels, sam_probs, sam_weight)
        self.step += 1
        return terms

    def result(self) -> dict[str, Any]:
        """What the run is to be judged by besides accuracy."""
        return {
            "steps": self.step,
            "duration_s": round(self.duration_s, 1),
            "steps_per_s": self.step / max(self.duration_s, 1e-9),
            "data_wait_share": self.data_wait_s / max(self.duration_s, 1e-9),
            "model": chosen_model(self.config),
            "sam": None if self.sam is None else self.sam.summary(),
        }


def sam_ensemble(config: Config, labelled: list[Volume], sessions: list[SamSession]) -> SamEnsemble:
    """A branch for each model, axis and margin that the settings name."""
    cache = None
    if config.sam_mode != "online":
        cache = EmbeddingCache(config.sam_cache_dir or Path(config.workdir) / "sam_cache")
    common: dict[str, Any] = {
        "prompts": config.sam_prompts,
        "points": config.sam_points,
        "min_area_vox": config.sam_min_area_vox,
        "trust": config.sam_trust,
        "channel": config.sam_channel,
        "cache": cache,
    }
    max_slices = config.sam_max_slices if config.sam_mode == "online" else 0
    branches = []
    for session in sessions:
        if session.manifest.dims == 3:
            _warn_of_vain_flags(config, session)
            branches.append(SamBranch(session, **common))
            continue
        for axis, margin_vox in itertools.product(config.sam_axis, config.sam_margin_vox):
            slices: dict[str, Any] = {"axis": axis, "margin_vox": margin_vox, "slice_step": config.sam_slice_step}
            branches.append(SamBranch(session, **common, **slices, max_slices=max_slices))
    trusts = parse(config.sam_trust)
    prior = None
    if "prior" in trusts:
        labels = [volume.label for volume in labelled if volume.label is not None]
        prior = OrganPrior.of(labels, [volume.spacing_mm for volume in labelled], config.n_classes)
    whole_scan = config.sam_mode != "online"
    ensemble = SamEnsemble(branches, trusts, prior, whole_scan)
    if "selftest" in trusts or config.sam_selftest:
        found = selftest_of(config, ensemble, labelled)
        if "selftest" in trusts and whole_scan:
            ensemble.scan_trust = found.trust
    return ensemble


def _warn_of_vain_flags(config: Config, session: SamSession) -> None:
    defaults = Config()
    set_in_vain = [name for name in _SLICE_FLAGS if getattr(config, name) != getattr(defaults, name)]
    if set_in_vain:
        logging.warning(
            "%s sees volumes, not slices; without effect: %s.",
            session.manifest.family, ", ".join(f"--{name}" for name in set_in_vain),
        )  # fmt: skip
