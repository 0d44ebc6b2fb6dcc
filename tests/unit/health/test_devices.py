"""What is made of the probes' answers, and the probes themselves in processes that break in every way."""

import textwrap

import numpy as np
import pytest

from semisam_tf.findings import FAIL, OK, WARN
from semisam_tf.health import devices, probe
from semisam_tf.health.devices import check_imports, onnxruntime_findings, tensorflow_findings
from semisam_tf.health.probe import CPU, CUDA, TINY_MODEL, Answer, run_probe

CARD = ["NVIDIA H100 80GB HBM3, 81559 MiB, 550.54"]
TF = {
    "version": "2.21.0", "keras": "3.15.1", "backend": "tensorflow", "cuda_build": True, "cuda": "12.5.1",
    "gpus": ["H100"], "device": "/GPU:0", "right": True,
}  # fmt: skip
ORT = {"version": "1.26.0", "available": [CUDA, CPU], "providers": [CUDA, CPU], "right": True}


def tf(cards, notes=(), package="tensorflow", **changes):
    (finding,) = tensorflow_findings(Answer([TF | changes], "", list(notes)), cards, {package: "2.21.0"})
    return finding


def ort(cards, notes=(), asked=(), **changes):
    answer = Answer([ORT | changes], "", list(notes))
    (finding,) = onnxruntime_findings(answer, cards, {"onnxruntime-gpu": "1.26.0"}, asked)
    return finding


def test_tensorflow_that_sees_the_gpu_and_one_that_does_not():
    assert tf(CARD).status == OK
    blind = tf(CARD, ["Could not find cuda drivers on your machine"], gpus=[])
    assert blind.status == FAIL
    assert "sees no GPU, the machine has NVIDIA H100" in blind.found
    assert "it says: Could not find cuda drivers" in blind.found
    assert "tensorflow[and-cuda]" in blind.fix
    assert tf([], gpus=[]).status == OK


def test_a_cpu_build_on_a_machine_with_a_gpu_is_a_warning():
    finding = tf(CARD, package="tensorflow-cpu", gpus=[], cuda_build=False)
    assert finding.status == WARN
    assert finding.fix == "pip uninstall -y tensorflow-cpu onnxruntime, then pip install 'semisam-tf[gpu]'"
    assert tf([], package="tensorflow-cpu", gpus=[], cuda_build=False).status == OK


def test_another_keras_backend_is_a_failure():
    findings = tensorflow_findings(Answer([TF | {"backend": "jax"}], "", []), CARD, {"tensorflow": "2.21.0"})
    assert (findings[0].status, findings[0].fix) == (FAIL, "export KERAS_BACKEND=tensorflow")


def test_wrong_arithmetic_is_a_failure():
    assert tf(CARD, right=False).status == FAIL
    assert ort(CARD, right=False).status == FAIL


def test_a_tensorflow_that_dies_is_a_failure_with_the_reason():
    (finding,) = tensorflow_findings(Answer([], "killed by SIGILL", []), [], {"tensorflow-cpu": "2.21.0"})
    assert finding.status == FAIL
    assert finding.found == "TensorFlow does not start: killed by SIGILL"
    assert finding.fix == "pip install --force-reinstall --no-deps tensorflow-cpu==2.21.0"


def test_onnxruntime_that_falls_back_is_a_failure():
    assert ort(CARD).status == OK
    note = "Failed to load library libonnxruntime_providers_cuda.so: libcublasLt.so.13: cannot open shared object file"
    fallen = ort(CARD, [note], providers=[CPU])
    assert fallen.status == FAIL
    assert f"asked for {CUDA}, got {CPU}" in fallen.found
    assert "libcublasLt.so.13: cannot open shared object file" in fallen.found


def test_onnxruntime_without_a_gpu():
    cpu = {"available": [CPU], "providers": [CPU]}
    assert ort([], **cpu).status == OK
    assert ort(CARD, **cpu).status == WARN
    assert ort(CARD, asked=[CUDA], **cpu).status == FAIL
    assert ort([], asked=[CUDA], providers=[CPU]).status == FAIL
    assert ort([], asked=[CPU], **cpu).status == OK


@pytest.fixture
def break_module(tmp_path, monkeypatch, repo_root):
    """(name, code) -> a module of that name comes first on the path of child processes."""

    def write(name, code):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(textwrap.dedent(code), encoding="utf-8")

    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{repo_root}")
    return write


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('numpy.core.multiarray failed to import')", "ImportError: numpy.core.multiarray failed"),
        ("import os; os.kill(os.getpid(), 4)", "killed by SIGILL"),
        ("import os; os._exit(3)", "exit code 3"),
        ("raise SystemExit('no licence')", "no licence"),
    ],
)
def test_a_package_that_breaks_in_any_way_is_named(break_module, code, reason):
    break_module("h5py", code)
    findings = check_imports({"absl-py": "2", "h5py": "3.14.0"}, {"absl": "absl-py", "h5py": "h5py"})
    assert [f.status for f in findings] == [FAIL]
    assert findings[0].found.startswith(f"h5py cannot be imported: {reason}")
    assert findings[0].fix == "pip install --force-reinstall --no-deps h5py==3.14.0"


def test_a_package_that_hangs_is_given_up(break_module):
    break_module("h5py", "import time; time.sleep(60)")
    answer = run_probe(devices.PROBE, ["imports", "h5py"], timeout_s=1.0)
    assert answer.error == "no answer within 1 s"


def test_what_libraries_print_is_no_answer(break_module):
    break_module("h5py", "print('hello'); print('[1]'); __version__ = '3'")
    answer = run_probe(devices.PROBE, ["imports", "h5py"])
    assert [value["state"] for value in answer.values] == ["begun", "imported"]


def test_the_tiny_model_doubles_its_input():
    import onnxruntime

    session = onnxruntime.InferenceSession(TINY_MODEL, providers=[CPU])
    x = np.array([0.5, -2.0], np.float32)
    np.testing.assert_array_equal(session.run(None, {"x": x})[0], [1.0, -4.0])


def test_onnxruntime_here_is_asked_for_cuda_and_says_what_it_got():
    answer = run_probe(devices.PROBE, ["onnxruntime"])
    assert answer.error == ""
    assert answer.values[-1]["right"]
    assert CPU in answer.values[-1]["providers"]


def test_an_error_is_one_line():
    assert probe.described(ValueError("a\nb")) == "ValueError: b"
    assert probe.described(KeyError()) == "KeyError"
