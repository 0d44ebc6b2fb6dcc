"""Probes that run in a process of their own, since what they load may be broken enough to take it down.

    python -m semisam_tf.health.probe imports numpy scipy
    python -m semisam_tf.health.probe tensorflow
    python -m semisam_tf.health.probe onnxruntime

Each prints JSON objects, one a line; `run_probe` starts one and reads them.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# An ONNX model of one node, y = x + x, of float32 [n]; opset 13.
TINY_MODEL = (
    b'\x08\x08:7\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x01gZ\x10\n\x01x\x12\x0b\n\t\x08\x01\x12\x05\n\x03\x12\x01n'
    b"b\x10\n\x01y\x12\x0b\n\t\x08\x01\x12\x05\n\x03\x12\x01nB\x04\n\x00\x10\r"
)


class Answer(NamedTuple):
    """What a probe said.

    Attributes:
        values: Its JSON objects.
        error: Why it ended before its time; empty if it did not.
        notes: Lines that libraries wrote to the standard error stream.
    """

    values: list[dict[str, Any]]
    error: str
    notes: list[str]


def run_probe(
    module: str, words: Sequence[str] = (), timeout_s: float = 180.0, standard_input: str | None = None
) -> Answer:
    """Runs `python -m module words` and waits for its answer. Raises nothing, whatever happens there."""
    environment = {
        **os.environ,
        "PYTHONFAULTHANDLER": "",
        "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1"),
        "TF_FORCE_GPU_ALLOW_GROWTH": os.environ.get("TF_FORCE_GPU_ALLOW_GROWTH", "true"),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", module, *words],
            capture_output=True, text=True, errors="replace", check=False, timeout=timeout_s, env=environment,
            **({"input": standard_input} if standard_input is not None else {"stdin": subprocess.DEVNULL}),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Answer([], f"no answer within {timeout_s:.0f} s", [])
    except OSError as error:
        return Answer([], f"{sys.executable} cannot be started: {error}", [])
    notes = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    ended = ""
    if done.returncode < 0:
        ended = f"killed by {signal.Signals(-done.returncode).name}"
        # What Linux does to a process when there is no memory left.
        ended += ", out of memory perhaps" if -done.returncode == signal.SIGKILL else ""
    elif done.returncode:
        ended = notes[-1] if notes else f"exit code {done.returncode}"
    return Answer([value for value in map(_object, done.stdout.splitlines()) if value], ended, notes)


def _object(line: str) -> dict[str, Any]:
    """A line's JSON object; empty for what a library printed."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def say(**values: Any) -> None:
    """Prints one JSON object."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def probe_imports(modules: Sequence[str]) -> None:
    """Imports one module after the other and says how it went."""
    for name in modules:
        say(module=name, state="begun")
        try:
            version = getattr(importlib.import_module(name), "__version__", "")
            say(module=name, state="imported", version=str(version))
        except Exception as error:  # whatever a broken package raises
            say(module=name, state="broken", error=described(error))


def probe_tensorflow(_: Sequence[str]) -> None:
    """Imports TensorFlow and Keras, lists the GPUs, and multiplies two matrices on the first device."""
    import keras
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    build = tf.sysconfig.get_build_info()
    product = tf.linalg.matmul(tf.ones((8, 8)), tf.ones((8, 8)))
    say(
        version=tf.__version__,
        keras=keras.__version__,
        backend=keras.backend.backend(),
        cuda_build=bool(build.get("is_cuda_build")),
        cuda=str(build.get("cuda_version", "")),
        gpus=names,
        device=product.device,
        right=bool(tf.reduce_all(product == 8.0)),
    )


def probe_onnxruntime(_: Sequence[str]) -> None:
    """Asks for a session on CUDA, says what it got, and runs it: ONNX Runtime falls back without a word."""
    import numpy as np
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if CUDA in available:
        onnxruntime.preload_dlls()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that CUDA is not available is what we are about to say
        session = onnxruntime.InferenceSession(TINY_MODEL, providers=[CUDA, CPU])
    x = np.array([1.0, 2.0, 3.0], np.float32)
    (y,) = session.run(None, {"x": x})
    say(
        version=onnxruntime.__version__,
        available=available,
        providers=session.get_providers(),
        right=bool(np.array_equal(y, 2 * x)),
    )


def described(error: BaseException) -> str:
    """An error in a line: its kind and the last line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1].strip()}" if lines else type(error).__name__


PROBES: dict[str, Callable[[Sequence[str]], None]] = {
    "imports": probe_imports,
    "tensorflow": probe_tensorflow,
    "onnxruntime": probe_onnxruntime,
}


def main(argv: Sequence[str]) -> int:
    """Runs one probe; 1, with one line, if it fails."""
    try:
        PROBES[argv[0]](argv[1:])
    except Exception as error:  # the doctor reports whatever it is
        sys.stderr.write(f"{described(error)}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
