"""Manifests: round trip, and everything that must be refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from semisam_tf.sam.manifest import (
    DECODER_FILE,
    ENCODER_FILE,
    MANIFEST_FILE,
    Manifest,
    file_sha256,
    load_manifest,
)


def edit(folder: Path, **changes: object) -> None:
    """Changes top-level values of a manifest; None removes one."""
    values = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    values.update(changes)
    kept = {name: value for name, value in values.items() if value is not None or name not in changes}
    (folder / MANIFEST_FILE).write_text(json.dumps(kept), encoding="utf-8")


def test_what_was_written_is_read_back(tmp_path: Path, write_double: Callable[..., Manifest]) -> None:
    written = write_double(tmp_path, side=32, clip_percentiles=(0.5, 99.5))
    read = load_manifest(tmp_path)
    assert read == written
    assert read.embedding_shape == (3, 8, 8)
    assert read.scaling.clip_percentiles == (0.5, 99.5)
    assert read.decoder_inputs["boxes"].shape == ("n", 4)


def test_absent_folder_names_the_export_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m export\.sam --family=lite_medsam --output=.*nowhere"):
        load_manifest(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [ENCODER_FILE, DECODER_FILE, MANIFEST_FILE])
def test_incomplete_folder_names_the_missing_file(double_dir: Path, name: str) -> None:
    (double_dir / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"exported SAM with {name}"):
        load_manifest(double_dir)


@pytest.mark.parametrize(("name", "other"), [(ENCODER_FILE, DECODER_FILE), (DECODER_FILE, ENCODER_FILE)])
def test_swapped_graph_is_refused(double_dir: Path, name: str, other: str) -> None:
    shutil.copyfile(double_dir / other, double_dir / name)
    with pytest.raises(ValueError, match=f"changed or swapped.*{name}"):
        load_manifest(double_dir)


def test_single_flipped_bit_is_refused(double_dir: Path) -> None:
    data = bytearray((double_dir / DECODER_FILE).read_bytes())
    data[len(data) // 2] ^= 1
    (double_dir / DECODER_FILE).write_bytes(data)
    with pytest.raises(ValueError, match="changed or swapped"):
        load_manifest(double_dir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 1}, r"format 2; .*Received: 1"),
        ({"licence": None}, r"missing=\['licence'\], unknown=\[\]"),
        ({"colour": "grey"}, r"missing=\[\], unknown=\['colour'\]"),
        ({"resize": "stretch"}, r"resize to be one of .*'stretch'"),
        ({"padding": "centre"}, r"padding to be one of .*'centre'"),
        ({"dims": 4}, r"dims to be one of .*4"),
        ({"prompts": {"box": True}}, r"each of \('box', 'point', 'mask'\)"),
        (
            {"scaling": {"clip_percentiles": [0, 1], "unit": "pixel", "method": "min_max", "mean": [0], "std": [1]}},
            "unit='pixel'",
        ),
        ({"scaling": {"unit": "slice"}}, "Expected a SAM manifest.*clip_percentiles"),
        ({"input_size": 16}, "Expected a SAM manifest"),
    ],
)
def test_manifest_that_is_not_understood_is_refused(double_dir: Path, changes: dict, message: str) -> None:
    edit(double_dir, **changes)
    with pytest.raises(ValueError, match=message):
        load_manifest(double_dir)


SCALING = {"clip_percentiles": [0, 100], "unit": "slice", "method": "min_max", "mean": [0] * 3, "std": [1] * 3}
TENSOR = {"name": "x", "shape": ["n"], "dtype": "float32"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_layout": "rows"}, r"image_layout to be one of .*'rows'"),
        ({"padding": "centre_minimum"}, r"padding to be one of \('end_zeros', 'in_graph'\)"),
        ({"resize": "spacing_linear"}, r"resize to be one of \('longer_side_linear', 'stretch_linear'\)"),
        ({"scaling": {**SCALING, "method": "ranks"}}, r"scaling.method to be one of .*'ranks'"),
        ({"scaling": {**SCALING, "clip_percentiles": [50, 50]}}, "0 <= low < high <= 100"),
        ({"scaling": {**SCALING, "std": [1, 0, 1]}}, "a mean and a std above 0 for each channel"),
        ({"channels": 1}, "a mean and a std above 0 for each channel"),
        ({"input_size": [16, 16, 16]}, "2 sizes above 0 as input_size"),
        ({"logits_size": [16, 0]}, "2 sizes above 0 as logits_size"),
        ({"embedding_shape": []}, "embedding_shape of sizes above 0"),
        ({"input_spacing_mm": [1, 1, 1]}, "no input_spacing_mm in 2D"),
        ({"coordinate_axes": [1, 1]}, "coordinate_axes that name each of 2 axes once"),
        ({"encoder_inputs": {}}, r"\['images'\] among encoder_inputs"),
        ({"encoder_inputs": {"images": TENSOR, "size": TENSOR}}, "images alone to encode"),
        ({"decoder_outputs": {"logits": TENSOR}}, r"\['logits', 'predicted_iou'\] among decoder_outputs"),
        ({"decoder_inputs": {"embeddings": {**TENSOR, "dtype": "bfloat16"}}}, r"decoder_inputs with \['bfloat16'\]"),
        ({"decoder_inputs": {"embeddings": TENSOR, "text": TENSOR}}, r"decoder_inputs among .*'text'"),
        ({"decoder_inputs": {"embeddings": TENSOR, "points": TENSOR}}, "points and point_labels together"),
        ({"decoder_inputs": {"embeddings": TENSOR, "has_masks": TENSOR}}, "has_masks with masks only"),
        (
            {"decoder_inputs": dict.fromkeys(("embeddings", "points", "point_labels", "boxes"), TENSOR)},
            "boxes for a decoder without points only",
        ),
        ({"mask_size": []}, "mask_size for a decoder with masks"),
        ({"mask_index": -1}, "mask_index of at least 0"),
        ({"point_codes": {"foreground": 1}}, "point_codes as one of"),
        ({"point_codes": {"foreground": 1, "background": 0, "padding": -1}}, "inputs for its box prompts"),
        ({"prompts": {"box": False, "point": True, "mask": True}}, "a note why it takes no box prompts"),
        (
            {"prompts": dict.fromkeys(("box", "point", "mask"), False)},
            "at least one kind of prompt",
        ),
        ({"sha256": {ENCODER_FILE: "0"}}, "sha256 of .*decoder.onnx"),
        ({"sha256": {ENCODER_FILE: "0", DECODER_FILE: "0", "../x": "0"}}, "plain file names"),
        ({"precision": {"encoder": "fp64", "mask_dice": None}}, "precision of encoder"),
        ({"precision": {"encoder": "fp16", "mask_dice": 1.5}}, "mask_dice"),
        ({"scan_check": {"scan": "a"}}, "scan_check null or of"),
    ],
)
def test_manifest_that_contradicts_itself_is_refused(
    tmp_path: Path, write_double: Callable[..., Manifest], changes: dict, message: str
) -> None:
    write_double(tmp_path, prompt="sam")
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_manifest(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_spacing_mm": [1.5, 1.5]}, "three input_spacing_mm above 0"),
        ({"padding": "end_zeros"}, r"padding to be one of \('centre_minimum',\)"),
        ({"prompts": {"box": True, "point": True, "mask": True}}, "inputs for its box prompts"),
    ],
)
def test_rules_of_volume_models(
    tmp_path: Path, write_double: Callable[..., Manifest], changes: dict, message: str
) -> None:
    written = write_double(tmp_path, prompt="sam", dims=3)
    assert load_manifest(tmp_path) == written
    assert written.input_spacing_mm == (1.5, 1.5, 1.5)
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_manifest(tmp_path)


def test_mask_index_is_one_of_the_decoders_masks(tmp_path: Path, write_double: Callable[..., Manifest]) -> None:
    write_double(tmp_path, prompt="sam", meta=True)
    edit(tmp_path, mask_index=3)
    assert load_manifest(tmp_path).mask_index == 3
    edit(tmp_path, mask_index=4)
    with pytest.raises(ValueError, match="mask_index below the 4 masks"):
        load_manifest(tmp_path)


def test_external_data_is_verified_too(double_dir: Path) -> None:
    data = double_dir / "encoder.onnx.data"
    data.write_bytes(b"weights")
    sha256 = json.loads((double_dir / MANIFEST_FILE).read_text(encoding="utf-8"))["sha256"]
    edit(double_dir, sha256={**sha256, data.name: file_sha256(data)})
    before = load_manifest(double_dir).digest()
    data.write_bytes(b"Weights")
    with pytest.raises(ValueError, match=r"changed or swapped.*encoder\.onnx\.data"):
        load_manifest(double_dir)
    edit(double_dir, sha256={**sha256, data.name: file_sha256(data)})
    # The embeddings come from these weights, though the graph's own bytes are the same.
    assert load_manifest(double_dir).digest() != before
    data.unlink()
    with pytest.raises(FileNotFoundError, match=r"with encoder\.onnx\.data"):
        load_manifest(double_dir)


def test_damaged_json_names_the_file(double_dir: Path) -> None:
    (double_dir / MANIFEST_FILE).write_text('{"format": 2,', encoding="utf-8")
    with pytest.raises(ValueError, match=r"Received: .*manifest\.json"):
        load_manifest(double_dir)


def test_digest_follows_what_decides_an_embedding_and_nothing_else(double_dir: Path) -> None:
    manifest = load_manifest(double_dir)
    other_encoder = {**manifest.sha256, ENCODER_FILE: "1" * 64}
    other_decoder = {**manifest.sha256, DECODER_FILE: "1" * 64}
    other_scaling = dataclasses.replace(manifest.scaling, clip_percentiles=(1.0, 99.0))
    assert dataclasses.replace(manifest, sha256=other_encoder).digest() != manifest.digest()
    assert dataclasses.replace(manifest, scaling=other_scaling).digest() != manifest.digest()
    for changes in (
        {"input_spacing_mm": (1.0, 1.0, 1.0)},
        {"padding": "in_graph"},
        {"image_layout": "channels_last"},
        {"scaling": dataclasses.replace(manifest.scaling, method="z_score_above_minimum")},
    ):
        assert dataclasses.replace(manifest, **changes).digest() != manifest.digest()
    assert dataclasses.replace(manifest, coordinate_axes=(0, 1)).digest() == manifest.digest()
    assert dataclasses.replace(manifest, sha256=other_decoder).digest() == manifest.digest()
    assert dataclasses.replace(manifest, licence="MIT").digest() == manifest.digest()
