"""Cut and damaged NIfTI files, which ITK would read as if nothing were missing."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from semisam_tf.data.nifti import check_complete

SIZE, VOXELS = (3, 4, 5), 60


def header(version: int, order: str) -> bytes:
    if version == 1:
        data = bytearray(352)
        struct.pack_into(f"{order}i", data, 0, 348)
        struct.pack_into(f"{order}8h", data, 40, 3, *SIZE, 1, 1, 1, 1)
        struct.pack_into(f"{order}h", data, 72, 16)
        struct.pack_into(f"{order}f", data, 108, 352)
    else:
        data = bytearray(544)
        struct.pack_into(f"{order}i", data, 0, 540)
        struct.pack_into(f"{order}h", data, 14, 16)
        struct.pack_into(f"{order}8q", data, 16, 3, *SIZE, 1, 1, 1, 1)
        struct.pack_into(f"{order}q", data, 168, 544)
    return bytes(data)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_one_missing_byte_is_noticed(tmp_path: Path, version: int, order: str, packed: bool) -> None:
    path = tmp_path / "a.nii"
    whole = header(version, order) + bytes(2 * VOXELS)
    pack = gzip.compress if packed else bytes
    path.write_bytes(pack(whole))
    check_complete(path)
    path.write_bytes(pack(whole[:-1]))
    with pytest.raises(ValueError, match=rf"{path} is truncated.*{len(whole) - 1} bytes.*announces {len(whole)}"):
        check_complete(path)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_itk_would_read_as_zero_is_noticed(tmp_path: Path, dtype: type, suffix: str, bad: float) -> None:
    path = tmp_path / f"a{suffix}"
    values = np.ones((70, 70, 70), dtype)  # more than one block of the file
    sitk.WriteImage(sitk.GetImageFromArray(values), str(path))
    check_complete(path)
    if dtype == np.int16:
        return
    values[0, 0, 0] = values[40, 40, 40] = values[-1, -1, -1] = bad
    sitk.WriteImage(sitk.GetImageFromArray(values), str(path))
    with pytest.raises(ValueError, match=rf"{path}. Received: 3 voxels that are NaN or infinite"):
        check_complete(path)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [1, 2])
def test_floats_of_either_byte_order(tmp_path: Path, version: int, order: str) -> None:
    path = tmp_path / "a.nii"
    data = bytearray(header(version, order))
    struct.pack_into(f"{order}2h", data, 70 if version == 1 else 12, 16, 32)
    values = np.ones(VOXELS, f"{order}f4")
    path.write_bytes(data + values.tobytes() + bytes([255] * 40))  # what follows the voxels does not count
    check_complete(path)
    values[7] = np.nan
    path.write_bytes(data + values.tobytes())
    with pytest.raises(ValueError, match="1 voxels"):
        check_complete(path)


@pytest.mark.parametrize("where", [0.5, 0.99])
def test_a_changed_byte_of_a_compressed_file_is_noticed(tmp_path: Path, where: float) -> None:
    path = tmp_path / "a.nii.gz"
    values = np.random.default_rng(0).normal(size=(9, 9, 9)).astype(np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(path))
    check_complete(path)
    damaged = bytearray(path.read_bytes())
    damaged[int(where * len(damaged))] ^= 255
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=str(path)):
        check_complete(path)


@pytest.mark.parametrize("content", [b"", b"GIF89a" * 100, bytes(600)])
def test_what_is_no_nifti_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.nii"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=str(path)):
        check_complete(path)
