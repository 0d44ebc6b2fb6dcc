"""A scan's target as it is kept, in bytes, and as an item of a batch sees it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import NamedTuple

import h5py
import numpy as np

from semisam_tf.data.augment import SpatialTransform

LEVELS = 255.0
_BLOCK_VOX = 32


class Target(NamedTuple):
    """Bytes, since targets go to disk.

    Attributes:
        probs: uint8 [x, y, z, K - 1], 255ths of the probability of each class but the background.
        weight: uint8 [x, y, z], 255ths.
    """

    probs: np.ndarray
    weight: np.ndarray


def as_bytes(probs: np.ndarray, weight: np.ndarray) -> Target:
    """From float32 [x, y, z, K] summing to 1 and float32 [x, y, z] in [0, 1]."""
    # Down, so that the foreground's shares never sum to more than 1.
    foreground = np.floor(probs[..., 1:] * LEVELS + 1e-3).astype(np.uint8)
    return Target(foreground, np.round(weight * LEVELS).astype(np.uint8))


def packed(target: Target) -> np.ndarray:
    """A target for memory and checkpoints, uint8 [n]: a fifth or less, as most of a scan is surely background."""
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, array in target._asdict().items():
            # In blocks, of which a crop unpacks those that it lies in. Higher levels save little.
            blocks = tuple(min(_BLOCK_VOX, n) for n in array.shape[:3]) + array.shape[3:]
            file.create_dataset(name, data=array, chunks=blocks, compression="gzip", compression_opts=1)
    return np.frombuffer(content.getbuffer(), np.uint8)


@contextlib.contextmanager
def opened(content: np.ndarray) -> Iterator[Target]:
    """A packed target, its arrays still in the file: indexing reads them."""
    with h5py.File(io.BytesIO(content.tobytes()), "r") as file:
        yield Target(file["probs"], file["weight"])


def cut(target: Target, transform: SpatialTransform) -> tuple[np.ndarray, np.ndarray]:
    """The part of a target that an item shows: probs float32 [x, y, z, K], weight float32 [x, y, z].

    Nearest, not linear: a weight smeared over the edge of the trusted region trusts what nobody said. Beyond the scan
    the weight is 0.
    """
    foreground = transform.apply(target.probs, order=0, fill=0).astype(np.float32) / LEVELS
    probs = np.concatenate([1 - foreground.sum(axis=-1, keepdims=True), foreground], axis=-1)
    return probs, transform.apply(target.weight, order=0, fill=0).astype(np.float32) / LEVELS


def mask_of(kept: np.ndarray) -> np.ndarray:
    """The likeliest class of each voxel, uint8 [x, y, z], from `Target.probs`; of equal ones the lower."""
    background = LEVELS - kept.sum(axis=-1, keepdims=True, dtype=np.float32)
    return np.concatenate([background, kept], axis=-1).argmax(axis=-1).astype(np.uint8)
