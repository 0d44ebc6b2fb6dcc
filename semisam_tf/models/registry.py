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


def build_network(name: str, /, **kwargs: Any) -> keras.Model:
    """Builds a registered network.

    Args:
        name: A key of `NETWORKS`.
        **kwargs: The builder's arguments: input_channels, n_classes, filters, normalisation, dropout, seed, name.

    Raises:
        ValueError: Unknown network, or an argument the builder refuses.
    """
    if name not in NETWORKS:
        raise ValueError(f"Expected --network to be one of {sorted(NETWORKS)}. Received: network={name!r}.")
    return NETWORKS[name](**kwargs)


def trainable_parameters(model: keras.Model) -> int:
    """Number of trainable values: what papers mean by parameters (running statistics left out)."""
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)
