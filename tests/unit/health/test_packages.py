"""Packages that do not go together, from lists of what is installed; and the installation that runs this test."""

import importlib.metadata
import re

import pytest

from semisam_tf.findings import FAIL, OK, WARN
from semisam_tf.health import packages
from semisam_tf.health.packages import check_flavour, check_python, check_requirements, installed_packages

GPU = {"tensorflow": "2.21.0", "onnxruntime-gpu": "1.26.0"}


def shown(findings, status):
    return {f.subject: f"{f.found} -> {f.fix}" for f in findings if f.status == status}


@pytest.mark.parametrize(
    ("version", "status"), [((3, 10, 9), FAIL), ((3, 11, 0), OK), ((3, 12, 4), OK), ((3, 13, 0), FAIL)]
)
def test_python(version, status):
    assert check_python(version).status == status


def test_python_is_bounded_as_in_setup(repo_root):
    (bounds,) = re.findall(
        r'python_requires=">=(\d+)\.(\d+),<(\d+)\.(\d+)"', (repo_root / "setup.py").read_text(encoding="utf-8")
    )
    assert tuple(map(int, bounds)) == packages.PYTHON_FROM + packages.PYTHON_BELOW


def test_good_pairs():
    for installed in ({"tensorflow-cpu": "2.21.0", "onnxruntime": "1.32.0"}, GPU):
        assert {f.status for f in check_flavour(installed)} == {OK}


def test_the_cuda_trap():
    for version, status in (("1.26.1", OK), ("1.27.0", FAIL), ("1.30.0", FAIL)):
        (finding,) = [f for f in check_flavour(GPU | {"onnxruntime-gpu": version}) if f.subject == "cuda"]
        assert finding.status == status
    assert "onnxruntime-gpu 1.30.0 is CUDA 13, tensorflow 2.21.0 is CUDA 12" in finding.found
    assert finding.fix == "pip install 'onnxruntime-gpu>=1.23,<1.27'"


def test_what_constraints_say_of_onnxruntime_gpu_is_the_fix(repo_root):
    assert '"onnxruntime-gpu>=1.23,<1.27"' in (repo_root / "setup.py").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("more", "subject", "words"),
    [
        ({"tensorflow-cpu": "2.21.0"}, "tensorflow", "pip uninstall -y tensorflow tensorflow-cpu"),
        ({"onnxruntime": "1.32.0"}, "onnxruntime", "pip uninstall -y onnxruntime onnxruntime-gpu"),
    ],
)
def test_two_builds_of_one_library(more, subject, words):
    found = shown(check_flavour(GPU | more), FAIL)
    assert set(found) == {subject}
    assert words in found[subject]
    assert "pip install 'semisam-tf[cpu]'" in found[subject]


def test_nothing_installed_names_both_flavours():
    found = shown(check_flavour({}), FAIL)
    assert set(found) == {"tensorflow", "onnxruntime"}
    assert "semisam-tf[cpu]" in found["onnxruntime"]
    assert "semisam-tf[gpu]" in found["onnxruntime"]


def test_sam_on_the_gpu_and_training_not():
    found = shown(check_flavour({"tensorflow-cpu": "2.21.0", "onnxruntime-gpu": "1.26.0"}), WARN)
    assert "tensorflow-cpu knows no GPU" in found["cuda"]


@pytest.fixture
def tree(monkeypatch):
    """`semisam-tf` asks for a, b with an extra, and for TensorFlow by flavour; a asks for c."""
    asked = {
        "semisam-tf": ["A>=2,<3", "b[fast]>=1", 'tensorflow-cpu<2.22; extra == "cpu"', 'never>9; extra == "dev"'],
        "a": ["c<5"],
        "b": ['d>=1; extra == "fast"', 'e>=1; python_version < "3"'],
    }
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: asked.get(name, []))
    return {"semisam-tf": "0.1", "a": "2.5", "b": "1.0", "c": "4.0", "d": "1.0", "tensorflow-cpu": "2.21.0"}


def test_requirements_are_followed_down(tree):
    (finding,) = check_requirements(tree)
    assert (finding.status, finding.found) == (OK, "semisam-tf 0.1 and the 5 below it fit each other")


@pytest.mark.parametrize(
    ("package", "version", "found", "fix"),
    [
        ("a", "3.0", "a 3.0 is installed, semisam-tf asks for A<3,>=2", "pip install 'A<3,>=2'"),
        ("c", "5.0", "c 5.0 is installed, a asks for c<5", "pip install 'c<5'"),
        ("d", None, "no d is installed, b asks for d>=1", "pip install 'd>=1'"),
        ("tensorflow-cpu", "2.22.0", "tensorflow-cpu 2.22.0 is installed, semisam-tf asks", "pip install"),
    ],
)
def test_a_version_out_of_bounds_is_named_with_who_asks(tree, package, version, found, fix):
    del tree[package]
    (finding,) = check_requirements(tree | ({package: version} if version else {}))
    assert finding.status == FAIL
    assert finding.found.startswith(found)
    assert finding.fix.startswith(fix)


def test_a_flavour_that_is_absent_is_said_once(tree):
    del tree["tensorflow-cpu"]
    assert [f.status for f in check_requirements(tree)] == [OK]


def test_a_folder_that_is_not_installed_is_only_a_warning():
    assert [f.status for f in check_requirements({})] == [WARN]


def test_here():
    installed = installed_packages()
    assert installed["absl-py"] == importlib.metadata.version("absl-py")
    assert {"numpy", "scipy", "h5py", "keras"} <= set(installed)
