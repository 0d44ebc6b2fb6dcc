"""Segments scans with a finished run: `python -m semisam_tf.predict --model=DIR --input=SCAN --output=MASK`."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semisam_tf.config import WINDOW_BLEND, WINDOW_BLENDS, WINDOW_OVERLAP
from semisam_tf.options import OptionError, option, run_command

if TYPE_CHECKING:
    from semisam_tf.data.scans import Scan
    from semisam_tf.inference.outputs import OutputFiles
    from semisam_tf.inference.predictor import Predictor

FAST_OVERLAP = 0.25


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Segments scans with a finished run: a mask in each scan's own grid, orientation and type of file."""

    model: str = option("", "Folder of a finished training run.")
    input: str = option(
        "",
        "A scan (.nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd, .h5, .hdf5), the folder of a DICOM series, or a folder of "
        "scans, of case folders as training reads, or of DICOM series. A scan of any orientation and spacing is turned "
        "and resampled to those of training.",
    )
    output: str = option(
        "",
        "Mask to write, or folder for the masks: the class of every voxel of the scan's own grid, which is the argmax "
        "of the probabilities interpolated linearly to that grid. Type of file as the scan's (.nrrd for .nhdr, .mha "
        "for .mhd, .nii.gz for DICOM, whose segmentation objects need coded anatomy), or by the ending given here.",
    )
    which: str = option("auto", "Weights to use; auto: as the run decided.", choices=("auto", "student", "teacher"))
    probabilities: bool = option(
        False, "Also write the foreground's probability, float32, as <mask>_probs; of more classes one file each."
    )
    preview: bool = option(False, "Also write a PNG: three slices with the mask's outline.")
    summary: str = option(
        "", "Millilitres per class, files and failures of all scans: .json, or .csv for a spreadsheet. Empty: "
        "summary.json in the output folder; of a single mask <mask>_summary.json beside it."
    )  # fmt: skip
    overlap: float = option(
        WINDOW_OVERLAP, "Share of a sliding window that neighbours have in common.", unit="0..1, below 1"
    )
    blend: str = option(
        WINDOW_BLEND,
        "How overlapping windows are averaged: uniform is the plain mean, gaussian trusts the middle of a window most.",
        choices=WINDOW_BLENDS,
    )
    fast: bool = option(False, f"The same as --overlap={FAST_OVERLAP}: fewer windows.")
    whole_scan: bool = option(
        False,
        "The network sees the whole scan at once: faster than --fast. For runs with --normalisation=batch or none.",
    )
    tta: bool = option(
        False,
        "Average each window's probabilities over its flips along the axes that training flipped: 4 times the time for "
        "two axes, 8 for three. Refused where training flipped none.",
    )
    device: str = option("auto", "auto, cpu, gpu or gpu:N. auto: the GPU where TensorFlow sees one.")
    default_spacing_mm: tuple[float, ...] = option(
        (), "Voxel spacing x,y,z of files that store none. Empty: as in training.", unit="mm"
    )


def check(config: PredictConfig) -> float:
    """Returns the overlap; raises OptionError for flags that are missing or contradict each other."""
    for name in ("model", "input", "output"):
        if not getattr(config, name):
            raise OptionError(f"--{name} is needed (--help lists every flag).")
    if config.fast and config.overlap != WINDOW_OVERLAP:
        raise OptionError(
            f"--fast is --overlap={FAST_OVERLAP}: give one of them. Received: --overlap={config.overlap}."
        )
    if config.whole_scan and (config.fast or (config.overlap, config.blend) != (WINDOW_OVERLAP, WINDOW_BLEND)):
        raise OptionError("--whole_scan has no windows to overlap: leave out --fast, --overlap and --blend.")
    if not 0 <= config.overlap < 1:
        raise OptionError(f"--overlap: expected a share from 0 to below 1. Received: {config.overlap}.")
    if config.summary and not config.summary.endswith((".json", ".csv")):
        raise OptionError(f"--summary: expected a name ending in .json or .csv. Received: {config.summary!r}.")
    if len(config.default_spacing_mm) not in (0, 3):
        raise OptionError(f"--default_spacing_mm: expected three values x,y,z. Received: {config.default_spacing_mm}.")
    return FAST_OVERLAP if config.fast else config.overlap


def predict(config: PredictConfig) -> dict[str, Any]:
    """Segments every scan and writes the summary. Goes on after a scan that fails.

    Returns:
        The summary. "scans": an entry per mask; "failures": "input" and "error" of each scan without one.

    Raises:
        ValueError, OSError: No scans, an output that cannot be, or no finished run: before the first prediction.
    """
    overlap = check(config)
    from absl import logging

    from semisam_tf.data.scans import find_scans
    from semisam_tf.inference.device import choose_device
    from semisam_tf.inference.outputs import plan_outputs
    from semisam_tf.inference.predictor import load_predictor
    from semisam_tf.inference.run_folder import read_run
    from semisam_tf.inference.summary import write_summary

    scans = find_scans(config.input)
    files, summary = plan_outputs(
        scans,
        Path(config.output),
        summary=config.summary,
        n_classes=read_run(Path(config.model))["config"].n_classes,
        probabilities=config.probabilities,
        preview=config.preview,
    )
    choose_device(config.device)
    predictor, which = load_predictor(
        Path(config.model), config.which, overlap, tta=config.tta, blend=config.blend, whole_scan=config.whole_scan
    )
    if predictor.orientation is None:
        logging.warning("The run records no orientation: scans are taken in the order of their files' axes.")
    report = {
        "model": config.model,
        "which": which,
        "orientation": predictor.orientation,
        "overlap": overlap,
        "blend": config.blend,
        "whole_scan": config.whole_scan,
        "tta": config.tta,
        **predict_scans(config, predictor, scans, files),
    }
    write_summary(summary, report)
    return report | {"summary": str(summary)}


def predict_scans(
    config: PredictConfig, predictor: Predictor, scans: Sequence[Scan], files: Sequence[OutputFiles]
) -> dict[str, list[dict[str, Any]]]:
    """Segments one scan after the other, bad ones too. Returns the lists "scans" and "failures" of the summary."""
    from absl import logging

    done, failures = [], []
    for number, (scan, planned) in enumerate(zip(scans, files, strict=True), start=1):
        logging.info("%d/%d  %s", number, len(scans), scan.path)
        try:
            done.append(predict_scan(config, predictor, scan, planned))
        except Exception as error:  # whatever one file does, the others get their masks
            reason = f"{type(error).__name__}: {error}"
            logging.error("%s failed: %s", scan.path, reason)
            failures.append({"input": str(scan.path), "error": reason})
    return {"scans": done, "failures": failures}


def predict_scan(config: PredictConfig, predictor: Predictor, scan: Scan, files: OutputFiles) -> dict[str, Any]:
    """Reads, segments and writes one scan. Returns its entry in the summary.

    Raises:
        ValueError, OSError, RuntimeError: The scan cannot be read or is not what the network takes.
    """
    from absl import logging

    from semisam_tf.data.scans import load_scan, save_map
    from semisam_tf.inference.outputs import save_preview, save_probabilities, volumes_ml

    began_s = time.monotonic()
    volume = load_scan(scan, config.default_spacing_mm or predictor.config.default_spacing_mm or None)
    if predictor.orientation is not None and not volume.has_orientation:
        logging.warning("%s stores no orientation: taken in the order of its axes, untested.", scan.path)
    prediction = predictor.predict(volume, _progress_bar())
    n_classes = predictor.config.n_classes
    entry: dict[str, Any] = {
        "scan": scan.scan_id,
        "input": str(scan.path),
        "mask": str(files.mask),
        "volume_ml": volumes_ml(prediction.mask, volume.spacing_mm, n_classes),
        "size_vox": list(volume.size),
        "spacing_mm": list(volume.spacing_mm),
    }
    if predictor.config.coarse_to_fine:
        region = prediction.region
        entry["region"] = {"low_vox": list(region.low), "high_vox": list(region.high), "found": region.found}
    if not prediction.mask.any():
        logging.warning("%s: nothing found, the mask is empty.", scan.path)
    save_map(files.mask, prediction.mask, volume, "label")
    if config.probabilities:
        maps = files.probabilities(n_classes)
        save_probabilities(maps, prediction, volume)
        entry["probabilities"] = {str(k): str(path) for k, path in maps.items()}
    if config.preview:
        title = f"{scan.scan_id}\n{_millilitres(entry['volume_ml'])}"
        save_preview(files.preview, prediction.mask, volume, title)
        entry["preview"] = str(files.preview)
    return entry | {"duration_s": round(time.monotonic() - began_s, 2)}


def _progress_bar() -> Callable[[int, int], None] | None:
    """Draws how many windows of a scan are done, where somebody looks."""
    if not sys.stdout.isatty():
        return None
    import keras

    bar = keras.utils.Progbar(None, unit_name="window")

    def on_window(done: int, total: int) -> None:
        bar.target = total
        bar.update(done, finalize=done == total)

    return on_window


def _millilitres(volume_ml: dict[str, float]) -> str:
    if len(volume_ml) == 1:
        return f"{volume_ml['1']:.2f} ml"
    return ", ".join(f"class {k}: {value:.2f} ml" for k, value in volume_ml.items())


def predict_command(config: PredictConfig) -> int:
    """Segments and prints the volumes; 1 if a scan failed."""
    check(config)
    from semisam_tf.flavour import require_tensorflow

    require_tensorflow()
    report = predict(config)
    for entry in report["scans"]:
        sys.stdout.write(f"{entry['scan']}: {_millilitres(entry['volume_ml'])}  {entry['mask']}\n")
    sys.stdout.write(f"Summary: {report['summary']}\n")
    failures = report["failures"]
    if failures:
        sys.stderr.write(f"error: {len(failures)} of {len(failures) + len(report['scans'])} scans failed:\n")
        sys.stderr.writelines(f"  {failure['input']}: {failure['error']}\n" for failure in failures)
        return 1
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(PredictConfig, "semisam_tf.predict", sys.argv[1:] if argv is None else argv, predict_command)


if __name__ == "__main__":
    sys.exit(main())
