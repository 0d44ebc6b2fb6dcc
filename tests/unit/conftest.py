"""Benchmarks and what tests share are scripts, not packages: they are loaded by path. And a disk that is full."""

import contextlib
import importlib.util
import os
import resource
import runpy
import sys
from types import SimpleNamespace

import pytest
from absl import flags


@pytest.fixture(scope="session")
def runs(repo_root):
    """`tests/serving_run.py`."""
    return SimpleNamespace(**runpy.run_path(str(repo_root / "tests" / "serving_run.py")))


@pytest.fixture(scope="session")
def gpu():
    """Name of the machine's NVIDIA GPU; without one the test is skipped, or fails where SEMISAM_GPU is set."""
    from semisam_tf.health.devices import nvidia_gpus

    gpus = nvidia_gpus()
    if not gpus:
        missing = "no NVIDIA GPU: nvidia-smi lists none"
        pytest.fail(missing, pytrace=False) if os.environ.get("SEMISAM_GPU") else pytest.skip(missing)
    return gpus[0]


@pytest.fixture
def files_of_a_page():
    """A context in which no file may grow beyond a page: to this process a full disk, with another errno.

    For a test's inmost lines: pytest's own output may be a file, too.
    """

    @contextlib.contextmanager
    def limited():
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return limited


@pytest.fixture
def load_benchmark(repo_root, tmp_path, monkeypatch):
    """(name) -> the module of benchmarks/name.py, with its results in `tmp_path`."""
    loaded = []

    def load(name):
        folder = repo_root / "benchmarks"
        monkeypatch.syspath_prepend(str(folder))
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        loaded.append(spec.name)
        before = set(sys.modules)
        spec.loader.exec_module(module)
        # A benchmark may import another, flags and all.
        beside = [n for n in set(sys.modules) - before if (folder / f"{n}.py").is_file()]
        for imported_name in beside:
            del sys.modules[imported_name]
        loaded.extend(beside)
        monkeypatch.setattr(module, "RESULTS", tmp_path)
        return module

    yield load
    # Two benchmarks may have flags of one name, but not in one process.
    for module_name in loaded:
        for flag in list(flags.FLAGS.flags_by_module_dict().get(module_name, [])):
            delattr(flags.FLAGS, flag.name)
