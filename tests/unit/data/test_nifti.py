"""Cut and damaged NIfTI files, which ITK would read as if nothing were missing, and masks in the header of a scan."""

from __future__ import annotations

import gzip
import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from semisam_tf.data.itk import read_image
from semisam_tf.data.nifti import check_complete
from semisam_tf.data.orientation import axis_order
from semisam_tf.data.preprocess import Preprocessing
from semisam_tf.data.scans import find_scans, load_scan, save_map
from semisam_tf.data.volumes import save_mask

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


QFORM = (-1, 0.1, 0.2, 0.9, 11, -7, 3)
SFORM = [0, -1.2, 0, 4, 1, 0, 0, 5, 0, 0, 2.25, 6]  # elsewhere than the qform
# Of a header: dim, pixdim, unit, codes, quaternion and offsets, sform.
GEOMETRY = [(40, "8h"), (76, "8f"), (123, "B"), (252, "2h"), (256, "6f"), (280, "12f")]


def scan_file(runs, path: Path, codes: tuple[int, int], order: str = "<", spacing=(1, 1.2, 2.25), **kwargs) -> Path:
    """Writes a scan of 5 x 4 x 3 voxels with a qform and an sform that differ, and these codes."""
    data = bytearray(runs.nifti(runs.scan((5, 4, 3))[..., 0], 16, order, 2, 7, spacing, QFORM, SFORM, **kwargs))
    struct.pack_into(order + "2h", data, 252, *codes)
    path.write_bytes(gzip.compress(bytes(data)) if path.suffix == ".gz" else bytes(data))
    return path


def content(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


@pytest.mark.parametrize(("scan", "mask"), list(itertools.product((".nii", ".nii.gz"), repeat=2)))
@pytest.mark.parametrize("codes", [(1, 1), (1, 2), (2, 1), (4, 3), (0, 2), (1, 0), (0, 0)])
def test_a_mask_has_the_header_geometry_of_its_scan(runs, tmp_path, codes, scan, mask) -> None:
    order = "<>"[codes[0] % 2]
    path = scan_file(runs, tmp_path / f"scan{scan}", codes, order, units=3)
    (found,) = find_scans(path)
    volume = load_scan(found)
    values = (np.arange(60).reshape(5, 4, 3) % 7).astype(np.uint8)
    written = [tmp_path / f"a{mask}", tmp_path / f"b{mask}", tmp_path / f"probs{mask}"]
    save_map(written[0], values, volume, "label")
    save_mask(written[1], values, volume)
    save_map(written[2], values.astype(np.float32) / 7, volume, "probs")
    before = content(path)
    for out, kind in zip(written, ("u1", "u1", "f4"), strict=True):
        after = content(out)
        for offset, layout in GEOMETRY:
            assert struct.unpack_from(order + layout, after, offset) == struct.unpack_from(
                order + layout, before, offset
            )
        assert struct.unpack_from(order + "3f", after, 108) == (352, 1, 0)  # and not the scan's slope of 2
        expected = values if kind == "u1" else values.astype(np.float32) / 7
        np.testing.assert_array_equal(
            np.frombuffer(after[352:], order + kind).reshape(3, 4, 5).transpose(2, 1, 0), expected
        )
        again = read_image(out, None)
        np.testing.assert_array_equal(again.array[..., 0], expected)
        np.testing.assert_array_equal(again.affine, volume.affine)
        assert again.has_orientation == volume.has_orientation == (max(codes) > 0)
    assert not list(tmp_path.glob(".*"))


def test_a_turned_or_resampled_scan_has_no_header_left(runs, tmp_path) -> None:
    """A mask in its header would lie elsewhere, and where sizes are equal nothing would tell."""
    path = scan_file(runs, tmp_path / "scan.nii", (1, 1))
    (found,) = find_scans(path)
    volume = load_scan(found)
    assert volume.nifti_header is not None
    assert axis_order("RAS", "LAS").apply_to(volume).nifti_header is None
    grid = Preprocessing(0.5, 99.5, (2.0, 2.0, 2.0)).to_training_grid(volume, 2)
    assert grid.size != volume.size
    assert grid.nifti_header is None


def test_a_map_of_a_scan_without_orientation_claims_none(tmp_path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 4, 5), np.float32)), str(tmp_path / "a.nrrd"))
    text = (tmp_path / "a.nrrd").read_bytes()
    text = b"\n".join(line for line in text.split(b"\n") if not line.startswith(b"space"))
    (tmp_path / "a.nrrd").write_bytes(text)
    (found,) = find_scans(tmp_path / "a.nrrd")
    volume = load_scan(found, (0.5, 1.5, 2.5))
    save_map(tmp_path / "mask.nii", np.ones((5, 4, 3), np.uint8), volume, "label")
    mask = read_image(tmp_path / "mask.nii", None)
    assert struct.unpack_from("<2h", (tmp_path / "mask.nii").read_bytes(), 252) == (0, 0)
    assert not mask.has_orientation
    assert mask.spacing_mm == (0.5, 1.5, 2.5)


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 1), (2, 2)])
@pytest.mark.parametrize("size", [0.0, float("nan"), float("inf")])
def test_no_voxel_size_is_no_size_of_1_mm(runs, tmp_path, codes, size) -> None:
    path = scan_file(runs, tmp_path / "a.nii", codes, spacing=(1, size, 2))
    with pytest.raises(ValueError, match=rf"{path} stores none; give it by --default_spacing_mm"):
        read_image(path, None)
    assert read_image(path, (1.0, 3.0, 2.0)).spacing_mm == (1, 3, 2)


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 1), (2, 2)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_negative_voxel_size_is_a_size_without_orientation_and_else_refused(runs, tmp_path, codes, axis) -> None:
    """ITK would turn the axis round; nibabel, and the norm, would not."""
    spacing = [1.0, 1.5, 2.0]
    spacing[axis] *= -1
    path = scan_file(runs, tmp_path / "a.nii", codes, spacing=spacing)
    if max(codes) > 0:
        with pytest.raises(ValueError, match=rf"voxel sizes \(pixdim\) above 0 beside a qform or sform in {path}"):
            read_image(path, None)
        return
    stored = read_image(path, None)
    assert stored.spacing_mm == (1, 1.5, 2)
    assert not stored.has_orientation
    np.testing.assert_allclose(stored.array, 2 * runs.scan((5, 4, 3)) + 7, rtol=1e-6)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("code", [16, 64])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("offset", [352, 2**20 + 4, 400])
def test_nan_is_not_read_as_0(runs, tmp_path, suffix, code, order, offset) -> None:
    """Which ITK does; in the first and last voxel, and where a block of the file ends."""
    values = np.ones((80, 70, 60), np.float64)
    for where in ((0, 0, 0), (-1, -1, -1), (64, 24, 46)):
        values[where] = np.nan
    path = tmp_path / f"a{suffix}"
    pack = gzip.compress if suffix == ".nii.gz" else bytes
    path.write_bytes(pack(runs.nifti(values, code, order, offset=offset) + b"\xff" * 64))  # NaN behind the voxels
    with pytest.raises(ValueError, match=rf"finite image values in {path}. Received: 3 voxels"):
        read_image(path, None)
    path.write_bytes(pack(runs.nifti(np.nan_to_num(values), code, order, offset=offset) + b"\xff" * 64))
    assert read_image(path, None).array.sum() == 80 * 70 * 60 - 3


@pytest.mark.parametrize(
    ("place", "values", "message"), [(0, struct.pack("<i", 540), "NIfTI-2; convert"), (344, b"ni1\0", "n+1 and a zero")]
)
def test_other_kinds_of_nifti_are_told_by_name(tmp_path, place, values, message) -> None:
    data = bytearray(header(2 if place == 0 else 1, "<") + bytes(2 * VOXELS))
    data[place : place + len(values)] = values
    (tmp_path / "a.nii").write_bytes(data)
    with pytest.raises(ValueError, match=message.replace("+", r"\+")):
        read_image(tmp_path / "a.nii", None)
