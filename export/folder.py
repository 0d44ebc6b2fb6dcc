"""The folder of an export: written beside its place under another name, moved there whole, or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_KNOWN = {"encoder.onnx", "decoder.onnx", "encoder.onnx.data", "decoder.onnx.data", "manifest.json"}
_OLD = ".old"


def check_output(output: Path) -> None:
    """The folder is replaced as a whole: one that holds anything else must not be.

    Raises:
        ValueError: `output` is there and is no export, which has a manifest; or it is a mount point.
    """
    if not output.exists():
        return
    if output.is_mount():
        raise ValueError(
            "Expected --output to be a folder that can be replaced as a whole: name one inside it. "
            f"Received: {output}, a mount point."
        )
    held = sorted(p.name for p in output.iterdir()) if output.is_dir() else []
    others = [name for name in held if name not in _KNOWN] or ([] if _has_manifest(output) else held)
    if others or not output.is_dir():
        raise ValueError(
            "Expected --output to be a new folder or an earlier export with its manifest.json, which is replaced as a "
            f"whole. Received: {output} holding {others[:5] or 'a file'}."
        )


def _has_manifest(output: Path) -> bool:
    """Of any format and whatever the files: an export that is older or damaged is still one."""
    try:
        values = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and "format" in values


def good_export(output: Path, is_wanted: Callable[[Any], bool]) -> dict[str, Any] | None:
    """Manifest of the export that is there, if it is whole, its files are those it lists, and `is_wanted` says so."""
    from semisam_tf.sam.manifest import load_manifest

    try:
        manifest = load_manifest(output)
    except (FileNotFoundError, ValueError):
        return None
    return manifest.to_dict() if is_wanted(manifest) else None


@contextlib.contextmanager
def replacing_folder(output: Path) -> Iterator[Path]:
    """A new folder beside `output` to write to, which takes its place when the block succeeds.

    Should the block raise (Ctrl-C included), `output` is as it was, and nothing else is left, nor are parent folders
    that were made for it. What a killed process of this machine left is swept away here.

    Args:
        output: Absolute path, links resolved: what is replaced is the folder, not a link to it.

    Raises:
        ValueError: The folder above cannot be written to.
    """
    made = [parent for parent in output.parents if not parent.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _sweep(output)
        staging = Path(tempfile.mkdtemp(prefix=f"{_prefix(output)}{os.getpid()}-{_machine()}.", dir=output.parent))
    except OSError as error:
        _remove_empty(made)
        raise ValueError(
            f"Expected --output in a folder that can be written to. "
            f"Received: --output={output}: {error.strerror} ({error.filename})."
        ) from None
    try:
        yield staging
        staging.chmod(0o755)
        _replace(staging, output)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        _remove_empty(made)
        raise


def _prefix(output: Path) -> str:
    return f".{output.name}.partial."


def _remove_empty(folders: list[Path]) -> None:
    """Innermost first; one that somebody else has begun to use stays."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _replace(staging: Path, output: Path) -> None:
    """A folder cannot be renamed onto one that is not empty: the old one steps aside first."""
    old = staging.with_name(staging.name + _OLD)
    if output.exists():
        os.rename(output, old)
    try:
        os.rename(staging, output)
    except BaseException:
        if old.exists():
            os.rename(old, output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sweep(output: Path) -> None:
    """Removes what killed exports left beside `output`; puts back the old export where one died while replacing it."""
    left_overs = [path for path in output.parent.iterdir() if path.name.startswith(_prefix(output))]
    for left_over in sorted(left_overs):
        process, _, machine = left_over.name.removeprefix(_prefix(output)).partition(".")[0].partition("-")
        # Of other machines and containers, where each may be process 1, it is not known here who runs.
        if machine != _machine() or (process.isdigit() and _is_running(int(process))):
            continue
        if left_over.name.endswith(_OLD) and not output.exists():
            os.rename(left_over, output)
        else:
            shutil.rmtree(left_over, ignore_errors=True)


def _machine() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _is_running(process: int) -> bool:
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
