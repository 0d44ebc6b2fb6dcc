"""Files that are whole or absent: written under a temporary name, then renamed. Folders with one owner."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_PARTIAL = ".partial."


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name in the folder of `path` (made if absent) to write to; renamed to `path` on success.

    The temporary name keeps all suffixes of `path`, since image libraries and Keras choose the format by them. Should
    the block raise, nothing is left under either name; a process killed outright leaves the temporary file behind.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{_PARTIAL}{os.getpid()}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: str | os.PathLike[str]) -> None:
    """Removes what killed processes left in `folder`. Only for its single owner: it asks nobody whether they live."""
    for left_over in Path(folder).glob(f"{_PARTIAL}*"):
        left_over.unlink()


@contextlib.contextmanager
def locked(folder: Path, flag: str) -> Iterator[None]:
    """Holds `folder`, made if absent, for this process. The kernel drops the lock when it dies, however it dies.

    Args:
        flag: The flag that named the folder, for the message.

    Raises:
        RuntimeError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            raise RuntimeError(
                f"{folder} is in use by process {handle.read().strip() or 'unknown'}: wait for it, stop it, or choose "
                f"another {flag}."
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def write_lines(path: str | os.PathLike[str], lines: Iterable[str]) -> None:
    """Writes text, a line each."""
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def write_json(path: str | os.PathLike[str], values: Any) -> None:
    """Writes JSON (no NaN or infinity: they are not JSON)."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
