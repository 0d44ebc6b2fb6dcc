"""Three whole mean-teacher steps with SAM against the original PyTorch code: every term and every weight."""

import numpy as np
import pytest
import tensorflow as tf

from semisam_tf.config import PRESETS, Config
from semisam_tf.models.torch_names import export_torch_arrays, load_torch_arrays
from semisam_tf.models.vnet import build_vnet
from semisam_tf.training.optimizers import build_optimizer
from semisam_tf.training.step import Schedule, TrainStep

# The golden ramps are those of t = 600, 750, 900 of 6000; the EMA's are those of t = 0, 1, 2.
RAMP_STEPS = (600, 750, 900)


@pytest.fixture(scope="module")
def values(golden):
    return golden("mean_teacher_steps")


@pytest.fixture(scope="module")
def finished(values):
    """Student, teacher and the terms of each step."""
    config = Config(**PRESETS["paper"], method="mean_teacher", sam_mode="online", sam_dir="given")
    student, teacher = (build_vnet(filters=4, dropout=0.0, seed=seed) for seed in (0, 1))
    load_torch_arrays(student, values, prefix="student0/")
    load_torch_arrays(teacher, values, prefix="teacher0/")
    noise = tf.Variable(tf.zeros([4, 32, 32, 16, 1]))
    step = TrainStep(config, student, teacher, build_optimizer(config), noise=lambda images, t, index: noise)
    terms = []
    for t, ramp_step in enumerate(RAMP_STEPS):
        images, labels = np.moveaxis(values[f"{t}/x"], 1, -1), values[f"{t}/label"][:1]
        noise.assign(np.moveaxis(values[f"{t}/noise"], 1, -1))
        sam_probs = np.eye(2, dtype=np.float32)[values[f"{t}/sam_mask"][1:, 0]]
        weights = Schedule.at(config, ramp_step).weights
        schedule = Schedule.at(config, t)._replace(weights=weights)
        result = step(schedule, images, labels, sam_probs, np.ones(sam_probs.shape[:-1], np.float32))
        terms.append(({name: float(value) for name, value in result.items()}, weights))
    return student, teacher, terms, step


@pytest.mark.parametrize("t", range(3))
def test_ramps(values, finished, t):
    weights = finished[2][t][1]
    expected = values[f"{t}/weights_consistency_sam"]
    np.testing.assert_allclose([weights["consistency"], weights["sam"]], expected, rtol=1e-12)


@pytest.mark.parametrize("t", range(3))
def test_terms(values, finished, t):
    terms = finished[2][t][0]
    names = ("cross_entropy", "dice", "consistency", "sam", "total")
    # Float32 sums over 4 x 32 x 32 x 16 voxels in another order than PyTorch's.
    np.testing.assert_allclose(
        [terms[name] for name in names], values[f"{t}/terms_ce_dice_consistency_sam_total"], rtol=1e-4
    )


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_weights_after_three_steps(values, finished, role):
    arrays = export_torch_arrays(finished[0] if role == "student" else finished[1])
    error = sum(np.sum((array - values[f"{role}3/{name}"]) ** 2.0) for name, array in arrays.items())
    size = sum(np.sum(values[f"{role}3/{name}"] ** 2.0) for name in arrays)
    assert np.sqrt(error / size) < 1e-4


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_every_tensor_moved_as_in_the_original(values, finished, role):
    """Tensor by tensor, relative to how far it MOVED: a wrong decay, momentum or rate shows here and not above.

    20 %: the golden steps are themselves float32, and a ReLU that opens on one side only moves a small bias by
    percents. Three steps in float64 differ from the shared golden values by up to 3.5 % of a tensor's movement, as far
    as ours do; other seeds may do worse. Convolution biases before batch norm move by rounding only: left out.
    """
    arrays = export_torch_arrays(finished[0] if role == "student" else finished[1])
    before_norm = {name for name in arrays if name.endswith("bias") and name.replace("bias", "weight") in arrays}
    before_norm = {name for name in before_norm if arrays[name.replace("bias", "weight")].ndim == 5} - {"out_conv.bias"}
    compared = sorted(set(arrays) - before_norm)
    assert len(compared) > 60
    for name in compared:
        moved = np.linalg.norm(values[f"{role}3/{name}"] - values[f"{role}0/{name}"])
        error = np.linalg.norm(arrays[name] - values[f"{role}3/{name}"])
        assert error < 0.2 * moved, name


def test_the_step_was_traced_once(finished):
    assert finished[3].traces == 1
