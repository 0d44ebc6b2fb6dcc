"""SAMs small enough to work out by hand, in the layout of `python -m export.sam`.

Encoder: average of each block of 4 pixels a side. Decoder: the prompted region, where the first channel is above a
quarter. Logits are a half at the region's outermost pixels and grow by one a pixel inwards; they are negative outside.

Loaded by path (see `tests/conftest.py`), since tests are not a package.
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
    Manifest,
    Scaling,
    Tensor,
    file_sha256,
)

BLOCK = 4
BRIGHT = 0.25
OPSET = 17
# Of the square that a click stands for.
RADIUS = 2
FAR = 1000.0
CODES = {"background": 0, "foreground": 1, "padding": -1}
BOX_CODES = {"box_first": 2, "box_last": 3}
# Role -> name in Meta's graphs.
META_NAMES = {
    "embeddings": "image_embeddings",
    "points": "point_coords",
    "masks": "mask_input",
    "has_masks": "has_mask_input",
    "original_size": "orig_im_size",
    "logits": "low_res_masks",
    "predicted_iou": "iou_predictions",
}
KINDS = {"box": {"box"}, "point": {"point"}, "mask": {"mask"}, "sam": {"box", "point", "mask"}}


def write_sam_double(
    folder: Path,
    side: int = 16,
    predicted_iou: float = 0.75,
    clip_percentiles: tuple[float, float] = (0.0, 100.0),
    prompt: str = "box",
    dims: int = 2,
    meta: bool = False,
    image_layout: str = "channels_first",
    fails_above: float | None = None,
    **changes: object,
) -> Manifest:
    """Writes encoder.onnx, decoder.onnx and manifest.json.

    Args:
        folder: Made if absent.
        side: Pixels of the picture's side, a multiple of 4.
        predicted_iou: What the decoder says of each of its masks.
        clip_percentiles: As in the manifest.
        prompt: "box": `boxes`; "mask": `masks` alone; "point": clicks, each a square of radius 2; "sam": SAM's own
            convention, clicks and boxes as points and their codes, masks that can be turned off (in 3D without boxes).
        dims: 2 for slices, 3 for volumes (one channel, `coordinate_axes` (0, 1, 2), spacing 1.5 mm).
        meta: Names, ranks and the fixed batch of Meta's graphs, with four masks of which number 0 is the double's, and
            masks that are wrong unless `original_size` is the picture's. Goes with prompt="sam".
        image_layout: As in the manifest; the unbatched encoder pads its picture itself.
        fails_above: ONNX Runtime fails in the encoder where the pictures' mean is above this; None for never.
        changes: Other fields of the manifest to set.
    """
    folder.mkdir(parents=True, exist_ok=True)
    channels = 3 if dims == 2 else 1
    size, low = (side,) * dims, (side // BLOCK,) * dims
    boxes = prompt == "sam" and dims == 2
    kinds = KINDS[prompt] - ({"box"} if dims == 3 else set())
    axes = (1, 0) if dims == 2 else (0, 1, 2)
    tensors = _tensors(size, channels, prompt, meta, image_layout)
    onnx.save(_encoder(tensors, size, channels, image_layout, fails_above), folder / ENCODER_FILE)
    onnx.save(_decoder(tensors, size, predicted_iou, prompt, axes, meta), folder / DECODER_FILE)
    manifest = Manifest(
        family="double",
        dims=dims,
        input_size=size,
        channels=channels,
        image_layout=image_layout,
        scaling=Scaling(
            clip_percentiles,
            "slice",
            "min_max" if dims == 2 else "z_score_above_minimum",
            (0.0,) * channels,
            (1.0,) * channels,
        ),
        resize="longer_side_linear" if dims == 2 else "spacing_linear",
        padding=("in_graph" if image_layout.endswith("unbatched") else "end_zeros") if dims == 2 else "centre_minimum",
        input_spacing_mm=None if dims == 2 else (1.5,) * 3,
        coordinate_axes=axes,
        point_codes={**CODES, **(BOX_CODES if boxes else {})} if prompt in ("point", "sam") else {},
        mask_size=size if prompt in ("mask", "sam") else (),
        mask_index=0,
        prompts={kind: kind in kinds for kind in ("box", "point", "mask")},
        prompt_notes={kind: f"this double takes no {kind}" for kind in ("box", "point", "mask") if kind not in kinds},
        mask_threshold_logits=0.0,
        embedding_shape=(channels, *low),
        logits_size=size,
        **tensors,
        opset=OPSET,
        exporter="onnx.helper",
        source={"name": "by hand", "sha256": "0" * 64},
        sha256={name: file_sha256(folder / name) for name in (ENCODER_FILE, DECODER_FILE)},
        max_errors={},
        comparisons=(),
        precision={"encoder": "fp32", "mask_dice": None},
        scan_check=None,
        licence="Apache-2.0",
        created_with={},
    )
    manifest = dataclasses.replace(manifest, **changes)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest.to_dict()), encoding="utf-8")
    return manifest


def _tensors(
    size: tuple[int, ...], channels: int, prompt: str, meta: bool, image_layout: str
) -> dict[str, dict[str, Tensor]]:
    """The four maps of the manifest, role -> tensor."""
    low = tuple(n // BLOCK for n in size)
    images = {
        "channels_first": ("n", channels, *size),
        "channels_last": ("n", *size, channels),
        "channels_last_unbatched": (*("height", "width")[: len(size)], channels),
    }[image_layout]
    clicks = {"points": ("n", "p", len(size)), "point_labels": ("n", "p")}
    shapes: dict[str, tuple[int | str, ...]] = {
        "box": {"boxes": ("n", 4)},
        "mask": {"masks": ("n", *size)},
        "point": clicks,
        "sam": {**clicks, "masks": ("n", *size), "has_masks": ("n",)},
    }[prompt]
    batch = 1 if meta else "n"
    outputs: dict[str, tuple[int | str, ...]] = {"logits": ("n", *size), "predicted_iou": ("n",)}
    if meta:
        shapes = {**shapes, "masks": ("n", 1, *size), "original_size": (len(size),)}
        outputs = {"logits": ("n", 4, *size), "predicted_iou": ("n", 4)}

    def described(tensors: dict[str, tuple[int | str, ...]], fixed: bool) -> dict[str, Tensor]:
        return {
            role: Tensor(
                META_NAMES.get(role, role) if meta else role,
                tuple(batch if fixed and n == "n" else n for n in shape),
                "float32",
            )
            for role, shape in tensors.items()
        }

    embeddings: dict[str, tuple[int | str, ...]] = {"embeddings": ("n", channels, *low)}
    return {
        "encoder_inputs": described({"images": images}, False),
        "encoder_outputs": described(embeddings, False),
        "decoder_inputs": described({"embeddings": ("n" if meta else "m", channels, *low), **shapes}, True),
        "decoder_outputs": described(outputs, True),
    }


def _encoder(
    tensors: dict, size: tuple[int, ...], channels: int, image_layout: str, fails_above: float | None
) -> onnx.ModelProto:
    dims = len(size)
    images, embeddings = tensors["encoder_inputs"]["images"].name, tensors["encoder_outputs"]["embeddings"].name
    nodes = []
    if image_layout == "channels_last_unbatched":
        nodes += [helper.make_node("Unsqueeze", [images, "axis_0"], ["batched"])]
        images = "batched"
    if image_layout != "channels_first":
        order = [0, dims + 1, *range(1, dims + 1)]
        nodes += [helper.make_node("Transpose", [images], ["channels_first"], perm=order)]
        images = "channels_first"
    if image_layout == "channels_last_unbatched":
        nodes += [
            helper.make_node("Shape", [images], ["shape"]),
            helper.make_node("Sub", ["full_shape", "shape"], ["missing"]),
            helper.make_node("Concat", ["nothing", "missing"], ["pads"], axis=0),
            helper.make_node("Pad", [images, "pads"], ["padded"]),
        ]
        images = "padded"
    if fails_above is not None:
        # Element 1 of a list of one.
        nodes += [
            helper.make_node("ReduceMean", [images], ["mean"], keepdims=0),
            helper.make_node("Greater", ["mean", "fails_above"], ["is_above"]),
            helper.make_node("Cast", ["is_above"], ["index"], to=TensorProto.INT64),
            helper.make_node("Gather", ["list_of_one", "index"], ["element"]),
            helper.make_node("Add", [images, "element"], ["checked"]),
        ]
        images = "checked"
    nodes += [
        helper.make_node("AveragePool", [images], [embeddings], kernel_shape=[BLOCK] * dims, strides=[BLOCK] * dims)
    ]
    constants = {
        "axis_0": np.array([0], np.int64),
        "full_shape": np.array([1, channels, *size], np.int64),
        "nothing": np.zeros(2 + dims, np.int64),
        "fails_above": np.float32(0 if fails_above is None else fails_above),
        "list_of_one": np.zeros(1, np.float32),
    }
    return _model(nodes, tensors["encoder_inputs"], tensors["encoder_outputs"], constants)


def _box_inside() -> list:
    edges = ["x_first", "y_first", "x_last", "y_last"]
    return [
        helper.make_node("Split", ["boxes"], [f"{edge}_column" for edge in edges], axis=1),
        *[helper.make_node("Reshape", [f"{edge}_column", "flat"], [edge]) for edge in edges],
        helper.make_node("Sub", ["grid_1", "x_first"], ["from_left"]),
        helper.make_node("Sub", ["x_last", "grid_1"], ["from_right"]),
        helper.make_node("Sub", ["grid_0", "y_first"], ["from_top"]),
        helper.make_node("Sub", ["y_last", "grid_0"], ["from_bottom"]),
        helper.make_node("Min", ["from_left", "from_right", "from_top", "from_bottom"], ["inside"]),
    ]


def _points_inside(points: str, axes: tuple[int, ...], masks: str | None, has_masks: str | None) -> list:
    """Nodes from points and codes to `inside`: the union of clicks, box and mask, less the squares clicked away.

    Shapes on the way are [n, p, *size]; coordinate k of a point runs along axis `axes[k]`.
    """
    dims = len(axes)
    node = helper.make_node
    coordinates = [f"coordinate_{axis}" for axis in axes]
    away, first, last = ([f"{name}_{a}" for a in range(dims)] for name in ("away", "first", "last"))
    nodes = [
        node("Split", [points], [f"{name}_column" for name in coordinates], axis=2),
        node("Unsqueeze", ["point_labels", "spatial"], ["code"]),
    ]
    for a in range(dims):
        nodes += [
            node("Unsqueeze", [f"coordinate_{a}_column", "spatial_but_one"], [f"coordinate_{a}"]),
            node("Sub", [f"wide_grid_{a}", f"coordinate_{a}"], [first[a]]),
            node("Neg", [first[a]], [last[a]]),
            node("Abs", [first[a]], [away[a]]),
        ]
    nodes += [
        *[node("Equal", ["code", f"code_{k}"], [f"is_{k}"]) for k in range(4)],
        node("Max", away, ["away"]),
        node("Min", first, ["from_first"]),
        node("Min", last, ["from_last"]),
        node("Sub", ["radius", "away"], ["near"]),
        node("Neg", ["near"], ["beyond"]),
        node("Where", ["is_1", "near", "minus_far"], ["clicked"]),
        node("Where", ["is_0", "beyond", "far"], ["kept"]),
        node("Where", ["is_2", "from_first", "far"], ["after_first"]),
        node("Where", ["is_3", "from_last", "far"], ["before_last"]),
        node("Where", ["is_2", "far", "minus_far"], ["boxed"]),
        *[
            node(f"Reduce{kind}", [name], [f"{name}_all"], axes=[1], keepdims=0)
            for kind, name in [
                ("Max", "clicked"), ("Min", "kept"), ("Min", "after_first"), ("Min", "before_last"), ("Max", "boxed"),
            ]
        ],
        node("Min", ["after_first_all", "before_last_all", "boxed_all"], ["box"]),
    ]  # fmt: skip
    union = ["clicked_all", "box"]
    if masks and has_masks:
        nodes += [
            node("Reshape", [masks, "picture"], ["flat_masks"]),
            node("Reshape", [has_masks, "flat"], ["has"]),
            node("Greater", ["has", "half"], ["is_on"]),
            node("Where", ["is_on", "flat_masks", "minus_far"], ["mask"]),
        ]
        union += ["mask"]
    return [*nodes, node("Max", union, ["united"]), node("Min", ["united", "kept_all"], ["inside"])]


def _decoder(
    tensors: dict, size: tuple[int, ...], predicted_iou: float, prompt: str, axes: tuple[int, ...], meta: bool
) -> onnx.ModelProto:
    dims, low = len(size), size[0] // BLOCK
    names = {role: tensor.name for role, tensor in {**tensors["decoder_inputs"], **tensors["decoder_outputs"]}.items()}
    constants = {
        **{f"code_{k}": np.float32(k) for k in range(4)},
        "spatial": np.arange(2, 2 + dims),
        "spatial_but_one": np.arange(3, 2 + dims),
        "radius": np.float32(RADIUS),
        "far": np.float32(FAR),
        "minus_far": np.float32(-FAR),
        "half": np.float32(0.5),
        "bright": np.float32(BRIGHT),
        "steep": np.float32(20),
        "iou": np.float32(predicted_iou),
        "zero": np.float32(0),
        "first_channel": np.array(0, np.int64),
        "blocks": np.array([-1, *[low, 1] * dims], np.int64),
        "ones": np.ones((1, *[1, BLOCK] * dims), np.float32),
        "picture": np.array([-1, *size], np.int64),
        "flat": np.array([-1, *[1] * dims], np.int64),
        "size": np.array(size, np.float32),
        "axis_1": np.array([1], np.int64),
        "signs": np.array([1, -1, 2, 0], np.float32).reshape(1, 4, *[1] * dims),
        "ious": np.array([[1, 0.5, 0.25, 0]], np.float32),
    }
    for a, n in enumerate(size):
        grid = np.arange(n, dtype=np.float32).reshape([n if i == a else 1 for i in range(dims)])
        constants |= {f"grid_{a}": grid[None], f"wide_grid_{a}": grid[None, None]}
    inside = {
        "box": _box_inside,
        "mask": lambda: [helper.make_node("Identity", ["masks"], ["inside"])],
    }.get(prompt, lambda: _points_inside(names["points"], axes, names.get("masks"), names.get("has_masks")))
    answers = ("the_logits", "the_iou") if meta else (names["logits"], names["predicted_iou"])
    nodes = [
        *inside(),
        helper.make_node("Add", ["inside", "half"], ["prompt_logits"]),
        helper.make_node("Gather", [names["embeddings"], "first_channel"], ["grey"], axis=1),
        helper.make_node("Reshape", ["grey", "blocks"], ["grey_blocks"]),
        helper.make_node("Mul", ["grey_blocks", "ones"], ["grey_pixels"]),
        helper.make_node("Reshape", ["grey_pixels", "picture"], ["brightness"]),
        helper.make_node("Sub", ["brightness", "bright"], ["above"]),
        helper.make_node("Mul", ["above", "steep"], ["bright_logits"]),
        helper.make_node("Min", ["prompt_logits", "bright_logits"], [answers[0]]),
        helper.make_node("ReduceMax", ["inside"], ["deepest"], axes=list(range(1, 1 + dims)), keepdims=0),
        helper.make_node("Mul", ["deepest", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "iou"], [answers[1]]),
    ]
    if meta:
        nodes += [
            helper.make_node("Sub", [names["original_size"], "size"], ["off"]),
            helper.make_node("ReduceSum", ["off"], ["all_off"], keepdims=0),
            helper.make_node("Add", ["the_logits", "all_off"], ["shifted"]),
            helper.make_node("Unsqueeze", ["shifted", "axis_1"], ["one_mask"]),
            helper.make_node("Mul", ["one_mask", "signs"], [names["logits"]]),
            helper.make_node("Unsqueeze", ["the_iou", "axis_1"], ["one_iou"]),
            helper.make_node("Mul", ["one_iou", "ious"], [names["predicted_iou"]]),
        ]
    return _model(nodes, tensors["decoder_inputs"], tensors["decoder_outputs"], constants)


def _model(nodes: list, inputs: dict, outputs: dict, constants: dict) -> onnx.ModelProto:
    def described(tensors: dict) -> list:
        return [helper.make_tensor_value_info(t.name, TensorProto.FLOAT, t.shape) for t in tensors.values()]

    used = {name for node in nodes for name in node.input}
    weights = [numpy_helper.from_array(np.asarray(v), name) for name, v in constants.items() if name in used]
    graph = helper.make_graph(nodes, "double", described(inputs), described(outputs), weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    return model
