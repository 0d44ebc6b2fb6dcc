"""Embeddings on disk: what was written is read, what is not whole or not ours is refused."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from semisam_tf.sam.cache import EmbeddingCache, content_key, quantise

SHAPE = (3, 4, 4)


def embeddings(n: int, seed: int = 0) -> np.ndarray:
    """Float16 embeddings."""
    return quantise(np.random.default_rng(seed).standard_normal((n, *SHAPE)).astype(np.float32))


def test_what_is_written_is_read_back_by_another_reader(tmp_path: Path) -> None:
    stored = EmbeddingCache(tmp_path).scan("case", "a" * 64, 5, SHAPE)
    assert stored.missing(range(5)) == [0, 1, 2, 3, 4]
    stored.write([3, 1], embeddings(2))
    reader = EmbeddingCache(tmp_path).scan("case", "a" * 64, 5, SHAPE)
    assert reader.missing([4, 3, 1]) == [4]
    np.testing.assert_array_equal(reader.read([1, 3]), embeddings(2)[::-1])


def test_reading_what_was_not_written_is_refused(tmp_path: Path) -> None:
    stored = EmbeddingCache(tmp_path).scan("case", "a" * 64, 5, SHAPE)
    stored.write([2], embeddings(1))
    with pytest.raises(ValueError, match=r"Received: \[0, 4\] of .*case-"):
        stored.read([0, 2, 4])


def test_float32_is_refused_for_it_would_not_come_back_the_same(tmp_path: Path) -> None:
    stored = EmbeddingCache(tmp_path).scan("case", "a" * 64, 1, SHAPE)
    with pytest.raises(ValueError, match="dtype=float32"):
        stored.write([0], np.zeros((1, *SHAPE), np.float32))
    assert stored.missing([0]) == [0]


def test_file_takes_only_the_room_of_what_is_in_it(tmp_path: Path) -> None:
    stored = EmbeddingCache(tmp_path).scan("case", "a" * 64, 1000, (256, 64, 64))
    assert stored.path.stat().st_size > 2 * 10**9
    assert stored.path.stat().st_blocks * 512 < 10**6


def test_scans_keys_and_models_do_not_meet(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    cache.scan("case", "a" * 64, 2, SHAPE).write([0], embeddings(1))
    assert cache.scan("case", "b" * 64, 2, SHAPE).missing([0]) == [0]
    assert cache.scan("other", "a" * 64, 2, SHAPE).missing([0]) == [0]
    assert cache.scan("case", "a" * 64, 2, SHAPE).missing([0]) == []


def test_name_of_a_scan_cannot_leave_the_folder(tmp_path: Path) -> None:
    stored = EmbeddingCache(tmp_path / "cache").scan("../../a b/c", "a" * 64, 1, SHAPE)
    assert stored.path.parent == tmp_path / "cache"


def test_key_follows_voxels_shape_model_and_axis() -> None:
    image = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    key = content_key(image, "m", 2)
    changed = image.copy()
    changed[1, 2, 3] = np.nextafter(changed[1, 2, 3], np.float32(100))
    others = [(changed, "m", 2), (image.reshape(3, 2, 4), "m", 2), (image, "n", 2), (image, "m", 1)]
    assert content_key(image.copy(), "m", 2) == key
    assert len({key, *[content_key(*other) for other in others]}) == 5
    # Not the layout in memory: a transposed view of the same voxels is the same scan.
    assert content_key(np.asfortranarray(image), "m", 2) == key


@pytest.mark.parametrize("damage", ["truncated", "longer", "other header", "empty"])
def test_file_that_does_not_fit_is_made_anew_with_a_warning(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    stored = EmbeddingCache(tmp_path).scan("case", "a" * 64, 3, SHAPE)
    stored.write([0, 1, 2], embeddings(3))
    data = stored.path.read_bytes()
    stored.path.write_bytes(
        {
            "truncated": data[:-2],
            "longer": data + b"\0",
            "other header": data.replace(b'"key": "aaaa', b'"key": "aaab'),
            "empty": b"",
        }[damage]
    )
    with caplog.at_level(logging.WARNING):
        again = EmbeddingCache(tmp_path).scan("case", "a" * 64, 3, SHAPE)
    assert "encoding it again" in caplog.text
    assert again.missing(range(3)) == [0, 1, 2]


def test_a_good_file_is_opened_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    EmbeddingCache(tmp_path).scan("case", "a" * 64, 3, SHAPE)
    EmbeddingCache(tmp_path).scan("case", "a" * 64, 3, SHAPE)
    assert caplog.text == ""


@pytest.mark.parametrize("part", ["embedding", "checksum"])
def test_damaged_view_is_encoded_again_with_a_warning_and_the_others_are_kept(
    tmp_path: Path, part: str, caplog: pytest.LogCaptureFixture
) -> None:
    stored = EmbeddingCache(tmp_path).scan("case", "a" * 64, 3, SHAPE)
    stored.write([0, 1, 2], embeddings(3))
    data = bytearray(stored.path.read_bytes())
    position = data.index(embeddings(3)[1].tobytes()) + 5 if part == "embedding" else 4096 + 8
    data[position] ^= 1
    stored.path.write_bytes(data)
    again = EmbeddingCache(tmp_path).scan("case", "a" * 64, 3, SHAPE)
    assert again.missing([0, 1, 2]) == [1]
    assert f"view 1 of {stored.path}" in caplog.text
    with pytest.raises(ValueError, match=r"Received: \[1\]"):
        again.read([0, 1])
    again.write([1], embeddings(3)[1:2])
    np.testing.assert_array_equal(
        EmbeddingCache(tmp_path).scan("case", "a" * 64, 3, SHAPE).read(range(3)), embeddings(3)
    )


def test_file_cut_while_it_is_open_is_no_crash(tmp_path: Path) -> None:
    stored = EmbeddingCache(tmp_path).scan("case", "a" * 64, 3, SHAPE)
    stored.write([0, 2], embeddings(2) + np.float16(1))
    again = EmbeddingCache(tmp_path).scan("case", "a" * 64, 3, SHAPE)
    os.truncate(stored.path, 2 * 4096 + 10)
    assert again.missing([0, 2]) == [0, 2]


def test_full_disk_is_an_error_not_a_crash(tmp_path: Path, files_of_a_page: Callable) -> None:
    stored = EmbeddingCache(tmp_path).scan("case", "a" * 64, 3, SHAPE)
    with (
        pytest.raises(OSError, match=r"Expected room for .*case-.*bytes free.*--sam_cache_dir"),
        files_of_a_page(),
    ):
        stored.write([0], embeddings(1))
    assert stored.missing([0]) == [0]


def test_folder_that_cannot_be_written_is_refused_at_once() -> None:
    # Nobody can make a file there, root neither.
    with pytest.raises(OSError, match=r"--sam_cache_dir\. Received: /proc/self"):
        EmbeddingCache("/proc/self/embeddings")
    with pytest.raises(OSError, match=r"--sam_cache_dir\. Received: /proc/self"):
        EmbeddingCache("/proc/self")


_WRITER = """
import sys, itertools, numpy as np
from semisam_tf.sam.cache import EmbeddingCache
stored = EmbeddingCache(sys.argv[1]).scan("case", "a" * 64, 4000, (3, 32, 32))
for i in range(4000):
    stored.write([i], np.full((1, 3, 32, 32), i + 1, np.float16))
    sys.stdout.write("x")
    sys.stdout.flush()
"""


def test_killed_writer_leaves_only_whole_embeddings(tmp_path: Path, repo_root: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE, cwd=repo_root)
    assert writer.stdout.read(20) == b"x" * 20
    time.sleep(0.02)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    stored = EmbeddingCache(tmp_path).scan("case", "a" * 64, 4000, (3, 32, 32))
    missing = stored.missing(range(4000))
    written = [i for i in range(4000) if i not in set(missing)]
    assert 20 <= len(written) < 4000
    assert written == list(range(len(written)))
    read = stored.read(written)
    np.testing.assert_array_equal(read.min(axis=(1, 2, 3)), np.arange(1, len(written) + 1))
    np.testing.assert_array_equal(read.max(axis=(1, 2, 3)), np.arange(1, len(written) + 1))


def test_flag_is_set_after_the_embedding_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = EmbeddingCache(tmp_path).scan("case", "a" * 64, 3, SHAPE)

    def dies_at_the_first_sync(file: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", dies_at_the_first_sync)
        with pytest.raises(KeyboardInterrupt):
            stored.write([1], embeddings(1))
    assert EmbeddingCache(tmp_path).scan("case", "a" * 64, 3, SHAPE).missing([1]) == [1]
