"""The flags of `semisam_tf.prepare`. Imports nothing heavy."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterable

from semisam_tf.options import OptionError, check_choices, option
from semisam_tf.shards import parse_shard

SPACINGS = ("median", "own")
CROPS = ("none", "foreground", "body")
_LETTERS = ("RL", "AP", "SI")


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Makes a data folder for training out of scans and masks of any common type, layout, orientation and spacing."""

    images: str = option(
        "",
        "Scans: a folder, or files or case folders by a pattern such as 'scans/*_ct.nii.gz' (in quotes); several "
        "separated by commas. .nii, .nii.gz, .nrrd, .nhdr, .mha, .mhd, folders of DICOM series. Recognised: case "
        "folders, images/ with labels/, nnU-Net, Medical Segmentation Decathlon, 2018 Atrial Segmentation Challenge.",
    )
    labels: str = option(
        "",
        "Masks: the same. A mask belongs to the scan of its name, or of its pattern's wildcard. Empty: where the "
        "layout keeps them; scans without a mask are unlabelled.",
    )
    output: str = option("", "Data folder to write. The same command again does only what has changed.")
    channels: str = option(
        "",
        "Endings of the file names of a case's channels (modalities), in order, as _t1,_flair. Empty: as nnU-Net's "
        "_0000, _0001 where the layout is that, else one channel.",
    )
    fourth_axis: str = option(
        "refuse",
        "What a fourth axis, or several components a voxel, means: refuse stops at what may be a time series; "
        "channels takes them as channels. Where dataset.json names several channels they are taken anyway.",
        choices=("refuse", "channels"),
    )
    label_map: str = option(
        "",
        "Class of each value in the masks, as 205:1,420:2,600:0; values that are not named are refused. Empty: as "
        "dataset.json says; else a single value is class 1, and values 1, 2, ... are classes.",
    )
    allow_empty_masks: bool = option(False, "Take masks without foreground: the organ is not in that scan.")
    orientation: str = option("RAS", "Way in which the axes of all cases run; axes are permuted and flipped.")
    spacing_mm: str = option(
        "median",
        "Voxel size of all cases: x,y,z along the axes of --orientation; median of the cases, axis by axis; own keeps "
        "each case's.",
        unit="mm",
    )
    default_spacing_mm: tuple[float, ...] = option(
        (), "Voxel spacing x,y,z of NRRD files that store none, along their own axes.", unit="mm"
    )
    crop: str = option(
        "none",
        "What is kept, judged by the image alone: foreground takes off padding of one value, body all but the largest "
        "bright piece. Percentiles and z-score of training are then those of the crop: prepare scans to be predicted "
        "in the same way.",
        choices=CROPS,
    )
    crop_margin_mm: float = option(10.0, "Kept around it.", unit="mm")
    image_dtype: str = option(
        "auto", "auto: uint8 where all values are whole numbers from 0 to 255, which is exact, else float32.",
        choices=("auto", "float32"),
    )  # fmt: skip
    labeled: str = option(
        "",
        "How many of the cases with a mask are labelled, drawn at random, or a file of their names. Empty: all but "
        "those for scoring. The others are trained on without their mask.",
    )
    scoring: str = option(
        "",
        "How many of the cases with a mask are kept for scoring, drawn at random, or a file of their names. Empty: "
        "those of nnU-Net's imagesTs with labelsTs, else none.",
    )
    seed: int = option(0, "Seed of the draw.")
    strict: bool = option(False, "Prepare nothing if one case is bad. Else bad cases are left out and reported.")
    shard: str = option(
        "",
        "i/n: every n-th case from the i-th on alone, for n processes that fill one folder; when all are done, the "
        "same command without it writes lists and summary. Empty: all cases.",
    )
    workers: int = option(0, "Processes. 0: one for each CPU core, at most 8; each holds a scan or two in memory.")


def check(config: PrepareConfig) -> None:
    """Raises OptionError for flags that are missing or cannot be."""
    for name in ("images", "output"):
        if not getattr(config, name).strip():
            raise OptionError(f"--{name} is needed (--help lists every flag).")
    check_choices(config)
    if len(config.orientation) != 3 or not all(any(c in pair for c in config.orientation) for pair in _LETTERS):
        raise OptionError(
            f"--orientation: expected three letters such as RAS or LPS. Received: {config.orientation!r}."
        )
    if len(config.default_spacing_mm) not in (0, 3) or not _all_positive(config.default_spacing_mm):
        raise OptionError(
            f"--default_spacing_mm: expected three values x,y,z above 0. Received: {config.default_spacing_mm}."
        )
    given_spacing(config)
    parse_shard(config.shard)
    if not 0 <= config.crop_margin_mm < math.inf:
        raise OptionError(f"--crop_margin_mm: expected at least 0. Received: {config.crop_margin_mm}.")
    if config.workers < 0 or config.seed < 0:
        raise OptionError("--workers and --seed: expected at least 0.")
    endings = channel_endings(config)
    if len(set(endings)) < len(endings):
        raise OptionError(f"--channels: expected each ending once. Received: {config.channels!r}.")


def given_spacing(config: PrepareConfig) -> tuple[float, float, float] | None:
    """The spacing that --spacing_mm spells out; None for a word.

    Raises:
        OptionError: Neither three values above 0 nor a word.
    """
    if config.spacing_mm in SPACINGS:
        return None
    try:
        x, y, z = (float(part) for part in config.spacing_mm.split(","))
    except ValueError:
        x = y = z = math.nan
    if not _all_positive((x, y, z)):
        raise OptionError(
            f"--spacing_mm: expected three values x,y,z above 0, or {' or '.join(SPACINGS)}. "
            f"Received: {config.spacing_mm!r}."
        )
    return x, y, z


def channel_endings(config: PrepareConfig) -> tuple[str, ...]:
    """The endings of --channels."""
    return tuple(part.strip() for part in config.channels.split(",") if part.strip())


def worker_count(config: PrepareConfig) -> int:
    """How many processes."""
    return config.workers or min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)


def _all_positive(values: Iterable[float]) -> bool:
    return all(math.isfinite(value) and value > 0 for value in values)
