"""Manifests: round trip, and everything that must be refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from semisam_tf.sam.manifest import DECODER_FILE, ENCODER_FILE, MANIFEST_FILE, Manifest, load_manifest


def edit(folder: Path, **changes: object) -> None:
    """Changes top-level values of a manifest; None removes one."""
    values = json.loads((folder / MANIFEST_FILE).read_text())
    values.update(changes)
    (folder / MANIFEST_FILE).write_text(json.dumps({k: v for k, v in values.items() if v is not None}))


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
        ({"format": 2}, r"format 1; .*Received: 2"),
        ({"licence": None}, r"missing=\['licence'\], unknown=\[\]"),
        ({"colour": "grey"}, r"missing=\[\], unknown=\['colour'\]"),
        ({"resize": "stretch"}, r"resize to be one of .*'stretch'"),
        ({"padding": "centre"}, r"padding to be one of .*'centre'"),
        ({"dims": 4}, r"dims to be one of .*4"),
        ({"prompts": {"box": True}}, r"each of \('box', 'point', 'mask'\)"),
        ({"scaling": {"clip_percentiles": [0, 1], "unit": "pixel", "mean": [0], "std": [1]}}, "unit='pixel'"),
        ({"scaling": {"unit": "slice"}}, "Expected a SAM manifest.*clip_percentiles"),
        ({"input_size": 16}, "Expected a SAM manifest"),
    ],
)
def test_manifest_that_is_not_understood_is_refused(double_dir: Path, changes: dict, message: str) -> None:
    edit(double_dir, **changes)
    with pytest.raises(ValueError, match=message):
        load_manifest(double_dir)


def test_damaged_json_names_the_file(double_dir: Path) -> None:
    (double_dir / MANIFEST_FILE).write_text('{"format": 1,')
    with pytest.raises(ValueError, match=r"Received: .*manifest\.json"):
        load_manifest(double_dir)


def test_digest_follows_what_decides_an_embedding_and_nothing_else(double_dir: Path) -> None:
    manifest = load_manifest(double_dir)
    other_encoder = {**manifest.sha256, ENCODER_FILE: "1" * 64}
    other_decoder = {**manifest.sha256, DECODER_FILE: "1" * 64}
    other_scaling = dataclasses.replace(manifest.scaling, clip_percentiles=(1.0, 99.0))
    assert dataclasses.replace(manifest, sha256=other_encoder).digest() != manifest.digest()
    assert dataclasses.replace(manifest, scaling=other_scaling).digest() != manifest.digest()
    assert dataclasses.replace(manifest, sha256=other_decoder).digest() == manifest.digest()
    assert dataclasses.replace(manifest, licence="MIT").digest() == manifest.digest()
