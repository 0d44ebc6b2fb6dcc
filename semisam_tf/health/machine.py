"""Memory and disk: what there is, and what the run will ask for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from semisam_tf.findings import FAIL, OK, WARN, Finding

GIB = 1024**3
# More than this share of what is free, and little else may happen on the machine.
_TIGHT = 0.8
_CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def memory_bytes(
    meminfo: str = "/proc/meminfo", cgroup_files: Sequence[tuple[str, str]] = _CGROUP_FILES
) -> tuple[int, int] | None:
    """(free, in all) bytes of memory that a new process may have: the machine's, or a container's where it has less.

    None where the system does not say.
    """
    try:
        lines = Path(meminfo).read_text(encoding="utf-8").splitlines()
        values = {line.split(":")[0]: 1024 * int(line.split()[1]) for line in lines if line.endswith("kB")}
        free, total = values["MemAvailable"], values["MemTotal"]
    except (OSError, ValueError, KeyError, IndexError):
        return None
    for limit_file, used_file in cgroup_files:
        try:
            limit, used = (
                int(Path(limit_file).read_text(encoding="utf-8")),
                int(Path(used_file).read_text(encoding="utf-8")),
            )
        except (OSError, ValueError):  # no such control group, or "max": no limit
            continue
        free, total = min(free, max(0, limit - used)), min(total, limit)
    return free, total


def check_memory(needs: Mapping[str, int], memory: tuple[int, int] | None) -> Finding:
    """Compares what the run needs, bytes by what for, with (free, in all)."""
    needed = sum(needs.values())
    shown = ", ".join(f"{gib(n)} for {what}" for what, n in needs.items())
    if memory is None:
        return Finding(WARN, "memory", f"the system does not say how much there is; the run needs {shown or '?'}")
    free, total = memory
    found = f"{gib(free)} of {gib(total)} free" + (f"; the run needs about {shown}" if needs else "")
    fix = "close other programs, or take coarser --training_spacing_mm, a smaller --patch_size or fewer --filters"
    if needed > free:
        return Finding(FAIL, "memory", found, fix)
    return Finding(WARN, "memory", found, fix) if needed > _TIGHT * free else Finding(OK, "memory", found)


def existing_folder(path: str | os.PathLike[str]) -> Path:
    """`path`, or the nearest folder above it that is there."""
    folder = Path(path).absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder


def check_folder(subject: str, path: str, needed: int, what: str, flag: str) -> Finding:
    """Whether `needed` more bytes fit where `path` is, or will be, and whether one may write there."""
    folder = existing_folder(path)
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(FAIL, subject, f"{folder} cannot be written to", f"set {flag} to another folder")
    free = shutil.disk_usage(folder).free
    found = f"{gib(free)} free for {path}; {what}"
    fix = f"free some, or set {flag} to another disk"
    if needed > free:
        return Finding(FAIL, subject, found, fix)
    return Finding(WARN, subject, found, fix) if needed > _TIGHT * free else Finding(OK, subject, found)


def gib(n_bytes: float) -> str:
    """Bytes for people."""
    return f"{n_bytes / GIB:.1f} GiB" if n_bytes >= GIB / 10 else f"{n_bytes / 1024**2:.1f} MiB"
