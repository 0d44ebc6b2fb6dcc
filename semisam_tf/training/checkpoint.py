"""Checkpoints: one HDF5 file a step with every array a run needs to go on, written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from semisam_tf import atomic
from semisam_tf.atomic import replacing

Arrays = dict[str, dict[str, np.ndarray]]
_NAME = re.compile(r"step_(\d{8})\.h5$")


def locked(workdir: Path) -> contextlib.AbstractContextManager[None]:
    """Holds `workdir` for this process, however it ends.

    Raises:
        RuntimeError: Another process trains there.
    """
    return atomic.locked(workdir, "--workdir")


def save(folder: Path, step: int, arrays: Arrays, state: Mapping[str, Any], keep: int = 2) -> Path:
    """Writes `step_<step>.h5` and removes all but the newest `keep`.

    Args:
        arrays: Group name -> array name -> array; names may contain slashes.
        state: JSON values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:08d}.h5"
    with replacing(path) as temporary:
        with h5py.File(temporary, "w") as file:
            file.attrs["state"] = json.dumps(dict(state))
            for group, named in arrays.items():
                target = file.create_group(group)
                # Keras paths are unique only with their position: two optimiser slots may share a path.
                for position, (name, array) in enumerate(named.items()):
                    small = array.size < 1024
                    options = {} if small else {"compression": "lzf"}
                    target.create_dataset(f"{position:05d}", data=array, **options).attrs["name"] = name
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
    for old in _existing(folder)[:-keep]:
        old.unlink()
    return path


def load_latest(folder: Path) -> tuple[int, Arrays, dict[str, Any]] | None:
    """The newest checkpoint as (step, arrays, state), or None if there is none.

    Raises:
        ValueError: The file cannot be read; the message says what to remove.
    """
    paths = _existing(folder)
    if not paths:
        return None
    try:
        with h5py.File(paths[-1], "r") as file:
            state = json.loads(file.attrs["state"])
            arrays = {
                group: {str(item.attrs["name"]): item[()] for item in named.values()} for group, named in file.items()
            }
    except (OSError, KeyError) as error:
        raise ValueError(
            f"Checkpoint cannot be read: {paths[-1]} ({error}). Remove it to go on from the one before."
        ) from error
    return int(_NAME.search(paths[-1].name).group(1)), arrays, state  # type: ignore[union-attr]


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
