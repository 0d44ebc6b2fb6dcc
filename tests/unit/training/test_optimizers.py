"""The paper's optimiser by hand."""

import keras
import numpy as np
import pytest

from semisam_tf.config import Config
from semisam_tf.training.optimizers import MomentumL2, build_optimizer


def test_two_steps_by_hand():
    weight = keras.Variable(np.array([1.0], np.float32))
    optimizer = MomentumL2(learning_rate=0.1, momentum=0.9, l2=0.5)
    optimizer.build([weight])
    optimizer.apply_gradients([(np.array([2.0], np.float32), weight)])
    # v = 2 + 0.5 x 1 = 2.5; w = 1 - 0.25.
    np.testing.assert_allclose(weight.numpy(), [0.75], rtol=1e-6)
    optimizer.learning_rate.assign(0.01)
    optimizer.apply_gradients([(np.array([2.0], np.float32), weight)])
    # v = 0.9 x 2.5 + 2 + 0.5 x 0.75 = 4.625; w = 0.75 - 0.04625. Keras' own SGD would carry 0.9 x 0.25 along.
    np.testing.assert_allclose(weight.numpy(), [0.70375], rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_names_of_variables_are_those_of_another_process(optimizer):
    """A checkpoint goes by them, and a second training in one process is to be able to go on with the first's."""
    paths = []
    for _ in range(2):
        built = build_optimizer(Config(optimizer=optimizer))
        built.build([keras.Variable(np.zeros(2, np.float32), name="weight")])
        paths.append([variable.path for variable in built.variables])
    assert paths[0] == paths[1]
    # As in checkpoints of older versions.
    assert paths[0][0] == {"sgd": "momentum_l2/iteration", "adamw": "adam_w/iteration"}[optimizer]
