"""A SAM small enough to work out by hand, in the layout of `python -m export.sam`.

Encoder: average of each 4x4 block. Decoder: the prompted region, where the first channel is above a quarter.
Logits are a half at the box's outermost pixels and grow by one per pixel inwards; they are negative outside.

Loaded by path (see `tests/unit/sam/conftest.py`), since tests are not a package.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from semisam_tf.sam.manifest import (
    DECODER_FILE,
    ENCODER_FILE,
    MANIFEST_FILE,
    PROMPT_KINDS,
    Manifest,
    Scaling,
    Tensor,
    file_sha256,
)

BLOCK = 4
BRIGHT = 0.25
OPSET = 17


def write_sam_double(
    folder: Path,
    side: int = 16,
    predicted_iou: float = 0.75,
    clip_percentiles: tuple[float, float] = (0.0, 100.0),
    prompt: str = "box",
    **changes: object,
) -> Manifest:
    """Writes encoder.onnx, decoder.onnx and manifest.json.

    Args:
        folder: Made if absent.
        side: Pixels of the picture's side, a multiple of 4.
        predicted_iou: What the decoder says of each of its masks.
        clip_percentiles: As in the manifest.
        prompt: "box"; "point": a square of radius 2 about the point instead of the box; "mask": the mask itself.
        changes: Other fields of the manifest to set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    low = side // BLOCK
    onnx.save(_encoder(side), folder / ENCODER_FILE)
    onnx.save(_decoder(side, predicted_iou, prompt), folder / DECODER_FILE)
    manifest = Manifest(
        family="double",
        dims=2,
        input_size=(side, side),
        channels=3,
        scaling=Scaling(clip_percentiles, "slice", (0.0,) * 3, (1.0,) * 3),
        resize="longer_side_linear",
        padding="end_zeros",
        prompts={kind: kind == prompt for kind in PROMPT_KINDS},
        prompt_notes={kind: f"this double takes a {prompt}" for kind in PROMPT_KINDS if kind != prompt},
        mask_threshold_logits=0.0,
        embedding_shape=(3, low, low),
        logits_size=(side, side),
        encoder_inputs={"images": Tensor("images", ("n", 3, side, side), "float32")},
        encoder_outputs={"embeddings": Tensor("embeddings", ("n", 3, low, low), "float32")},
        decoder_inputs={
            "embeddings": Tensor("embeddings", ("n", 3, low, low), "float32"),
            **{name: Tensor(name, shape, "float32") for name, shape in _prompt_shapes(side)[prompt].items()},
        },
        decoder_outputs={
            "logits": Tensor("logits", ("n", side, side), "float32"),
            "predicted_iou": Tensor("predicted_iou", ("n",), "float32"),
        },
        opset=OPSET,
        exporter="onnx.helper",
        source={"name": "by hand", "sha256": "0" * 64},
        sha256={name: file_sha256(folder / name) for name in (ENCODER_FILE, DECODER_FILE)},
        max_errors={},
        licence="Apache-2.0",
        created_with={},
    )
    manifest = dataclasses.replace(manifest, **changes)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest.to_dict()))
    return manifest


def _encoder(side: int) -> onnx.ModelProto:
    pool = helper.make_node(
        "AveragePool", ["images"], ["embeddings"], kernel_shape=[BLOCK, BLOCK], strides=[BLOCK, BLOCK]
    )
    return _model([pool], {"images": ("n", 3, side, side)}, {"embeddings": ("n", 3, side // BLOCK, side // BLOCK)}, {})


def _prompt_shapes(side: int) -> dict[str, dict[str, tuple[int | str, ...]]]:
    return {
        "box": {"boxes": ("n", 4)},
        "point": {"points": ("n", 1, 2), "point_labels": ("n", 1)},
        "mask": {"masks": ("n", side, side)},
    }


def _inside(prompt: str) -> list:
    """Nodes that compute `inside` [n, side, side] from the prompt."""
    if prompt == "mask":
        return [helper.make_node("Identity", ["masks"], ["inside"])]
    if prompt == "point":
        return [
            helper.make_node("Reshape", ["points", "pair"], ["point"]),
            helper.make_node("Split", ["point"], ["x_column", "y_column"], axis=1),
            *[helper.make_node("Reshape", [f"{axis}_column", "flat"], [f"{axis}_point"]) for axis in "xy"],
            *[helper.make_node("Sub", [axis, f"{axis}_point"], [f"{axis}_apart"]) for axis in "xy"],
            *[helper.make_node("Abs", [f"{axis}_apart"], [f"{axis}_away"]) for axis in "xy"],
            helper.make_node("Max", ["x_away", "y_away"], ["away"]),
            # A point labelled 0 is outside of everything.
            helper.make_node("Reshape", ["point_labels", "flat"], ["is_inside"]),
            helper.make_node("Mul", ["is_inside", "radius"], ["reach"]),
            helper.make_node("Sub", ["reach", "away"], ["inside"]),
        ]
    edges = ["x_first", "y_first", "x_last", "y_last"]
    return [
        helper.make_node("Split", ["boxes"], [f"{edge}_column" for edge in edges], axis=1),
        *[helper.make_node("Reshape", [f"{edge}_column", "flat"], [edge]) for edge in edges],
        helper.make_node("Sub", ["x", "x_first"], ["from_left"]),
        helper.make_node("Sub", ["x_last", "x"], ["from_right"]),
        helper.make_node("Sub", ["y", "y_first"], ["from_top"]),
        helper.make_node("Sub", ["y_last", "y"], ["from_bottom"]),
        helper.make_node("Min", ["from_left", "from_right", "from_top", "from_bottom"], ["inside"]),
    ]


def _decoder(side: int, predicted_iou: float, prompt: str) -> onnx.ModelProto:
    low = side // BLOCK
    constants = {
        "x": np.arange(side, dtype=np.float32).reshape(1, 1, side),
        "y": np.arange(side, dtype=np.float32).reshape(1, side, 1),
        "radius": np.float32(2),
        "half": np.float32(0.5),
        "bright": np.float32(BRIGHT),
        "steep": np.float32(20),
        "iou": np.float32(predicted_iou),
        "zero": np.float32(0),
        "first_channel": np.array(0, np.int64),
        "blocks": np.array([-1, low, 1, low, 1], np.int64),
        "ones": np.ones((1, 1, BLOCK, 1, BLOCK), np.float32),
        "picture": np.array([-1, side, side], np.int64),
        "pair": np.array([-1, 2], np.int64),
        "flat": np.array([-1, 1, 1], np.int64),
    }
    nodes = [
        *_inside(prompt),
        helper.make_node("Add", ["inside", "half"], ["prompt_logits"]),
        helper.make_node("Gather", ["embeddings", "first_channel"], ["grey"], axis=1),
        helper.make_node("Reshape", ["grey", "blocks"], ["grey_blocks"]),
        helper.make_node("Mul", ["grey_blocks", "ones"], ["grey_pixels"]),
        helper.make_node("Reshape", ["grey_pixels", "picture"], ["brightness"]),
        helper.make_node("Sub", ["brightness", "bright"], ["above"]),
        helper.make_node("Mul", ["above", "steep"], ["bright_logits"]),
        helper.make_node("Min", ["prompt_logits", "bright_logits"], ["logits"]),
        helper.make_node("ReduceMax", ["inside"], ["deepest"], axes=[1, 2], keepdims=0),
        helper.make_node("Mul", ["deepest", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "iou"], ["predicted_iou"]),
    ]
    inputs = {"embeddings": ("n", 3, low, low), **_prompt_shapes(side)[prompt]}
    return _model(nodes, inputs, {"logits": ("n", side, side), "predicted_iou": ("n",)}, constants)


def _model(nodes: list, inputs: dict, outputs: dict, constants: dict) -> onnx.ModelProto:
    def described(tensors: dict) -> list:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in tensors.items()]

    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "double", described(inputs), described(outputs), weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    return model
