"""How fast training is, beside the published procedures in PyTorch: docs/speed.md has the tables and what rows mean.

    python benchmarks/speed.py --data_dir=../shared/la          # every row that has no result yet, then the tables
    python benchmarks/speed.py --rows=train_cpu --again
    python benchmarks/speed.py --rows=semisam --sam_med3d=DIR   # minutes in PyTorch, so by name only
    python benchmarks/speed.py --rows=sustained --data_dir=../shared/la
    python benchmarks/speed.py --print_only

Ours and PyTorch's take turns in processes of their own, on two cores at most. Each row ends in one JSON below
benchmarks/results/speed as soon as it is done. DIR is what `python -m export.sam --family=sam_med3d --random_weights
--seed=0 --output=DIR` wrote. To be run from the repository's root.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags
from machine import OtherWork, describe, keep
from turns import CORES, Contestant, alone, take_turns

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "benchmarks" / "results" / "speed"
sys.path.insert(0, str(REPO))

import speed_table  # noqa: E402  (semisam_tf of this clone)

from semisam_tf.config import PRESETS  # noqa: E402
from semisam_tf.health.devices import nvidia_gpus  # noqa: E402

_NETWORK = ("filters", "normalisation", "dropout")
PUBLISHED = {name: PRESETS["paper"][name] for name in _NETWORK}
# Row's ending -> batch and network.
SHAPES: dict[str, dict[str, Any]] = {
    "2x112x112x80": {"batch": 2, "size": (112, 112, 80), **PUBLISHED},
    "4x112x112x80": {"batch": 4, "size": (112, 112, 80), **PUBLISHED},
    "4x128x128x128": {"batch": 4, "size": (128, 128, 128), **PUBLISHED},
    "cpu": {
        "batch": PRESETS["cpu"]["batch_size"],
        "size": PRESETS["cpu"]["patch_size"],
        **{name: PRESETS["cpu"][name] for name in _NETWORK},
    },
}
UNLABELLED_TOO = SHAPES["4x112x112x80"] | {"labelled": 2}
# Repetitions a turn.
FORWARDS = {"cpu": 5}
STEPS = {"cpu": 5, "2x112x112x80": 2}
# Contestants with larger batches are not in memory at the same time: three training steps of 4 x 128^3 take 30 GB.
_VOXELS_TOGETHER = 4 * 112 * 112 * 80
# A SAM mode that takes longer is not timed further.
LIMIT_S = 300.0
_PACKAGES = ("tensorflow-cpu", "tensorflow", "keras", "torch", "onnxruntime", "onnxruntime-gpu", "numpy")

_TURNS = flags.DEFINE_integer("turns", 3, "Turns of each row.", lower_bound=1)
_DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of the left atrium scans; empty: noise, and no row sam_modes.")
_SAM_DIR = flags.DEFINE_string("sam_dir", "models/sam_lite_medsam", "Export of LiteMedSAM.")
_SAM_MED3D = flags.DEFINE_string("sam_med3d", "", "Export of SAM-Med3D with random weights, for the row semisam.")
_PROVIDERS = flags.DEFINE_string("sam_providers", "CPUExecutionProvider", "ONNX Runtime's, as train takes them.")
_OURS_ONLY = flags.DEFINE_boolean("ours_only", False, "Leave PyTorch out, as where its build is not for the GPU.")
_RESULTS = flags.DEFINE_string("results", "", "Folder of the JSON files; empty: benchmarks/results/speed.")
_AGAIN = flags.DEFINE_boolean("again", False, "Measure what has a result already.")
_PRINT_ONLY = flags.DEFINE_boolean("print_only", False, "Run nothing.")


def forward(shape: str) -> dict[str, Any]:
    """A forward pass."""
    arguments = SHAPES[shape]
    return _beside_torch("forward", arguments, FORWARDS.get(shape, 2)) | {
        "gflop": alone("torch_vnet", "forward_gflop", **_counted(arguments))
    }


def train(shape: str) -> dict[str, Any]:
    """A supervised training step."""
    arguments = SHAPES[shape] | {"method": "supervised", "labelled": SHAPES[shape]["batch"]}
    return _beside_torch("train_step", arguments, STEPS.get(shape, 1))


def mean_teacher() -> dict[str, Any]:
    """A mean teacher's step; PyTorch's with the passes that are published and thrown away, and without."""
    arguments = UNLABELLED_TOO | {"method": "mean_teacher"}
    without = arguments | {"thrown_away": False}
    return _measured(
        arguments,
        ours=Contestant("speed_ours", "train_step", arguments),
        torch=Contestant("speed_torch", "train_step", arguments),
        torch_no_waste=Contestant("speed_torch", "train_step", without),
        torch_no_waste_channels_last=Contestant("speed_torch", "train_step", without | {"channels_last": True}),
    )


def ua_mt() -> dict[str, Any]:
    """UA-MT's step."""
    arguments = UNLABELLED_TOO | {"method": "uncertainty_aware_mean_teacher"}
    return _measured(
        arguments,
        ours=Contestant("speed_ours", "train_step", arguments),
        torch=Contestant("speed_torch", "train_step", arguments),
    )


def ua_mt_passes() -> dict[str, Any]:
    """UA-MT's eight teacher passes, and one forward of the teacher on the same items."""
    return _measured(UNLABELLED_TOO, ours=Contestant("speed_ours", "teacher_passes", UNLABELLED_TOO, repetitions=2))


def operations(function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Where the time goes of what another row measures."""
    return {
        "arguments": arguments,
        "tasks": alone("speed_ours", "operations", of=function, arguments=arguments, repetitions=5),
        "gflop": alone("torch_vnet", "forward_gflop_by_layer", **_counted(arguments)),
    }


def sam_modes() -> dict[str, Any]:
    """Steps with SAM in each mode."""
    arguments = {"turns": _TURNS.value, "student_steps": 100, "steps": 8, "online_steps": 1, "limit_s": LIMIT_S}
    found = alone("speed_ours", "sam_modes", data_dir=_DATA_DIR.value, **_sam(), **arguments)
    return {"arguments": arguments | {"sam_providers": _PROVIDERS.value}, "modes": found}


def _sam() -> dict[str, str]:
    return {"sam_dir": _SAM_DIR.value, "sam_providers": _PROVIDERS.value}


def micro_batch() -> dict[str, Any]:
    """A mean teacher's step on all items at once, and on one at a time."""
    return _variants(UNLABELLED_TOO | {"method": "mean_teacher"}, 1, micro_batch_1={"micro_batch": 1})


def devices() -> dict[str, Any]:
    """A mean teacher's step on a batch that parts of the processor share."""
    arguments = SHAPES["cpu"] | {"method": "mean_teacher", "batch": 8, "labelled": 4}
    return _variants(arguments, 3, devices_2={"devices": 2}, devices_4={"devices": 4})


def semisam() -> dict[str, Any]:
    """An iteration of SemiSAM; PyTorch's takes minutes, so it is done once and not warmed up."""
    arguments = SHAPES["4x128x128x128"] | {"labelled": 1}
    sam = {"sam_dir": _SAM_MED3D.value, "sam_providers": _PROVIDERS.value}
    contestants = {
        "ours": Contestant("speed_ours", "semisam", arguments | sam, repetitions=2),
        "torch": Contestant("speed_torch", "semisam", arguments, warm_up=False),
    }
    return {"arguments": arguments, "contestants": take_turns(_taking_part(contestants), turns=1, stay=False)}


def data(setting: str) -> dict[str, Any]:
    """The data pipeline, alone and beside steps."""
    return alone("speed_ours", "data", setting=setting, data_dir=_DATA_DIR.value, batches=40, seconds=60.0)


def start_up() -> dict[str, Any]:
    """Seconds until a command answers, and from a process's start to the end of its first step."""
    found: dict[str, list[float]] = {"help_s": [], "to_first_step_s": [], "first_step_s": [], "next_step_s": []}
    for _ in range(_TURNS.value):
        began_s = time.perf_counter()
        command = [sys.executable, "-m", "semisam_tf.train", "--help"]
        subprocess.run(command, cwd=REPO, check=True, stdout=subprocess.DEVNULL)
        found["help_s"].append(time.perf_counter() - began_s)
        began_s = time.time()
        done = alone("speed_ours", "first_step")
        found["to_first_step_s"].append(done.pop("ended_s") - began_s)
        for name, seconds in done.items():
            found[name].append(seconds)
    return found


def memory() -> dict[str, Any]:
    """Memory of a run, phase by phase."""
    return {"phases": alone("speed_ours", "memory", data_dir=_DATA_DIR.value, **_sam())}


def sustained() -> dict[str, Any]:
    """Ten minutes of steps."""
    return alone("speed_ours", "sustained", data_dir=_DATA_DIR.value, minutes=10)


def _counted(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: arguments[name] for name in ("batch", "size", "filters")}


def _beside_torch(function: str, arguments: dict[str, Any], repetitions: int) -> dict[str, Any]:
    last = arguments | {"channels_last": True}
    return _measured(
        arguments,
        ours=Contestant("speed_ours", function, arguments, repetitions),
        torch=Contestant("speed_torch", function, arguments, repetitions),
        torch_channels_last=Contestant("speed_torch", function, last, repetitions),
    )


def _variants(arguments: dict[str, Any], repetitions: int, **changes: dict[str, Any]) -> dict[str, Any]:
    return _measured(
        arguments,
        **{
            name: Contestant("speed_ours", "train_step", arguments | changed, repetitions)
            for name, changed in {"ours": {}, **changes}.items()
        },
    )


def _measured(arguments: dict[str, Any], **contestants: Contestant) -> dict[str, Any]:
    small = math.prod(arguments["size"]) * arguments["batch"] <= _VOXELS_TOGETHER
    return {"arguments": arguments, "contestants": take_turns(_taking_part(contestants), _TURNS.value, stay=small)}


def _taking_part(contestants: dict[str, Contestant]) -> dict[str, Contestant]:
    theirs = {name for name, contestant in contestants.items() if contestant.module == "speed_torch"}
    return {name: c for name, c in contestants.items() if not (_OURS_ONLY.value and name in theirs)}


ROWS: dict[str, Callable[[], dict[str, Any]]] = {
    **{f"forward_{shape}": lambda shape=shape: forward(shape) for shape in SHAPES},
    **{f"train_{shape}": lambda shape=shape: train(shape) for shape in SHAPES},
    "mean_teacher": mean_teacher,
    "ua_mt": ua_mt,
    "ua_mt_passes": ua_mt_passes,
    "operations_forward_cpu": lambda: operations("forward", SHAPES["cpu"]),
    "operations_ua_mt_passes": lambda: operations("teacher_passes", UNLABELLED_TOO),
    "micro_batch": micro_batch,
    "devices": devices,
    "semisam": semisam,
    "sam_modes": sam_modes,
    **{f"data_{setting}": lambda setting=setting: data(setting) for setting in ("cpu", "published")},
    "memory": memory,
    "start_up": start_up,
    "sustained": sustained,
}
BY_NAME_ONLY = ("semisam", "sustained")
_ROWS = flags.DEFINE_list(
    "rows",
    [name for name in ROWS if name not in BY_NAME_ONLY],
    f"Rows to measure; {' and '.join(BY_NAME_ONLY)} by name only.",
)


def _folder() -> Path:
    # A test, and docs/make_results.py, ask for the table without any flags read.
    return Path(_RESULTS.value) if flags.FLAGS.is_parsed() and _RESULTS.value else RESULTS


def table() -> str:
    """The Markdown tables of the results that are there."""
    found = {name: _folder() / f"{name}.json" for name in ROWS}
    return speed_table.tables(
        {name: json.loads(path.read_text(encoding="utf-8")) for name, path in found.items() if path.is_file()}
    )


def lacking(row: str) -> str:
    """What a row that cannot be measured would need; empty if it can be."""
    if row in ("sam_modes", "memory") and not _DATA_DIR.value:
        return "--data_dir, since SAM has nothing to say on noise"
    if row in ("sam_modes", "memory") and not (Path(_SAM_DIR.value) / "manifest.json").is_file():
        return f"an export of LiteMedSAM in --sam_dir={_SAM_DIR.value}"
    if row == "semisam" and not _SAM_MED3D.value:
        return "--sam_med3d"
    if row == "devices" and 0 < len(nvidia_gpus()) < 4:
        return "four GPUs, or none and a processor to divide"
    return ""


def main(argv: list[str]) -> None:
    """Measures what is missing and prints the tables."""
    unknown = sorted(set(_ROWS.value) - set(ROWS))
    if argv[1:] or unknown:
        raise app.UsageError(
            f"Expected flags only, and --rows of {', '.join(ROWS)}. Received: {argv[1:]}, {', '.join(unknown)}."
        )
    for name in () if _PRINT_ONLY.value else _ROWS.value:
        path = _folder() / f"{name}.json"
        if path.is_file() and not _AGAIN.value:
            continue
        if lacking(name):
            sys.stderr.write(f"{name}: skipped, it needs {lacking(name)}\n")
            continue
        machine = describe(_PACKAGES) | {"cores_used": min(CORES, len(os.sched_getaffinity(0)))}
        others, began_s = OtherWork(), time.perf_counter()
        result = ROWS[name]()
        keep(path, {"row": name, **result, "other_cores": round(others.cores(), 3), "machine": machine})
        sys.stderr.write(f"{name}: measured in {time.perf_counter() - began_s:.0f} s\n")
    sys.stdout.write(table() + "\n")


if __name__ == "__main__":
    app.run(main)
