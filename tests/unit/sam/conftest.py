"""The SAM double, for all tests of `semisam_tf.sam`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from semisam_tf.sam.manifest import Manifest
from semisam_tf.sam.session import SamSession


@pytest.fixture
def double_dir(tmp_path: Path, write_double: Callable[..., Manifest]) -> Path:
    """An export of the double."""
    write_double(tmp_path / "double")
    return tmp_path / "double"


@pytest.fixture
def session(double_dir: Path) -> SamSession:
    """A session on the double."""
    return SamSession(double_dir)
