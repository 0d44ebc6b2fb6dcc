"""Small pictures of the prepared cases, to see at a glance what is upside down, cut off or off its mask."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy import ndimage

from semisam_tf.atomic import replacing
from semisam_tf.data.orientation import axis_code, axis_order
from semisam_tf.data.volumes import Volume
from semisam_tf.geometry import resample
from semisam_tf.inference.picture import TRUTH_COLOUR, organ_centre_vox

# Axes that grow to the left, to the front and upwards: drawn as radiologists look, with the right side on the left.
_RADIOLOGICAL = "LAS"
_SIDE_PX, _GAP_PX, _TITLE_PX = 128, 4, 16
# Classes 1, 2, ...; colours that the colour-blind tell apart, on grey. More classes start again.
_COLOURS = (TRUTH_COLOUR, "#e69f00", "#009e73", "#f0e442", "#cc79a7", "#d55e00")
_CASES_A_SHEET = 200
_DPI = 100


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """One case of a sheet. `pixels`: from `thumbnail`."""

    title: str
    pixels: np.ndarray


def thumbnail(volume: Volume) -> np.ndarray:
    """Three cuts through the middle of the mask, or of the scan, with the mask's outline.

    Returns:
        uint8 [height, width, 3], rows from above: axial, coronal, sagittal in the radiological view where the scan
        stores an orientation, else across its third, second and first axis.
    """
    if volume.has_orientation:
        volume = axis_order(axis_code(volume.affine), _RADIOLOGICAL).apply_to(volume)
    label = np.zeros(volume.size, np.uint8) if volume.label is None else volume.label
    centre = organ_centre_vox(label)
    image = volume.image[..., 0]
    low, high = np.percentile(image, (0.5, 99.5))
    cuts = []
    for axis in (2, 1, 0):
        extent_mm = [n * s for i, (n, s) in enumerate(zip(volume.size, volume.spacing_mm, strict=True)) if i != axis]
        grey = (image.take(centre[axis], axis=axis).astype(np.float32) - low) / max(high - low, 1e-6)
        cuts.append(_cut(np.clip(grey, 0, 1), np.asarray(label.take(centre[axis], axis=axis)), extent_mm))
    return np.concatenate(cuts, axis=1)


def _cut(grey: np.ndarray, label: np.ndarray, extent_mm: Sequence[float]) -> np.ndarray:
    """One square of the thumbnail: the cut in its true proportions, in the middle of black."""
    across, up = (max(1, round(_SIDE_PX * mm / max(extent_mm))) for mm in extent_mm)
    pixels = np.repeat(resample(grey, (across, up), axes=(0, 1))[..., None], 3, axis=-1)
    nearest = [((np.arange(n) + 0.5) * old / n).astype(int) for n, old in zip((across, up), label.shape, strict=True)]
    classes = label[np.ix_(*nearest)]
    for k in np.unique(classes[classes > 0]):
        inside = classes == k
        pixels[inside & ~ndimage.binary_erosion(inside)] = to_rgb(_COLOURS[(int(k) - 1) % len(_COLOURS)])
    square = np.zeros((_SIDE_PX, _SIDE_PX, 3), np.float32)
    x, y = (_SIDE_PX - across) // 2, (_SIDE_PX - up) // 2
    square[x : x + across, y : y + up] = pixels
    return np.round(255 * square.transpose(1, 0, 2)[::-1]).astype(np.uint8)


def save_sheets(folder: Path, cases: Sequence[Thumbnail]) -> list[Path]:
    """Writes `cases.png`, and `cases_2.png` and so on for every further 200 cases. Those of earlier runs go."""
    for left_over in folder.glob("cases_*.png"):
        left_over.unlink()
    pages = [cases[start : start + _CASES_A_SHEET] for start in range(0, len(cases), _CASES_A_SHEET)]
    paths = [folder / ("cases.png" if number == 1 else f"cases_{number}.png") for number in range(1, len(pages) + 1)]
    for path, page in zip(paths, pages, strict=True):
        _save_sheet(path, page)
    return paths


def _save_sheet(path: Path, cases: Sequence[Thumbnail]) -> None:
    width, height = 3 * _SIDE_PX + _GAP_PX, _SIDE_PX + _TITLE_PX + _GAP_PX
    # About as wide as high.
    n_columns = max(1, min(len(cases), round(math.sqrt(len(cases) * height / width))))
    canvas = np.full((-(-len(cases) // n_columns) * height, n_columns * width, 3), 255, np.uint8)
    figure = Figure(figsize=(canvas.shape[1] / _DPI, canvas.shape[0] / _DPI), dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for number, case in enumerate(cases):
        top, left = number // n_columns * height, number % n_columns * width
        canvas[top + _TITLE_PX : top + _TITLE_PX + _SIDE_PX, left : left + 3 * _SIDE_PX] = case.pixels
        axes.text(left + 2, top + _TITLE_PX - 4, _shortened(case.title), fontsize=8, va="baseline")
    axes.imshow(canvas, interpolation="nearest", aspect="auto")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=_DPI, format="png")


def _shortened(title: str, n: int = 58) -> str:
    return title if len(title) <= n else f"{title[: n - 1]}…"
