"""The paper's optimiser by hand."""

import keras
import numpy as np

from semisam_tf.training.optimizers import MomentumL2


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
