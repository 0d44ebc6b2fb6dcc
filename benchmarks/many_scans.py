"""Memory, set-up and speed of training on very many scans: in memory, and on disk (`--scan_cache_dir`).

    python benchmarks/many_scans.py --folder=/a/disk/with/room
    python benchmarks/many_scans.py --folder=/a/disk/with/room --cases=40 --steps=20
    python benchmarks/many_scans.py --print_only

Cases are balls in noise of 64 x 64 x 48 to 96 x 96 x 64 voxels; those that `--folder` has are taken again. The steps
are cheap, mean teacher with two filters on small crops, so that making crops is a large part of them. Each way of
keeping scans has a process of its own:

    memory      every scan in memory, in the training grid
    disk_first  on disk, where nothing is yet: each scan is brought to the training grid and written
    disk_again  on disk, where the run before has written: what every further run costs

Peak resident memory counts pages of mapped files, which are the page cache's and are given back when memory is needed;
the anonymous part, from /proc/self/smaps_rollup, is the process's own.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from machine import describe, keep

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "benchmarks" / "results" / "many_scans"
sys.path.insert(0, str(REPO))

_FOLDER = flags.DEFINE_string("folder", None, "Folder for the simulated cases and the scans in the training grid.")
_CASES = flags.DEFINE_integer("cases", 1000, "Cases; about 1 MB each as they are stored, and 1.6 MB in the grid.")
_STEPS = flags.DEFINE_integer("steps", 300, "Steps that are timed, after those that trace the network.")
_KIND = flags.DEFINE_string("kind", "", "Of a child process: how it keeps its scans.")
_PRINT_ONLY = flags.DEFINE_boolean("print_only", False, "Run nothing.")

KINDS = ("memory", "disk_first", "disk_again")
_SMALLEST, _LARGEST = (64, 64, 48), (96, 96, 64)
_FIRST_STEPS = 3
_SAMPLE_S = 0.1


def make_cases(folder: Path, n_cases: int) -> None:
    """Writes what is missing of `case_00000`, ... and `train.list`."""
    from semisam_tf.atomic import write_lines
    from semisam_tf.data.volumes import H5_NAME, Volume, save_volume_h5

    names = [f"case_{number:05d}" for number in range(n_cases)]
    for number, name in enumerate(names):
        path = folder / name / H5_NAME
        if path.is_file():
            continue
        rng = np.random.default_rng(number)
        size = [int(rng.integers(low, high + 1)) for low, high in zip(_SMALLEST, _LARGEST, strict=True)]
        middle, radius = np.array(size) / 2 + rng.uniform(-6, 6, 3), rng.uniform(10, 16)
        axes = np.meshgrid(*map(np.arange, size), indexing="ij", sparse=True)
        label = sum((axis - c) ** 2 for axis, c in zip(axes, middle, strict=True)) < radius**2
        image = (40 * label + rng.normal(100, 20, size)).clip(0, 255).astype(np.uint8)
        volume = Volume(name, image[..., None], label.astype(np.uint8), (1.0, 1.0, 1.0), np.eye(4))
        save_volume_h5(path, volume)
    write_lines(folder / "train.list", names)


@contextlib.contextmanager
def peaks() -> Iterator[dict[str, float]]:
    """MiB of this process: "rss_mib" and "anonymous_mib" are the largest of ten looks a second while the block runs."""
    largest = {"rss_mib": 0.0, "anonymous_mib": 0.0}
    done = threading.Event()

    def watch() -> None:
        while True:
            for name, mib in memory_mib().items():
                largest[name] = max(largest[name], mib)
            if done.wait(_SAMPLE_S):
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield largest
    finally:
        done.set()
        thread.join()


def memory_mib() -> dict[str, float]:
    """Resident and anonymous memory of this process now."""
    kib = {}
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, value = line.split(":")
        kib[name] = int(value.split()[0])
    return {"rss_mib": kib["Rss"] / 1024, "anonymous_mib": kib["Anonymous"] / 1024}


def measure(folder: Path, n_cases: int, steps: int, kind: str) -> dict[str, Any]:
    """Loads the scans and trains, in this process."""
    import keras
    import tensorflow as tf

    from semisam_tf.config import Config
    from semisam_tf.data.batches import Prefetcher, stream_of
    from semisam_tf.data.label_access import outside_runs
    from semisam_tf.data.splits import split_of
    from semisam_tf.training.loop import load_data
    from semisam_tf.training.state import Training

    config = Config(
        data_dir=str(folder / "cases"), workdir=str(folder / "run"), labeled="4", filters=2, patch_size=(32, 32, 32),
        normalisation="instance", batch_size=4, labeled_per_batch=2, scan_cache_dir=str(folder / "scans"),
    )  # fmt: skip
    if kind == "memory":
        config = Config.from_dict(config.to_dict() | {"scan_cache_dir": ""})
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    before = memory_mib()
    with peaks() as largest:
        began_s = time.perf_counter()
        scans = load_data(config, split_of(config), outside_runs("a benchmark"))
        stream = stream_of(config, *scans)
        set_up_s = time.perf_counter() - began_s
        training = Training.build(config, 1, *scans, [])
        with Prefetcher(stream.batch, 0, _FIRST_STEPS + steps, workers=config.data_workers) as prefetcher:
            for t, batch in prefetcher:
                if t == _FIRST_STEPS:
                    began_s, waited_s = time.perf_counter(), prefetcher.wait_s
                training.take_step(batch)["total"].numpy()
            steps_s = time.perf_counter() - began_s
            waited_s = prefetcher.wait_s - waited_s
    return {
        "cases": n_cases,
        "steps": steps,
        "set_up_s": round(set_up_s, 2),
        "steps_per_s": round(steps / steps_s, 3),
        "wait_share": round(waited_s / steps_s, 4),
        "before": before,
        "peak": largest,
        "voxel_mib": round(sum(volume.image.nbytes for part in scans for volume in part) / 2**20, 1),
    }


def in_a_process_of_its_own(kind: str) -> dict[str, Any]:
    """`measure` in a new process, since a process's memory does not go back."""
    words = [f"--{name}={flags.FLAGS[name].value}" for name in ("folder", "cases", "steps")]
    command = [sys.executable, __file__, *words, f"--kind={kind}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(result: dict[str, Any]) -> str:
    """Markdown table: a line for each way of keeping scans."""
    some = result[KINDS[0]]
    lines = [
        f"{some['cases']:,} scans, {some['voxel_mib']:.0f} MiB in the training grid; {some['steps']} steps",
        "",
        "| kept | set-up, s | steps/s | wait for data | peak memory, MiB | of it the process's own | grown by |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        row = result[kind]
        own = row["peak"]["anonymous_mib"] - row["before"]["anonymous_mib"]
        cells = [
            kind,
            f"{row['set_up_s']:.1f}",
            f"{row['steps_per_s']:.2f}",
            f"{row['wait_share']:.1%}",
            f"{row['peak']['rss_mib']:.0f}",
            f"{row['peak']['anonymous_mib']:.0f}",
            f"{own:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Makes the cases, measures, writes the JSON, prints."""
    if argv[1:]:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}.")
    path = RESULTS / "many_scans.json"
    if _KIND.value:
        measured = measure(Path(_FOLDER.value), _CASES.value, _STEPS.value, _KIND.value)
        sys.stdout.write(json.dumps(measured) + "\n")
        return
    if not _PRINT_ONLY.value:
        if not _FOLDER.value:
            raise app.UsageError("--folder is needed (or --print_only).")
        folder = Path(_FOLDER.value)
        make_cases(folder / "cases", _CASES.value)
        for kept in (folder / "scans").glob("*.scan"):
            kept.unlink()
        result: dict[str, Any] = {kind: in_a_process_of_its_own(kind) for kind in KINDS}
        keep(path, result | {"machine": describe(("keras", "tensorflow-cpu", "numpy"))})
    sys.stdout.write(table(json.loads(path.read_text(encoding="utf-8"))) + "\n")


if __name__ == "__main__":
    app.run(main)
