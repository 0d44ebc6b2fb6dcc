"""The exported graphs against the published torch model, number by number."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from export.family import Arrays, Family
from semisam_tf.sam.manifest import DECODER_FILE, ENCODER_FILE
from semisam_tf.sam.runtime import open_session

# Largest difference, relative to the largest magnitude of the output: float32 sums in another order.
TOLERANCE = 1e-4
# Torch embeds each of them once (SAM ViT-H takes a minute for one); every comparison draws on these.
KINDS = ("random", "structured", "structured")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Largest error of one output on one set of inputs. `relative` is to the published output's largest magnitude.

    Attributes:
        graph: File name.
        output: Role of the output.
        inputs: Images it is of: "random", "structured", "both", or "1 for all" where n prompts share an embedding.
        prompts: Name of the family's prompt case; "" for the encoder.
        batch: Items in the call.
        absolute, relative: Largest error.
    """

    graph: str
    output: str
    inputs: str
    prompts: str
    batch: int
    absolute: float
    relative: float


def compare(family: Family, folder: Path, seed: int = 0) -> list[Comparison]:
    """Runs both graphs in ONNX Runtime beside torch: random and structured images, every prompt case, 1 and 3 items.

    Torch takes the items one at a time, so that a batch must equal its items alone. The decoder is given the published
    encoder's embeddings: its error is its own.

    Args:
        family: The published computation.
        folder: Holds encoder.onnx and decoder.onnx.
        seed: Of the inputs.

    Raises:
        ValueError: An output has another shape than the published one.
    """
    rng = np.random.default_rng(seed)
    images = {"images": family.images(rng, KINDS)}
    embedded = one_at_a_time(family.published_encoder, images)
    return [*compare_encoder(folder, images, embedded), *compare_decoder(family, folder, embedded, rng)]


def compare_encoder(folder: Path, images: Arrays, embedded: Arrays) -> list[Comparison]:
    """The encoder's rows of `compare`, for three images and what the published encoder makes of them."""
    session = open_session(folder / ENCODER_FILE)
    comparisons = []
    for items, name in (([0], "random"), ([1], "structured"), ([0, 1, 2], "both")):
        label = (ENCODER_FILE, name, "")
        comparisons += _compare(session, _items(images, items), _items(embedded, items), label)
    return comparisons


def compare_decoder(family: Family, folder: Path, embedded: Arrays, rng: np.random.Generator) -> list[Comparison]:
    """The decoder's rows of `compare`, for three embeddings; one embedding for all prompts where the family has that"""
    session = open_session(folder / DECODER_FILE)
    shared = family.decoder_inputs["embeddings"][0] == "m"
    comparisons = []
    for case, make in family.prompt_cases.items():
        arrays = {**make(rng, len(KINDS)), **embedded}
        expected = one_at_a_time(family.published_decoder, arrays)
        for items, name in (([0], "random"), ([0, 1, 2], "both")):
            label = (DECODER_FILE, name, case)
            comparisons += _compare(session, _items(arrays, items), _items(expected, items), label)
        if shared:
            last = {"embeddings": embedded["embeddings"][-1:]}
            spread = {"embeddings": np.repeat(last["embeddings"], len(KINDS), axis=0)}
            expected = one_at_a_time(family.published_decoder, {**arrays, **spread})
            comparisons += _compare(session, {**arrays, **last}, expected, (DECODER_FILE, "1 for all", case))
    return comparisons


def one_at_a_time(published: Callable[[Arrays], Arrays], arrays: Arrays) -> Arrays:
    """What a published computation makes of each item alone, put together again."""
    count = len(next(iter(arrays.values())))
    results = [published(_items(arrays, [i])) for i in range(count)]
    return {role: np.concatenate([result[role] for result in results]) for role in results[0]}


def _items(arrays: Arrays, items: Sequence[int]) -> Arrays:
    return {role: np.ascontiguousarray(array[list(items)]) for role, array in arrays.items()}


def _compare(session: Any, arrays: Arrays, expected: Arrays, label: tuple[str, str, str]) -> list[Comparison]:
    graph, inputs, prompts = label
    feeds = {tensor.name: arrays[tensor.name] for tensor in session.get_inputs()}
    results = []
    try:
        outputs = session.run(list(expected), feeds)
    except Exception as error:
        # ONNX Runtime's own exceptions have no common class.
        shapes = {name: array.shape for name, array in feeds.items()}
        raise ValueError(f"Expected {graph} to take {shapes}. Received: {str(error).strip()[:300]}") from error
    for name, got in zip(expected, outputs, strict=True):
        if got.shape != expected[name].shape:
            raise ValueError(
                f"Expected {name} of {graph} to have the published shape {expected[name].shape}. Received: {got.shape}."
            )
        absolute = float(np.abs(got.astype(np.float64) - expected[name]).max())
        relative = _relative(absolute, float(np.abs(expected[name]).max()))
        results.append(Comparison(graph, name, inputs, prompts, len(got), absolute, relative))
    return results


def _relative(absolute: float, scale: float) -> float:
    if absolute == 0:
        return 0.0
    return absolute / scale if scale else math.inf


def worst(comparisons: list[Comparison]) -> dict[str, dict[str, float]]:
    """Graph -> largest absolute and relative error, as the manifest keeps them."""
    return {
        graph: {
            "absolute": max(c.absolute for c in comparisons if c.graph == graph),
            "relative": max(c.relative for c in comparisons if c.graph == graph),
        }
        for graph in sorted({c.graph for c in comparisons}, reverse=True)
    }


def passes(comparisons: list[Comparison]) -> bool:
    """Whether every error is within `TOLERANCE`; not-a-number is not."""
    return bool(comparisons) and all(c.relative <= TOLERANCE for c in comparisons)


def table(comparisons: list[Comparison]) -> str:
    """The errors for people to read."""
    width = max([len("prompts"), *(len(c.prompts) for c in comparisons)])
    rows = [f"{'graph':13} {'output':14} {'images':11} {'prompts':{width}} {'batch':>5} {'max abs':>9} {'relative':>9}"]
    rows += [
        f"{c.graph:13} {c.output:14} {c.inputs:11} {c.prompts:{width}} {c.batch:5d} {c.absolute:9.2e} {c.relative:9.2e}"
        for c in comparisons
    ]
    return "\n".join(rows)
