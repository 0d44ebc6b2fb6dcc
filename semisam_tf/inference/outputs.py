"""What is written for a predicted scan: mask, probabilities, preview, and how large the organ is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from semisam_tf.data.orientation import AxisOrder, axis_code, axis_order
from semisam_tf.data.scans import MAP_SUFFIXES, Scan, save_map, suffix_of
from semisam_tf.data.volumes import Volume
from semisam_tf.inference.picture import CasePicture, save_rows
from semisam_tf.inference.predictor import Prediction

# Axes that grow to the left, to the front and upwards: drawn as radiologists look, with the right side on the left.
_RADIOLOGICAL = "LAS"
_PLANES = ("sagittal, slice", "coronal, slice", "axial, slice")


@dataclass(frozen=True)
class OutputFiles:
    """Where the files of one scan go: `mask` is whole, the others are made of its name without suffix."""

    mask: Path

    @property
    def _suffix(self) -> str:
        return suffix_of(self.mask, MAP_SUFFIXES)

    def beside(self, ending: str) -> Path:
        """A file in the mask's folder: its name without suffix, then `ending`."""
        return self.mask.with_name(self.mask.name.removesuffix(self._suffix) + ending)

    def probabilities(self, n_classes: int) -> dict[int, Path]:
        """Foreground class -> file: <name>_probs of two classes, <name>_probs_class<k> of more."""
        if n_classes == 2:
            return {1: self.beside(f"_probs{self._suffix}")}
        return {k: self.beside(f"_probs_class{k}{self._suffix}") for k in range(1, n_classes)}

    @property
    def preview(self) -> Path:
        """The picture."""
        return self.beside(".png")


def plan_outputs(
    scans: list[Scan],
    output: Path,
    *,
    summary: str = "",
    n_classes: int = 2,
    probabilities: bool = False,
    preview: bool = False,
) -> tuple[list[OutputFiles], Path]:
    """The files of each scan, and the summary's: every path that will be written is known and checked.

    The mask is `output` itself for a single scan if `output` is named like a map, else in the folder `output`. The
    summary is `summary`, else <mask>_summary.json (<mask>.json is a BIDS sidecar), else summary.json in the folder.

    Raises:
        ValueError: Several scans but one file; a name of no known type; a folder that is a file; a file that would
            replace a scan, or be written twice.
    """
    files, is_file = _masks(scans, output)
    beside = files[0].beside("_summary.json") if is_file else output / "summary.json"
    summary_path = Path(summary) if summary else beside
    written = [summary_path]
    for planned in files:
        written += [planned.mask, *(planned.probabilities(n_classes).values() if probabilities else ())]
        written += [planned.preview] if preview else []
    inputs, seen = {scan.path.resolve() for scan in scans}, set()
    for path in written:
        resolved = path.resolve()
        if resolved in inputs:
            raise ValueError(f"Expected another place than the scans' for every output. Received: {path}, a scan.")
        if resolved in seen:
            raise ValueError(
                f"Expected outputs of different names. Received: {path}, which would be written twice; rename a scan, "
                "or give another --summary."
            )
        seen.add(resolved)
    return files, summary_path


def _masks(scans: list[Scan], output: Path) -> tuple[list[OutputFiles], bool]:
    """The files of each scan, and whether `output` is the mask of a single one."""
    is_file = bool(suffix_of(output, MAP_SUFFIXES)) and not output.is_dir()
    if is_file and len(scans) > 1:
        raise ValueError(f"--output: expected a folder for {len(scans)} scans. Received: {output}.")
    if not is_file and len(scans) == 1 and output.suffix and not output.is_dir():
        raise ValueError(
            f"--output: expected a folder, or a file that ends in one of {', '.join(MAP_SUFFIXES)}. "
            f"Received: {output}; make the folder first if its name has a dot."
        )
    in_the_way = next((path for path in (output, *output.parents) if path.is_file()), None)
    if not is_file and in_the_way is not None:
        raise ValueError(f"--output: expected a folder. Received: {output}, where {in_the_way} is a file.")
    files = [OutputFiles(output if is_file else output / (scan.scan_id + scan.map_suffix)) for scan in scans]
    return files, is_file


def volumes_ml(mask: np.ndarray, spacing_mm: tuple[float, float, float], n_classes: int) -> dict[str, float]:
    """Millilitres of each foreground class of a mask [X, Y, Z]."""
    voxel_ml = float(np.prod(spacing_mm)) / 1000.0
    return {str(k): round(int(np.count_nonzero(mask == k)) * voxel_ml, 6) for k in range(1, n_classes)}


def save_probabilities(files: dict[int, Path], prediction: Prediction, volume: Volume) -> None:
    """Writes the probability of each class in `files`, float32 [X, Y, Z]."""
    for k, path in files.items():
        save_map(path, prediction.probs[..., k], volume, "probs")


def view_of(volume: Volume) -> tuple[AxisOrder, tuple[str, str, str]]:
    """How a scan is turned to be looked at: as radiologists do where its file says how it lies, else not at all.

    Returns:
        The order to apply, and the names of the cuts across the axes that it leads to.
    """
    if not volume.has_orientation:
        return AxisOrder(), CasePicture.cut_names
    return axis_order(axis_code(volume.affine), _RADIOLOGICAL), _PLANES


def save_preview(path: Path, mask: np.ndarray, volume: Volume, title: str) -> None:
    """Draws the mask's outline on three slices through its middle, in the radiological view where that is known."""
    order, names = view_of(volume)
    if volume.has_orientation:
        title += "\npatient's right at the left"
    save_rows(path, [CasePicture(title, order.apply_to(volume), order.apply(mask), names)])
