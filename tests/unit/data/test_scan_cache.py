"""Scans on disk in the training grid: the same batches as from memory, nothing else in the files, and no label."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from semisam_tf.data.augment import AugmentConfig
from semisam_tf.data.batches import TwoStream
from semisam_tf.data.cohort import load_cohort
from semisam_tf.data.label_access import outside_runs
from semisam_tf.data.preprocess import Preprocessing
from semisam_tf.data.scan_cache import ScanCache, StoredVolume
from semisam_tf.data.volumes import Volume

COARSE = Preprocessing(training_spacing_mm=(1.5, 2.0, 1.0))
# Whatever reads a patch: cropping, turning, affine and elastic resampling, and another scan's intensities.
ALL = AugmentConfig(
    flip="xyz", rotate90=True, rotation_deg=20, scale=0.3, affine_probability=0.6, elastic_vox=2, elastic_spacing_vox=8,
    elastic_probability=0.5, style=1.0, style_probability=0.5,
)  # fmt: skip


def write(folder: Path, case_id: str, channels: int = 2) -> None:
    """A case with 32 x 20 x 24 voxels and a label of its own."""
    rng = np.random.default_rng(sum(map(ord, case_id)))
    (folder / case_id).mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / case_id / "mri_norm2.h5", "w") as file:
        file["image"] = rng.normal(size=(32, 20, 24, channels)).astype(np.float32)
        file["label"] = (rng.random((32, 20, 24)) < 0.1).astype(np.uint8)


def load(
    folder: Path, cases: str, cache: ScanCache | None, with_label: bool = False, **changes: object
) -> list[Volume]:
    arguments: dict = {"default_spacing_mm": (1.0,) * 3, "n_classes": 2, "preprocessing": COARSE} | changes
    return load_cohort(folder, list(cases), with_label and outside_runs("test"), cache=cache, **arguments)


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    for case in "abcd":
        write(tmp_path / "scans", case)
    return tmp_path / "scans"


def test_batches_are_bit_equal_to_those_from_memory(cohort: Path, tmp_path: Path) -> None:
    streams = []
    for cache in (None, ScanCache(tmp_path / "cache"), ScanCache(tmp_path / "cache")):
        labelled, unlabelled = load(cohort, "ab", cache, with_label=True), load(cohort, "cd", cache)
        assert all(isinstance(v, StoredVolume) == (cache is not None) for v in (*labelled, *unlabelled))
        streams.append(TwoStream(labelled, unlabelled, 3, 1, (16, 12, 8), ALL, seed=3, foreground_fraction=0.5))
    kinds = set()
    for t in range(12):
        expected, *others = [stream.batch(t) for stream in streams]
        kinds |= {(x.exact, x.elastic is None) for x in expected.transforms}
        for received in others:
            assert received.case_ids == expected.case_ids
            np.testing.assert_array_equal(received.images, expected.images)
            np.testing.assert_array_equal(received.labels, expected.labels)
    assert kinds == {(True, True), (False, True), (False, False)}


def test_all_but_the_image_is_as_in_memory(cohort: Path, tmp_path: Path) -> None:
    (expected,), (received,) = (load(cohort, "a", c, with_label=True) for c in (None, ScanCache(tmp_path / "cache")))
    assert received.case_id == "a"
    assert received.size == expected.size == (21, 10, 24)
    assert received.spacing_mm == expected.spacing_mm
    assert received.content == expected.content != ""
    np.testing.assert_array_equal(received.affine, expected.affine)
    np.testing.assert_array_equal(received.label, expected.label)
    np.testing.assert_array_equal(received.image, expected.image)
    assert received.image.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        received.image[0] = 0


def test_a_scan_is_brought_to_its_grid_once(cohort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (made,) = load(cohort, "a", ScanCache(tmp_path / "cache"))
    expected = np.array(made.image)

    def once_more(*_: object) -> np.ndarray:
        raise AssertionError("made again")

    monkeypatch.setattr(Preprocessing, "training_image", once_more)
    (again,) = load(cohort, "a", ScanCache(tmp_path / "cache"), with_label=True)
    np.testing.assert_array_equal(again.image, expected)


def test_other_settings_voxels_and_crops_have_files_of_their_own(cohort: Path, tmp_path: Path) -> None:
    cache = ScanCache(tmp_path / "cache")

    def kept() -> int:
        return len(list((tmp_path / "cache").iterdir()))

    load(cohort, "a", cache)
    assert kept() == 1
    load(cohort, "a", cache, preprocessing=Preprocessing(1, 99, COARSE.training_spacing_mm))
    load(cohort, "a", cache, default_spacing_mm=(1.0, 1.0, 2.0))
    load(cohort, "a", cache, crop=lambda v: Volume(v.case_id, v.image[4:], None, v.spacing_mm, v.affine))
    assert kept() == 4
    with h5py.File(cohort / "a" / "mri_norm2.h5", "r+") as file:
        file["image"][1, 2, 3] += np.float32(1e-3)
    (changed,) = load(cohort, "a", cache)
    assert kept() == 5
    np.testing.assert_array_equal(changed.image, load(cohort, "a", None)[0].image)


def test_no_label_is_written(cohort: Path, tmp_path: Path) -> None:
    volumes = load(cohort, "abcd", ScanCache(tmp_path / "cache"), with_label=True)
    files = sorted((tmp_path / "cache").rglob("*"))
    assert len(files) == 4
    for path, volume in zip(files, volumes, strict=True):
        # The header's page and the image, and not a byte more.
        content = path.read_bytes()
        assert content[4096:] == volume.image.tobytes()
        assert set(content[:4096].decode().rstrip()) <= set('{}[]":, -.abcdefghijklmnopqrstuvwxyz0123456789')
    # Whether the label was opened makes no difference to what is kept.
    assert [v.label for v in load(cohort, "abcd", ScanCache(tmp_path / "cache"))] == [None] * 4
    assert sorted((tmp_path / "cache").rglob("*")) == files


@pytest.mark.parametrize("damage", ["voxel", "length", "header", "key"])
def test_what_is_damaged_is_made_again_with_a_warning(
    damage: str, cohort: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ScanCache(tmp_path / "cache")
    (whole,) = load(cohort, "a", cache)
    expected, (path,) = np.array(whole.image), (tmp_path / "cache").iterdir()
    content = bytearray(path.read_bytes())
    if damage == "voxel":
        content[5000] ^= 1
    elif damage == "length":
        content = content[:-4]
    elif damage == "header":
        content[0:1] = b"\xff"
    else:
        # A file under another's name.
        load(cohort, "b", cache)
        (other,) = (tmp_path / "cache").glob("b-*")
        content = bytearray(other.read_bytes())
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="absl"):
        (mended,) = load(cohort, "a", cache)
    assert f"making it again. Received: {path}" in caplog.text
    np.testing.assert_array_equal(mended.image, expected)
    caplog.clear()
    load(cohort, "a", cache)
    assert caplog.text == ""


def test_a_file_that_goes_while_it_is_used_is_named(cohort: Path, tmp_path: Path) -> None:
    (volume,) = load(cohort, "a", ScanCache(tmp_path / "cache"))
    (path,) = (tmp_path / "cache").iterdir()
    content = path.read_bytes()
    path.write_bytes(content[:8192])
    with pytest.raises(OSError, match=rf"Expected {path} to stay"):
        _ = volume.image
    path.unlink()
    with pytest.raises(OSError, match=rf"Expected {path} to stay.*same command again"):
        _ = volume.image
    path.write_bytes(content)
    assert volume.image.shape == (21, 10, 24, 2)


def test_scans_hold_no_file_handles(cohort: Path, tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    volumes = load(cohort, "abcd", ScanCache(tmp_path / "cache"))
    stream = TwoStream(load(cohort, "a", None, with_label=True), volumes[1:], 2, 1, (8, 8, 8), ALL, seed=0)
    batches = [stream.batch(t) for t in range(4)]
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(batches) == 4


def test_a_folder_that_cannot_be_written_is_refused_at_once() -> None:
    with pytest.raises(OSError, match=r"--scan_cache_dir\. Received: /proc/self"):
        ScanCache("/proc/self/scans")
