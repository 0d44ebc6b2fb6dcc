"""Which processor TensorFlow computes on."""

from __future__ import annotations

import os

import tensorflow as tf

_GROWTH = "TF_FORCE_GPU_ALLOW_GROWTH"


def choose_device(name: str) -> None:
    """Has TensorFlow use "cpu", "gpu", "gpu:N", or what it chooses itself ("auto"). Before its first computation.

    Raises:
        ValueError: There is no such device.
    """
    if name == "auto":
        return
    kind, _, number = name.partition(":")
    if kind == "cpu" and not number:
        tf.config.set_visible_devices([], "GPU")
        return
    gpus = tf.config.list_physical_devices("GPU")
    if kind != "gpu" or not (number or "0").isdigit():
        raise ValueError(f"--device: expected auto, cpu, gpu or gpu:N. Received: {name!r}.")
    if int(number or 0) >= len(gpus):
        raise ValueError(
            f"--device: expected a GPU that TensorFlow sees; it sees {len(gpus)}. Received: {name!r}; try --device=cpu."
        )
    tf.config.set_visible_devices([gpus[int(number or 0)]], "GPU")


def require_memory_growth() -> None:
    """Refuses to go on where TensorFlow would take all of a GPU's memory and leave none to ONNX Runtime.

    TensorFlow reads the variable when it first uses a GPU, and it overrules what a program sets. The commands set it
    before they import TensorFlow (`options.run_command`).

    Raises:
        RuntimeError: The variable is not set, or not to the word that TensorFlow understands.
    """
    told = os.environ.get(_GROWTH)
    if told != "true":
        raise RuntimeError(
            f"Expected {_GROWTH}=true, since TensorFlow would leave SAM no memory on the GPU: set it before TensorFlow "
            f"first computes. Received: {told!r}."
        )
