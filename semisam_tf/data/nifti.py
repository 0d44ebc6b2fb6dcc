"""NIfTI-1 files: whether one is whole and finite, what its header says of the grid, and maps on that very grid.

ITK fills what is missing from a cut file with whatever lies in memory, reads NaN as 0, takes a voxel of no size for one
of 1 mm, and writes both forms of an affine with codes of its own. Reference: nifti1.h and nifti2.h of the NIfTI Data
Format Working Group.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from semisam_tf.atomic import replacing

NIFTI_SUFFIXES = (".nii", ".nii.gz")
HEADER_BYTES = 348
# Header and the four bytes that say that no extension follows.
MAP_OFFSET = 352
_NIFTI2_HEADER_BYTES = 540
_GZIP_MAGIC = b"\x1f\x8b"
# NumPy's types that can hold NaN, by NIfTI's code of a voxel type.
_REAL_TYPES = {16: "f4", 64: "f8"}
# NIfTI's code of the voxel types that maps have, by NumPy's.
_MAP_CODES = {np.dtype(np.uint8): 2, np.dtype(np.float32): 16}


@dataclass(frozen=True)
class Header:
    """The 348 bytes of a NIfTI-1 header, as in the file."""

    raw: bytes

    @property
    def order(self) -> Literal["<", ">"]:
        """Byte order as `struct` has it, "<" or ">"."""
        return "<" if struct.unpack_from("<i", self.raw, 0)[0] == HEADER_BYTES else ">"

    @property
    def has_orientation(self) -> bool:
        """Whether it has a qform or an sform; without (NIfTI's method 1) it only has voxel sizes."""
        return max(struct.unpack_from(f"{self.order}2h", self.raw, 252)) > 0

    @property
    def pixdim(self) -> tuple[float, float, float]:
        """Voxel sizes as stored, in the header's unit; may be anything."""
        return struct.unpack_from(f"{self.order}3f", self.raw, 80)

    def of_map(self, dtype: np.dtype) -> bytes:
        """The header of a map of one value a voxel on the same grid; geometry, units and byte order are this one's."""
        values, own = map_fields(self.order, dtype)
        return np.where(own, values, np.frombuffer(self.raw, np.uint8)).tobytes()


def check_complete(path: str | os.PathLike[str]) -> bytes:
    """Raises ValueError, naming the file, unless it holds all the voxels that its header announces, none of them NaN.

    The file is read to its end, which also verifies the checksum of a compressed one.

    Returns:
        The file's first 540 bytes, uncompressed.
    """
    path = Path(path)
    try:
        with path.open("rb") as plain:
            compressed = plain.read(2) == _GZIP_MAGIC
            plain.seek(0)
            if compressed:
                with gzip.GzipFile(fileobj=plain) as stream:
                    header, found, not_finite = _read_through(stream)  # type: ignore[arg-type]
            else:
                header, found, not_finite = _read_through(plain)
        expected = _layout(header)[1]
    except (EOFError, OSError, zlib.error, struct.error) as error:
        raise ValueError(f"Expected a whole NIfTI file: {path} is truncated or damaged ({error}).") from error
    if found < expected:
        raise ValueError(
            f"Expected a whole NIfTI file: {path} is truncated. Received: {found} bytes, where its header announces "
            f"{expected}."
        )
    if not_finite:
        raise ValueError(
            f"Expected finite image values in {path}. Received: {not_finite} voxels that are NaN or infinite; repair "
            "the file or exclude the case."
        )
    return header


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header of a whole file that every reader takes for the same grid.

    Raises:
        ValueError: The file is cut or damaged, is NIfTI-2 or has its voxels elsewhere, or has a voxel of negative size
            beside a qform or sform: ITK turns the axis round, nibabel and the norm do not. Names the file.
    """
    start = check_complete(path)
    if _NIFTI2_HEADER_BYTES in (struct.unpack_from(f"{order}i", start, 0)[0] for order in "<>"):
        raise ValueError(f"Expected a NIfTI-1 file, header of 348 bytes. Received: {path}, NIfTI-2; convert it.")
    header = Header(start[:HEADER_BYTES])
    magic = header.raw[344:]
    if magic != b"n+1\0":
        raise ValueError(
            f"Expected the magic of NIfTI-1 in one file, n+1 and a zero byte, at byte 344 of {path}. "
            f"Received: {magic!r}; convert the file."
        )
    if header.has_orientation and min(header.pixdim) < 0:
        raise ValueError(
            f"Expected voxel sizes (pixdim) above 0 beside a qform or sform in {path}. Received: {header.pixdim}: "
            "readers differ on which way such an axis runs; correct the header."
        )
    return header


def map_fields(order: str, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """What the header of a map has of its own, not of its scan's: uint8 [348], and which bytes those are, bool [348].

    Args:
        order: "<" or ">".
        dtype: uint8 or float32.
    """
    values, own = bytearray(HEADER_BYTES), np.zeros(HEADER_BYTES, bool)
    for offset, layout, *content in (
        (40, "h", 3), (48, "4h", 1, 1, 1, 1),  # dim: three axes; X, Y, Z stay
        (56, "3fh", 0, 0, 0, 0),  # intent
        (70, "2h", _MAP_CODES[np.dtype(dtype)], 8 * np.dtype(dtype).itemsize),
        (108, "3f", MAP_OFFSET, 1, 0),  # vox_offset, slope, intercept
        (124, "2f", 0, 0),  # display range
        (148, "80s", b"semisam-tf"),
        (228, "24s", b""),  # aux_file
        (328, "16s", b""),  # intent_name
    ):  # fmt: skip
        struct.pack_into(order + layout, values, offset, *content)
        own[offset : offset + struct.calcsize(order + layout)] = True
    return np.frombuffer(bytes(values), np.uint8), own


def header_without_orientation(size: Sequence[int], spacing_mm: Sequence[float]) -> Header:
    """A header that says how large the voxels are and not how they lie: qform and sform code 0."""
    raw = bytearray(HEADER_BYTES)
    struct.pack_into("<i", raw, 0, HEADER_BYTES)
    struct.pack_into("<8h", raw, 40, 3, *size, 1, 1, 1, 1)
    struct.pack_into("<8f", raw, 76, 1, *spacing_mm, 1, 1, 1, 1)
    struct.pack_into("<B", raw, 123, 2)  # millimetres
    struct.pack_into("<4s", raw, 344, b"n+1")
    return Header(bytes(raw))


def without_orientation(data: bytes) -> bytes:
    """The bytes of a .nii with qform and sform code 0: of which converters write what they took for granted."""
    return data[:252] + bytes(4) + data[256:]


def write_map(path: str | os.PathLike[str], values: np.ndarray, header: Header) -> None:
    """Writes [X, Y, Z], uint8 or float32, on the grid of the scan with that header; compressed where `path` says so."""
    stored = values.dtype.newbyteorder(header.order)
    with replacing(path) as temporary, temporary.open("wb") as plain:
        packed = gzip.GzipFile("", "wb", 6, plain, mtime=0) if str(path).endswith(".gz") else None
        file = packed or plain
        file.write(header.of_map(values.dtype) + bytes(MAP_OFFSET - HEADER_BYTES))
        for z in range(values.shape[2]):  # X runs fastest
            file.write(values[:, :, z].astype(stored).tobytes(order="F"))
        if packed:
            packed.close()


def _read_through(stream: BinaryIO) -> tuple[bytes, int, int]:
    """The first 540 bytes, the size of the file, and how many of its voxels are NaN or infinite."""
    header = stream.read(_NIFTI2_HEADER_BYTES)
    start, end, kind = _layout(header)
    block, held, size, not_finite = header, b"", 0, 0
    while block:
        if kind is not None:
            held += block[max(0, start - size) : max(0, end - size)]
            whole = len(held) - len(held) % kind.itemsize
            not_finite += int(np.count_nonzero(~np.isfinite(np.frombuffer(held[:whole], kind))))
            held = held[whole:]
        size += len(block)
        block = stream.read(1 << 20)
    return header, size, not_finite


def _layout(header: bytes) -> tuple[int, int, np.dtype | None]:
    """Where the voxels begin and end in the file, and their type if it can hold NaN."""
    for order in "<>":
        header_size = struct.unpack_from(f"{order}i", header, 0)[0]
        if header_size == HEADER_BYTES:
            dim = struct.unpack_from(f"{order}8h", header, 40)
            code, bits = struct.unpack_from(f"{order}2h", header, 70)
            offset = struct.unpack_from(f"{order}f", header, 108)[0]
        elif header_size == _NIFTI2_HEADER_BYTES:
            dim = struct.unpack_from(f"{order}8q", header, 16)
            code, bits = struct.unpack_from(f"{order}2h", header, 12)
            offset = struct.unpack_from(f"{order}q", header, 168)[0]
        else:
            continue
        if not 1 <= dim[0] <= 7:
            raise OSError(f"its header announces {dim[0]} axes")
        if not 0 <= offset < math.inf:
            raise OSError(f"its header has the voxels begin at byte {offset}")
        n_bytes = math.prod(max(1, n) for n in dim[1 : dim[0] + 1]) * bits // 8
        kind = np.dtype(order + _REAL_TYPES[code]) if code in _REAL_TYPES else None
        return int(offset), int(offset) + n_bytes, kind
    raise OSError("it has no NIfTI header")
