"""The SAM double, for all tests of `semisam_tf.sam`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from semisam_tf.sam.manifest import Manifest
from semisam_tf.sam.session import SamSession


@pytest.fixture(scope="session")
def write_double(repo_root: Path) -> Callable[..., Manifest]:
    """`write_sam_double(folder, side, predicted_iou, clip_percentiles, **changes)`."""
    spec = importlib.util.spec_from_file_location("sam_double", repo_root / "tests" / "sam_double.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_sam_double


@pytest.fixture
def double_dir(tmp_path: Path, write_double: Callable[..., Manifest]) -> Path:
    """An export of the double."""
    write_double(tmp_path / "double")
    return tmp_path / "double"


@pytest.fixture
def session(double_dir: Path) -> SamSession:
    """A session on the double."""
    return SamSession(double_dir)
