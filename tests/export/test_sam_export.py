"""The export tool's promises, on a family of two tiny modules: verified or nothing, whole or absent, idempotent."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import export.sam
from export import verify
from export.family import Arrays, Family
from export.lite_medsam import FACTS
from export.sam import ExportError
from semisam_tf.sam.manifest import load_manifest

SIDE, LOW = 8, 4


class TinyEncoder(torch.nn.Module):
    """[n, 1, 8, 8] -> [n, 2, 4, 4]; with `frozen` the batch size is a Python number in the trace."""

    def __init__(self, frozen: bool = False) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(1, 2, 2, 2)
        self.frozen = frozen

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        result = self.convolution(images)
        return result.reshape(len(images), 2, LOW, LOW) if self.frozen else result


class TinyDecoder(torch.nn.Module):
    """Logits from the embedding's mean, IoU from the box."""

    def forward(self, embeddings: torch.Tensor, boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return embeddings.mean(dim=1) + boxes.mean(dim=1)[:, None, None], boxes.sum(dim=1)


def tiny_family(sha256: str = "a" * 64, frozen: bool = False) -> Family:
    """A family that exports in a second."""
    torch.manual_seed(0)
    encoder, decoder = TinyEncoder(frozen).eval(), TinyDecoder().eval()

    def encode(arrays: Arrays) -> Arrays:
        with torch.no_grad():
            return {"embeddings": encoder(torch.from_numpy(arrays["images"])).numpy()}

    def decode(arrays: Arrays) -> Arrays:
        logits, iou = decoder(torch.from_numpy(arrays["embeddings"]), torch.from_numpy(arrays["boxes"]))
        return {"logits": logits.numpy(), "predicted_iou": iou.numpy()}

    def examples(rng: np.random.Generator, kinds: Sequence[str]) -> Arrays:
        images = rng.random((len(kinds), 1, SIDE, SIDE), np.float32)
        return {"images": images, "boxes": rng.random((len(kinds), 4), np.float32)}

    return Family(
        encoder=encoder,
        decoder=decoder,
        encoder_inputs={"images": ("n", 1, SIDE, SIDE)},
        encoder_outputs={"embeddings": ("n", 2, LOW, LOW)},
        decoder_inputs={"embeddings": ("n", 2, LOW, LOW), "boxes": ("n", 4)},
        decoder_outputs={"logits": ("n", LOW, LOW), "predicted_iou": ("n",)},
        published_encoder=encode,
        published_decoder=decode,
        examples=examples,
        facts={
            **FACTS, "family": "tiny", "input_size": (SIDE, SIDE), "channels": 1,
            "embedding_shape": (2, LOW, LOW), "logits_size": (LOW, LOW),
        },
        source_name="tiny.pth",
        source_sha256=sha256,
    )  # fmt: skip


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Registers a family that is made by `tiny_family` with the given arguments."""

    def register(**arguments: Any) -> None:
        module = types.SimpleNamespace(
            load=lambda checkpoint, random_seed: tiny_family(**arguments),
            source_sha256=lambda checkpoint, random_seed: tiny_family(**arguments).source_sha256,
        )
        monkeypatch.setitem(sys.modules, "export.tiny", module)
        monkeypatch.setitem(export.sam.FAMILIES, "tiny", "export.tiny")

    return register


def perturb(path: Path, by: float) -> None:
    """Adds `by` to one weight of a graph."""
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda tensor: len(numpy_helper.to_array(tensor).ravel()))
    values = numpy_helper.to_array(weight).copy()
    values.flat[0] += by
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)


@pytest.fixture
def perturbed_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Makes the exporter write an encoder that is off by so much in one weight."""
    real = export.sam.write_graphs

    def arrange(by: float) -> None:
        def write(family: Family, folder: Path) -> None:
            real(family, folder)
            perturb(folder / "encoder.onnx", by)

        monkeypatch.setattr(export.sam, "write_graphs", write)

    return arrange


def test_good_export_is_whole_and_verified(tmp_path: Path, offer: Callable[..., None]) -> None:
    offer()
    values = export.sam.export("tiny", tmp_path / "sam")
    manifest = load_manifest(tmp_path / "sam")
    assert manifest.to_dict() == values == json.loads((tmp_path / "sam" / "manifest.json").read_text())
    assert manifest.encoder_inputs["images"].shape == ("n", 1, SIDE, SIDE)
    assert set(manifest.created_with) == {"torch", "onnx", "onnxruntime", "numpy"}
    assert [path.name for path in tmp_path.iterdir()] == ["sam"]


@pytest.mark.parametrize("by", [1e-2, np.nan])
def test_perturbed_graph_fails_and_leaves_nothing(
    tmp_path: Path, offer: Callable[..., None], perturbed_by: Callable[[float], None], by: float
) -> None:
    offer()
    perturbed_by(by)
    with pytest.raises(ExportError, match=r"(?s)nothing was written.*encoder\.onnx +embeddings"):
        export.sam.export("tiny", tmp_path / "sam")
    assert list(tmp_path.iterdir()) == []


def test_failed_export_leaves_the_old_one(
    tmp_path: Path, offer: Callable[..., None], perturbed_by: Callable[[float], None]
) -> None:
    offer()
    export.sam.export("tiny", tmp_path / "sam")
    before = load_manifest(tmp_path / "sam")
    perturbed_by(1e-2)
    with pytest.raises(ExportError):
        export.sam.export("tiny", tmp_path / "sam", force=True)
    assert load_manifest(tmp_path / "sam") == before
    assert [path.name for path in tmp_path.iterdir()] == ["sam"]


def test_frozen_batch_size_does_not_pass(tmp_path: Path, offer: Callable[..., None]) -> None:
    offer(frozen=True)
    with pytest.raises(Exception, match=r"Reshape|reshape|shape"):
        export.sam.export("tiny", tmp_path / "sam")
    assert list(tmp_path.iterdir()) == []


def test_error_is_measured_against_the_outputs_scale() -> None:
    class Session:
        def get_inputs(self) -> list:
            return []

        def run(self, names: list, feeds: dict) -> list:
            return [np.array([1.0, -4.0, 2.5])]

    expected = {"logits": np.array([1.0, -4.0, 2.0])}
    (comparison,) = verify._compare("decoder.onnx", Session(), {}, expected, "random")
    assert (comparison.absolute, comparison.relative) == (0.5, 0.125)
    assert not verify.passes([comparison])


def test_same_weights_are_not_exported_twice(tmp_path: Path, offer: Callable[..., None]) -> None:
    offer()
    export.sam.export("tiny", tmp_path / "sam")
    before = (tmp_path / "sam" / "manifest.json").stat().st_mtime_ns
    export.sam.export("tiny", tmp_path / "sam")
    assert (tmp_path / "sam" / "manifest.json").stat().st_mtime_ns == before
    export.sam.export("tiny", tmp_path / "sam", force=True)
    assert (tmp_path / "sam" / "manifest.json").stat().st_mtime_ns > before


@pytest.mark.parametrize("reason", ["other weights", "swapped file", "older exporter"])
def test_export_that_is_not_good_is_replaced(tmp_path: Path, offer: Callable[..., None], reason: str) -> None:
    offer()
    folder = tmp_path / "sam"
    export.sam.export("tiny", folder)
    if reason == "other weights":
        offer(sha256="b" * 64)
    elif reason == "swapped file":
        (folder / "encoder.onnx").write_bytes((folder / "decoder.onnx").read_bytes())
    else:
        values = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**values, "exporter": "revision 0"}))
    export.sam.export("tiny", folder)
    manifest = load_manifest(folder)
    assert manifest.source["sha256"] == ("b" if reason == "other weights" else "a") * 64
    assert manifest.exporter.endswith(export.sam.REVISION)
    assert [path.name for path in tmp_path.iterdir()] == ["sam"]


def test_folder_with_other_things_is_not_replaced(tmp_path: Path, offer: Callable[..., None]) -> None:
    offer()
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        export.sam.export("tiny", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--output=DIR"),
        (["--output=x", "--random_weights", "--checkpoint=y"], "contradict each other"),
        (["--output=x", "stray"], "flags only"),
        (["--output=x", "--family=sam_huge"], "should be one of <lite_medsam>"),
    ],
)
def test_contradictory_flags_are_errors(repo_root: Path, arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "export.sam", *arguments]
    result = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert message in result.stdout + result.stderr


def test_absent_checkpoint_is_an_error_without_a_traceback(repo_root: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "export.sam", f"--output={tmp_path / 'sam'}", "--checkpoint=absent.pth"]
    result = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "absent.pth" in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_help_imports_no_torch(repo_root: Path) -> None:
    code = (
        "import sys, runpy; sys.argv = ['export.sam', '--help']; runpy.run_module('export.sam', run_name='__main__');"
        "sys.exit(any(name.split('.')[0] in ('torch', 'onnx', 'onnxruntime') for name in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=repo_root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for flag in ("--family", "--output", "--checkpoint", "random_weights", "--seed", "force"):
        assert flag in result.stdout
