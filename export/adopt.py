"""ONNX graphs made elsewhere: inspected, copied, and described by a manifest as if exported here.

The decoder has the signature that Meta's script and samexporter write: image_embeddings, point_coords, point_labels,
mask_input, has_mask_input, orig_im_size -> low_res_masks, iou_predictions (masks, at the original's size, is not used).

Reference: `SamOnnxModel` of segment-anything 1.0, samexporter 0.5.0.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from export.adopt_flags import Adoption
from export.folder import check_output, replacing_folder
from export.graphs import gather_weights, tensors_of
from export.inspection import Assumptions, Graph, encoder_facts, tensors_by_role
from export.record import created_with, sha256_of
from semisam_tf.sam.decoder_inputs import Prompts
from semisam_tf.sam.manifest import DECODER_FILE, ENCODER_FILE, FORMAT, Manifest, file_sha256
from semisam_tf.sam.session import SamSession

DECODER_INPUTS = {
    "image_embeddings": "embeddings",
    "point_coords": "points",
    "point_labels": "point_labels",
    "mask_input": "masks",
    "has_mask_input": "has_masks",
    "orig_im_size": "original_size",
}
DECODER_OUTPUTS = {"low_res_masks": "logits", "iou_predictions": "predicted_iou"}
_OPTIONAL = {"mask_input", "has_mask_input", "orig_im_size"}
POINT_CODES = {"background": 0, "foreground": 1, "padding": -1, "box_first": 2, "box_last": 3}


def adopt(encoder: str | Path, decoder: str | Path, output: str | Path, said: Adoption | None = None) -> dict[str, Any]:
    """Makes an export of two ONNX files; logs what it assumed, a line for each assumption.

    Args:
        encoder: ONNX file; external data beside it is taken along.
        decoder: Likewise.
        output: Folder; replaced as a whole if it holds an older export.
        said: What cannot be read off the files.

    Returns:
        The manifest as JSON values.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: It is no ONNX file, its inputs or outputs are not those known, the two do not fit each other, or
            they do not run. Nothing is written.
    """
    said, output = said or Adoption(), Path(output).resolve()
    check_output(output)
    encoding, decoding = Graph.read(encoder, "--encoder"), Graph.read(decoder, "--decoder")
    assumed = Assumptions()
    values = _values(encoding, decoding, said, assumed)
    manifest = Manifest.from_dict(json.loads(json.dumps(values)))
    for line in assumed.lines:
        logging.info("assumed %s", line)
    with replacing_folder(output) as staging:
        _copy(encoding, staging / ENCODER_FILE)
        _copy(decoding, staging / DECODER_FILE)
        finished = {**manifest.to_dict(), "sha256": sha256_of(staging)}
        (staging / "manifest.json").write_text(json.dumps(finished, indent=2) + "\n", encoding="utf-8")
        _try_out(staging)
    return finished


def _copy(graph: Graph, target: Path) -> None:
    """Byte for byte, unless the weights lie in other files: these become one, named after the graph."""
    from onnx import TensorProto

    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in tensors_of(graph.model.graph)):
        gather_weights(graph.path, target)
    else:
        shutil.copyfile(graph.path, target)


def _values(encoder: Graph, decoder: Graph, said: Adoption, assumed: Assumptions) -> dict[str, Any]:
    """The manifest's fields; sha256 still to come."""
    facts = encoder_facts(encoder, said, assumed)
    inputs = tensors_by_role(decoder, decoder.inputs, DECODER_INPUTS, _OPTIONAL)
    if ("masks" in inputs) != ("has_masks" in inputs):
        raise ValueError(
            f"Expected a decoder with both mask_input and has_mask_input, or neither. Received: {decoder.listing()}."
        )
    embedding_shape = _embedding_shape(facts["embedding_shape"], inputs["embeddings"], encoder, decoder)
    mask_size = inputs["masks"]["shape"][-2:] if "masks" in inputs else []
    if not all(isinstance(n, int) for n in mask_size):
        # SAM's mask prompt has four pixels along each token.
        mask_size = [4 * n for n in embedding_shape[1:]]
        assumed(f"mask prompts of {mask_size}, four times the embedding's size")
    outputs, logits_size = _outputs(decoder, inputs, embedding_shape, mask_size, facts["input_size"])
    _check_mask_index(said.mask_index or 0, outputs["logits"]["shape"])
    if said.mask_threshold is None:
        assumed("a mask where logits are above 0 (--mask_threshold)")
    if outputs["logits"]["shape"][-3] == 1:
        # With --return-single-mask Meta's script picks among four inside the graph.
        assumed("the decoder's one mask to be wanted; for boxes and single points it may be the best of several")
    elif said.mask_index is None:
        assumed("mask 0 of several to be the single-mask one (--mask_index)")
    return {
        **facts,
        **_prompts(said, inputs, assumed),
        **_provenance(encoder, decoder),
        "embedding_shape": embedding_shape,
        "mask_size": mask_size,
        "mask_index": said.mask_index or 0,
        "mask_threshold_logits": said.mask_threshold or 0.0,
        "logits_size": logits_size,
        "decoder_inputs": inputs,
        "decoder_outputs": outputs,
        "licence": said.licence or "unknown",
    }


def _check_mask_index(index: int, logits: list[Any]) -> None:
    masks = logits[1] if len(logits) == 4 else 1
    if isinstance(masks, int) and not 0 <= index < masks:
        raise ValueError(
            f"Expected --mask_index below the decoder's number of masks, {masks}. Received: --mask_index={index}."
        )


def _provenance(encoder: Graph, decoder: Graph) -> dict[str, Any]:
    """What the manifest says of who made the graphs and how they were proved: not here, and not at all."""
    files = [graph.path for graph in (encoder, decoder)]
    digest = hashlib.sha256("".join(file_sha256(path) for path in files).encode()).hexdigest()
    return {
        "opset": encoder.opset(),
        "exporter": "adopted",
        "source": {"name": ", ".join(path.name for path in files), "sha256": digest},
        "sha256": dict.fromkeys((ENCODER_FILE, DECODER_FILE), ""),
        "max_errors": {},
        "comparisons": [],
        "precision": {"encoder": encoder.precision(), "mask_dice": None},
        "scan_check": None,
        "created_with": created_with("onnx", "onnxruntime", "numpy"),
        "format": FORMAT,
    }


def _prompts(said: Adoption, inputs: dict[str, Any], assumed: Assumptions) -> dict[str, Any]:
    kinds = said.prompts or ("box", "point", "mask")
    if said.prompts is None:
        assumed("box, point and mask prompts (--prompts), boxes as two points of codes 2 and 3 (Meta's convention)")
    prompts = {kind: kind in kinds for kind in ("box", "point", "mask")}
    notes = {kind: "Not among the --prompts it was adopted with." for kind, takes in prompts.items() if not takes}
    if "masks" not in inputs:
        prompts["mask"] = False
        notes["mask"] = "The adopted decoder has no mask_input."
    return {"prompts": prompts, "prompt_notes": notes, "point_codes": POINT_CODES, "coordinate_axes": (1, 0)}


def _embedding_shape(encoded: list[Any], tensor: dict[str, Any], encoder: Graph, decoder: Graph) -> list[int]:
    """Numbers of either graph where the other leaves them free; they must not contradict each other."""
    wanted = tensor["shape"][1:]
    pairs = list(zip(encoded, wanted, strict=False))
    contradictory = any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in pairs)
    shape = [a if isinstance(a, int) else b for a, b in pairs]
    if len(encoded) != len(wanted) or contradictory or not all(isinstance(n, int) for n in shape):
        raise ValueError(
            "Expected a decoder that takes what the encoder gives. "
            f"Received: {encoder.path.name} with {encoder.listing()}; {decoder.path.name} with {decoder.listing()}."
        )
    return shape


def _outputs(
    decoder: Graph, inputs: dict[str, Any], embedding_shape: list[int], mask_size: list[int], input_size: list[int]
) -> tuple[dict[str, Any], list[int]]:
    """The decoder's outputs by role and its masks' size; sizes left free are read off a run with one point."""
    outputs = tensors_by_role(decoder, decoder.outputs, DECODER_OUTPUTS, set(), others=True)
    arrays: dict[str, Any] = {
        "embeddings": np.zeros((1, *embedding_shape)),
        "points": np.zeros((1, 2, 2)),
        "point_labels": np.array([[1, -1]]),
        "masks": np.zeros((1, *mask_size)),
        "has_masks": np.zeros(1),
        "original_size": np.array(input_size),
    }
    run = decoder.run({tensor["name"]: (arrays[role], tensor) for role, tensor in inputs.items()})
    for tensor in outputs.values():
        shape = run[tensor["name"]].shape
        # The batch is free if the prompts' is.
        tensor["shape"] = [inputs["points"]["shape"][0], *shape[1:]]
    logits = outputs["logits"]["shape"]
    if len(logits) not in (3, 4) or min(logits[1:]) < 1:
        raise ValueError(f"Expected low_res_masks [n, K, rows, columns]. Received: {logits} of {decoder.path.name}.")
    return outputs, logits[-2:]


def _try_out(folder: Path) -> None:
    """Two prompts of each kind on a picture of noise: the masks must be there, finite, and of the manifest's shapes,
    which the session sees to.

    Raises:
        ValueError: They are not.
    """
    try:
        session = SamSession(folder)
        manifest, rng = session.manifest, np.random.default_rng(0)
        # Smaller than the input in one direction, as a scan's slice is.
        size = (manifest.input_size[0], max(1, manifest.input_size[1] * 3 // 4))
        embedding = session.encode(rng.random((1, *size), np.float32))
        points = np.array(size, np.float32) * rng.uniform(0.2, 0.8, (2, 3, 2)).astype(np.float32)
        boxes = np.stack([points.min(axis=1), points.max(axis=1)], axis=1)
        masks = rng.standard_normal((2, *manifest.mask_size)).astype(np.float32)
        tried = {
            "point": Prompts(points=points),
            "box": Prompts(boxes=boxes),
            "mask": Prompts(points=points if manifest.prompts["point"] else None,
                            boxes=None if manifest.prompts["point"] else boxes, masks=masks),
        }  # fmt: skip
        for kind, takes in manifest.prompts.items():
            if takes:
                session.decode(embedding, tried[kind])
    except Exception as error:
        # ONNX Runtime's own exceptions have no common class.
        raise ValueError(f"Expected the adopted graphs to run. Received: {str(error).strip()[:300]}") from error
