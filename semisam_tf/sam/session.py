"""An exported SAM in ONNX Runtime: encode pictures, decode prompts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from semisam_tf.sam.manifest import DECODER_FILE, ENCODER_FILE, load_manifest

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

# One picture at a time on the CPU: as fast as any batch there (it is bound by arithmetic, and one picture's largest
# tensor is 64 MiB already), and a slice's embedding cannot depend on the slices beside it, which resuming relies on.
_ENCODER_BATCH = {CPU: 1, CUDA: 16}
_DECODER_BATCH = {CPU: 8, CUDA: 64}


class Decoded(NamedTuple):
    """Masks in the model's own low resolution.

    Attributes:
        logits: float32 [N, h, w]; compare with the manifest's `mask_threshold_logits`.
        predicted_iou: float32 [N], the model's own opinion of each mask; nominally in [0, 1], not clipped.
    """

    logits: np.ndarray
    predicted_iou: np.ndarray


class SamSession:
    """Encoder and decoder of one export, each an ONNX Runtime session built once.

    Args:
        folder: An export made by `python -m export.sam`; its files are verified.
        providers: ONNX Runtime's execution providers, best first. The first must really be used.
        allow_cpu: Go on, with a warning, on the CPU where the first provider is not to be had.
        threads: Threads inside an operator; None leaves it to ONNX Runtime (all cores).
        gpu_mem_limit_bytes: Most memory that CUDA may take for each graph; None for no limit.

    Raises:
        FileNotFoundError, ValueError: From `load_manifest`.
        RuntimeError: ONNX Runtime is absent, or does not give the provider that was asked for.
    """

    def __init__(
        self,
        folder: str | Path,
        providers: Sequence[str] = (CPU,),
        allow_cpu: bool = False,
        threads: int | None = None,
        gpu_mem_limit_bytes: int | None = None,
    ) -> None:
        folder = Path(folder)
        self.manifest = load_manifest(folder)
        self._encoder, self._decoder = (
            open_session(folder / name, providers, allow_cpu, threads, gpu_mem_limit_bytes)
            for name in (ENCODER_FILE, DECODER_FILE)
        )
        self.providers: tuple[str, ...] = tuple(self._encoder.get_providers())
        device = CUDA if self.providers[0] == CUDA else CPU
        self.encoder_batch, self._decoder_batch = _ENCODER_BATCH[device], _DECODER_BATCH[device]
        self.encoder_calls = 0
        self.decoder_calls = 0
        self.slices_encoded = 0
        self.prompts_decoded = 0

    def counts(self) -> dict[str, int]:
        """Work done so far: graph runs and the items in them."""
        return {
            "encoder_calls": self.encoder_calls,
            "slices_encoded": self.slices_encoded,
            "decoder_calls": self.decoder_calls,
            "prompts_decoded": self.prompts_decoded,
        }

    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """Embeds pictures.

        Args:
            pictures: float32 [N, rows, columns], made by `SliceFrame.picture`: resized, in [0, 1], padded.

        Returns:
            float32 [N, *embedding_shape].

        Raises:
            ValueError: The pictures are not of the model's input size.
        """
        manifest = self.manifest
        if pictures.ndim != 3 or pictures.shape[1:] != manifest.input_size:
            raise ValueError(
                f"Expected pictures [N, {manifest.input_size[0]}, {manifest.input_size[1]}]; make them with "
                f"SliceFrame.picture. Received: shape={pictures.shape}."
            )
        mean = np.asarray(manifest.scaling.mean, np.float32).reshape(1, -1, 1, 1)
        std = np.asarray(manifest.scaling.std, np.float32).reshape(1, -1, 1, 1)
        tensor = manifest.encoder_inputs["images"].name
        output = manifest.encoder_outputs["embeddings"].name
        embeddings = np.empty((len(pictures), *manifest.embedding_shape), np.float32)
        for start in range(0, len(pictures), self.encoder_batch):
            part = np.asarray(pictures[start : start + self.encoder_batch], np.float32)
            # [n, rows, columns] -> [n, channels, rows, columns]: a grey slice is shown in every channel.
            images = (np.repeat(part[:, None], manifest.channels, axis=1) - mean) / std
            embeddings[start : start + len(part)] = self._encoder.run([output], {tensor: images})[0]
            self.encoder_calls += 1
        self.slices_encoded += len(pictures)
        return embeddings

    def decode(self, embeddings: np.ndarray, prompts: Mapping[str, np.ndarray]) -> Decoded:
        """Answers one prompt per embedding; repeat an embedding to prompt it several times.

        Args:
            embeddings: float [N, *embedding_shape].
            prompts: Role -> float32 array with N first, for each input of the decoder but the embeddings (roles and
                shapes: `Manifest`), in pixels of the picture; both ends of a box are within.

        Raises:
            ValueError: The roles are not those of this decoder, or the lengths differ.
        """
        manifest = self.manifest
        expected = set(manifest.decoder_inputs) - {"embeddings"}
        lengths = {role: len(array) for role, array in prompts.items()}
        if set(prompts) != expected or set(lengths.values()) - {len(embeddings)}:
            raise ValueError(
                f"Expected prompts {sorted(expected)}, one per embedding ({len(embeddings)}). Received: {lengths}."
            )
        names = [manifest.decoder_outputs[role].name for role in ("logits", "predicted_iou")]
        logits = np.empty((len(embeddings), *manifest.logits_size), np.float32)
        predicted_iou = np.empty(len(embeddings), np.float32)
        arrays = {"embeddings": embeddings, **prompts}
        for start in range(0, len(embeddings), self._decoder_batch):
            part = slice(start, start + self._decoder_batch)
            feeds = {
                manifest.decoder_inputs[role].name: np.ascontiguousarray(array[part], np.float32)
                for role, array in arrays.items()
            }
            logits[part], predicted_iou[part] = self._decoder.run(names, feeds)
            self.decoder_calls += 1
        self.prompts_decoded += len(embeddings)
        return Decoded(logits, predicted_iou)


def open_session(
    path: Path,
    providers: Sequence[str] = (CPU,),
    allow_cpu: bool = False,
    threads: int | None = None,
    gpu_mem_limit_bytes: int | None = None,
) -> Any:
    """Builds an `onnxruntime.InferenceSession` that really runs where it was asked to.

    Raises:
        RuntimeError: ONNX Runtime is absent, or gives another provider (it falls back silently).
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeError(
            "Expected ONNX Runtime. Install a flavour: pip install 'semisam-tf[cpu]' or 'semisam-tf[gpu]'."
        ) from error
    if not providers:
        raise ValueError(f"Expected at least one execution provider, e.g. {CPU}. Received: providers={providers}.")
    available = onnxruntime.get_available_providers()
    if CUDA in providers and CUDA in available:
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    # Spinning threads of ONNX Runtime would take TensorFlow's cores between the calls.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    wanted = [(name, _provider_options(name, gpu_mem_limit_bytes)) for name in providers if name in available]
    session = onnxruntime.InferenceSession(str(path), options, providers=wanted or [(CPU, {})])
    got = session.get_providers()
    missing = [name for name in providers if name not in got]
    if missing:
        message = (
            f"Expected ONNX Runtime to run {path.name} on {', '.join(missing)}; it offers {available}. Install the "
            "flavour for it (pip install 'semisam-tf[gpu]'), or allow the CPU with --sam_allow_cpu. "
            f"Received: providers={list(providers)}, got={got}."
        )
        if not allow_cpu:
            raise RuntimeError(message)
        logging.warning("SAM runs on the CPU. %s", message)
    return session


def _provider_options(name: str, gpu_mem_limit_bytes: int | None) -> dict[str, str]:
    if name != CUDA:
        return {}
    # No search among convolution algorithms and no TF32: the same embedding in each process, at float32's precision.
    options = {"cudnn_conv_algo_search": "DEFAULT", "use_tf32": "0"}
    if gpu_mem_limit_bytes is not None:
        options["gpu_mem_limit"] = str(gpu_mem_limit_bytes)
    return options
