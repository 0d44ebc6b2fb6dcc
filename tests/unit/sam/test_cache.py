"""Embeddings on disk: what was written is read, what is not whole or not ours is refused."""

from __future__ import annotations

import errno
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

from semisam_tf.sam.cache import EmbeddingCache, content_key, disk_bytes_of, quantise

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


# One view of it takes 64 KiB on disk, and its file a page of header and one of entries.
LARGE = (32, 32, 32)
VIEW_BYTES = 2 * 32**3


def filled(cache: EmbeddingCache, name: str, views: int = 4) -> Path:
    """A scan with so many views, all written; not open any more."""
    stored = cache.scan(name, "a" * 64, views, LARGE)
    stored.write(range(views), np.full((views, *LARGE), 1, np.float16))
    return stored.path


def names_in(folder: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in folder.glob("[!.]*.embeddings"))


def test_the_scan_unused_for_longest_goes_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Room for three scans of four views, not for four.
    cache = EmbeddingCache(tmp_path, limit_bytes=14 * VIEW_BYTES)
    for name in ("a", "b", "c"):
        filled(cache, name)
    assert names_in(tmp_path) == ["a", "b", "c"]
    of_another = tmp_path / ".partial.0.x.embeddings"
    of_another.touch()
    os.utime(of_another, (0, 0))
    cache.scan("a", "a" * 64, 4, LARGE)
    with caplog.at_level(logging.INFO):
        filled(cache, "d")
    assert names_in(tmp_path) == ["a", "c", "d"]
    assert f"1 scans, unused for longest, are removed from {tmp_path}" in caplog.text
    filled(cache, "e")
    assert names_in(tmp_path) == ["a", "d", "e"]
    # What is still being written is nobody's to remove.
    assert of_another.exists()


def test_reading_times_of_the_file_system_do_not_matter(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    path = filled(cache, "a")
    os.utime(path, ns=(10**18, 2 * 10**18))
    path.read_bytes()
    before_ns = time.time_ns()
    cache.scan("a", "a" * 64, 4, LARGE)
    assert before_ns <= path.stat().st_atime_ns <= time.time_ns()
    # When it was written is as it was.
    assert path.stat().st_mtime_ns == 2 * 10**18


def test_the_limit_is_kept_at_every_moment(tmp_path: Path) -> None:
    limit_bytes = 10 * VIEW_BYTES
    cache = EmbeddingCache(tmp_path, limit_bytes)
    for number in range(8):
        stored = cache.scan(f"case{number}", "a" * 64, 30, LARGE)
        for view in range(6):
            stored.write([4 * view], np.full((1, *LARGE), number, np.float16))
            assert 0 < disk_bytes_of(tmp_path) <= limit_bytes
        # Holes take no room, and what is being written stays.
        np.testing.assert_array_equal(stored.read([0, 20])[:, 0, 0, 0], [number, number])
        assert stored.path.exists()
    assert EmbeddingCache(tmp_path).scan("case7", "a" * 64, 30, LARGE).missing([0, 20]) == []


def test_the_folder_is_not_looked_at_before_every_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of thousands of scans on a network drive one look takes as long as encoding a slice."""
    limit_bytes = 100 * VIEW_BYTES
    cache, looks = EmbeddingCache(tmp_path, limit_bytes), []
    glob = Path.glob
    monkeypatch.setattr(Path, "glob", lambda self, pattern: looks.append(1) or glob(self, pattern))
    for number in range(8):
        stored = cache.scan(f"case{number}", "a" * 64, 30, LARGE)
        for view in range(30):
            stored.write([view], np.zeros((1, *LARGE), np.float16))
    assert len(looks) < 8 * 30 / 4
    assert 0.5 * limit_bytes < disk_bytes_of(tmp_path) <= limit_bytes


def test_without_a_limit_nothing_goes(tmp_path: Path) -> None:
    for number in range(5):
        filled(EmbeddingCache(tmp_path), f"case{number}")
    assert len(names_in(tmp_path)) == 5


def test_what_a_run_has_open_goes_last(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path, limit_bytes=14 * VIEW_BYTES)
    in_use = cache.scan("a", "a" * 64, 4, LARGE)
    in_use.write(range(4), np.full((4, *LARGE), 7, np.float16))
    for name in ("b", "c", "d"):
        filled(cache, name)
    assert names_in(tmp_path) == ["a", "c", "d"]
    # Nothing else is left to go: it does, and is still read by whoever has it open.
    filled(cache, "e", views=13)
    assert names_in(tmp_path) == ["e"]
    np.testing.assert_array_equal(in_use.read([3]), np.full((1, *LARGE), 7, np.float16))


def test_a_limit_below_one_scan_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = EmbeddingCache(tmp_path, limit_bytes=2 * VIEW_BYTES)
    with caplog.at_level(logging.WARNING):
        filled(cache, "a")
        path = filled(cache, "b")
    assert caplog.text.count("raise --sam_cache_gib") == 1
    assert names_in(tmp_path) == ["b"]
    assert EmbeddingCache(tmp_path).scan("b", "a" * 64, 4, LARGE).path == path
    with pytest.raises(ValueError, match="--sam_cache_gib of at least 0"):
        EmbeddingCache(tmp_path, limit_bytes=-1)


def test_two_runs_share_a_folder_with_a_limit(tmp_path: Path) -> None:
    first, second = (EmbeddingCache(tmp_path, limit_bytes=10 * VIEW_BYTES) for _ in range(2))
    held = first.scan("a", "a" * 64, 4, LARGE)
    held.write([0, 1], np.full((2, *LARGE), 3, np.float16))
    for name in ("b", "c"):
        filled(second, name)
    # The second does not know what the first has open: removed, and harmless.
    assert names_in(tmp_path) == ["b", "c"]
    held.write([2], np.full((1, *LARGE), 4, np.float16))
    np.testing.assert_array_equal(held.read([0, 2])[:, 0, 0, 0], [3, 4])
    assert disk_bytes_of(tmp_path) <= 10 * VIEW_BYTES
    # It is encoded again when it is asked for again.
    assert first.scan("a", "a" * 64, 4, LARGE).missing(range(4)) == [0, 1, 2, 3]


def test_a_file_that_goes_while_it_is_opened_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opened = filled(EmbeddingCache(tmp_path), "a"), os.open

    def removed_first(name: Path, flags: int, *rest: int) -> int:
        if name == path and flags == os.O_RDWR:
            monkeypatch.undo()
            path.unlink()
        return opened(name, flags, *rest)

    monkeypatch.setattr(os, "open", removed_first)
    assert EmbeddingCache(tmp_path).scan("a", "a" * 64, 4, LARGE).missing(range(4)) == [0, 1, 2, 3]
    assert path.exists()


def test_somebody_elses_file_is_used_though_its_times_are_not_ours_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(EmbeddingCache(tmp_path), "a")

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refused)
    assert EmbeddingCache(tmp_path).scan("a", "a" * 64, 4, LARGE).missing([0]) == []


def test_a_file_of_another_user_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opened = filled(EmbeddingCache(tmp_path), "a"), os.open

    def refused(name: Path, flags: int, *rest: int) -> int:
        if name == path:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(name, flags, *rest)

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(PermissionError, match=rf"{path} is another user's. Choose another --sam_cache_dir"):
        EmbeddingCache(tmp_path).scan("a", "a" * 64, 4, LARGE)


def test_a_disk_that_says_only_at_the_end_that_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = EmbeddingCache(tmp_path).scan("a", "a" * 64, 4, LARGE)

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdatasync", full)
    with pytest.raises(OSError, match=rf"Expected room for {stored.path}.*Another --sam_cache_dir may have more"):
        stored.write([0], np.zeros((1, *LARGE), np.float16))
    assert stored.missing([0]) == [0]


def test_what_may_not_be_removed_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = EmbeddingCache(tmp_path, limit_bytes=10 * VIEW_BYTES)
    theirs, unlink = filled(cache, "a"), Path.unlink

    def refused(path: Path, missing_ok: bool = False) -> None:
        if path == theirs:
            raise PermissionError(errno.EPERM, "Operation not permitted")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refused)
    for name in ("b", "c", "d"):
        filled(cache, name)
    # Unused for longest, and there still; the next oldest went in its place.
    assert names_in(tmp_path) == ["a", "d"]
