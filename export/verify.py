"""The exported graphs against the published torch model, number by number."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from export.family import Arrays, Family
from semisam_tf.sam.manifest import DECODER_FILE, ENCODER_FILE
from semisam_tf.sam.session import open_session

# Largest difference, relative to the largest magnitude of the output: float32 sums in another order.
TOLERANCE = 1e-4
_KINDS = ("random", "structured", "structured")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Largest error of one output on one input. `relative` is to the largest magnitude of the published output."""

    graph: str
    output: str
    inputs: str
    batch: int
    absolute: float
    relative: float


def compare(family: Family, folder: Path, seed: int = 0) -> list[Comparison]:
    """Runs both graphs in ONNX Runtime beside torch: random and structured inputs, batches of 1 and 3.

    Torch takes the items one at a time, so that a batch must equal its items alone. The decoder is given the published
    encoder's embeddings: its error is its own.

    Args:
        family: The published computation.
        folder: Holds encoder.onnx and decoder.onnx.
        seed: Of the inputs.
    """
    encoder, decoder = open_session(folder / ENCODER_FILE), open_session(folder / DECODER_FILE)
    arrays = family.examples(np.random.default_rng(seed), _KINDS)
    embedded = _one_at_a_time(family.published_encoder, arrays)
    arrays = {**arrays, **embedded}
    decoded = _one_at_a_time(family.published_decoder, arrays)
    comparisons = []
    for items, name in (([0], "random"), ([1], "structured"), ([0, 1, 2], "both")):
        feeds = _items(arrays, items)
        comparisons += _compare(ENCODER_FILE, encoder, feeds, _items(embedded, items), name)
        comparisons += _compare(DECODER_FILE, decoder, feeds, _items(decoded, items), name)
    return comparisons


def _items(arrays: Arrays, items: list[int]) -> Arrays:
    return {role: np.ascontiguousarray(array[items]) for role, array in arrays.items()}


def _one_at_a_time(published: Callable[[Arrays], Arrays], arrays: Arrays) -> Arrays:
    results = [published(_items(arrays, [i])) for i in range(len(_KINDS))]
    return {role: np.concatenate([result[role] for result in results]) for role in results[0]}


def _compare(graph: str, session: Any, arrays: Arrays, expected: Arrays, inputs: str) -> list[Comparison]:
    feeds = {tensor.name: arrays[tensor.name] for tensor in session.get_inputs()}
    results = []
    for name, got in zip(expected, session.run(list(expected), feeds), strict=True):
        if got.shape != expected[name].shape:
            raise ValueError(
                f"Expected {name} of {graph} to have the published shape {expected[name].shape}. Received: {got.shape}."
            )
        absolute = float(np.abs(got.astype(np.float64) - expected[name]).max())
        scale = float(np.abs(expected[name]).max())
        results.append(Comparison(graph, name, inputs, len(got), absolute, absolute / scale if scale else np.inf))
    return results


def worst(comparisons: list[Comparison]) -> dict[str, dict[str, float]]:
    """Graph -> largest absolute and relative error, as the manifest keeps them."""
    return {
        graph: {
            "absolute": max(c.absolute for c in comparisons if c.graph == graph),
            "relative": max(c.relative for c in comparisons if c.graph == graph),
        }
        for graph in (ENCODER_FILE, DECODER_FILE)
    }


def passes(comparisons: list[Comparison]) -> bool:
    """Whether every error is within `TOLERANCE`; not-a-number is not."""
    return all(c.relative <= TOLERANCE for c in comparisons)


def table(comparisons: list[Comparison]) -> str:
    """The errors for people to read."""
    rows = [f"{'graph':13} {'output':14} {'input':11} {'batch':>5} {'max abs':>9} {'relative':>9}"]
    rows += [
        f"{c.graph:13} {c.output:14} {c.inputs:11} {c.batch:5d} {c.absolute:9.2e} {c.relative:9.2e}"
        for c in comparisons
    ]
    return "\n".join(rows)
