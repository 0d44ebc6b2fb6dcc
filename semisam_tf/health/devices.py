"""Whether the libraries can be imported, and on which devices TensorFlow and ONNX Runtime really compute."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from semisam_tf.findings import FAIL, OK, WARN, Finding
from semisam_tf.health.packages import ONNXRUNTIMES, TENSORFLOWS, Installed
from semisam_tf.health.probe import CUDA, Answer, run_probe

PROBE = "semisam_tf.health.probe"
# Module -> distribution, of what training imports besides TensorFlow and ONNX Runtime.
MODULES = {
    "absl": "absl-py",
    "numpy": "numpy",
    "scipy": "scipy",
    "h5py": "h5py",
    "SimpleITK": "SimpleITK",
    "matplotlib": "matplotlib",
}


def check_imports(installed: Installed, modules: dict[str, str] = MODULES) -> list[Finding]:
    """Imports what is installed: a package may be complete to pip and broken to Python."""
    there = {module: package for module, package in modules.items() if package.lower() in installed}
    answer = run_probe(PROBE, ["imports", *there])
    states: dict[str, dict[str, Any]] = {value["module"]: value for value in answer.values}
    findings = []
    for module, package in there.items():
        state = states.get(module, {"state": "begun"})
        if state["state"] == "imported":
            continue
        reason = state.get("error") or answer.error or "Python died"
        again = f"pip install --force-reinstall --no-deps {package}=={installed[package.lower()]}"
        findings.append(Finding(FAIL, "import", f"{module} cannot be imported: {reason}", again))
    if findings:
        return findings
    shown = ", ".join(f"{module} {states[module]['version']}" for module in there)
    return [Finding(OK, "import", shown)]


def nvidia_gpus() -> list[str]:
    """Names of the machine's NVIDIA GPUs with memory and driver, as nvidia-smi lists them."""
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []


def check_devices(installed: Installed, providers: Sequence[str] = ()) -> list[Finding]:
    """Asks the machine, TensorFlow and ONNX Runtime for GPUs.

    Args:
        installed: From `installed_packages`.
        providers: Execution providers that the run asks for.
    """
    gpus = nvidia_gpus()
    findings = []
    if any(name in installed for name in TENSORFLOWS):
        findings += tensorflow_findings(run_probe(PROBE, ["tensorflow"]), gpus, installed)
    if any(name in installed for name in ONNXRUNTIMES):
        findings += onnxruntime_findings(run_probe(PROBE, ["onnxruntime"]), gpus, installed, providers)
    return findings


def tensorflow_findings(answer: Answer, gpus: Sequence[str], installed: Installed) -> list[Finding]:
    """What the probe of TensorFlow says on a machine with these GPUs."""
    name = next((name for name in TENSORFLOWS if name in installed), "tensorflow")
    if answer.error or not answer.values:
        fix = f"pip install --force-reinstall --no-deps {name}=={installed.get(name, '')}".rstrip("=")
        return [Finding(FAIL, "tf device", f"TensorFlow does not start: {answer.error or 'no answer'}", fix)]
    said = answer.values[-1]
    findings = []
    if said["backend"] != "tensorflow":
        findings.append(
            Finding(FAIL, "keras", f"Keras computes with {said['backend']}", "export KERAS_BACKEND=tensorflow")
        )
    shown = f"TensorFlow {said['version']}, Keras {said['keras']}"
    if not said["right"]:
        findings.append(
            Finding(FAIL, "tf device", f"{shown} multiplies wrongly on {said['device']}", "update the driver")
        )
    elif said["gpus"]:
        findings.append(Finding(OK, "tf device", f"{shown} sees {', '.join(said['gpus'])} and computes on it"))
    elif not gpus:
        findings.append(Finding(OK, "tf device", f"{shown} computes on the CPU; the machine has no NVIDIA GPU"))
    elif said["cuda_build"]:
        why = _reason(answer.notes, ("dlopen", "Could not", "Cannot", "CUDA"))
        findings.append(
            Finding(
                FAIL, "tf device", f"{shown} sees no GPU, the machine has {gpus[0]}{why}",
                "pip install 'tensorflow[and-cuda]>=2.21,<2.22', and a driver for CUDA 12",
            )
        )  # fmt: skip
    else:
        findings.append(
            Finding(
                WARN, "tf device", f"{shown} is a build for the CPU, the machine has {gpus[0]}",
                f"pip uninstall -y {name} onnxruntime, then pip install 'semisam-tf[gpu]'",
            )
        )  # fmt: skip
    return findings


def onnxruntime_findings(
    answer: Answer, gpus: Sequence[str], installed: Installed, providers: Sequence[str]
) -> list[Finding]:
    """What the probe of ONNX Runtime says on a machine with these GPUs; the run asks for `providers`."""
    name = next((name for name in ONNXRUNTIMES if name in installed), "onnxruntime")
    subject = "ort device"
    if answer.error or not answer.values:
        fix = f"pip install --force-reinstall --no-deps {name}=={installed.get(name, '')}".rstrip("=")
        return [Finding(FAIL, subject, f"ONNX Runtime does not start: {answer.error or 'no answer'}", fix)]
    said = answer.values[-1]
    shown = f"ONNX Runtime {said['version']}"
    got = f"asked for {CUDA}, got {', '.join(said['providers'])}"
    if not said["right"]:
        return [
            Finding(FAIL, subject, f"{shown} computes 1 + 1 wrongly on {said['providers'][0]}", "update the driver")
        ]
    if CUDA in said["providers"]:
        return [Finding(OK, subject, f"{shown} computes on the GPU ({got})")]
    wanted = [provider for provider in providers if provider not in said["available"]]
    if CUDA in said["available"] and gpus:
        why = _reason(answer.notes, ("cannot open shared object", "Failed to", "CUDA", "cuDNN"))
        fix = "pip install 'onnxruntime-gpu>=1.23,<1.27' 'tensorflow[and-cuda]>=2.21,<2.22'"
        return [Finding(FAIL, subject, f"{shown} falls back to the CPU: {got}, the machine has {gpus[0]}{why}", fix)]
    if wanted:
        fix = "pip install 'semisam-tf[gpu]', or --sam_providers=CPUExecutionProvider"
        return [
            Finding(FAIL, subject, f"{shown} does not offer {', '.join(wanted)}, which --sam_providers asks for", fix)
        ]
    if CUDA in providers:
        fix = "use a machine with an NVIDIA GPU, or --sam_providers=CPUExecutionProvider"
        return [Finding(FAIL, subject, f"{shown} computes on the CPU: {got}; the machine has no NVIDIA GPU", fix)]
    if gpus:
        fix = f"pip uninstall -y {name}, then pip install 'semisam-tf[gpu]'"
        return [Finding(WARN, subject, f"{shown} is a build for the CPU: {got}, the machine has {gpus[0]}", fix)]
    return [Finding(OK, subject, f"{shown} computes on the CPU ({got}); the machine has no NVIDIA GPU")]


def _reason(notes: Sequence[str], words: Sequence[str]) -> str:
    """The last thing that a library said about one of `words`."""
    for word in words:
        for note in reversed(notes):
            if word in note:
                return f"; it says: {note[-250:]}"
    return ""
