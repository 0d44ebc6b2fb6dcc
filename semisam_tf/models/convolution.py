"""Convolutions that start from PyTorch's initial distribution, by an explicit seed."""

from __future__ import annotations

import math
from collections.abc import Iterator

import keras
import numpy as np


def seeds(seed: int) -> Iterator[int]:
    """An endless stream of independent seeds, a pure function of `seed`."""
    index = 0
    while True:
        yield int(np.random.SeedSequence([seed, index]).generate_state(1)[0] >> 1)
        index += 1


def convolution(
    name: str,
    in_channels: int,
    out_channels: int,
    size: int,
    seed: Iterator[int],
    kind: str = "same",
    kernel: str = "torch_default",
) -> keras.layers.Layer:
    """A 3D convolution with bias over [B, X, Y, Z, in_channels].

    Args:
        name: Name of the layer.
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        size: Side of the cubic kernel, voxels.
        seed: Stream of seeds; two are taken.
        kind: "same" (stride 1, zero padded), "halve" (stride 2, zero padded: half the size, rounded up), "down" (stride
            `size`, no padding) or "up" (transposed, stride `size`).
        kernel: "torch_default", uniform within 1 / sqrt(fan_in), which is what PyTorch's layers start from; or
            "kaiming_normal", standard deviation sqrt(2 / fan_in). The bias is uniform within 1 / sqrt(fan_in) in both.

    Reference: torch.nn.modules.conv._ConvNd.reset_parameters; its fan_in of a TRANSPOSED convolution counts the output
    channels, an accident that is kept (Keras counts the same way).
    """
    fan_in = (out_channels if kind == "up" else in_channels) * size**3
    bound = 1 / math.sqrt(fan_in)
    if kernel == "torch_default":
        kernel_initializer: keras.Initializer = keras.initializers.RandomUniform(-bound, bound, seed=next(seed))
    elif kernel == "kaiming_normal":
        # Plain normal: Keras' HeNormal is truncated.
        kernel_initializer = keras.initializers.RandomNormal(0.0, math.sqrt(2 / fan_in), seed=next(seed))
    else:
        raise ValueError(f"Expected kernel of ('torch_default', 'kaiming_normal'). Received: kernel={kernel!r}.")
    common = {
        "filters": out_channels,
        "kernel_size": size,
        "strides": {"same": 1, "halve": 2}.get(kind, size),
        "padding": "same" if kind in ("same", "halve") else "valid",
        "kernel_initializer": kernel_initializer,
        "bias_initializer": keras.initializers.RandomUniform(-bound, bound, seed=next(seed)),
        "name": name,
    }
    if kind == "up":
        return keras.layers.Conv3DTranspose(**common)
    if kind in ("same", "halve", "down"):
        return keras.layers.Conv3D(**common)
    raise ValueError(f"Expected kind of ('same', 'halve', 'down', 'up'). Received: kind={kind!r}.")
