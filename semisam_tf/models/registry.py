"""Every network by name, with the size it is known to have."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras

from semisam_tf.models.unet3d import build_unet3d
from semisam_tf.models.vnet import build_vnet

NETWORKS: dict[str, Callable[..., keras.Model]] = {"vnet": build_vnet, "unet3d": build_unet3d}

# Trainable parameters with the builder's defaults, as published. A network without an entry fails its test.
RECORDED_PARAMETERS = {"vnet": 9_448_866, "unet3d": 5_884_050}


def build_network(kind: str, /, precision: str = "float32", **kwargs: Any) -> keras.Model:
    """Builds a registered network.

    Args:
        kind: A key of `NETWORKS`.
        precision: "float32", or what is computed in where weights and logits stay float32: "bfloat16", "float16".
        **kwargs: The builder's arguments: input_channels, n_classes, filters, normalisation, dropout, seed, name.

    Raises:
        ValueError: Unknown network, or an argument the builder refuses.
    """
    if kind not in NETWORKS:
        raise ValueError(f"Expected --network to be one of {sorted(NETWORKS)}. Received: network={kind!r}.")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision if precision == "float32" else f"mixed_{precision}")
    try:
        return NETWORKS[kind](**kwargs)
    finally:
        keras.config.set_dtype_policy(before)


def trainable_parameters(model: keras.Model) -> int:
    """Number of trainable values: what papers mean by parameters (running statistics left out)."""
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)
