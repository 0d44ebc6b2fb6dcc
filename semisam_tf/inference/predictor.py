"""From a scan to its mask with a trained network: the same steps in training's SAM branch, evaluation and serving."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from semisam_tf.config import Config
from semisam_tf.data.preprocess import Preprocessing
from semisam_tf.data.volumes import Volume
from semisam_tf.inference.evaluation import largest_component
from semisam_tf.inference.sliding_window import predict_probs
from semisam_tf.models.registry import build_network

RUN_FILE, RESULT_FILE = "run.json", "result.json"


def preprocessing_of(config: Config) -> Preprocessing:
    """The normalisation and training grid of a run."""
    spacing = config.training_spacing_mm
    return Preprocessing(
        config.lower_percentile, config.upper_percentile, (spacing[0], spacing[1], spacing[2]) if spacing else None
    )


def network_of(config: Config, channels: int, name: str) -> keras.Model:
    """A fresh network of a run, weights drawn from the run's seed."""
    return build_network(
        config.network,
        input_channels=channels,
        n_classes=config.n_classes,
        filters=config.filters,
        normalisation=config.normalisation,
        dropout=config.dropout,
        # Student and teacher drop different channels; the teacher's own initial weights are overwritten.
        seed=2 * config.seed + (name == "teacher"),
        name=name,
    )


class Predictor:
    """Predicts whole scans.

    Args:
        config: Settings of the run that trained `model`.
        model: [B, x, y, z, C] -> logits [B, x, y, z, K]. Its weights may change between calls.
        overlap: Share of a window that neighbouring windows have in common.
    """

    def __init__(self, config: Config, model: keras.Model, overlap: float = 0.5) -> None:
        self.config, self.overlap = config, overlap
        self.preprocessing = preprocessing_of(config)
        self.channels = model.input_shape[-1]
        # Traced once per batch size: instance normalisation is faster where the size is known.
        self._forward = tf.function(lambda x: tf.nn.softmax(model(x, training=False)))

    def crop_probs(self, images: np.ndarray) -> np.ndarray:
        """Softmax of crops [B, *patch_size, C] -> [B, *patch_size, K] float32."""
        return self._forward(tf.convert_to_tensor(images, tf.float32)).numpy()

    def probs(self, image: np.ndarray) -> np.ndarray:
        """Softmax of a scan in the training grid, normalised, [x, y, z, C] -> [x, y, z, K] float32."""
        return predict_probs(self.crop_probs, image, self.config.patch_size, overlap=self.overlap)

    def mask(self, volume: Volume) -> np.ndarray:
        """Class of every voxel of a scan as loaded, in the scan's own grid.

        The mask is the argmax of the probabilities interpolated linearly to the scan's grid.

        Returns:
            uint8 [X, Y, Z].

        Raises:
            ValueError: The scan has another number of channels than the network.
        """
        if volume.image.shape[-1] != self.channels:
            raise ValueError(
                f"Case {volume.case_id!r}: expected {self.channels} image channels, as in training. "
                f"Received: {volume.image.shape[-1]}."
            )
        grid = self.preprocessing.to_training_grid(dataclasses.replace(volume, label=None), self.config.n_classes)
        probs = self.preprocessing.probs_to_own_grid(self.probs(grid.image), volume.size)
        mask = np.argmax(probs, axis=-1).astype(np.uint8)
        return largest_component(mask) if self.config.largest_component else mask


def chosen_model(config: Config, wanted: str = "auto") -> str:
    """ "student" or "teacher": what is asked for, else what the run decided, else the teacher.

    The teacher is the average of many students and steadier where labels are few; choosing it takes no label.
    """
    for choice in (wanted, config.eval_model):
        if choice != "auto":
            return choice
    return "teacher"


def read_run(workdir: Path) -> dict[str, Any]:
    """The record that training keeps in `workdir`; `config` in it is a Config.

    Raises:
        FileNotFoundError: No run there.
    """
    path = workdir / RUN_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected a training run in {workdir}: {path} is missing. Train it, or correct --workdir."
        )
    record = json.loads(path.read_text())
    return record | {"config": Config.from_dict(record["config"])}


def read_result(workdir: Path) -> dict[str, Any]:
    """`result.json`, which training writes last: steps, time, and what SAM did.

    Raises:
        FileNotFoundError: Training has not finished.
    """
    path = workdir / RESULT_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected {path}, which training writes at its end. Run the train command again: it goes on from the last "
            "checkpoint."
        )
    return json.loads(path.read_text())


def load_predictor(workdir: Path, wanted: str = "auto", overlap: float = 0.5) -> tuple[Predictor, str]:
    """The finished run of `workdir` as a Predictor, and which weights it uses ("student" or "teacher").

    Raises:
        FileNotFoundError: No run there, or it is not finished.
    """
    record = read_run(workdir)
    which = chosen_model(record["config"], wanted)
    read_result(workdir)
    model = network_of(record["config"], record["channels"], which)
    model.load_weights(workdir / f"{which}.weights.h5")
    return Predictor(record["config"], model, overlap), which
