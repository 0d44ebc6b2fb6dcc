"""Numbers as the report writes them."""

from __future__ import annotations

METRIC_NAMES = {"dice": "Dice", "jaccard": "Jaccard", "hd95_mm": "95HD", "asd_mm": "ASD", "assd_mm": "ASSD"}


def metric_name(metric: str) -> str:
    """Name and unit of a metric of metrics.json."""
    return METRIC_NAMES.get(metric, metric.removesuffix("_mm")) + (" [mm]" if is_distance(metric) else "")


def is_distance(metric: str) -> bool:
    """Whether less is better."""
    return metric.endswith("_mm")


def score(metric: str, value: float | None) -> str:
    """A score: shares with four decimals, distances with two; a dash where there is none."""
    if value is None:
        return "–"  # noqa: RUF001
    return f"{value:.2f}" if is_distance(metric) else f"{value:.4f}"


def short(value: float) -> str:
    """Three digits that count; whole numbers below a million as they are."""
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.3g}"


def share(value: float) -> str:
    """A share as percent."""
    return f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def count(number: int, noun: str) -> str:
    """A number and its noun, with an s where it is not one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
