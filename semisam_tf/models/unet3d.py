"""The 3D U-Net of SSL4MIS and SemiSAM+: concatenated skips, trilinear upsampling."""

from __future__ import annotations

from collections.abc import Iterator

import keras

from semisam_tf.models.convolution import convolution, seeds
from semisam_tf.models.dropout import SeededDropout
from semisam_tf.models.normalisation import normalisation_layer
from semisam_tf.models.upsampling import TrilinearUpsampling


def _double_convolution(
    x: keras.KerasTensor, name: str, channels: int, normalisation: str, seed: Iterator[int]
) -> keras.KerasTensor:
    """Twice convolution, normalisation, ReLU; layers are `<name>.conv1.0` (convolution), `.1`, `.2` as in torch."""
    for part in ("conv1", "conv2"):
        x = convolution(f"{name}.{part}.0", x.shape[-1], channels, 3, seed, kernel="kaiming_normal")(x)
        norm = normalisation_layer(normalisation, f"{name}.{part}.1", channels, affine=False)
        if norm is not None:
            x = norm(x)
        x = keras.layers.ReLU(name=f"{name}.{part}.{'1' if norm is None else '2'}")(x)
    return x


def build_unet3d(
    input_channels: int = 1,
    n_classes: int = 2,
    filters: int = 16,
    normalisation: str = "instance",
    dropout: float = 0.3,
    seed: int = 0,
    name: str = "unet3d",
) -> keras.Model:
    """3D U-Net: float32 [B, X, Y, Z, input_channels] -> logits float32 [B, X, Y, Z, n_classes].

    X, Y, Z are any multiples of 16 voxels. 5,884,050 parameters with the defaults.

    Args:
        input_channels: Channels of the image.
        n_classes: Classes, background included.
        filters: Channels of the first stage; doubled four times on the way down.
        normalisation: "instance" (without affine, as published), "batch", "group" or "none".
        dropout: Share of single values dropped after the centre and before the output, in training mode.
        seed: Decides the initial weights and the dropout. Student and teacher want different seeds. Where dropout
            stands is one of `model.variables`, but not of `model.weights`: a checkpoint has to save the former.
        name: Name of the model.

    Raises:
        ValueError: Unknown normalisation.

    Reference: `unet_3D` of SSL4MIS with feature_scale 4; Kaiming-normal kernels.
    """
    stream = seeds(seed)
    image = keras.Input((None, None, None, input_channels), name="image")

    skips = []
    x = image
    for level in range(1, 5):
        x = _double_convolution(x, f"conv{level}", filters * 2 ** (level - 1), normalisation, stream)
        skips.append(x)
        x = keras.layers.MaxPooling3D(2, name=f"maxpool{level}")(x)
    x = _double_convolution(x, "center", filters * 16, normalisation, stream)
    if dropout:
        x = SeededDropout(dropout, next(stream), whole_channels=False, name="dropout_center")(x)
    for level in range(4, 0, -1):
        x = TrilinearUpsampling(name=f"up_concat{level}.up")(x)
        x = keras.layers.Concatenate(name=f"up_concat{level}")([skips[level - 1], x])
        x = _double_convolution(x, f"up_concat{level}.conv", filters * 2 ** (level - 1), normalisation, stream)
    if dropout:
        x = SeededDropout(dropout, next(stream), whole_channels=False, name="dropout_output")(x)

    out = convolution("final", filters, n_classes, 1, stream, kernel="kaiming_normal")(x)
    # Under mixed precision the losses still want float32.
    logits = keras.layers.Activation("linear", dtype="float32", name="logits")(out)
    return keras.Model(image, logits, name=name)
