"""Half precision: what is computed in it, what is not, and that it learns what float32 learns."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from semisam_tf.config import PRESETS, Config
from semisam_tf.distribution.devices import devices_of
from semisam_tf.options import OptionError
from semisam_tf.training.state import Training
from semisam_tf.training.step import Schedule

SIZE = (32, 32, 16)
CONFIG = dataclasses.replace(
    Config(**PRESETS["cpu"]),
    method="mean_teacher", filters=4, patch_size=SIZE, dropout=0.0, optimizer="sgd", learning_rate=0.02,
    lr_schedule="constant",
)  # fmt: skip
HALVES = ("bfloat16", "float16")


def built(precision, **changes):
    return Training.build(dataclasses.replace(CONFIG, precision=precision, **changes), 1, [], [], [])


def batch():
    rng = np.random.default_rng(0)
    labels = np.zeros((2, *SIZE), np.uint8)
    labels[:, 8:24, 8:24, 4:12] = 1
    images = rng.normal(0, 0.5, (4, *SIZE, 1)).astype(np.float32)
    images[:2, ..., 0] += 3.0 * labels
    return images, labels


@pytest.mark.parametrize("precision", HALVES)
def test_convolutions_compute_in_half_and_weights_and_logits_do_not(precision):
    student = built(precision).student
    layers = {layer.name: layer for layer in student.layers}
    assert layers["block_one.conv.0"].compute_dtype == precision
    assert {variable.dtype for variable in student.trainable_variables} == {"float32"}
    assert student.output.dtype == "float32"
    # And nothing else of the process is.
    assert built("float32").student.get_layer("block_one.conv.0").compute_dtype == "float32"


@pytest.mark.parametrize("normalisation", ["batch", "instance"])
def test_a_step_is_that_of_float32_to_the_digits_of_half(normalisation):
    terms = {}
    for name in ("float32", "float16"):
        training = built(name, normalisation=normalisation)
        losses = [training.train_step(Schedule.at(CONFIG, step), *batch()) for step in range(8)]
        terms[name] = np.array([float(loss["total"]) for loss in losses])
    # Later on so small a network on so small a batch goes ways of its own.
    np.testing.assert_allclose(terms["float16"][:3], terms["float32"][:3], rtol=0.01)
    for series in terms.values():
        assert series[-1] < 0.9 * series[0]


def test_bfloat16_is_refused_where_its_kernels_are_not_to_be_relied_on():
    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU")
    with pytest.raises(OptionError, match="--precision=bfloat16: expected a GPU"):
        devices_of(dataclasses.replace(CONFIG, precision="bfloat16"))


def test_float16_scales_the_loss_and_passes_over_gradients_that_overflow():
    training = built("float16")
    scale = training.optimizer.dynamic_scale
    images, labels = batch()
    before = [variable.numpy() for variable in training.student.trainable_variables]
    scale.assign(1e30)
    training.train_step(Schedule.at(CONFIG, 0), images, labels)
    for variable, value in zip(training.student.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    assert float(scale.value) == pytest.approx(5e29)
    scale.assign(2.0**10)
    training.train_step(Schedule.at(CONFIG, 1), images, labels)
    assert np.any(training.student.trainable_variables[0].numpy() != before[0])
    assert {"loss_scale/dynamic_scale"} <= {variable.path for variable in training.optimizer.variables}
