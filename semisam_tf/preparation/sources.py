"""What a case is made of on disk, before anything is opened, and what is wrong with one that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from semisam_tf.data.itk import IMAGE_SUFFIXES
from semisam_tf.data.scans import suffix_of
from semisam_tf.preparation.dataset_json import DatasetFacts

# NIfTI, NRRD and MetaImage. HDF5 is left out: a data folder of HDF5 files is what training reads already.
SOURCE_SUFFIXES = (*IMAGE_SUFFIXES, ".mhd")


@dataclass(frozen=True)
class Source:
    """One case to be prepared.

    Attributes:
        case_id: Its name in the data folder.
        images: A file for each channel, or one for all; of a DICOM series its folder.
        label: File of the mask, or None.
        series_uid: SeriesInstanceUID of a DICOM series; None for every other type.
        is_scoring: The layout keeps it for scoring (nnU-Net's imagesTs with labelsTs).
    """

    case_id: str
    images: tuple[Path, ...]
    label: Path | None = None
    series_uid: str | None = None
    is_scoring: bool = False


@dataclass(frozen=True)
class Problem:
    """A case that cannot be used; `reason` names the file and says what to do."""

    case_id: str
    images: tuple[Path, ...]
    label: Path | None
    reason: str


@dataclass
class Found:
    """All that a search found.

    Attributes:
        layout: Name of the convention that the folder follows, for the record.
        sources: Sorted by name.
        problems: Cases whose files are not complete or contradict each other.
        notes: What a person should know, such as masks without a scan.
        dataset: What dataset.json says, if there is one.
    """

    layout: str
    sources: list[Source] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    dataset: DatasetFacts | None = None


def stem_of(path: Path) -> str:
    """File name without the ending of its type; of a folder the whole name."""
    return path.name.removesuffix(suffix_of(path, SOURCE_SUFFIXES))


def is_scan_file(path: Path) -> bool:
    """Whether it is a file of a known type. Hidden ones are none: macOS keeps a "._scan.nii.gz" beside every scan."""
    return bool(suffix_of(path, SOURCE_SUFFIXES)) and not path.name.startswith(".") and path.is_file()


def scan_files(folder: Path) -> list[Path]:
    """Scans directly in a folder, sorted; symbolic links are followed."""
    return sorted(path for path in folder.iterdir() if is_scan_file(path)) if folder.is_dir() else []
