"""What can be read off an ONNX file, and what has to be assumed of an image encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from export.adopt_flags import LAYOUTS, PIXEL_MEAN, PIXEL_STD, Adoption
from semisam_tf.sam.runtime import open_session

DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
_INPUT_SIZE = (1024, 1024)
_CLIP = (0.5, 99.5)
_CHANNELS = 3


class Assumptions:
    """What was taken for granted, in `lines`."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)


@dataclasses.dataclass(frozen=True)
class Graph:
    """An ONNX file with its session; `inputs` and `outputs`: name -> {"name", "shape", "dtype"}, free sizes as None."""

    path: Path
    model: Any
    session: Any
    inputs: dict[str, dict[str, Any]]
    outputs: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, path: str | Path, flag: str) -> Graph:
        """Loads a file.

        Raises:
            FileNotFoundError: It, or a file with its weights, is not there; names `flag`.
            RuntimeError: ONNX Runtime is not installed.
            ValueError: It is no ONNX graph that the installed ONNX Runtime runs.
        """
        import onnx

        if not str(path) or not Path(path).is_file():
            raise FileNotFoundError(f"Expected {flag} to name an ONNX file. Received: {flag}={path}.")
        try:
            session = open_session(Path(path))
            model = onnx.load(path, load_external_data=False)
        except Exception as error:
            if isinstance(error.__cause__, ImportError):
                # ONNX Runtime is absent: the file may be good.
                raise
            # ONNX Runtime's own exceptions have no common class.
            reason = str(error).strip()[:300]
            raise ValueError(
                f"Expected {flag} to be an ONNX graph with its data beside it. Received: {path}: {reason}"
            ) from None
        return cls(Path(path), model, session, _described(session.get_inputs()), _described(session.get_outputs()))

    def listing(self) -> str:
        """Inputs and outputs for a message."""
        return "; ".join(
            f"{what} " + ", ".join(f"{name} {[n or '?' for n in t['shape']]} {t['dtype']}" for name, t in side.items())
            for what, side in (("inputs", self.inputs), ("outputs", self.outputs))
        )

    def opset(self) -> int:
        """Of the standard operators."""
        return next(entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx"))

    def precision(self) -> str:
        """Of the weights: "int8" if the graph multiplies integers, "fp16" if it has half-precision weights."""
        from onnx import TensorProto

        if any(node.op_type.endswith(("Integer", "QuantizeLinear")) for node in self.model.graph.node):
            return "int8"
        half = any(tensor.data_type == TensorProto.FLOAT16 for tensor in self.model.graph.initializer)
        return "fp16" if half else "fp32"

    def run(self, feeds: Mapping[str, tuple[np.ndarray, dict[str, Any]]]) -> dict[str, np.ndarray]:
        """Outputs by name, of arrays reshaped to the ranks of the tensors they come with.

        Raises:
            ValueError: The graph does not run on these.
        """
        arrays = {}
        for name, (array, tensor) in feeds.items():
            # A mask's channel axis; has_mask_input without one.
            missing = len(tensor["shape"]) - array.ndim
            shaped = array.reshape(*array.shape[:1], *[1] * missing, *array.shape[1:]) if missing > 0 else array
            arrays[name] = shaped.astype(tensor["dtype"])
        try:
            results = self.session.run(list(self.outputs), arrays)
        except Exception as error:
            # ONNX Runtime's own exceptions have no common class.
            raise ValueError(
                f"Expected {self.path.name} to run. Received: {str(error).strip()[:300]}; {self.listing()}."
            ) from None
        return dict(zip(self.outputs, results, strict=True))


def _described(tensors: list[Any]) -> dict[str, dict[str, Any]]:
    return {
        tensor.name: {
            "name": tensor.name,
            "shape": [n if isinstance(n, int) and n > 0 else None for n in tensor.shape],
            "dtype": DTYPES.get(tensor.type, tensor.type),
        }
        for tensor in tensors
    }


def tensors_by_role(
    graph: Graph, tensors: dict[str, Any], roles: Mapping[str, str], optional: set[str], others: bool = False
) -> dict[str, dict[str, Any]]:
    """Role -> tensor, free sizes named: "n" for the first axis, "p" for the others.

    Args:
        graph: For the message.
        tensors: Its inputs or outputs.
        roles: Name -> role.
        optional: Names that may be missing.
        others: Whether further names are allowed.

    Raises:
        ValueError: A name is missing, or not known.
    """
    missing = sorted(set(roles) - optional - set(tensors))
    unknown = [] if others else sorted(set(tensors) - set(roles))
    if missing or unknown:
        raise ValueError(
            f"Expected a decoder with Meta's signature ({', '.join(roles)}). Received: {graph.path.name}, "
            f"missing={missing}, unknown={unknown}; {graph.listing()}."
        )
    return {
        role: {**tensors[name], "shape": _named(tensors[name]["shape"])}
        for name, role in roles.items()
        if name in tensors
    }


def _named(shape: list[int | None]) -> list[int | str]:
    return [("p" if axis else "n") if n is None else n for axis, n in enumerate(shape)]


def encoder_facts(encoder: Graph, said: Adoption, assumed: Assumptions) -> dict[str, Any]:
    """The manifest's fields that are about images; `embedding_shape` has None where the graph leaves a size free.

    Raises:
        ValueError: The encoder has not one image input and one embedding, or what was said does not fit.
    """
    embeddings = [t for t in encoder.outputs.values() if len(t["shape"]) == 4]
    if len(encoder.inputs) != 1 or len(embeddings) != 1:
        raise ValueError(
            "Expected an encoder with one input, the image, and one output [n, channels, rows, columns], the "
            f"embedding. Received: {encoder.path.name} with {encoder.listing()}."
        )
    (image,), (embedding,) = encoder.inputs.values(), embeddings
    layout = said.encoder_layout or _layout(image["shape"], encoder)
    free = {"channels_first": image["shape"][2:], "channels_last": image["shape"][1:3]}.get(layout, image["shape"][:2])
    size = _input_size(free, said, encoder, assumed)
    padding = said.padding or ("in_graph" if layout == LAYOUTS[2] and None in free else "end_zeros")
    assumed_padding = "the graph pads" if padding == "in_graph" else "zeros below and to the right, after normalising"
    if said.padding is None:
        assumed(f"padding: {assumed_padding} (--padding)")
    shape = _named(image["shape"])
    return {
        "family": said.name,
        "dims": 2,
        "channels": _CHANNELS,
        "input_size": size,
        "image_layout": layout,
        "padding": padding,
        "resize": "longer_side_linear",
        "input_spacing_mm": None,
        "scaling": _scaling(said, padding == "in_graph" or image["dtype"] == "uint8", assumed),
        "embedding_shape": embedding["shape"][1:],
        "encoder_inputs": {"images": {**image, "shape": shape}},
        "encoder_outputs": {"embeddings": {**embedding, "shape": _named(embedding["shape"])}},
    }


def _layout(shape: list[int | None], encoder: Graph) -> str:
    if len(shape) == 3 and shape[-1] == _CHANNELS:
        return "channels_last_unbatched"
    if len(shape) == 4 and shape[1] == _CHANNELS:
        return "channels_first"
    if len(shape) == 4 and shape[-1] == _CHANNELS:
        return "channels_last"
    raise ValueError(
        f"Expected an image [n, 3, rows, columns], [n, rows, columns, 3] or [rows, columns, 3]; --encoder_layout says "
        f"which where sizes are free. Received: {encoder.path.name} with {encoder.listing()}."
    )


def _input_size(free: list[int | None], said: Adoption, encoder: Graph, assumed: Assumptions) -> list[int]:
    assumed("the longer side of a slice resized to the input's, linearly (Meta's ResizeLongestSide)")
    wanted = said.input_size or _INPUT_SIZE
    size = [n or want for n, want in zip(free, wanted, strict=True)]
    if said.input_size is not None and tuple(size) != said.input_size:
        raise ValueError(
            f"Expected --input_size to be the encoder's. Received: --input_size={said.input_size}, "
            f"{encoder.path.name} with {encoder.listing()}."
        )
    if said.input_size is None and None in free:
        assumed(f"pictures of {size[0]} x {size[1]} pixels (--input_size)")
    return size


def _scaling(said: Adoption, normalised_in_graph: bool, assumed: Assumptions) -> dict[str, Any]:
    mean, std = ((0.0,) * _CHANNELS, (1.0,) * _CHANNELS) if normalised_in_graph else (PIXEL_MEAN, PIXEL_STD)
    if said.pixel_mean is None or said.pixel_std is None:
        who = "the graph normalises: pixels from 0 to 255" if normalised_in_graph else "SAM's"
        assumed(f"pixel mean {said.pixel_mean or mean} and std {said.pixel_std or std}, {who} (--pixel_mean/std)")
    mean, std = said.pixel_mean or mean, said.pixel_std or std
    if len(mean) != _CHANNELS or len(std) != _CHANNELS or min(std) <= 0:
        raise ValueError(
            f"Expected --pixel_mean and --pixel_std of {_CHANNELS} numbers, std above 0. "
            f"Received: --pixel_mean={mean}, --pixel_std={std}."
        )
    if said.clip_percentiles is None or said.intensity_unit is None:
        low, high = said.clip_percentiles or _CLIP
        assumed(
            f"intensities: the scan's percentiles {low:g} to {high:g}, each {said.intensity_unit or 'slice'} "
            "stretched to 0..255 (--clip_percentiles, --intensity_unit)"
        )
    return {
        "clip_percentiles": said.clip_percentiles or _CLIP,
        "unit": said.intensity_unit or "slice",
        "method": "min_max",
        # Of pictures in [0, 1], where SAM's numbers are for 0..255.
        "mean": [value / 255 for value in mean],
        "std": [value / 255 for value in std],
    }
