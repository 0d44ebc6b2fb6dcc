"""An exported SAM in ONNX Runtime: encode pictures, decode prompts."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from semisam_tf.sam.decoder_inputs import Prompts, batch_is_one, decoder_arrays, fitted
from semisam_tf.sam.manifest import DECODER_FILE, ENCODER_FILE, Manifest, load_manifest
from semisam_tf.sam.manifest_rules import PROMPT_ROLES
from semisam_tf.sam.resident import HOST, Device, ResidentEmbeddings, can_stay
from semisam_tf.sam.runtime import CPU, CUDA, open_session

# One picture at a time on the CPU: as fast as any batch there (it is bound by arithmetic, and one picture's largest
# tensor is 64 MiB already), and a slice's embedding cannot depend on the slices beside it, which resuming relies on.
# On a GPU sixteen pictures of 256x256, or as many larger ones as have so many pixels: memory goes with those.
_ENCODER_PIXELS = {CPU: 0, CUDA: 16 * 256 * 256}
_DECODER_BATCH = {CPU: 8, CUDA: 64}
# Provider -> name of the device that embeddings stay on; the CPU's memory is the host's anyway.
_RESIDENT = {CUDA: "cuda"}


class Decoded(NamedTuple):
    """Masks in the model's own low resolution.

    Attributes:
        logits: float32 [N, *logits_size]; compare with the manifest's `mask_threshold_logits`.
        predicted_iou: float32 [N], the model's own opinion of each mask; nominally in [0, 1], not clipped.
    """

    logits: np.ndarray
    predicted_iou: np.ndarray


class SamCallError(RuntimeError):
    """One run of a graph failed, or its answer is not finite. The session may be asked again."""


class SamSession:
    """Encoder and decoder of one export, each an ONNX Runtime session built once.

    Args:
        folder: An export made by `python -m export.sam`; its files are verified.
        providers: ONNX Runtime's execution providers, best first. The first must really be used.
        allow_cpu: Go on, with a warning, on the CPU where the first provider is not to be had.
        threads: Threads inside an operator; None leaves it to ONNX Runtime (all cores).
        gpu_mem_limit_bytes: Most memory that CUDA may take for the tensors of each graph; None for no limit.
        gpu_id: CUDA's number of the GPU.

    Raises:
        FileNotFoundError, ValueError: From `load_manifest` and `open_session`.
        RuntimeError: ONNX Runtime is absent, or does not give the provider that was asked for.
    """

    def __init__(
        self,
        folder: str | Path,
        providers: Sequence[str] = (CPU,),
        allow_cpu: bool = False,
        threads: int | None = None,
        gpu_mem_limit_bytes: int | None = None,
        gpu_id: int = 0,
    ) -> None:
        folder = Path(folder)
        self.manifest = load_manifest(folder)
        open_graph = functools.partial(
            open_session, threads=threads, gpu_mem_limit_bytes=gpu_mem_limit_bytes, gpu_id=gpu_id
        )
        self._encoder, self._decoder = (
            open_graph(folder / name, providers, allow_cpu) for name in (ENCODER_FILE, DECODER_FILE)
        )
        self.providers: tuple[str, ...] = tuple(self._encoder.get_providers())
        device = CUDA if self.providers[0] == CUDA else CPU
        self.encoder_batch = pictures_a_run(self.manifest, device)
        self._decoder_batch = _DECODER_BATCH[device]
        self._device: Device | None = None
        # With `allow_cpu` the decoder may run elsewhere.
        together = self._decoder.get_providers()[0] == device
        if device in _RESIDENT and together and can_stay(self.manifest):
            self._device = Device(_RESIDENT[device], gpu_id, functools.partial(open_graph, providers=(device,)))
        self.encoder_calls = 0
        self.decoder_calls = 0
        self.slices_encoded = 0
        self.prompts_decoded = 0

    def try_out(self, kinds: Sequence[str]) -> None:
        """Runs both graphs once, on an empty picture: a provider that cannot run them is known before training is.

        Args:
            kinds: Of prompts, from `prompt_kinds`.

        Raises:
            SamCallError: From `encode` and `decode`.
        """
        manifest, size = self.manifest, np.array(self.manifest.input_size, np.float32)
        prompts = Prompts(
            points=size[None, None] // 2 if "point" in kinds else None,
            boxes=np.stack([size // 4, 3 * size // 4])[None] if "box" in kinds else None,
            masks=np.zeros((1, *manifest.mask_size), np.float32) if "mask" in kinds else None,
        )
        encode = self.encode_resident if self.keeps_resident else self.encode
        self.decode(encode(np.zeros((1, *manifest.input_size), np.float32)), prompts)

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
            pictures: float32 [N, *size], made by a frame: resized and scaled, but before the manifest's mean and std.
                `size` is the model's input size, or in 2D what the slice takes of it: the rest is zeros *after* mean
                and std, as SAM pads.

        Returns:
            float32 [N, *embedding_shape].

        Raises:
            ValueError: The pictures do not fit into the model's input.
            SamCallError: ONNX Runtime failed, or an embedding is not finite.
        """
        manifest = self.manifest
        output = manifest.encoder_outputs["embeddings"].name
        embeddings = np.empty((len(pictures), *manifest.embedding_shape), np.float32)
        for part, feeds in self._encoder_runs(pictures):
            with _failures_of(ENCODER_FILE):
                (answer,) = self._encoder.run([output], feeds)
            _require_finite(ENCODER_FILE, {output: answer})
            embeddings[part] = np.reshape(answer, embeddings[part].shape)
            self.encoder_calls += 1
        self.slices_encoded += len(pictures)
        return embeddings

    @property
    def keeps_resident(self) -> bool:
        """Whether embeddings can stay on a GPU."""
        return self._device is not None

    def encode_resident(self, pictures: np.ndarray) -> ResidentEmbeddings:
        """As `encode`, but rounded to float16 and left on the GPU. Where `keeps_resident` only.

        Whether they are finite shows in what is decoded from them.
        """
        if self._device is None:
            raise ValueError(f"Expected a session on {', '.join(_RESIDENT)}. Received: providers={self.providers}.")
        output = self.manifest.encoder_outputs["embeddings"].name
        with _failures_of(ENCODER_FILE):
            kept = self._device.room(len(pictures), self.manifest.embedding_shape)
        for part, feeds in self._encoder_runs(pictures):
            with _failures_of(ENCODER_FILE):
                (answer,) = self._device.run(self._encoder, feeds, {output: self._device.place})
                kept.write(part, answer)
            self.encoder_calls += 1
        self.slices_encoded += len(pictures)
        return kept

    def _encoder_runs(self, pictures: np.ndarray) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
        """Which pictures go through the encoder at once, and what it is fed for them."""
        manifest = self.manifest
        size, full = pictures.shape[1:], manifest.input_size
        smaller = manifest.dims == 2 and len(size) == 2 and all(n <= most for n, most in zip(size, full, strict=True))
        if size != full and not smaller:
            raise ValueError(
                f"Expected pictures [N, {', '.join(map(str, full))}]{' or smaller' if manifest.dims == 2 else ''}; "
                f"make them with a frame. Received: shape={pictures.shape}."
            )
        tensor = manifest.encoder_inputs["images"]
        for start in range(0, len(pictures), self.encoder_batch):
            part = slice(start, min(len(pictures), start + self.encoder_batch))
            yield part, {tensor.name: fitted(images_of(pictures[part], manifest), tensor)}

    def decode(
        self,
        embeddings: np.ndarray | ResidentEmbeddings,
        prompts: Prompts,
        rows: Sequence[int] | None = None,
    ) -> Decoded:
        """Answers n prompts.

        Args:
            embeddings: float [m, *embedding_shape], or what `encode_resident` returned. float16 ones of the host are
                taken to the GPU once, where there is one.
            prompts: In pixels of the picture.
            rows: [n], the number of each prompt's embedding. None: there is one for each prompt, or one for all.

        Raises:
            ValueError: A kind of prompt that the model does not support, with the reason; one that its decoder needs is
                not there; shapes do not fit.
            SamCallError: ONNX Runtime failed, or an answer is not finite.
        """
        manifest, n = self.manifest, len(prompts)
        roles = decoder_arrays(manifest, prompts)
        chosen = np.arange(len(embeddings)) if rows is None else np.asarray(rows)
        if len(chosen) not in (n, 1) or embeddings.shape[1:] != manifest.embedding_shape:
            raise ValueError(
                f"Expected one embedding of {manifest.embedding_shape} for all of {n} prompts, or one each. "
                f"Received: shape={embeddings.shape}, rows={rows}."
            )
        # Of other dtypes the device would round what the caller did not.
        if self._device is not None and isinstance(embeddings, np.ndarray) and embeddings.dtype == np.float16:
            with _failures_of(DECODER_FILE):
                embeddings = self._device.upload(embeddings)
        names = [manifest.decoder_outputs[role].name for role in ("logits", "predicted_iou")]
        logits = np.empty((n, *manifest.logits_size), np.float32)
        predicted_iou = np.empty(n, np.float32)
        tensors = manifest.decoder_inputs
        step = self._prompts_a_call(len(chosen))
        for start in range(0, n, step):
            part = slice(start, min(n, start + step))
            arrays = {role: array[part] if role in PROMPT_ROLES else array for role, array in roles.items()}
            feeds = {tensors[role].name: fitted(array, tensors[role]) for role, array in arrays.items()}
            own = chosen if len(chosen) == 1 else chosen[part]
            masks, ious = self._run_decoder(embeddings, own, feeds, names)
            # [n, *size] or [n, K masks, *size]
            count = part.stop - part.start
            logits[part] = masks.reshape(count, -1, *manifest.logits_size)[:, manifest.mask_index]
            predicted_iou[part] = ious.reshape(count, -1)[:, manifest.mask_index]
            self.decoder_calls += 1
        self.prompts_decoded += n
        return Decoded(logits, predicted_iou)

    def _run_decoder(
        self, embeddings: np.ndarray | ResidentEmbeddings, rows: np.ndarray, feeds: dict[str, Any], names: list[str]
    ) -> list[np.ndarray]:
        tensor = self.manifest.decoder_inputs["embeddings"]
        if isinstance(embeddings, np.ndarray):
            feeds = feeds | {tensor.name: fitted(embeddings[rows], tensor)}
            with _failures_of(DECODER_FILE):
                answers = self._decoder.run(names, feeds)
        else:
            with _failures_of(DECODER_FILE):
                feeds = feeds | {tensor.name: embeddings.gathered(rows)}
                values = embeddings.device.run(self._decoder, feeds, dict.fromkeys(names, HOST))
                answers = [value.numpy() for value in values]
        _require_finite(DECODER_FILE, dict(zip(names, answers, strict=True)))
        return answers

    def _prompts_a_call(self, n_embeddings: int) -> int:
        """A decoder whose batch is fixed (at 1) is looped over."""
        tensors, dims = self.manifest.decoder_inputs, self.manifest.dims
        ranks = {"points": 3, "point_labels": 2, "masks": 1 + dims, "has_masks": 1, "boxes": 2}
        fixed = any(batch_is_one(tensors[role], ranks[role]) for role in PROMPT_ROLES if role in tensors)
        apart = n_embeddings > 1 and tensors["embeddings"].shape[0] == 1
        return 1 if fixed or apart else self._decoder_batch


@contextlib.contextmanager
def _failures_of(graph: str) -> Iterator[None]:
    try:
        yield
    # ONNX Runtime's errors have no common base below Exception.
    except Exception as error:
        raise SamCallError(f"ONNX Runtime failed in {graph}: {str(error).strip() or type(error).__name__}") from error


def _require_finite(graph: str, answers: dict[str, np.ndarray]) -> None:
    broken = [name for name, answer in answers.items() if not np.isfinite(answer).all()]
    if broken:
        raise SamCallError(f"Expected finite numbers of {graph}. Received: NaN or infinity in {', '.join(broken)}.")


def pictures_a_run(manifest: Manifest, provider: str) -> int:
    """Pictures that go through the encoder at once; 1 where its batch is fixed."""
    if batch_is_one(manifest.encoder_inputs["images"], 2 + manifest.dims):
        return 1
    return max(1, _ENCODER_PIXELS[provider] // math.prod(manifest.input_size))


def images_of(pictures: np.ndarray, manifest: Manifest) -> np.ndarray:
    """What the encoder is fed for pictures float32 [n, *size]: channels, mean and std, padding, layout.

    Returns:
        float32 [n, channels, *size] or [n, *size, channels]; `size` is the input's, or the pictures' own where the
        graph pads.
    """
    shape = (1, -1, *[1] * manifest.dims)
    mean = np.asarray(manifest.scaling.mean, np.float32).reshape(shape)
    std = np.asarray(manifest.scaling.std, np.float32).reshape(shape)
    # A grey slice is shown in every channel.
    images = (np.repeat(np.asarray(pictures, np.float32)[:, None], manifest.channels, axis=1) - mean) / std
    if manifest.padding == "end_zeros":
        missing = [most - n for n, most in zip(pictures.shape[1:], manifest.input_size, strict=True)]
        images = np.pad(images, [(0, 0), (0, 0), *[(0, n) for n in missing]])
    return images if manifest.image_layout == "channels_first" else np.moveaxis(images, 1, -1)
