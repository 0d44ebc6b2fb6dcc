"""Reduced encoders: smaller, float32 at both ends, measured by their masks, and refused where these differ too much."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import export.sam
from export import graphs, precision
from export.family import Family
from export.graphs import tensors_of, write_graphs
from export.precision import encoder_bytes, mask_dice, reduce_encoder
from export.record import ExportError, Settings
from semisam_tf.sam.manifest import load_manifest
from semisam_tf.sam.runtime import open_session
from semisam_tf.sam.session import SamSession

WIDTH = 600


def kinds_of_weights(path: Path) -> set[int]:
    tensors = tensors_of(onnx.load(path).graph)
    return {tensor.data_type for tensor in tensors if len(tensor.dims) == 2 and min(tensor.dims) > 1}


@pytest.mark.parametrize(("name", "kind"), [("fp16", TensorProto.FLOAT16), ("int8", TensorProto.UINT8)])
def test_encoder_is_smaller_and_close(tmp_path: Path, offer: Callable[..., None], name: str, kind: int) -> None:
    offer(width=WIDTH)
    full = export.sam.export("tiny", tmp_path / "fp32")
    values = export.sam.export("tiny", tmp_path / name, settings=Settings(precision=name))
    assert full["precision"] == {"encoder": "fp32", "mask_dice": None}
    assert values["precision"]["encoder"] == name
    assert 0.9 <= values["precision"]["mask_dice"] <= 1
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == [
        "decoder.onnx",
        "encoder.onnx",
        "manifest.json",
    ]
    assert encoder_bytes(tmp_path / name) < 0.75 * encoder_bytes(tmp_path / "fp32")
    assert kinds_of_weights(tmp_path / name / "encoder.onnx") == {kind}
    # The decoder is float32's; the encoder's error is its own.
    assert values["max_errors"]["decoder.onnx"] == full["max_errors"]["decoder.onnx"]
    assert values["max_errors"]["encoder.onnx"]["relative"] > 10 * full["max_errors"]["encoder.onnx"]["relative"]
    ends = open_session(tmp_path / name / "encoder.onnx")
    assert {tensor.type for tensor in (*ends.get_inputs(), *ends.get_outputs())} == {"tensor(float)"}
    picture = np.random.default_rng(0).random((1, 8, 8), np.float32)
    a, b = (SamSession(tmp_path / folder).encode(picture) for folder in ("fp32", name))
    assert 0 < np.abs(a - b).max() < 0.05 * np.abs(a).max()
    assert "worst mask Dice against fp32" in export.sam.summary(load_manifest(tmp_path / name).to_dict(), "sam")


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_weights_in_a_file_of_their_own_are_reduced_too(
    tmp_path: Path, offer: Callable[..., None], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    offer(width=WIDTH)
    inside = export.sam.export("tiny", tmp_path / "inside", settings=Settings(precision=name))
    monkeypatch.setattr(graphs, "EXTERNAL_BYTES", 8000)
    outside = export.sam.export("tiny", tmp_path / "outside", settings=Settings(precision=name))
    assert outside["precision"] == inside["precision"]
    picture = np.random.default_rng(0).random((1, 8, 8), np.float32)
    embeddings = [SamSession(tmp_path / folder).encode(picture) for folder in ("inside", "outside")]
    np.testing.assert_array_equal(*embeddings)


def test_a_reduced_encoder_that_no_mask_judges_is_refused(
    tmp_path: Path, offer: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    offer()
    monkeypatch.setattr(precision, "mask_dice", lambda *_: None)
    with pytest.raises(ExportError, match="masks that are all empty or full"):
        export.sam.export("tiny", tmp_path / "sam", settings=Settings(precision="fp16"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("dice", "warned", "kept"), [(0.996, False, True), (0.95, True, True), (0.89, True, False)])
def test_masks_decide(
    tmp_path: Path, offer: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    dice: float, warned: bool, kept: bool,
) -> None:  # fmt: skip
    offer()
    monkeypatch.setattr(precision, "mask_dice", lambda *_: dice)
    with caplog.at_level(logging.WARNING):
        if kept:
            values = export.sam.export("tiny", tmp_path / "sam", settings=Settings(precision="fp16"))
            assert values["precision"] == {"encoder": "fp16", "mask_dice": dice}
        else:
            with pytest.raises(ExportError, match=r"fp16 encoder.*at least 0\.9.*worst Dice 0\.8900"):
                export.sam.export("tiny", tmp_path / "sam", settings=Settings(precision="fp16"))
            assert list(tmp_path.iterdir()) == []
    assert any(f"is {dice:.4f}, below 0.995" in record.getMessage() for record in caplog.records) == warned


def test_dice_is_of_masks_through_the_same_decoder(tiny: Callable[..., Family], tmp_path: Path) -> None:
    family = tiny()
    full = tmp_path / "full"
    full.mkdir()
    write_graphs(family, tmp_path)
    (tmp_path / "encoder.onnx").rename(full / "encoder.onnx")
    reduce_encoder(full / "encoder.onnx", tmp_path / "encoder.onnx", "fp16")
    assert mask_dice(family, full / "encoder.onnx", tmp_path, 0.0, None) > 0.9
    # Whatever the encoder, no voxel is above this, and all are above that: nothing to compare.
    assert mask_dice(family, full / "encoder.onnx", tmp_path, 1e6, None) is None
    assert mask_dice(family, full / "encoder.onnx", tmp_path, -1e6, None) is None
    # Another encoder draws other masks.
    (tmp_path / "encoder.onnx").unlink()
    model = onnx.load(full / "encoder.onnx")
    for tensor in tensors_of(model.graph):
        if tensor.data_type == TensorProto.FLOAT:
            values = -onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, tmp_path / "encoder.onnx")
    assert mask_dice(family, full / "encoder.onnx", tmp_path, 0.0, None) < 0.9


def test_other_precision_is_exported_anew(tmp_path: Path, offer: Callable[..., None]) -> None:
    offer()
    for name in ("fp16", "int8", "fp32"):
        values = export.sam.export("tiny", tmp_path / "sam", settings=Settings(precision=name))
        assert values["precision"]["encoder"] == name
