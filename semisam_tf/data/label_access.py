"""The record of every label that is opened: by whom, for what, when.

A label is read only with a `LabelAccess`, which says what for; `load_volume` takes nothing else. The access of a run
writes a line to `<workdir>/label_access.jsonl` before the label is opened: a process killed in between has recorded
too much, never too little. Each line holds the sha256 of the one before, and `run.json`, `result.json` and
`metrics.json` keep how far the record had come: a line that is changed, left out or cut off shows. That finds
accidents and edits; it is no proof against somebody who computes the chain and those files anew.
"""

from __future__ import annotations

import dataclasses
import datetime
import fcntl
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import IO, Any

from semisam_tf.workdir import LEDGER_FILE as LEDGER_FILE

# What a label can be opened for.
PURPOSES = {
    "training": "the supervised loss, and crops around the organ",
    "model_choice": "choosing among weights or settings",
    "crops": "finding where to look",
    "self_test": "judging SAM or the network while training",
    "oracle_prompts": "prompting SAM (--oracle_prompts)",
    "scoring": "metrics of a finished run",
    "data_check": "semisam_tf.doctor: whether the file can be read",
    "timing": "semisam_tf.doctor: how long a step takes",
}
_START = "0" * 64
# How far a record has come that has no line.
NO_ENTRIES = {"entries": 0, "sha256": _START}
_FIELDS = {"n", "time", "case_id", "file", "purpose", "command", "pid", "run_id", "previous", "sha256"}


@dataclasses.dataclass(frozen=True)
class LabelAccess:
    """Leave to open labels, for one purpose. Made by `LabelLedger.access`, or by `outside_runs`.

    Attributes:
        purpose: One of PURPOSES; without ledger a reason in words.
        ledger: Where it is recorded; None for labels that no run has anything to do with.
    """

    purpose: str
    ledger: LabelLedger | None

    def record(self, case_id: str, file: Path) -> None:
        """Called by whoever opens a label, before it does."""
        if self.ledger is not None:
            self.ledger.append(case_id, file, self.purpose)


def outside_runs(reason: str) -> LabelAccess:
    """Leave to open labels where there is no run they could leak into; nothing is recorded."""
    return LabelAccess(reason, None)


class LabelLedger:
    """The record of one workdir, which may be written by several threads and processes.

    Args:
        workdir: Folder of the run; it exists.
        run_id: The run on whose behalf labels are opened.
    """

    def __init__(self, workdir: str | os.PathLike[str], run_id: str) -> None:
        self.path, self.run_id = Path(workdir) / LEDGER_FILE, run_id

    def access(self, purpose: str) -> LabelAccess:
        """Leave to open labels for one of PURPOSES."""
        if purpose not in PURPOSES:
            raise ValueError(f"Expected a purpose of {', '.join(PURPOSES)}. Received: {purpose!r}.")
        return LabelAccess(purpose, self)

    def append(self, case_id: str, file: Path, purpose: str) -> None:
        """Writes one line; it is on the disk when this returns.

        Raises:
            OSError: The line cannot be written; then the label must stay closed.
            ValueError: What is there is no record of this kind.
        """
        made = not self.path.exists()
        with self.path.open("a+b") as handle:
            # A lock of this opening of the file: threads of one process exclude each other too.
            fcntl.flock(handle, fcntl.LOCK_EX)
            n, previous = self._end(handle)
            entry = {
                "n": n + 1,
                "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
                "case_id": case_id,
                "file": str(Path(file).absolute()),
                "purpose": purpose,
                "command": sys.argv,
                "pid": os.getpid(),
                "run_id": self.run_id,
                "previous": previous,
            }
            handle.write((json.dumps(entry | {"sha256": _digest(entry)}) + "\n").encode())
            handle.flush()
            os.fsync(handle.fileno())
        if made:
            _sync_folder(self.path.parent)

    def mark(self) -> dict[str, Any]:
        """How far the record has come: "run_id", "entries" and the "sha256" of the last one."""
        if not self.path.exists():
            return {"run_id": self.run_id, **NO_ENTRIES}
        with self.path.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH)
            n, digest = self._last(handle.read())
        return {"run_id": self.run_id, "entries": n, "sha256": digest}

    def _end(self, handle: IO[bytes]) -> tuple[int, str]:
        """Number and sha256 of the last line. Cuts off one that a killed process left unfinished."""
        handle.seek(0)
        content = handle.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            # Its label was never opened: that comes after the line is on the disk.
            handle.truncate(whole)
        return self._last(content[:whole])

    def _last(self, content: bytes) -> tuple[int, str]:
        lines = content[: content.rfind(b"\n") + 1].splitlines()
        if not lines:
            return 0, _START
        try:
            entry = json.loads(lines[-1])
            return int(entry["n"]), str(entry["sha256"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"Expected a record of opened labels in {self.path}. Received: a last line that is none ({error!r}). "
                "Put the file back as it was, or choose another --workdir."
            ) from error


@dataclasses.dataclass(frozen=True)
class Opening:
    """One line of the record: a label that was opened."""

    n: int
    time: str
    case_id: str
    file: str
    purpose: str
    command: tuple[str, ...]
    pid: int
    run_id: str


@dataclasses.dataclass(frozen=True)
class LedgerReading:
    """What `label_access.jsonl` says, and what is wrong with it.

    Attributes:
        openings: In the order they were written; only lines that are as they were written.
        digests: sha256 of line n at index n; index 0 is the start.
        faults: In words; empty for a record that is whole.
    """

    openings: tuple[Opening, ...]
    digests: tuple[str, ...]
    faults: tuple[str, ...]

    def fault_of(self, mark: dict[str, Any], where: str) -> str:
        """What is wrong if `where` says that the record had come as far as `mark`; empty if nothing is."""
        n, digest = mark.get("entries"), mark.get("sha256")
        if not isinstance(n, int) or not 0 <= n < len(self.digests):
            return f"{where} knows of {n} openings, the record has {len(self.digests) - 1}"
        return "" if self.digests[n] == digest else f"line {n} is not the one that {where} knows of"


def read_ledger(workdir: str | os.PathLike[str]) -> LedgerReading | None:
    """Reads the record of a workdir and follows its chain; None if there is none."""
    path = Path(workdir) / LEDGER_FILE
    if not path.is_file():
        return None
    content = path.read_bytes()
    openings: list[Opening] = []
    digests, faults = [_START], []
    # What follows the last end of line was never finished, so its label was not opened.
    for n, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            entry = json.loads(line)
            if set(entry) != _FIELDS:
                raise ValueError("other fields")
            digest, fault = str(entry.pop("sha256")), ""
            if digest != _digest(entry):
                fault = "was changed"
            elif (entry["n"], entry.pop("previous")) != (n, digests[-1]):
                fault = "does not follow the one before it"
            else:
                openings.append(Opening(**(entry | {"command": tuple(entry["command"])})))
        except (ValueError, TypeError, AttributeError):
            digest, fault = "", "cannot be read"
        digests.append(digest)
        faults += [f"line {n} {fault}"] if fault else []
    return LedgerReading(tuple(openings), tuple(digests), tuple(faults))


def _digest(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _sync_folder(folder: Path) -> None:
    """A new file's name is on the disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
