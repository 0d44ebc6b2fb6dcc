"""Graphs: free sizes, operator sets, and weights in a file of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper

import export.sam
from export import graphs
from export.family import Family
from export.graphs import check_opset, gather_weights, tensors_of, write_graphs
from export.record import Settings
from semisam_tf.sam.manifest import load_manifest
from semisam_tf.sam.runtime import open_session
from semisam_tf.sam.session import SamSession


def test_every_free_size_is_free(tiny: Callable[..., Family], tmp_path: Path) -> None:
    write_graphs(tiny(), tmp_path)
    shapes = {tensor.name: tensor.shape for tensor in open_session(tmp_path / "decoder.onnx").get_inputs()}
    assert shapes == {
        "embeddings": ["m", 2, 4, 4],
        "points": ["n", "p", 2],
        "point_labels": ["n", "p"],
        "masks": ["n", 4, 4],
        "has_masks": ["n"],
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["decoder.onnx", "encoder.onnx"]


@pytest.mark.parametrize("opset", graphs.OPSETS)
def test_opset_is_the_one_asked_for(tiny: Callable[..., Family], tmp_path: Path, opset: int) -> None:
    check_opset(opset)
    write_graphs(tiny(), tmp_path, opset)
    assert onnx.load(tmp_path / "encoder.onnx").opset_import[0].version == opset


def test_opset_too_new_for_the_runtime_stops_before_the_model_is_loaded(
    tmp_path: Path, offer: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    offer()
    monkeypatch.setattr("export.graphs.write_graphs", None)
    with pytest.raises(ValueError, match=r"opset that the installed ONNX Runtime [\d.]+ runs.*--opset=99"):
        export.sam.export("tiny", tmp_path / "sam", settings=Settings(opset=99))
    assert list(tmp_path.iterdir()) == []


def test_large_weights_get_a_file_of_their_own(
    tmp_path: Path, offer: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(width=600)
    plain = export.sam.export("tiny", tmp_path / "plain")
    monkeypatch.setattr(graphs, "EXTERNAL_BYTES", 8000)
    folder = tmp_path / "sam"
    values = export.sam.export("tiny", folder)
    assert sorted(values["sha256"]) == ["decoder.onnx", "encoder.onnx", "encoder.onnx.data"]
    assert sorted(path.name for path in folder.iterdir()) == [*sorted(values["sha256"]), "manifest.json"]
    assert (folder / "encoder.onnx").stat().st_size < (folder / "encoder.onnx.data").stat().st_size
    assert (folder / "decoder.onnx").read_bytes() == (tmp_path / "plain" / "decoder.onnx").read_bytes()
    assert values["max_errors"] == plain["max_errors"]
    picture = np.random.default_rng(0).random((1, 8, 8), np.float32)
    embeddings = [SamSession(tmp_path / name).encode(picture) for name in ("plain", "sam")]
    np.testing.assert_array_equal(*embeddings)


@pytest.mark.parametrize("how", ["tampered", "missing"])
def test_large_weights_are_verified_at_load(
    tmp_path: Path, offer: Callable[..., None], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    offer(width=600)
    monkeypatch.setattr(graphs, "EXTERNAL_BYTES", 8000)
    data = tmp_path / "encoder.onnx.data"
    export.sam.export("tiny", tmp_path)
    load_manifest(tmp_path)
    if how == "tampered":
        content = bytearray(data.read_bytes())
        content[5] ^= 1
        data.write_bytes(content)
        with pytest.raises(ValueError, match=r"changed or swapped.*encoder\.onnx\.data"):
            load_manifest(tmp_path)
    else:
        data.unlink()
        with pytest.raises(FileNotFoundError, match=r"encoder\.onnx\.data"):
            load_manifest(tmp_path)
    # Made anew, not taken for a good export.
    export.sam.export("tiny", tmp_path)
    load_manifest(tmp_path)


def test_scattered_weights_are_gathered(tmp_path: Path) -> None:
    """As the exporter leaves a model over 2 GiB: a file for each tensor, those within a branch of an If too."""
    values = {"big": np.arange(5000, dtype=np.float32), "small": np.arange(3, dtype=np.float32)}
    inner = np.arange(600, dtype=np.float32)
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["inner"], ["then"])], "then", [],
        [onnx.helper.make_tensor_value_info("then", TensorProto.FLOAT, [600])],
        [numpy_helper.from_array(inner, "inner")],
    )  # fmt: skip
    nodes = [onnx.helper.make_node("If", ["flag"], ["y"], then_branch=branch, else_branch=branch)]
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "g", [info("flag", TensorProto.BOOL, [])], [info("y", TensorProto.FLOAT, [600])],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    (tmp_path / "parts").mkdir()
    onnx.save_model(
        model,
        tmp_path / "parts" / "a.onnx",
        save_as_external_data=True,
        all_tensors_to_one_file=False,
        size_threshold=0,
    )
    assert len(list((tmp_path / "parts").iterdir())) > 3
    gather_weights(tmp_path / "parts" / "a.onnx", tmp_path / "a.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.onnx", "a.onnx.data", "parts"]
    loaded = onnx.load(tmp_path / "a.onnx")
    for tensor in tensors_of(loaded.graph):
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), {**values, "inner": inner}[tensor.name])
    bare = {t.name: t for t in tensors_of(onnx.load(tmp_path / "a.onnx", load_external_data=False).graph)}
    assert bare["small"].data_location == TensorProto.DEFAULT
    assert [bare[name].data_location for name in ("big", "inner")] == [TensorProto.EXTERNAL] * 2
    (answer,) = open_session(tmp_path / "a.onnx").run(None, {"flag": np.array(True)})
    np.testing.assert_array_equal(answer, inner)


def test_tracing_leaves_torch_as_it_was(tiny: Callable[..., Family], tmp_path: Path) -> None:
    family = tiny()
    write_graphs(family, tmp_path)
    assert not family.encoder.training
    assert torch.is_grad_enabled()
