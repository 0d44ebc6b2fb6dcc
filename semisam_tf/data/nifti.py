"""Whether a NIfTI file is whole. ITK fills what is missing from a cut file with whatever lies in memory."""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

_GZIP_MAGIC = b"\x1f\x8b"
_HEADER_BYTES = 540  # of NIfTI-2; NIfTI-1 has 348


def check_complete(path: str | os.PathLike[str]) -> None:
    """Raises ValueError, naming the file, unless it holds all the voxels that its header announces.

    A compressed file is read to its end, which also verifies its checksum.
    """
    path = Path(path)
    try:
        with path.open("rb") as plain:
            compressed = plain.read(2) == _GZIP_MAGIC
            plain.seek(0)
            if compressed:
                with gzip.GzipFile(fileobj=plain) as stream:
                    header, found = _header_and_size(stream)  # type: ignore[arg-type]
            else:
                header, found = _header_and_size(plain)
        expected = _announced_bytes(header)
    except (EOFError, OSError, zlib.error, struct.error) as error:
        raise ValueError(f"Expected a whole NIfTI file: {path} is truncated or damaged ({error}).") from error
    if found < expected:
        raise ValueError(
            f"Expected a whole NIfTI file: {path} is truncated. Received: {found} bytes, where its header announces "
            f"{expected}."
        )


def _header_and_size(stream: BinaryIO) -> tuple[bytes, int]:
    header = stream.read(_HEADER_BYTES)
    size = len(header)
    while block := stream.read(1 << 20):
        size += len(block)
    return header, size


def _announced_bytes(header: bytes) -> int:
    """Bytes from the start of the file to the end of the last voxel.

    Reference: nifti1.h and nifti2.h of the NIfTI Data Format Working Group.
    """
    for order in "<>":
        header_size = struct.unpack_from(f"{order}i", header, 0)[0]
        if header_size == 348:
            dim = struct.unpack_from(f"{order}8h", header, 40)
            bits = struct.unpack_from(f"{order}h", header, 72)[0]
            offset = struct.unpack_from(f"{order}f", header, 108)[0]
        elif header_size == 540:
            dim = struct.unpack_from(f"{order}8q", header, 16)
            bits = struct.unpack_from(f"{order}h", header, 14)[0]
            offset = struct.unpack_from(f"{order}q", header, 168)[0]
        else:
            continue
        if not 1 <= dim[0] <= 7:
            raise OSError(f"its header announces {dim[0]} axes")
        return int(offset) + math.prod(max(1, n) for n in dim[1 : dim[0] + 1]) * bits // 8
    raise OSError("it has no NIfTI header")
