"""Bytes of a NIfTI-1 file to a scan and bytes of its mask, in the graph: no Python, no library but TensorFlow."""

from __future__ import annotations

import tensorflow as tf

from semisam_tf.data.nifti import HEADER_BYTES
from semisam_tf.serving import nifti_header
from semisam_tf.serving.checks import checked
from semisam_tf.serving.nifti_header import Header
from semisam_tf.serving.pipeline import Limits

_GZIP_MAGIC = b"\x1f\x8b"
# Compressed bytes that surely hold the header; at most 4 MiB come of them.
_PEEK_BYTES = 4096


def read(data: tf.Tensor, channels: int, limits: Limits) -> tuple[Header, tf.Tensor]:
    """string scalar, a .nii or .nii.gz -> its header, and the scan float32 [X, Y, Z, C].

    The header decides before the file is unpacked.
    """
    compressed = tf.equal(tf.strings.substr(data, 0, 2), _GZIP_MAGIC)
    length = tf.strings.length(data)
    data = checked(
        data, tf.logical_not(compressed) | (length <= limits.compressed_bytes),
        f"at most {limits.compressed_bytes} bytes of compressed file; send the larger one as .nii", length,
    )  # fmt: skip
    # Of a cut stream DecodeCompressed returns what it could unpack.
    start = tf.cond(
        compressed,
        lambda: tf.io.decode_compressed(tf.strings.substr(data, 0, _PEEK_BYTES), "GZIP"),
        lambda: tf.strings.substr(data, 0, HEADER_BYTES),
    )
    header = nifti_header.parse(start, channels, limits)
    n_bytes = header.n_values * header.voxel_bytes
    with tf.control_dependencies([n_bytes]):
        data = tf.identity(data)
    whole = tf.cond(compressed, lambda: tf.io.decode_compressed(data, "GZIP"), lambda: data)
    found = tf.cast(tf.strings.length(whole), tf.int64)
    whole = checked(
        whole, found >= header.offset + n_bytes, "a whole file: the header announces",
        header.offset + n_bytes, "bytes. This one is truncated:", found, "bytes",
    )  # fmt: skip
    return header, _values(header, tf.strings.substr(whole, header.offset, n_bytes))


def _values(header: Header, stored: tf.Tensor) -> tf.Tensor:
    """Bytes of the voxels -> float32 [X, Y, Z, C]."""
    rows = tf.reshape(tf.io.decode_raw(stored, tf.uint8), tf.stack([-1, header.voxel_bytes]))
    rows = tf.cond(header.big_endian, lambda: tf.reverse(rows, [1]), lambda: rows)
    scaled = tf.not_equal(header.slope, 1) | tf.not_equal(header.inter, 0)

    def branch(kind: tf.DType) -> tf.Tensor:
        values = tf.bitcast(tf.reshape(rows, [-1, kind.size]), kind) if kind.size > 1 else tf.bitcast(rows[:, 0], kind)
        return tf.cond(
            scaled,
            lambda: tf.cast(tf.cast(values, tf.float64) * header.slope + header.inter, tf.float32),
            lambda: tf.cast(values, tf.float32),
        )

    kinds = nifti_header.VOXEL_TYPES.values()
    values = tf.switch_case(header.voxel_type, [lambda kind=kind: branch(kind) for kind in kinds])
    # NIfTI's first axis runs fastest, and channels slowest.
    x, y, z = tf.unstack(header.size)
    return tf.transpose(tf.reshape(values, tf.stack([header.channels, z, y, x])), [3, 2, 1, 0])


def write_mask(header: Header, mask: tf.Tensor) -> tf.Tensor:
    """uint8 [X, Y, Z] on the scan's grid -> string scalar, a .nii."""
    parts = [_as_bytes(nifti_header.mask_header(header)), tf.constant(b"\0" * 4), _as_bytes(tf.transpose(mask))]
    return tf.strings.join(parts)


def _as_bytes(values: tf.Tensor) -> tf.Tensor:
    """uint8 of any shape -> string scalar of those bytes.

    TensorFlow has no op for it; a serialised TensorProto ends with them (field 4, and none of the later ones is set).
    """
    n = tf.size(values)
    return tf.strings.substr(tf.raw_ops.SerializeTensor(tensor=values), -n, n)
