"""Embeddings that stay on the device: the numbers are those of the plain way.

ONNX Runtime binds to "cpu" as it does to "cuda", so all of the code runs here; only that nothing has to be copied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from semisam_tf.sam import session as session_module
from semisam_tf.sam.branch import SamBranch
from semisam_tf.sam.cache import EmbeddingCache, quantise
from semisam_tf.sam.decoder_inputs import Prompts
from semisam_tf.sam.manifest import Manifest
from semisam_tf.sam.resident import GATHERING, ROUNDING, ResidentEmbeddings
from semisam_tf.sam.runtime import CPU, CUDA
from semisam_tf.sam.session import SamCallError, SamSession

RNG = np.random.default_rng(5)
PICTURES = RNG.random((5, 16, 16), np.float32)
BOXES = np.stack([RNG.integers(0, 7, (21, 2)), RNG.integers(8, 16, (21, 2))], axis=1)
# More prompts than a decoder run takes, embeddings out of order, several times and not at all.
ROWS = [4, 0, 0, 2] * 5 + [4]


@pytest.fixture
def bound(double_dir: Path, monkeypatch: pytest.MonkeyPatch) -> SamSession:
    """A session on the CPU that binds its embeddings as one on CUDA does."""
    monkeypatch.setitem(session_module._RESIDENT, CPU, "cpu")
    session = SamSession(double_dir)
    assert session.keeps_resident
    return session


@pytest.fixture
def on_cuda(double_dir: Path, gpu: str) -> SamSession:
    """A session on a GPU."""
    return SamSession(double_dir, providers=(CUDA, CPU), gpu_mem_limit_bytes=2**30)


def nodes(model: bytes) -> list[tuple[str, list[str], list[str], dict[str, int]]]:
    """(operator, inputs, outputs, attributes) of each node."""
    return [
        (node.op_type, list(node.input), list(node.output), {a.name: a.i for a in node.attribute})
        for node in onnx.load_from_string(model).graph.node
    ]


def test_the_two_models_are_what_their_comment_says() -> None:
    assert nodes(ROUNDING) == [("Cast", ["x"], ["y"], {"to": onnx.TensorProto.FLOAT16})]
    assert nodes(GATHERING) == [
        ("Gather", ["x", "rows"], ["g"], {"axis": 0}), ("Cast", ["g"], ["y"], {"to": onnx.TensorProto.FLOAT}),
    ]  # fmt: skip


def same_as_plain(session: SamSession, plain: SamSession, tolerance: float) -> None:
    """Everything that can be asked with resident embeddings, against the plain way."""
    kept, embeddings = session.encode_resident(PICTURES), quantise(plain.encode(PICTURES))
    assert isinstance(kept, ResidentEmbeddings)
    assert kept.shape == embeddings.shape == (5, 3, 4, 4)
    # The plain way as it was before there were rows: an embedding of its own for each prompt.
    wanted = plain.decode(embeddings[ROWS], Prompts(boxes=BOXES))
    # Not all alike, or a wrong row would not be seen.
    assert len({logits.tobytes() for logits in wanted.logits}) == len(BOXES)
    for given in (kept, embeddings):
        said = session.decode(given, Prompts(boxes=BOXES), rows=ROWS)
        np.testing.assert_allclose(said.logits, wanted.logits, atol=tolerance)
        np.testing.assert_allclose(said.predicted_iou, wanted.predicted_iou, atol=tolerance)
    one = session.decode(session.encode_resident(PICTURES[2:3]), Prompts(boxes=BOXES))
    np.testing.assert_allclose(one.logits, plain.decode(embeddings[2:3], Prompts(boxes=BOXES)).logits, atol=tolerance)


def test_bound_embeddings_give_the_numbers_of_the_plain_way(bound: SamSession, session: SamSession) -> None:
    same_as_plain(bound, session, 0)
    # Of five and one pictures, one a run; of 21 prompts by eights, three times.
    assert bound.counts() == {"encoder_calls": 6, "slices_encoded": 6, "decoder_calls": 9, "prompts_decoded": 63}


@pytest.mark.gpu
def test_embeddings_on_a_gpu_give_the_numbers_of_the_plain_way(on_cuda: SamSession, session: SamSession) -> None:
    assert on_cuda.providers[0] == CUDA
    assert on_cuda.keeps_resident
    assert on_cuda.encode_resident(PICTURES).value.device_name() == "cuda"
    # Blocks are averaged in another order.
    same_as_plain(on_cuda, session, 1e-4)


def test_rows_of_the_plain_way_are_those_embeddings(session: SamSession) -> None:
    embeddings = session.encode(PICTURES)
    assert not session.keeps_resident
    said = session.decode(embeddings, Prompts(boxes=BOXES), rows=ROWS)
    np.testing.assert_array_equal(said.logits, session.decode(embeddings[ROWS], Prompts(boxes=BOXES)).logits)


def test_embeddings_are_rounded_as_ever(bound: SamSession, session: SamSession) -> None:
    kept = bound.encode_resident(PICTURES)
    plain = session.encode(PICTURES)
    assert (quantise(plain) != plain).mean() > 0.9
    np.testing.assert_array_equal(kept.value.numpy(), quantise(plain))
    # Only what was rounded already goes to the device: of 0.25 + 2**-15, float16 would be as dark as 0.25.
    hair = np.full((1, 3, 4, 4), 0.25 + 2**-15, np.float32)
    box = Prompts(boxes=np.array([[[0, 0], [15, 15]]]))
    np.testing.assert_array_equal(bound.decode(hair, box).logits, session.decode(hair, box).logits)
    assert bound.decode(quantise(hair), box).logits.max() == 0 < bound.decode(hair, box).logits.max()


@pytest.mark.parametrize("slice_step", [1, 2])
def test_targets_are_the_same_with_and_without_a_cache(
    bound: SamSession, session: SamSession, tmp_path: Path, slice_step: int
) -> None:
    rng = np.random.default_rng(1)
    image = rng.random((16, 16, 40, 1), np.float32)
    mask = rng.random((16, 16, 40)) > 0.4
    class_probs = np.stack([~mask, mask], axis=-1).astype(np.float32)
    wanted = SamBranch(session, slice_step=slice_step).target(image, class_probs)
    assert wanted.scores["prompts"] > wanted.scores["slices_prompted"] >= 20
    for cache in (None, EmbeddingCache(tmp_path)):
        said = SamBranch(bound, slice_step=slice_step, cache=cache).target(image, class_probs, key="a")
        np.testing.assert_array_equal(said.soft, wanted.soft)
        np.testing.assert_array_equal(said.weight, wanted.weight)


def test_a_crop_on_a_device_never_comes_to_the_host(bound: SamSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound, "encode", lambda pictures: pytest.fail("embeddings came to the host"))
    mask = np.zeros((16, 16, 4), bool)
    mask[3:8, 6:11] = True
    target = SamBranch(bound).target(np.ones((16, 16, 4, 1), np.float32), np.stack([~mask, mask], -1) * np.float32(1))
    assert target.scores["slices_prompted"] == 4


def test_what_a_run_will_use_is_tried_out(bound: SamSession, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = bound.encode_resident
    monkeypatch.setattr(bound, "encode_resident", lambda pictures: seen.append(pictures.shape) or real(pictures))
    bound.try_out(["box"])
    assert seen == [(1, 16, 16)]
    assert bound.counts() == {"encoder_calls": 1, "slices_encoded": 1, "decoder_calls": 1, "prompts_decoded": 1}


@pytest.mark.parametrize(("prompt", "dims"), [("sam", 2), ("mask", 2), ("sam", 3)])
def test_other_prompts_and_volumes(
    tmp_path: Path, write_double: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch, prompt: str, dims: int
) -> None:
    write_double(tmp_path, prompt=prompt, dims=dims)
    plain = SamSession(tmp_path)
    monkeypatch.setitem(session_module._RESIDENT, CPU, "cpu")
    bound = SamSession(tmp_path)
    pictures = RNG.random((2, *[16] * dims), np.float32)
    masks = RNG.random((3, *[16] * dims), np.float32) - 0.5
    clicks = Prompts(points=np.full((3, 1, dims), 7.0)) if prompt == "sam" else Prompts(masks=masks)
    said = bound.decode(bound.encode_resident(pictures), clicks, rows=[1, 0, 1])
    wanted = plain.decode(quantise(plain.encode(pictures)), clicks, rows=[1, 0, 1])
    np.testing.assert_array_equal(said.logits, wanted.logits)


def test_graphs_that_hand_over_another_shape_go_over_the_host(
    tmp_path: Path, write_double: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_double(tmp_path)
    monkeypatch.setitem(session_module._RESIDENT, CPU, "cpu")
    half = {"embeddings": dataclasses.replace(manifest.decoder_inputs["embeddings"], dtype="float16")}
    write_double(tmp_path, decoder_inputs={**manifest.decoder_inputs, **half})
    assert not SamSession(tmp_path).keeps_resident
    with pytest.raises(
        ValueError, match=r"Expected a session on CUDA.*Received: providers=\('CPUExecutionProvider',\)"
    ):
        SamSession(tmp_path).encode_resident(PICTURES)


def test_failures_are_failed_calls(
    tmp_path: Path, write_double: Callable[..., Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(session_module._RESIDENT, CPU, "cpu")
    write_double(tmp_path, fails_above=0.5)
    bound = SamSession(tmp_path)
    with pytest.raises(SamCallError, match=r"ONNX Runtime failed in encoder\.onnx: .*out of data bounds"):
        bound.encode_resident(np.full((1, 16, 16), 0.75, np.float32))
    box = Prompts(boxes=BOXES[:1])
    dark = bound.encode_resident(np.full((1, 16, 16), 0.25, np.float32))
    with pytest.raises(SamCallError, match=r"ONNX Runtime failed in decoder\.onnx: .*out of data bounds"):
        bound.decode(dark, box, rows=[1])
    not_a_number = np.full((1, 3, 4, 4), np.nan, np.float16)
    with pytest.raises(SamCallError, match=r"decoder\.onnx\. Received: NaN or infinity in logits"):
        bound.decode(not_a_number, box)
    assert bound.decode(dark, box).logits.shape == (1, 16, 16)


def test_wrong_numbers_of_embeddings_are_refused(bound: SamSession) -> None:
    with pytest.raises(ValueError, match=r"one embedding of \(3, 4, 4\) for all of 3 prompts.*rows=\[0, 1\]"):
        bound.decode(bound.encode_resident(PICTURES), Prompts(boxes=BOXES[:3]), rows=[0, 1])
