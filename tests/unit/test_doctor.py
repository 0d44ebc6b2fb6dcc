"""The doctor where packages are absent, half there or broken: a line with the fix, and never a traceback."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from semisam_tf.flavour import is_diagnosis


def doctor(repo_root, *words, path=(), bare=False):
    """Runs the doctor with `path` first on the path; `bare`: with nothing but the standard library besides."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, repo_root]))}
    command = [sys.executable, *(["-S"] if bare else []), "-m", "semisam_tf.doctor", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=120)
    assert "Traceback" not in done.stderr + done.stdout
    lines = {}
    for line in done.stdout.splitlines():
        assert line.startswith(("ok    ", "warn  ", "fail  ")), line
        lines.setdefault(line[6:20].strip(), line)
    return done, lines


def module_folder(name):
    return Path(importlib.util.find_spec(name).submodule_search_locations[0])


def test_with_nothing_installed_at_all(repo_root):
    done, lines = doctor(repo_root, bare=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert lines["flags"].startswith("fail  flags         absl cannot be imported: No module named 'absl'")
    for subject in ("tensorflow", "onnxruntime"):
        assert lines[subject].startswith("fail")
        assert "pip install 'semisam-tf[cpu]'" in lines[subject]
    assert lines["python"].startswith("ok")


def test_with_flags_and_without_any_flavour(repo_root, tmp_path):
    (tmp_path / "absl").symlink_to(module_folder("absl"))
    done, lines = doctor(repo_root, f"--data_dir={tmp_path}", "--labeled=1", path=[tmp_path], bare=True)
    assert (done.returncode, done.stderr) == (1, "")
    assert lines["tensorflow"].startswith("fail  tensorflow    not installed -> pip install")
    # NumPy is absent too: what needs it says so, and the doctor goes on to the end.
    assert "train.list" in lines["settings"]
    assert "memory" in lines


@pytest.fixture
def broken(tmp_path):
    """A folder with a TensorFlow that cannot be imported and an ONNX Runtime that takes Python down."""
    modules = {"tensorflow": "raise ImportError('DLL load failed')", "onnxruntime": "import os; os.abort()"}
    for name, code in modules.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code, encoding="utf-8")
    return tmp_path


def test_a_broken_tensorflow_and_a_broken_onnxruntime_are_named(repo_root, broken):
    done, lines = doctor(repo_root, path=[broken])
    assert done.returncode == 1
    assert "does not start: ImportError: DLL load failed -> pip install --force-reinstall" in lines["tf device"]
    assert "does not start: killed by SIGABRT -> pip install --force-reinstall" in lines["ort device"]


def test_two_flavours_of_each(repo_root, broken):
    for name, version in {"tensorflow": "2.21.0", "onnxruntime_gpu": "1.30.0"}.items():
        (broken / f"{name}-{version}.dist-info").mkdir()
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (broken / f"{name}-{version}.dist-info" / "METADATA").write_text(text, encoding="utf-8")
    done, lines = doctor(repo_root, path=[broken])
    assert done.returncode == 1
    assert "tensorflow 2.21.0 and tensorflow-cpu " in lines["tensorflow"]
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in lines["onnxruntime"]


def test_flags_of_training_are_taken_and_wrong_ones_refused(repo_root):
    words = [sys.executable, "-m", "semisam_tf.doctor"]
    done = subprocess.run([*words, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for flag in ("--sam_dir", "--preset=cpu", "--timing", "--patch_size"):
        assert flag in done.stdout
    done = subprocess.run([*words, "--sam_dri=x"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["python", "-m", "semisam_tf.doctor", "--x"], True),
        (["python", "-Im", "semisam_tf.doctor"], True),
        (["python", "-msemisam_tf.doctor"], True),
        (["python", "-X", "importtime", "-m", "semisam_tf.health.probe", "imports"], True),
        (["python", "-m", "semisam_tf.train", "--preset=m", "semisam_tf.doctor"], False),
        (["python", "-m", "pytest", "-m", "semisam_tf.doctor"], False),
        (["python", "script.py"], False),
        (["python", "-c", "import semisam_tf"], False),
    ],
)
def test_who_may_import_the_package_without_a_flavour(command, expected):
    assert is_diagnosis(command) == expected


def test_devices_that_cannot_share_a_batch_are_said_before_a_step_is_timed(repo_root, tmp_path):
    (tmp_path / "train.list").write_text("a\nb\nc\n", encoding="utf-8")
    run = [f"--data_dir={tmp_path}", "--labeled=2", "--batch_size=4", "--labeled_per_batch=2", "--notiming"]
    done, lines = doctor(repo_root, *run, "--devices=3")
    assert done.returncode == 1
    assert lines["settings"].startswith("fail  settings      --devices: expected labelled and unlabelled items to be")
    assert "step time" not in lines
