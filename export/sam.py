"""Exports a SAM model to ONNX, and refuses to finish unless ONNX Runtime computes what torch does.

    python -m export.sam --family=lite_medsam --output=DIR
    python -m export.sam --family=sam_vit_b --checkpoint=sam_vit_b_01ec64.pth --output=DIR
    python -m export.sam --adopt --encoder=a.onnx --decoder=b.onnx --output=DIR

writes DIR/encoder.onnx, DIR/decoder.onnx (with FILE.data beside a graph over 1.5 GiB) and DIR/manifest.json. Run again,
it leaves a good export alone. The exporter is torch's classic one, torch.onnx.export(dynamo=False): it needs torch and
onnx, and no onnxscript. --adopt takes graphs that others made: it needs onnx and onnxruntime, and no torch.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import app, flags

from export.adopt_flags import Adoption, adoption_from, define_adopt_flags, numbers
from export.folder import check_output, good_export, replacing_folder
from export.record import ExportError, Settings, exporter_name

if TYPE_CHECKING:
    from export.scan_check import Scan, ScanInputs
    from semisam_tf.sam.manifest import Manifest

# Name -> module, and the arguments of its `load` and `source_sha256` that make it this one.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "lite_medsam": ("export.lite_medsam", {}),
    "medsam": ("export.sam_vit", {"variant": "medsam"}),
    "mobile_sam": ("export.mobile_sam", {}),
    "sam_med3d": ("export.sam_med3d", {}),
    "sam_vit_b": ("export.sam_vit", {"variant": "vit_b"}),
    "sam_vit_h": ("export.sam_vit", {"variant": "vit_h"}),
    "sam_vit_l": ("export.sam_vit", {"variant": "vit_l"}),
}
PRECISIONS = ("fp32", "fp16", "int8")
# Flags that mean nothing to graphs made elsewhere, and to models exported here.
_NOT_ADOPTED = ("checkpoint", "random_weights", "precision", "verify_scan")
_ADOPTED_ONLY = ("encoder", "decoder", *sorted({field.name for field in dataclasses.fields(Adoption)} - {"licence"}))


def export(
    family_name: str,
    output: str | Path,
    checkpoint: str = "",
    random_seed: int | None = None,
    force: bool = False,
    settings: Settings | None = None,
) -> dict[str, Any]:
    """Exports, verifies, and only then puts the folder in its place.

    Args:
        family_name: Key of `FAMILIES`.
        output: Folder; replaced as a whole if it holds an older export.
        checkpoint: Weights file; "" for the packaged ones.
        random_seed: Seed of random weights; None for real ones.
        force: Export even where a good export of the same weights is there.
        settings: Operator set, precision, the scan to compare masks on, and the licence.

    Returns:
        The manifest as JSON values.

    Raises:
        ExportError: ONNX Runtime and torch differ; nothing is written.
        FileNotFoundError: The checkpoint or the scan is not there.
        ValueError: `output` is there and holds something else than an export, or cannot be written; the checkpoint is
            not one of this family; the operator set is not to be had; the scan is none or lacks its spacing.
    """
    settings = settings or Settings()
    output = Path(output).resolve()
    check_output(output)
    scan = _scan(settings)
    module_name, arguments = FAMILIES[family_name]
    module = importlib.import_module(module_name)
    if not force:
        kept = good_export(
            output,
            lambda manifest: (
                _is_same(manifest, family_name, settings, scan)
                and manifest.source["sha256"] == module.source_sha256(checkpoint, random_seed, **arguments)
            ),
        )
        if kept is not None:
            logging.info("%s is a verified export of these weights already; --force to make it anew.", output)
            return kept
    with replacing_folder(output) as staging:
        manifest = _export(module, arguments, checkpoint, random_seed, staging, settings, scan)
        write_manifest(manifest, staging)
    return manifest


def _scan(settings: Settings) -> Scan | None:
    if not settings.verify_scan:
        return None
    from export.scan_check import read_scan

    return read_scan(settings.verify_scan, settings.scan_spacing_mm)


def _is_same(manifest: Manifest, family_name: str, settings: Settings, scan: Scan | None) -> bool:
    """Whether an export is what would be made now, but for the weights."""
    made = (manifest.family, manifest.exporter, manifest.opset, manifest.precision["encoder"])
    wanted = (family_name, exporter_name(), settings.opset, settings.precision)
    if made != wanted or settings.licence not in (None, manifest.licence):
        return False
    return scan is None or _is_checked_on(manifest, scan, settings.verify_slices)


def _is_checked_on(manifest: Manifest, scan: Scan, count: int) -> bool:
    from export.scan_check import picture_count

    found = manifest.scan_check
    return found is not None and (found["scan"], found["slices"]) == (scan.name, picture_count(scan, manifest, count))


def _export(
    module: Any,
    arguments: dict[str, Any],
    checkpoint: str,
    random_seed: int | None,
    folder: Path,
    settings: Settings,
    scan: Scan | None,
) -> dict[str, Any]:
    from export.graphs import check_opset, write_graphs
    from export.record import described, verified_manifest

    # Whatever can be wrong with the arguments comes before what takes minutes.
    check_opset(settings.opset)
    family = module.load(checkpoint, random_seed, **arguments)
    values = described(family, settings.opset, settings.licence)
    inputs = None if scan is None else _inputs(scan, values, settings.verify_slices)
    write_graphs(family, folder, settings.opset)
    return verified_manifest(family, folder, values, settings, inputs)


def _inputs(scan: Scan, values: dict[str, Any], count: int) -> ScanInputs:
    from export.scan_check import scan_inputs
    from semisam_tf.sam.manifest import Manifest

    return scan_inputs(scan, Manifest.from_dict(values), count)


def write_manifest(manifest: Mapping[str, Any], folder: Path) -> None:
    """Writes manifest.json into a folder that is not in its place yet."""
    text = json.dumps(manifest, indent=2, allow_nan=False)
    (folder / "manifest.json").write_text(text + "\n", encoding="utf-8")


def summary(manifest: Mapping[str, Any], output: str) -> str:
    """What was exported, for people to read."""
    precision, scan = manifest["precision"], manifest["scan_check"]
    parts = [f"{manifest['family']} in {output}: weights {manifest['source']['name']}"]
    if manifest["max_errors"]:
        errors = ", ".join(f"{name} {error['relative']:.1e}" for name, error in manifest["max_errors"].items())
        parts.append(f"max relative error {errors}")
    if scan is not None and scan["worst_mask_dice"] is None:
        parts.append(f"masks on {scan['scan']} all empty or full, nothing compared")
    elif scan is not None:
        parts.append(f"worst mask Dice on {scan['scan']} {scan['worst_mask_dice']:.6f}")
    if precision["mask_dice"] is not None:
        parts.append(f"{precision['encoder']} encoder, worst mask Dice against fp32 {precision['mask_dice']:.4f}")
    return ", ".join(parts) + "\n"


def define_flags() -> None:
    """The command's flags. Not defined at import, where they would meet those of other commands."""
    flags.DEFINE_enum("family", "lite_medsam", sorted(FAMILIES), "Model to export.")
    flags.DEFINE_string("output", "", "Folder to write: encoder.onnx, decoder.onnx, manifest.json.")
    flags.DEFINE_string("checkpoint", "", "Weights file. Empty: those inside the installed package of lite_medsam.")
    flags.DEFINE_bool("random_weights", False, "Random weights instead: proves the export, segments nothing.")
    flags.DEFINE_integer("seed", 0, "Seed of the random weights.")
    flags.DEFINE_bool("force", False, "Export again even where a good export of the same weights is there.")
    flags.DEFINE_integer("opset", Settings.opset, "ONNX operator set, 17 to 20.")
    flags.DEFINE_enum(
        "precision",
        "fp32",
        PRECISIONS,
        "Of the encoder. fp16 and int8 are compared with fp32 by the Dice of their masks: below 0.995 warned of, below "
        "0.90 refused.",
    )
    flags.DEFINE_string(
        "verify_scan", "", "Scan (HDF5 with `image`, NIfTI, NRRD) on which ONNX Runtime's masks are compared too."
    )
    flags.DEFINE_integer("verify_slices", Settings.verify_slices, "Slices (in 3D: windows) of that scan.", 1)
    flags.DEFINE_list("scan_spacing_mm", None, "Voxel size X,Y,Z of that scan, where the file does not say.")
    define_adopt_flags()


def _check_mode(values: flags.FlagValues) -> None:
    """Refuses flags that would be passed over in silence."""
    if values.adopt:
        strangers = [name for name in _NOT_ADOPTED if values[name].value != values[name].default]
        wanted = "--adopt without the flags of models that are exported here"
    else:
        strangers = [name for name in _ADOPTED_ONLY if values[name].present]
        wanted = "--adopt with flags that go with --adopt alone, for graphs made elsewhere"
    if strangers:
        raise ValueError(f"Expected {wanted}. Received: {', '.join(f'--{name}' for name in strangers)}.")


def _from_flags(values: flags.FlagValues) -> dict[str, Any]:
    _check_mode(values)
    if values.adopt:
        from export.adopt import adopt

        return adopt(values.encoder, values.decoder, values.output, adoption_from(values))
    if values.random_weights and values.checkpoint:
        raise ValueError("--random_weights and --checkpoint contradict each other: drop one.")
    spacing = numbers(values, "scan_spacing_mm", 3)
    if spacing and min(spacing) <= 0:
        raise ValueError(f"Expected --scan_spacing_mm to be above 0. Received: --scan_spacing_mm={spacing}.")
    settings = Settings(
        values.opset, values.precision, values.verify_scan, values.verify_slices, spacing, values.licence or None
    )
    seed = values.seed if values.random_weights else None
    return export(values.family, values.output, values.checkpoint, seed, values.force, settings)


def _said_of(error: Exception) -> str:
    """What went wrong: one line, but for an export's table of errors."""
    if isinstance(error.__cause__, ImportError):
        error = error.__cause__
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, ImportError):
        extras = "cpu,export" if "onnxruntime" in f"{error.name} {line}" else "export"
        return f"Expected the exporter's packages: pip install 'semisam-tf[{extras}]'. Received: {line}"
    if isinstance(error, MemoryError):
        return f"Expected memory enough for the export; nothing was written. Received: {line}"
    if isinstance(error, RuntimeError) and not isinstance(error, ExportError):
        return f"Expected the export to run; nothing was written. Received: {type(error).__name__}: {line}"
    return str(error)


def main(argv: list[str]) -> int:
    """Entry point of absl."""
    values = flags.FLAGS
    logging.getLogger().setLevel(logging.INFO)
    # A polite kill cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        if len(argv) > 1:
            raise ValueError(f"Expected flags only. Received: {argv[1:]}.")
        if not values.output:
            raise ValueError("Expected --output=DIR, the folder to write.")
        manifest = _from_flags(values)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted: nothing was written\n")
        return 130
    except (ImportError, MemoryError, OSError, RuntimeError, ValueError) as error:
        sys.stderr.write(f"error: {_said_of(error)}\n")
        return 1
    sys.stdout.write(summary(manifest, values.output))
    return 0


def run() -> None:
    """Parses the flags and runs. Help and wrong flags are answered here: absl's own answers are long."""
    define_flags()
    if {"--help", "-help", "-h", "--h"} & set(sys.argv[1:]):
        groups = [flags.FLAGS.module_help(module) for module in (sys.argv[0], "export.adopt_flags")]
        sys.stdout.write("\n".join([__doc__ or "", *groups]) + "\n")
        return
    app.run(main, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    run()
