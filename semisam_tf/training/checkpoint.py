"""Checkpoints: one HDF5 file a step with every array a run needs to go on, written whole or not at all.

Before HDF5's own bytes lies a block with their sha256: a file that was damaged afterwards is not loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from absl import logging

from semisam_tf import atomic
from semisam_tf.atomic import replacing

Arrays = dict[str, dict[str, np.ndarray]]
_NAME = re.compile(r"step_(\d{8})\.h5$")
# HDF5 leaves as many bytes at the start of a file to its user as it is told to, of powers of 2 from 512.
_BLOCK_BYTES = 512
_MAGIC = b"semisam-tf checkpoint, sha256 of what follows: "
_HDF5_MAGIC = b"\x89HDF"


def locked(workdir: Path) -> contextlib.AbstractContextManager[None]:
    """Holds `workdir` for this process, however it ends.

    Raises:
        RuntimeError: Another process trains there.
        OSError: It may not be written to.
    """
    return atomic.locked(workdir, "--workdir")


def save(folder: Path, step: int, arrays: Arrays, state: Mapping[str, Any], keep: int = 2) -> Path:
    """Writes `step_<step>.h5` and removes all but the newest `keep`.

    Args:
        arrays: Group name -> array name -> array; names may contain slashes.
        state: JSON values.
    """
    path = folder / f"step_{step:08d}.h5"
    # In memory: on a full disk HDF5 can neither write nor close a file, and takes the process down with it.
    content = io.BytesIO()
    with h5py.File(content, "w", userblock_size=_BLOCK_BYTES) as file:
        file.attrs["state"] = json.dumps(dict(state))
        for group, named in arrays.items():
            target = file.create_group(group)
            # Keras paths are unique only with their position: two optimiser slots may share a path.
            for position, (name, array) in enumerate(named.items()):
                small = array.size < 1024
                options = {} if small else {"compression": "lzf"}
                target.create_dataset(f"{position:05d}", data=array, **options).attrs["name"] = name
    content.getbuffer()[:_BLOCK_BYTES] = _block(content.getbuffer())
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())
    for old in _existing(folder)[:-keep]:
        old.unlink()
    return path


def load_latest(folder: Path, sets_aside: bool = True) -> tuple[int, Arrays, dict[str, Any]] | None:
    """The newest checkpoint that is not damaged as (step, arrays, state), or None if there is none at all.

    Damaged ones are passed over with a warning and renamed to `<name>.damaged`, so that nothing counts on them; with
    `sets_aside` off, for a process whose folder it is not, they are only passed over.

    Raises:
        ValueError: All are damaged; the message says what to remove.
    """
    damaged: dict[Path, str] = {}
    for path in reversed(_existing(folder)):
        try:
            arrays, state = _read(path)
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            damaged[path] = str(error)
            continue
        for passed_over, reason in damaged.items() if sets_aside else ():
            kept = passed_over.rename(passed_over.with_name(f"{passed_over.name}.damaged"))
            logging.warning("Going on from %s, since %s is damaged (%s); kept as %s.", path, passed_over, reason, kept)
        return int(_NAME.search(path.name).group(1)), arrays, state  # type: ignore[union-attr]
    if damaged:
        listed = "; ".join(f"{path}: {reason}" for path, reason in damaged.items())
        raise ValueError(
            f"Expected a checkpoint that can be read in {folder}. Put back a copy, or remove the files to start again "
            f"from step 0. Received: {listed}"
        )
    return None


def _read(path: Path) -> tuple[Arrays, dict[str, Any]]:
    content = path.read_bytes()
    # Checkpoints of older versions start with HDF5's own bytes and have no digest.
    if not content.startswith(_HDF5_MAGIC) and content[:_BLOCK_BYTES] != _block(content):
        raise ValueError("its content is not what was written")
    with h5py.File(io.BytesIO(content), "r") as file:
        state = json.loads(file.attrs["state"])
        arrays = {
            group: {str(item.attrs["name"]): item[()] for item in named.values()} for group, named in file.items()
        }
    return arrays, state


def _block(content: bytes | memoryview) -> bytes:
    """What belongs before the rest of a checkpoint."""
    digest = hashlib.sha256(memoryview(content)[_BLOCK_BYTES:]).hexdigest()
    return (_MAGIC + digest.encode()).ljust(_BLOCK_BYTES)


def require_room(folder: Path, checkpoint_bytes: int, keep: int = 2) -> None:
    """Raises OSError unless `folder` has room for the checkpoints to come: one more than are kept, for a while."""
    atomic.require_room(folder, (keep + 1 - len(_existing(folder))) * checkpoint_bytes)


def _existing(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step_*.h5") if _NAME.search(path.name))


def arrays_of(variables: list[Any]) -> dict[str, np.ndarray]:
    """Variables as arrays by position and path."""
    return {f"{i:04d}:{variable.path}": variable.numpy() for i, variable in enumerate(variables)}


def assign(variables: list[Any], arrays: Mapping[str, np.ndarray], what: str) -> None:
    """Sets variables from `arrays_of`'s result.

    Raises:
        ValueError: Names or shapes differ; the message lists every one.
    """
    wanted = {f"{i:04d}:{variable.path}": variable for i, variable in enumerate(variables)}
    missing, left_over = sorted(set(wanted) - set(arrays)), sorted(set(arrays) - set(wanted))
    misfits = [n for n in set(wanted) & set(arrays) if tuple(wanted[n].shape) != arrays[n].shape]
    if missing or left_over or misfits:
        raise ValueError(
            f"The checkpoint does not fit the {what}. Missing: {missing}; left over: {left_over}; "
            f"other shape: {sorted(misfits)}."
        )
    for name, variable in wanted.items():
        variable.assign(arrays[name])
