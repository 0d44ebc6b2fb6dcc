"""Cadence, non-finite losses, and that the labels of unlabelled scans reach nothing."""

import dataclasses
import logging
import shutil

import h5py
import numpy as np
import pytest
import tensorflow as tf

from semisam_tf.config import Config
from semisam_tf.data.label_access import outside_runs
from semisam_tf.data.splits import split_of
from semisam_tf.options import OptionError
from semisam_tf.training.loop import _finite_means, due, load_data
from semisam_tf.training.rounds import train


def test_due():
    assert [step for step in range(1, 8) if due(step, 3, last=7)] == [3, 6, 7]


def test_means_of_finite_terms():
    pending = [{"dice": tf.constant(1.0)}, {"dice": tf.constant(2.0)}]
    assert _finite_means(pending, 10) == {"dice": 1.5}


def test_a_loss_that_is_not_finite_names_the_step():
    pending = [{"dice": tf.constant(value), "total": tf.constant(1.0)} for value in (1.0, float("nan"), 1.0)]
    with pytest.raises(RuntimeError, match=r"dice, first at step 9 .*within steps \[8, 10\]"):
        _finite_means(pending, 10)


@pytest.fixture
def cohort(tmp_path):
    """Three cases in UA-MT's layout, all with labels in their files."""
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        with h5py.File(tmp_path / name / "mri_norm2.h5", "w") as file:
            file["image"] = rng.normal(size=(18, 17, 16)).astype(np.float32)
            file["label"] = rng.integers(0, 2, (18, 17, 16)).astype(np.uint8)
    (tmp_path / "train.list").write_text("a\nb\nc\n", encoding="utf-8")
    return tmp_path


def config_of(cohort, **changes):
    config = Config(data_dir=str(cohort), workdir="w", default_spacing_mm=(1.0, 1.0, 1.0), labeled="1")
    return dataclasses.replace(config, **changes)


def test_only_labelled_scans_carry_labels(cohort):
    config = config_of(cohort)
    labelled, unlabelled = load_data(config, split_of(config), outside_runs("test"))
    assert [(v.case_id, v.label is None) for v in labelled + unlabelled] == [("a", False), ("b", True), ("c", True)]


def test_poisoned_labels_of_unlabelled_scans_change_nothing(cohort, tmp_path_factory):
    poisoned = tmp_path_factory.mktemp("poisoned") / "data"
    shutil.copytree(cohort, poisoned)
    for name in ("b", "c"):
        with h5py.File(poisoned / name / "mri_norm2.h5", "r+") as file:
            del file["label"]
            file["label"] = np.full((3, 3, 3), 250, np.uint8)  # wrong shape and wrong values: reading it would fail
    for folder in (cohort, poisoned):
        config = config_of(folder, augment="none")
        loaded = load_data(config, split_of(config), outside_runs("test"))
        images = [v.image for stream in loaded for v in stream]
        if folder == cohort:
            expected = images
        for image, other in zip(images, expected, strict=True):
            np.testing.assert_array_equal(image, other)


def test_excluded_cases_are_not_even_looked_for(cohort, tmp_path):
    shutil.rmtree(cohort / "b")
    exclude = tmp_path / "exclude.txt"
    exclude.write_text("b\nstranger\n", encoding="utf-8")
    config = config_of(cohort, exclude_cases=str(exclude))
    labelled, unlabelled = load_data(config, split_of(config), outside_runs("test"))
    assert [v.case_id for v in labelled + unlabelled] == ["a", "c"]


def test_a_purely_labelled_batch_reads_no_unlabelled_scan(cohort):
    shutil.rmtree(cohort / "c")
    config = config_of(cohort, method="supervised", labeled_per_batch=4)
    labelled, unlabelled = load_data(config, split_of(config), outside_runs("test"))
    assert (len(labelled), unlabelled) == (1, [])


def test_labelled_names_from_a_file(cohort, tmp_path):
    names = tmp_path / "labelled.txt"
    names.write_text("c\n", encoding="utf-8")
    split = split_of(config_of(cohort, labeled=str(names)))
    assert (tuple(split.labelled), tuple(split.unlabelled)) == (("c",), ("a", "b"))


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"n_classes": 3, "augment": "paper"}, True),
        ({"n_classes": 3, "augment": "paper", "augment_off": "flip"}, False),
        ({"n_classes": 3, "augment": "strong"}, False),
        ({"n_classes": 2, "augment": "paper"}, False),
    ],
)
def test_mirrored_scans_of_several_organs_are_warned_of(tmp_path, caplog, changes, warned):
    config = Config(data_dir=str(tmp_path), workdir=str(tmp_path / "run"), **changes)
    with caplog.at_level(logging.WARNING, "absl"), pytest.raises(OptionError, match=r"train\.list"):
        train(config)
    assert ("mirrors scans along xy" in caplog.text) == warned
