"""TensorBoard: loss terms, schedules, SAM's share, and slices of the crops with what the networks say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import keras
import numpy as np
import tensorflow as tf

from semisam_tf.data.batches import Batch
from semisam_tf.training.step import Schedule


class Board:
    """Event files below `<workdir>/tensorboard`; a context manager."""

    def __init__(self, workdir: Path) -> None:
        self._writer = tf.summary.create_file_writer(str(workdir / "tensorboard"))

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()

    def scalars(self, step: int, means: Mapping[str, float], schedule: Schedule, sam: Mapping[str, float]) -> None:
        """Writes loss terms, their weights, the learning rate, EMA decay and SAM's summary."""
        named = {f"loss/{name}": value for name, value in means.items()}
        named |= {f"weight/{name}": value for name, value in schedule.weights.items()}
        named |= {f"sam/{name}": value for name, value in sam.items()}
        named |= {"schedule/learning_rate": schedule.learning_rate, "schedule/ema_decay": schedule.ema_decay}
        with self._writer.as_default(step=step):
            for name, value in named.items():
                tf.summary.scalar(name, value)

    def images(self, step: int, batch: Batch, student: keras.Model, teacher: keras.Model) -> None:
        """Writes the middle slice of the first and last item: image, student, teacher, foreground probability."""
        items = batch.images[[0, -1]]
        with self._writer.as_default(step=step):
            for row, name in enumerate(("labelled", "last")):
                image = items[row : row + 1]
                panels = [_grey(image[0, :, :, image.shape[3] // 2, 0])]
                for model in (student, teacher):
                    probs = keras.ops.convert_to_numpy(keras.ops.softmax(model(image, training=False)))
                    panels.append(1.0 - probs[0, :, :, image.shape[3] // 2, 0])
                # Transposed, so that x runs to the right and y down.
                picture = np.concatenate([panel.T for panel in panels], axis=1)
                tf.summary.image(name, picture[None, ..., None])


def _grey(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, (1, 99))
    return np.clip((values - low) / max(high - low, 1e-6), 0.0, 1.0).astype(np.float32)
