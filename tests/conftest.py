"""What all tests share. Imports nothing heavy: tests/export must stay free of TensorFlow, the rest free of torch."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before any test module imports TensorFlow, NumPy or torch: they read these once. Subprocesses inherit them.
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
# As the commands have it: a test that imports TensorFlow before semisam_tf would get other kernels.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("MPLBACKEND", "Agg")
# Idle OpenMP threads must not spin on the cores that TensorFlow computes on.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hypothesis
import numpy as np
import pytest

REPO_ROOT = Path(__file__).resolve().parent.parent

# No deadline: the machine is shared. Derandomised: a red test is red again on the next run.
hypothesis.settings.register_profile("semisam", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("semisam")


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The folder that holds setup.py."""
    return REPO_ROOT


def find_golden(name: str) -> Path:
    """Finds one file of golden values.

    The environment variable SEMISAM_GOLDEN names the one folder to look in; without it tests/golden and then
    ../shared/golden beside the clone, since files over 1 MB are not kept in git.

    Args:
        name: File name, with or without `.npz`.

    Returns:
        A file that exists. Otherwise the running test fails if SEMISAM_GOLDEN is set, and is skipped if it is not.
    """
    filename = name if name.endswith(".npz") else f"{name}.npz"
    chosen = os.environ.get("SEMISAM_GOLDEN")
    if chosen:
        folders = [Path(chosen)]
    else:
        folders = [REPO_ROOT / "tests" / "golden", REPO_ROOT.parent / "shared" / "golden"]
    for folder in folders:
        if (folder / filename).is_file():
            return folder / filename
    missing = f"golden values {filename} in " + " or ".join(map(str, folders))
    if chosen:
        pytest.fail(f"Expected {missing}, as SEMISAM_GOLDEN says. Received: no such file.", pytrace=False)
    pytest.skip(f"no {missing}; set SEMISAM_GOLDEN to their folder")


@pytest.fixture(scope="session")
def golden() -> Iterator[Callable[[str], dict[str, np.ndarray]]]:
    """Reader of golden values: `golden("losses")["logits"]`. The arrays are shared by all tests and read-only."""
    read: dict[Path, dict[str, np.ndarray]] = {}

    def load(name: str) -> dict[str, np.ndarray]:
        path = find_golden(name)
        if path not in read:
            with np.load(path, allow_pickle=False) as archive:
                read[path] = {key: archive[key] for key in archive.files}
            for array in read[path].values():
                array.setflags(write=False)
        return dict(read[path])

    yield load
    read.clear()


@pytest.fixture(scope="session")
def write_double(repo_root: Path) -> Callable[..., Any]:
    """`write_sam_double(folder, side, predicted_iou, clip_percentiles, **changes)`."""
    spec = importlib.util.spec_from_file_location("sam_double", repo_root / "tests" / "sam_double.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.write_sam_double


@pytest.fixture(scope="session")
def la_dir() -> Path:
    """The real left-atrium scans beside the clone; the test is skipped where they are not."""
    folder = REPO_ROOT.parent / "shared" / "la"
    if not (folder / "train.list").is_file():
        pytest.skip(f"no real scans: {folder}/train.list is absent")
    return folder
