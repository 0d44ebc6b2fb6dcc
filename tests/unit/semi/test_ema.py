"""The teacher's average."""

import keras
import numpy as np
import pytest

from semisam_tf.models.vnet import build_vnet
from semisam_tf.semi.ema import copy_weights, statistics, update_teacher


@pytest.fixture(scope="module")
def networks():
    return [build_vnet(filters=2, normalisation="batch", seed=seed) for seed in (0, 1)]


def test_zero_decay_copies_the_student(networks):
    teacher, student = networks
    update_teacher(teacher, student, 0.0, follow_statistics=False)
    for slow, fast in zip(teacher.trainable_variables, student.trainable_variables, strict=True):
        np.testing.assert_array_equal(slow.numpy(), fast.numpy())


def test_decay_keeps_its_share_of_the_teacher(networks):
    teacher, student = networks
    for variable in teacher.trainable_variables:
        variable.assign(keras.ops.full_like(variable, 4.0))
    for variable in student.trainable_variables:
        variable.assign(keras.ops.full_like(variable, 8.0))
    update_teacher(teacher, student, 0.75, follow_statistics=False)
    assert {float(v.numpy().max()) for v in teacher.trainable_variables} == {5.0}


def test_statistics_follow_only_when_asked(networks):
    teacher, student = networks
    for variable in statistics(student):
        variable.assign(keras.ops.full_like(variable, 3.0))
    for variable in statistics(teacher):
        variable.assign(keras.ops.full_like(variable, 1.0))
    update_teacher(teacher, student, 0.5, follow_statistics=False)
    assert {float(v.numpy().max()) for v in statistics(teacher)} == {1.0}
    update_teacher(teacher, student, 0.5, follow_statistics=True)
    assert {float(v.numpy().max()) for v in statistics(teacher)} == {2.0}


def test_copy_leaves_the_generators_apart(networks):
    teacher, student = networks
    seeds = [v.numpy().tolist() for v in teacher.non_trainable_variables if not v.dtype.startswith("float")]
    copy_weights(teacher, student)
    for a, b in zip(teacher.trainable_variables, student.trainable_variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    assert seeds
    assert seeds == [v.numpy().tolist() for v in teacher.non_trainable_variables if not v.dtype.startswith("float")]
