"""The export's hashes, and how much its embeddings take, by hand."""

import pytest

from semisam_tf.config import Config
from semisam_tf.findings import FAIL, OK
from semisam_tf.health.machine import GIB
from semisam_tf.health.sam import check_cache, check_export, views_of_scan
from semisam_tf.health.scans import ScanFacts
from semisam_tf.sam.manifest import load_manifest


def scan(case_id, grid_vox):
    return ScanFacts(case_id, True, 1, grid_vox, (1.0, 1.0, 1.0), 0, None)


@pytest.fixture
def config(tmp_path, write_double):
    write_double(tmp_path / "sam")
    return Config(sam_dir=str(tmp_path / "sam"), sam_mode="cached", workdir=str(tmp_path / "run"))


def test_an_export_whose_files_are_those_of_the_manifest(config):
    (finding,), manifest = check_export(config, config.sam_dir)
    assert finding.status == OK
    assert "2 files have the sha256 of the manifest" in finding.found
    assert manifest == load_manifest(config.sam_dir)


def test_a_swapped_file_fails_and_names_the_export_command(config, tmp_path):
    with (tmp_path / "sam" / "decoder.onnx").open("ab") as file:
        file.write(b"\0")
    (finding,), manifest = check_export(config, config.sam_dir)
    assert (finding.status, manifest) == (FAIL, None)
    assert "decoder.onnx" in finding.found
    assert finding.fix.startswith("python -m export.sam ")


def test_embeddings_by_hand(config, monkeypatch):
    manifest = load_manifest(config.sam_dir)
    shape = manifest.embedding_shape
    scans = [scan("a", (20, 20, 11)), scan("b", (20, 20, 8))]
    assert [views_of_scan(config, manifest, s) for s in scans] == [11, 8]
    stepped = Config(**{**config.to_dict(), "sam_slice_step": 2})
    assert [views_of_scan(stepped, manifest, s) for s in scans] == [6, 4]
    needed = 2 * shape[0] * shape[1] * shape[2] * 19
    free = {"bytes": needed}
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free["bytes"]})())
    finding = check_cache(config, [manifest], scans)
    assert finding.status != FAIL
    assert "19 slices of 2 scans, 0.0 MiB is there" in finding.found
    free["bytes"] = needed - 1
    assert check_cache(config, [manifest], scans).status == FAIL
    free["bytes"] = 10 * GIB
    assert check_cache(config, [manifest], scans).status == OK


def test_what_is_in_the_cache_already_is_not_needed_again(config, tmp_path, monkeypatch):
    manifest = load_manifest(config.sam_dir)
    folder = tmp_path / "run" / "sam_cache"
    folder.mkdir(parents=True)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 0})())
    assert check_cache(config, [manifest], [scan("a", (20, 20, 8))]).status == FAIL
    needed = 2 * manifest.embedding_shape[0] * manifest.embedding_shape[1] * manifest.embedding_shape[2] * 8
    (folder / "a-0.embeddings").write_bytes(b"x" * (needed + 4096))
    assert check_cache(config, [manifest], [scan("a", (20, 20, 8))]).status == OK


def test_a_limit_bounds_what_the_embeddings_need(config, monkeypatch):
    manifest = load_manifest(config.sam_dir)
    needed = 2 * manifest.embedding_shape[0] * manifest.embedding_shape[1] * manifest.embedding_shape[2] * 8
    free = {"bytes": needed // 2}
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free["bytes"]})())
    scans = [scan("a", (20, 20, 8))]
    assert check_cache(config, [manifest], scans).status == FAIL
    limited = Config(**{**config.to_dict(), "sam_cache_gib": needed / 2 / GIB})
    finding = check_cache(limited, [manifest], scans)
    assert finding.status != FAIL
    assert "--sam_cache_gib keeps" in finding.found
    free["bytes"] -= 1
    assert check_cache(limited, [manifest], scans).status == FAIL
    # A limit above what is needed says nothing.
    assert (
        "--sam_cache_gib"
        not in check_cache(Config(**{**config.to_dict(), "sam_cache_gib": 1.0}), [manifest], scans).found
    )
