"""Everything that changes while a run goes on: how it is built, saved, restored, and moved on by a step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from semisam_tf.config import Config
from semisam_tf.data.batches import Batch, TwoStream
from semisam_tf.data.volumes import Volume
from semisam_tf.inference.predictor import SEED_OFFSETS, Predictor, chosen_model, network_of
from semisam_tf.models.discriminator import build_discriminator
from semisam_tf.sam.session import SamSession
from semisam_tf.semi.ema import copy_weights
from semisam_tf.semi.frameworks import USES_DISCRIMINATOR, USES_SECOND
from semisam_tf.training import checkpoint
from semisam_tf.training.optimizers import build_discriminator_optimizer, build_optimizer
from semisam_tf.training.oracle import OraclePrompts
from semisam_tf.training.pseudolabels import StoredTargets
from semisam_tf.training.sam_setup import sam_ensemble
from semisam_tf.training.sam_teaching import SamTeaching
from semisam_tf.training.step import Adversary, Schedule, TrainStep


@dataclasses.dataclass
class Training:
    """Everything that changes while a run goes on, and how it is saved and restored."""

    config: Config
    student: keras.Model
    teacher: keras.Model
    optimizer: keras.optimizers.Optimizer
    train_step: TrainStep
    sam: SamTeaching | StoredTargets | None
    second: keras.Model | None = None
    adversary: Adversary | None = None
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
        oracle: OraclePrompts | None = None,
        replicas: int = 1,
    ) -> Training:
        """A run at step 0; the teacher starts as a copy of the student.

        Args:
            replicas: Devices of this process that share a batch, under the scope of their strategy.
        """
        student, teacher = (network_of(config, channels, name, config.precision) for name in ("student", "teacher"))
        second = network_of(config, channels, "second", config.precision) if config.method in USES_SECOND else None
        copy_weights(teacher, student)
        optimizer = build_optimizer(config)
        sam: SamTeaching | StoredTargets | None = None
        if config.sam_mode == "offline":
            sam = StoredTargets(config.targets_dir, unlabelled, config.n_classes, config.sam_start_step)
        elif config.sam_mode != "off":
            predictor = Predictor(config, student if config.sam_prompts_from == "student" else teacher)
            ensemble = sam_ensemble(config, labelled, sessions) if sessions else None
            sam = SamTeaching(config, ensemble, predictor.crop_probs, predictor.probs_for_targets, unlabelled, oracle)
        adversary = _adversary(config, channels) if config.method in USES_DISCRIMINATOR else None
        train_step = TrainStep(
            config, student, teacher, optimizer, second=second, adversary=adversary, replicas=replicas
        )
        return cls(config, student, teacher, optimizer, train_step, sam, second, adversary)

    def networks(self) -> dict[str, keras.Model]:
        """The networks of the run that segment, by name."""
        others = {} if self.second is None else {"second": self.second}
        return {"student": self.student, "teacher": self.teacher, **others}

    def _variables(self) -> dict[str, list[keras.Variable]]:
        """All that a checkpoint holds of networks and optimisers."""
        kept = {name: model.variables for name, model in self.networks().items()}
        kept["optimizer"] = self.optimizer.variables
        if self.adversary is not None:
            kept["discriminator"] = self.adversary.network.variables
            kept["discriminator_optimizer"] = self.adversary.optimizer.variables
        return kept

    def save(self) -> None:
        """Writes a checkpoint of the state after `step` steps.

        Raises:
            RuntimeError: A weight is not finite, which a finite loss does not rule out.
        """
        arrays = {name: checkpoint.arrays_of(variables) for name, variables in self._variables().items()}
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

    def restore(self, workdir: Path | None = None) -> None:
        """Goes on from the newest checkpoint of a workdir that is not damaged, if there is one.

        Args:
            workdir: Of another process, whose networks these are, too, but not what SAM said there; None: its own.

        Raises:
            ValueError: All are damaged, or of another network.
        """
        folder = (workdir or Path(self.config.workdir)) / "checkpoints"
        found = checkpoint.load_latest(folder, sets_aside=workdir is None)
        if found is None:
            return
        self.step, arrays, state = found
        for name, variables in self._variables().items():
            checkpoint.assign(variables, arrays[name], name)
        self.duration_s, self.data_wait_s = state["duration_s"], state["data_wait_s"]
        if self.sam is not None and workdir is None:
            self.sam.restore(arrays.get("sam", {}), state["sam"])
        logging.info("Resuming %s at step %d.", self.config.workdir, self.step)

    def require_room(self) -> None:
        """Raises OSError unless the workdir's disk has room for the networks' and optimiser's share of what will come.

        SAM's targets and embeddings are not counted: how many there will be depends on the predictions.
        """
        variables = [variable for group in self._variables().values() for variable in group]
        count = sum(math.prod(v.shape) * np.dtype(v.dtype).itemsize for v in variables)
        checkpoint.require_room(Path(self.config.workdir) / "checkpoints", count)

    def batches_of(self, stream: TwoStream) -> Callable[[int], Batch]:
        """Step -> its batch of `stream`, with all that other threads can make while steps compute."""
        if not isinstance(self.sam, StoredTargets):
            return stream.batch
        sam = self.sam
        return lambda step: sam.with_targets(step, stream.batch(step))

    def take_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """One step on `batch`; `step` counts on. Returns the loss terms."""
        sam_probs, sam_weight = (None, None) if self.sam is None else self.sam.targets(self.step, batch)
        schedule = Schedule.at(self.config, self.step)
        terms = self.train_step(schedule, batch.images, batch.labels, sam_probs, sam_weight, batch.items)
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
            "oracle_prompts": self.config.oracle_prompts,
            "sam": None if self.sam is None else self.sam.summary(),
        }


def _adversary(config: Config, channels: int) -> Adversary:
    network = build_discriminator(
        input_channels=channels,
        n_classes=config.n_classes,
        # As published beside a V-Net of 16 filters, and as much smaller as the network is.
        filters=4 * config.filters,
        seed=2 * config.seed + SEED_OFFSETS["discriminator"],
    )
    return Adversary(network, build_discriminator_optimizer(config))
