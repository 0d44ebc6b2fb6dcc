"""The served model: seconds a scan beside `predict`'s pipeline, and the server's memory.

    python benchmarks/serving.py --workdir=runs/la_4 --data_dir=../shared/la --cases=configs/la_dev.list
    python benchmarks/serving.py --workdir=runs/la_4 --data_dir=../shared/la --measure=memory
    python benchmarks/serving.py --print_only

The run is saved by `semisam_tf.serving.save` and served by the STAND-IN for TensorFlow Serving (stand_in/server.py) in
a process of its own, over gRPC on the loopback. What is measured is the SavedModel in TensorFlow's own runtime, without
TensorFlow Serving's.

time: for each scan, one after the other, never two at a time, in an order that changes every turn:
    predict           Predictor.predict: scan in memory -> mask and probabilities in memory
    serving_default   the same by the server: array -> mask and probability as arrays
    predict_file      what the command does for a file: .nii.gz -> mask as .nii
    nifti             the same by the server: bytes of a .nii.gz -> bytes of a .nii
memory: each row has a server of its own, so that nothing of another row is in it. One large scan with more and more
windows (OVERLAPS); and at the default overlap ever larger scans (REPEATS), the first one repeated along x, y and z.
Memory is the peak while a scan is segmented, beside what the process held before.

Ends in one JSON below benchmarks/results/serving.
"""

from __future__ import annotations

import gzip
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from machine import describe, keep

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "benchmarks" / "results" / "serving"
sys.path.insert(0, str(REPO))

MODEL = "served"
# Server's way -> the way of `predict` that it is held against.
REFERENCES = {"serving_default": "predict", "nifti": "predict_file"}
WAYS = ["predict", "serving_default", "predict_file", "nifti"]
OVERLAPS = [0.0, 0.5, 0.75, 0.9]
LARGE = (2, 2, 1)
REPEATS = [(1, 1, 1), (2, 1, 1), LARGE, (2, 2, 2)]
PARTS = ("time", "memory")

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a finished run.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the scans.")
_CASES = flags.DEFINE_string("cases", "configs/la_dev.list", "File of case names.")
_SCANS = flags.DEFINE_integer("scans", 4, "Scans to time.", lower_bound=1)
_TURNS = flags.DEFINE_integer("turns", 3, "Times that each scan is timed each way.", lower_bound=1)
_MEASURE = flags.DEFINE_list("measure", list(PARTS), "What to measure.")
_PRINT_ONLY = flags.DEFINE_boolean("print_only", False, "Run nothing.")


@dataclass(frozen=True)
class Client:
    """Asks the stand-in by gRPC."""

    port: int

    def volume(self, volume: Any) -> tuple[np.ndarray, np.ndarray]:
        """Mask uint8 and foreground probability float32, both [X, Y, Z]."""
        import grpc
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = MODEL, "serving_default"
        request.inputs["volume"].CopyFrom(tf.make_tensor_proto(volume.image))
        request.inputs["spacing_mm"].CopyFrom(tf.make_tensor_proto(np.asarray(volume.spacing_mm, np.float32)))
        options = [(f"grpc.max_{way}_message_length", -1) for way in ("send", "receive")]
        with grpc.insecure_channel(f"127.0.0.1:{self.port}", options) as channel:
            outputs = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, 600).outputs
        return tf.make_ndarray(outputs["mask"]), tf.make_ndarray(outputs["foreground_probability"])

    def nifti(self, scan: bytes) -> bytes:
        """Bytes of a .nii.gz -> bytes of the mask's .nii."""
        from semisam_tf.serving.transport import Endpoint, ask_grpc

        return ask_grpc(Endpoint("grpc", "127.0.0.1", self.port, MODEL), scan, 600).mask


def timings(ways: dict[str, Callable[[int], Any]], scans: int, turns: int) -> dict[str, list[list[float]]]:
    """Seconds of each way: way -> turn -> scan. Each way goes first in some turns; one scan warms up."""
    for way in ways.values():
        way(0)
    names, seconds = list(ways), {name: [[0.0] * scans for _ in range(turns)] for name in ways}
    for turn in range(turns):
        first = turn % len(names)
        for scan in range(scans):
            for name in names[first:] + names[:first]:
                began_s = time.perf_counter()
                ways[name](scan)
                seconds[name][turn][scan] = round(time.perf_counter() - began_s, 4)
    return seconds


def agreement(predictor: Any, client: Client, volumes: list[Any]) -> dict[str, float]:
    """Largest difference of the foreground probability, and how many voxels of the masks differ, of all."""
    worst, differing, total = 0.0, 0, 0
    for volume in volumes:
        ours, (mask, foreground) = predictor.predict(volume), client.volume(volume)
        worst = max(worst, float(np.abs(ours.probs[..., 1:].sum(-1) - foreground).max()))
        differing += int(np.count_nonzero(ours.mask != mask))
        total += mask.size
    return {"probability_difference": worst, "mask_voxels_differing": differing, "voxels": total}


def measure_time(workdir: Path, volumes: list[Any], scratch: Path, turns: int) -> dict[str, Any]:
    """Seconds of every way, and whether predict and the server say the same."""
    from semisam_tf.data.volumes import CaseFiles, load_volume, save_mask
    from semisam_tf.inference.predictor import load_predictor
    from semisam_tf.serving.save import SaveConfig, save
    from stand_in.process import running

    predictor, _ = load_predictor(workdir)
    save(SaveConfig(workdir=str(workdir), output=str(scratch / MODEL)))
    files = [CaseFiles(v.case_id, write_nifti(scratch / f"{n}.nii.gz", v), None, "flat") for n, v in enumerate(volumes)]
    contents = [file.image.read_bytes() for file in files]

    def predict_file(number: int) -> None:
        volume = load_volume(files[number], with_label=False)
        save_mask(scratch / "mask.nii", predictor.mask(volume), volume)

    with running({MODEL: scratch / MODEL}, scratch / "log.txt") as server:
        client = Client(server.grpc)
        ways: dict[str, Callable[[int], Any]] = {
            "predict": lambda n: predictor.predict(volumes[n]),
            "serving_default": lambda n: client.volume(volumes[n]),
            "predict_file": predict_file,
            "nifti": lambda n: client.nifti(contents[n]),
        }
        seconds = timings(ways, len(volumes), turns)
        found = agreement(predictor, client, volumes)
    return {
        "cases": [v.case_id for v in volumes],
        "size_vox": [list(v.size) for v in volumes],
        "compressed_bytes": [len(c) for c in contents],
        "scan_s": seconds,
        "agreement": found,
    }


def measure_memory(workdir: Path, volume: Any, scratch: Path) -> list[dict[str, Any]]:
    """A row for each overlap and each size: windows, voxels, memory before and at the peak."""
    from semisam_tf.config import WINDOW_OVERLAP
    from semisam_tf.data.preprocess import preprocessing_of
    from semisam_tf.inference.run_folder import read_run
    from semisam_tf.serving.save import SaveConfig, save
    from stand_in.process import running

    config, rows = read_run(workdir)["config"], []
    wanted = [(overlap, LARGE) for overlap in OVERLAPS]
    wanted += [(WINDOW_OVERLAP, repeats) for repeats in REPEATS if (WINDOW_OVERLAP, repeats) not in wanted]
    for overlap, repeats in wanted:
        model = scratch / f"{MODEL}_{round(100 * overlap)}"
        if not model.exists():
            save(SaveConfig(workdir=str(workdir), output=str(model), overlap=overlap))
        image = np.tile(volume.image, (*repeats, 1))
        scan = write_nifti(scratch / "scan.nii.gz", volume, image).read_bytes()
        with running({MODEL: model}, scratch / "log.txt") as server:
            server.forget_peak()
            before = server.resident_bytes()
            Client(server.grpc).nifti(scan)
            peak = server.peak_bytes()
        size = image.shape[:3]
        rows.append(
            {
                "overlap": overlap,
                "size_vox": list(size),
                "windows": n_windows(preprocessing_of(config).training_size(size, volume.spacing_mm), config, overlap),
                "before_bytes": before,
                "peak_bytes": peak,
            }
        )
        sys.stderr.write(f"{json.dumps(rows[-1])}\n")
    return rows


def n_windows(size: tuple[int, ...], config: Any, overlap: float) -> int:
    """Windows that cover a training grid of `size` voxels."""
    from semisam_tf import geometry

    padded = [max(n, w) for n, w in zip(size, config.patch_size, strict=True)]
    return len(geometry.window_starts(padded, config.patch_size, overlap))


def write_nifti(path: Path, volume: Any, image: np.ndarray | None = None) -> Path:
    """Writes a scan of one channel, or `image` in its place, as a fast-compressed .nii.gz with its voxel size."""
    from semisam_tf.data.nifti import header_without_orientation

    values = (volume.image if image is None else image)[..., 0]
    # The network has no orientation to turn to where its scans stored none, as LA's.
    header = header_without_orientation(values.shape, volume.spacing_mm).of_map(values.dtype)
    path.write_bytes(gzip.compress(header + bytes(4) + values.tobytes(order="F"), 1))
    return path


def ratios(seconds: dict[str, list[list[float]]], way: str) -> list[float]:
    """Of every turn, the seconds of all scans as a multiple of those of the way's reference."""
    pairs = zip(seconds[way], seconds[REFERENCES[way]], strict=True)
    return [sum(ours) / sum(theirs) for ours, theirs in pairs]


def table() -> str:
    """Markdown tables of all results present: times, memory."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    lines = [
        "| run | way | s a scan | x predict (range of turns) | difference in probability | mask voxels differing |",
        "|---|---|---|---|---|---|",
    ]
    for result in results:
        if "time" in result:
            lines += time_rows(result["run"], result["time"])
    lines += [
        "",
        "| run | overlap | scan | windows | held before, MiB | peak, MiB | added, MiB | bytes added a voxel |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        lines += [memory_row(result["run"], row) for row in result.get("memory", [])]
    return "\n".join(lines)


def time_rows(run: str, found: dict[str, Any]) -> list[str]:
    """A row for each way: mean over scans and turns; the agreement belongs to `serving_default`."""
    rows = []
    for way in WAYS:
        seconds, figures = found["scan_s"], ["-", "-", "-"]
        if way in REFERENCES:
            ratio = ratios(seconds, way)
            figures[0] = f"{statistics.median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})"
        if way == "serving_default":
            same = found["agreement"]
            figures[1:] = [
                f"{same['probability_difference']:.1e}",
                f"{same['mask_voxels_differing']} of {same['voxels']}",
            ]
        mean_s = statistics.mean(s for turn in seconds[way] for s in turn)
        rows.append("| " + " | ".join([run, way, f"{mean_s:.2f}", *figures]) + " |")
    return rows


def memory_row(run: str, row: dict[str, Any]) -> str:
    """One server, one scan."""
    added = row["peak_bytes"] - row["before_bytes"]
    mib = [f"{n / 2**20:.0f}" for n in (row["before_bytes"], row["peak_bytes"], added)]
    size = " x ".join(map(str, row["size_vox"]))
    cells = [run, str(row["overlap"]), size, str(row["windows"]), *mib, f"{added / math.prod(row['size_vox']):.0f}"]
    return "| " + " | ".join(cells) + " |"


def write(result: dict[str, Any]) -> None:
    """One JSON per run; a part that was not measured stays as it is there."""
    path = RESULTS / f"{result['run']}.json"
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        result = old | result | {"machine": old["machine"] | result["machine"]}
    keep(path, result)


def measure(workdir: Path, cases: list[str], parts: list[str]) -> None:
    """Measures the parts asked for and writes each when it is there."""
    import tensorflow as tf

    from semisam_tf.data.volumes import find_case, load_volume
    from semisam_tf.inference.run_folder import read_run

    spacing_mm = read_run(workdir)["config"].default_spacing_mm or None
    files = [find_case(_DATA_DIR.value, case) for case in cases]
    volumes = [load_volume(file, with_label=False, default_spacing_mm=spacing_mm) for file in files]
    if volumes[0].image.shape[-1] != 1:
        raise app.UsageError("Expected scans of one channel; several are not measured.")
    for part in parts:
        with tempfile.TemporaryDirectory() as folder:
            if part == "time":
                found: Any = measure_time(workdir, volumes, Path(folder), _TURNS.value)
            else:
                found = measure_memory(workdir, volumes[0], Path(folder))
        machine = {part: describe(("keras", "numpy", "tensorflow-serving-api")) | {"tensorflow": tf.__version__}}
        write({"run": workdir.name, part: found, "machine": machine})


def main(argv: list[str]) -> None:
    """Measures and prints the tables."""
    if argv[1:]:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}.")
    unknown = set(_MEASURE.value) - set(PARTS)
    if unknown:
        raise app.UsageError(f"--measure: expected some of {', '.join(PARTS)}. Received: {sorted(unknown)}.")
    if not _PRINT_ONLY.value:
        if not _WORKDIR.value or not _DATA_DIR.value:
            raise app.UsageError("--workdir and --data_dir are needed.")
        cases = Path(_CASES.value).read_text(encoding="utf-8").split()[: _SCANS.value]
        measure(Path(_WORKDIR.value), cases, _MEASURE.value)
    sys.stdout.write(table() + "\n")


if __name__ == "__main__":
    app.run(main)
