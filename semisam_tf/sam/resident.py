"""Embeddings that stay where encoder and decoder compute: ONNX Runtime's IO binding in place of a way over the host.

A decoder wants an embedding of a few MiB for each prompt. From the host every run would copy them all to the GPU, one
several times where a view has several prompts. Here each view's embedding is in the GPU's memory once, rounded to
float16 as ever (`cache.quantise`), and the GPU gathers those that a run needs. What has just been encoded does not come
down at all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from semisam_tf.sam.manifest import Manifest

# Two ONNX models, opset 13, of tensors of any shape. The first is y = float16(x) for float32 x, the second
# y = float32(x[rows]) for float16 x and int64 rows [n]. The tests take them apart.
ROUNDING = (
    b'\x08\x08:2\n\x17\n\x01x\x12\x01y"\x04Cast*\t\n\x02to\x18\n\xa0\x01\x02\x12\x01gZ\t\n\x01x\x12\x04\n\x02\x08\x01b\t'
    b"\n\x01y\x12\x04\n\x02\x08\nB\x04\n\x00\x10\r"
)
GATHERING = (
    b'\x08\x08:c\n!\n\x01x\n\x04rows\x12\x01g"\x06Gather*\x0b\n\x04axis\x18\x00\xa0\x01\x02\n\x17\n\x01g\x12\x01y"\x04Ca'
    b"st*\t\n\x02to\x18\x01\xa0\x01\x02\x12\x01gZ\t\n\x01x\x12\x04\n\x02\x08\nZ\x0c\n\x04rows\x12\x04\n\x02\x08\x07b\t\n"
    b"\x01y\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
# Where `Device.run` puts an output that the host reads.
HOST = ("cpu", 0)


class Device:
    """Where ONNX Runtime computes, and runs whose inputs and outputs stay there.

    Args:
        name: ONNX Runtime's, "cuda" (or "cpu", where there is nothing to gain).
        number: Of the device.
        open_model: Makes a session of a model's bytes that runs there.
    """

    def __init__(self, name: str, number: int, open_model: Callable[[bytes], Any]) -> None:
        self.place = (name, number)
        self.rounding, self.gathering = open_model(ROUNDING), open_model(GATHERING)

    def upload(self, embeddings: np.ndarray) -> ResidentEmbeddings:
        """float16 [N, *embedding_shape] of the host, each copied once."""
        from onnxruntime import OrtValue

        value = OrtValue.ortvalue_from_numpy(np.ascontiguousarray(embeddings), *self.place)
        return ResidentEmbeddings(self, value)

    def room(self, count: int, embedding_shape: Sequence[int]) -> ResidentEmbeddings:
        """Memory for `count` embeddings that `ResidentEmbeddings.write` will fill."""
        from onnxruntime import OrtValue

        value = OrtValue.ortvalue_from_shape_and_type([count, *embedding_shape], np.float16, *self.place)
        return ResidentEmbeddings(self, value)

    def run(self, session: Any, feeds: Mapping[str, Any], outputs: Mapping[str, tuple[Any, ...]]) -> list[Any]:
        """Runs a session that computes here.

        Args:
            feeds: Arrays of the host and `OrtValue`s alike.
            outputs: Name -> where it goes, as `IOBinding.bind_output` takes it: `place`, or `HOST`.

        Returns:
            An `OrtValue` for each of `outputs`.
        """
        binding = session.io_binding()
        for name, value in feeds.items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, value)
            else:
                binding.bind_ortvalue_input(name, value)
        for name, where in outputs.items():
            binding.bind_output(name, *where)
        # Copies may still be under way at either end.
        binding.synchronize_inputs()
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return binding.get_outputs()


@dataclasses.dataclass(frozen=True)
class ResidentEmbeddings:
    """float16 [N, *embedding_shape] in the memory of a device; `value` is an `onnxruntime.OrtValue`."""

    device: Device
    value: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, *embedding_shape]."""
        return tuple(self.value.shape())

    def __len__(self) -> int:
        return self.shape[0]

    def write(self, part: slice, embeddings: Any) -> None:
        """Rounds an `OrtValue` float32 [n, *embedding_shape] of the device, as numbers `part` of these."""
        shape = [part.stop - part.start, *self.shape[1:]]
        offset = part.start * math.prod(self.shape[1:]) * np.dtype(np.float16).itemsize
        where = (*self.device.place, np.float16, shape, self.value.data_ptr() + offset)
        self.device.run(self.device.rounding, {"x": embeddings}, {"y": where})

    def gathered(self, rows: np.ndarray) -> Any:
        """`OrtValue` float32 [m, *embedding_shape] of the device: those that `rows` [m] names, in its order."""
        feeds = {"x": self.value, "rows": np.asarray(rows, np.int64)}
        (value,) = self.device.run(self.device.gathering, feeds, {"y": self.device.place})
        return value


def can_stay(manifest: Manifest) -> bool:
    """Whether encoder and decoder hand over float32 [n, *embedding_shape] as it is; other shapes go over the host."""
    tensors = (manifest.encoder_outputs["embeddings"], manifest.decoder_inputs["embeddings"])
    rank = 1 + len(manifest.embedding_shape)
    return all(tensor.dtype == "float32" and len(tensor.shape) == rank for tensor in tensors)
