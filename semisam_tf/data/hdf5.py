"""HDF5 files that are whole or absent."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator

import h5py

from semisam_tf.atomic import replacing


@contextlib.contextmanager
def replacing_h5(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """A file in memory to write to; when the block is done its bytes replace `path`.

    On a full disk HDF5 can neither write nor close a file of its own, and takes the process down with it.

    Raises:
        OSError: From `replacing`.
    """
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        yield file
    with replacing(path) as temporary:
        temporary.write_bytes(content.getbuffer())
