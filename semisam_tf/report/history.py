"""`history.jsonl`: what a run was at each of the steps it looked at, one JSON object a line, only ever appended to.

    {"step": 20, "terms": {"dice": 0.41, "total": 0.6}, "weights": {"dice": 1.0}, "learning_rate": 0.002,
     "ema_decay": 0.95, "entropy_threshold": 0.52, "duration_s": 7.1, "data_wait_s": 0.2, "sam": {"voxels": 0}}

`step` counts the steps taken. `terms` are unweighted means over the steps since the entry before; `weights`, the rate
and the decay are those of the last of them; `sam` counts from the start of the run and is absent without SAM.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from semisam_tf.atomic import replacing

Entry = dict[str, Any]


class History:
    """The history of a run that goes on from `step`.

    Entries past `step` are of steps that the run takes again, since it was stopped after them and before the next
    checkpoint: they are dropped, and so is a line that a killed process left unfinished. No step is there twice.
    """

    def __init__(self, path: str | os.PathLike[str], step: int) -> None:
        self._path = Path(path)
        entries, damaged = _read(self._path)
        kept = [entry for entry in entries if entry["step"] <= step]
        if damaged:
            logging.warning("%d lines of %s cannot be read and are dropped.", damaged, self._path)
        if damaged or len(kept) < len(entries):
            with replacing(self._path) as temporary:
                temporary.write_text("".join(map(_line, kept)), encoding="utf-8")

    def append(self, entry: Mapping[str, Any]) -> None:
        """Adds an entry; it has "step". Raises ValueError for NaN or infinity: they are not JSON."""
        line = _line(entry)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)


def read_history(path: str | os.PathLike[str]) -> list[Entry]:
    """The entries of a history, in order; none where there is no file. Unfinished lines are left out."""
    return _read(Path(path))[0]


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, allow_nan=False) + "\n"


def _read(path: Path) -> tuple[list[Entry], int]:
    """Entries, and how many lines are none."""
    if not path.is_file():
        return [], 0
    entries, damaged = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        # A line without its end may be a whole object by chance, but the next entry would be glued to it.
        if isinstance(entry, dict) and isinstance(entry.get("step"), int) and line.endswith("\n"):
            entries.append(entry)
        else:
            damaged += 1
    return entries, damaged
