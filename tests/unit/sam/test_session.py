"""ONNX Runtime behind the manifest, on the double: values worked by hand, and providers."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from semisam_tf.sam.manifest import Manifest, Scaling
from semisam_tf.sam.session import CPU, CUDA, SamSession


def test_encoder_sees_the_picture_in_every_channel(session: SamSession) -> None:
    picture = np.random.default_rng(0).random((1, 16, 16), np.float32)
    embeddings = session.encode(picture)
    blocks = picture.reshape(1, 4, 4, 4, 4).mean(axis=(2, 4))
    assert embeddings.shape == (1, 3, 4, 4)
    for channel in range(3):
        np.testing.assert_allclose(embeddings[:, channel], blocks, atol=1e-6)


def test_mean_and_std_of_the_manifest_are_applied(tmp_path: Path, write_double: Callable[..., Manifest]) -> None:
    write_double(tmp_path, scaling=Scaling((0.0, 100.0), "slice", (0.5, 0.0, 1.0), (0.25, 1.0, 2.0)))
    embeddings = SamSession(tmp_path).encode(np.full((1, 16, 16), 0.75, np.float32))
    np.testing.assert_allclose(embeddings[0, :, 0, 0], [1.0, 0.75, -0.125], atol=1e-6)


def test_a_picture_alone_and_among_others_gives_equal_embeddings(session: SamSession) -> None:
    pictures = np.random.default_rng(1).random((5, 16, 16), np.float32)
    together = session.encode(pictures)
    alone = np.concatenate([session.encode(picture[None]) for picture in pictures])
    np.testing.assert_array_equal(together, alone)


def test_decoder_fills_the_box(session: SamSession) -> None:
    bright = np.ones((2, 3, 4, 4), np.float32)
    decoded = session.decode(bright, {"boxes": np.array([[2, 3, 5, 4], [0, 0, 15, 15]], np.float32)})
    assert decoded.logits.shape == (2, 16, 16)
    assert {tuple(p) for p in np.argwhere(decoded.logits[0] > 0)} == {(y, x) for y in (3, 4) for x in (2, 3, 4, 5)}
    assert (decoded.logits[1] > 0).all()
    assert decoded.logits[1, 5, 5] == 5.5
    np.testing.assert_array_equal(decoded.predicted_iou, [0.75, 0.75])


def test_more_prompts_than_a_batch_keep_their_order(session: SamSession) -> None:
    boxes = np.array([[i % 16, 0, i % 16, 0] for i in range(21)], np.float32)
    decoded = session.decode(np.ones((21, 3, 4, 4), np.float16), {"boxes": boxes})
    assert [int(np.argmax(logits[0])) for logits in decoded.logits] == [i % 16 for i in range(21)]


def test_work_is_counted(session: SamSession) -> None:
    session.encode(np.zeros((3, 16, 16), np.float32))
    session.decode(np.zeros((9, 3, 4, 4), np.float32), {"boxes": np.zeros((9, 4), np.float32)})
    # One picture a run on the CPU; prompts by eights.
    assert session.counts() == {"encoder_calls": 3, "slices_encoded": 3, "decoder_calls": 2, "prompts_decoded": 9}


def test_nothing_in_nothing_out(session: SamSession) -> None:
    assert session.encode(np.zeros((0, 16, 16), np.float32)).shape == (0, 3, 4, 4)
    decoded = session.decode(np.zeros((0, 3, 4, 4), np.float32), {"boxes": np.zeros((0, 4), np.float32)})
    assert decoded.logits.shape == (0, 16, 16)
    assert session.encoder_calls == session.decoder_calls == 0


def test_picture_of_another_size_is_refused(session: SamSession) -> None:
    with pytest.raises(ValueError, match=r"Expected pictures \[N, 16, 16\].*shape=\(1, 16, 15\)"):
        session.encode(np.zeros((1, 16, 15), np.float32))


@pytest.mark.parametrize(
    "prompts",
    [{}, {"points": np.zeros((2, 2))}, {"boxes": np.zeros((1, 4))}, {"boxes": np.zeros((2, 4)), "masks": np.zeros(2)}],
)
def test_other_prompts_than_the_decoder_takes_are_refused(session: SamSession, prompts: dict) -> None:
    with pytest.raises(ValueError, match=r"Expected prompts \['boxes'\], one per embedding \(2\)"):
        session.decode(np.zeros((2, 3, 4, 4), np.float32), prompts)


def test_provider_that_is_not_to_be_had_is_refused(double_dir: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"on ROCMExecutionProvider;.*--sam_allow_cpu.*got=\['CPUExecutionProvider'\]"
    ):
        SamSession(double_dir, providers=("ROCMExecutionProvider", CPU))


def test_provider_that_onnxruntime_offers_but_does_not_give_is_refused(
    double_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    real = onnxruntime.InferenceSession

    def silent_fallback(path: str, options: object, providers: list) -> object:
        # What ONNX Runtime does when CUDA's libraries are absent: a log line, and the CPU.
        assert providers[0][0] == CUDA
        assert providers[0][1]["gpu_mem_limit"] == str(2**30)
        return real(path, options, providers=[CPU])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", silent_fallback)
    with pytest.raises(RuntimeError, match=r"Expected ONNX Runtime to run encoder\.onnx on CUDAExecutionProvider"):
        SamSession(double_dir, providers=(CUDA,), gpu_mem_limit_bytes=2**30)


def test_allowed_fallback_warns_and_computes(double_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        session = SamSession(double_dir, providers=("ROCMExecutionProvider",), allow_cpu=True)
    assert session.providers == (CPU,)
    assert "SAM runs on the CPU" in caplog.text
    assert session.encode(np.ones((1, 16, 16), np.float32)).min() == 1


def test_no_provider_at_all_is_refused(double_dir: Path) -> None:
    with pytest.raises(ValueError, match="at least one execution provider"):
        SamSession(double_dir, providers=())


def test_absent_onnxruntime_names_the_extras(double_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeError, match=r"semisam-tf\[cpu\].*semisam-tf\[gpu\]"):
        SamSession(double_dir)
