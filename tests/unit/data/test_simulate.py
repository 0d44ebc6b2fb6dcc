"""The quick-start cohort: subjects that differ, a task that a threshold does not solve, and files that are stable."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from semisam_tf import geometry
from semisam_tf.config import Config
from semisam_tf.data import simulate
from semisam_tf.data.label_access import outside_runs
from semisam_tf.data.simulate import COHORT_FILE, make_quickstart
from semisam_tf.data.splits import read_cases
from semisam_tf.data.volumes import Volume, find_case, load_volume


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_quickstart(tmp_path_factory.mktemp("data") / "quickstart", subjects=6)


@pytest.fixture(scope="module")
def subjects(cohort: Path) -> list[Volume]:
    return [load_volume(find_case(cohort, f"subject_{i:02d}"), with_label=outside_runs("test")) for i in range(1, 7)]


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * np.count_nonzero(first & second) / (np.count_nonzero(first) + np.count_nonzero(second))


def test_two_thirds_train_and_the_rest_is_never_in_the_train_list(cohort: Path) -> None:
    train, test = read_cases(cohort / "train.list"), read_cases(cohort / "test.list")
    assert train == ["subject_01", "subject_02", "subject_03", "subject_04"]
    assert test == ["subject_05", "subject_06"]


def test_subjects_are_labelled_scans_on_grids_of_their_own(subjects: list[Volume]) -> None:
    assert len({v.size for v in subjects}) > 3
    assert len({v.spacing_mm for v in subjects}) == 6
    for scan in subjects:
        assert scan.label is not None
        assert set(np.unique(scan.label)) == {0, 1}
        assert 0.06 < scan.label.mean() < 0.25  # lungs
        assert 100 <= min(scan.size[:2])
        assert 30 <= scan.size[2] <= 36


def test_anatomies_differ(subjects: list[Volume]) -> None:
    masks = [geometry.resample(v.label, (48, 48, 24)) > 0.5 for v in subjects if v.label is not None]
    overlaps = [dice(a, b) for a, b in itertools.combinations(masks, 2)]
    assert max(overlaps) < 0.85
    assert min(overlaps) > 0.35


def test_no_band_of_intensities_is_the_organ(subjects: list[Volume]) -> None:
    for scan in subjects:
        assert scan.label is not None
        organ = scan.label.astype(bool)
        edges = np.quantile(scan.image, np.linspace(0, 1, 101))
        inside = np.concatenate([[0], np.cumsum(np.histogram(scan.image[..., 0][organ], edges)[0])])
        outside = np.concatenate([[0], np.cumsum(np.histogram(scan.image[..., 0][~organ], edges)[0])])
        hits, false = inside - inside[:, None], outside - outside[:, None]  # of the band from row to column
        best = (2 * hits / np.maximum(hits + false + organ.sum(), 1))[hits >= 0].max()
        assert best < 0.75, scan.case_id


def test_the_deformation_does_not_fold(subjects: list[Volume]) -> None:
    source = simulate._Source(simulate.COHORTS["lungs"])
    for number in range(12):
        rng = np.random.default_rng([0, number])
        size = rng.integers((100, 100, 30), (117, 117, 37))
        spacing_mm = np.asarray(source.hu.shape) * source.spacing_mm / size * rng.uniform(0.96, 1.04, 3)
        where = source._source_voxels(rng, size, spacing_mm)[:, ::4, ::4, ::2]
        jacobian = np.stack([np.stack(np.gradient(axis)) for axis in where])  # [3, 3, x, y, z]
        assert np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1))).min() > 0


def test_a_finished_cohort_is_left_alone_and_a_broken_one_is_made_again(cohort: Path) -> None:
    image, label = cohort / "subject_01" / "image.nii.gz", cohort / "subject_02" / "label.nii.gz"
    before, whole = image.stat().st_mtime_ns, label.read_bytes()
    make_quickstart(cohort, subjects=6)
    assert image.stat().st_mtime_ns == before
    label.unlink()
    make_quickstart(cohort, subjects=6)
    assert label.read_bytes() == whole
    assert image.stat().st_mtime_ns != before


def test_other_organs_of_the_same_scans(subjects: list[Volume], tmp_path: Path) -> None:
    """Where each class lies in the world tells whether it is what its number says."""
    make_quickstart(tmp_path, subjects=3, classes="lungs_and_spine")
    for lungs in subjects[:3]:
        scan = load_volume(find_case(tmp_path, lungs.case_id), with_label=outside_runs("a test"))
        assert scan.label is not None
        np.testing.assert_array_equal(scan.image, lungs.image)
        assert set(np.unique(scan.label)) == {0, 1, 2, 3}
        # Half of an interpolated border may go to a neighbour class instead of the background, no more.
        assert dice(np.isin(scan.label, (1, 2)), lungs.label == 1) > 0.99
        left, right, spine = (
            (scan.affine @ [*np.argwhere(scan.label == k).mean(axis=0), 1])[:3] for k in (1, 2, 3)
        )  # millimetres to the right, to the front, up
        assert left[0] < spine[0] - 20 < spine[0] + 20 < right[0]
        assert spine[1] < min(left[1], right[1])


def test_a_small_organ(subjects: list[Volume], tmp_path: Path) -> None:
    make_quickstart(tmp_path, subjects=3, classes="lumbar_spine")
    for lungs in subjects[:3]:
        scan = load_volume(find_case(tmp_path, lungs.case_id), with_label=outside_runs("a test"))
        assert scan.label is not None
        assert 0.002 < (scan.label == 1).mean() < 0.01
        # Below the lungs.
        assert np.argwhere(scan.label)[:, 2].mean() < np.argwhere(lungs.label)[:, 2].mean()


def test_config_knows_every_cohort() -> None:
    (field,) = (field for field in dataclasses.fields(Config) if field.name == "cohort_classes")
    assert field.metadata["choices"] == tuple(simulate.COHORTS)


def test_a_cohort_of_an_older_version_had_the_lungs(cohort: Path) -> None:
    record = json.loads((cohort / COHORT_FILE).read_text(encoding="utf-8"))
    del record["classes"]
    (cohort / COHORT_FILE).write_text(json.dumps(record), encoding="utf-8")
    before = (cohort / "subject_01" / "image.nii.gz").stat().st_mtime_ns
    make_quickstart(cohort, subjects=6)
    assert (cohort / "subject_01" / "image.nii.gz").stat().st_mtime_ns == before
    make_quickstart(cohort, subjects=6, classes="lumbar_spine")
    assert (cohort / "subject_01" / "image.nii.gz").stat().st_mtime_ns != before
    make_quickstart(cohort, subjects=6)


def test_the_seed_decides(cohort: Path, tmp_path: Path) -> None:
    seed_0 = (cohort / "subject_01" / "image.nii.gz").read_bytes()
    image = make_quickstart(tmp_path, subjects=3, seed=5) / "subject_01" / "image.nii.gz"
    assert image.read_bytes() != seed_0
    # Another seed in the same folder is another cohort, and no half-and-half.
    make_quickstart(tmp_path, subjects=3, seed=0)
    assert image.read_bytes() == seed_0
    assert json.loads((tmp_path / COHORT_FILE).read_text(encoding="utf-8"))["seed"] == 0


def test_a_killed_rewrite_does_not_pass_for_the_cohort_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_quickstart(tmp_path, subjects=3)
    image = tmp_path / "subject_01" / "image.nii.gz"
    seed_0 = image.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("semisam_tf.data.simulate.logging.info", _raise)  # called after the first subject is written
        with pytest.raises(KeyboardInterrupt):
            make_quickstart(tmp_path, subjects=3, seed=5)
    assert image.read_bytes() != seed_0
    make_quickstart(tmp_path, subjects=3)
    assert image.read_bytes() == seed_0


def _raise(*unused: object) -> None:
    raise KeyboardInterrupt


def test_impossible_cohorts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="subjects=2"):
        make_quickstart(tmp_path, subjects=2)
    with pytest.raises(ValueError, match="classes='heart'"):
        make_quickstart(tmp_path, classes="heart")
    with pytest.raises(ValueError, match="seed=-1"):
        make_quickstart(tmp_path, seed=-1)


def test_the_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "semisam_tf.data.simulate"]
    done = subprocess.run(
        [*command, f"--output={tmp_path}", "--subjects=3"], capture_output=True, text=True, check=True
    )
    assert str(tmp_path) in done.stdout
    assert read_cases(tmp_path / "test.list") == ["subject_03"]
    refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "--output" in refused.stderr


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "train.list").write_text("my_case\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds other files.*--noquickstart_cohort"):
        make_quickstart(tmp_path, subjects=3)
    assert [path.name for path in tmp_path.iterdir()] == ["train.list"]
    assert (tmp_path / "train.list").read_text(encoding="utf-8") == "my_case\n"
