"""Training steps on the left atrium with SAM and without, taking turns in one process, and what a step costs."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from semisam_tf.config import Config
    from semisam_tf.data.volumes import Volume
    from semisam_tf.training.state import Training

Loaded = tuple[list["Volume"], list["Volume"]]


def la_config(data_dir: str, labelled: int, *more: str) -> Config:
    """Settings of a mean teacher on the batches of configs/la_table.flags; `more` are further flags."""
    from semisam_tf.config import PRESETS, Config
    from semisam_tf.options import parse

    words = [
        "--flagfile=configs/la_table.flags", f"--labeled={labelled}", "--method=mean_teacher",
        f"--data_dir={data_dir}", "--exclude_cases=configs/la_dev.list", *more,
    ]  # fmt: skip
    return parse(Config, words, PRESETS)


def load(config: Config, unlabelled: int) -> Loaded:
    """The labelled scans and the first so many unlabelled ones, in the training grid."""
    from semisam_tf.data.label_access import outside_runs
    from semisam_tf.data.splits import Split, split_of
    from semisam_tf.training.loop import load_data

    split = split_of(config)
    return load_data(config, Split(split.labelled, split.unlabelled[:unlabelled]), outside_runs("a benchmark"))


def be_deterministic() -> None:
    """As a run is, which costs some time: to be called before anything is built."""
    import keras
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()


def steps_in_turns(
    trainings: Mapping[str, Training], loaded: Loaded, steps: Mapping[str, int], turns: int, limit_s: float = math.inf
) -> dict[str, dict[str, list[float]]]:
    """Takes steps on batches made by threads, as in a run, `steps[name]` a turn; one more turn goes first, untimed.

    Args:
        limit_s: A training takes no further step once its steps, the untimed too, have taken so many seconds.

    Returns:
        Training -> "step_s": seconds of every step, the wait for its batch included; "targets", "slices_encoded": how
        many SAM made in it.
    """
    from semisam_tf.data.batches import Prefetcher, stream_of

    found: dict[str, list[tuple[float, int, int]]] = {name: [] for name in trainings}
    spent_s = dict.fromkeys(trainings, 0.0)
    for turn in range(turns + 1):
        for name, training in trainings.items():
            if spent_s[name] > limit_s:
                continue
            stream, first = stream_of(training.config, *loaded), training.step
            workers = training.config.data_workers
            with Prefetcher(training.batches_of(stream), first, first + steps[name], workers=workers) as prefetcher:
                began_s = time.perf_counter()
                for _, batch in prefetcher:
                    before = _counts(training)
                    training.take_step(batch)["total"].numpy()
                    ended_s = time.perf_counter()
                    made = [after - old for after, old in zip(_counts(training), before, strict=True)]
                    spent_s[name] += ended_s - began_s
                    # The first turn traces, and encodes most slices.
                    if turn:
                        found[name].append((round(ended_s - began_s, 4), *made))
                    if spent_s[name] > limit_s:
                        break
                    began_s = ended_s
    return {
        name: {key: [row[i] for row in rows] for i, key in enumerate(("step_s", "targets", "slices_encoded"))}
        for name, rows in found.items()
    }


def _counts(training: Training) -> tuple[int, int]:
    if training.sam is None:
        return 0, 0
    summary = training.sam.summary()
    return int(summary["targets"]), int(summary["slices_encoded"])


def costs(cached: Mapping[str, list[float]]) -> tuple[float, float]:
    """Seconds of a step in which no target is due, and of a target whose embeddings are on disk.

    Args:
        cached: Of `steps_in_turns`, for a training with `sam_mode=cached`.
    """
    rows = list(zip(cached["step_s"], cached["targets"], cached["slices_encoded"], strict=True))
    cutting = statistics.median(taken_s for taken_s, made, _ in rows if not made)
    return cutting, statistics.median(
        (taken_s - cutting) / made for taken_s, made, encoded in rows if made and not encoded
    )


def mean_step_s(cached: Mapping[str, list[float]], visits: int) -> float:
    """Seconds of the mean step where a scan's target is due every `visits` visits; a step visits two scans."""
    cutting, target = costs(cached)
    return cutting + 2 * target / visits
