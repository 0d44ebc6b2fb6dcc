"""A scan in memory (`Volume`), where its files are (`CaseFiles`), and the way between the two.

Three layouts are understood below `data_dir`:
  h5      <case>/mri_norm2.h5               UA-MT: datasets `image` and, where labelled, `label`
  folder  <case>/image.nii.gz, <case>/label.nii.gz
  flat    images/<case>.nii.gz, labels/<case>.nii.gz
where .nii.gz stands for any of IMAGE_SUFFIXES.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import h5py
import numpy as np
import SimpleITK as sitk

from semisam_tf.atomic import replacing
from semisam_tf.data import nifti

H5_NAME = "mri_norm2.h5"
IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha")
# ITK's world axes point left, posterior, superior; ours (NIfTI's) right, anterior, superior.
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Volume:
    """One scan.

    Attributes:
        case_id: Name of the scan in the case lists.
        image: float32 [X, Y, Z, C], file axis order.
        label: uint8 [X, Y, Z], or None for a scan that is to be used without its label.
        spacing_mm: Size of a voxel along X, Y, Z.
        affine: float64 [4, 4], voxel index -> RAS+ millimetres.
    """

    case_id: str
    image: np.ndarray
    label: np.ndarray | None
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels along X, Y, Z."""
        x, y, z = self.image.shape[:3]
        return x, y, z


@dataclass(frozen=True)
class CaseFiles:
    """Where a case lies: `layout` is "h5", "folder" or "flat"; for "h5" `label` is the image's own file."""

    case_id: str
    image: Path
    label: Path | None
    layout: str


def find_case(data_dir: str | os.PathLike[str], case_id: str) -> CaseFiles:
    """Finds the files of a case; opens none of them.

    Raises:
        ValueError: The case name leads out of `data_dir`, or two files claim to be its image or label.
        FileNotFoundError: No layout has the case.
    """
    name = PurePosixPath(case_id.replace("\\", "/"))
    if not case_id.strip() or name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
        raise ValueError(
            "Expected a case name inside the data folder, without '..' and not absolute. "
            f"Received: case_id={case_id!r}. Correct the case list."
        )
    root = Path(data_dir)
    h5_path = root / name / H5_NAME
    if h5_path.is_file():
        return CaseFiles(case_id, h5_path, h5_path, "h5")
    for layout, image, label in (
        ("folder", root / name / "image", root / name / "label"),
        ("flat", root / "images" / name, root / "labels" / name),
    ):
        image_path = _one_file(image)
        if image_path is not None:
            return CaseFiles(case_id, image_path, _one_file(label), layout)
    suffixes = ",".join(s.lstrip(".") for s in IMAGE_SUFFIXES)
    raise FileNotFoundError(
        f"Expected case {case_id!r} at {h5_path}, {root / name}/image.{{{suffixes}}} or "
        f"{root}/images/{name}.{{{suffixes}}}; none is there. Check --data_dir and the case list. "
        f"Received: data_dir={str(data_dir)!r}."
    )


def load_volume(files: CaseFiles, *, with_label: bool, default_spacing_mm: Sequence[float] | None = None) -> Volume:
    """Reads a case.

    Args:
        files: From `find_case`.
        with_label: False never opens the label file and never reads the HDF5 dataset `label`, whatever is in it:
            nothing downstream can leak what it was never given.
        default_spacing_mm: Spacing of HDF5 and NRRD files that store none. Files that have a spacing keep theirs.

    Raises:
        FileNotFoundError: The image, or a label that was asked for, is not there.
        ValueError: A file is damaged or its content is not what it should be; names the file.
    """
    if not files.image.is_file():
        raise FileNotFoundError(f"Expected an image file. Received: {files.image}, which does not exist.")
    if files.layout == "h5":
        image, label, spacing_mm, affine = _read_h5(files.image, with_label, default_spacing_mm)
    else:
        image, spacing_mm, affine = _read_itk(files.image, default_spacing_mm)
        label = None
        if with_label:
            if files.label is None or not files.label.is_file():
                raise FileNotFoundError(
                    f"Expected a label file for {files.image}, and there is none. Add it, or use case "
                    f"{files.case_id!r} as unlabelled. Received: label={files.label}."
                )
            label, _, label_affine = _read_itk(files.label, spacing_mm)
            if label.shape[-1] == 1:
                label = label[..., 0]
            _check_same_place(image.shape[:3], affine, label_affine, files.image, files.label)
    if not np.isfinite(image).all():
        raise ValueError(
            f"Expected finite image values in {files.image}. Received: {int((~np.isfinite(image)).sum())} voxels that "
            "are NaN or infinite; repair the file or exclude the case."
        )
    if label is not None:
        label = _checked_label(label, image.shape[:3], files.label or files.image)
    return Volume(files.case_id, np.ascontiguousarray(image, np.float32), label, spacing_mm, affine)


def save_volume_h5(path: str | os.PathLike[str], volume: Volume) -> None:
    """Writes the UA-MT layout (gzip) with `spacing_mm` and `affine` as attributes; one channel is written [X, Y, Z]."""
    image = volume.image[..., 0] if volume.image.shape[-1] == 1 else volume.image
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["spacing_mm"] = np.asarray(volume.spacing_mm, np.float64)
        file.attrs["affine"] = volume.affine
        file.create_dataset("image", data=image, compression="gzip", compression_opts=4)
        if volume.label is not None:
            file.create_dataset("label", data=volume.label, compression="gzip", compression_opts=4)


def save_mask(path: str | os.PathLike[str], mask: np.ndarray, volume: Volume) -> None:
    """Writes a mask, uint8 [X, Y, Z], in the geometry of `volume`; the suffix of `path` picks the format."""
    if mask.shape != volume.size:
        raise ValueError(
            f"Expected a mask on the grid of case {volume.case_id!r}, {volume.size}. Received: mask.shape={mask.shape}."
        )
    _write_itk(path, np.asarray(mask, np.uint8), volume)


def save_volume_pair(image_path: str | os.PathLike[str], label_path: str | os.PathLike[str], volume: Volume) -> None:
    """Writes a one-channel scan and its label as two NIfTI / NRRD files."""
    if volume.image.shape[-1] != 1 or volume.label is None:
        raise ValueError(
            "Expected a labelled scan with one channel. "
            f"Received: image.shape={volume.image.shape}, label={'none' if volume.label is None else 'present'}."
        )
    _write_itk(image_path, volume.image[..., 0], volume)
    _write_itk(label_path, volume.label, volume)


def _one_file(stem: Path) -> Path | None:
    found = [p for p in (stem.with_name(stem.name + suffix) for suffix in IMAGE_SUFFIXES) if p.is_file()]
    if len(found) > 1:
        names = ", ".join(str(p) for p in found)
        raise ValueError(f"Expected one file for {stem}. Received: {names}. Remove all but one.")
    return found[0] if found else None


def _read_h5(
    path: Path, with_label: bool, default_spacing_mm: Sequence[float] | None
) -> tuple[np.ndarray, np.ndarray | None, tuple[float, float, float], np.ndarray]:
    try:
        with h5py.File(path, "r") as file:
            if "image" not in file:
                raise ValueError(f"Expected a dataset 'image' in {path}. Received: {sorted(file)}.")
            image = np.asarray(file["image"][()], np.float32)
            label = None
            if with_label:
                if "label" not in file:
                    raise ValueError(f"Expected a dataset 'label' in {path}, and there is none; use it as unlabelled.")
                label = file["label"][()]
            attributes = dict(file.attrs)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"Expected a readable HDF5 file: {path} is truncated or damaged ({error}).") from error
    if image.ndim not in (3, 4):
        raise ValueError(f"Expected 'image' [X, Y, Z] or [X, Y, Z, C] in {path}. Received: shape={image.shape}.")
    image = image if image.ndim == 4 else image[..., None]
    if "spacing_mm" in attributes:
        spacing_mm = _checked_spacing(attributes["spacing_mm"], path)
    else:
        spacing_mm = _default_spacing(path, default_spacing_mm)
    affine = np.asarray(attributes.get("affine", np.diag([*spacing_mm, 1.0])), np.float64)
    if affine.shape != (4, 4):
        raise ValueError(f"Expected a 4x4 affine in {path}. Received: shape={affine.shape}.")
    return image, label, spacing_mm, affine


def _read_itk(
    path: Path, default_spacing_mm: Sequence[float] | None
) -> tuple[np.ndarray, tuple[float, float, float], np.ndarray]:
    """Returns [X, Y, Z, C] in the file's own dtype, the spacing and the RAS+ affine."""
    if path.name.endswith((".nii", ".nii.gz")):
        nifti.check_complete(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"Expected a readable NIfTI / NRRD / MetaImage file: {path} is not ({reason}).") from error
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
    spacing_mm = _checked_spacing(image.GetSpacing()[:3], path)
    if path.name.endswith((".nrrd", ".nhdr")) and not _nrrd_has_spacing(path):
        spacing_mm = _default_spacing(path, default_spacing_mm)
    direction = np.asarray(image.GetDirection()).reshape(dimensions, dimensions)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = _LPS_TO_RAS @ direction @ np.diag(spacing_mm)
    affine[:3, 3] = _LPS_TO_RAS @ np.asarray(image.GetOrigin()[:3])
    return array, spacing_mm, affine


def _nrrd_has_spacing(path: Path) -> bool:
    """Whether the header has a spacing; ITK says 1 mm where it has none."""
    with path.open("rb") as file:
        header = itertools.takewhile(lambda line: line.strip(), file)
        return any(line.lower().startswith((b"spacings:", b"space directions:")) for line in header)


def _write_itk(path: str | os.PathLike[str], array: np.ndarray, volume: Volume) -> None:
    if not str(path).endswith(IMAGE_SUFFIXES):
        raise ValueError(f"Expected a file name ending in one of {IMAGE_SUFFIXES}. Received: path={str(path)!r}.")
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    image.SetSpacing([float(s) for s in volume.spacing_mm])
    image.SetOrigin([float(o) for o in _LPS_TO_RAS @ volume.affine[:3, 3]])
    direction = _LPS_TO_RAS @ volume.affine[:3, :3] / np.asarray(volume.spacing_mm)
    image.SetDirection([float(d) for d in direction.ravel()])
    with replacing(path) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)


def _default_spacing(path: Path, default_spacing_mm: Sequence[float] | None) -> tuple[float, float, float]:
    if default_spacing_mm is None:
        raise ValueError(
            f"Expected a voxel spacing: {path} stores none; give it by --default_spacing_mm=X,Y,Z (millimetres)."
        )
    return _checked_spacing(default_spacing_mm, path)


def _checked_spacing(spacing: Sequence[float], path: Path) -> tuple[float, float, float]:
    values = np.asarray(spacing, np.float64).ravel()
    if values.shape != (3,) or not np.isfinite(values).all() or (values <= 0).any():
        raise ValueError(f"Expected three positive voxel spacings (mm) for {path}. Received: {values.tolist()}.")
    return float(values[0]), float(values[1]), float(values[2])


def _check_same_place(
    size: tuple[int, ...], affine: np.ndarray, label_affine: np.ndarray, image_path: Path, label_path: Path
) -> None:
    """Refuses a label that lies elsewhere in the body: mirrored, shifted or of another spacing, of the same shape."""
    corners = np.array([[x, y, z, 1.0] for x in (0, size[0]) for y in (0, size[1]) for z in (0, size[2])])
    apart_mm = np.abs(corners @ (affine - label_affine).T).max()
    tolerance_mm = 0.05 * np.linalg.norm(affine[:3, :3], axis=0).min()
    if apart_mm > tolerance_mm:
        raise ValueError(
            f"Expected {label_path} on the grid of {image_path}. Received: corners up to {apart_mm:.3g} mm apart "
            "(another origin, spacing or orientation); resample the label to the image, or correct its header."
        )


def _checked_label(label: np.ndarray, size: tuple[int, ...], path: Path) -> np.ndarray:
    if label.shape != size:
        raise ValueError(f"Expected a label of the image's size {size} in {path}. Received: shape={label.shape}.")
    if label.dtype == np.uint8:
        return np.ascontiguousarray(label)
    if not np.isfinite(label).all() or (label != np.round(label)).any() or label.min() < 0 or label.max() > 255:
        raise ValueError(
            f"Expected whole label values from 0 to 255 in {path}. "
            f"Received: values from {label.min()} to {label.max()}, dtype={label.dtype}."
        )
    return np.ascontiguousarray(label.astype(np.uint8))
