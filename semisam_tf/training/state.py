"""Everything that changes while a run goes on: how it is built, saved, restored, and moved on by a step."""

from __future__ import annotations

import dataclasses
import math
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
from semisam_tf.sam.session import SamSession
from semisam_tf.semi.ema import copy_weights
from semisam_tf.training import checkpoint
from semisam_tf.training.optimizers import build_optimizer
from semisam_tf.training.sam_teaching import SamTeaching
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
    sam: SamTeaching | None
    step: int = 0
    duration_s: float = 0.0
    data_wait_s: float = 0.0

    @classmethod
    def build(cls, config: Config, channels: int, unlabelled: list[Volume], session: SamSession | None) -> Training:
        """A run at step 0; the teacher starts as a copy of the student."""
        student, teacher = network_of(config, channels, "student"), network_of(config, channels, "teacher")
        copy_weights(teacher, student)
        optimizer = build_optimizer(config)
        sam = None
        if session is not None:
            predictor = Predictor(config, student if config.sam_prompts_from == "student" else teacher)
            branch = _sam_branch(config, session)
            sam = SamTeaching(config, branch, predictor.crop_probs, predictor.probs, unlabelled)
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
        """Goes on from the newest checkpoint of the workdir that is not damaged, if there is one.

        Raises:
            ValueError: All are damaged, or of another network.
        """
        found = checkpoint.load_latest(Path(self.config.workdir) / "checkpoints")
        if found is None:
            return
        self.step, arrays, state = found
        checkpoint.assign(self.student.variables, arrays["student"], "student")
        checkpoint.assign(self.teacher.variables, arrays["teacher"], "teacher")
        checkpoint.assign(self.optimizer.variables, arrays["optimizer"], "optimizer")
        self.duration_s, self.data_wait_s = state["duration_s"], state["data_wait_s"]
        if self.sam is not None:
            self.sam.restore(arrays["sam"], state["sam"])
        logging.info("Resuming %s at step %d.", self.config.workdir, self.step)

    def require_room(self) -> None:
        """Raises OSError unless the workdir's disk has room for the networks' and optimiser's share of what will come.

        SAM's targets and embeddings are not counted: how many there will be depends on the predictions.
        """
        variables = [*self.student.variables, *self.teacher.variables, *self.optimizer.variables]
        count = sum(math.prod(v.shape) * np.dtype(v.dtype).itemsize for v in variables)
        checkpoint.require_room(Path(self.config.workdir) / "checkpoints", count)

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


def _sam_branch(config: Config, session: SamSession) -> SamBranch:
    cache = None
    if config.sam_mode == "cached":
        cache = EmbeddingCache(config.sam_cache_dir or Path(config.workdir) / "sam_cache")
    slices: dict[str, Any] = {
        "axis": config.sam_axis,
        "margin_vox": config.sam_margin_vox,
        "slice_step": config.sam_slice_step,
        "max_slices": config.sam_max_slices if config.sam_mode == "online" else 0,
    }
    if session.manifest.dims == 3:
        slices = {}
        defaults = Config()
        set_in_vain = [name for name in _SLICE_FLAGS if getattr(config, name) != getattr(defaults, name)]
        if set_in_vain:
            logging.warning(
                "%s sees volumes, not slices; without effect: %s.",
                session.manifest.family, ", ".join(f"--{name}" for name in set_in_vain),
            )  # fmt: skip
    return SamBranch(
        session,
        prompts=config.sam_prompts,
        points=config.sam_points,
        min_area_vox=config.sam_min_area_vox,
        trust=config.sam_trust,
        channel=config.sam_channel,
        cache=cache,
        **slices,
    )
