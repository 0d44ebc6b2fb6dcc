"""The export tool's promises, on a family of two tiny modules: verified or nothing, whole or absent, idempotent."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import export.sam
from export import graphs, verify
from export.family import Family
from export.record import REVISION, ExportError, Settings
from semisam_tf.sam.manifest import load_manifest


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
    real = graphs.write_graphs

    def arrange(by: float) -> None:
        def write(family: Family, folder: Path, opset: int) -> None:
            real(family, folder, opset)
            perturb(folder / "encoder.onnx", by)

        monkeypatch.setattr(graphs, "write_graphs", write)

    return arrange


def test_good_export_is_whole_and_verified(tmp_path: Path, offer: Callable[..., None]) -> None:
    offer()
    values = export.sam.export("tiny", tmp_path / "sam")
    manifest = load_manifest(tmp_path / "sam")
    assert manifest.to_dict() == values == json.loads((tmp_path / "sam" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest.encoder_inputs["images"].shape == ("n", 1, 8, 8)
    assert set(manifest.created_with) == {"torch", "onnx", "onnxruntime", "numpy"}
    assert [path.name for path in tmp_path.iterdir()] == ["sam"]
    # Both outputs of the decoder for two prompt cases: alone, three together, one embedding for three.
    rows = [
        (c["graph"], c["inputs"], c["prompts"], c["batch"]) for c in manifest.comparisons if c["output"] != "logits"
    ]
    encoder = [("encoder.onnx", *row) for row in (("random", "", 1), ("structured", "", 1), ("both", "", 3))]
    decoder = [
        ("decoder.onnx", images, case, n)
        for case in ("1 point", "3 points, mask")
        for images, n in (("random", 1), ("both", 3), ("1 for all", 3))
    ]
    assert rows == encoder + decoder
    assert max(c["relative"] for c in manifest.comparisons) == max(e["relative"] for e in manifest.max_errors.values())


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
    with pytest.raises(ValueError, match=r"encoder\.onnx to take \{'images': \(3, 1, 8, 8\)\}.*Reshape"):
        export.sam.export("tiny", tmp_path / "sam")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "row"),
    [("ignores masks", "random +3 points, mask"), ("no shared embedding", r"1 for all +1 point +3 +2\.00e\+00")],
)
def test_fault_in_one_kind_of_call_fails(tmp_path: Path, offer: Callable[..., None], fault: str, row: str) -> None:
    offer(decoder=fault)
    with pytest.raises(ExportError, match=rf"decoder\.onnx +logits +{row}"):
        export.sam.export("tiny", tmp_path / "sam")
    assert list(tmp_path.iterdir()) == []


def test_error_is_measured_against_the_outputs_scale() -> None:
    class Session:
        def get_inputs(self) -> list:
            return []

        def run(self, names: list, feeds: dict) -> list:
            return [np.array([1.0, -4.0, 2.5])]

    expected = {"logits": np.array([1.0, -4.0, 2.0])}
    (comparison,) = verify._compare(Session(), {}, expected, ("decoder.onnx", "random", "box"))
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


def test_other_settings_are_exported_anew(tmp_path: Path, offer: Callable[..., None]) -> None:
    offer()
    export.sam.export("tiny", tmp_path / "sam")
    assert export.sam.export("tiny", tmp_path / "sam", settings=Settings(opset=18))["opset"] == 18
    assert export.sam.export("tiny", tmp_path / "sam")["opset"] == 17


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
        values = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        (folder / "manifest.json").write_text(json.dumps({**values, "exporter": "revision 0"}), encoding="utf-8")
    export.sam.export("tiny", folder)
    manifest = load_manifest(folder)
    assert manifest.source["sha256"] == ("b" if reason == "other weights" else "a") * 64
    assert manifest.exporter.endswith(f"revision {REVISION}")
    assert [path.name for path in tmp_path.iterdir()] == ["sam"]


def test_folder_with_other_things_is_not_replaced(tmp_path: Path, offer: Callable[..., None]) -> None:
    offer()
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        export.sam.export("tiny", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--output=DIR"),
        (["--output=x", "--random_weights", "--checkpoint=y"], "contradict each other"),
        (["--output=x", "stray"], "flags only"),
        (
            ["--output=x", "--family=sam_huge"],
            "value should be one of <lite_medsam|medsam|mobile_sam|sam_med3d",
        ),
        (["--output=x", "--encoder=a.onnx", "--pixel_mean=1,2,3"], "go with --adopt alone, for graphs made elsewhere"),
        (["--output=x", "--adopt", "--precision=int8", "--verify_scan=a"], "Received: --precision, --verify_scan."),
        (["--output=x", "--scan_spacing_mm=a,b,c"], "--scan_spacing_mm to be 3 numbers"),
        (["--output=x", "--family=lite_medsam", "--opset=99"], "an --opset that the installed ONNX Runtime"),
        (["--output=x", "--opset=22"], "--opset from 17 to 20"),
        (["--output=/proc/sam", "--random_weights"], "a folder that can be written to"),
        (["--output=x", "--verify_scan=absent.nii.gz", "--random_weights"], "absent.nii.gz, which is not there"),
    ],
)
def test_wrong_flags_are_one_line_each(repo_root: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "export.sam", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(repo_root)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("package", "extras"), [("torch", "export"), ("onnxruntime", "cpu,export")])
def test_absent_packages_are_one_line(repo_root: Path, tmp_path: Path, package: str, extras: str) -> None:
    code = f"import sys; sys.modules['{package}'] = None; from export.sam import run; run()"
    command = [sys.executable, "-c", code, "--family=lite_medsam", "--random_weights", f"--output={tmp_path / 'sam'}"]
    result = subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: Expected the exporter's packages: pip install 'semisam-tf[{extras}]'")
    assert len(result.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


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


def test_licence_that_was_given_is_recorded(tmp_path: Path, offer: Callable[..., None]) -> None:
    offer()
    assert export.sam.export("tiny", tmp_path / "sam")["licence"] == "Apache-2.0"
    settings = Settings(licence="research only")
    assert export.sam.export("tiny", tmp_path / "sam", settings=settings)["licence"] == "research only"


def test_link_to_an_export_stays_a_link(tmp_path: Path, offer: Callable[..., None]) -> None:
    offer()
    (tmp_path / "current").symlink_to(tmp_path / "disk" / "sam")
    for _ in range(2):
        export.sam.export("tiny", tmp_path / "current", force=True)
    assert (tmp_path / "current").is_symlink()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["sam"]
    load_manifest(tmp_path / "current")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("out of memory\nat row 3"), "Expected the export to run.*RuntimeError: out of memory"),
        (MemoryError(), "Expected memory enough.*MemoryError"),
        (ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime"), r"semisam-tf\[cpu,export\]"),
        (ExportError("a\ntable"), "a\ntable"),
    ],
)
def test_what_stops_an_export_is_said_without_a_traceback(error: Exception, line: str) -> None:
    said = export.sam._said_of(error)
    assert re.search(line, said)
    assert len(said.splitlines()) == 1 + line.count("\n")
