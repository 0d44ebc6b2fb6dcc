"""A scan in memory (`Volume`), where its files are (`CaseFiles`), and the way between the two.

Three layouts are understood below `data_dir`:
  h5      <case>/mri_norm2.h5               UA-MT: datasets `image` and, where labelled, `label`
  folder  <case>/image.nii.gz, <case>/label.nii.gz
  flat    images/<case>.nii.gz, labels/<case>.nii.gz
where .nii.gz stands for any of IMAGE_SUFFIXES.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import h5py
import numpy as np

from semisam_tf.data import nifti
from semisam_tf.data.hdf5 import replacing_h5
from semisam_tf.data.itk import (
    IMAGE_SUFFIXES,
    Stored,
    checked_spacing,
    default_spacing,
    read_image,
    write_image,
)
from semisam_tf.data.label_access import LabelAccess

H5_NAME = "mri_norm2.h5"


@dataclass(frozen=True, eq=False)
class Volume:
    """One scan.

    Attributes:
        case_id: Name of the scan in the case lists.
        image: float32 [X, Y, Z, C], file axis order.
        label: uint8 [X, Y, Z], or None for a scan that is to be used without its label.
        spacing_mm: Size of a voxel along X, Y, Z.
        affine: float64 [4, 4], voxel index -> RAS+ millimetres.
        has_orientation: Whether `affine` is the file's own. A file that stores none has one that only scales, and
            which way its axes run through the body is unknown.
        nifti_header: Of a scan as its NIfTI file has it, for masks with the very same geometry: an affine is not all
            that a header says. None once the scan is turned or resampled, and of other types of file.
        content: Of scans loaded by `load_cohort`, the sha256 of all that was read of them, before preprocessing.
    """

    case_id: str
    image: np.ndarray
    label: np.ndarray | None
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray
    has_orientation: bool = True
    nifti_header: nifti.Header | None = None
    content: str = ""

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
    name = checked_case_name(case_id)
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


def has_label(files: CaseFiles) -> bool:
    """Whether a case has a label on file. Of an HDF5 file the names of its datasets are read, no label is."""
    if files.layout != "h5":
        return files.label is not None and files.label.is_file()
    try:
        with h5py.File(files.image, "r") as file:
            return "label" in file
    except (OSError, RuntimeError) as error:
        raise ValueError(f"Expected a readable HDF5 file: {files.image} is truncated or damaged ({error}).") from error


def checked_case_name(case_id: str) -> PurePosixPath:
    """A case name as a path below the data folder.

    Raises:
        ValueError: It would lead out of the folder.
    """
    name = PurePosixPath(case_id.replace("\\", "/"))
    if not name.parts or not case_id.strip() or name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
        raise ValueError(
            "Expected a case name inside the data folder, without '..' and not absolute. "
            f"Received: case_id={case_id!r}. Correct the case list."
        )
    return name


def load_volume(
    files: CaseFiles, *, with_label: LabelAccess | Literal[False], default_spacing_mm: Sequence[float] | None = None
) -> Volume:
    """Reads a case.

    Args:
        files: From `find_case`.
        with_label: False never opens the label file and never reads the HDF5 dataset `label`, whatever is in it:
            nothing downstream can leak what it was never given. To read it, what for: it is recorded first.
        default_spacing_mm: Spacing of files that store none. Files that have a spacing keep theirs.

    Raises:
        FileNotFoundError: The image, or a label that was asked for, is not there.
        ValueError: A file is damaged or its content is not what it should be; names the file.
    """
    if with_label is not False and not isinstance(with_label, LabelAccess):
        raise ValueError(
            "Expected with_label=False, or what the label is opened for: LabelLedger(workdir, run_id).access(purpose), "
            f"see semisam_tf/data/label_access.py. Received: with_label={with_label!r}."
        )
    if not files.image.is_file():
        raise FileNotFoundError(f"Expected an image file. Received: {files.image}, which does not exist.")
    if files.layout == "h5":
        if with_label and has_label(files):
            with_label.record(files.case_id, files.image)
        stored, label = _read_h5(files.image, bool(with_label), default_spacing_mm)
    else:
        stored, label = read_image(files.image, default_spacing_mm), None
        if with_label:
            if files.label is None or not files.label.is_file():
                raise FileNotFoundError(
                    f"Expected a label file for {files.image}, and there is none. Add it, or use case "
                    f"{files.case_id!r} as unlabelled. Received: label={files.label}."
                )
            with_label.record(files.case_id, files.label)
            label, _, label_affine, *_ = read_image(files.label, stored.spacing_mm)
            if label.shape[-1] == 1:
                label = label[..., 0]
            check_same_place(stored.array.shape[:3], stored.affine, label_affine, files.image, files.label)
    if label is not None:
        label = _checked_label(label, stored.array.shape[:3], files.label or files.image)
    return volume_of(files.case_id, stored, label, files.image)


def volume_of(case_id: str, stored: Stored, label: np.ndarray | None, path: Path) -> Volume:
    """A scan from what its file holds.

    Raises:
        ValueError: An intensity is not finite; names the file.
    """
    with np.errstate(over="ignore"):
        image = np.ascontiguousarray(stored.array, np.float32)
    if not np.isfinite(image).all():
        raise ValueError(
            f"Expected finite image values in {path}. Received: {int((~np.isfinite(image)).sum())} voxels that "
            "are NaN, infinite or beyond float32; repair the file or exclude the case."
        )
    return Volume(case_id, image, label, *stored[1:])


def save_volume_h5(
    path: str | os.PathLike[str],
    volume: Volume,
    attributes: Mapping[str, str] | None = None,
    datasets: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Writes the UA-MT layout (gzip) with `spacing_mm` and, where the scan has one, `affine` as attributes.

    The image keeps its dtype, so that whole numbers may be stored as uint8; one channel is written [X, Y, Z].

    Args:
        attributes, datasets: Further ones, beside those of the layout.
    """
    image = volume.image[..., 0] if volume.image.shape[-1] == 1 else volume.image
    # Bytes of equal significance side by side: floats that came from whole numbers then take far less room.
    packed: dict[str, Any] = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
    with replacing_h5(path) as file:
        file.attrs["spacing_mm"] = np.asarray(volume.spacing_mm, np.float64)
        if volume.has_orientation:
            file.attrs["affine"] = volume.affine
        for name, text in (attributes or {}).items():
            file.attrs[name] = text
        file.create_dataset("image", data=image, **packed)
        if volume.label is not None:
            file.create_dataset("label", data=volume.label, **packed)
        for name, values in (datasets or {}).items():
            file.create_dataset(name, data=values, **packed)


def save_mask(path: str | os.PathLike[str], mask: np.ndarray, volume: Volume) -> None:
    """Writes a mask, uint8 [X, Y, Z], in the geometry of `volume`; the suffix of `path` picks the format."""
    if mask.shape != volume.size:
        raise ValueError(
            f"Expected a mask on the grid of case {volume.case_id!r}, {volume.size}. Received: mask.shape={mask.shape}."
        )
    write_on_grid(path, np.asarray(mask, np.uint8), volume)


def write_on_grid(path: str | os.PathLike[str], values: np.ndarray, volume: Volume) -> None:
    """Writes [X, Y, Z], uint8 or float32, in the geometry of `volume`; the suffix of `path` picks the format.

    A NIfTI file has the header of a NIfTI scan: its qform, sform, their codes, units and byte order. Of a scan whose
    orientation is unknown it has neither qform nor sform.
    """
    header = volume.nifti_header
    if header is None and not volume.has_orientation:
        header = nifti.header_without_orientation(volume.size, volume.spacing_mm)
    if header is not None and str(path).endswith(nifti.NIFTI_SUFFIXES):
        nifti.write_map(path, values, header)
    else:
        write_image(path, values, volume.spacing_mm, volume.affine)


def save_volume_pair(image_path: str | os.PathLike[str], label_path: str | os.PathLike[str], volume: Volume) -> None:
    """Writes a one-channel scan and its label as two NIfTI / NRRD files."""
    if volume.image.shape[-1] != 1 or volume.label is None:
        raise ValueError(
            "Expected a labelled scan with one channel. "
            f"Received: image.shape={volume.image.shape}, label={'none' if volume.label is None else 'present'}."
        )
    write_image(image_path, volume.image[..., 0], volume.spacing_mm, volume.affine)
    write_image(label_path, volume.label, volume.spacing_mm, volume.affine)


def _one_file(stem: Path) -> Path | None:
    found = [p for p in (stem.with_name(stem.name + suffix) for suffix in IMAGE_SUFFIXES) if p.is_file()]
    if len(found) > 1:
        names = ", ".join(str(p) for p in found)
        raise ValueError(f"Expected one file for {stem}. Received: {names}. Remove all but one.")
    return found[0] if found else None


def _read_h5(
    path: Path, with_label: bool, default_spacing_mm: Sequence[float] | None
) -> tuple[Stored, np.ndarray | None]:
    try:
        with h5py.File(path, "r") as file:
            image = _h5_array(file, "image", path)
            label = None
            if with_label:
                if "label" not in file:
                    raise ValueError(f"Expected a dataset 'label' in {path}, and there is none; use it as unlabelled.")
                label = _h5_array(file, "label", path)
            attributes = dict(file.attrs)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"Expected a readable HDF5 file: {path} is truncated or damaged ({error}).") from error
    if image.ndim not in (3, 4):
        raise ValueError(f"Expected 'image' [X, Y, Z] or [X, Y, Z, C] in {path}. Received: shape={image.shape}.")
    image = image if image.ndim == 4 else image[..., None]
    if "spacing_mm" in attributes:
        spacing_mm = checked_spacing(attributes["spacing_mm"], path)
    else:
        spacing_mm = default_spacing(path, default_spacing_mm)
    affine = np.asarray(attributes.get("affine", np.diag([*spacing_mm, 1.0])), np.float64)
    if affine.shape != (4, 4):
        raise ValueError(f"Expected a 4x4 affine in {path}. Received: shape={affine.shape}.")
    return Stored(image, spacing_mm, affine, "affine" in attributes), label


def _h5_array(file: h5py.File, name: str, path: Path) -> np.ndarray:
    """The numbers of a dataset; raises ValueError, naming the file, for anything else of that name."""
    if name not in file:
        raise ValueError(f"Expected a dataset '{name}' in {path}. Received: {sorted(file)}.")
    stored = file[name]
    if not isinstance(stored, h5py.Dataset):
        raise ValueError(f"Expected '{name}' in {path} to be a dataset. Received: a {type(stored).__name__.lower()}.")
    if stored.dtype.kind not in "biuf" or not stored.shape or 0 in stored.shape:
        raise ValueError(
            f"Expected numbers in '{name}' of {path}, with no axis of length 0. "
            f"Received: dtype={stored.dtype}, shape={stored.shape}."
        )
    return stored[()]


def check_same_place(
    size: tuple[int, ...], affine: np.ndarray, label_affine: np.ndarray, image_path: Path, label_path: Path
) -> None:
    """Refuses a label or channel that lies elsewhere in the body: mirrored, shifted or of another spacing."""
    corners = np.array([[x, y, z, 1.0] for x in (0, size[0]) for y in (0, size[1]) for z in (0, size[2])])
    apart_mm = np.abs(corners @ (affine - label_affine).T).max()
    tolerance_mm = 0.05 * np.linalg.norm(affine[:3, :3], axis=0).min()
    if apart_mm > tolerance_mm:
        raise ValueError(
            f"Expected {label_path} on the grid of {image_path}. Received: corners up to {apart_mm:.3g} mm apart "
            "(another origin, spacing or orientation); resample it to that grid, or correct its header."
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
