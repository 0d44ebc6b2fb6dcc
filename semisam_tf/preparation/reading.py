"""Reads the files of a case and says what is wrong with them. Nothing here changes a voxel."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from semisam_tf.data.itk import Stored, read_image, read_series, series_files
from semisam_tf.data.orientation import axis_code, axis_order
from semisam_tf.data.volumes import Volume, check_same_place
from semisam_tf.preparation.sources import Source

# The orientation in which two scans are held against each other.
_REFERENCE = "RAS"
# Enough for any anatomy; an image given as a mask has far more.
_MAX_LABEL_VALUES = 256
_DETACHED_HEADERS = (".nhdr", ".mhd")


@dataclass(frozen=True)
class ReadingOptions:
    """How files are read.

    Attributes:
        default_spacing_mm: Spacing of NRRD files that store none.
        channels_of_file: How many channels a file may hold, as a fourth axis or as vector components; 0: any number.
    """

    default_spacing_mm: tuple[float, ...] = ()
    channels_of_file: int = 1


@dataclass(frozen=True, eq=False)
class RawCase:
    """A case as its files hold it.

    Attributes:
        volume: Image without label; float32 [X, Y, Z, C].
        values: Mask [X, Y, Z], whole numbers of any integer or real dtype; None without one.
        warnings: What a person should know.
    """

    volume: Volume
    values: np.ndarray | None
    warnings: tuple[str, ...] = ()

    def turned(self, orientation: str) -> RawCase:
        """The case with its axes permuted and flipped to an axis code; itself where it stores no orientation."""
        if not self.volume.has_orientation:
            return self
        order = axis_order(axis_code(self.volume.affine), orientation)
        values = None if self.values is None else np.ascontiguousarray(order.apply(self.values))
        return RawCase(order.apply_to(self.volume), values, self.warnings)


@dataclass(frozen=True)
class CaseFacts:
    """What a case is, on its files' own grid. Plain values, for JSON.

    Attributes:
        size_vox, spacing_mm: Along the files' axes.
        orientation: Axis code, or None where the files store none.
        channels: Number of channels.
        label_vox: Voxels of each value of the mask; None without a mask.
        source_sha256: Of the files' bytes.
        content_sha256: Of the intensities in one common orientation, whatever the type of file.
        warnings: What a person should know.
    """

    size_vox: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    orientation: str | None
    channels: int
    label_vox: dict[str, int] | None
    source_sha256: str
    content_sha256: str
    warnings: tuple[str, ...] = ()

    def spacing_in(self, orientation: str) -> tuple[float, ...]:
        """The spacing along the axes of an orientation, in millimetres."""
        if self.orientation is None:
            return self.spacing_mm
        return tuple(self.spacing_mm[axis] for axis in axis_order(self.orientation, orientation).permutation)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CaseFacts:
        """The inverse of `dataclasses.asdict`, after a trip through JSON."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)


def read_case(source: Source, options: ReadingOptions) -> RawCase:
    """Reads and checks a case.

    Raises:
        ValueError, OSError: A file cannot be used; the message names it.
    """
    stored = [_read(path, source.series_uid, options) for path in source.images]
    first, path = stored[0], source.images[0]
    for other_path, other in zip(source.images[1:], stored[1:], strict=True):
        _check_same_grid(first, path, other, other_path)
    if min(first.array.shape[:3]) < 2:
        raise ValueError(
            f"Expected a volume in {path}. Received: {_size(first.array)} voxels, a single slice; a 3D network has "
            "nothing to learn from it."
        )
    warnings = _check_intensities(stored, source.images)
    values = None if source.label is None else _read_values(source.label, first, path)
    image = np.concatenate([np.asarray(channel.array, np.float32) for channel in stored], axis=-1)
    if not first.has_orientation:
        warnings.append(f"{path} stores no orientation: the order of its axes is kept.")
    volume = Volume(source.case_id, image, None, first.spacing_mm, first.affine, first.has_orientation)
    return RawCase(volume, values, tuple(warnings))


def case_facts(source: Source, options: ReadingOptions, source_sha256: str) -> CaseFacts:
    """Reads a case to know it.

    Raises:
        ValueError, OSError: As `read_case`.
    """
    case = read_case(source, options)
    volume = case.volume
    return CaseFacts(
        size_vox=volume.size,
        spacing_mm=volume.spacing_mm,
        orientation=axis_code(volume.affine) if volume.has_orientation else None,
        channels=volume.image.shape[-1],
        label_vox=None if case.values is None else _count(case.values),
        source_sha256=source_sha256,
        content_sha256=_content_sha256(case.turned(_REFERENCE).volume.image),
        warnings=case.warnings,
    )


def source_sha256(source: Source) -> str:
    """Digest of all files of a case: equal digests mean that nothing has to be read again.

    Raises:
        ValueError, OSError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for path in (*source.images, *((source.label,) if source.label else ())):
        files = series_files(path, source.series_uid) if path.is_dir() else [path]
        digest.update(f"{path == source.label} {len(files)} ".encode())
        for file in files:
            with Path(file).open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        if path.name.endswith(_DETACHED_HEADERS):
            # The voxels lie in a file, or in several, that the header names.
            digest.update(np.ascontiguousarray(read_image(path, (1.0, 1.0, 1.0)).array).data)
    return digest.hexdigest()


def plain(facts: CaseFacts) -> dict[str, Any]:
    """JSON-ready values."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(facts).items()}


def _read(path: Path, series_uid: str | None, options: ReadingOptions) -> Stored:
    if series_uid is not None:
        stored = read_series(path, series_uid)
    else:
        stored = read_image(path, options.default_spacing_mm or None)
    if stored.array.dtype.kind not in "biuf":
        raise ValueError(f"Expected real numbers in {path}. Received: dtype={stored.array.dtype}.")
    n = stored.array.shape[-1]
    if options.channels_of_file not in (0, n):
        raise ValueError(
            f"Expected {options.channels_of_file} value(s) for a voxel of {path}. Received: {n}, along a fourth axis "
            "or as vector components. If they are the channels of one scan, say --fourth_axis=channels; of a time "
            "series store each moment as a file of its own."
        )
    return stored


def _check_same_grid(first: Stored, first_path: Path, other: Stored, other_path: Path) -> None:
    """Refuses channels of one case that do not lie on each other."""
    if first.array.shape[:3] != other.array.shape[:3]:
        raise ValueError(
            f"Expected {other_path} to have the size of {first_path}, {_size(first.array)} voxels, since both are "
            f"channels of one case. Received: {_size(other.array)}; resample one to the other."
        )
    check_same_place(first.array.shape[:3], first.affine, other.affine, first_path, other_path)


def _check_intensities(stored: list[Stored], paths: tuple[Path, ...]) -> list[str]:
    """Refuses what is not finite and scans without any contrast; returns warnings of channels without."""
    constant = []
    for channel, path in zip(stored, paths, strict=True):
        bad = 0 if channel.array.dtype.kind != "f" else int((~np.isfinite(channel.array)).sum())
        if bad:
            raise ValueError(
                f"Expected finite intensities in {path}. Received: {bad} voxels that are NaN or infinite; repair the "
                "file or leave it out."
            )
        flat = channel.array.reshape(-1, channel.array.shape[-1])
        constant += [path] * int((flat.min(axis=0) == flat.max(axis=0)).sum())
    if len(constant) == sum(channel.array.shape[-1] for channel in stored):
        raise ValueError(f"Expected a scan in {paths[0]}. Received: the same value, {flat[0, 0]}, in every voxel.")
    return [f"{path}: a channel has the same value in every voxel." for path in constant]


def _read_values(path: Path, image: Stored, image_path: Path) -> np.ndarray:
    """The mask as stored, whole numbers [X, Y, Z] on the grid of the image."""
    if not path.is_file():
        raise FileNotFoundError(f"Expected a mask for {image_path}. Received: {path}, which does not exist.")
    values, _, affine, *_ = read_image(path, image.spacing_mm)
    if values.shape[-1] != 1:
        raise ValueError(
            f"Expected one value for a voxel of the mask {path}. Received: {values.shape[-1]}; join the classes into "
            "one mask with a value each."
        )
    values = values[..., 0]
    if values.shape != image.array.shape[:3]:
        raise ValueError(
            f"Expected the mask {path} on the grid of {image_path}, {_size(image.array)} voxels. Received: "
            f"{_size(values)}; resample it to the image, or correct which mask belongs to it."
        )
    check_same_place(values.shape, image.affine, affine, image_path, path)
    if values.dtype.kind not in "biu" and (not np.isfinite(values).all() or (values != np.round(values)).any()):
        raise ValueError(
            f"Expected whole numbers in the mask {path}. Received: values from {values.min()} to {values.max()} with "
            "fractions or NaN; a resampled or probability mask has to be rounded to its classes first."
        )
    if len(_count(values)) > _MAX_LABEL_VALUES:
        raise ValueError(
            f"Expected at most {_MAX_LABEL_VALUES} values in the mask {path}. Received: {len(_count(values))}, as an "
            "image has them; check which file is the mask."
        )
    return values


def _count(values: np.ndarray) -> dict[str, int]:
    """Voxels of each value of whole numbers."""
    low, high = int(values.min()), int(values.max())
    if high - low < 1 << 16:  # counting is many times as fast as the sorting of np.unique
        counts = np.bincount(values.ravel().astype(np.int64) - low)
        return {str(low + int(offset)): int(counts[offset]) for offset in np.flatnonzero(counts)}
    found, counts = np.unique(values, return_counts=True)
    return {str(int(value)): int(n) for value, n in zip(found, counts, strict=True)}


def _content_sha256(image: np.ndarray) -> str:
    digest = hashlib.sha256(str(image.shape).encode())
    digest.update(np.ascontiguousarray(image, np.float32).data)
    return digest.hexdigest()


def _size(array: np.ndarray) -> str:
    return " x ".join(str(n) for n in array.shape[:3])
