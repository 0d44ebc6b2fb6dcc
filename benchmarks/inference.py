"""Whole-scan inference: the published procedure and ours, same weights, on labelled scans.

    python benchmarks/inference.py --workdir=runs/la_4 --data_dir=../shared/la --cases=configs/la_dev.list
    python benchmarks/inference.py --workdir=runs/la_4 --data_dir=../shared/la --procedures=ours --timed_scans=3
    python benchmarks/inference.py --workdir=runs/la_4 --data_dir=../shared/la --confidence
    python benchmarks/inference.py --print_only

A procedure is how windows are laid over the scan and blended; orientation, normalisation, resampling and the mask's
clean-up are the same code for all. Each procedure has a process of its own, whose peak memory is its own. There
`--timed_scans` are timed, from the scan in memory to its mask in memory; then the rest is predicted for the Dice. Each
ends in one JSON below benchmarks/results/inference.

The published code (UA-MT's `test_single_case`, which SemiSAM uses) strides 18 x 18 x 4 voxels of 0.625 mm. A run whose
training grid is coarser has fewer voxels to stride over: "published" keeps the stride in voxels, the least work that
the procedure can be read as, "published_mm" in millimetres (9 x 9 x 2 at 1.25 mm). With a training grid of 0.625 mm the
two are the same. "published_full" is what the published code does to such a scan, which it never resamples: windows of
112 x 112 x 80 on the scan's own grid. It is there for its time: a network trained on a coarser grid is no good on this
one, so its Dice says nothing, and `--procedures=published_full --timed_scans=1 --nodice` is enough.

A scan is timed after a window of each batch size has traced the network.
"""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import resource
import statistics
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import confidence
import numpy as np
from absl import app, flags
from machine import describe, keep

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "benchmarks" / "results" / "inference"
sys.path.insert(0, str(REPO))

PUBLISHED_STRIDE_VOX = (18, 18, 4)
PUBLISHED_WINDOW_VOX = (112, 112, 80)
PUBLISHED_SPACING_MM = 0.625
# What the network needs its windows to be a multiple of: it halves them four times.
MULTIPLE = 16


@dataclass(frozen=True)
class Procedure:
    """How windows cover a scan.

    Attributes:
        overlap: Share that neighbouring windows have in common; None for the published stride.
        blend: As `predict_probs` takes it.
        window_batch: Windows in one call of the network.
        scan_window: One window as large as the scan, instead of the run's crops.
        stride_in_mm: The published stride is scaled to the training grid.
        own_grid: The scan is not resampled, and windows are the published 112 x 112 x 80.
        tta: Averages over the flips that the run was trained with; it must have been.
        whole_scan: One window as large as the scan, its last voxels repeated: `predict --whole_scan`.
    """

    overlap: float | None = 0.75
    blend: str = "uniform"
    window_batch: int = 1
    scan_window: bool = False
    stride_in_mm: bool = False
    own_grid: bool = False
    tta: bool = False
    whole_scan: bool = False


PROCEDURES = {
    "published": Procedure(overlap=None),
    "published_mm": Procedure(overlap=None, stride_in_mm=True),
    "published_full": Procedure(overlap=None, own_grid=True),
    "ours": Procedure(),
    "gaussian": Procedure(overlap=0.5, blend="gaussian"),
    "gaussian_0.75": Procedure(blend="gaussian"),
    "fast": Procedure(overlap=0.25),
    "overlap_0": Procedure(overlap=0.0),
    "uniform_0.5": Procedure(overlap=0.5),
    "batch_2": Procedure(window_batch=2),
    "batch_4": Procedure(window_batch=4),
    "tta": Procedure(tta=True),
    "scan_window": Procedure(overlap=0.0, scan_window=True),
    "whole_scan": Procedure(whole_scan=True),
}

# None of the others is for every run: see `published_full` above, `Procedure.tta` and `Procedure.whole_scan`.
DEFAULT_PROCEDURES = [name for name in PROCEDURES if name not in ("published_full", "tta", "whole_scan")]

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the labelled scans.")
_CASES = flags.DEFINE_string("cases", "configs/la_dev.list", "File of case names.")
_PROCEDURES = flags.DEFINE_list("procedures", DEFAULT_PROCEDURES, "Procedures to measure.")
_TIMED = flags.DEFINE_integer("timed_scans", 5, "Scans to time, after one that warms up.")
_DICE = flags.DEFINE_boolean("dice", True, "Also predict the scans that are not timed, for the mean Dice over all.")
_CONFIDENCE = flags.DEFINE_boolean(
    "confidence", False, "Instead of the procedures: whether the served model's confidence ranks the scans by Dice."
)
_PRINT_ONLY = flags.DEFINE_boolean("print_only", False, "Run nothing.")


def published_starts(size: tuple[int, ...], window: tuple[int, ...], stride: tuple[int, ...]) -> list[tuple[int, ...]]:
    """First corners of the published windows: fixed strides, the last one of an axis pushed back inside."""
    per_axis = [
        [min(i * s, n - w) for i in range(math.ceil((n - w) / s) + 1)]
        for n, w, s in zip(size, window, stride, strict=True)
    ]
    return list(itertools.product(*per_axis))


def published_probs(crop_probs: Any, image: np.ndarray, window: tuple[int, ...], stride: tuple[int, ...]) -> np.ndarray:
    """Mean of the softmax of windows at a fixed stride, one at a time. Reference: `test_single_case` of UA-MT."""
    from semisam_tf import geometry

    padded, undo = geometry.pad_to(image, window)
    total, count = None, np.zeros((*padded.shape[:3], 1), np.float32)
    for start in published_starts(padded.shape[:3], window, stride):
        place = tuple(slice(low, low + n) for low, n in zip(start, window, strict=True))
        probs = crop_probs(padded[place][None])[0]
        if total is None:
            total = np.zeros((*padded.shape[:3], probs.shape[-1]), np.float32)
        total[place] += probs
        count[place] += 1
    return (total / count)[undo[:3]]


def install(predictor: Any, procedure: Procedure) -> list[int]:
    """Has `predictor` lay its windows by `procedure`. Returns a list that gets the windows of each scan predicted."""
    from semisam_tf.inference.sliding_window import predict_probs

    if procedure.own_grid:
        predictor.config = replace(predictor.config, patch_size=PUBLISHED_WINDOW_VOX)
        predictor.preprocessing = replace(predictor.preprocessing, training_spacing_mm=None)
    patch, windows = predictor.config.patch_size, []
    spacing_mm = predictor.preprocessing.training_spacing_mm
    forward = predictor.crop_probs

    def counted(images: np.ndarray) -> np.ndarray:
        windows[-1] += len(images)
        return forward(images)

    if procedure.whole_scan:
        predictor.crop_probs, of_predictor = counted, predictor.probs

    def probs(image: np.ndarray, on_window: Any = None) -> np.ndarray:
        windows.append(0)
        if procedure.whole_scan:
            return of_predictor(image)
        if procedure.overlap is None:
            stride = PUBLISHED_STRIDE_VOX
            if procedure.stride_in_mm and spacing_mm is not None:
                scale = [PUBLISHED_SPACING_MM / s for s in spacing_mm]
                stride = tuple(max(1, round(n * f)) for n, f in zip(stride, scale, strict=True))
            return published_probs(counted, image, patch, stride)
        window = patch
        if procedure.scan_window:
            window = tuple(MULTIPLE * math.ceil(n / MULTIPLE) for n in image.shape[:3])
        return predict_probs(counted, image, window, procedure.overlap, procedure.blend, procedure.window_batch)

    predictor.probs = probs
    return windows


def time_scans(predictor: Any, procedure: Procedure, volumes: list[Any]) -> tuple[list[float], list[np.ndarray]]:
    """Seconds from each scan in memory to its mask in memory, and the masks; the network is traced before."""
    for batch in range(1, procedure.window_batch + 1):
        predictor.crop_probs(np.zeros((batch, *predictor.config.patch_size, predictor.channels), np.float32))
    seconds, masks = [], []
    for volume in volumes:
        if procedure.scan_window:
            predictor.mask(volume)  # each size is traced anew
        began_s = time.perf_counter()
        masks.append(predictor.mask(volume))
        seconds.append(time.perf_counter() - began_s)
    return seconds, masks


def measure(name: str, workdir: str, data_dir: str, cases: list[str], timed: int, dice: bool) -> dict[str, Any]:
    """Runs one procedure; to be called in a process of its own."""
    import tensorflow as tf

    from semisam_tf.data.label_access import LabelLedger
    from semisam_tf.data.volumes import find_case, load_volume
    from semisam_tf.inference.metrics import case_metrics
    from semisam_tf.inference.predictor import load_predictor
    from semisam_tf.inference.run_folder import read_run, run_id_of

    procedure = PROCEDURES[name]
    predictor, which = load_predictor(Path(workdir), tta=procedure.tta, whole_scan=procedure.whole_scan)
    config = predictor.config
    windows = install(predictor, procedure)

    scoring = LabelLedger(workdir, run_id_of(read_run(Path(workdir)))).access("scoring")

    def load(case: str) -> Any:
        files = find_case(data_dir, case)
        return load_volume(files, with_label=scoring, default_spacing_mm=config.default_spacing_mm or None)

    volumes = [load(case) for case in cases[:timed]]
    seconds, masks = time_scans(predictor, procedure, volumes)
    peak_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB
    windows_per_scan = statistics.mean(windows)
    scores = {}
    for number, case in enumerate(cases if dice else cases[:timed]):
        volume, mask = (volumes[number], masks[number]) if number < timed else (load(case), None)
        mask = predictor.mask(volume) if mask is None else mask
        scores[case] = case_metrics(mask, volume.label, volume.spacing_mm, config.n_classes)["dice"]
    return {
        "procedure": name,
        **asdict(procedure),
        "run": Path(workdir).name,
        "model": which,
        "patch_size": list(predictor.config.patch_size),
        "training_spacing_mm": list(config.training_spacing_mm),
        "network": f"{config.network}, {config.filters} filters, {config.normalisation} norm",
        "windows_per_scan": windows_per_scan,
        "timed_cases": cases[:timed],
        "scan_s": [round(s, 3) for s in seconds],
        "mean_scan_s": statistics.mean(seconds),
        "peak_rss_bytes": peak_bytes,
        "dice": {case: round(score, 5) for case, score in scores.items()},
        "mean_dice": statistics.mean(scores.values()),
        "machine": describe(("keras", "numpy")) | {"tensorflow": tf.__version__},
    }


def write(result: dict[str, Any]) -> None:
    """One JSON per run and procedure. A timing without Dice keeps the Dice that is there, and the other way round."""
    path = RESULTS / f"{result['run']}_{result['procedure']}.json"
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        if len(old["dice"]) > len(result["dice"]):
            result |= {"dice": old["dice"], "mean_dice": old["mean_dice"]}
    keep(path, result)


def table() -> str:
    """Markdown table of all results present, one block per run; times are ratios to the published procedures' too."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    results.sort(key=lambda r: (r["run"], list(PROCEDURES).index(r["procedure"])))
    lines = [
        "| run | procedure | windows | s a scan | x published | x published_mm | x published_full | Dice % (scans) "
        "| peak GB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run, group in itertools.groupby(results, key=lambda r: r["run"]):
        rows = list(group)
        seconds = {row["procedure"]: row["mean_scan_s"] for row in rows}
        for row in rows:
            ratios = [
                f"{seconds[name] / row['mean_scan_s']:.1f}" if name in seconds else "-"
                for name in ("published", "published_mm", "published_full")
            ]
            figures = [
                f"{row['windows_per_scan']:.1f}", f"{row['mean_scan_s']:.2f}", *ratios,
                f"{100 * row['mean_dice']:.2f} ({len(row['dice'])})", f"{row['peak_rss_bytes'] / 1e9:.2f}",
            ]  # fmt: skip
            lines.append("| " + " | ".join([run, row["procedure"], *figures]) + " |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Measures the procedures asked for and prints the table."""
    if argv[1:]:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}.")
    unknown = set(_PROCEDURES.value) - set(PROCEDURES)
    if unknown:
        raise app.UsageError(f"--procedures: expected some of {', '.join(PROCEDURES)}. Received: {sorted(unknown)}.")
    if not _PRINT_ONLY.value:
        if not _WORKDIR.value or not _DATA_DIR.value:
            raise app.UsageError("--workdir and --data_dir are needed.")
        cases = Path(_CASES.value).read_text(encoding="utf-8").split()
        context = multiprocessing.get_context("spawn")
        if _CONFIDENCE.value:
            confidence.write(confidence.measure(_WORKDIR.value, _DATA_DIR.value, cases))
        for name in [] if _CONFIDENCE.value else _PROCEDURES.value:
            words = (name, _WORKDIR.value, _DATA_DIR.value, cases, _TIMED.value, _DICE.value)
            with context.Pool(1) as pool:
                result = pool.apply(measure, words)
            write(result)
            sys.stderr.write(f"{name}: {result['mean_scan_s']:.2f} s a scan, Dice {result['mean_dice']:.4f}\n")
    sys.stdout.write((confidence.table() if _CONFIDENCE.value else table()) + "\n")


if __name__ == "__main__":
    app.run(main)
