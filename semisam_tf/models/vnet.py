"""V-Net as the semi-supervised literature uses it: additive skips, stages of 1, 2 and 3 convolutions."""

from __future__ import annotations

from collections.abc import Iterator

import keras

from semisam_tf.models.convolution import convolution, seeds
from semisam_tf.models.dropout import SeededDropout
from semisam_tf.models.normalisation import normalisation_layer


class _Builder:
    """Appends stages to a functional graph; remembers what every stage shares."""

    def __init__(self, normalisation: str, seed: Iterator[int]) -> None:
        self.normalisation = normalisation
        self.seed = seed

    def stage(
        self, x: keras.KerasTensor, name: str, channels: int, n_convolutions: int = 1, kind: str = "same"
    ) -> keras.KerasTensor:
        """`n_convolutions` times convolution, normalisation, ReLU: [B, X, Y, Z, C] -> [B, X', Y', Z', channels].

        Layers are named as in the torch module, `<stage>.conv.<index>`, where the index also counts the ReLUs (and
        skips the normalisation if there is none).
        """
        index = 0
        for _ in range(n_convolutions):
            size = 3 if kind == "same" else 2
            x = convolution(f"{name}.conv.{index}", x.shape[-1], channels, size, self.seed, kind)(x)
            index += 1
            norm = normalisation_layer(self.normalisation, f"{name}.conv.{index}", channels)
            if norm is not None:
                x = norm(x)
                index += 1
            x = keras.layers.ReLU(name=f"{name}.conv.{index}")(x)
            index += 1
        return x


def build_vnet(
    input_channels: int = 1,
    n_classes: int = 2,
    filters: int = 16,
    normalisation: str = "batch",
    dropout: float = 0.5,
    seed: int = 0,
    name: str = "vnet",
) -> keras.Model:
    """V-Net: float32 [B, X, Y, Z, input_channels] -> logits float32 [B, X, Y, Z, n_classes].

    X, Y, Z are any multiples of 16 voxels. 9,448,866 parameters with the defaults.

    Args:
        input_channels: Channels of the image.
        n_classes: Classes, background included.
        filters: Channels of the first stage; doubled four times on the way down.
        normalisation: "batch", "instance", "group" or "none".
        dropout: Share of whole channels dropped at the bottleneck and before the output, in training mode.
        seed: Decides the initial weights and the dropout. Student and teacher want different seeds. Where dropout
            stands is one of `model.variables`, but not of `model.weights`: a checkpoint has to save the former.
        name: Name of the model.

    Raises:
        ValueError: Unknown normalisation.

    Reference: V-Net of UA-MT and SemiSAM (`networks/vnet.py` at SemiSAM 6716784), PyTorch's default initialisation.
    Departs: instance normalisation is affine (torch's default is not); with it off, nothing rescales a channel
    before the additive skips.
    """
    stream = seeds(seed)
    build = _Builder(normalisation, stream)
    f = filters

    image = keras.Input((None, None, None, input_channels), name="image")
    x1 = build.stage(image, "block_one", f, 1)
    x2 = build.stage(build.stage(x1, "block_one_dw", 2 * f, kind="down"), "block_two", 2 * f, 2)
    x3 = build.stage(build.stage(x2, "block_two_dw", 4 * f, kind="down"), "block_three", 4 * f, 3)
    x4 = build.stage(build.stage(x3, "block_three_dw", 8 * f, kind="down"), "block_four", 8 * f, 3)
    x5 = build.stage(build.stage(x4, "block_four_dw", 16 * f, kind="down"), "block_five", 16 * f, 3)
    if dropout:
        x5 = SeededDropout(dropout, next(stream), name="dropout_bottleneck")(x5)

    up = build.stage(x5, "block_five_up", 8 * f, kind="up")
    x6 = build.stage(keras.layers.Add(name="skip_four")([up, x4]), "block_six", 8 * f, 3)
    up = build.stage(x6, "block_six_up", 4 * f, kind="up")
    x7 = build.stage(keras.layers.Add(name="skip_three")([up, x3]), "block_seven", 4 * f, 3)
    up = build.stage(x7, "block_seven_up", 2 * f, kind="up")
    x8 = build.stage(keras.layers.Add(name="skip_two")([up, x2]), "block_eight", 2 * f, 2)
    up = build.stage(x8, "block_eight_up", f, kind="up")
    x9 = build.stage(keras.layers.Add(name="skip_one")([up, x1]), "block_nine", f, 1)
    if dropout:
        x9 = SeededDropout(dropout, next(stream), name="dropout_output")(x9)

    out = convolution("out_conv", f, n_classes, 1, stream)(x9)
    # Under mixed precision the losses still want float32.
    logits = keras.layers.Activation("linear", dtype="float32", name="logits")(out)
    return keras.Model(image, logits, name=name)
