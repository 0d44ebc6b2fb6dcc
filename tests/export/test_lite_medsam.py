"""The real LiteMedSAM: exported by the command, read by the manifest alone, at work on a real scan."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from export.lite_medsam import CHECKPOINT_SHA256, checkpoint_path, load
from export.sam import export
from export.stand_ins import standing_in, timm_names
from semisam_tf.sam.branch import SamBranch
from semisam_tf.sam.manifest import load_manifest
from semisam_tf.sam.session import SamSession
from semisam_tf.sam.target import dice

Export = tuple[Path, subprocess.CompletedProcess]


def test_command_succeeds_and_reports_its_errors(lite_medsam: Export) -> None:
    output, result = lite_medsam
    assert result.returncode == 0, result.stderr
    assert "max relative error encoder.onnx" in result.stdout
    assert sorted(path.name for path in output.iterdir()) == ["decoder.onnx", "encoder.onnx", "manifest.json"]
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_manifest_says_what_the_model_is(lite_medsam: Export) -> None:
    manifest = load_manifest(lite_medsam[0])
    assert (manifest.family, manifest.dims, manifest.input_size, manifest.channels) == ("lite_medsam", 2, (256, 256), 3)
    assert manifest.scaling.clip_percentiles == (0.5, 99.5)
    assert manifest.prompts == {"box": True, "point": False, "mask": False}
    assert set(manifest.prompt_notes) == {"point", "mask"}
    assert manifest.mask_threshold_logits == 0
    assert manifest.source == {"name": "lite_medsam.pth", "sha256": CHECKPOINT_SHA256}
    assert manifest.licence == "Apache-2.0"
    for error in manifest.max_errors.values():
        assert 0 < error["relative"] < 1e-4


def test_second_run_leaves_a_good_export_alone(lite_medsam: Export) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in lite_medsam[0].iterdir()}
    export("lite_medsam", lite_medsam[0])
    assert {path.name: path.stat().st_mtime_ns for path in lite_medsam[0].iterdir()} == before


def test_second_run_needs_no_torch(lite_medsam: Export, repo_root: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from export.sam import export;"
        "sys.stdout.write(export('lite_medsam', sys.argv[1])['family'])"
    )
    command = [sys.executable, "-c", code, str(lite_medsam[0])]
    assert subprocess.run(command, cwd=repo_root, capture_output=True, text=True, check=True).stdout == "lite_medsam"


def test_one_embedding_answers_several_boxes(lite_medsam: Export) -> None:
    session = SamSession(lite_medsam[0])
    y, x = np.mgrid[:256, :256]
    discs = [((x - cx) ** 2 + (y - 128) ** 2 < 35**2) for cx in (70, 180)]
    picture = np.where(discs[0] | discs[1], 0.9, 0.2).astype(np.float32)
    embedding = session.encode(picture[None])
    boxes = np.array([[33, 91, 107, 165], [143, 91, 217, 165]], np.float32)
    decoded = session.decode(np.repeat(embedding, 2, axis=0), {"boxes": boxes})
    for logits, disc in zip(decoded.logits, discs, strict=True):
        assert dice(logits > 0, disc) > 0.95
    assert session.counts() == {"encoder_calls": 1, "slices_encoded": 1, "decoder_calls": 1, "prompts_decoded": 2}


def test_boxes_of_the_true_mask_find_the_atrium(lite_medsam: Export, la_dir: Path) -> None:
    # A test of the tool, with boxes from a label: training never does this.
    import h5py

    case_id = (la_dir / "train.list").read_text().split()[60]
    with h5py.File(la_dir / case_id / "mri_norm2.h5") as file:
        label = file["label"][:] > 0
        area = label.sum(axis=(0, 1))
        centre = int(np.average(np.arange(len(area)), weights=area))
        some = [centre - 8, centre, centre + 8]
        image, label = file["image"][:][:, :, some], label[:, :, some]
    branch = SamBranch(SamSession(lite_medsam[0]), margin_vox=2)
    target = branch.target(image[..., None], np.stack([~label, label], axis=-1).astype(np.float32))
    assert target.weight.min() > 0.5
    for index in range(len(some)):
        assert dice(target.probs[:, :, index, 1] > 0, label[:, :, index]) > 0.75


def test_random_weights_differ_by_seed_and_from_the_real_ones() -> None:
    first, again, other = load(random_seed=1), load(random_seed=1), load(random_seed=2)
    assert first.source_sha256 == again.source_sha256
    assert len({first.source_sha256, other.source_sha256, CHECKPOINT_SHA256}) == 3
    assert first.source_name == "random weights, seed 1"


def test_checkpoint_that_is_not_there_or_not_lite_medsam(tmp_path: Path) -> None:
    import torch

    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        checkpoint_path(str(tmp_path / "absent.pth"))
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"weights of LiteMedSAM.*other\.pth"):
        load(str(tmp_path / "other.pth"))


def test_stand_ins_give_way_to_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    real = object()
    monkeypatch.setitem(sys.modules, "timm", real)
    with standing_in(timm_names()):
        from timm.models.layers import to_2tuple

        assert to_2tuple(7) == (7, 7)
        assert sys.modules["timm"] is not real
    assert sys.modules["timm"] is real
    assert "timm.models" not in sys.modules
