"""Optimisers. The learning rate is set before every step from `semi.schedules`.

On several devices each is handed the mean of their gradients (`distribution.replicas.averaged`).
"""

from __future__ import annotations

from typing import Any

import keras

from semisam_tf.config import Config


class _TakesAverages(keras.optimizers.Optimizer):
    """An optimiser for gradients that are the mean over all replicas already, as clipping by their norm wants it."""

    def _all_reduce_sum_gradients(self, grads_and_vars: list[Any]) -> list[Any]:
        # Keras would add them up over the replicas. No public name; tests/integration/test_devices.py holds it.
        return grads_and_vars


class AdamW(_TakesAverages, keras.optimizers.AdamW):
    """Keras' own."""


class Adam(_TakesAverages, keras.optimizers.Adam):
    """Keras' own."""


class MomentumL2(_TakesAverages):
    """SGD as PyTorch writes it: v <- m v + (g + wd w); w <- w - lr v.

    Departs from keras.optimizers.SGD, whose velocity holds lr x gradient: the two part when the learning rate changes.
    Weight decay is L2 in the gradient of every parameter, not decoupled.
    """

    def __init__(self, learning_rate: float, momentum: float, l2: float, **kwargs: Any) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.momentum, self.l2 = momentum, l2
        self._velocities: list[keras.Variable] = []

    def build(self, variables: list[keras.Variable]) -> None:
        """Makes one velocity a variable, zeros."""
        if self.built:
            return
        super().build(variables)
        self._velocities = [self.add_variable_from_reference(v, name="velocity") for v in variables]

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One variable's step."""
        velocity = self._velocities[self._get_variable_index(variable)]
        velocity.assign(self.momentum * velocity + gradient + self.l2 * variable)
        variable.assign_sub(learning_rate * velocity)

    def get_config(self) -> dict[str, Any]:
        """Keras configuration."""
        return {**super().get_config(), "momentum": self.momentum, "l2": self.l2}


def build_discriminator_optimizer(config: Config) -> keras.optimizers.Optimizer:
    """The discriminator's optimiser. Reference: SSL4MIS, whose rate does not change with the step, either."""
    return Adam(config.discriminator_learning_rate, beta_1=0.9, beta_2=0.99, epsilon=1e-8, name="adam")


def build_optimizer(config: Config) -> keras.optimizers.Optimizer:
    """The optimiser that `config.optimizer` names."""
    # The names that Keras gives to the first of a process. A second one's would be others, and a checkpoint's names
    # are to be those of any process that goes on with it.
    optimizer: keras.optimizers.Optimizer
    if config.optimizer == "sgd":
        optimizer = MomentumL2(config.learning_rate, config.momentum, config.weight_decay, name="momentum_l2")
    else:
        optimizer = AdamW(config.learning_rate, weight_decay=config.weight_decay, global_clipnorm=1.0, name="adam_w")
    if config.precision == "float16":
        return keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale")
    return optimizer
