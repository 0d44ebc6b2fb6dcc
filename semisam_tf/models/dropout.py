"""Dropout with a seed of its own and a random state that keeps its name."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from semisam_tf.distribution.replicas import replica_count, replica_index


@keras.saving.register_keras_serializable("semisam_tf")
class SeededDropout(keras.layers.Layer):
    """Drops values of [B, X, Y, Z, C] in training mode and scales the others up by 1 / (1 - rate).

    Args:
        rate: Probability of being dropped, in [0, 1).
        seed: Seed of the layer's random state, which every pass in training mode moves on. The state is one of
            `layer.variables`, named after the layer.
        whole_channels: Drop whole channels of an item, rather than single values.

    Reference: torch.nn.Dropout3d (whole channels) and torch.nn.Dropout.
    Departs: from Keras' dropout layers, whose random state is named by a counter of the whole process: a checkpoint
    by name would fit the first model of a process only. And on a CPU those take twice as long for whole channels.

    Raises:
        ValueError: The rate is out of range.
    """

    def __init__(self, rate: float, seed: int, whole_channels: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= rate < 1:
            raise ValueError(f"Expected 0 <= rate < 1. Received: rate={rate}.")
        self.rate, self.seed, self.whole_channels = rate, seed, whole_channels
        self.seed_generator = keras.random.SeedGenerator(seed, name=f"{self.name}_state")
        self.built = True

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training or not self.rate:
            return x
        shape = tf.shape(x)
        if not self.whole_channels:
            if replica_count() == 1:
                return keras.random.dropout(x, self.rate, seed=self.seed_generator)
            kept = self._drawn(shape) >= self.rate
            return x * tf.cast(kept, x.dtype) / tf.cast(1 - self.rate, x.dtype)
        batch, channels = shape[0], shape[4]
        kept = self._drawn((batch, channels)) >= self.rate
        scale = tf.cast(kept, x.dtype) / tf.cast(1 - self.rate, x.dtype)
        # Whole lines along Z at once: broadcasting over rows of C values alone is slower.
        lines = tf.reshape(x, tf.stack([batch, -1, shape[3] * channels]))
        lines *= tf.tile(scale[:, None, :], [1, 1, shape[3]])
        return tf.ensure_shape(tf.reshape(lines, shape), x.shape)

    def _drawn(self, shape: tf.Tensor | tuple[tf.Tensor, ...]) -> tf.Tensor:
        """Uniform in [0, 1); of several replicas, whose states are alike, each draws something else."""
        if replica_count() == 1:
            return keras.random.uniform(shape, seed=self.seed_generator)
        key = tf.cast(self.seed_generator.next(), tf.int32)
        return tf.random.stateless_uniform(shape, key + tf.stack([tf.cast(replica_index(), tf.int32), 0]))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        own = {"rate": self.rate, "seed": self.seed, "whole_channels": self.whole_channels}
        return {**super().get_config(), **own}
