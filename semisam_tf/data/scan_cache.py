"""Scans in the training grid on disk: brought there once, and read from there as a batch needs them.

A file a scan: a page that says what it is, then the image, float32 [X, Y, Z, C], as it lies in memory. It is mapped, so
that a crop reads its own box alone and what is kept of it is the page cache's, which gives it back when memory is
needed. No label is ever written here: labels are opened on record only (`label_access`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import logging

from semisam_tf.atomic import replacing, require_folder
from semisam_tf.data.preprocess import Preprocessing
from semisam_tf.data.volumes import Volume

# Goes up whenever the same scan would be brought to another grid: what was made before is then made anew.
_MAGIC = "semisam-tf scan 1"
_PAGE = 4096


class StoredVolume(Volume):
    """A scan whose image lies in a file: read-only, and read as far as it is looked at.

    Mapped anew each time it is asked for: a map holds a file handle, and of those a process has about a thousand.
    """

    def __init__(self, volume: Volume, path: Path) -> None:
        """The scan as `volume` has it but for its image, which lies at `path`."""
        shape = volume.image.shape
        kept = {field.name: getattr(volume, field.name) for field in dataclasses.fields(volume)}
        del kept["image"]
        self.__dict__.update(kept, path=path, shape=shape)

    path: Path
    shape: tuple[int, ...]

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels along X, Y, Z, without a look into the file."""
        x, y, z = self.shape[:3]
        return x, y, z

    @property
    def image(self) -> np.ndarray:
        """float32 [X, Y, Z, C].

        Raises:
            OSError: The file is gone, or cut.
        """
        try:
            return _mapped(self.path, self.shape)
        except (OSError, ValueError) as error:
            raise OSError(
                f"Expected {self.path} to stay where it is while a run reads it; give the same command again, which "
                f"makes it anew. Received: {error}."
            ) from error


class ScanCache:
    """A folder of images in the training grid, for any number of runs and processes.

    Args:
        folder: Made if absent.

    Raises:
        OSError: The folder may not be written to.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        require_folder(self.folder, "scans in the training grid", "--scan_cache_dir")

    def to_training_grid(self, volume: Volume, preprocessing: Preprocessing, n_classes: int) -> StoredVolume:
        """As `Preprocessing.to_training_grid`, with the image in a file: one that is there, or a new one.

        A file that is there but is not as it was written is made anew, with a warning.
        """
        shape = (*preprocessing.training_size(volume.size, volume.spacing_mm), volume.image.shape[-1])
        key = _key(volume, preprocessing)
        path = self.folder / f"{_readable(volume.case_id)}-{key[:16]}.scan"
        fault = _fault(path, key, shape)
        if fault and path.exists():
            logging.warning("Expected this scan in the training grid; making it again. Received: %s: %s.", path, fault)
        if fault:
            _write(path, key, preprocessing.training_image(volume))
        return StoredVolume(preprocessing.on_training_grid(volume, _mapped(path, shape), n_classes), path)


def kept_bytes(folder: str | os.PathLike[str], case_id: str) -> int:
    """What a folder holds of a case, made by whatever settings; 0 where there is no such folder."""
    return sum(path.stat().st_size for path in Path(folder).glob(f"{_readable(case_id)}-{'[0-9a-f]' * 16}.scan"))


def _readable(case_id: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", case_id)[:80]


def _key(volume: Volume, preprocessing: Preprocessing) -> str:
    """sha256 over all that decides the image: the voxels as they were read and cut, and what is done with them.

    A label is no part of it, but may be behind the cut: of a labelled scan in a coarse-to-fine run. The same scan as an
    unlabelled one has voxels of its own here.
    """
    done = json.dumps(preprocessing.to_dict(), sort_keys=True)
    digest = hashlib.sha256(f"{_MAGIC} {volume.case_id} {done} {volume.spacing_mm} {volume.image.shape}".encode())
    digest.update(np.ascontiguousarray(volume.image).data)
    return digest.hexdigest()


def _write(path: Path, key: str, image: np.ndarray) -> None:
    data = np.ascontiguousarray(image, np.float32)
    header = json.dumps({"what": _MAGIC, "key": key, "shape": data.shape, "crc32": zlib.crc32(data.data)}).encode()
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(header.ljust(_PAGE))
        file.write(data.data)


def _fault(path: Path, key: str, shape: Sequence[int]) -> str:
    """What keeps a file from being used; empty if nothing does."""
    if not path.is_file():
        return "no file"
    wanted_bytes = _PAGE + math.prod(shape) * np.dtype(np.float32).itemsize
    bytes_there = path.stat().st_size
    if bytes_there != wanted_bytes:
        return f"{bytes_there} bytes instead of {wanted_bytes}"
    with path.open("rb") as file:
        page = file.read(_PAGE)
    try:
        header = json.loads(page)
        found = [header[name] for name in ("what", "key", "shape")]
    except (ValueError, KeyError, TypeError):
        return f"header {page[:100]!r}"
    if found != [_MAGIC, key, list(shape)]:
        return f"header {header!r}"
    return "" if header.get("crc32") == zlib.crc32(_mapped(path, shape).data) else "other voxels than were written"


def _mapped(path: Path, shape: Sequence[int]) -> np.ndarray:
    return np.asarray(np.memmap(path, np.float32, "r", offset=_PAGE, shape=tuple(shape)))
