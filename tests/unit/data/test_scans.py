"""Finding scans of every type below a path, reading them, and writing maps in their type of file."""

import h5py
import numpy as np
import pytest
import SimpleITK as sitk

from semisam_tf.data import itk
from semisam_tf.data.itk import read_image, write_image
from semisam_tf.data.scans import find_scans, load_scan, save_map
from semisam_tf.data.volumes import Volume, save_volume_h5

SPACING_MM = (0.8, 0.9, 2.5)
AFFINE = np.array([[-0.8, 0, 0, 20], [0, -0.9, 0, -10], [0, 0, 2.5, 5], [0, 0, 0, 1]])


def image(size=(5, 6, 4)):
    return np.random.default_rng(1).integers(-500, 500, size).astype(np.int16)


def write_series(folder, array, positions_mm=None, series="1", affine=AFFINE, shear_mm=0.0):
    """DICOM slices of [X, Y, Z] whose axes are those of `affine`, as a scanner would store them."""
    folder.mkdir(parents=True, exist_ok=True)
    lps = np.diag([-1.0, -1, 1]) @ affine[:3]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    rows, columns = lps[:, 0] / spacing[0], lps[:, 1] / spacing[1]
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for n in range(array.shape[2]):
        slice_image = sitk.GetImageFromArray(array[:, :, n : n + 1].transpose(2, 1, 0))
        slice_image.SetSpacing([float(s) for s in spacing])
        along_mm = n * spacing[2] if positions_mm is None else positions_mm[n]
        position = lps[:, 3] + lps[:, 2] / spacing[2] * along_mm + n * shear_mm * columns
        for key, value in {
            "0008|0060": "CT",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.1",
            "0020|000e": f"1.2.826.0.1.3680043.2.1125.2.{series}",
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.3.{series}.{n}",
            "0020|0032": "\\".join(f"{p:.6f}" for p in position),
            "0020|0037": "\\".join(f"{d:.6f}" for d in (*rows, *columns)),
            "0020|0013": str(n),
        }.items():
            slice_image.SetMetaData(key, value)
        # Names that sort against the order of the slices.
        writer.SetFileName(str(folder / f"{series}_{99 - n:03d}.dcm"))
        writer.Execute(slice_image)


def write(path, array=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = image() if array is None else array
    if path.suffix == ".h5":
        save_volume_h5(path, Volume("x", array[..., None].astype(np.float32), None, SPACING_MM, AFFINE))
    elif path.suffix == ".mhd":
        write_image(path.with_suffix(".mha"), array, SPACING_MM, AFFINE)
        sitk.WriteImage(sitk.ReadImage(str(path.with_suffix(".mha"))), str(path))
        path.with_suffix(".mha").unlink()
    else:
        write_image(path, array, SPACING_MM, AFFINE)
    return path


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha", "a.mhd", "a.h5"])
def test_one_file_of_every_type(name, tmp_path):
    path = write(tmp_path / name)
    (scan,) = find_scans(path)
    assert scan.scan_id == "a"
    volume = load_scan(scan)
    np.testing.assert_array_equal(volume.image[..., 0], image())
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    np.testing.assert_allclose(volume.spacing_mm, SPACING_MM, atol=1e-6)
    assert volume.has_orientation
    # What is written beside it has the same type of file and geometry.
    mask = (image() > 0).astype(np.uint8)
    save_map(tmp_path / f"mask{scan.map_suffix}", mask, volume, "label")
    (written,) = find_scans(tmp_path / f"mask{scan.map_suffix}")
    if name == "a.h5":
        with h5py.File(written.path) as file:
            np.testing.assert_array_equal(file["label"][()], mask)
            assert file["label"].dtype == np.uint8
            np.testing.assert_array_equal(file.attrs["affine"], volume.affine)
        return
    stored = read_image(written.path, None)
    np.testing.assert_array_equal(stored.array[..., 0], mask)
    assert stored.array.dtype == np.uint8
    np.testing.assert_allclose(stored.affine, volume.affine, atol=1e-6)
    assert scan.map_suffix == {"a.mhd": ".mha"}.get(name, name[1:])


@pytest.mark.parametrize("code", ["axial", "coronal"])
def test_a_dicom_series_is_sorted_by_position_and_keeps_its_geometry(code, tmp_path):
    # Columns are rows, columns and normal of the slices; right-handed, as DICOM's normal is.
    coronal = np.array([[-0.8, 0, 0, 20], [0, 0, -2.5, -10], [0, -0.9, 0, 5], [0, 0, 0, 1]])
    affine = AFFINE if code == "axial" else coronal
    write_series(tmp_path / "patient", image(), affine=affine)
    (scan,) = find_scans(tmp_path / "patient")
    assert scan.scan_id == "patient"
    assert scan.map_suffix == ".nii.gz"
    volume = load_scan(scan)
    np.testing.assert_array_equal(volume.image[..., 0], image())
    np.testing.assert_allclose(volume.affine, affine, atol=1e-4)
    assert volume.has_orientation


def test_a_missing_slice_and_a_tilted_gantry_are_refused(tmp_path):
    write_series(tmp_path / "gap", image(), positions_mm=[0, 2.5, 7.5, 10])
    with pytest.raises(ValueError, match=r"evenly spaced slices in .*gap\. Received: slices 2.5 to 5 mm apart"):
        load_scan(find_scans(tmp_path / "gap")[0])
    write_series(tmp_path / "tilt", image(), shear_mm=0.5)
    with pytest.raises(ValueError, match=r"normal in .*tilt\. Received: sheared"):
        load_scan(find_scans(tmp_path / "tilt")[0])


def test_slices_without_a_pixel_size_are_refused(tmp_path, monkeypatch):
    """GDCM takes them for 1 mm; it writes none itself, so another tag is looked for here."""
    write_series(tmp_path / "p", image())
    monkeypatch.setattr(itk, "_DICOM_SPACING", ("0028|0031",))
    with pytest.raises(ValueError, match=r"Expected a pixel size \(PixelSpacing\) in .*p\."):
        load_scan(find_scans(tmp_path / "p")[0])


def test_two_series_in_a_folder_are_two_scans_and_a_broken_one_is_named_when_read(tmp_path):
    write_series(tmp_path / "p", image(), series="1")
    write_series(tmp_path / "p", image() + np.int16(7), series="2")
    first, second = find_scans(tmp_path / "p")
    assert (first.scan_id, second.scan_id) == tuple(f"p_1.2.826.0.1.3680043.2.1125.2.{n}" for n in (1, 2))
    assert np.all(load_scan(second).image - load_scan(first).image == 7)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"nothing")
    (scan,) = find_scans(tmp_path / "bad")
    with pytest.raises(ValueError, match=r"DICOM series .*bad"):
        load_scan(scan)


def test_a_folder_of_everything(tmp_path):
    write(tmp_path / "b.nrrd")
    write(tmp_path / "a.nii.gz")
    write(tmp_path / "case1" / "image.mha")
    write(tmp_path / "case1" / "label.mha")
    write(tmp_path / "case2" / "mri_norm2.h5")
    write(tmp_path / "images" / "c.nii")
    write(tmp_path / "labels" / "c.nii")
    write_series(tmp_path / "dicom", image())
    (tmp_path / "train.list").write_text("case1\n", encoding="utf-8")
    (tmp_path / "._a.nii.gz").write_bytes(b"finder")
    (tmp_path / "empty").mkdir()
    assert [scan.scan_id for scan in find_scans(tmp_path)] == ["a", "b", "c", "case1", "case2", "dicom"]
    assert [scan.scan_id for scan in find_scans(tmp_path / "case1")] == ["case1"]


def test_what_cannot_be_found_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_scans(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="none of them"):
        find_scans(tmp_path)
    (tmp_path / "slice.dcm").write_bytes(b"")
    with pytest.raises(ValueError, match="of a DICOM series give the folder"):
        find_scans(tmp_path / "slice.dcm")
    write(tmp_path / "two" / "a.nii.gz")
    write(tmp_path / "two" / "a.nrrd")
    with pytest.raises(ValueError, match=r"Received twice: \['a'\]"):
        find_scans(tmp_path / "two")


def test_files_without_orientation_are_known_as_such(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = image().astype(np.float32)
    volume = load_scan(find_scans(tmp_path / "a.h5")[0], (1, 1, 2))
    assert not volume.has_orientation
    save_map(tmp_path / "m.h5", np.zeros(volume.size, np.uint8), volume, "label")
    with h5py.File(tmp_path / "m.h5") as file:
        assert set(file.attrs) == {"spacing_mm"}
    (tmp_path / "b.nrrd").write_bytes(
        b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nspacings: 1 1 2\nencoding: raw\n\n" + bytes(8)
    )
    assert not load_scan(find_scans(tmp_path / "b.nrrd")[0]).has_orientation
    # NIfTI says so by codes of 0, at bytes 252 and 254 of its header.
    path = write(tmp_path / "c.nii")
    assert load_scan(find_scans(path)[0]).has_orientation
    data = bytearray(path.read_bytes())
    data[252:256] = bytes(4)
    path.write_bytes(data)
    assert not load_scan(find_scans(path)[0]).has_orientation


def test_the_name_of_a_linked_folder_is_the_link_s(tmp_path):
    for name in ("1", "2"):
        write(tmp_path / "store" / name / "scan" / "image.nii.gz")
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / f"patient{name}").symlink_to(tmp_path / "store" / name / "scan")
    assert [scan.scan_id for scan in find_scans(tmp_path / "data")] == ["patient1", "patient2"]
    assert [scan.scan_id for scan in find_scans(tmp_path / "data" / "patient1" / ".")] == ["patient1"]
