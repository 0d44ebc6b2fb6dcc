"""Python and the installed packages: what is there, and what does not go together. Imports none of them."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Iterator, Mapping, Sequence

from semisam_tf.findings import FAIL, OK, WARN, Finding

ROOT = "semisam-tf"
# As python_requires in setup.py.
PYTHON_FROM, PYTHON_BELOW = (3, 11), (3, 13)
# Distributions that hold the same files: of each group one may be installed.
TENSORFLOWS = ("tensorflow", "tensorflow-cpu", "tf-nightly", "tf-nightly-cpu")
ONNXRUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
_INSTALL = "pip install 'semisam-tf[cpu]', or with an NVIDIA GPU 'semisam-tf[gpu]'"

Installed = Mapping[str, str]


def installed_packages() -> dict[str, str]:
    """Name, in lower case with dashes, -> version, of every installed distribution."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:  # pip leaves folders without one behind when it is interrupted
            found.setdefault(normal(name), distribution.version)
    return found


def normal(name: str) -> str:
    """A distribution's name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def check_python(version: Sequence[int] = sys.version_info[:3]) -> Finding:
    """Whether this Python is one that the packages exist for."""
    shown = ".".join(map(str, version))
    if PYTHON_FROM <= tuple(version[:2]) < PYTHON_BELOW:
        return Finding(OK, "python", f"{shown}, {sys.executable}")
    return Finding(
        FAIL, "python", f"{shown}; expected 3.11 or 3.12", "python3.11 -m venv .venv, and install semisam-tf into it"
    )


def check_flavour(installed: Installed) -> list[Finding]:
    """That one TensorFlow and one ONNX Runtime are installed, and that both speak the same CUDA."""
    findings = []
    chosen = []
    for product, names in (("TensorFlow", TENSORFLOWS), ("ONNX Runtime", ONNXRUNTIMES)):
        there = [name for name in names if name in installed]
        shown = " and ".join(f"{name} {installed[name]}" for name in there)
        subject = product.lower().replace(" ", "")
        if not there:
            findings.append(Finding(FAIL, subject, "not installed", _INSTALL))
        elif len(there) > 1:
            findings.append(
                Finding(
                    FAIL, subject, f"{shown} are installed; they hold the same files, and which of them are left is "
                    "chance", f"pip uninstall -y {' '.join(there)}, then {_INSTALL}",
                )
            )  # fmt: skip
        else:
            chosen.append(there[0])
            findings.append(Finding(OK, subject, f"{shown} is the only one installed"))
    return findings + (list(_cuda(chosen[0], chosen[1], installed)) if len(chosen) == 2 else [])


def _cuda(tensorflow: str, onnxruntime: str, installed: Installed) -> Iterator[Finding]:
    """The CUDA 12 / 13 trap, and one half on the GPU."""
    if onnxruntime != "onnxruntime-gpu":
        return
    ours, theirs = tensorflow_cuda(installed[tensorflow]), onnxruntime_cuda(installed[onnxruntime])
    shown = f"{onnxruntime} {installed[onnxruntime]} is CUDA {theirs}"
    if tensorflow.endswith("-cpu"):
        yield Finding(
            WARN, "cuda", f"{shown}, and {tensorflow} knows no GPU: SAM would run on it, training would not",
            f"pip uninstall -y {tensorflow}, then pip install 'semisam-tf[gpu]'",
        )  # fmt: skip
    elif ours != theirs:
        yield Finding(
            FAIL, "cuda",
            f"{shown}, {tensorflow} {installed[tensorflow]} is CUDA {ours}: one process cannot load both, "
            "and ONNX Runtime goes on with the CPU without a word",
            "pip install 'onnxruntime-gpu>=1.23,<1.27'" if ours == 12 else f"install builds of CUDA {ours}",
        )  # fmt: skip
    else:
        yield Finding(OK, "cuda", f"{shown}, and so is {tensorflow} {installed[tensorflow]}")


def tensorflow_cuda(version: str) -> int:
    """Major release of CUDA that TensorFlow's GPU build is made for."""
    return 12 if _numbers(version) >= (2, 15) else 11


def onnxruntime_cuda(version: str) -> int:
    """Major release of CUDA that onnxruntime-gpu on PyPI is made for."""
    numbers = _numbers(version)
    return 13 if numbers >= (1, 27) else 12 if numbers >= (1, 19) else 11


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def check_requirements(installed: Installed, root: str = ROOT) -> list[Finding]:
    """That every package below `root`, with the extra of the flavour that is there, is within the bounds asked for."""
    if root not in installed:
        return [
            Finding(
                WARN, "packages", f"{root} itself is not installed (it runs from a folder): its bounds are not checked",
                "pip install -c constraints.txt -e '.[cpu]'",
            )
        ]  # fmt: skip
    try:
        from packaging.requirements import Requirement
    except ImportError as error:
        return [Finding(FAIL, "packages", f"packaging cannot be imported: {error}", "pip install packaging")]
    extra = "gpu" if "onnxruntime-gpu" in installed else "cpu"
    findings, seen, todo = [], {(root, "")}, [(root, frozenset({extra}))]
    while todo:
        parent, extras = todo.pop()
        for text in importlib.metadata.requires(parent) or []:
            needed = Requirement(text)
            if needed.marker and not any(needed.marker.evaluate({"extra": e}) for e in (extras or {""}) | {""}):
                continue
            name = normal(needed.name)
            if name in installed and needed.specifier.contains(installed[name], prereleases=True):
                if (name, str(sorted(needed.extras))) not in seen:
                    seen.add((name, str(sorted(needed.extras))))
                    todo.append((name, frozenset(needed.extras)))
            elif name not in (*TENSORFLOWS, *ONNXRUNTIMES) or name in installed:  # absent ones: see check_flavour
                found = f"{name} {installed[name]}" if name in installed else f"no {name}"
                findings.append(
                    Finding(
                        FAIL, "packages", f"{found} is installed, {parent} asks for {needed.name}{needed.specifier}",
                        f"pip install '{needed.name}{needed.specifier}'",
                    )
                )  # fmt: skip
    if not findings:
        names = len({name for name, _ in seen}) - 1
        findings.append(Finding(OK, "packages", f"{root} {installed[root]} and the {names} below it fit each other"))
    return findings
