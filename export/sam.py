"""Exports a SAM model to ONNX, and refuses to finish unless ONNX Runtime computes what torch does.

    python -m export.sam --family=lite_medsam --output=DIR

writes DIR/encoder.onnx, DIR/decoder.onnx and DIR/manifest.json. Run again, it leaves a good export alone.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import app, flags

from export.family import Family

FAMILIES = {"lite_medsam": "export.lite_medsam"}
OPSET = 17
# Raised whenever the graphs come out differently, so that exports made before are made anew.
REVISION = "1"


class ExportError(RuntimeError):
    """The exported graphs do not compute what torch does."""


def export(
    family_name: str, output: str | Path, checkpoint: str = "", random_seed: int | None = None, force: bool = False
) -> dict[str, Any]:
    """Exports, verifies, and only then puts the folder in its place.

    Args:
        family_name: Key of `FAMILIES`.
        output: Folder; replaced as a whole if it holds an older export.
        checkpoint: Weights file; "" for the packaged ones.
        random_seed: Seed of random weights; None for real ones.
        force: Export even where a good export of the same weights is there.

    Returns:
        The manifest as JSON values.

    Raises:
        ExportError: ONNX Runtime and torch differ; nothing is written.
        ValueError: `output` is there and holds something else than an export.
    """
    output = Path(output).absolute()
    _check_output(output)
    module = importlib.import_module(FAMILIES[family_name])
    if not force:
        kept = _good_export(output, family_name, module.source_sha256(checkpoint, random_seed))
        if kept is not None:
            logging.info("%s is a verified export of these weights already; --force to make it anew.", output)
            return kept
    family: Family = module.load(checkpoint, random_seed)
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{output.name}.partial.", dir=output.parent))
    try:
        write_graphs(family, staging)
        manifest = _verified_manifest(family, staging)
        (staging / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        staging.chmod(0o755)
        _replace(staging, output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return manifest


def write_graphs(family: Family, folder: Path) -> None:
    """Traces encoder and decoder into `folder`.

    By the classic exporter (`dynamo=False`): it needs no onnxscript, folds batch norm into the convolutions, and
    its graphs are what ONNX Runtime's fusions (GELU, layer norm) look for.
    """
    import numpy as np
    import torch

    arrays = family.examples(np.random.default_rng(0), ("random",))
    # The decoder is traced, not measured, here: any embeddings will do.
    arrays["embeddings"] = np.zeros((1, *family.facts["embedding_shape"]), np.float32)
    with warnings.catch_warnings():
        # The tracer warns of each Python value it freezes; `verify` compares two batch sizes to catch a wrong one.
        warnings.simplefilter("ignore")
        for part in ("encoder", "decoder"):
            inputs, outputs = getattr(family, f"{part}_inputs"), getattr(family, f"{part}_outputs")
            torch.onnx.export(
                getattr(family, part),
                tuple(torch.from_numpy(arrays[name]) for name in inputs),
                str(folder / f"{part}.onnx"),
                dynamo=False,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes={name: {0: "n"} for name in (*inputs, *outputs)},
            )


def _verified_manifest(family: Family, folder: Path) -> dict[str, Any]:
    from export import verify
    from semisam_tf.sam.manifest import DECODER_FILE, ENCODER_FILE, FORMAT, Manifest, file_sha256

    comparisons = verify.compare(family, folder)
    logging.info("torch against ONNX Runtime:\n%s", verify.table(comparisons))
    if not verify.passes(comparisons):
        raise ExportError(
            f"Expected ONNX Runtime within {verify.TOLERANCE} of torch, relative to the output's largest magnitude; "
            f"nothing was written. Received:\n{verify.table(comparisons)}"
        )
    tensors = {
        name: {
            role: {"name": role, "shape": shape, "dtype": "float32"} for role, shape in getattr(family, name).items()
        }
        for name in ("encoder_inputs", "encoder_outputs", "decoder_inputs", "decoder_outputs")
    }
    values = {
        **family.facts,
        **tensors,
        "opset": OPSET,
        "exporter": f"torch.onnx.export(dynamo=False), revision {REVISION}",
        "source": {"name": family.source_name, "sha256": family.source_sha256},
        "sha256": {name: file_sha256(folder / name) for name in (ENCODER_FILE, DECODER_FILE)},
        "max_errors": verify.worst(comparisons),
        "created_with": {name: importlib.metadata.version(name) for name in ("torch", "onnx", "onnxruntime", "numpy")},
        "format": FORMAT,
    }
    return Manifest.from_dict(json.loads(json.dumps(values))).to_dict()


def _good_export(output: Path, family_name: str, source_sha256: str) -> dict[str, Any] | None:
    """Manifest of the export that is there, if it is whole and of the same weights by the same exporter."""
    from semisam_tf.sam.manifest import load_manifest

    try:
        manifest = load_manifest(output)
    except (FileNotFoundError, ValueError):
        return None
    same = (manifest.family, manifest.source["sha256"]) == (family_name, source_sha256)
    return manifest.to_dict() if same and manifest.exporter.endswith(f"revision {REVISION}") else None


def _check_output(output: Path) -> None:
    """The folder is replaced as a whole: one that holds anything else must not be."""
    known = {"encoder.onnx", "decoder.onnx", "manifest.json"}
    others = sorted(p.name for p in output.iterdir() if p.name not in known) if output.is_dir() else []
    if others or (output.exists() and not output.is_dir()):
        raise ValueError(
            "Expected --output to be a new folder or an earlier export, which is replaced as a whole. "
            f"Received: {output} holding {others[:5] or 'a file'}."
        )


def _replace(staging: Path, output: Path) -> None:
    """A folder cannot be renamed onto one that is not empty: the old one steps aside first."""
    old = staging.with_name(staging.name + ".old")
    if output.exists():
        os.rename(output, old)
    os.rename(staging, output)
    shutil.rmtree(old, ignore_errors=True)


def summary(manifest: Mapping[str, Any], output: str) -> str:
    """What was exported, for people to read."""
    errors = ", ".join(f"{name} {error['relative']:.1e}" for name, error in manifest["max_errors"].items())
    return f"{manifest['family']} in {output}: weights {manifest['source']['name']}, max relative error {errors}\n"


def define_flags() -> None:
    """The command's flags. Not defined at import, where they would meet those of other commands."""
    flags.DEFINE_enum("family", "lite_medsam", sorted(FAMILIES), "Model to export.")
    flags.DEFINE_string("output", "", "Folder to write: encoder.onnx, decoder.onnx, manifest.json.")
    flags.DEFINE_string("checkpoint", "", "Weights file. Empty: those inside the installed package of the family.")
    flags.DEFINE_bool("random_weights", False, "Random weights instead: proves the export, segments nothing.")
    flags.DEFINE_integer("seed", 0, "Seed of the random weights.")
    flags.DEFINE_bool("force", False, "Export again even where a good export of the same weights is there.")


def main(argv: list[str]) -> int:
    """Entry point of absl."""
    values = flags.FLAGS
    if len(argv) > 1:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}.")
    if not values.output:
        raise app.UsageError("Expected --output=DIR, the folder to write.")
    if values.random_weights and values.checkpoint:
        raise app.UsageError("--random_weights and --checkpoint contradict each other: drop one.")
    logging.getLogger().setLevel(logging.INFO)
    seed = values.seed if values.random_weights else None
    try:
        manifest = export(values.family, values.output, values.checkpoint, seed, values.force)
    except (ExportError, FileNotFoundError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(summary(manifest, values.output))
    return 0


def run() -> None:
    """Parses the flags and runs. Help is answered here: absl's own exits with 1."""
    define_flags()
    if {"--help", "-help", "-h", "--h"} & set(sys.argv[1:]):
        sys.stdout.write(f"{__doc__}\n{flags.FLAGS.module_help(sys.argv[0])}\n")
        return
    app.run(main)


if __name__ == "__main__":
    run()
