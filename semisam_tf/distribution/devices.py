"""The devices that share a batch: several of this machine, several machines, or one.

`devices_of` finds a `tf.distribute` strategy; under its scope the run is built, and `training.step` runs one replica
on each device. Every process makes the items of the batch that its replicas take, asks its own SAM about them, and
holds all weights. The chief alone writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import logging

from semisam_tf.config import Config
from semisam_tf.distribution.shares import CLUSTER, cluster_size, require_shares
from semisam_tf.options import OptionError
from semisam_tf.workdir import WORKERS_FOLDER

_OTHERS_GONE = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


@dataclasses.dataclass(frozen=True)
class Devices:
    """Who computes what.

    Attributes:
        strategy: TensorFlow's default one where one device is all there is.
        replicas: Devices of this process.
        worker: Number of this process, from 0; the chief is 0.
        workers: Number of processes.
    """

    strategy: tf.distribute.Strategy
    replicas: int = 1
    worker: int = 0
    workers: int = 1

    @property
    def is_chief(self) -> bool:
        """Whether this process writes what the run leaves."""
        return self.worker == 0

    def share(self, batch_size: int, labelled: int) -> list[int] | None:
        """Items of each batch that this process makes, labelled ones first; None for all of them."""
        if self.workers == 1:
            return None
        streams = np.split(np.arange(batch_size), [labelled])
        mine = np.concatenate([np.array_split(items, self.workers)[self.worker] for items in streams])
        return [int(item) for item in mine]

    def own(self, config: Config) -> Config:
        """The settings, with a workdir that no other process writes to: below the run's, but for the chief."""
        if self.is_chief:
            return config
        return dataclasses.replace(config, workdir=str(Path(config.workdir) / WORKERS_FOLDER / str(self.worker)))

    def require_agreement(self, what: str, values: Mapping[str, object]) -> None:
        """Raises RuntimeError unless every process has the same `values`, of JSON, by the same names.

        All processes have to call it, and each waits for the others.
        """
        if self.workers == 1:
            return
        names = sorted(values)
        numbers = tf.constant([_number(values[name]) for name in names], tf.float64)

        @tf.function
        def spread(numbers: tf.Tensor) -> tf.Tensor:
            def squares() -> tf.Tensor:
                context = tf.distribute.get_replica_context()
                here = tf.identity(numbers)  # on the replica's device, where it is looked for
                mean = context.all_reduce(tf.distribute.ReduceOp.MEAN, here)
                return context.all_reduce(tf.distribute.ReduceOp.SUM, (here - mean) ** 2)

            return self.strategy.experimental_local_results(self.strategy.run(squares))[0]

        differing = [name for name, square in zip(names, spread(numbers).numpy(), strict=True) if square > 0]
        if differing:
            here = "; ".join(f"{name}: {str(values[name])[:100]}" for name in differing)
            raise RuntimeError(
                f"Expected the same {what} in all {self.workers} processes: the same command, the same data and one "
                f"--workdir that all of them see. Received here, and something else elsewhere: {here}."
            )


def _number(value: object) -> int:
    """A whole number that float64 holds exactly, hardly ever the same for two values."""
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:3], "big")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What TensorFlow raises where another process is gone becomes a RuntimeError that says what to do."""
    try:
        yield
    except _OTHERS_GONE as error:
        if cluster_size() == 1:
            raise
        raise RuntimeError(
            f"This run lost another process of its {cluster_size()}, whose own message says why. Start all of them "
            f"again with the same command: they go on from the last checkpoint. TensorFlow: {str(error)[:200]}"
        ) from error


def devices_of(config: Config) -> Devices:
    """The devices of a run. Before TensorFlow's first computation.

    Several processes where `TF_CONFIG` says so, each with `--devices` of its own.

    Raises:
        OptionError: There are fewer devices, or a replica would be left without an item.
    """
    require_shares(config)
    require_precision(config)
    if cluster_size() == 1 and config.devices == 1:
        return Devices(tf.distribute.get_strategy())
    strategy = _strategy_on(config.devices)
    if len(strategy.extended.worker_devices) != config.devices:
        raise OptionError(f"--devices: without GPUs, one for each process of {CLUSTER}. Received: {config.devices}.")
    worker = strategy.cluster_resolver.task_id if cluster_size() > 1 else 0
    logging.info(
        "Process %d of %d; each batch is shared by %d devices.", worker, cluster_size(), strategy.num_replicas_in_sync
    )
    return Devices(strategy, config.devices, worker, cluster_size())


def require_precision(config: Config) -> None:
    """Raises OptionError where this machine does not compute in a run's precision as it should."""
    if config.precision == "bfloat16" and not tf.config.list_physical_devices("GPU"):
        # Seen within ten steps of a V-Net in some runs, on a CPU with AVX-512 BF16 (TensorFlow 2.21, oneDNN).
        raise OptionError(
            "--precision=bfloat16: expected a GPU. TensorFlow's kernels for it on a CPU yield NaN now and then; train "
            "with float32 there."
        )


# Once in a process: TensorFlow divides a processor once, and two strategies on the same devices take each other's
# collective operations for their own ("Shape mismatch in the collective instance").
@functools.cache
def _strategy_on(count: int) -> tf.distribute.Strategy:
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        if len(gpus) < count:
            raise OptionError(
                f"--devices: expected at most {len(gpus)}, the GPUs that TensorFlow sees. Received: {count}."
            )
        tf.config.set_visible_devices(gpus[:count], "GPU")
    elif count > 1:
        logging.warning("No GPU: --devices=%d makes so many of the processor, which is of use for trying out.", count)
        (processor,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * count)
    if cluster_size() > 1:
        return tf.distribute.MultiWorkerMirroredStrategy()
    kind = "gpu" if gpus else "cpu"
    return tf.distribute.MirroredStrategy([f"/{kind}:{number}" for number in range(count)])
