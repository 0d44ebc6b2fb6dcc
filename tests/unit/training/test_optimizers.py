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


@pytest.mark.parametrize(("name", "path"), [("sgd", "momentum_l2"), ("adamw", "adam_w")])
def test_a_second_optimiser_of_a_process_has_the_names_of_the_first(name, path):
    """A checkpoint's arrays are named by them; a coarse stage before it makes an optimiser of its own."""
    for _ in range(2):
        optimizer = build_optimizer(Config(optimizer=name))
        optimizer.build([keras.Variable(np.zeros(3, np.float32), name="v")])
        assert {variable.path.split("/")[0] for variable in optimizer.variables} == {path}
