"""Files that are whole or absent: written under a temporary name, then renamed. Folders with one owner."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_PARTIAL = ".partial."
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary name in the folder of `path` (made if absent) to write to; renamed to `path` on success.

    The temporary name keeps all suffixes of `path`, since image libraries and Keras choose the format by them. Should
    the block raise, nothing is left under either name; a process killed outright leaves the temporary file behind.
    What has the name of `path` has reached the disk before.

    Raises:
        OSError: The disk is full, or may not be written to.
    """
    path = Path(path)
    # Not by the process's number: of several containers each may be process 1.
    temporary = path.with_name(f"{_PARTIAL}{uuid.uuid4().hex[:12]}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            # Some file systems say only here that they are full.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno in _FULL:
            raise OSError(error.errno, full_disk(path.parent, path)) from error
        if error.errno == errno.EROFS:
            raise OSError(error.errno, f"Expected a folder that may be written to. Received: {path.parent}.") from error
        raise
    finally:
        # On a disk that may not be written to there is nothing to remove, and asking for it would be an error.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def require_room(folder: str | os.PathLike[str], count: int) -> None:
    """Takes `count` bytes of the disk of `folder` (made if absent) and gives them back at once.

    Raises:
        OSError: They are not to be had, be it for want of space, a quota or a limit.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            if count > 0:
                os.posix_fallocate(file.fileno(), 0, count)
        except OSError as error:
            raise OSError(error.errno, full_disk(folder, f"{count} bytes in {folder}")) from error


def require_folder(folder: Path, what: str, flag: str) -> None:
    """Makes a folder for `what`, named by `flag`, and tries to write into it: the first file may be due hours later.

    Raises:
        OSError: It may not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            f"Expected a folder for {what} that may be written to; choose another {flag}. "
            f"Received: {folder} ({error.strerror})."
        ) from error


def full_disk(folder: Path, what: object) -> str:
    """What to say when `what` cannot be written into `folder` for want of room."""
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    return (
        f"Expected room for {what}; free some and give the same command again. Received: {free} bytes free; files are "
        "as they were before."
    )


def sweep(folder: str | os.PathLike[str]) -> None:
    """Removes what killed processes left in `folder`. Only for its single owner: it asks nobody whether they live."""
    for left_over in Path(folder).glob(f"{_PARTIAL}*"):
        left_over.unlink()


@contextlib.contextmanager
def locked(folder: Path, flag: str, *, name: str = ".lock", shared: bool = False, wait: bool = False) -> Iterator[None]:
    """Holds `folder`, made if absent, for this process. The kernel drops the lock when it dies, however it dies.

    Args:
        flag: The flag that named the folder, for the message.
        name: Of the file that is locked: what is held is the folder as far as others lock the same file.
        shared: Others may hold it at the same time, if they share it too.
        wait: Until it is to be had, where another process holds it.

    Raises:
        RuntimeError: Another process holds it, and `wait` is not set.
        OSError: It may not be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / name).open("a+")
    except OSError as error:
        raise OSError(
            f"Expected a {flag} that may be written to; choose another. Received: {folder} ({error.strerror})."
        ) from error
    with lock as handle:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            handle.seek(0)
            raise RuntimeError(
                f"{folder} is in use by process {handle.read().strip() or 'unknown'}: wait for it, stop it, or choose "
                f"another {flag}."
            ) from None
        except OSError as error:
            raise OSError(
                f"Expected a {flag} on a file system with file locks (flock), which keep two processes from writing to "
                f"one folder; choose another, or have it mounted with them (Lustre: -o flock). Received: {folder} "
                f"({error.strerror})."
            ) from error
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
        temporary.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")
