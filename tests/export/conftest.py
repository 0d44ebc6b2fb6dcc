"""The real LiteMedSAM export, made once by the command itself, and a family of two tiny modules.

This process holds torch and never TensorFlow.
"""

from __future__ import annotations

import os
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import export.sam
from export.family import Arrays, Family

BROKEN = "raise RuntimeError('operator torchvision::nms does not exist')\n"


@pytest.fixture(scope="session")
def broken_packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which timm and torchvision are installed and raise at import, as a wrong CUDA build does."""
    folder = tmp_path_factory.mktemp("broken")
    for name in ("timm", "torchvision"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(BROKEN, encoding="utf-8")
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


@pytest.fixture(scope="session")
def lite_medsam(
    tmp_path_factory: pytest.TempPathFactory, repo_root: Path, broken_packages: dict[str, str]
) -> tuple[Path, subprocess.CompletedProcess]:
    """Folder and outcome of `python -m export.sam`, run where timm and torchvision are broken."""
    output = tmp_path_factory.mktemp("sam") / "lite"
    command = [sys.executable, "-m", "export.sam", "--family=lite_medsam", f"--output={output}"]
    result = subprocess.run(command, cwd=repo_root, env=broken_packages, capture_output=True, text=True, check=False)
    return output, result


SIDE, LOW = 8, 4
TINY_FACTS: dict[str, Any] = {
    "family": "tiny",
    "dims": 2,
    "input_size": (SIDE, SIDE),
    "channels": 1,
    "image_layout": "channels_first",
    "scaling": {"clip_percentiles": (0, 100), "unit": "slice", "method": "min_max", "mean": (0.0,), "std": (1.0,)},
    "resize": "longer_side_linear",
    "padding": "end_zeros",
    "input_spacing_mm": None,
    "coordinate_axes": (1, 0),
    "point_codes": {"background": 0, "foreground": 1, "padding": -1, "box_first": 2, "box_last": 3},
    "mask_size": (LOW, LOW),
    "mask_index": 0,
    "prompts": {"box": True, "point": True, "mask": True},
    "prompt_notes": {},
    "mask_threshold_logits": 0.0,
    "embedding_shape": (2, LOW, LOW),
    "logits_size": (LOW, LOW),
    "licence": "Apache-2.0",
}


class TinyEncoder(torch.nn.Module):
    """[n, 1, 8, 8] -> [n, 2, 4, 4]; with `frozen` the batch size is a Python number in the trace."""

    def __init__(self, frozen: bool, width: int) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(1, 2, 2, 2)
        self.mix = torch.nn.Sequential(torch.nn.Linear(LOW, width), torch.nn.ReLU(), torch.nn.Linear(width, LOW))
        # One for each channel: a product with a stack of matrices, as the tables of relative positions are.
        self.tables = torch.nn.Parameter(torch.eye(LOW) + 0.1 * torch.randn(2, LOW, LOW))
        self.frozen = frozen

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        result = self.mix(self.convolution(images)) @ self.tables
        return result.reshape(len(images), 2, LOW, LOW) if self.frozen else result


class TinyDecoder(torch.nn.Module):
    """Logits from the embedding, the points that are no padding, and the mask; IoU from the labels.

    Args:
        fault: "" or what is wrong with it: "no shared embedding", "ignores masks", "threshold moved".
    """

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault

    def forward(
        self, embeddings: Any, points: Any, point_labels: Any, masks: Any, has_masks: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        clicks = (points.sum(dim=2) * (point_labels >= 0)).mean(dim=1) / SIDE - 0.5
        weight = 0 * has_masks if self.fault == "ignores masks" else has_masks
        logits = embeddings.sum(dim=1) + clicks[:, None, None] + weight[:, None, None] * masks
        if self.fault == "no shared embedding":
            items, embedded = (
                torch.ones_like(point_labels).sum(dim=0)[0],
                torch.ones_like(embeddings).sum(dim=0)[0, 0, 0],
            )
            logits = logits + items - embedded
        if self.fault == "threshold moved":
            logits = logits + 0.5
        return logits, point_labels.sum(dim=1) + has_masks


def tiny_family(
    sha256: str = "a" * 64, frozen: bool = False, decoder: str = "", width: int = 8, **facts: Any
) -> Family:
    """A family that exports in a second; `decoder` is the fault of the exported one, `width` makes weights large."""
    torch.manual_seed(0)
    encoder, published = TinyEncoder(frozen, width).eval(), TinyDecoder().eval()
    roles = ("embeddings", "points", "point_labels", "masks", "has_masks")

    def encode(arrays: Arrays) -> Arrays:
        with torch.no_grad():
            return {"embeddings": encoder(torch.from_numpy(arrays["images"])).numpy()}

    def decode(arrays: Arrays) -> Arrays:
        logits, iou = published(*(torch.from_numpy(arrays[role]) for role in roles))
        return {"logits": logits.numpy(), "predicted_iou": iou.numpy()}

    def prompts(points: int, mask: int) -> Callable[[np.random.Generator, int], Arrays]:
        def make(rng: np.random.Generator, n: int) -> Arrays:
            return {
                "points": SIDE * rng.random((n, points, 2), np.float32),
                "point_labels": np.tile(np.float32([1] * (points - 1) + [-1]), (n, 1)),
                "masks": rng.standard_normal((n, LOW, LOW)).astype(np.float32),
                "has_masks": np.full(n, mask, np.float32),
            }

        return make

    def images(rng: np.random.Generator, kinds: Sequence[str]) -> np.ndarray:
        return rng.random((len(kinds), 1, SIDE, SIDE), np.float32)

    return Family(
        encoder=encoder,
        decoder=TinyDecoder(decoder).eval(),
        encoder_inputs={"images": ("n", 1, SIDE, SIDE)},
        encoder_outputs={"embeddings": ("n", 2, LOW, LOW)},
        decoder_inputs={
            "embeddings": ("m", 2, LOW, LOW), "points": ("n", "p", 2), "point_labels": ("n", "p"),
            "masks": ("n", LOW, LOW), "has_masks": ("n",),
        },
        decoder_outputs={"logits": ("n", LOW, LOW), "predicted_iou": ("n",)},
        published_encoder=encode,
        published_decoder=decode,
        images=images,
        prompt_cases={"1 point": prompts(2, 0), "3 points, mask": prompts(4, 1)},
        facts={**TINY_FACTS, **facts},
        source_name="tiny.pth",
        source_sha256=sha256,
    )  # fmt: skip


@pytest.fixture
def tiny() -> Callable[..., Family]:
    """Makes the tiny family."""
    return tiny_family


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Registers a family that is made by `tiny_family` with the given arguments."""

    def register(**arguments: Any) -> None:
        module = types.SimpleNamespace(
            load=lambda checkpoint, random_seed: tiny_family(**arguments),
            source_sha256=lambda checkpoint, random_seed: tiny_family(**arguments).source_sha256,
        )
        monkeypatch.setitem(sys.modules, "export.tiny", module)
        monkeypatch.setitem(export.sam.FAMILIES, "tiny", ("export.tiny", {}))

    return register
