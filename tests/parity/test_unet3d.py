"""The 3D U-Net against PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from semisam_tf.models.torch_names import load_torch_arrays
from semisam_tf.models.unet3d import build_unet3d


def test_inference_mode(golden: Callable[[str], dict[str, np.ndarray]]):
    values = golden("unet3d")
    filters, channels = values["w/conv1.conv1.0.weight"].shape[:2]
    model = build_unet3d(channels, values["w/final.bias"].size, filters)
    load_torch_arrays(model, values, prefix="w/")
    logits = model(values["x"].transpose(0, 2, 3, 4, 1), training=False).numpy()
    expected = values["logits"].transpose(0, 2, 3, 4, 1)
    assert np.abs(logits - expected).max() / np.abs(expected).max() < 1e-5
