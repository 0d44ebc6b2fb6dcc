"""NIfTI, NRRD and MetaImage files, and series of DICOM slices, through SimpleITK."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from semisam_tf.atomic import full_disk, replacing
from semisam_tf.data import nifti

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha")
# ITK's world axes point left, posterior, superior; ours (NIfTI's) right, anterior, superior.
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])
# Tags that GDCM takes a slice's pixel size from, and the sequence that holds it in files of many frames.
_DICOM_SPACING = ("0028|0030", "0018|1164", "0018|2010", "5200|9229", "5200|9230")
# Slices may be this share of their distance off an even grid: headers keep three or four digits.
_SLICE_TOLERANCE = 0.01


class Stored(NamedTuple):
    """What a file holds: `array` [X, Y, Z, C] in the file's own dtype; the rest as in `volumes.Volume`."""

    array: np.ndarray
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray
    has_orientation: bool
    nifti_header: nifti.Header | None = None


class _Said(NamedTuple):
    """What a file's header says of its grid, where ITK would put in what is missing."""

    has_spacing: bool
    has_orientation: bool
    nifti_header: nifti.Header | None = None


def read_image(path: Path, default_spacing_mm: Sequence[float] | None) -> Stored:
    """Reads one file.

    Args:
        default_spacing_mm: Spacing of files that store none.

    Raises:
        ValueError: The file is damaged, or no 3D image, or has no spacing and there is no default; names it.
    """
    said = _said(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"Expected a readable NIfTI / NRRD / MetaImage file: {path} is not ({reason}).") from error
    # ITK says 1 mm where there is no spacing.
    spacing_mm = image.GetSpacing()[:3] if said.has_spacing else default_spacing(path, default_spacing_mm)
    return _stored(image, spacing_mm, path, said.has_orientation)._replace(nifti_header=said.nifti_header)


def stores_grid(path: Path) -> tuple[bool, bool]:
    """Whether a file stores a voxel spacing, and which way its axes run through the body.

    Raises:
        ValueError: A NIfTI file is cut or damaged; names it.
    """
    said = _said(path)
    return said.has_spacing, said.has_orientation


def _said(path: Path) -> _Said:
    if path.name.endswith(nifti.NIFTI_SUFFIXES):
        header = nifti.read_header(path)
        sizes = np.asarray(header.pixdim)
        return _Said(bool(np.isfinite(sizes).all() and sizes.all()), header.has_orientation, header)
    if path.name.endswith((".nrrd", ".nhdr")):
        fields = {name.lower() for name in _fields(path, b":")}
        return _Said(bool(fields & {b"spacings", b"space directions"}), {b"space", b"space directions"} <= fields)
    if path.name.endswith((".mha", ".mhd")):
        fields = _fields(path, b"=", last=b"ElementDataFile")
        # The names that MetaIO takes for one; case counts.
        turns = {b"TransformMatrix", b"Rotation", b"Orientation"}
        return _Said(bool(fields & {b"ElementSpacing", b"ElementSize"}), bool(fields & turns))
    return _Said(True, True)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, by its name or by the mark behind its preamble."""
    if not path.is_file():
        return False
    if path.name.lower().endswith(".dcm"):
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def dicom_series(folder: Path) -> list[str]:
    """SeriesInstanceUIDs of the slices in a folder; empty where there is none that can be read."""
    return list(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))


def series_files(folder: Path, series_uid: str | None) -> list[str]:
    """The slices of a series in their order; empty where there is none that can be read."""
    return list(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series_uid)) if series_uid else []


def read_series(folder: Path, series_uid: str) -> Stored:
    """Reads one series of DICOM slices; Z runs along the slices' normal.

    Raises:
        ValueError: The slices are damaged, without a pixel size, unevenly spaced (one is missing, say) or sheared (a
            tilted gantry).
    """
    names = series_files(folder, series_uid)
    if not names:
        raise ValueError(f"Expected a DICOM series with a SeriesInstanceUID in {folder}. Received: no readable slice.")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(names)
    reader.MetaDataDictionaryArrayUpdateOn()
    try:
        image = reader.Execute()
        positions = [_position(reader, n) for n in range(len(names))]
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"Expected a readable DICOM series: {folder} is not ({reason}).") from error
    if not any(reader.HasMetaDataKey(0, tag) for tag in _DICOM_SPACING):
        raise ValueError(f"Expected a pixel size (PixelSpacing) in {folder}. Received: slices with none; add it.")
    _check_slices(image, positions, folder)
    return _stored(image, image.GetSpacing()[:3], folder, has_orientation=True)


def _position(reader: sitk.ImageSeriesReader, index: int) -> list[float] | None:
    """ImagePositionPatient of a slice, in millimetres; None where it has none."""
    key = "0020|0032"
    if not reader.HasMetaDataKey(index, key):
        return None
    return [float(part) for part in reader.GetMetaData(index, key).split("\\")]


def _check_slices(image: sitk.Image, positions: list[list[float] | None], folder: Path) -> None:
    """Refuses slices whose grid ITK can only guess at: millilitres and masks would be wrong."""
    known = [position for position in positions if position is not None]
    if image.GetDimension() != 3 or len(known) < 2:
        return
    if len(known) < len(positions):
        raise ValueError(
            f"Expected a position (ImagePositionPatient) in every slice of {folder}. Received: "
            f"{len(positions) - len(known)} of {len(positions)} slices without one."
        )
    steps = np.diff(np.asarray(known), axis=0)
    step_mm = np.linalg.norm(steps, axis=1)
    if np.abs(steps - steps.mean(axis=0)).max() > _SLICE_TOLERANCE * step_mm.min():
        raise ValueError(
            f"Expected evenly spaced slices in {folder}. Received: slices {step_mm.min():.4g} to {step_mm.max():.4g} "
            "mm apart; one may be missing or there twice."
        )
    direction = np.asarray(image.GetDirection()).reshape(3, 3)
    normal = np.cross(direction[:, 0], direction[:, 1])
    if abs(normal @ steps.mean(axis=0)) < (1 - 1e-4) * np.linalg.norm(steps.mean(axis=0)):
        raise ValueError(
            f"Expected slices stacked along their normal in {folder}. Received: sheared slices (a tilted gantry); "
            "resample the series to a rectangular grid."
        )


def _stored(image: sitk.Image, spacing_mm: Sequence[float], path: Path, has_orientation: bool) -> Stored:
    array = sitk.GetArrayFromImage(image)
    components, dimensions = image.GetNumberOfComponentsPerPixel(), image.GetDimension()
    if dimensions == 4 and components == 1:
        array = array.transpose(3, 2, 1, 0)
    elif dimensions == 3:
        array = array.transpose(2, 1, 0, 3) if components > 1 else array.transpose(2, 1, 0)[..., None]
    else:
        raise ValueError(
            f"Expected a 3D image, with channels as vector components or as a fourth axis: {path}. "
            f"Received: {dimensions} axes, {components} components."
        )
    spacing_mm = checked_spacing(spacing_mm, path)
    direction = np.asarray(image.GetDirection()).reshape(dimensions, dimensions)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = _LPS_TO_RAS @ direction @ np.diag(spacing_mm)
    affine[:3, 3] = _LPS_TO_RAS @ np.asarray(image.GetOrigin()[:3])
    return Stored(array, spacing_mm, affine, has_orientation)


def _fields(path: Path, sign: bytes, last: bytes = b"") -> set[bytes]:
    """Names of the fields in a NRRD or MetaImage header: what stands before `sign` on a line.

    The header ends with the field `last`, or before an empty line.
    """
    names: set[bytes] = set()
    with path.open("rb") as file:
        # A file of another kind has lines of any length.
        while last not in names and (line := file.readline(1 << 16)).strip():
            if sign in line:
                names.add(line.split(sign, 1)[0].strip())
    return names


def write_image(
    path: str | os.PathLike[str], array: np.ndarray, spacing_mm: Sequence[float], affine: np.ndarray
) -> None:
    """Writes [X, Y, Z] in the array's dtype; the suffix of `path` picks the format.

    Raises:
        ValueError: A name of no known type, or a value that is not finite, which readers take differently.
        OSError: The file could not be written whole.
    """
    if not np.isfinite(array).all():
        raise ValueError(f"Expected finite values to write to {path}. Received: NaN or infinity.")
    if not str(path).endswith(IMAGE_SUFFIXES):
        raise ValueError(f"Expected a file name ending in one of {IMAGE_SUFFIXES}. Received: path={str(path)!r}.")
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing([float(s) for s in spacing_mm])
    image.SetOrigin([float(o) for o in _LPS_TO_RAS @ affine[:3, 3]])
    direction = _LPS_TO_RAS @ affine[:3, :3] / np.asarray(spacing_mm)
    image.SetDirection([float(d) for d in direction.ravel()])
    with replacing(path) as temporary:
        try:
            sitk.WriteImage(image, str(temporary), useCompression=True)
            if temporary.name.endswith((".nii", ".nii.gz")):
                # ITK does not say when a disk is full: it cuts the file.
                nifti.check_complete(temporary)
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise OSError(f"{full_disk(Path(path).parent, path)} ({reason})") from error


def default_spacing(path: Path, default_spacing_mm: Sequence[float] | None) -> tuple[float, float, float]:
    """The spacing of a file that stores none.

    Raises:
        ValueError: There is no default.
    """
    if default_spacing_mm is None:
        raise ValueError(
            f"Expected a voxel spacing: {path} stores none; give it by --default_spacing_mm=X,Y,Z (millimetres)."
        )
    return checked_spacing(default_spacing_mm, path)


def checked_spacing(spacing: Sequence[float], path: Path) -> tuple[float, float, float]:
    """Three positive numbers; raises ValueError, naming the file, for anything else."""
    values = np.asarray(spacing, np.float64).ravel()
    if values.shape != (3,) or not np.isfinite(values).all() or (values <= 0).any():
        raise ValueError(f"Expected three positive voxel spacings (mm) for {path}. Received: {values.tolist()}.")
    return float(values[0]), float(values[1]), float(values[2])
