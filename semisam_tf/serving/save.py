"""Saves a finished run for TensorFlow Serving: `python -m semisam_tf.serving.save --workdir=DIR --output=DIR`."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semisam_tf.config import WINDOW_BLEND, WINDOW_BLENDS, WINDOW_OVERLAP
from semisam_tf.options import OptionError, option, run_command

if TYPE_CHECKING:
    import keras

    from semisam_tf.serving.pipeline import Pipeline

# Voxels are counted in int32 in parts of the graph.
_MOST_VOX = 2**31 - 1
_SERVING_API = (
    "Without its dependencies, since it asks for `tensorflow` even beside `tensorflow-cpu`: "
    "pip install --no-deps tensorflow-serving-api==2.21.0"
)
# What graph and Python may differ by, in probability.
_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class SaveConfig:
    """Saves a finished run as the next version of a model for TensorFlow Serving: scan in, mask out."""

    workdir: str = option("", "Folder of a finished run.")
    output: str = option("", "Folder of the model, as models/left_atrium; its name is the model's on the server.")
    model: str = option("auto", "auto: as the run decided.", choices=("auto", "student", "teacher"))
    overlap: float = option(WINDOW_OVERLAP, "Share of a sliding window that neighbours have in common.", unit="0..1")
    blend: str = option(
        WINDOW_BLEND,
        "How overlapping windows are averaged: uniform is the plain mean, gaussian trusts the middle of a window most.",
        choices=WINDOW_BLENDS,
    )
    whole_scan: bool = option(
        False,
        "The network sees the whole scan at once: faster. For runs with --normalisation=batch or none; --overlap and "
        "--blend do not count then.",
    )
    max_scan_vox: int = option(512**3, "Larger scans are refused.", unit="voxels")
    max_axis_vox: int = option(4096, "Scans that are longer along one axis are refused.", unit="voxels")
    max_compressed_mib: int = option(
        128, "Larger .nii.gz are refused; one may unpack to 1032 times its size, at most 2 GiB.", unit="MiB"
    )
    onnx: bool = option(
        False, "Also write the network as assets.extra/network.onnx (a coarse one as coarse.onnx), compared with Keras."
    )


def save(config: SaveConfig) -> Path:
    """Writes the next version, or nothing.

    Returns:
        The version's folder.

    Raises:
        OptionError: A flag is missing or out of range.
        FileNotFoundError: The run is not there or not finished.
        RuntimeError: The saved graph does not say what the Python pipeline says; nothing is left of it.
    """
    _check(config)
    from semisam_tf.inference.predictor import (
        Predictor,
        chosen_model,
        load_coarse_network,
        load_network,
        require_local,
    )
    from semisam_tf.inference.run_folder import read_result, read_run
    from semisam_tf.serving.folder import next_version, write_server_files
    from semisam_tf.serving.metadata import describe
    from semisam_tf.serving.pipeline import Limits, Pipeline

    workdir, output = Path(config.workdir), Path(config.output)
    name = output.resolve().name
    record = read_run(workdir)
    run, orientation = record["config"], record.get("orientation")
    which = chosen_model(run, config.model)
    if config.whole_scan:
        require_local(run)
    read_result(workdir)
    model, coarse = load_network(workdir, record, which), load_coarse_network(workdir, record)
    limits = Limits(config.max_axis_vox, config.max_scan_vox, config.max_compressed_mib * 1024**2)
    windows: dict[str, Any] = {"overlap": config.overlap, "blend": config.blend, "whole_scan": config.whole_scan}
    pipeline = Pipeline(run, model, limits=limits, coarse_model=coarse, **windows)
    predictor = Predictor(run, model, orientation=orientation, coarse_model=coarse, **windows)
    metadata = describe(workdir, record, which, pipeline, name)
    output.mkdir(parents=True, exist_ok=True)
    version = next_version(output)
    # Not a number: the server, which may be looking at this folder, passes it over until it is renamed.
    partial = output / f".partial.{os.getpid()}.{version}"
    try:
        _write(partial, pipeline, model, metadata | {"version": version}, orientation, config.onnx)
        _compare(partial, predictor)
        write_server_files(output, name)
        partial.rename(output / str(version))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output / str(version)


def _check(config: SaveConfig) -> None:
    for name in ("workdir", "output"):
        if not getattr(config, name):
            raise OptionError(f"--{name} is needed (--help lists every flag).")
    model_name = Path(config.output).resolve().name
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", model_name):
        raise OptionError(
            "--output: expected its last part to name the model: a letter, then letters, digits, '_' and '-'. "
            f"Received: {model_name!r}."
        )
    if not 0 <= config.overlap < 1:
        raise OptionError(f"--overlap: expected a share in [0, 1). Received: {config.overlap}.")
    for name, most in (("max_scan_vox", _MOST_VOX), ("max_axis_vox", _MOST_VOX), ("max_compressed_mib", 2047)):
        if not 1 <= getattr(config, name) <= most:
            raise OptionError(f"--{name}: expected 1 to {most}. Received: {getattr(config, name)}.")
    _check_packages(config.onnx)


def _check_packages(onnx: bool) -> None:
    from semisam_tf.flavour import is_installed

    if not is_installed("tensorflow_serving"):
        raise OptionError(f"Expected tensorflow-serving-api. Received: it is not installed. {_SERVING_API}")
    for module in ("onnx", "onnxruntime", "tf2onnx") if onnx else ():
        if not is_installed(module):
            raise OptionError(
                f"--onnx: expected the package {module}. Received: it is not installed. "
                f"From a clone: pip install -c constraints.txt {module}"
            )


def _write(
    folder: Path, pipeline: Pipeline, model: keras.Model, metadata: dict[str, Any], orientation: str | None, onnx: bool
) -> None:
    """A version's folder: SavedModel, and in `assets.extra` the warm-up requests, model.json and the ONNX file."""
    import numpy as np
    import tensorflow as tf
    from absl import logging

    from semisam_tf.atomic import write_json
    from semisam_tf.serving.folder import write_warmup
    from semisam_tf.serving.graph import ServingModule

    module = ServingModule(pipeline, metadata, orientation)
    verbosity = logging.get_verbosity()
    # A line of kilobytes per function says that inputs are renamed in the SavedModel; only signatures are called.
    logging.set_verbosity(logging.ERROR)
    try:
        tf.saved_model.save(module, str(folder), signatures=module.functions)
    finally:
        logging.set_verbosity(verbosity)
    extra = folder / "assets.extra"
    extra.mkdir()
    window = pipeline.config.patch_size
    # Half a window is padded to a whole one: the network sees its real size, and the file stays small.
    image = np.random.default_rng(0).normal(size=(*(n // 2 for n in window), pipeline.channels)).astype(np.float32)
    write_warmup(extra, metadata["name"], image, pipeline.config.training_spacing_mm or (1.0, 1.0, 1.0))
    if onnx:
        from semisam_tf.serving.onnx_network import write_onnx

        difference = write_onnx(extra / "network.onnx", model, window, metadata)
        if pipeline.coarse_model is not None:
            coarse_window = pipeline.config.coarse_patch_size
            coarse = write_onnx(extra / "coarse.onnx", pipeline.coarse_model, coarse_window, metadata)
            difference = max(difference, coarse)
        metadata = metadata | {"onnx_difference": difference}
    write_json(extra / "model.json", metadata)


def _compare(folder: Path, predictor: Any) -> None:
    """Holds the graph, as a server will load it, against the Python pipeline.

    On a scan of several windows. Of a coarse-to-fine run also on smooth ones as large as the coarse window, in some of
    which its network finds something: in noise it seldom does.
    """
    import numpy as np
    import tensorflow as tf
    from absl import logging

    from semisam_tf import geometry
    from semisam_tf.data.volumes import Volume

    config = predictor.config
    rng = np.random.default_rng(1)
    # Coarser and finer than the training grid.
    x, y, z = np.asarray(config.training_spacing_mm or (1.0, 1.0, 1.0)) * (1.25, 1.0, 0.75)
    images = [rng.normal(size=(*(n + n // 4 for n in config.patch_size), predictor.channels))]
    if config.coarse_to_fine:
        extent_mm = np.multiply(config.coarse_patch_size, config.coarse_spacing_mm)
        size = np.clip(np.round(extent_mm / (x, y, z)), 1, 2 * np.asarray(config.patch_size)).astype(int)
        images += [geometry.resample(rng.normal(size=(4, 4, 4, predictor.channels)), size) for _ in range(3)]
    signature = tf.saved_model.load(str(folder)).signatures["serving_default"]
    worst, located = 0.0, 0
    for image in (values.astype(np.float32) for values in images):
        # Without orientation, as `serving_default` has none.
        volume = Volume("comparison", image, None, (x, y, z), np.eye(4), has_orientation=False)
        expected = predictor.predict(volume)
        found = signature(volume=tf.constant(image), spacing_mm=tf.constant([x, y, z], tf.float32))
        difference = found["foreground_probability"].numpy() - expected.probs[..., 1:].sum(-1)
        worst, located = max(worst, float(np.abs(difference).max())), located + expected.region.found
    if config.coarse_to_fine:
        logging.info("Compared on %d scans; in %d the coarse pass found a region.", len(images), located)
    if not worst <= _TOLERANCE:
        raise RuntimeError(
            f"Expected the saved graph to agree with the Python pipeline to {_TOLERANCE} in probability. "
            f"Received: {worst:.2g}."
        )


def save_command(config: SaveConfig) -> int:
    """Saves, and says where and how to serve it."""
    from semisam_tf.flavour import require_tensorflow

    require_tensorflow()
    folder = save(config)
    sys.stdout.write(
        f"Saved: {folder}\nServe: docker compose -f {folder.parent}/compose.yaml up\n"
        f"Ask:   python -m semisam_tf.serving.client "
        f"--url=http://localhost:8501/v1/models/{folder.parent.resolve().name} scan.nii.gz mask.nii.gz\n"
    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(SaveConfig, "semisam_tf.serving.save", sys.argv[1:] if argv is None else argv, save_command)


if __name__ == "__main__":
    sys.exit(main())
