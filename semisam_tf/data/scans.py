"""Scans to predict: finding them below a path, reading them, and writing maps on their grid in their type of file."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from semisam_tf.data.hdf5 import replacing_h5
from semisam_tf.data.itk import IMAGE_SUFFIXES, dicom_series, is_dicom, read_series
from semisam_tf.data.volumes import H5_NAME, CaseFiles, Volume, load_volume, volume_of, write_on_grid

_H5_SUFFIXES = (".h5", ".hdf5")
SCAN_SUFFIXES = (*IMAGE_SUFFIXES, ".mhd", *_H5_SUFFIXES)
# Formats of one file each: a header that names a second file beside it cannot be replaced in one step.
MAP_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", *_H5_SUFFIXES)
# A DICOM mask would be a segmentation object with coded anatomy, which a network does not know; NIfTI keeps the grid.
DICOM_MAP_SUFFIX = ".nii.gz"
_ONE_FILE = {".nhdr": ".nrrd", ".mhd": ".mha"}


@dataclass(frozen=True)
class Scan:
    """One scan on disk.

    Attributes:
        scan_id: Name that its outputs get.
        path: Its file; of a DICOM series the folder.
        series_uid: SeriesInstanceUID of a DICOM series; None for every other type.
    """

    scan_id: str
    path: Path
    series_uid: str | None = None

    @property
    def map_suffix(self) -> str:
        """Ending of a map of the scan's own type of file: .nrrd for .nhdr, .mha for .mhd, .nii.gz for DICOM."""
        suffix = DICOM_MAP_SUFFIX if self.series_uid is not None else suffix_of(self.path, SCAN_SUFFIXES)
        return _ONE_FILE.get(suffix, suffix)


def suffix_of(path: str | os.PathLike[str], known: Sequence[str]) -> str:
    """The one of `known` that the file name ends in, the longest if several; "" if none."""
    return max((suffix for suffix in known if Path(path).name.endswith(suffix)), key=len, default="")


def find_scans(path: str | os.PathLike[str]) -> list[Scan]:
    """Finds the scans that `path` stands for, sorted by name; opens none of them.

    A file is one scan. A folder is a case folder as training reads (`image.*` or `mri_norm2.h5`), a DICOM series (or
    several, each a scan), or holds such folders, files of scans, or `images/` with files of scans.

    Raises:
        FileNotFoundError: There is nothing at `path`, or no scan in it.
        ValueError: The file is of no known type, or two scans have one name.
    """
    path = Path(path)
    if path.is_file():
        if not suffix_of(path, SCAN_SUFFIXES):
            raise ValueError(
                f"Expected a scan that ends in one of {', '.join(SCAN_SUFFIXES)}; of a DICOM series give the folder. "
                f"Received: {path}."
            )
        return [_scan_of_file(path)]
    if not path.is_dir():
        raise FileNotFoundError(f"Expected a scan or a folder of scans. Received: {path}, which does not exist.")
    scans = _scans_of_case(path)
    if not scans:
        scans = _scans_of_files(path) + _scans_of_files(path / "images")
        for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
            scans += _scans_of_case(folder)
    if not scans:
        raise FileNotFoundError(
            f"Expected scans in {path}: files ending in {', '.join(SCAN_SUFFIXES)}, case folders with image.* or "
            f"{H5_NAME}, or DICOM series. Received: a folder with none of them."
        )
    twice = sorted(name for name, n in Counter(scan.scan_id for scan in scans).items() if n > 1)
    if twice:
        raise ValueError(
            f"Expected one scan of a name in {path}, for their masks have it too. Received twice: {twice}."
        )
    return sorted(scans, key=lambda scan: scan.scan_id)


def load_scan(scan: Scan, default_spacing_mm: Sequence[float] | None = None) -> Volume:
    """Reads a scan, without label.

    Raises:
        ValueError: It is damaged, or not what it should be; names the file.
    """
    if scan.series_uid is not None:
        return volume_of(scan.scan_id, read_series(scan.path, scan.series_uid), None, scan.path)
    layout = "h5" if suffix_of(scan.path, _H5_SUFFIXES) else "flat"
    files = CaseFiles(scan.scan_id, scan.path, None, layout)
    return load_volume(files, with_label=False, default_spacing_mm=default_spacing_mm)


def prepared_from(files: CaseFiles) -> Volume:
    """The scan that `semisam_tf.prepare` made a case of, as its own file has it, without label; the first channel's.

    Raises:
        ValueError: The case was not prepared, has no orientation, or its scan is not where it was; says what to do.
    """
    fix = "Write the masks on the grid of the data folder: --nifti_grid=data."
    paths: list[str] = []
    if files.layout == "h5":
        with h5py.File(files.image, "r") as file:
            paths = json.loads(file.attrs.get("source", "[]")) if "affine" in file.attrs else []
    if not paths:
        raise ValueError(
            f"--nifti_grid=source: expected a case that prepare made of a scan with an orientation in {files.image}. "
            f"Received: one that does not say where it is from. {fix}"
        )
    if not Path(paths[0]).exists():
        raise ValueError(
            f"--nifti_grid=source: expected the scan that {files.image} was made of at {paths[0]}. Received: nothing "
            f"is there. {fix}"
        )
    found = find_scans(paths[0])
    if len(found) > 1:
        raise ValueError(
            f"--nifti_grid=source: expected one scan in {paths[0]}. Received: {len(found)}, and {files.image} does not "
            f"say which it was made of. {fix}"
        )
    return load_scan(found[0])


def save_map(path: str | os.PathLike[str], values: np.ndarray, volume: Volume, dataset: str) -> None:
    """Writes [X, Y, Z] in the geometry of `volume`; the suffix of `path`, one of MAP_SUFFIXES, picks the format.

    Args:
        dataset: Name of the dataset in an HDF5 file, which gets `spacing_mm` and, where the scan has one, `affine`
            as attributes. UA-MT's name for a mask is "label".
    """
    if values.shape != volume.size:
        raise ValueError(
            f"Expected a map on the grid of scan {volume.case_id!r}, {volume.size}. Received: shape={values.shape}."
        )
    if not suffix_of(path, _H5_SUFFIXES):
        write_on_grid(path, values, volume)
        return
    with replacing_h5(path) as file:
        file.attrs["spacing_mm"] = np.asarray(volume.spacing_mm, np.float64)
        if volume.has_orientation:
            file.attrs["affine"] = volume.affine
        file.create_dataset(dataset, data=values, compression="gzip", compression_opts=4)


def _scan_of_file(path: Path) -> Scan:
    return Scan(path.name.removesuffix(suffix_of(path, SCAN_SUFFIXES)), path)


def _scans_of_files(folder: Path) -> list[Scan]:
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.is_file() and suffix_of(path, SCAN_SUFFIXES)]
    # Hidden files are no scans: macOS keeps a "._scan.nii.gz" beside every scan on a foreign disk.
    return [_scan_of_file(path) for path in found if not path.name.startswith(".")]


def _scans_of_case(folder: Path) -> list[Scan]:
    """The scan of a case folder, the series of a DICOM folder, or nothing."""
    # The name of a link is its own, not that of what it leads to.
    name = Path(os.path.abspath(folder)).name
    names = (H5_NAME, *(f"image{suffix}" for suffix in SCAN_SUFFIXES))
    images = [path for path in map(folder.joinpath, names) if path.is_file()]
    if images:
        return [Scan(name, path) for path in images]
    if not any(is_dicom(path) for path in folder.iterdir() if not suffix_of(path, SCAN_SUFFIXES)):
        return []
    # A folder of slices that no series can be made of stays a scan, so that it is reported when it is read.
    uids = dicom_series(folder) or [""]
    return [Scan(name if len(uids) == 1 else f"{name}_{uid}", folder, uid) for uid in uids]
