"""Masks on a real scan: read without a label, compared one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK

import export.sam
from export import graphs
from export.family import Family
from export.record import ExportError, Settings, described
from export.scan_check import Scan, read_scan, scan_inputs, worst_dice
from semisam_tf.sam.manifest import Manifest, load_manifest

SIZE = (6, 5, 12)


@pytest.fixture
def volume() -> np.ndarray:
    """[X, Y, Z]: each slice z is a ramp along x, shifted by z."""
    return np.fromfunction(lambda x, y, z: 10 * x + y + 100 * z, SIZE).astype(np.float32)


@pytest.fixture
def h5_scan(tmp_path: Path, volume: np.ndarray) -> Path:
    (tmp_path / "case7").mkdir()
    with h5py.File(tmp_path / "case7" / "scan.h5", "w") as file:
        file["image"] = volume
    return tmp_path / "case7" / "scan.h5"


def test_every_format_gives_the_same_array(tmp_path: Path, volume: np.ndarray, h5_scan: Path) -> None:
    picture = SimpleITK.GetImageFromArray(volume.T)
    picture.SetSpacing((0.5, 0.75, 2.0))
    for name in ("a.nii.gz", "a.nrrd"):
        SimpleITK.WriteImage(picture, str(tmp_path / name))
        scan = read_scan(tmp_path / name)
        np.testing.assert_array_equal(scan.image, volume)
        assert scan.spacing_mm == pytest.approx((0.5, 0.75, 2.0))
    scan = read_scan(h5_scan)
    np.testing.assert_array_equal(scan.image, volume)
    assert (scan.name, scan.spacing_mm) == ("case7/scan.h5", None)
    assert read_scan(h5_scan, (1, 2, 3)).spacing_mm == (1.0, 2.0, 3.0)


def test_file_that_is_no_scan(tmp_path: Path, h5_scan: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"--verify_scan.*absent\.h5"):
        read_scan(tmp_path / "absent.h5")
    for name in ("a.h5", "a.nii.gz"):
        (tmp_path / name).write_text("no scan", encoding="utf-8")
        with pytest.raises(ValueError, match=rf"HDF5 with a dataset.*{name}"):
            read_scan(tmp_path / name)
    with h5py.File(h5_scan, "a") as file:
        del file["image"]
        file["label"] = np.zeros(SIZE)
    with pytest.raises(ValueError, match=r"dataset `image`.*scan\.h5"):
        read_scan(h5_scan)
    with h5py.File(h5_scan, "a") as file:
        file["image"] = np.zeros((2, *SIZE))
    with pytest.raises(ValueError, match=r"\[X, Y, Z\].*\(2, 6, 5, 12\)"):
        read_scan(h5_scan)


def test_pictures_are_slices_of_the_middle_with_a_central_box_and_point(
    tiny: Callable[..., Family], volume: np.ndarray
) -> None:
    manifest = Manifest.from_dict(described(tiny(), 17))
    inputs = scan_inputs(Scan("a", volume, None), manifest, 3)
    assert inputs.images.shape == (3, 1, 8, 8)
    # [rows y, columns x]: 5 x 6 voxels become 7 x 8 pixels, brighter to the right; a row of zeros below.
    assert (np.diff(inputs.images[:, 0, :7], axis=2) >= 0).all()
    np.testing.assert_array_equal(inputs.images[:, 0, 7], 0)
    np.testing.assert_allclose(inputs.prompts["point"]["points"][0, 0], [4, 3.5])
    np.testing.assert_allclose(inputs.prompts["box"]["points"][0], [[2.4, 2.1], [5.6, 4.9]], rtol=1e-6)
    np.testing.assert_array_equal(inputs.prompts["box"]["point_labels"], [[2, 3]])
    np.testing.assert_array_equal(inputs.prompts["point"]["point_labels"], [[1, -1]])
    assert len(scan_inputs(Scan("a", volume, None), manifest, 99).images) <= SIZE[2]


def test_check_is_stored_and_made_up_for(tmp_path: Path, offer: Callable[..., None], h5_scan: Path) -> None:
    offer()
    folder = tmp_path / "sam"
    assert export.sam.export("tiny", folder)["scan_check"] is None
    settings = Settings(verify_scan=str(h5_scan), verify_slices=2)
    export.sam.export("tiny", folder, settings=settings)
    found = {"scan": "case7/scan.h5", "slices": 2, "worst_mask_dice": 1.0, "voxels_differing": 0}
    assert load_manifest(folder).scan_check == found
    assert "worst mask Dice on case7/scan.h5 1.000000" in export.sam.summary(load_manifest(folder).to_dict(), "sam")


def test_check_on_another_scan_or_of_other_slices_is_made_anew(
    tmp_path: Path, offer: Callable[..., None], h5_scan: Path
) -> None:
    offer()

    def checked(scan: Path, slices: int) -> int:
        export.sam.export("tiny", tmp_path / "sam", settings=Settings(verify_scan=str(scan), verify_slices=slices))
        return (tmp_path / "sam" / "manifest.json").stat().st_mtime_ns

    first = checked(h5_scan, 2)
    assert checked(h5_scan, 2) == first
    more = checked(h5_scan, 99)
    assert more > first
    # All slices there are: more cannot be had.
    assert checked(h5_scan, 98) == more
    other = h5_scan.with_name("other.h5")
    other.write_bytes(h5_scan.read_bytes())
    assert checked(other, 99) > more
    assert load_manifest(tmp_path / "sam").scan_check["scan"] == "case7/other.h5"
    with pytest.raises(FileNotFoundError, match=r"--verify_scan.*mispelt\.h5"):
        checked(h5_scan.with_name("mispelt.h5"), 99)


def test_masks_that_differ_fail_the_export(
    tmp_path: Path, offer: Callable[..., None], h5_scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that the comparison of numbers is made blind to still shows in the masks."""
    offer(decoder="threshold moved")
    monkeypatch.setattr("export.verify.TOLERANCE", 10.0)
    with pytest.raises(ExportError, match=r"Dice at least 0\.999.*'worst_mask_dice': 0"):
        export.sam.export("tiny", tmp_path / "sam", settings=Settings(verify_scan=str(h5_scan)))
    assert [path.name for path in tmp_path.iterdir()] == ["case7"]


def test_wrong_scan_stops_before_the_model_is_loaded(
    tmp_path: Path, offer: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    offer()
    monkeypatch.setattr(graphs, "write_graphs", None)
    with pytest.raises(FileNotFoundError, match=r"absent\.nii"):
        export.sam.export("tiny", tmp_path / "sam", settings=Settings(verify_scan="absent.nii"))
    assert list(tmp_path.iterdir()) == []


def test_volume_without_spacing_stops_before_tracing(
    tmp_path: Path, offer: Callable[..., None], h5_scan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer()
    monkeypatch.setattr(graphs, "write_graphs", None)
    monkeypatch.setattr(
        "export.scan_check.scan_inputs",
        lambda scan, manifest, count: scan_inputs(scan, dataclasses.replace(manifest, dims=3), count),
    )
    with pytest.raises(ValueError, match=r"--scan_spacing_mm=X,Y,Z.*case7/scan\.h5"):
        export.sam.export("tiny", tmp_path / "sam", settings=Settings(verify_scan=str(h5_scan)))


def test_worst_dice_is_that_of_the_worst_pair() -> None:
    full, half, none = np.ones(4, bool), np.array([True, True, False, False]), np.zeros(4, bool)
    assert worst_dice([full, full, none], [full, half, none]) == pytest.approx(4 / 6)
    # Such pairs say nothing of the graphs; one that is empty on one side alone does.
    assert worst_dice([full, none], [full, none]) is None
    assert worst_dice([full, none, half], [full, half, half]) == 0
