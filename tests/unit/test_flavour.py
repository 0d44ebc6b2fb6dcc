"""What a user sees who installed no flavour, or half of one: in a process whose sys.path holds nothing else."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from semisam_tf import flavour


def run_bare(repo_root: Path, *extra_paths: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Runs code with the standard library, the repo and `extra_paths` alone: -I -S leaves site-packages out."""
    paths = [str(repo_root), *map(str, extra_paths)]
    script = f"import sys\nsys.path[:0] = {paths!r}\n{textwrap.dedent(code)}"
    return subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, timeout=60)


def fake_module(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    return folder


def test_import_without_a_flavour_names_both_extras(repo_root: Path) -> None:
    result = run_bare(repo_root, code="import semisam_tf")
    last_line = result.stderr.strip().splitlines()[-1]
    assert result.returncode == 1
    assert last_line.startswith("ImportError: ")
    assert "neither is installed" in last_line
    assert "pip install 'semisam-tf[cpu]'" in last_line
    assert "pip install 'semisam-tf[gpu]'" in last_line


@pytest.mark.parametrize("module", ["tensorflow", "onnxruntime"])
def test_one_of_the_two_is_enough_and_is_not_imported(repo_root: Path, tmp_path: Path, module: str) -> None:
    code = "import semisam_tf; sys.stdout.write(semisam_tf.__version__)"
    result = run_bare(repo_root, fake_module(tmp_path, module), code=code)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count(".") == 2


def test_a_left_over_folder_is_not_an_installed_module(repo_root: Path, tmp_path: Path) -> None:
    (tmp_path / "tensorflow" / "lib").mkdir(parents=True)
    result = run_bare(repo_root, tmp_path, code="import semisam_tf")
    assert "neither is installed" in result.stderr


@pytest.mark.parametrize(
    ("present", "function", "product"),
    [("onnxruntime", "require_tensorflow", "TensorFlow"), ("tensorflow", "require_onnxruntime", "ONNX Runtime")],
)
def test_entry_points_are_told_what_is_missing(
    repo_root: Path, tmp_path: Path, present: str, function: str, product: str
) -> None:
    code = f"from semisam_tf import flavour; flavour.{function}()"
    result = run_bare(repo_root, fake_module(tmp_path, present), code=code)
    last_line = result.stderr.strip().splitlines()[-1]
    assert last_line.startswith(f"ImportError: Expected {product} to be installed.")
    assert "pip install 'semisam-tf[cpu]'" in last_line
    assert "pip install 'semisam-tf[gpu]'" in last_line


def test_the_package_imports_nothing_but_the_standard_library(repo_root: Path, tmp_path: Path) -> None:
    code = """
    before = set(sys.modules)
    import semisam_tf
    new = {name.split(".")[0] for name in set(sys.modules) - before}
    sys.stdout.write(" ".join(sorted(new - sys.stdlib_module_names)))
    """
    result = run_bare(repo_root, fake_module(tmp_path, "onnxruntime"), code=code)
    assert (result.stdout, result.stderr) == ("semisam_tf", "")


def test_is_installed_here() -> None:
    assert flavour.is_installed("pytest")
    assert not flavour.is_installed("no_such_module_anywhere")


@pytest.mark.parametrize(("set_before", "expected"), [(None, "True"), ("0", "False")])
def test_tensorflow_computes_with_onednn_unless_told_otherwise(set_before: str | None, expected: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    if set_before is not None:
        environment["TF_ENABLE_ONEDNN_OPTS"] = set_before
    code = """
    import sys, semisam_tf, tensorflow
    from tensorflow.python.util import _pywrap_util_port
    sys.stdout.write(str(_pywrap_util_port.IsMklEnabled()))
    """
    words = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment, check=True)
    assert result.stdout == expected
