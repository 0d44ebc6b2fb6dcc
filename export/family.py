"""What a family of SAM models hands to the exporter."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Family:
    """A torch model, the two graphs to be made of it, and the published computation they must equal.

    Attributes:
        encoder: torch.nn.Module, takes the tensors of `encoder_inputs` in order.
        decoder: torch.nn.Module, takes the tensors of `decoder_inputs` in order.
        encoder_inputs, encoder_outputs, decoder_inputs, decoder_outputs: Role -> shape, with "n" for the batch. The
            roles become the tensors' names.
        published_encoder: What the published model computes: arrays by role -> arrays by role, for any batch.
        published_decoder: Likewise.
        examples: (rng, kinds) -> pictures float32 and prompts by role, one item for each of `kinds`, which are
            "random" (noise) or "structured" (like a scan).
        facts: The manifest's fields that the family alone knows.
        source_name: Where the weights are from.
        source_sha256: sha256 of the checkpoint, or of the weights where they are random.
    """

    encoder: Any
    decoder: Any
    encoder_inputs: dict[str, tuple[int | str, ...]]
    encoder_outputs: dict[str, tuple[int | str, ...]]
    decoder_inputs: dict[str, tuple[int | str, ...]]
    decoder_outputs: dict[str, tuple[int | str, ...]]
    published_encoder: Callable[[Arrays], Arrays]
    published_decoder: Callable[[Arrays], Arrays]
    examples: Callable[[np.random.Generator, Sequence[str]], Arrays]
    facts: dict[str, Any]
    source_name: str
    source_sha256: str
