"""Left lung, right lung and spine of the simulated cohort: trained, scored, served and taught by SAM class by class."""

import dataclasses
import json
import subprocess
import sys

import h5py
import numpy as np
import pytest
import tensorflow as tf

from semisam_tf.data.label_access import outside_runs
from semisam_tf.data.simulate import make_quickstart
from semisam_tf.data.volumes import find_case, load_volume
from semisam_tf.evaluate import EvaluateConfig, evaluate
from semisam_tf.inference.predictor import load_predictor
from semisam_tf.sam.target import dice
from semisam_tf.serving.save import SaveConfig, save
from semisam_tf.training.sam_setup import sam_ensemble, sam_sessions
from semisam_tf.training.targets import mask_of, opened

STEPS = 90
# What so short a run has learnt; the spine, a tenth of a lung, takes the length of the flagfile (docs/multiclass.md).
LEARNT = (1, 2)
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_quickstart(tmp_path_factory.mktemp("data") / "organs", subjects=3, classes="lungs_and_spine")


@pytest.fixture(scope="module")
def run(data, repo_root, tiny_sam, tmp_path_factory):
    """The flagfile's run, small: voxels of 12 mm, four filters, a SAM double."""
    workdir = tmp_path_factory.mktemp("runs") / "organs"
    words = [
        "--flagfile=configs/multiclass.flags", "--noquickstart_cohort", f"--data_dir={data}", f"--workdir={workdir}",
        "--training_spacing_mm=12,12,12", "--patch_size=32,32,32", "--filters=4", f"--max_steps={STEPS}",
        "--learning_rate=0.02", "--augment=none", "--dropout=0", f"--sam_dir={tiny_sam}",
        f"--sam_start_step={STEPS - 10}", "--sam_prompts_from=student", "--sam_slice_step=1", "--sam_min_area_vox=2",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "semisam_tf.train", *words], capture_output=True, text=True, check=False, cwd=repo_root
    )
    assert done.returncode == 0, done.stderr
    return workdir


def middle(mask, k):
    """Mean index of a class along x (right) and y (anterior)."""
    return np.argwhere(mask == k).mean(axis=0)[:2]


def assert_in_place(mask):
    """Left lung, right lung: axes run right, anterior, superior."""
    (left, _), (right, _) = (middle(mask, k) for k in LEARNT)
    assert left < right - 0.2 * mask.shape[0]


def test_scores_are_of_the_right_class(data, run):
    report = evaluate(EvaluateConfig(workdir=str(run), data_dir=str(data), cases=f"{data}/test.list", model="student"))
    assert set(report["classes"]) == {"1", "2", "3"}
    # A swap of the lungs, in the data, a label, a prediction or the scores, would leave nearly nothing.
    dice = {k: report["classes"][k]["mean"]["dice"] for k in "123"}
    # 0.62 for both as a rule; 0.52 was seen once for the right lung, on a loaded machine.
    assert min(dice["1"], dice["2"]) > 0.35, dice
    assert report["mean"]["dice"] == pytest.approx(np.mean(list(dice.values())))
    volume = load_volume(find_case(data, "subject_03"), with_label=outside_runs("a test"))
    assert_in_place(volume.label)
    assert middle(volume.label, 1)[0] < middle(volume.label, 3)[0] < middle(volume.label, 2)[0]
    assert_in_place(load_predictor(run, "student")[0].mask(volume))


def test_the_saved_model_writes_predicts_mask(data, run, tmp_path):
    folder = save(SaveConfig(workdir=str(run), output=f"{tmp_path}/organs", model="student"))
    path = data / "subject_03" / "image.nii.gz"
    signature = tf.saved_model.load(str(folder)).signatures["nifti"]
    answer = signature(nifti_bytes=tf.constant(path.read_bytes()))
    volume = load_volume(find_case(data, "subject_03"), with_label=False)
    prediction = load_predictor(run, "student")[0].predict(volume)
    served = np.frombuffer(answer["mask_bytes"].numpy()[352:], np.uint8)
    served = served.reshape(volume.size[::-1]).transpose(2, 1, 0)
    top = np.sort(prediction.probs, axis=-1)
    # Another class only where the two most probable ones are within the graph's tolerance of each other.
    assert (top[..., -1] - top[..., -2])[served != prediction.mask].max(initial=0) < 2e-4
    assert set(np.unique(served)) >= {0, *LEARNT}


def test_sams_target_has_every_class_in_its_place(run):
    with h5py.File(run / "checkpoints" / f"step_{STEPS:08d}.h5") as file:
        targets = {item.attrs["name"]: item[()] for item in file["sam"].values()}
    assert set(targets) == {"packed/subject_02"}
    with opened(targets["packed/subject_02"]) as target:
        mask, weight = mask_of(target.probs[()]), target.weight[()]
    assert set(np.unique(mask)) >= {0, *LEARNT}
    assert_in_place(mask)
    assert weight.any()
    assert json.loads((run / "result.json").read_text(encoding="utf-8"))["sam"]["taught_share"] > 0


def test_sam_answers_each_organ_where_it_was_prompted(data, run):
    """The spine too, which so short a run does not predict: prompted with the labels themselves."""
    predictor, _ = load_predictor(run, "student")
    asked = dataclasses.replace(predictor.config, sam_mode="online", sam_trust="one")
    scan = load_volume(find_case(data, "subject_03"), with_label=outside_runs("a test"))
    grid = predictor.preprocessing.to_training_grid(scan, 4)
    prompts = np.eye(4, dtype=np.float32)[grid.label]
    said = sam_ensemble(asked, [], sam_sessions(asked)).target(grid.image, prompts, spacing_mm=grid.spacing_mm)
    mask = said.probs.argmax(axis=-1)
    # The double thresholds the picture in the box: its masks are crude, but of the organ that was asked for.
    overlap = np.array([[dice(mask == k, grid.label == organ) for organ in (1, 2, 3)] for k in (1, 2, 3)])
    np.testing.assert_array_equal(overlap.argmax(axis=1), [0, 1, 2])
    assert overlap.diagonal().min() > 0.2, overlap
