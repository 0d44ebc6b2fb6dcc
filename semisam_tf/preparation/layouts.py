"""Finds the cases of a folder of scans: which files are the channels of one, and which mask belongs to it."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from semisam_tf.data.volumes import checked_case_name
from semisam_tf.preparation.case_files import Case, cases_of, listed
from semisam_tf.preparation.masks import given_masks, with_masks
from semisam_tf.preparation.places import CASE_IMAGES, Place, find_places, places_of
from semisam_tf.preparation.sources import SOURCE_SUFFIXES, Found, Problem, Source, scan_files, stem_of


def find_sources(images: str, labels: str = "", channels: Sequence[str] = ()) -> Found:
    """Finds all cases; opens no scan.

    Args:
        images: Files, folders or patterns, separated by commas.
        labels: The same for masks; empty: where the convention of `images` keeps them.
        channels: Endings of the file names of a case's channels, in order; empty: as the convention says.

    Raises:
        FileNotFoundError: No scan, or no mask where `labels` says that there are some.
        ValueError: dataset.json is damaged, or no mask belongs to a scan.
    """
    places = [place for part in places_of(images) for place in find_places(part)]
    masks = given_masks(labels) if labels.strip() else None
    label_paths = {mask.path for mask in masks or ()}
    found = Found(" + ".join(dict.fromkeys(place.layout for place in places)))
    cases: list[Case] = []
    for place in places:
        found.notes += [place.note] if place.note else []
        cases += cases_of(place, tuple(channels) or place.channels, label_paths, found.notes)
    found.dataset = next((place.dataset for place in places if place.dataset), None)
    if not cases:
        raise FileNotFoundError(
            f"Expected scans at {images}: files ending in {', '.join(SOURCE_SUFFIXES)}, case folders with "
            f"{' or '.join(CASE_IMAGES)}, or DICOM series. Received: none of them. {' '.join(found.notes)}"
        )
    cases = _named(cases)
    cases = with_masks(cases, masks, labels, found.notes) if masks is not None else cases
    if masks is None:
        for place in places:
            _note_orphans(place, cases, found.notes)
    _note_unlisted(cases, found)
    for case in sorted(cases, key=lambda case: case.name):
        if problem := case.problem or _name_problem(case) or _scoring_problem(case):
            found.problems.append(Problem(case.name, case.images, case.label, problem))
        else:
            found.sources.append(Source(case.name, case.images, case.label, case.series_uid, case.is_scoring))
    return found


def _name_problem(case: Case) -> str:
    """What is wrong with a name that would lead out of the data folder."""
    try:
        checked_case_name(case.name)
    except ValueError as error:
        return f"{listed(case.images)}: {error}"
    return ""


def _scoring_problem(case: Case) -> str:
    """Test scans without a mask are not quietly trained on."""
    if not case.is_scoring or case.label is not None:
        return ""
    return (
        f"Expected a mask for {case.images[0]}, which the layout keeps for scoring. Received: none. Add it, or give "
        "the folders by --images=.../imagesTr,.../imagesTs to train on such scans as unlabelled."
    )


def _named(cases: list[Case]) -> list[Case]:
    """Cases with names of their own: where file names repeat, the folders' names go before them."""
    if len({case.name for case in cases}) < len(cases):
        trails = [case.trail for case in cases]
        # scans/a/ct.nii.gz and scans/b/ct.nii.gz are a and b.
        while min(map(len, trails)) > 1 and len({trail[-1] for trail in trails}) == 1:
            trails = [trail[:-1] for trail in trails]
        cases = [dataclasses.replace(case, name="_".join(trail)) for case, trail in zip(cases, trails, strict=True)]
    by_name: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        by_name[case.name].append(case)
    unique = []
    for name, of_name in by_name.items():
        case = of_name[0]
        if len(of_name) > 1:
            paths = [path for other in of_name for path in other.images]
            problem = f"Expected one scan of the name {name!r}. Received: {listed(paths)}. Rename or remove one."
            case = dataclasses.replace(case, images=tuple(paths), problem=problem)
        unique.append(case)
    return unique


def _note_orphans(place: Place, cases: list[Case], notes: list[str]) -> None:
    used = {case.label for case in cases}
    orphans = [path for path in scan_files(place.label_folder) if path not in used] if place.label_folder else []
    if orphans:
        notes.append(f"{len(orphans)} masks belong to no scan: {listed(orphans)}.")


def _note_unlisted(cases: list[Case], found: Found) -> None:
    names = {stem_of(Path(name)) for name in found.dataset.listed} if found.dataset else set()
    missing = sorted(names - {case.name for case in cases} - {case.name + "_0000" for case in cases})
    if missing:
        found.notes.append(f"dataset.json lists {len(missing)} scans that are not there: {listed(missing)}.")
