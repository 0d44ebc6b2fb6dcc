"""Files to volumes and back: geometry, layouts, damage, and labels that must stay unread."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK as sitk

from semisam_tf.data.itk import write_image
from semisam_tf.data.label_access import outside_runs
from semisam_tf.data.volumes import (
    CaseFiles,
    Volume,
    find_case,
    load_volume,
    save_mask,
    save_volume_h5,
    save_volume_pair,
)

SPACING_MM = (0.5, 1.5, 3.0)


def oblique_affine() -> np.ndarray:
    """A rotation by 30 degrees about z with an offset: RAS+."""
    cos, sin = np.cos(np.pi / 6), np.sin(np.pi / 6)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ np.diag(SPACING_MM)
    affine[:3, 3] = (-7.0, 11.0, 2.5)
    return affine


def volume(channels: int = 1) -> Volume:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(4, 5, 6, channels)).astype(np.float32)
    label = rng.integers(0, 3, (4, 5, 6)).astype(np.uint8)
    return Volume("case", image, label, SPACING_MM, oblique_affine())


def write_h5(folder: Path, **datasets: np.ndarray) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "mri_norm2.h5"
    with h5py.File(path, "w") as file:
        for name, values in datasets.items():
            file[name] = values
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_h5_keeps_values_spacing_and_affine(tmp_path: Path, channels: int) -> None:
    before = volume(channels)
    save_volume_h5(tmp_path / "case" / "mri_norm2.h5", before)
    after = load_volume(find_case(tmp_path, "case"), with_label=outside_runs("test"), default_spacing_mm=(9, 9, 9))
    np.testing.assert_array_equal(after.image, before.image)
    assert after.label is not None
    assert before.label is not None
    np.testing.assert_array_equal(after.label, before.label)
    np.testing.assert_array_equal(after.affine, before.affine)
    assert after.spacing_mm == SPACING_MM  # the file's own, not the default
    assert (after.case_id, str(after.image.dtype), str(after.label.dtype)) == ("case", "float32", "uint8")
    assert [p.name for p in (tmp_path / "case").iterdir()] == ["mri_norm2.h5"]  # no temporary file is left


def test_ua_mt_h5_takes_the_default_spacing(tmp_path: Path) -> None:
    write_h5(tmp_path / "a", image=np.zeros((2, 3, 4), np.float32))
    loaded = load_volume(find_case(tmp_path, "a"), with_label=False, default_spacing_mm=(0.625, 0.5, 2))
    assert loaded.image.shape == (2, 3, 4, 1)
    assert loaded.spacing_mm == (0.625, 0.5, 2.0)
    np.testing.assert_array_equal(loaded.affine, np.diag([0.625, 0.5, 2, 1]))


def test_h5_without_spacing_names_the_flag_and_the_file(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "a", image=np.zeros((2, 3, 4), np.float32))
    with pytest.raises(ValueError, match="--default_spacing_mm") as raised:
        load_volume(find_case(tmp_path, "a"), with_label=False)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_image_files_keep_axis_order_and_geometry(tmp_path: Path, suffix: str) -> None:
    before = volume()
    save_volume_pair(tmp_path / "images" / f"case{suffix}", tmp_path / "labels" / f"case{suffix}", before)
    files = find_case(tmp_path, "case")
    assert files.layout == "flat"
    after = load_volume(files, with_label=outside_runs("test"))
    np.testing.assert_array_equal(after.image, before.image)
    np.testing.assert_array_equal(after.label, before.label)
    np.testing.assert_allclose(after.spacing_mm, SPACING_MM, atol=1e-6)
    # NIfTI keeps its affine in float32.
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-5)


def test_affine_is_ras_and_agrees_with_the_library(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.zeros((4, 3, 2), np.float32))  # 2 voxels along x, 4 along z
    image.SetSpacing((2.0, 3.0, 5.0))
    image.SetOrigin((10.0, 20.0, 30.0))
    image[1, 2, 3] = 7.0
    sitk.WriteImage(image, str(tmp_path / "image.nrrd"))
    loaded = load_volume(CaseFiles("c", tmp_path / "image.nrrd", None, "folder"), with_label=False)
    assert loaded.image.shape == (2, 3, 4, 1)
    assert loaded.image[1, 2, 3, 0] == 7.0
    # The library gives LPS 10 + 1*2, 20 + 2*3, 30 + 3*5; RAS flips the first two.
    np.testing.assert_allclose(loaded.affine @ (1, 2, 3, 1), (-12.0, -26.0, 45.0, 1.0))


def test_vector_components_and_a_fourth_axis_are_channels(tmp_path: Path) -> None:
    values = np.arange(2 * 3 * 4 * 2, dtype=np.float32).reshape(2, 3, 4, 2)  # X, Y, Z, C
    vector = sitk.GetImageFromArray(values.transpose(2, 1, 0, 3), isVector=True)
    series = sitk.JoinSeries([sitk.GetImageFromArray(values[..., c].transpose(2, 1, 0)) for c in range(2)])
    for name, image in (("vector", vector), ("series", series)):
        (tmp_path / name).mkdir()
        sitk.WriteImage(image, str(tmp_path / name / "image.nii.gz"))
        loaded = load_volume(find_case(tmp_path, name), with_label=False)
        np.testing.assert_array_equal(loaded.image, values)


def test_layout_h5_wins_then_folder_then_flat(tmp_path: Path) -> None:
    for place in ("images/a.nii", "a/image.nii", "a/mri_norm2.h5"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).touch()
        assert find_case(tmp_path, "a").image == tmp_path / place


def test_case_names_with_dots_are_not_cut(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "p.1.v2.nii.gz").touch()
    (tmp_path / "images" / "p.1.nii.gz").touch()
    assert find_case(tmp_path, "p.1").image.name == "p.1.nii.gz"


@pytest.mark.parametrize(
    "case_id",
    [
        "../x",
        "a/../../x",
        "a/..",
        "/etc/x",
        "..",
        "",
        " ",
        ".",
        "./",
        "C:\\x",
        "c:x",
        "a\\..\\..\\x",
        "\\x",
        "\\\\host\\x",
    ],
)
def test_case_names_that_leave_the_folder_are_refused(tmp_path: Path, case_id: str) -> None:
    with pytest.raises(ValueError, match="inside the data folder"):
        find_case(tmp_path / "data", case_id)


def test_links_are_followed(tmp_path: Path) -> None:
    """Of folders and of files, in every layout: that is how people put cohorts together."""
    store, data = tmp_path / "store", tmp_path / "data"
    values = {name: np.full((4, 4, 4), number, np.float32) for number, name in enumerate("abc")}
    write_h5(store / "a1", image=values["a"])
    for name, layout in (("b", "image.nii.gz"), ("c", "c2.nii.gz")):
        write_image(store / layout, values[name], (1, 1, 1), np.eye(4))
    (data / "b").mkdir(parents=True)
    (data / "images").mkdir()
    (data / "a").symlink_to(store / "a1")
    (data / "b" / "image.nii.gz").symlink_to("../../store/image.nii.gz")
    (data / "images" / "c.nii.gz").symlink_to(store / "c2.nii.gz")
    for name, expected in values.items():
        volume = load_volume(find_case(data, name), with_label=False, default_spacing_mm=(1, 1, 1))
        assert volume.case_id == name
        np.testing.assert_array_equal(volume.image[..., 0], expected)


def test_missing_case_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothere.mri_norm2\.h5.*image\.\{nii\.gz.*--data_dir"):
        find_case(tmp_path, "nothere")


def test_two_images_of_one_case_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "image.nii").touch()
    (tmp_path / "a" / "image.nrrd").touch()
    with pytest.raises(ValueError, match=r"image\.nii.*image\.nrrd.*Remove all but one"):
        find_case(tmp_path, "a")


def test_an_unlabelled_case_never_opens_its_label_file(tmp_path: Path) -> None:
    save_volume_pair(tmp_path / "a" / "image.nii.gz", tmp_path / "a" / "label.nii.gz", volume())
    (tmp_path / "a" / "label.nii.gz").write_bytes(b"this is no image")
    files = find_case(tmp_path, "a")
    assert load_volume(files, with_label=False).label is None
    with pytest.raises(ValueError, match=r"label\.nii\.gz"):
        load_volume(files, with_label=outside_runs("test"))


def test_an_unlabelled_case_never_reads_its_label_dataset(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "a", image=np.ones((4, 4, 4), np.float32))
    with h5py.File(path, "r+") as file:
        label = file.create_dataset("label", data=np.ones((4, 4, 4), np.uint8), chunks=(4, 4, 4), fletcher32=True)
        offset = label.id.get_chunk_info(0).byte_offset
    damaged = bytearray(path.read_bytes())
    damaged[offset] ^= 255  # reading it fails its checksum
    path.write_bytes(damaged)
    files = find_case(tmp_path, "a")
    assert load_volume(files, with_label=False, default_spacing_mm=(1, 1, 1)).label is None
    with pytest.raises(ValueError, match=str(path)):
        load_volume(files, with_label=outside_runs("test"), default_spacing_mm=(1, 1, 1))


def test_a_label_that_is_asked_for_and_absent_is_an_error(tmp_path: Path) -> None:
    path = write_h5(tmp_path / "a", image=np.ones((4, 4, 4), np.float32))
    with pytest.raises(ValueError, match=f"'label' in {path}"):
        load_volume(find_case(tmp_path, "a"), with_label=outside_runs("test"), default_spacing_mm=(1, 1, 1))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, 2, 2), np.float32)), str(tmp_path / "a" / "image.nii.gz"))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"label file for .*image\.nii\.gz"):
        load_volume(find_case(tmp_path, "a"), with_label=outside_runs("test"))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.zeros((4, 4, 3), np.uint8), r"image's size \(4, 4, 4\).*\(4, 4, 3\)"),
        (np.full((4, 4, 4), 0.5, np.float32), "whole label values"),
        (np.full((4, 4, 4), 256, np.int32), "256"),
        (np.full((4, 4, 4), -1, np.int16), "-1"),
        (np.full((4, 4, 4), np.nan, np.float32), "nan"),
    ],
)
def test_bad_labels_name_the_file(tmp_path: Path, label: np.ndarray, message: str) -> None:
    path = write_h5(tmp_path / "a", image=np.zeros((4, 4, 4), np.float32), label=label)
    with pytest.raises(ValueError, match=message) as raised:
        load_volume(find_case(tmp_path, "a"), with_label=outside_runs("test"), default_spacing_mm=(1, 1, 1))
    assert str(path) in str(raised.value)


def test_whole_valued_float_labels_are_taken(tmp_path: Path) -> None:
    label = np.arange(8, dtype=np.float64).reshape(2, 2, 2)
    write_h5(tmp_path / "a", image=np.zeros((2, 2, 2), np.float32), label=label)
    loaded = load_volume(find_case(tmp_path, "a"), with_label=outside_runs("test"), default_spacing_mm=(1, 1, 1)).label
    assert loaded is not None
    assert loaded.dtype == np.uint8
    np.testing.assert_array_equal(loaded, label)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_images_that_are_not_finite_in_float32_are_refused(tmp_path: Path, bad: float) -> None:
    image = np.zeros((3, 3, 3), np.float64)
    image[1, 1, 1] = bad
    path = write_h5(tmp_path / "a", image=image)
    with pytest.raises(ValueError, match=r"finite.* 1 voxels") as raised:
        load_volume(find_case(tmp_path, "a"), with_label=False, default_spacing_mm=(1, 1, 1))
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.3, 0.9])
@pytest.mark.parametrize("name", ["mri_norm2.h5", "image.nii.gz", "image.nii", "image.nrrd", "image.mha"])
def test_truncated_files_name_themselves(tmp_path: Path, name: str, keep: float) -> None:
    values = np.random.default_rng(0).normal(size=(30, 30, 30)).astype(np.float32)
    path = tmp_path / "a" / name
    if name.endswith("h5"):
        write_h5(tmp_path / "a", image=values)
    else:
        path.parent.mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(values), str(path))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(ValueError, match=str(path)):
        load_volume(find_case(tmp_path, "a"), with_label=False, default_spacing_mm=(1, 1, 1))


@pytest.mark.parametrize("shape", [(4, 4), (2, 2, 2, 2, 2)])
def test_images_of_other_dimensions_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write_h5(tmp_path / "a", image=np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match=r"\[X, Y, Z\] or \[X, Y, Z, C\]"):
        load_volume(find_case(tmp_path, "a"), with_label=False, default_spacing_mm=(1, 1, 1))


@pytest.mark.parametrize("spacing", [(1.0, 0.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0), (np.nan, 1.0, 1.0)])
def test_impossible_spacings_are_refused(tmp_path: Path, spacing: tuple[float, ...]) -> None:
    write_h5(tmp_path / "a", image=np.zeros((2, 2, 2), np.float32))
    with pytest.raises(ValueError, match="three positive voxel spacings"):
        load_volume(find_case(tmp_path, "a"), with_label=False, default_spacing_mm=spacing)


def test_a_saved_mask_lies_where_its_scan_lies(tmp_path: Path) -> None:
    scan = volume()
    mask = np.zeros(scan.size, np.uint8)
    mask[3, 1, 2] = 1
    save_mask(tmp_path / "mask.nii.gz", mask, scan)
    image = sitk.ReadImage(str(tmp_path / "mask.nii.gz"))
    assert image.GetPixelID() == sitk.sitkUInt8
    assert image[3, 1, 2] == 1
    assert sitk.GetArrayFromImage(image).sum() == 1
    lps = image.TransformIndexToPhysicalPoint((3, 1, 2))
    np.testing.assert_allclose((-lps[0], -lps[1], lps[2]), (scan.affine @ (3, 1, 2, 1))[:3], atol=1e-5)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_mask_that_does_not_fit_on_the_disk_is_an_error_and_leaves_no_file(
    tmp_path: Path, files_of_a_page: Callable, suffix: str
) -> None:
    """ITK cuts a NIfTI file without a word."""
    path = tmp_path / f"mask{suffix}"
    mask = np.random.default_rng(0).integers(0, 255, (30, 30, 30)).astype(np.uint8)
    write_image(path, mask[:2], (1, 1, 1), np.eye(4))
    before = path.read_bytes()
    with pytest.raises(OSError, match=f"Expected room for {path}"), files_of_a_page():
        write_image(path, mask, (1, 1, 1), np.eye(4))
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(path.name, before)]


def test_a_mask_of_another_grid_or_format_is_refused(tmp_path: Path) -> None:
    scan = volume()
    with pytest.raises(ValueError, match=r"\(4, 5, 6\).*\(4, 5, 7\)"):
        save_mask(tmp_path / "m.nii", np.zeros((4, 5, 7), np.uint8), scan)
    with pytest.raises(ValueError, match=r"\.nii\.gz"):
        save_mask(tmp_path / "m.png", np.zeros((4, 5, 6), np.uint8), scan)
    assert list(tmp_path.iterdir()) == []


def test_a_real_scan_is_read(la_dir: Path) -> None:
    case_id = (la_dir / "train.list").read_text(encoding="utf-8").split()[0]
    loaded = load_volume(find_case(la_dir, case_id), with_label=outside_runs("test"), default_spacing_mm=(0.625,) * 3)
    assert loaded.label is not None
    assert loaded.size[2] == 88
    assert loaded.image.shape == (*loaded.size, 1)
    assert set(np.unique(loaded.label)) == {0, 1}


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        (np.diag([-1.0, 1, 1, 1]), False),  # mirrored in x
        (np.diag([1.0, 1, 1.1, 1]), False),  # another spacing
        (np.array([[1, 0, 0, 3], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]), False),  # shifted by 3 mm
        (np.diag([1.0, 1, 1 + 1e-6, 1]), True),  # rounding of a header
    ],
)
def test_a_label_has_to_lie_on_its_image(tmp_path: Path, change: np.ndarray, taken: bool) -> None:
    scan = volume()
    save_volume_pair(tmp_path / "a" / "image.nii.gz", tmp_path / "a" / "label.nii.gz", scan)
    affine = change @ scan.affine
    spacing_mm = tuple(float(s) for s in np.linalg.norm(affine[:3, :3], axis=0))
    save_mask(
        tmp_path / "a" / "label.nii.gz", scan.label, dataclasses.replace(scan, affine=affine, spacing_mm=spacing_mm)
    )
    if taken:
        np.testing.assert_array_equal(
            load_volume(find_case(tmp_path, "a"), with_label=outside_runs("test")).label, scan.label
        )
    else:
        with pytest.raises(ValueError, match=r"label\.nii\.gz on the grid of .*image\.nii\.gz"):
            load_volume(find_case(tmp_path, "a"), with_label=outside_runs("test"))


def test_nrrd_without_spacing_takes_the_default(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    header = b"NRRD0004\ntype: float\ndimension: 3\nsizes: 2 3 4\nencoding: raw\nendian: little\n\n"
    (tmp_path / "a" / "image.nrrd").write_bytes(header + np.zeros(24, np.float32).tobytes())
    files = find_case(tmp_path, "a")
    loaded = load_volume(files, with_label=False, default_spacing_mm=(1, 2, 3))
    assert loaded.spacing_mm == (1, 2, 3)
    np.testing.assert_array_equal(np.abs(np.diag(loaded.affine)), [1, 2, 3, 1])
    with pytest.raises(ValueError, match="--default_spacing_mm"):
        load_volume(files, with_label=False)


@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
@pytest.mark.parametrize(
    ("fields", "spacing_mm", "has_orientation"),
    [
        ("", None, False),
        ("TransformMatrix = 0 1 0 1 0 0 0 0 1\n", None, True),
        ("ElementSpacing = 1.5 2 3\n", (1.5, 2, 3), False),
        ("elementspacing = 1.5 2 3\n", None, False),
        ("ElementSize = 1.5 2 3\nOrientation = 0 1 0 1 0 0 0 0 1\n", (1.5, 2, 3), True),
    ],
)
def test_metaimage_without_spacing_takes_the_default(tmp_path, suffix, fields, spacing_mm, has_orientation) -> None:
    """MetaIO takes it for 1 mm."""
    values = np.arange(24, dtype=np.float32)
    header = f"ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 2 3 4\n{fields}ElementType = MET_FLOAT\n"
    path = tmp_path / f"image{suffix}"
    # What follows the header is no field of it.
    comment = b"ElementSpacing = 9 9 9\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"
    if suffix == ".mha":
        path.write_bytes(f"{header}ElementDataFile = LOCAL\n".encode() + values.tobytes() + comment)
    else:
        path.write_bytes(f"{header}ElementDataFile = a.raw\n".encode() + comment)
        (tmp_path / "a.raw").write_bytes(values.tobytes())
    files = CaseFiles("a", path, None, "flat")
    loaded = load_volume(files, with_label=False, default_spacing_mm=(7, 8, 9))
    np.testing.assert_array_equal(loaded.image.ravel(order="F"), values)
    assert loaded.spacing_mm == (spacing_mm or (7, 8, 9))
    assert loaded.has_orientation is has_orientation
    if spacing_mm is None:
        with pytest.raises(ValueError, match=rf"{path} stores none; give it by --default_spacing_mm"):
            load_volume(files, with_label=False)
    else:
        assert load_volume(files, with_label=False).spacing_mm == spacing_mm


@pytest.mark.parametrize("content", ["group", np.zeros((0, 3, 4)), np.array([b"a", b"b"]), np.zeros(3, "c8"), 1.0])
def test_h5_whose_image_is_no_array_of_numbers_is_named(tmp_path: Path, content: object) -> None:
    path = tmp_path / "mri_norm2.h5"
    with h5py.File(path, "w") as file:
        if isinstance(content, str):
            file.create_group("image")
        else:
            file["image"] = content
    with pytest.raises(ValueError, match=r"Expected .*'image'.*mri_norm2\.h5.* Received: "):
        load_volume(CaseFiles("a", path, None, "h5"), with_label=False)
