"""The adversary of DAN: does a prediction belong to a labelled crop or to an unlabelled one?"""

from __future__ import annotations

import math

import keras

from semisam_tf.models.convolution import convolution, seeds
from semisam_tf.models.dropout import SeededDropout

# Slope of the rectifiers below zero.
_LEAK = 0.2


def build_discriminator(
    input_channels: int = 1,
    n_classes: int = 2,
    filters: int = 64,
    dropout: float = 0.5,
    seed: int = 0,
    name: str = "discriminator",
) -> keras.Model:
    """[probs [B, X, Y, Z, n_classes], image [B, X, Y, Z, input_channels]] -> logits [B, 2]: unlabelled, labelled.

    Args:
        filters: Channels of the first stage; doubled three times on the way down.
        dropout: Share of whole channels dropped after each stage but the last, in training mode.
        seed: Decides the initial weights and the dropout.

    Reference: FC3DDiscriminator of SSL4MIS: four convolutions of size 4 and stride 2.
    Departs: the mean before the last layer is over the whole crop, so that crops of any size will do (SSL4MIS: 6^3
    voxels, which is all of a 96^3 crop).
    """
    stream = seeds(seed)
    probs = keras.Input((None, None, None, n_classes), name="probs")
    image = keras.Input((None, None, None, input_channels), name="image")
    x = keras.layers.Add(name="joined")(
        [
            convolution("conv_probs", n_classes, filters, 4, stream, "halve")(probs),
            convolution("conv_image", input_channels, filters, 4, stream, "halve")(image),
        ]
    )
    for stage in (1, 2, 3):
        x = keras.layers.LeakyReLU(_LEAK, name=f"leaky_{stage}")(x)
        x = SeededDropout(dropout, next(stream), name=f"dropout_{stage}")(x)
        channels = filters * 2 ** (stage - 1)
        x = convolution(f"conv_{stage}", channels, 2 * channels, 4, stream, "halve")(x)
    x = keras.layers.GlobalAveragePooling3D(name="mean")(keras.layers.LeakyReLU(_LEAK, name="leaky_4")(x))
    bound = 1 / math.sqrt(8 * filters)
    initial = [keras.initializers.RandomUniform(-bound, bound, seed=next(stream)) for _ in range(2)]
    out = keras.layers.Dense(2, kernel_initializer=initial[0], bias_initializer=initial[1], name="classifier")(x)
    # Under mixed precision the losses still want float32.
    logits = keras.layers.Activation("linear", dtype="float32", name="logits")(out)
    return keras.Model([probs, image], logits, name=name)
