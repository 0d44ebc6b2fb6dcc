"""Coarse to fine: a low-resolution pass over the whole scan finds the organs' box, and the network sees that alone.

The pass is a network of its own, trained on the labelled scans (`training.coarse`). Training, `Predictor` and the
serving graph (`serving.region`) cut scans with the same arithmetic; no label is looked at here.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from semisam_tf.config import WINDOW_BLEND, Config
from semisam_tf.data.orientation import AxisOrder
from semisam_tf.data.preprocess import Preprocessing
from semisam_tf.data.volumes import Volume
from semisam_tf.inference.evaluation import large_pieces
from semisam_tf.inference.sliding_window import predict_probs
from semisam_tf.models.softmax import softmax

# In the workdir: state of the coarse stage while it trains, and its result. Its weights lie beside the others.
COARSE_FOLDER = "coarse"
# A box needs no more, and most scans fit into one window.
COARSE_OVERLAP = 0.5
# A voxel counts as an organ from this probability of not being background on, and not from a half: a few hundred steps
# find where the organ is long before they are sure of it, and a box too large costs less than one that cuts.
FOUND_PROBABILITY = 0.25
# A piece of a class counts if it has this share of the class's largest: one label may stand for two kidneys, and specks
# of a wrong class would stretch the box over the scan.
PIECE_SHARE = 0.25
# Voxels by which a border may be off before it takes one more: rounding errors of exact borders are far smaller.
BORDER_TOLERANCE_VOX = 1e-6


def coarse_settings(config: Config) -> Config:
    """Settings of the coarse stage: the run's own, at low resolution, from labelled scans alone."""
    return dataclasses.replace(
        config,
        coarse_to_fine=False,
        training_spacing_mm=config.coarse_spacing_mm,
        patch_size=config.coarse_patch_size,
        max_steps=config.coarse_steps,
        method="supervised",
        sam_mode="off",
    )


@dataclass(frozen=True)
class Region:
    """A box of a scan's voxels.

    Attributes:
        low, high: Its first voxel, and the first beyond it, along X, Y, Z.
        found: False where the coarse pass missed a class and the box is therefore the whole scan.
    """

    low: tuple[int, int, int]
    high: tuple[int, int, int]
    found: bool = True

    @classmethod
    def whole(cls, volume: Volume, found: bool = True) -> Region:
        """All of a scan."""
        return cls((0, 0, 0), volume.size, found)

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels along X, Y, Z."""
        x, y, z = (high - low for low, high in zip(self.low, self.high, strict=True))
        return x, y, z

    @property
    def place(self) -> tuple[slice, slice, slice]:
        """The box as an index."""
        x, y, z = (slice(low, high) for low, high in zip(self.low, self.high, strict=True))
        return x, y, z

    def share(self, size: tuple[int, int, int]) -> float:
        """Share of the voxels of a scan of `size`."""
        return float(np.prod(self.size) / np.prod(size))

    def crop(self, volume: Volume) -> Volume:
        """The scan in the box: image, label and affine. The scan itself where the box is all of it."""
        if self.size == volume.size:
            return volume
        affine = volume.affine.copy()
        affine[:3, 3] += affine[:3, :3] @ self.low
        return dataclasses.replace(
            volume,
            image=np.ascontiguousarray(volume.image[self.place]),
            label=None if volume.label is None else np.ascontiguousarray(volume.label[self.place]),
            affine=affine,
        )

    def paste(self, array: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
        """What lies in the box, on the grid of the scan: zeros around it. [x, y, z, ...] -> [X, Y, Z, ...]."""
        if self.size == size:
            return array
        pasted = np.zeros((*size, *array.shape[3:]), array.dtype)
        pasted[self.place] = array
        return pasted

    def paste_probs(self, probs: np.ndarray, size: tuple[int, int, int]) -> np.ndarray:
        """Class probabilities [x, y, z, K] on the grid of the scan: around the box all is background for certain."""
        pasted = self.paste(probs, size)
        if pasted is not probs:
            outside = np.ones(size, bool)
            outside[self.place] = False
            pasted[outside, 0] = 1.0
        return pasted

    def united(self, other: Region) -> Region:
        """The smallest box around both."""
        return Region(_triple(np.minimum(self.low, other.low)), _triple(np.maximum(self.high, other.high)), other.found)

    def turned(self, order: AxisOrder, size: tuple[int, int, int]) -> Region:
        """The same box of a scan of `size` voxels after `order.apply`."""
        ends = [
            (size[axis] - self.high[axis], size[axis] - self.low[axis]) if flip else (self.low[axis], self.high[axis])
            for axis, flip in zip(order.permutation, order.flips, strict=True)
        ]
        return Region(_triple([low for low, _ in ends]), _triple([high for _, high in ends]), self.found)


class RegionTally:
    """What became of many scans; may be told from several threads."""

    def __init__(self) -> None:
        self._shares: dict[str, float] = {}
        self._whole: set[str] = set()

    def add(self, volume: Volume, region: Region) -> None:
        """Counts one scan."""
        self._shares[volume.case_id] = region.share(volume.size)
        if not region.found:
            self._whole.add(volume.case_id)

    def summary(self) -> dict[str, Any]:
        """JSON values: mean share of the scans' voxels that lies in their regions, and cases that were taken whole."""
        return {
            "mean_region_share": sum(self._shares.values()) / max(1, len(self._shares)),
            "taken_whole": sorted(self._whole),
        }


def box_around(
    found: np.ndarray, size: tuple[int, int, int], spacing_mm: tuple[float, float, float], margin_mm: float
) -> Region:
    """The box of a scan around what was found in a grid of the same extent.

    Args:
        found: bool [x, y, z], with at least one voxel.
        size: Voxels of the scan.
        spacing_mm: Of the scan.
        margin_mm: The box reaches this far beyond, and not beyond the scan.
    """
    low, high = [], []
    for axis, n in enumerate(size):
        where = np.flatnonzero(found.any(axis=tuple(a for a in range(3) if a != axis)))
        scale, margin = n / found.shape[axis], margin_mm / spacing_mm[axis]
        low.append(max(0, int(np.floor(where[0] * scale - margin + BORDER_TOLERANCE_VOX))))
        high.append(min(n, int(np.ceil((where[-1] + 1) * scale + margin - BORDER_TOLERANCE_VOX))))
    return Region(_triple(low), _triple(high))


def found_classes(probs: np.ndarray) -> np.ndarray:
    """The most probable organ where there may be one, else background: float [X, Y, Z, K] -> uint8 [X, Y, Z]."""
    organ = np.argmax(probs[..., 1:], axis=-1) + 1
    return np.where(1.0 - probs[..., 0] > FOUND_PROBABILITY, organ, 0).astype(np.uint8)


class Locator:
    """Finds the box of a scan that holds the organs.

    Args:
        config: Settings of the run.
        model: The coarse network, [B, x, y, z, C] -> logits [B, x, y, z, K].
    """

    def __init__(self, config: Config, model: keras.Model) -> None:
        self.config = config
        x, y, z = config.coarse_spacing_mm
        self.preprocessing = Preprocessing(config.lower_percentile, config.upper_percentile, (x, y, z))
        self._forward = tf.function(lambda images: softmax(model(images, training=False)))

    def locate(self, volume: Volume) -> Region:
        """The box around the large pieces of every class, in the scan's own voxels.

        The whole scan, with a warning, where a class was not found at all: a box around the others may cut it off.

        Args:
            volume: As loaded, turned as the network knows scans. Its label, if it has one, is not looked at.
        """
        grid = self.preprocessing.to_training_grid(dataclasses.replace(volume, label=None), self.config.n_classes)
        probs = predict_probs(
            lambda images: self._forward(tf.convert_to_tensor(images)).numpy(),
            grid.image,
            self.config.coarse_patch_size,
            overlap=COARSE_OVERLAP,
            blend=WINDOW_BLEND,
        )
        mask = found_classes(probs)
        missing = sorted(set(range(1, self.config.n_classes)) - set(np.unique(mask).tolist()))
        if missing:
            logging.warning(
                "%s: the coarse pass found nothing of class %s; the whole scan is taken.",
                volume.case_id, ", ".join(map(str, missing)),
            )  # fmt: skip
            return Region.whole(volume, found=False)
        return box_around(large_pieces(mask, PIECE_SHARE), volume.size, volume.spacing_mm, self.config.region_margin_mm)


def _triple(values: object) -> tuple[int, int, int]:
    x, y, z = (int(v) for v in values)  # type: ignore[attr-defined]
    return x, y, z
