"""dataset.json of nnU-Net (version 1 and 2) and of the Medical Segmentation Decathlon: what its files mean.

Reference: nnU-Net's documentation/dataset_format.md; the Decathlon's own dataset.json files.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

DATASET_JSON = "dataset.json"


@dataclass(frozen=True)
class DatasetFacts:
    """What dataset.json says.

    Attributes:
        channel_names: In the order of the channels; empty where it says nothing.
        label_names: Name of each label value, the background's included; empty where it says nothing. Regions of
            nnU-Net 2, which join several values under one name, name no value and are left out.
        ignore_value: The value that nnU-Net 2 leaves out of its loss, or None.
        listed: File names of the training images that it lists.
    """

    channel_names: tuple[str, ...] = ()
    label_names: tuple[tuple[int, str], ...] = ()
    ignore_value: int | None = None
    listed: tuple[str, ...] = ()


def read_dataset_json(folder: Path) -> DatasetFacts | None:
    """Reads `<folder>/dataset.json`; None where there is none.

    Raises:
        ValueError: It is no JSON, or not what the two conventions say; or it names a file outside its folder.
    """
    path = folder / DATASET_JSON
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        channels = content.get("channel_names", content.get("modality", {}))
        pairs = sorted((int(index), str(name)) for index, name in channels.items())
        names, ignore = _labels(content.get("labels", {}))
        listed = [str(e["image"] if isinstance(e, dict) else e) for e in content.get("training", [])]
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(
            f"Expected {path} as nnU-Net or the Medical Segmentation Decathlon write it: channel_names (or modality) "
            f"and labels. Received: {type(error).__name__}: {error}."
        ) from error
    return DatasetFacts(
        tuple(name for _, name in pairs), names, ignore, tuple(_case_file(name, path) for name in listed)
    )


def _labels(labels: dict[str, Any]) -> tuple[tuple[tuple[int, str], ...], int | None]:
    """(value, name) pairs of {"1": "liver"} or {"liver": 1}, and nnU-Net's value to ignore."""
    pairs, ignore = [], None
    for key, value in labels.items():
        if key.lstrip("-").isdigit() and isinstance(value, str):
            pairs.append((int(key), value))
        elif isinstance(value, int):
            pairs.append((value, key))
            ignore = value if key == "ignore" else ignore
    return tuple(sorted(pairs)), ignore


def _case_file(listed: str, path: Path) -> str:
    """Name of a listed file, without its folder."""
    name = PurePosixPath(listed.replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts:
        raise ValueError(
            f"Expected the cases of {path} inside its own folder, without '..' and not absolute. Received: {listed!r}."
        )
    return name.name
