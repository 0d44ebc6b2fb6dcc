"""From graphs to a manifest: what is said of an export is what was measured on it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.family import Family
from export.graphs import EXPORTER, OPSET

if TYPE_CHECKING:
    from export.scan_check import ScanInputs
    from semisam_tf.sam.manifest import Manifest

# Raised whenever the graphs come out differently, so that exports made before are made anew.
REVISION = "2"


class ExportError(RuntimeError):
    """The exported graphs do not compute what torch does."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to export.

    Attributes:
        opset: ONNX operator set.
        precision: Of the encoder: "fp32", "fp16" or "int8".
        verify_scan: File of a scan to compare masks on; "" for none.
        verify_slices: Slices (2D) or windows (3D) of the scan.
        scan_spacing_mm: Voxel size of the scan, where the file does not say.
        licence: Of the weights; None: as the family says.
    """

    opset: int = OPSET
    precision: str = "fp32"
    verify_scan: str = ""
    verify_slices: int = 4
    scan_spacing_mm: tuple[float, ...] | None = None
    licence: str | None = None


def exporter_name() -> str:
    """What the manifest's `exporter` says."""
    return f"{EXPORTER}, revision {REVISION}"


def created_with(*names: str) -> dict[str, str]:
    """Package -> version."""
    return {name: importlib.metadata.version(name) for name in names}


def described(family: Family, opset: int, licence: str | None = None) -> dict[str, Any]:
    """The manifest's fields, as JSON values, before anything was measured; `licence` overrules the family's.

    Raises:
        ValueError: The family's facts break a rule of the manifest.
    """
    from semisam_tf.sam.manifest import DECODER_FILE, ENCODER_FILE, FORMAT, Manifest

    tensors = {
        name: {
            role: {"name": role, "shape": shape, "dtype": "float32"} for role, shape in getattr(family, name).items()
        }
        for name in ("encoder_inputs", "encoder_outputs", "decoder_inputs", "decoder_outputs")
    }
    values = {
        **family.facts,
        **({"licence": licence} if licence else {}),
        **tensors,
        "opset": opset,
        "exporter": exporter_name(),
        "source": {"name": family.source_name, "sha256": family.source_sha256},
        "sha256": dict.fromkeys((ENCODER_FILE, DECODER_FILE), ""),
        "max_errors": {},
        "comparisons": [],
        "precision": {"encoder": "fp32", "mask_dice": None},
        "scan_check": None,
        "created_with": created_with("torch", "onnx", "onnxruntime", "numpy"),
        "format": FORMAT,
    }
    return Manifest.from_dict(json.loads(json.dumps(values))).to_dict()


def verified_manifest(
    family: Family, folder: Path, values: dict[str, Any], settings: Settings, inputs: ScanInputs | None
) -> dict[str, Any]:
    """Measures the graphs in `folder` against torch, reduces the encoder if asked to, and completes the manifest.

    Args:
        family: The published model.
        folder: Holds encoder.onnx and decoder.onnx; the encoder may be replaced.
        values: From `described`.
        settings: Precision.
        inputs: Of the scan to compare masks on; None for none.

    Raises:
        ExportError: A measure is outside its tolerance.
    """
    from export import scan_check, verify
    from semisam_tf.sam.manifest import Manifest

    comparisons = verify.compare(family, folder)
    table = verify.table(comparisons)
    logging.info("torch against ONNX Runtime:\n%s", table)
    if not verify.passes(comparisons):
        raise ExportError(
            f"Expected ONNX Runtime within {verify.TOLERANCE} of torch, relative to the output's largest magnitude; "
            f"nothing was written. Received:\n{table}"
        )
    manifest = Manifest.from_dict(values)
    check = None if inputs is None else _scan_check(family, folder, manifest, inputs)
    precision = _precision(family, folder, manifest, settings.precision, inputs)
    if settings.precision != "fp32":
        # The graphs as float32 are right; what is kept is how far those that are written differ from torch.
        comparisons = verify.compare(family, folder)
        logging.info("torch against ONNX Runtime, %s encoder:\n%s", settings.precision, verify.table(comparisons))
        check = None if inputs is None else scan_check.check_scan(family, folder, manifest, inputs)
    measured = {
        "max_errors": verify.worst(comparisons),
        "comparisons": [dataclasses.asdict(comparison) for comparison in comparisons],
        "scan_check": check,
        "precision": precision,
    }
    return Manifest.from_dict({**values, **measured, "sha256": sha256_of(folder)}).to_dict()


def sha256_of(folder: Path) -> dict[str, str]:
    """File -> sha256, of every file in `folder`."""
    from semisam_tf.sam.manifest import file_sha256

    return {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.is_file()}


def _scan_check(family: Family, folder: Path, manifest: Manifest, inputs: ScanInputs) -> dict[str, Any]:
    from export import scan_check

    found = scan_check.check_scan(family, folder, manifest, inputs)
    if found["worst_mask_dice"] is None:
        logging.warning("%s: every mask is empty or full, so that nothing was compared there.", found["scan"])
        return found
    logging.info("masks on %(scan)s, %(slices)d slices: worst Dice %(worst_mask_dice).6f", found)
    if found["worst_mask_dice"] < scan_check.LEAST_DICE:
        raise ExportError(
            f"Expected masks on a scan to agree with torch's, Dice at least {scan_check.LEAST_DICE}; nothing was "
            f"written. Received: {found}."
        )
    return found


def _precision(
    family: Family, folder: Path, manifest: Manifest, precision: str, inputs: ScanInputs | None
) -> dict[str, Any]:
    """Reduces the encoder in place, measures what that does to masks, and says so."""
    from export import precision as reduced
    from semisam_tf.sam.manifest import ENCODER_FILE

    if precision == "fp32":
        return {"encoder": precision, "mask_dice": None}
    full = folder / ".fp32"
    full.mkdir()
    bytes_before = reduced.encoder_bytes(folder)
    for path in [path for path in folder.iterdir() if path.name.startswith(ENCODER_FILE)]:
        path.rename(full / path.name)
    reduced.reduce_encoder(full / ENCODER_FILE, folder / ENCODER_FILE, precision)
    dice = reduced.mask_dice(family, full / ENCODER_FILE, folder, manifest.mask_threshold_logits, inputs)
    for path in full.iterdir():
        path.unlink()
    full.rmdir()
    if dice is None:
        raise ExportError(
            f"Expected masks to judge the {precision} encoder by; nothing was written. Received: masks that are all "
            "empty or full, as random weights draw them. Take trained weights, or --precision=fp32."
        )
    megabytes = [round(n / 2**20, 1) for n in (bytes_before, reduced.encoder_bytes(folder))]
    logging.info("%s encoder: %s MiB from %s MiB, worst mask Dice %.4f", precision, megabytes[1], megabytes[0], dice)
    if not reduced.verdict(dice, precision):
        raise ExportError(
            f"Expected masks of the {precision} encoder to have a Dice of at least {reduced.LEAST_DICE} with "
            f"float32's; nothing was written. Received: worst Dice {dice:.4f}."
        )
    return {"encoder": precision, "mask_dice": dice}
