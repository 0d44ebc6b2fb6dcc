"""The header of a NIfTI-1 file in the graph: read, checked, and turned into the header of its mask.

Reference: nifti1.h of the NIfTI Data Format Working Group.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from semisam_tf.data.nifti import HEADER_BYTES, MAP_OFFSET, map_fields
from semisam_tf.serving.checks import checked
from semisam_tf.serving.pipeline import Limits

_FARTHEST_OFFSET = 2**24

# NIfTI's code of each voxel type that has one real number a voxel.
VOXEL_TYPES = {
    2: tf.uint8, 4: tf.int16, 8: tf.int32, 16: tf.float32, 64: tf.float64, 256: tf.int8, 512: tf.uint16,
    768: tf.uint32, 1024: tf.int64, 1280: tf.uint64,
}  # fmt: skip
_CODES = list(VOXEL_TYPES)
_SIZES = [kind.size for kind in VOXEL_TYPES.values()]


@dataclasses.dataclass(frozen=True)
class Header:
    """What the pipeline needs of a header, as tensors.

    Attributes:
        raw: uint8 [348], as in the file.
        big_endian: bool scalar.
        size: int64 [3], voxels along X, Y, Z.
        spacing_mm: float64 [3].
        voxel_type: int32 scalar, place in VOXEL_TYPES.
        voxel_bytes: int64 scalar, size of one value.
        offset: int64 scalar, where the voxels begin.
        slope, inter: float64 scalars; value = slope * stored + inter.
        channels: Values of a voxel, known when the graph is made.
    """

    raw: tf.Tensor
    big_endian: tf.Tensor
    size: tf.Tensor
    spacing_mm: tf.Tensor
    voxel_type: tf.Tensor
    voxel_bytes: tf.Tensor
    offset: tf.Tensor
    slope: tf.Tensor
    inter: tf.Tensor
    channels: int

    @property
    def n_values(self) -> tf.Tensor:
        """int64 scalar: numbers in the file."""
        return tf.reduce_prod(self.size) * self.channels


def numbers(raw: tf.Tensor, big_endian: tf.Tensor, offset: int, count: int, kind: tf.DType) -> tf.Tensor:
    """`count` numbers from byte `offset` on: uint8 [348] -> [count] of `kind`."""
    rows = tf.reshape(raw[offset : offset + count * kind.size], [count, kind.size])
    rows = tf.where(big_endian, rows[:, ::-1], rows)
    return tf.bitcast(rows, kind) if kind.size > 1 else tf.cast(rows[:, 0], kind)


def parse(start: tf.Tensor, channels: int, limits: Limits) -> Header:
    """Reads and checks a header before anything as large as the scan is touched.

    Args:
        start: string scalar, at least the first 348 bytes of the uncompressed file.
        channels: Image channels of the network: NIfTI's fourth and fifth axis.
        limits: What a request may ask for.
    """
    length = tf.strings.length(start)
    start = checked(start, length >= HEADER_BYTES, "a NIfTI-1 file with a header of 348 bytes", length, "bytes")
    raw = tf.ensure_shape(tf.io.decode_raw(tf.strings.substr(start, 0, HEADER_BYTES), tf.uint8), [HEADER_BYTES])
    raw, big_endian = _checked_magic(raw)
    size = _checked_size(raw, big_endian, channels, limits)
    code = numbers(raw, big_endian, 70, 1, tf.int16)[0]
    known = tf.equal(tf.cast(code, tf.int32), tf.constant(_CODES))
    voxel_type = checked(
        tf.argmax(known, output_type=tf.int32), tf.reduce_any(known),
        "one real number a voxel: uint8 (2), int16 (4), int32 (8), float32 (16), float64 (64), int8 (256), "
        "uint16 (512), uint32 (768), int64 (1024) or uint64 (1280)", "NIfTI datatype", code,
    )  # fmt: skip
    offset = numbers(raw, big_endian, 108, 1, tf.float32)[0]
    offset = checked(
        offset, (offset >= MAP_OFFSET) & (offset <= _FARTHEST_OFFSET) & tf.equal(offset, tf.floor(offset)),
        f"voxels to begin at a byte (vox_offset) from {MAP_OFFSET} to {_FARTHEST_OFFSET}", offset,
    )  # fmt: skip
    slope, inter = _scaling(raw, big_endian)
    return Header(
        raw, big_endian, size, _spacing_mm(raw, big_endian), voxel_type,
        tf.gather(tf.constant(_SIZES, tf.int64), voxel_type), tf.cast(offset, tf.int64), slope, inter, channels,
    )  # fmt: skip


def _checked_magic(raw: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    is_little, is_big = (
        tf.equal(numbers(raw, tf.constant(order), 0, 1, tf.int32)[0], HEADER_BYTES) for order in (False, True)
    )
    raw = checked(
        raw, is_little | is_big,
        "a NIfTI-1 file, .nii or .nii.gz: its first number is 348 (NIfTI-2 has 540 and has to be converted)",
        "first four bytes", raw[:4],
    )  # fmt: skip
    magic = raw[344:348]
    raw = checked(
        raw, tf.reduce_all(tf.equal(magic, tf.constant(list(b"n+1\0"), tf.uint8))),
        "the magic of NIfTI-1, n+1 and a zero byte, at byte 344 (ni1 is a header whose voxels are in another file)",
        "bytes", magic,
    )  # fmt: skip
    return raw, is_big


def _checked_size(raw: tf.Tensor, big_endian: tf.Tensor, channels: int, limits: Limits) -> tf.Tensor:
    dim = tf.cast(numbers(raw, big_endian, 40, 8, tf.int16), tf.int64)
    dim = checked(dim, (dim[0] >= 3) & (dim[0] <= 5), "3 to 5 axes: X, Y, Z and channels", "dim[0] =", dim[0])
    # What stands behind the last axis means nothing.
    dim = tf.where(tf.range(8, dtype=tf.int64) <= dim[0], dim, tf.ones_like(dim))
    size, n_channels = dim[1:4], dim[4:6]
    fits = tf.reduce_all((size >= 1) & (size <= limits.axis_vox)) & (tf.reduce_prod(size) <= limits.scan_vox)
    text = f"a scan of 1 to {limits.axis_vox} voxels along each axis and at most {limits.scan_vox} in all"
    size = checked(size, fits, text, size)
    # One of the two is 1, as ITK wants it too: else it is a time series of vectors.
    right = tf.equal(tf.reduce_max(n_channels), channels) & tf.equal(tf.reduce_min(n_channels), 1)
    return checked(size, right, f"{channels} image channels, as in training", "axes behind Z", n_channels)


def _spacing_mm(raw: tf.Tensor, big_endian: tf.Tensor) -> tf.Tensor:
    """float64 [3]. The pipeline checks that it is finite and above 0.

    A negative size without qform and sform says nothing, since neither does the order of the axes; beside one of them
    readers differ on what it says, and it is refused, as by `data.nifti.read_header`.
    """
    pixdim = tf.cast(numbers(raw, big_endian, 80, 3, tf.float32), tf.float64)
    has_form = tf.reduce_max(numbers(raw, big_endian, 252, 2, tf.int16)) > 0
    pixdim = checked(
        pixdim, tf.logical_not(has_form) | tf.reduce_all(tf.logical_not(pixdim < 0)),
        "voxel sizes (pixdim) above 0 beside a qform or sform", pixdim,
    )  # fmt: skip
    unit = tf.cast(raw[123], tf.int32) % 8  # 1: m, 2: mm, 3: micrometre, else unknown: mm
    return tf.abs(pixdim) * tf.gather(tf.constant([1, 1000, 1, 0.001, 1, 1, 1, 1], tf.float64), unit)


def _scaling(raw: tf.Tensor, big_endian: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Slope 0 means that values are stored as they are; NaN and infinity are read as 0, as nifti_io and ITK do."""
    stored = numbers(raw, big_endian, 112, 2, tf.float32)
    stored = tf.cast(tf.where(tf.math.is_finite(stored), stored, tf.zeros_like(stored)), tf.float64)
    unscaled = tf.equal(stored[0], 0)
    return tf.where(unscaled, tf.ones_like(stored[0]), stored[0]), tf.where(
        unscaled, tf.zeros_like(stored[1]), stored[1]
    )


def mask_header(header: Header) -> tf.Tensor:
    """The header of a mask on the scan's grid, uint8 [348]: qform, sform, units and byte order are the scan's."""
    (little, own), (big, _) = (map_fields(order, np.dtype(np.uint8)) for order in "<>")
    return tf.where(tf.constant(own), tf.where(header.big_endian, tf.constant(big), tf.constant(little)), header.raw)
