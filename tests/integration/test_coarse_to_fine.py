"""A coarse-to-fine run as its user has it: killed and resumed, scored, and saved for serving."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
import tensorflow as tf

from semisam_tf import pseudolabel, rank
from semisam_tf.data.label_access import outside_runs
from semisam_tf.data.volumes import find_case, load_volume
from semisam_tf.evaluate import EvaluateConfig, evaluate
from semisam_tf.findings import FAIL
from semisam_tf.inference.label_audit import audit_run, budget
from semisam_tf.inference.predictor import load_predictor
from semisam_tf.sam.target import dice
from semisam_tf.serving.save import SaveConfig, save
from semisam_tf.training.pseudolabels import read_target, target_region
from semisam_tf.training.targets import mask_of

COMMON = [
    sys.executable, "-m", "semisam_tf.train", "--coarse_to_fine", "--coarse_spacing_mm=1.6,1.6,2",
    "--coarse_patch_size=16,16,16", "--region_margin_mm=1", "--filters=2", "--normalisation=instance",
    "--patch_size=16,16,16", "--optimizer=adamw", "--learning_rate=0.02",
]  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def short(data_dir, workdir):
    """A few steps of either stage, with unlabelled scans and dropout: all that is random."""
    return [
        *COMMON, f"--data_dir={data_dir}", f"--workdir={workdir}", "--labeled=1", "--coarse_steps=4", "--max_steps=4",
        "--checkpoint_every=2", "--augment_on=elastic",
    ]  # fmt: skip


def kill_once_there(words, path):
    """Starts a run and kills it, unasked, as soon as a file is there."""
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    give_up = time.monotonic() + 240
    while not path.exists():
        if process.poll() is not None or time.monotonic() > give_up:
            process.kill()
            pytest.fail(f"the run ended before {path}: {process.stderr.read()}")
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()


def arrays(workdir):
    """All weights, and the arrays of both stages' last checkpoints."""
    found = {}
    for name in ("student.weights.h5", "teacher.weights.h5", "coarse.weights.h5"):
        with h5py.File(workdir / name) as file:
            file.visititems(
                lambda key, item, name=name: (
                    found.update({f"{name}/{key}": item[()]}) if isinstance(item, h5py.Dataset) else None
                )
            )
    for folder in ("checkpoints", "coarse/checkpoints"):
        with h5py.File(workdir / folder / "step_00000004.h5") as file:
            for group in file.values():
                found |= {f"{folder}{group.name}/{item.attrs['name']}": item[()] for item in group.values()}
    return found


@pytest.fixture(scope="module")
def whole(tiny_cohort, tmp_path_factory):
    """An uninterrupted short run."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    done = subprocess.run(short(tiny_cohort, workdir), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.parametrize(
    ("there", "said"),
    [
        # Between the stages: the coarse network is read, not trained again.
        ("coarse/result.json", "Training on 1 labelled and 3 unlabelled scans"),
        pytest.param("coarse/checkpoints/step_00000002.h5", "coarse at step 2", marks=pytest.mark.slow),
        pytest.param("checkpoints/step_00000002.h5", "at step 2", marks=pytest.mark.slow),
    ],
)
def test_killed_run_ends_equal_to_an_uninterrupted_one(whole, tiny_cohort, tmp_path, there, said):
    words = short(tiny_cohort, tmp_path / "run")
    kill_once_there(words, tmp_path / "run" / there)
    assert not (tmp_path / "run" / "result.json").exists()
    resumed = subprocess.run(words, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert said in resumed.stderr
    assert ("Coarse stage" in resumed.stderr) == (there == "coarse/checkpoints/step_00000002.h5")
    expected, received = arrays(whole), arrays(tmp_path / "run")
    assert expected.keys() == received.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(received[name], array, err_msg=name)


def test_a_run_that_got_no_further_than_its_coarse_stage_has_settings_already(whole, tiny_cohort, tmp_path):
    workdir = tmp_path / "run"
    (workdir / "coarse" / "checkpoints").mkdir(parents=True)
    for name in ("run.json", "coarse.weights.h5", "coarse/checkpoints/step_00000004.h5", "coarse/result.json"):
        shutil.copy(whole / name, workdir / name)
    other = [*short(tiny_cohort, workdir), "--coarse_spacing_mm=3,3,3"]
    refused = subprocess.run(other, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "--coarse_spacing_mm=[3.0, 3.0, 3.0] (was [1.6, 1.6, 2.0])" in refused.stderr


@pytest.fixture(scope="module")
def ball(tiny_cohort, tmp_path_factory):
    """A run that finds the ball in the scans."""
    workdir = tmp_path_factory.mktemp("runs") / "ball"
    words = [
        *COMMON, f"--data_dir={tiny_cohort}", f"--workdir={workdir}", "--labeled=3", "--method=supervised",
        "--batch_size=2", "--labeled_per_batch=2", "--coarse_steps=60", "--max_steps=60", "--eval_model=student",
        "--augment=none", "--dropout=0",
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return workdir


def test_the_organ_is_found_in_its_region(ball, tiny_cohort):
    report = evaluate(EvaluateConfig(workdir=str(ball), data_dir=str(tiny_cohort), cases=f"{tiny_cohort}/test.list"))
    assert report["mean"]["dice"] > 0.8
    assert report["coarse_to_fine"]["taken_whole"] == []
    assert 0.1 < report["coarse_to_fine"]["mean_region_share"] < 0.8
    result = json.loads((ball / "result.json").read_text(encoding="utf-8"))
    assert result["coarse"]["steps"] == 60
    assert 0.1 < result["coarse"]["mean_region_share"] < 0.8


def test_the_audit_counts_the_first_stage_as_crops(whole, ball):
    for workdir, labelled in ((whole, ["case0"]), (ball, ["case0", "case1", "case2"])):
        audit = audit_run(workdir)
        assert [finding.found for finding in audit.findings if finding.status == FAIL] == []
        assert sorted(budget(audit)["crops"]["cases"]) == labelled == sorted(audit.learned_from)


def test_the_saved_model_looks_where_predict_looks(ball, tiny_cohort, tmp_path):
    folder = save(SaveConfig(workdir=str(ball), output=f"{tmp_path}/ball"))
    facts = json.loads((folder / "assets.extra" / "model.json").read_text(encoding="utf-8"))
    assert facts["coarse_to_fine"]["spacing_mm"] == [1.6, 1.6, 2.0]
    volume = load_volume(find_case(tiny_cohort, "case4"), with_label=False)
    predictor, _ = load_predictor(ball)
    expected = predictor.predict(volume)
    signature = tf.saved_model.load(str(folder)).signatures["serving_default"]
    found = signature(volume=tf.constant(volume.image), spacing_mm=tf.constant(volume.spacing_mm, tf.float32))
    assert bool(found["located"])
    assert expected.region.share(volume.size) < 0.8
    np.testing.assert_allclose(found["foreground_probability"], expected.probs[..., 1], rtol=0, atol=1e-4)
    unsure = np.abs(expected.probs[..., 1] - 0.5) < 1e-4
    np.testing.assert_array_equal(found["mask"].numpy()[~unsure], expected.mask[~unsure])
    # A scan of nothing: no region, and the graph says so too.
    empty = signature(volume=tf.zeros_like(volume.image), spacing_mm=tf.constant(volume.spacing_mm, tf.float32))
    blank = predictor.predict(dataclasses.replace(volume, image=np.zeros_like(volume.image)))
    assert bool(empty["located"]) == blank.region.found
    np.testing.assert_allclose(empty["foreground_probability"], blank.probs[..., 1], rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def targets(ball, tiny_sam, tmp_path_factory):
    """Targets of the one unlabelled scan, from the run that finds the ball, with SAM and as NIfTI."""
    folder = tmp_path_factory.mktemp("targets")
    assert pseudolabel.main([f"--workdir={ball}", f"--output={folder}", f"--sam_dir={tiny_sam}"]) == 0
    return folder


def test_a_target_lies_in_its_region_and_its_mask_on_the_scan(ball, targets, tiny_cohort):
    scan = load_volume(find_case(tiny_cohort, "case3"), with_label=outside_runs("a test"))
    region = target_region(targets, "case3")
    assert region.found
    assert region.share(scan.size) < 0.8
    predictor, _ = load_predictor(ball)
    grid = predictor.preprocessing.to_training_grid(region.crop(scan), 2)
    kept = mask_of(read_target(targets, grid, 2).probs)
    assert dice(kept > 0, grid.label > 0) > 0.8
    np.testing.assert_array_equal(
        predictor.mask_to_own_grid(kept, scan)[region.place], kept, "where the run looks, that is where the target is"
    )
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(targets / "case3.nii.gz"))).T
    trust = sitk.GetArrayFromImage(sitk.ReadImage(str(targets / "case3_trust.nii.gz"))).T
    assert mask.shape == trust.shape == scan.size
    assert dice(mask > 0, scan.label > 0) > 0.8
    outside = np.ones(scan.size, bool)
    outside[region.place] = False
    assert trust[outside].max() == 0 < trust[mask > 0].mean()


def test_targets_teach_a_coarse_to_fine_run_where_they_lie(targets, tiny_cohort, tmp_path):
    words = [*short(tiny_cohort, tmp_path / "run"), "--labeled=3", "--sam_mode=offline", f"--targets_dir={targets}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["sam"]["taught_share"] > 0.3
    # The coarse network of four steps finds next to nothing; the target's run knew where the organ is.
    assert "case3" not in result["coarse"]["taken_whole"]
    # And what this run says of the scan is of the region that it has learned.
    assert pseudolabel.main([f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'next'}", "--nonifti"]) == 0
    assert target_region(tmp_path / "next", "case3") == target_region(targets, "case3")


def test_targets_of_whole_scans_are_refused(tiny_run, tiny_cohort, tmp_path):
    folder = tmp_path / "targets"
    assert pseudolabel.main([f"--workdir={tiny_run}", f"--output={folder}", "--nonifti"]) == 0
    words = [*short(tiny_cohort, tmp_path / "run"), "--labeled=3", "--sam_mode=offline", f"--targets_dir={folder}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"Expected the target of a coarse-to-fine run in {folder}/case3.h5" in done.stderr
    # Before the coarse network was trained, so that the same folder takes the run with other targets.
    assert not (tmp_path / "run" / "coarse").exists()


def test_rounds_go_together_with_coarse_to_fine(tiny_cohort, tmp_path):
    words = [
        *short(tiny_cohort, tmp_path / "run"), "--method=supervised", "--sam_mode=offline", "--rounds=2",
        "--sam_fusion=mean", "--round_steps=2",
    ]  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sorted(path.stem for path in (tmp_path / "run" / "rounds" / "1" / "targets").glob("*.h5")) == [
        "case1", "case2", "case3"
    ]  # fmt: skip
    assert json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["sam"]["taught_share"] > 0.3


def test_scans_are_ranked_by_their_regions(ball, tiny_cohort, tmp_path, monkeypatch):
    seen, opinion_of = {}, rank.opinion_of

    def watched(volume, predictors, ensemble):
        seen[volume.case_id] = volume.size
        return opinion_of(volume, predictors, ensemble)

    monkeypatch.setattr(rank, "opinion_of", watched)
    (tmp_path / "cases").write_text("case3\ncase4\n", encoding="utf-8")
    words = [f"--workdir={ball}", f"--cases={tmp_path / 'cases'}", f"--output={tmp_path / 'rank'}", "--pictures=1"]
    assert rank.main(words) == 0
    predictor, _ = load_predictor(ball)
    for case_id, size in seen.items():
        scan = load_volume(find_case(tiny_cohort, case_id), with_label=False)
        region = predictor.predict(scan).region
        assert size == region.size != scan.size
    assert sorted(seen) == ["case3", "case4"]
    assert len(list((tmp_path / "rank").glob("001_*.png"))) == 1
