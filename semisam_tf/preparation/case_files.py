"""Which files of a place make a case: the channels of a file name, a case folder, a DICOM series."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from semisam_tf.data.itk import dicom_series
from semisam_tf.preparation.places import CASE_IMAGES, CASE_LABELS, Entry, Place, dicom_folders
from semisam_tf.preparation.sources import SOURCE_SUFFIXES, is_scan_file, scan_files, stem_of


@dataclass(frozen=True)
class Case:
    """A case on its way to a Source. `trail`: its path below the base, for when names are not unique."""

    name: str
    trail: tuple[str, ...]
    key: str
    images: tuple[Path, ...]
    label: Path | None = None
    series_uid: str | None = None
    is_scoring: bool = False
    problem: str = ""


def cases_of(place: Place, channels: tuple[str, ...], label_paths: set[Path], notes: list[str]) -> list[Case]:
    """The cases of a place, with the masks that lie where its convention says."""
    cases: list[Case] = []
    files: list[Entry] = []
    ignored: list[Path] = []
    folders: dict[Path, str] = {}
    for entry in place.entries:
        if entry.path.is_dir():
            folders.setdefault(entry.path, entry.key)
        elif not channels and is_scan_file(entry.path) and stem_of(entry.path) in CASE_IMAGES:
            folders.setdefault(entry.path.parent, entry.key)
        elif is_scan_file(entry.path) and entry.path not in label_paths:
            files.append(entry)
    for folder, key in folders.items():
        of_folder = _case_folder(folder, key, place, channels, label_paths)
        cases += of_folder
        ignored += [] if of_folder else [folder]
    grouped, without_channel = _grouped(files, place, channels)
    ignored += without_channel
    if ignored:
        what = f"without a file ending in {' or '.join(channels)}" if channels else "without a scan"
        notes.append(f"{len(ignored)} files or folders {what} are left out, such as {ignored[0]}.")
    return [dataclasses.replace(case, is_scoring=place.is_scoring) for case in (*cases, *grouped)]


def _grouped(files: Iterable[Entry], place: Place, channels: tuple[str, ...]) -> tuple[list[Case], list[Path]]:
    """Cases of files, those of a case's channels put together; and the files that end in none of the channels."""
    groups: dict[Path, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    ignored = []
    for entry in files:
        stem = stem_of(entry.path)
        ending = max((c for c in channels or ("",) if stem.endswith(c)), key=len, default=None)
        if ending is None:
            ignored.append(entry.path)
            continue
        name = stem.removesuffix(ending).rstrip("_-. ") if ending else stem
        groups[entry.path.parent / (name or "")][ending].append(entry)
    cases = []
    for path, by_ending in groups.items():
        # Files that are called after their channel alone: the folder is the case.
        name = path.name
        found = {ending: [entry.path for entry in entries] for ending, entries in by_ending.items()}
        paths, problem = _one_a_channel(found, channels or ("",), path)
        key = next(iter(by_ending.values()))[0].key.removesuffix(next(iter(by_ending)))
        label, label_problem = _one_of_stem(place.label_folder, (name,))
        trail = _relative(path, place.base).parts
        cases.append(Case(name, trail, key, paths, label, problem=problem or label_problem))
    return cases, ignored


def _one_a_channel(found: dict[str, list[Path]], channels: Sequence[str], case: Path) -> tuple[tuple[Path, ...], str]:
    """The file of each channel in order, and what is wrong with them."""
    several = [path for paths in found.values() if len(paths) > 1 for path in paths]
    missing = [channel for channel in channels if channel not in found]
    paths = tuple(found[channel][0] for channel in channels if channel in found)
    if several:
        return paths, f"Expected one file for a channel of {case}. Received: {listed(several)}. Remove all but one."
    if missing:
        return paths, (
            f"Expected the channels {', '.join(channels)} of {case}. Received: {listed(paths)}; there is none "
            f"ending in {', '.join(missing)}."
        )
    return paths, ""


def _case_folder(folder: Path, key: str, place: Place, channels: tuple[str, ...], label_paths: set[Path]) -> list[Case]:
    """The case of a folder, the DICOM series in it and below it (a case each), or nothing."""
    name = folder.name if folder.name not in ("", "..") else folder.resolve().name
    trail = _relative(folder, place.base).parts or (name,)
    label, problem = _one_of_stem(folder, CASE_LABELS)
    if label is None and not problem:
        label, problem = _one_of_stem(place.label_folder, (name,))
    files = [path for path in scan_files(folder) if path not in label_paths and path != label]
    if channels:
        found: dict[str, list[Path]] = defaultdict(list)
        for path in files:
            ending = max((c for c in channels if stem_of(path).endswith(c)), key=len, default=None)
            if ending is not None:
                found[ending].append(path)
        images, channel_problem = _one_a_channel(found, channels, folder)
        return [Case(name, trail, key, images, label, problem=channel_problem or problem)] if found else []
    known = [path for path in files if stem_of(path) in CASE_IMAGES] or files
    if len(known) > 1:
        problem = (
            f"Expected one scan in {folder}, or one called {' or '.join(CASE_IMAGES)}. Received: {listed(known)}. Say "
            "by --channels which endings are the channels of a case, or by --images=PATTERN which files are scans."
        )
    if known:
        return [Case(name, trail, key, tuple(known), label, problem=problem)]
    # A folder of slices that no series can be made of stays a case, so that it is reported when it is read.
    series = [(path, uid) for path in dicom_folders(folder) for uid in dicom_series(path) or [""]]
    if len(series) == 1:
        return [Case(name, trail, key, (series[0][0],), label, series[0][1], problem=problem)]
    if series and label is not None:
        problem = f"Expected one DICOM series in {folder}, for the mask {label}. Received: {len(series)} series."
    return [Case(f"{name}_{uid}", (*trail, uid), key, (path,), label, uid, problem=problem) for path, uid in series]


def _one_of_stem(folder: Path | None, stems: Sequence[str]) -> tuple[Path | None, str]:
    """The file in a folder that is called one of `stems`, and what is wrong if there are several."""
    if folder is None:
        return None, ""
    paths = [folder / f"{stem}{suffix}" for stem in stems for suffix in SOURCE_SUFFIXES]
    found = [path for path in paths if is_scan_file(path)]
    if len(found) > 1:
        return None, f"Expected one mask for a scan. Received: {listed(found)}. Remove all but one."
    return (found[0] if found else None), ""


def _relative(path: Path, base: Path) -> Path:
    return path.relative_to(base) if path.is_relative_to(base) else Path(path.name)


def listed(names: Sequence[object]) -> str:
    return ", ".join(str(name) for name in names[:4]) + (f", ... ({len(names)})" if len(names) > 4 else "")
