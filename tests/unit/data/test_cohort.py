"""Loading a run's scans, and the proof that no label of an unlabelled case reaches a batch."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from semisam_tf.data.augment import AUGMENT_PRESETS
from semisam_tf.data.batches import TwoStream
from semisam_tf.data.cohort import load_cohort
from semisam_tf.data.label_access import outside_runs
from semisam_tf.data.preprocess import Preprocessing
from semisam_tf.data.splits import make_split

CASES = ["a", "b", "c", "d"]
SPACING_MM = (1.0, 1.0, 1.0)


def write(folder: Path, case_id: str, label_seed: int | None, channels: int = 1, top: int = 1) -> None:
    """A case whose image depends on its name alone, and its label on `label_seed`."""
    (folder / case_id).mkdir(parents=True, exist_ok=True)
    with h5py.File(folder / case_id / "mri_norm2.h5", "w") as file:
        image = np.random.default_rng(ord(case_id)).normal(size=(10, 8, 6, channels)).astype(np.float32)
        file["image"] = image[..., 0] if channels == 1 else image
        if label_seed is not None:
            file["label"] = np.random.default_rng(label_seed).integers(0, top + 1, (10, 8, 6)).astype(np.uint8)


def load(folder: Path, cases: list[str], with_label: bool, **changes: object) -> list:
    arguments: dict = {"default_spacing_mm": SPACING_MM, "n_classes": 2, "preprocessing": Preprocessing()} | changes
    return load_cohort(folder, cases, with_label and outside_runs("test"), **arguments)


def test_scans_come_in_the_order_asked_for_and_in_the_training_grid(tmp_path: Path) -> None:
    for case in CASES:
        write(tmp_path, case, 0)
    got = load(tmp_path, ["c", "a", "d"], True, preprocessing=Preprocessing(training_spacing_mm=(2, 2, 2)))
    assert [v.case_id for v in got] == ["c", "a", "d"]
    assert {v.size for v in got} == {(5, 4, 3)}
    own = load(tmp_path, ["c"], True)[0]
    assert abs(own.image.mean()) < 1e-6
    assert own.label.shape == (10, 8, 6)


def test_unlabelled_cases_carry_no_label_even_where_the_file_has_one(tmp_path: Path) -> None:
    for case in CASES:
        write(tmp_path, case, 0)
    assert all(v.label is None for v in load(tmp_path, CASES, False))


def test_no_label_of_an_unlabelled_case_reaches_training(tmp_path: Path) -> None:
    # Three copies of the data: the labels of b, c, d are one thing, another thing, and not there at all.
    runs = []
    for copy, label_seed in (("one", 1), ("two", 2), ("three", None)):
        write(tmp_path / copy, "a", 0)
        for case in CASES[1:]:
            write(tmp_path / copy, case, label_seed)
        split = make_split(CASES, 1)
        labelled = load(tmp_path / copy, list(split.labelled), True)
        unlabelled = load(tmp_path / copy, list(split.unlabelled), False)
        stream = TwoStream(
            labelled, unlabelled, 3, 1, (6, 6, 4), AUGMENT_PRESETS["strong"], seed=0, foreground_fraction=0.5
        )
        runs.append([stream.batch(t) for t in range(6)])
    for other in runs[1:]:
        for ours, theirs in zip(runs[0], other, strict=True):
            assert ours.case_ids == theirs.case_ids
            np.testing.assert_array_equal(ours.images, theirs.images)
            np.testing.assert_array_equal(ours.labels, theirs.labels)
            assert len(ours.labels) == 1


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    for case in CASES:
        write(tmp_path, case, 0)
    bad = tmp_path / "c" / "mri_norm2.h5"
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(ValueError, match=str(bad)):
        load(tmp_path, CASES, True)
    with pytest.raises(FileNotFoundError, match="'nothere'"):
        load(tmp_path, ["a", "nothere"], True)


def test_label_values_without_a_class_name_the_file(tmp_path: Path) -> None:
    write(tmp_path, "a", 0, top=3)
    with pytest.raises(ValueError, match=rf"{tmp_path}/a/mri_norm2\.h5.*n_classes=2"):
        load(tmp_path, ["a"], True)
    assert load(tmp_path, ["a"], True, n_classes=4)[0].label.max() == 3


def test_different_channels_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "a", 0)
    write(tmp_path, "b", 0, channels=2)
    with pytest.raises(ValueError, match="1 in case 'a', 2 in case 'b'"):
        load(tmp_path, ["a", "b"], True)


def test_real_scans_at_half_resolution(la_dir: Path) -> None:
    cases = (la_dir / "train.list").read_text(encoding="utf-8").split()[:2]
    got = load(
        la_dir, cases, True, default_spacing_mm=(0.625,) * 3, preprocessing=Preprocessing(0.5, 99.5, (1.25,) * 3)
    )
    for scan in got:
        assert scan.size[2] == 44
        assert scan.spacing_mm[2] == 1.25
        assert 0.01 < scan.label.mean() < 0.2


def test_content_follows_what_is_read_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "one", "a", 1)
    write(tmp_path / "two", "a", 2)
    coarse = Preprocessing(training_spacing_mm=(2, 2, 2))
    plain, resampled = (load(tmp_path / "one", ["a"], False, preprocessing=p)[0] for p in (Preprocessing(), coarse))
    assert plain.content == resampled.content
    assert load(tmp_path / "two", ["a"], False)[0].content == plain.content
    labelled = [load(tmp_path / copy, ["a"], True)[0].content for copy in ("one", "two")]
    spaced = load(tmp_path / "one", ["a"], False, default_spacing_mm=(1.0, 1.0, 2.0))[0].content
    assert len({plain.content, spaced, *labelled}) == 4
    with h5py.File(tmp_path / "one" / "a" / "mri_norm2.h5", "r+") as file:
        file["image"][1, 2, 3] += np.float32(1e-3)
    assert load(tmp_path / "one", ["a"], False)[0].content != plain.content


def test_a_missing_case_is_said_before_any_is_read(tmp_path: Path) -> None:
    write(tmp_path, "a", 0)
    (tmp_path / "a" / "mri_norm2.h5").write_bytes(b"unreadable")
    with pytest.raises(FileNotFoundError, match="'z'"):
        load(tmp_path, ["a", "z"], True)
