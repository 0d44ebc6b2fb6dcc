"""A finished run to serve: random weights, the output shifted so that scans have foreground and background."""

import json
import struct
import warnings
from pathlib import Path

import numpy as np

CONFIG = {
    "patch_size": (16, 16, 16),
    "training_spacing_mm": (1.5, 1.5, 2.0),
    "filters": 4,
    "normalisation": "instance",
    "largest_component": True,
}


def write_run(folder, channels=1, orientation=None, **changes):
    """Writes what `load_predictor` reads; returns the folder."""
    from semisam_tf.config import Config
    from semisam_tf.inference.predictor import network_of

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = Config(**CONFIG | changes)
    record = {
        "config": config.to_dict(), "channels": channels, "orientation": orientation, "labelled": ["a"],
        "unlabelled": ["b", "c"], "git_commit": "0123abc", "versions": {"keras": "3"},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "result.json").write_text(json.dumps({"sam": None}), encoding="utf-8")
    image = scan((16, 16, 16), channels)[None]
    for name in ("student", "teacher"):
        model = network_of(config, channels, name)
        kernel, bias = model.get_layer("out_conv").get_weights()
        model.get_layer("out_conv").set_weights([kernel * 20, bias])
        logits = np.asarray(model(image)).reshape(-1, config.n_classes)
        bias = bias - np.median(logits - logits[:, :1], axis=0).astype(np.float32)
        model.get_layer("out_conv").set_weights([kernel * 20, bias])
        with warnings.catch_warnings():
            # Keras reads its variables with NumPy's older protocol. Fixtures run outside the marks of tests.
            warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning)
            model.save_weights(folder / f"{name}.weights.h5")
    return folder


def scan(size, channels=1, seed=0):
    """float32 [X, Y, Z, C], smooth and lopsided: no axis order, flip or channel is like another."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    image = ndimage.gaussian_filter(rng.normal(size=(*size, channels)), (2, 2, 2, 0))
    return (image / image.std() * 100 + np.linspace(0, 50, size[0])[:, None, None, None]).astype(np.float32)


# NIfTI's code and NumPy's name of the types that a voxel may have.
NIFTI_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}


def nifti(
    values, code=16, order="<", slope=1.0, inter=0.0, spacing=(1, 1, 1), qform=None, sform=None, offset=352, units=2
):
    """Bytes of a .nii, written field by field.

    Args:
        values: [X, Y, Z] or [X, Y, Z, C], as stored: before slope and intercept.
        code: Of NIFTI_TYPES.
        order: "<" or ">".
        qform: qfac, b, c, d, x, y, z; sform: twelve numbers, row by row. None: code 0.
    """
    header = bytearray(offset)
    dim = [values.ndim, *values.shape] + [1] * (7 - values.ndim)
    qfac, *rest = qform or (1, 0, 0, 0, 0, 0, 0)
    for place, layout, *fields in (
        (0, "i", 348), (40, "8h", *dim), (70, "2h", code, 8 * np.dtype(NIFTI_TYPES[code]).itemsize),
        (76, "8f", qfac, *spacing, 1, 1, 1, 1), (108, "3f", offset, slope, inter), (123, "B", units),
        (252, "2h", qform is not None, sform is not None), (256, "6f", *rest), (280, "12f", *(sform or [0] * 12)),
        (344, "4s", b"n+1"),
    ):  # fmt: skip
        struct.pack_into(order + layout, header, place, *fields)
    stored = values.astype(np.dtype(NIFTI_TYPES[code]).newbyteorder(order))
    return bytes(header) + stored.transpose(range(values.ndim)[::-1]).tobytes()
