"""One training step: the only place where a gradient is taken."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from semisam_tf.config import Config
from semisam_tf.distribution.replicas import averaged, replica_count
from semisam_tf.semi import ema, losses, schedules
from semisam_tf.semi.frameworks import (
    DISCRIMINATOR_TERM,
    FRAMEWORKS,
    TERMS,
    USES_TEACHER,
    Discriminator,
    Inputs,
)
from semisam_tf.training.micro_batch import in_training

# (shape of the images, step, index of the pass) -> noise added to the teacher's input.
NoiseFn = Callable[[list[int], tf.Tensor, int], tf.Tensor]
# Random streams of a step: one for each pass's noise (at most 63 of them), the last for what the framework draws.
_STREAMS = 64


class Schedule(NamedTuple):
    """The scalars of one step. They go in as tensors, so that the step is traced once."""

    step: int
    learning_rate: float
    ema_decay: float
    entropy_threshold: float
    mixes_unlabelled: bool
    weights: dict[str, float]

    @classmethod
    def at(cls, config: Config, step: int) -> Schedule:
        """Schedule of 0-based `step` under `config`."""
        last = config.max_steps
        pseudo = config.pseudo_label_weight * config.supervised_weight
        by_name = {
            "cross_entropy": config.supervised_weight,
            "dice": config.supervised_weight,
            "second_cross_entropy": config.supervised_weight,
            "second_dice": config.supervised_weight,
            "consistency": schedules.consistency_weight(step, config.consistency_weight, config.consistency_ramp_steps),
            "pseudo_cross_entropy": pseudo,
            "pseudo_dice": pseudo,
        }
        weights = {name: by_name[name] for name in TERMS[config.method] if name != DISCRIMINATOR_TERM}
        if config.sam_mode != "off":
            weights["sam"] = schedules.sam_weight(
                step, last, config.sam_weight, config.consistency_ramp_steps, config.sam_start_step, config.sam_ramp
            )
        return cls(
            step,
            schedules.learning_rate(step, last, config.learning_rate, config.lr_schedule, config.lr_decay_every),
            schedules.ema_decay(step, config.ema_decay, config.ema_warmup),
            schedules.entropy_threshold(step, last, config.n_classes),
            step >= config.copy_paste_start_step,
            weights,
        )


def stream_key(seed: int, step: tf.Tensor, stream: int) -> tf.Tensor:
    """Key int64 [2] of one of a step's random streams, for TensorFlow's stateless generators."""
    return tf.stack([tf.constant(seed, tf.int64), step * _STREAMS + stream])


def input_noise(seed: int, deviation: float) -> NoiseFn:
    """Clipped Gaussian noise clip(sigma N(0, 1), +-2 sigma), a pure function of (seed, step, pass)."""

    def noise(shape: list[int], step: tf.Tensor, index: int) -> tf.Tensor:
        drawn = tf.random.stateless_normal(shape, stream_key(seed, step, index), stddev=deviation)
        return tf.clip_by_value(drawn, -2.0 * deviation, 2.0 * deviation)

    return noise


def _judging(model: keras.Model) -> Discriminator:
    return lambda probs, images, training: model([probs, images], training=training)


class Adversary(NamedTuple):
    """A discriminator and what trains it: [probs, images] -> logits [B, 2]."""

    network: keras.Model
    optimizer: keras.optimizers.Optimizer


class TrainStep:
    """Student step, then teacher average; compiled once.

    Under a strategy of several replicas (`distribution.devices`) each takes an equal share of the labelled and of the
    unlabelled items, and all move as one device would on the whole batch: sums over the batch are over all replicas,
    the noise of an item is the same wherever it lies, gradients are averaged. Dropout alone draws otherwise.

    Args:
        student, teacher: The same network twice; [B, X, Y, Z, C] -> logits [B, X, Y, Z, K].
        optimizer: Built on the trainable variables of the student, and of the second one.
        noise: Noise of the teacher's inputs.
        second: Another student, for the frameworks of `USES_SECOND`.
        adversary: For the frameworks of `USES_DISCRIMINATOR`.
        replicas: How many of the strategy's are in this process.
    """

    def __init__(
        self,
        config: Config,
        student: keras.Model,
        teacher: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        noise: NoiseFn | None = None,
        second: keras.Model | None = None,
        adversary: Adversary | None = None,
        replicas: int = 1,
    ) -> None:
        self.replicas = replicas
        self.student, self.teacher, self.optimizer = student, teacher, optimizer
        self.second, self.adversary = second, adversary
        self.framework, self.seed = FRAMEWORKS[config.method], config.seed
        self.passes, self.micro_batch = config.uncertainty_passes, config.micro_batch
        self.distance = losses.DISTANCES[config.consistency_distance]
        self.with_sam = config.sam_mode != "off"
        self.sam_distance = losses.SAM_DISTANCES[config.sam_loss]
        self.teacher_has_statistics = config.method in USES_TEACHER
        self.noise = noise or input_noise(config.seed, config.teacher_noise)
        self.traces = 0
        self.strategy = tf.distribute.get_strategy()
        optimizer.build(self._trained())
        if adversary is not None:
            adversary.optimizer.build(adversary.network.trainable_variables)
        self._compiled = tf.function(self._step)

    def __call__(
        self,
        schedule: Schedule,
        images: np.ndarray,
        labels: np.ndarray,
        sam_probs: np.ndarray | None = None,
        sam_weight: np.ndarray | None = None,
        items: Sequence[int] | None = None,
    ) -> dict[str, tf.Tensor]:
        """Takes one step.

        Args:
            images: [B, X, Y, Z, C] float32, labelled items first; of several processes, this one's share.
            labels: [L, X, Y, Z] uint8, of the labelled items only.
            sam_probs: [B - L, X, Y, Z, K] float32, SAM's target; needed when the SAM branch is on.
            sam_weight: [B - L, X, Y, Z] float32 in [0, 1].
            items: Place of each item in the whole batch; None: these are all.

        Returns:
            Unweighted loss terms by name, and `total`, the weighted sum that the student descended; eager float32
            scalars.
        """
        if self.with_sam != (sam_probs is not None):
            raise ValueError(f"Expected a SAM target exactly when the SAM branch is on. Received: on={self.with_sam}.")
        scalars = {
            "learning_rate": tf.constant(schedule.learning_rate, tf.float32),
            "ema_decay": tf.constant(schedule.ema_decay, tf.float32),
            "entropy_threshold": tf.constant(schedule.entropy_threshold, tf.float32),
            "mixes_unlabelled": tf.constant(schedule.mixes_unlabelled),
        }
        weights = {name: tf.constant(value, tf.float32) for name, value in schedule.weights.items()}
        places = np.arange(len(images)) if items is None else np.array(items)
        sam = () if sam_probs is None else (sam_probs, sam_weight)
        shares = self._shares(images, labels, places.astype(np.int32), *sam)
        return self._compiled(shares, tf.constant(schedule.step, tf.int64), scalars, weights)

    def _shares(self, images: np.ndarray, labels: np.ndarray, places: np.ndarray, *sam: np.ndarray) -> list[Any]:
        """The arrays as tensors; with several replicas, of each its rows and on its device."""
        if self.strategy.num_replicas_in_sync == 1:
            return [tf.convert_to_tensor(array) for array in (images, labels, places, *sam)]
        here, first = self.replicas, len(labels)
        parts = []
        for labelled, unlabelled in zip(
            np.array_split(np.arange(first), here), np.array_split(np.arange(first, len(images)), here), strict=True
        ):
            rows = np.concatenate([labelled, unlabelled])
            parts.append([images[rows], labels[labelled], places[rows], *(array[unlabelled - first] for array in sam)])
        devices = self.strategy.extended.worker_devices

        def of_replica(context: tf.distribute.ReplicaContext, kind: int) -> tf.Tensor:
            number = context.replica_id_in_sync_group % here
            with tf.device(devices[number]):
                return tf.convert_to_tensor(parts[number][kind])

        distributed = self.strategy.experimental_distribute_values_from_function
        return [distributed(functools.partial(of_replica, kind=kind)) for kind in range(len(parts[0]))]

    def _trained(self) -> list[keras.Variable]:
        students = [self.student] if self.second is None else [self.student, self.second]
        return [variable for model in students for variable in model.trainable_variables]

    def _inputs(self, images, labels, places, step, scalars):
        def noise(clean: tf.Tensor, index: int) -> tf.Tensor:
            # Of the batch, or of its unlabelled items: no framework shows the teacher anything else.
            left_out, count = images.shape[0] - clean.shape[0], replica_count()
            drawn = self.noise([count * clean.shape[0], *clean.shape[1:]], step, index)
            return drawn if count == 1 else tf.gather(drawn, places[left_out:] - count * left_out)

        def teacher(clean: tf.Tensor, index: int | None) -> tf.Tensor:
            seen = clean if index is None else clean + noise(clean, index)
            return tf.stop_gradient(in_training(self.teacher, self.micro_batch)(seen))

        return Inputs(
            images,
            labels,
            student=in_training(self.student, self.micro_batch),
            teacher=teacher,
            key=stream_key(self.seed, step, _STREAMS - 1),
            mixes_unlabelled=scalars["mixes_unlabelled"],
            entropy_threshold=scalars["entropy_threshold"],
            passes=self.passes,
            distance=self.distance,
            second=None if self.second is None else in_training(self.second, self.micro_batch),
            discriminator=None if self.adversary is None else functools.partial(_discriminate, self.adversary),
        )

    def _step(self, shares, step, scalars, weights):
        self.traces += 1
        self.optimizer.learning_rate.assign(scalars["learning_rate"])
        replica_step = functools.partial(self._replica_step, step=step, scalars=scalars, weights=weights)
        mean = functools.partial(self.strategy.reduce, tf.distribute.ReduceOp.MEAN, axis=None)
        terms = {name: mean(term) for name, term in self.strategy.run(replica_step, args=tuple(shares)).items()}
        ema.update_teacher(self.teacher, self.student, scalars["ema_decay"], not self.teacher_has_statistics)
        return terms

    def _replica_step(self, images, labels, places, *sam, step, scalars, weights):
        # Persistent: what the discriminator descends is another sum than the student's.
        with tf.GradientTape(persistent=self.adversary is not None) as tape:
            inputs = self._inputs(images, labels, places, step, scalars)
            terms = self.framework(inputs)
            if sam:
                terms["sam"] = self.sam_distance(inputs.unlabelled_logits, *sam)
            students = {name: term for name, term in terms.items() if name != DISCRIMINATOR_TERM}
            total = tf.add_n([weights[name] * term for name, term in students.items()])
            descended = self.optimizer.scale_loss(total)
        variables = self._trained()
        gradients = averaged(tape.gradient(descended, variables))
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        if self.adversary is not None:
            variables = self.adversary.network.trainable_variables
            gradients = averaged(tape.gradient(terms[DISCRIMINATOR_TERM], variables))
            self.adversary.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return terms | {"total": total}


def _discriminate(adversary: Adversary, probs: tf.Tensor, images: tf.Tensor, training: bool) -> tf.Tensor:
    return adversary.network([probs, images], training=training)
