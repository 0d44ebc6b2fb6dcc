"""What --images and --labels stand for: files, folders, patterns, and the folder conventions behind them."""

from __future__ import annotations

import dataclasses
import glob
import re
from dataclasses import dataclass
from pathlib import Path, PurePath

from semisam_tf.data.itk import is_dicom
from semisam_tf.data.scans import suffix_of
from semisam_tf.preparation.dataset_json import DatasetFacts, read_dataset_json
from semisam_tf.preparation.sources import SOURCE_SUFFIXES, scan_files, stem_of

# Names, without ending, of a case folder's files: ours, and those of the 2018 Atrial Segmentation Challenge.
CASE_IMAGES = ("image", "lgemri")
CASE_LABELS = ("label", "laendo")

_NNUNET_FOLDERS = ("imagesTr", "imagesTs")
_NNUNET_CHANNEL = re.compile(r"_\d{4}$")
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Entry:
    """A file or folder that may be a case, or part of one. `key`: what the pattern's last wildcard stood for, or ""."""

    path: Path
    key: str = ""


@dataclass(frozen=True)
class Place:
    """What one part of --images stands for.

    Attributes:
        layout: Name of the convention.
        base: Folder below which the entries lie.
        entries: Sorted.
        channels: Endings of the file names that the convention uses for channels.
        label_folder: Where the convention keeps masks.
        is_scoring: Whether the convention keeps these cases for scoring.
        dataset: What the dataset.json of a folder of images says, if there is one.
        note: What a person should know.
    """

    layout: str
    base: Path
    entries: tuple[Entry, ...]
    channels: tuple[str, ...] = ()
    label_folder: Path | None = None
    is_scoring: bool = False
    dataset: DatasetFacts | None = None
    note: str = ""


def places_of(text: str) -> list[str]:
    """The files, folders and patterns of a flag, separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def find_places(place: str) -> list[Place]:
    """Recognises what a file, folder or pattern stands for.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: A dataset.json is damaged.
    """
    path = Path(place)
    if path.is_file():
        return [Place("files", path.parent, (Entry(path),), label_folder=_label_folder(path.parent))]
    if path.is_dir():
        return _folder(path)
    entries = match(place)
    if not entries:
        raise FileNotFoundError(f"Expected scans at {place}. Received: nothing of that name or pattern.")
    folders = {entry.path.parent for entry in entries}
    label_folder = _label_folder(folders.pop()) if len(folders) == 1 else None
    return [Place("pattern", _fixed_part(place), entries, label_folder=label_folder)]


def match(pattern: str) -> tuple[Entry, ...]:
    """All that a pattern matches, sorted, hidden names left out; symbolic links are followed, below `**` too."""
    paths = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    return tuple(Entry(path, _wildcard_part(pattern, path)) for path in paths if not path.name.startswith("."))


def dicom_folders(folder: Path) -> list[Path]:
    """The folder itself and all below it that hold DICOM slices; symbolic links are followed, each place once."""
    found: list[Path] = []
    seen: set[Path] = set()
    to_visit = [folder]
    while to_visit:
        path = to_visit.pop()
        # A link to a folder above would never come to an end.
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        if is_dicom_folder(path):
            found.append(path)
        to_visit += [entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(found)


def is_dicom_folder(folder: Path) -> bool:
    """Whether files that are directly in it are DICOM slices."""
    return any(is_dicom(path) for path in sorted(folder.iterdir()) if not suffix_of(path, SOURCE_SUFFIXES))


def _folder(folder: Path) -> list[Place]:
    if (folder / "imagesTr").is_dir():
        train, test = folder / "imagesTr", folder / "imagesTs"
        if not test.is_dir():
            return [_images_folder(train)]
        if (folder / "labelsTs").is_dir():
            return [_images_folder(train), _images_folder(test, is_scoring=True)]
        note = f"{test} is left out: it has no masks to score by. --images={train},{test} trains on it as unlabelled."
        return [dataclasses.replace(_images_folder(train), note=note)]
    if (folder / "images").is_dir():
        return [_images_folder(folder / "images")]
    if folder.name in _NNUNET_FOLDERS or _label_folder(folder) is not None:
        return [_images_folder(folder)]
    if any(stem_of(path) in CASE_IMAGES for path in scan_files(folder)) or is_dicom_folder(folder):
        return [Place("case folders", folder.parent, (Entry(folder),))]
    return [Place("files" if scan_files(folder) else "case folders", folder, _contents(folder))]


def _images_folder(folder: Path, is_scoring: bool = False) -> Place:
    """A folder of images whose masks lie in the folder `labels...` beside it."""
    entries, layout = _contents(folder), "images and labels"
    channels: tuple[str, ...] = ()
    if folder.name in _NNUNET_FOLDERS:
        channels = _nnunet_channels([entry.path for entry in entries])
        layout = "nnU-Net" if channels else "Medical Segmentation Decathlon"
    dataset = read_dataset_json(folder.parent)
    return Place(layout, folder, entries, channels, _label_folder(folder), is_scoring, dataset)


def _label_folder(folder: Path) -> Path | None:
    """imagesTr -> labelsTr and so on, where that folder is there."""
    if not folder.name.startswith("images"):
        return None
    beside = folder.with_name(folder.name.replace("images", "labels", 1))
    return beside if beside.is_dir() else None


def _contents(folder: Path) -> tuple[Entry, ...]:
    return tuple(Entry(path) for path in sorted(folder.iterdir()) if not path.name.startswith("."))


def _nnunet_channels(paths: list[Path]) -> tuple[str, ...]:
    """The endings _0000, _0001, ... if every scan has one and every case a first channel; else none.

    Scans that are merely numbered with four digits have no _0000 each.
    """
    stems = [stem_of(path) for path in paths if suffix_of(path, SOURCE_SUFFIXES)]
    if not stems or not all(_NNUNET_CHANNEL.search(stem) for stem in stems):
        return ()
    if not all(f"{stem[:-5]}_0000" in set(stems) for stem in stems):
        return ()
    return tuple(sorted({stem[-5:] for stem in stems}))


def _fixed_part(pattern: str) -> Path:
    """The folders of a pattern before its first wildcard."""
    parts: list[str] = []
    for part in PurePath(pattern).parts:
        if _WILD.search(part):
            break
        parts.append(part)
    return Path(*parts)


def _wildcard_part(pattern: str, path: Path) -> str:
    """What the last part of a pattern with a wildcard stands for in a path that it matches, without file ending.

    "scans/*_ct.nii.gz" in scans/a_ct.nii.gz: "a"; "scans/*/ct.nii.gz" in scans/a/ct.nii.gz: "a".
    """
    for want, have in zip(reversed(PurePath(pattern).parts), reversed(path.parts), strict=False):
        first = _WILD.search(want)
        if first is None:
            continue
        last = max(want.rfind(mark) for mark in "*?]") + 1
        part = have[first.start() : len(have) - len(want[last:])]
        return part.removesuffix(suffix_of(part, SOURCE_SUFFIXES))
    return ""
