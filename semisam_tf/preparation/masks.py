"""Which case each mask of --labels belongs to."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from semisam_tf.preparation.case_files import Case, listed
from semisam_tf.preparation.places import CASE_LABELS, match, places_of
from semisam_tf.preparation.sources import is_scan_file, scan_files, stem_of


@dataclass(frozen=True)
class Mask:
    """A mask file and the names by which it may belong to a case, the surest first."""

    path: Path
    names: tuple[str, ...]


def given_masks(labels: str) -> list[Mask]:
    """The masks that --labels stands for."""
    masks = []
    for part in places_of(labels):
        path = Path(part)
        if path.is_file():
            masks.append(Mask(path, (stem_of(path), path.parent.name)))
        elif path.is_dir():
            masks += [Mask(file, (stem_of(file),)) for file in scan_files(path)]
            for folder in sorted(entry for entry in path.iterdir() if entry.is_dir()):
                files = scan_files(folder)
                files = [file for file in files if stem_of(file) in CASE_LABELS] or (files if len(files) == 1 else [])
                masks += [Mask(file, (folder.name,)) for file in files]
        else:
            entries = [entry for entry in match(part) if is_scan_file(entry.path)]
            masks += [Mask(e.path, (stem_of(e.path), e.key, e.path.parent.name)) for e in entries]
    if not masks:
        raise FileNotFoundError(f"Expected masks at --labels={labels}. Received: no file of a known type there.")
    return masks


def with_masks(cases: list[Case], masks: list[Mask], labels: str, notes: list[str]) -> list[Case]:
    """Gives each mask to the case of its name; a case that gets two has a problem."""
    by_key = {case.key: number for number, case in enumerate(cases) if case.key}
    by_name = by_key | {case.name: number for number, case in enumerate(cases)}
    given: dict[int, list[Path]] = defaultdict(list)
    orphans = []
    for mask in masks:
        number = next((by_name[name] for name in mask.names if name in by_name), None)
        if number is None:
            orphans.append(mask.path)
        else:
            given[number].append(mask.path)
    if not given:
        raise ValueError(
            f"Expected masks called as their scans. Received: --labels={labels} with {listed(orphans)}, and scans "
            f"called {listed([case.name for case in cases])}. A pattern helps where names differ: "
            "--images='scans/*_ct.nii.gz' --labels='scans/*_seg.nii.gz'."
        )
    if orphans:
        notes.append(f"{len(orphans)} masks belong to no scan: {listed(orphans)}.")
    result = []
    for number, case in enumerate(cases):
        paths = given.get(number, [])
        problem = case.problem
        if len(paths) > 1:
            problem = problem or f"Expected one mask for {case.name!r}. Received: {listed(paths)}. Remove all but one."
        result.append(dataclasses.replace(case, label=paths[0] if paths else None, problem=problem))
    return result
