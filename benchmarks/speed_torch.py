"""What benchmarks/speed.py times in PyTorch: the published procedures, in a process without TensorFlow.

A function returns tasks by name (benchmarks/turns.py). Written from what is known of the published code; nothing is
copied.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch_vnet import VNet
from turns import Tasks

# The published passes go through the teacher two at a time, stacked in one batch.
_PAIRS = 4
_CLICKS = 10
_SIDE = 128


def forward(
    batch: int, size: tuple[int, ...], filters: int, normalisation: str, dropout: float, channels_last: bool = False
) -> Tasks:
    """Tasks "step", a forward pass in inference mode, and "matmul", a float32 product of 2048 x 2048."""
    memory_format = _set_up(channels_last)
    net = VNet(filters=filters, normalisation=normalisation, dropout=dropout).to(memory_format=memory_format).eval()
    images = torch.randn(batch, 1, *size).to(memory_format=memory_format)
    matrix = torch.randn(2048, 2048)

    def step() -> None:
        with torch.inference_mode():
            net(images)

    return {"step": step, "matmul": lambda: matrix @ matrix}


def train_step(
    method: str,
    labelled: int,
    batch: int,
    size: tuple[int, ...],
    filters: int,
    normalisation: str,
    dropout: float,
    channels_last: bool = False,
    thrown_away: bool = True,
) -> Tasks:
    """Task "step", one training step on the same batch again and again.

    Args:
        method: "supervised": cross entropy, Dice, SGD; no teacher. "mean_teacher": and one noisy teacher pass over all
            items. "uncertainty_aware_mean_teacher": and one over the unlabelled items, and eight for the uncertainty.
        labelled: Items with a label; they come first.
        thrown_away: Mean teacher as SemiSAM publishes it, which computes UA-MT's eight passes, over all items, and uses
            none of them.
    """
    memory_format = _set_up(channels_last)
    student, teacher = (
        VNet(filters=filters, normalisation=normalisation, dropout=dropout).to(memory_format=memory_format).train()
        for _ in range(2)
    )
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    images = torch.randn(batch, 1, *size).to(memory_format=memory_format)
    labels = (torch.rand(labelled, *size) > 0.9).long()

    def supervised(logits: torch.Tensor) -> torch.Tensor:
        return _supervised(logits[:labelled], labels)

    def mean_teacher(logits: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            target = teacher(images + _noise(images)).softmax(1)
            if thrown_away:
                _uncertainty(teacher, images)
        return supervised(logits) + 0.1 * (logits.softmax(1) - target).square().mean() / 2

    def uncertainty_aware(logits: torch.Tensor) -> torch.Tensor:
        unlabelled = images[labelled:]
        with torch.no_grad():
            target = teacher(unlabelled + _noise(unlabelled)).softmax(1)
            kept = (_uncertainty(teacher, unlabelled) < 0.75 * math.log(2)).float()
        distance = (logits[labelled:].softmax(1) - target).square()
        return supervised(logits) + 0.1 * (kept * distance).sum() / (2 * kept.sum() + 1e-16)

    losses: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "supervised": supervised,
        "mean_teacher": mean_teacher,
        "uncertainty_aware_mean_teacher": uncertainty_aware,
    }
    if method not in losses:
        raise ValueError(f"Expected method of {', '.join(losses)}. Received: {method!r}.")

    def step() -> None:
        loss = losses[method](student(images))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if method != "supervised":
            with torch.no_grad():
                for average, value in zip(teacher.parameters(), student.parameters(), strict=True):
                    average.mul_(0.99).add_(value, alpha=0.01)

    return {"step": step}


def semisam(**arguments: Any) -> Tasks:
    """SemiSAM with SAM-Med3D as published: tasks "sam", all it is asked in an iteration, and "step", a mean teacher's.

    Every item of the batch is encoded, the labelled one too, and clicked at up to ten times: each click lies in the
    voxels where the mask so far is wrong, and the decoder has that mask, in its low resolution, as a prompt.
    """
    from export.sam_med3d import build

    step = train_step("mean_teacher", **arguments)["step"]
    net = build(random_seed=0).eval()
    images = torch.randn(arguments["batch"], 1, _SIDE, _SIDE, _SIDE)
    truth = torch.zeros(_SIDE, _SIDE, _SIDE, dtype=torch.bool)
    truth[40:88, 40:88, 40:88] = True

    def sam() -> None:
        with torch.no_grad():
            for image in images:
                _ask(net, image[None], truth)

    return {"sam": sam, "step": step}


def _ask(net: Any, image: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The mask bool [X, Y, Z] after the last click."""
    embedding = net.image_encoder(image)
    mask, low = torch.zeros_like(truth), None
    for _ in range(_CLICKS):
        wrong = (mask != truth).nonzero()
        if not len(wrong):
            break
        voxel = wrong[torch.randint(len(wrong), ())]
        points = voxel.float()[None, None], truth[tuple(voxel)].float()[None, None]
        sparse, dense = net.prompt_encoder(points=points, boxes=None, masks=low)
        low, _ = net.mask_decoder(
            image_embeddings=embedding,
            image_pe=net.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        mask = F.interpolate(low, truth.shape, mode="trilinear", align_corners=False)[0, 0] > 0
    return mask


def _set_up(channels_last: bool) -> torch.memory_format:
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch.channels_last_3d if channels_last else torch.contiguous_format


def _noise(images: torch.Tensor) -> torch.Tensor:
    return torch.clamp(0.1 * torch.randn_like(images), -0.2, 0.2)


def _supervised(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy and 1 - Dice of the foreground with squared denominator."""
    foreground, truth = logits.softmax(1)[:, 1], (labels == 1).float()
    overlap, size = (foreground * truth).sum(), foreground.square().sum() + truth.square().sum()
    return F.cross_entropy(logits, labels) + 1 - (2 * overlap + 1e-5) / (size + 1e-5)


def _uncertainty(teacher: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Entropy [B, 1, X, Y, Z] in nats of the mean of eight noisy passes."""
    twice = images.repeat(2, 1, 1, 1, 1)
    logits = torch.cat([teacher(twice + _noise(twice)) for _ in range(_PAIRS)])
    mean = logits.softmax(1).reshape(2 * _PAIRS, *images.shape[:1], *logits.shape[1:]).mean(0)
    return -(mean * (mean + 1e-6).log()).sum(1, keepdim=True)
