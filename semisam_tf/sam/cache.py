"""Embeddings on disk: a scan's view (slice or window) goes through SAM's encoder once, ever.

One file per scan, sparse: a header (what it is for), one entry per view, then float16 embeddings. A view's entry holds
the embedding's checksum and is written only after the embedding has reached the disk: a process killed at any moment
leaves a file that is whole as far as it claims to be, and what is damaged later is encoded again. Two processes may
share a folder: they write the same bytes.

A folder with a limit loses whole scans, those first that were opened the longest time ago. Another process that has
such a file open does not notice on a POSIX file system: the file is gone for good when it closes it. (Over NFS it may
get an error instead.)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import time
import weakref
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from semisam_tf.atomic import full_disk, replacing, require_folder

_PAGE = 4096
_ENTRY = np.dtype("<u8")
_MAGIC = "semisam-tf embeddings 3"
# Not what another process is writing, whose name begins with a dot until it is whole.
_FILES = "[!.]*.embeddings"
# In a folder with a limit so many writes go by one look at it: of thousands of scans on a network it takes a while.
_WRITES_UNSEEN = 32
# A view's entry: 0 where there is no embedding, else this and its crc32.
_WRITTEN = 1 << 32


def quantise(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings as they are kept, float16. Done before every decode, so a cold and a warm cache give equal masks."""
    return embeddings.astype(np.float16)


def content_key(image: np.ndarray, manifest_digest: str, geometry: str) -> str:
    """sha256 over all that decides a scan's embeddings: voxels, encoder and frame, and how the views are cut."""
    digest = hashlib.sha256(f"{manifest_digest} {geometry} {image.shape} {image.dtype.str}".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


class ScanEmbeddings:
    """The file of one scan. Made by `EmbeddingCache.scan`.

    Read and written, not mapped: what a disk cannot do is then an error where a map would kill the process.

    Args:
        path: The file, which is there.
        views: Slices or windows.
        embedding_shape: Of one embedding.
        make_room: Called with the number of bytes that are about to be written.
    """

    def __init__(
        self, path: Path, views: int, embedding_shape: tuple[int, ...], make_room: Callable[[int], None]
    ) -> None:
        self.path, self._make_room = path, make_room
        self._shape, self._bytes = embedding_shape, _embedding_bytes(embedding_shape)
        self._data_offset = _data_offset(views)
        try:
            self._file = os.open(path, os.O_RDWR)
        except PermissionError as error:
            raise PermissionError(
                f"Expected embeddings that may be read and written, to share them: {path} is another user's. Choose "
                "another --sam_cache_dir, or have that user run with umask 002 in a folder of a common group."
            ) from error
        weakref.finalize(self, os.close, self._file)
        self._entries = np.frombuffer(self._read(_PAGE, views * _ENTRY.itemsize), _ENTRY).copy()
        self._verified: set[int] = set()

    def missing(self, indices: Sequence[int]) -> list[int]:
        """Those of `indices` whose embeddings are not in the file, or no longer as they were written (a warning)."""
        return [i for i in indices if i not in self._verified and not self._verify(i)]

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """float16 [N, *embedding_shape]; all of `indices` must have been written."""
        absent = self.missing(indices)
        if absent:
            raise ValueError(f"Expected views that were written before. Received: {absent} of {self.path}.")
        data = [np.frombuffer(self._read_view(i), np.float16).reshape(self._shape) for i in indices]
        return np.stack(data) if data else np.zeros((0, *self._shape), np.float16)

    def write(self, indices: Sequence[int], embeddings: np.ndarray) -> None:
        """Stores float16 embeddings [N, *embedding_shape]; on the disk before the views count as written.

        Raises:
            OSError: The disk is full.
        """
        if embeddings.dtype != np.float16:
            raise ValueError(f"Expected embeddings from quantise, float16. Received: dtype={embeddings.dtype}.")
        parts = [np.ascontiguousarray(embedding).tobytes() for embedding in embeddings]
        # A page more for each end of an embedding, and for the entries.
        self._make_room(sum(len(part) + _PAGE for part in parts) + _PAGE)
        for i, part in zip(indices, parts, strict=True):
            self._write(self._data_offset + i * self._bytes, part)
        self._sync()
        for i, part in zip(indices, parts, strict=True):
            self._entries[i] = _WRITTEN | zlib.crc32(part)
            self._write(_PAGE + i * _ENTRY.itemsize, self._entries[i].tobytes())
            self._verified.add(i)
        self._sync()

    def _verify(self, index: int) -> bool:
        if not self._entries[index]:
            return False
        if int(self._entries[index]) != _WRITTEN | zlib.crc32(self._read_view(index)):
            logging.warning("Expected view %d of %s as it was written; encoding it again.", index, self.path)
            return False
        self._verified.add(index)
        return True

    def _read_view(self, index: int) -> bytes:
        return self._read(self._data_offset + index * self._bytes, self._bytes)

    def _read(self, offset: int, count: int) -> bytes:
        data = os.pread(self._file, count, offset)
        # Of a file that somebody has cut since it was opened.
        return data.ljust(count, b"\0")

    def _sync(self) -> None:
        # Some file systems say only here that they are full.
        with self._full_disk_said():
            os.fdatasync(self._file)

    @contextlib.contextmanager
    def _full_disk_said(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{full_disk(self.path.parent, self.path)} Another --sam_cache_dir may have more ({error.strerror})."
            ) from error

    def _write(self, offset: int, data: bytes) -> None:
        with self._full_disk_said():
            done = os.pwrite(self._file, data, offset)
        if done < len(data):
            self._write(offset + done, data[done:])


class EmbeddingCache:
    """A folder of `ScanEmbeddings`.

    Args:
        folder: Made if absent. May be shared by runs and by SAM models: the key tells them apart.
        limit_bytes: What all its scans may take of the disk; 0: no limit. Processes that write at the same time may
            pass it by what `_WRITES_UNSEEN` calls of the encoder make, each.

    Raises:
        ValueError: A limit below 0.
        OSError: The folder may not be written to.
    """

    def __init__(self, folder: str | Path, limit_bytes: int = 0) -> None:
        if limit_bytes < 0:
            raise ValueError(
                f"Expected --sam_cache_gib of at least 0, where 0 is no limit. Received: {limit_bytes} bytes."
            )
        self.folder, self.limit_bytes = Path(folder), limit_bytes
        self._warned = False
        self._room_bytes = 0  # may be written before the folder is looked at again
        self._open: weakref.WeakSet[ScanEmbeddings] = weakref.WeakSet()
        require_folder(self.folder, "SAM's embeddings", "--sam_cache_dir")

    def scan(self, name: str, key: str, views: int, embedding_shape: Sequence[int]) -> ScanEmbeddings:
        """Opens a scan's file, or makes an empty one.

        A file that is there but is not for this key, or not of the right length, is refused and made anew, with a
        warning.

        Args:
            name: The scan, for people to read; becomes part of the file's name.
            key: From `content_key`.
            views: Slices along the axis, or windows on the scan.
            embedding_shape: Shape of one embedding.
        """
        shape = tuple(int(n) for n in embedding_shape)
        readable = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:80]
        path = self.folder / f"{readable}-{key[:16]}.embeddings"
        header = json.dumps({"what": _MAGIC, "key": key, "views": views, "embedding_shape": shape}).encode()
        size = _data_offset(views) + views * _embedding_bytes(shape)
        try:
            return self._opened(path, header, size, views, shape)
        except FileNotFoundError:
            # Another process has removed it between two lines; new as it will be, it is the last to go.
            return self._opened(path, header, size, views, shape)

    def _opened(self, path: Path, header: bytes, size: int, views: int, shape: tuple[int, ...]) -> ScanEmbeddings:
        if path.exists():
            _touch(path)
        fault = _fault(path, header, size)
        if fault and path.exists():
            logging.warning("Expected SAM embeddings of this scan; encoding it again. Received: %s: %s.", path, fault)
        if fault:
            with replacing(path) as temporary, temporary.open("wb") as file:
                file.write(header.ljust(_PAGE))
                file.truncate(size)
                file.flush()
                os.fsync(file.fileno())
        stored = ScanEmbeddings(path, views, shape, lambda n_bytes: self._make_room(n_bytes, path))
        self._open.add(stored)
        return stored

    def _make_room(self, n_bytes: int, path: Path) -> None:
        """Removes scans until `n_bytes` more fit within the limit; `path` is what they are written to."""
        if not self.limit_bytes:
            return
        if n_bytes <= self._room_bytes:
            self._room_bytes -= n_bytes
            return
        kept = {file: status for file in self.folder.glob(_FILES) if (status := _status(file)) is not None}
        excess = sum(_disk_bytes(status) for status in kept.values()) + n_bytes - self.limit_bytes
        in_use = {stored.path for stored in self._open}
        removed, freed = 0, 0
        # What this run has open goes last: it would be encoded again at once.
        for file in sorted(kept, key=lambda file: (file in in_use, kept[file].st_atime_ns)):
            if freed >= excess:
                break
            # What another user keeps in a folder where each may remove his own alone stays.
            with contextlib.suppress(PermissionError):
                if file != path:
                    file.unlink(missing_ok=True)
                    removed, freed = removed + 1, freed + _disk_bytes(kept[file])
        # Half of what is left: other processes write, too.
        self._room_bytes = min(max(0, freed - excess) // 2, _WRITES_UNSEEN * n_bytes)
        if removed:
            logging.info(
                "SAM's embeddings of %d scans, unused for longest, are removed from %s: %.1f MiB, to keep to "
                "--sam_cache_gib.", removed, self.folder, freed / 2**20,
            )  # fmt: skip
        if freed < excess and not self._warned:
            self._warned = True
            logging.warning(
                "Expected room for the embeddings of one scan at least: raise --sam_cache_gib, now %.3g. Received: %s, "
                "which takes %.1f MiB more.", self.limit_bytes / 2**30, path, (excess - freed) / 2**20,
            )  # fmt: skip


def disk_bytes_of(folder: Path) -> int:
    """What the scans of a folder take of the disk: the files have holes where nothing was encoded yet."""
    statuses = (_status(path) for path in folder.glob(_FILES))
    return sum(_disk_bytes(status) for status in statuses if status is not None)


def _disk_bytes(status: os.stat_result) -> int:
    return 512 * status.st_blocks


def _status(path: Path) -> os.stat_result | None:
    """None for a file that somebody has removed meanwhile."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _touch(path: Path) -> None:
    """Notes that a file is used: file systems are often mounted so that they do not."""
    # Of somebody else's file in a shared folder the times are not ours to set: it is then as old as its owner's use.
    with contextlib.suppress(PermissionError):
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def _data_offset(views: int) -> int:
    """Bytes before the first embedding: header and entries, in whole pages."""
    return _PAGE + -(-views * _ENTRY.itemsize // _PAGE) * _PAGE


def _embedding_bytes(shape: Sequence[int]) -> int:
    return math.prod(shape) * np.dtype(np.float16).itemsize


def _fault(path: Path, header: bytes, size: int) -> str:
    """What keeps a file from being used; empty if nothing does."""
    if not path.is_file():
        return "no file"
    if path.stat().st_size != size:
        return f"{path.stat().st_size} bytes instead of {size}"
    with path.open("rb") as file:
        found = file.read(_PAGE).rstrip()
    return "" if found == header else f"header {found[:200]!r} instead of {header!r}"
