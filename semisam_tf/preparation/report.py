"""The summary of a prepared data folder, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_COLUMNS = ("case", "split", "file", "spacing mm", "axes", "crop", "prepared", "spacing mm", "intensity", "ml by class",
            "status")  # fmt: skip


def table(cases: Sequence[dict[str, Any]]) -> str:
    """One line for each case of prepare.json, under a line of headings."""
    rows = [_COLUMNS, *(_row(case) for case in cases)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )


def _row(case: dict[str, Any]) -> tuple[str, ...]:
    source, made = case["source"], case["prepared"]
    of_file = ("-", "-", "-")
    if source is not None:
        of_file = _size(source["size_vox"]), _numbers(source["spacing_mm"]), source["orientation"] or "-"
    if made is None:
        return case["case_id"], "-", *of_file, "-", "-", "-", "-", "-", case["status"]
    return (
        case["case_id"],
        case["split"],
        *of_file,
        _crop(made["crop_vox"], made["uncropped_vox"]),
        f"{_size(made['size_vox'])} {made['dtype']}",
        _numbers(made["spacing_mm"]),
        "; ".join(f"{low:.5g}..{high:.5g}" for low, high in made["intensity"]),
        "-" if made["class_ml"] is None else ", ".join(f"{k}: {ml:.4g}" for k, ml in made["class_ml"].items()),
        case["status"],
    )


def _size(size: Sequence[int]) -> str:
    return "x".join(str(n) for n in size)


def _numbers(values: Sequence[float]) -> str:
    return "x".join(f"{value:.4g}" for value in values)


def _crop(box: Sequence[Sequence[int]], size: Sequence[int]) -> str:
    """The box that was kept, as first:last+1 along each axis; "all" for the whole scan."""
    if all(low == 0 and high == n for (low, high), n in zip(box, size, strict=True)):
        return "all"
    return ",".join(f"{low}:{high}" for low, high in box)
