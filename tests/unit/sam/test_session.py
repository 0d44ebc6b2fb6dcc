"""ONNX Runtime behind the manifest, on the double: values worked by hand, and providers."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from semisam_tf.sam.decoder_inputs import Prompts
from semisam_tf.sam.manifest import Manifest, Scaling, Tensor
from semisam_tf.sam.runtime import CPU, CUDA, open_session
from semisam_tf.sam.session import SamCallError, SamSession, pictures_a_run


def test_encoder_sees_the_picture_in_every_channel(session: SamSession) -> None:
    picture = np.random.default_rng(0).random((1, 16, 16), np.float32)
    embeddings = session.encode(picture)
    blocks = picture.reshape(1, 4, 4, 4, 4).mean(axis=(2, 4))
    assert embeddings.shape == (1, 3, 4, 4)
    for channel in range(3):
        np.testing.assert_allclose(embeddings[:, channel], blocks, atol=1e-6)


def test_mean_and_std_of_the_manifest_are_applied(tmp_path: Path, write_double: Callable[..., Manifest]) -> None:
    write_double(tmp_path, scaling=Scaling((0.0, 100.0), "slice", "min_max", (0.5, 0.0, 1.0), (0.25, 1.0, 2.0)))
    embeddings = SamSession(tmp_path).encode(np.full((1, 16, 16), 0.75, np.float32))
    np.testing.assert_allclose(embeddings[0, :, 0, 0], [1.0, 0.75, -0.125], atol=1e-6)


def test_a_picture_alone_and_among_others_gives_equal_embeddings(session: SamSession) -> None:
    pictures = np.random.default_rng(1).random((5, 16, 16), np.float32)
    together = session.encode(pictures)
    alone = np.concatenate([session.encode(picture[None]) for picture in pictures])
    np.testing.assert_array_equal(together, alone)


def test_decoder_fills_the_box(session: SamSession) -> None:
    bright = np.ones((2, 3, 4, 4), np.float32)
    # Rows 3 and 4, columns 2 to 5; the whole picture.
    decoded = session.decode(bright, Prompts(boxes=np.array([[[3, 2], [4, 5]], [[0, 0], [15, 15]]])))
    assert decoded.logits.shape == (2, 16, 16)
    assert {tuple(p) for p in np.argwhere(decoded.logits[0] > 0)} == {(y, x) for y in (3, 4) for x in (2, 3, 4, 5)}
    assert (decoded.logits[1] > 0).all()
    assert decoded.logits[1, 5, 5] == 5.5
    np.testing.assert_array_equal(decoded.predicted_iou, [0.75, 0.75])


def test_more_prompts_than_a_batch_keep_their_order(session: SamSession) -> None:
    boxes = np.array([[[0, i % 16], [0, i % 16]] for i in range(21)], np.float32)
    decoded = session.decode(np.ones((21, 3, 4, 4), np.float16), Prompts(boxes=boxes))
    assert [int(np.argmax(logits[0])) for logits in decoded.logits] == [i % 16 for i in range(21)]


def test_work_is_counted(session: SamSession) -> None:
    session.encode(np.zeros((3, 16, 16), np.float32))
    session.decode(np.zeros((9, 3, 4, 4), np.float32), Prompts(boxes=np.zeros((9, 2, 2))))
    # One picture a run on the CPU; prompts by eights.
    assert session.counts() == {"encoder_calls": 3, "slices_encoded": 3, "decoder_calls": 2, "prompts_decoded": 9}


def test_nothing_in_nothing_out(session: SamSession) -> None:
    assert session.encode(np.zeros((0, 16, 16), np.float32)).shape == (0, 3, 4, 4)
    decoded = session.decode(np.zeros((0, 3, 4, 4), np.float32), Prompts(boxes=np.zeros((0, 2, 2))))
    assert decoded.logits.shape == (0, 16, 16)
    assert session.encoder_calls == session.decoder_calls == 0


def test_padding_is_zeros_after_mean_and_std(tmp_path: Path, write_double: Callable[..., Manifest]) -> None:
    write_double(tmp_path, scaling=Scaling((0.0, 100.0), "slice", "min_max", (0.5,) * 3, (0.25,) * 3))
    embeddings = SamSession(tmp_path).encode(np.full((1, 8, 12), 0.75, np.float32))
    expected = np.zeros((4, 4))
    expected[:2, :3] = 1.0
    for channel in range(3):
        np.testing.assert_allclose(embeddings[0, channel], expected, atol=1e-6)


@pytest.mark.parametrize("image_layout", ["channels_last", "channels_last_unbatched"])
def test_other_layouts_give_the_same_embeddings(
    tmp_path: Path, write_double: Callable[..., Manifest], session: SamSession, image_layout: str
) -> None:
    """The unbatched encoder pads its picture in the graph, to the left of nothing: below and to the right."""
    write_double(tmp_path, image_layout=image_layout)
    other = SamSession(tmp_path)
    pictures = np.random.default_rng(2).random((3, 10, 16), np.float32)
    np.testing.assert_allclose(other.encode(pictures), session.encode(pictures), atol=1e-6)
    assert other.counts()["encoder_calls"] == other.counts()["slices_encoded"] == 3


@pytest.mark.parametrize(
    ("size", "batch", "provider", "expected"),
    [
        ((256, 256), "n", CPU, 1), ((256, 256), "n", CUDA, 16), ((1024, 1024), "n", CUDA, 1),
        ((512, 512), "n", CUDA, 4), ((128, 128, 128), "n", CUDA, 1), ((256, 256), 1, CUDA, 1),
    ],
)  # fmt: skip
def test_pictures_a_run(size: tuple[int, ...], batch: int | str, provider: str, expected: int) -> None:
    images = Tensor("images", (batch, 3, *size), "float32")
    manifest = types.SimpleNamespace(dims=len(size), input_size=size, encoder_inputs={"images": images})
    assert pictures_a_run(manifest, provider) == expected


def test_a_failed_run_is_an_error_of_its_own_and_the_next_one_is_as_ever(
    tmp_path: Path, write_double: Callable[..., Manifest]
) -> None:
    write_double(tmp_path, fails_above=0.5)
    session = SamSession(tmp_path)
    with pytest.raises(SamCallError, match=r"ONNX Runtime failed in encoder\.onnx: .*out of data bounds"):
        session.encode(np.full((1, 16, 16), 0.75, np.float32))
    np.testing.assert_allclose(session.encode(np.full((1, 16, 16), 0.25, np.float32)), 0.25)
    assert session.counts()["encoder_calls"] == 1


def test_answers_that_are_not_finite_are_failed_runs(session: SamSession) -> None:
    with pytest.raises(SamCallError, match=r"encoder\.onnx\. Received: NaN or infinity in embeddings"):
        session.encode(np.full((1, 16, 16), np.nan, np.float32))
    box = Prompts(boxes=np.array([[[3, 2], [4, 5]]]))
    with pytest.raises(SamCallError, match=r"decoder\.onnx\. Received: NaN or infinity in logits"):
        session.decode(np.full((1, 3, 4, 4), np.nan, np.float32), box)


@pytest.mark.parametrize("shape", [(1, 16, 17), (1, 16), (1, 16, 16, 16)])
def test_picture_that_does_not_fit_is_refused(session: SamSession, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"Expected pictures \[N, 16, 16\] or smaller.*Received: shape=\(1, 16"):
        session.encode(np.zeros(shape, np.float32))


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
        return real(path, options, providers=[CPU])

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", silent_fallback)
    with pytest.raises(RuntimeError, match=r"Expected ONNX Runtime to run encoder\.onnx on CUDAExecutionProvider"):
        SamSession(double_dir, providers=(CUDA,))


@pytest.mark.parametrize(
    ("limit_bytes", "more"),
    [(None, {}), (2**30, {"gpu_mem_limit": "1073741824", "arena_extend_strategy": "kSameAsRequested"})],
)
def test_options_of_each_provider(
    double_dir: Path, monkeypatch: pytest.MonkeyPatch, limit_bytes: int | None, more: dict[str, str]
) -> None:
    """ONNX Runtime is a stand-in that gives whatever it is asked for: nothing here computes."""
    asked: list[tuple[str, list[tuple[str, dict[str, str]]]]] = []

    class Session:
        def __init__(self, path: str, options: object, providers: list[tuple[str, dict[str, str]]]) -> None:
            asked.append((Path(path).name, providers))
            self._names = [name for name, _ in providers]

        def get_providers(self) -> list[str]:
            return self._names

    runtime = types.SimpleNamespace(
        get_available_providers=lambda: ["TensorrtExecutionProvider", CUDA, CPU],
        preload_dlls=lambda: asked.append(("CUDA's libraries", [])),
        SessionOptions=lambda: types.SimpleNamespace(add_session_config_entry=lambda name, value: None),
        InferenceSession=Session,
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    for name in ("encoder.onnx", "decoder.onnx"):
        open_session(double_dir / name, ("TensorrtExecutionProvider", CUDA, CPU), False, None, limit_bytes, gpu_id=1)
    cuda = {"device_id": "1", "cudnn_conv_algo_search": "DEFAULT", "use_tf32": "0", **more}
    wanted = [("TensorrtExecutionProvider", {}), (CUDA, cuda), (CPU, {})]
    # The libraries first, or the session falls back to the CPU.
    assert asked == [
        ("CUDA's libraries", []),
        ("encoder.onnx", wanted),
        ("CUDA's libraries", []),
        ("decoder.onnx", wanted),
    ]


@pytest.mark.parametrize("arguments", [{"gpu_mem_limit_bytes": 0}, {"gpu_mem_limit_bytes": -1}, {"gpu_id": -1}])
def test_a_gpu_that_cannot_be_is_refused(double_dir: Path, arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"above 0 bytes or none.*Received: gpu_mem_limit_bytes="):
        SamSession(double_dir, **arguments)


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


@pytest.mark.parametrize(
    ("prompt", "dims", "kinds"),
    [("box", 2, ["box"]), ("mask", 2, ["mask"]), ("sam", 2, ["box", "point", "mask"]), ("sam", 3, ["point"])],
)
def test_both_graphs_are_tried_out(
    tmp_path: Path, write_double: Callable[..., Manifest], prompt: str, dims: int, kinds: list[str]
) -> None:
    write_double(tmp_path, prompt=prompt, dims=dims)
    session = SamSession(tmp_path)
    session.try_out(kinds)
    assert session.counts() == {"encoder_calls": 1, "slices_encoded": 1, "decoder_calls": 1, "prompts_decoded": 1}


def test_a_graph_that_cannot_run_fails_when_tried_out(tmp_path: Path, write_double: Callable[..., Manifest]) -> None:
    write_double(tmp_path, fails_above=-1.0)
    with pytest.raises(SamCallError, match=r"encoder\.onnx"):
        SamSession(tmp_path).try_out(["box"])
