"""The encoder in half precision or with 8-bit weights, and how much its masks change.

Only the encoder: it is nearly all of the weights and of the work, and what it says is embedded once. The decoder is
small, and its predicted IoU weighs the student's targets.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np

from export.family import Family
from export.graphs import EXTERNAL_BYTES, gather_weights
from export.scan_check import ScanInputs, masks, onnx_graph, worst_dice
from export.verify import one_at_a_time
from semisam_tf.sam.manifest import DECODER_FILE, ENCODER_FILE

# Worst Dice of masks against float32's below which a reduced encoder is warned of, and refused.
WARN_DICE = 0.995
LEAST_DICE = 0.90
# Products with a matrix of weights only: 8-bit convolutions are slower than float32's on a CPU, and products of two
# activations (attention) would be rounded on both sides. ONNX Runtime has none for stacks of matrices.
_INT8_OPS = ("MatMul", "Gemm")
# Their own pictures, not those of `verify`.
_SEED = 1
_IMAGES = 3


def reduce_encoder(source: Path, target: Path, precision: str) -> None:
    """Writes `source` in a lower precision; inputs and outputs stay float32.

    fp16: every weight and operator that has a half-precision form. int8: weights of matrix products as unsigned 8 bits
    per column, with inputs quantised as they come; unsigned on both sides does not saturate on any CPU.

    Args:
        source: A float32 graph, perhaps with external data.
        target: File in another folder; its external data will be beside it.
        precision: "fp16" or "int8".
    """
    if precision == "fp16":
        _to_fp16(source, target)
    else:
        _to_int8(source, target)


def _to_fp16(source: Path, target: Path) -> None:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    # By its path: a graph with external data is too big for shape inference in memory.
    model = convert_float_to_float16(str(source), keep_io_types=True)
    onnx.save(model, target)


def _to_int8(source: Path, target: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    graph = onnx.load(source, load_external_data=False).graph
    matrices = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    products = [node for node in graph.node if node.op_type in _INT8_OPS]
    whole = target.with_name(f".{target.name}.whole")
    whole.mkdir()
    external = source.with_name(f"{source.name}.data").exists()
    root = logging.getLogger()
    level = root.level
    # Its advice to pre-process is for convolutions.
    root.setLevel(logging.ERROR)
    try:
        quantize_dynamic(
            source,
            whole / target.name,
            op_types_to_quantize=list(_INT8_OPS),
            nodes_to_exclude=[node.name for node in products if node.input[1] not in matrices],
            per_channel=True,
            weight_type=QuantType.QUInt8,
            use_external_data_format=external,
        )
    finally:
        root.setLevel(level)
    if sum(file.stat().st_size for file in whole.iterdir()) > EXTERNAL_BYTES:
        gather_weights(whole / target.name, target)
    else:
        onnx.save(onnx.load(whole / target.name), target)
    for file in whole.iterdir():
        file.unlink()
    whole.rmdir()


def mask_dice(family: Family, full: Path, folder: Path, threshold: float, scan: ScanInputs | None) -> float | None:
    """Worst Dice of the reduced encoder's masks against the float32 encoder's, both through the same decoder.

    None where all masks are empty or full: nothing was compared.

    Over structured pictures with every prompt case of the family, and over the scan's if there is one.

    Args:
        family: Gives pictures and prompts.
        full: The float32 encoder.
        folder: Holds the reduced encoder and the decoder.
        threshold: The manifest's `mask_threshold_logits`.
        scan: Real pictures.
    """
    rng = np.random.default_rng(_SEED)
    images = family.images(rng, ("structured",) * _IMAGES)
    encoders = [onnx_graph(path) for path in (full, folder / ENCODER_FILE)]
    decode = onnx_graph(folder / DECODER_FILE)
    cases = {
        f"{name} {i}": {role: array[[i]] for role, array in make(rng, _IMAGES).items()}
        for name, make in family.prompt_cases.items()
        for i in range(_IMAGES)
    }
    results = []
    for pictures, prompts in [(images, cases), *([(scan.images, scan.prompts)] if scan else [])]:
        expected, got = (
            masks(decode, one_at_a_time(encode, {"images": pictures})["embeddings"], prompts, threshold)
            for encode in encoders
        )
        results.append(worst_dice(expected, got))
    return min((found for found in results if found is not None), default=None)


def verdict(dice: float, precision: str) -> bool:
    """Whether a reduced encoder may be kept; warns where it is worse than it should be by default."""
    if dice < WARN_DICE:
        logging.warning(
            "%s encoder: worst mask Dice against float32 is %.4f, below %.3f. Its masks differ visibly from the "
            "original's.",
            precision,
            dice,
            WARN_DICE,
        )
    return dice >= LEAST_DICE


def encoder_bytes(folder: Path) -> int:
    """Size of the encoder with its external data."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.name.startswith(ENCODER_FILE))
