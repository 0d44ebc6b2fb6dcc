"""The two passes over a case, inspecting and writing: what a process is asked and what it answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from semisam_tf.atomic import write_json
from semisam_tf.data.orientation import axis_code
from semisam_tf.data.volumes import Volume, save_volume_h5
from semisam_tf.preparation.reading import CaseFacts, ReadingOptions, case_facts, plain, read_case, source_sha256
from semisam_tf.preparation.regridding import Target, prepare_case
from semisam_tf.preparation.sources import Source
from semisam_tf.preparation.thumbnails import thumbnail

R = TypeVar("R")

# Goes up whenever the same files and settings would be prepared differently: what was made before is then made anew.
REVISION = 1
_RECORD = "prepared"
THUMBNAIL = "thumbnail"


@dataclass(frozen=True)
class Inspection:
    """Asks what a case is.

    Attributes:
        path: Its HDF5 file, which may be there from an earlier run.
        note: File with the answer to the same question of another shard, or for it; None where there are no shards.
    """

    source: Source
    options: ReadingOptions
    path: Path
    note: Path | None = None


@dataclass(frozen=True)
class Writing:
    """Asks for a case's HDF5 file."""

    source: Source
    options: ReadingOptions
    path: Path
    facts: CaseFacts
    target: Target


@dataclass(frozen=True)
class Failure:
    """Why a case cannot be used."""

    reason: str


@dataclass(frozen=True)
class Written:
    """A case that is on disk. `result`: JSON-ready description; `is_new`: whether it had to be written."""

    result: dict[str, Any]
    is_new: bool


def inspect(task: Inspection) -> CaseFacts | Failure:
    """The facts of a case: from an earlier run's record if its files are the same bytes, else by reading it."""
    return _guarded(task.source, lambda: _inspect(task))


def write(task: Writing) -> Written | Failure:
    """Writes a case, unless the file that is there was made of the same bytes with the same settings."""
    return _guarded(task.source, lambda: _write(task))


def _inspect(task: Inspection) -> CaseFacts:
    digest = source_sha256(task.source)
    for record in (_recall(task.path), _noted(task.note)):
        if record.get("reading") == _reading(task.options) and record["facts"]["source_sha256"] == digest:
            return CaseFacts.from_dict(record["facts"])
    facts = case_facts(task.source, task.options, digest)
    if task.note is not None:
        write_json(task.note, {"revision": REVISION, "reading": _reading(task.options), "facts": plain(facts)})
    return facts


def _write(task: Writing) -> Written:
    record = _recall(task.path)
    made_of = {"reading": _reading(task.options), "target": task.target.to_dict(), "facts": plain(task.facts)}
    if all(record.get(name) == value for name, value in made_of.items()):
        return Written(record["result"], is_new=False)
    prepared = prepare_case(read_case(task.source, task.options), task.target)
    volume = prepared.volume
    if min(volume.size) < 2:
        raise ValueError(
            f"Expected a volume of {task.source.images[0]} at --spacing_mm={task.target.spacing_mm}. Received: "
            f"{volume.size} voxels, a single slice; take a finer spacing."
        )
    result = {
        "size_vox": list(volume.size),
        "spacing_mm": list(volume.spacing_mm),
        "orientation": axis_code(volume.affine) if volume.has_orientation else None,
        "dtype": str(volume.image.dtype),
        "intensity": [
            [float(f(volume.image[..., c])) for f in (np.min, np.max)] for c in range(volume.image.shape[-1])
        ],
        "class_ml": _class_ml(volume, task.target),
        "uncropped_vox": list(prepared.uncropped_vox),
        "crop_vox": [list(span) for span in prepared.crop_vox],
        "warnings": list(prepared.warnings),
    }
    paths = [str(path.absolute()) for path in (*task.source.images, *filter(None, [task.source.label]))]
    attributes = {
        "source": json.dumps(paths),
        "source_sha256": task.facts.source_sha256,
        _RECORD: json.dumps({"revision": REVISION, **made_of, "result": result}),
    }
    save_volume_h5(task.path, volume, attributes, {THUMBNAIL: thumbnail(volume)})
    return Written(result, is_new=True)


def _class_ml(volume: Volume, target: Target) -> dict[str, float] | None:
    """Millilitres of each foreground class; None without a mask."""
    if volume.label is None:
        return None
    voxel_ml = float(np.prod(volume.spacing_mm)) / 1000
    classes = sorted({k for _, k in target.label_map if k})
    return {str(k): round(int(np.count_nonzero(volume.label == k)) * voxel_ml, 6) for k in classes}


def _reading(options: ReadingOptions) -> dict[str, Any]:
    values = dataclasses.asdict(options)
    return values | {"default_spacing_mm": list(options.default_spacing_mm)}


def _recall(path: Path) -> dict[str, Any]:
    """The record in a case's HDF5 file; empty where there is none, or one of another revision."""
    try:
        with h5py.File(path, "r") as file:
            record = json.loads(file.attrs[_RECORD])
    except (OSError, RuntimeError, KeyError, ValueError, TypeError):
        return {}
    return record if isinstance(record, dict) and record.get("revision") == REVISION else {}


def _noted(note: Path | None) -> dict[str, Any]:
    """What another shard found of a case; empty where it has not come to it."""
    if note is None:
        return {}
    try:
        record = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and record.get("revision") == REVISION else {}


def _guarded(source: Source, work: Callable[[], R]) -> R | Failure:
    """Whatever one file does, the other cases are prepared."""
    try:
        return work()
    except ValueError as error:
        return Failure(str(error))
    except Exception as error:
        return Failure(f"{source.images[0]}: {type(error).__name__}: {error}")
