"""The real LiteMedSAM export, made once by the command itself. This process holds torch and never TensorFlow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BROKEN = "raise RuntimeError('operator torchvision::nms does not exist')\n"


@pytest.fixture(scope="session")
def broken_packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which timm and torchvision are installed and raise at import, as a wrong CUDA build does."""
    folder = tmp_path_factory.mktemp("broken")
    for name in ("timm", "torchvision"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(BROKEN)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


@pytest.fixture(scope="session")
def lite_medsam(
    tmp_path_factory: pytest.TempPathFactory, repo_root: Path, broken_packages: dict[str, str]
) -> tuple[Path, subprocess.CompletedProcess]:
    """Folder and outcome of `python -m export.sam`, run where timm and torchvision are broken."""
    output = tmp_path_factory.mktemp("sam") / "lite"
    command = [sys.executable, "-m", "export.sam", "--family=lite_medsam", f"--output={output}"]
    result = subprocess.run(command, cwd=repo_root, env=broken_packages, capture_output=True, text=True, check=False)
    return output, result
