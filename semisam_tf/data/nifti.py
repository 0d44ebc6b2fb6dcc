"""Whether a NIfTI file is whole and holds numbers only.

ITK fills what is missing from a cut file with whatever lies in memory, and reads NaN and infinity as 0.
"""

from __future__ import annotations

import gzip
import itertools
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

_GZIP_MAGIC = b"\x1f\x8b"
_HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348
# Data type codes of floats; the whole numbers cannot hold anything else.
_FLOATS = {16: "f4", 64: "f8"}


@dataclass(frozen=True)
class _Announced:
    """What a header says: first byte of the voxels, first byte behind them, and their type if they are floats."""

    start: int
    end: int
    floats: np.dtype | None


def check_complete(path: str | os.PathLike[str]) -> None:
    """Raises ValueError, naming the file, unless it holds all the voxels that its header announces, all of them finite.

    A compressed file is read to its end, which also verifies its checksum.
    """
    path = Path(path)
    try:
        with path.open("rb") as plain:
            compressed = plain.read(2) == _GZIP_MAGIC
            plain.seek(0)
            if compressed:
                with gzip.GzipFile(fileobj=plain) as stream:
                    announced, found, bad = _read(stream)  # type: ignore[arg-type]
            else:
                announced, found, bad = _read(plain)
    except (EOFError, OSError, zlib.error, struct.error) as error:
        raise ValueError(f"Expected a whole NIfTI file: {path} is truncated or damaged ({error}).") from error
    if found < announced.end:
        raise ValueError(
            f"Expected a whole NIfTI file: {path} is truncated. Received: {found} bytes, where its header announces "
            f"{announced.end}."
        )
    if bad:
        raise ValueError(
            f"Expected finite values in {path}. Received: {bad} voxels that are NaN or infinite; repair the file or "
            "leave it out."
        )


def _read(stream: BinaryIO) -> tuple[_Announced, int, int]:
    """What the header announces, the bytes there are, and the voxels that are not finite."""
    header = stream.read(_HEADER_BYTES)
    announced = _announced(header)
    size = bad = 0
    rest = b""
    for block in itertools.chain([header], iter(lambda: stream.read(1 << 20), b"")):
        if announced.floats is not None:
            voxels = rest + block[max(0, announced.start - size) : max(0, announced.end - size)]
            whole = len(voxels) // announced.floats.itemsize
            values = np.frombuffer(voxels, announced.floats, whole)
            bad += whole - int(np.count_nonzero(np.isfinite(values)))
            rest = voxels[whole * announced.floats.itemsize :]
        size += len(block)
    return announced, size, bad


def _announced(header: bytes) -> _Announced:
    """Where the voxels begin and end in the file.

    Reference: nifti1.h and nifti2.h of the NIfTI Data Format Working Group.
    """
    for order in "<>":
        header_size = struct.unpack_from(f"{order}i", header, 0)[0]
        if header_size == 348:
            dim = struct.unpack_from(f"{order}8h", header, 40)
            code, bits = struct.unpack_from(f"{order}2h", header, 70)
            offset = struct.unpack_from(f"{order}f", header, 108)[0]
        elif header_size == 540:
            dim = struct.unpack_from(f"{order}8q", header, 16)
            code, bits = struct.unpack_from(f"{order}2h", header, 12)
            offset = struct.unpack_from(f"{order}q", header, 168)[0]
        else:
            continue
        if not 1 <= dim[0] <= 7:
            raise OSError(f"its header announces {dim[0]} axes")
        end = int(offset) + math.prod(max(1, n) for n in dim[1 : dim[0] + 1]) * bits // 8
        floats = np.dtype(order + _FLOATS[code]) if code in _FLOATS else None
        return _Announced(int(offset), end, floats)
    raise OSError("it has no NIfTI header")
