"""Batch norm taken into the convolutions before it, for prediction: the same numbers, a layer less at every stage."""

from __future__ import annotations

import keras
import numpy as np

from semisam_tf.models.normalisation import EPSILON, TorchBatchNormalization


def folded_into(target: keras.Model, source: keras.Model) -> keras.Model:
    """`target` with the weights that make it compute what `source` does in inference mode.

    Args:
        target: The network of `source` without normalisation (`normalisation="none"`); its weights are replaced.
        source: With batch norm after some convolutions, each of whose running statistics are fixed in inference mode
            and so are a scale and an offset of the channels before it.

    Returns:
        `target`.

    Raises:
        ValueError: The two do not have the same convolutions in the same order.
    """
    convolutions = _convolutions(source)
    copies = _convolutions(target)
    if [c.kernel.shape for c in convolutions] != [c.kernel.shape for c in copies]:
        raise ValueError(
            f"Expected a network with the same {len(convolutions)} convolutions. Received: {target.name}, which has "
            f"{len(copies)}."
        )
    norm_after = {
        norm.input._keras_history.operation.name: norm
        for norm in source.layers
        if isinstance(norm, TorchBatchNormalization)
    }
    for convolution, copy in zip(convolutions, copies, strict=True):
        kernel, bias = convolution.kernel.numpy(), convolution.bias.numpy()
        norm = norm_after.get(convolution.name)
        if norm is not None:
            scale = norm.gamma.numpy() / np.sqrt(norm.moving_variance.numpy() + EPSILON)
            bias = (bias - norm.moving_mean.numpy()) * scale + norm.beta.numpy()
            # The output channels of a transposed convolution's kernel are its last axis but one.
            kernel = kernel * (scale[:, None] if isinstance(convolution, keras.layers.Conv3DTranspose) else scale)
        copy.kernel.assign(kernel)
        copy.bias.assign(bias)
    return target


def _convolutions(model: keras.Model) -> list[keras.layers.Layer]:
    return [layer for layer in model.layers if isinstance(layer, keras.layers.Conv3D | keras.layers.Conv3DTranspose)]
