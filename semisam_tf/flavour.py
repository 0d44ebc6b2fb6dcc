"""Which of the two flavours is installed: the check that runs before anything heavy is imported.

`pip install semisam-tf` alone brings neither TensorFlow nor ONNX Runtime, since the CPU and the GPU builds are
different packages holding the same files: only the user knows which one the machine needs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from itertools import pairwise

_REMEDY = (
    "Install one flavour of semisam-tf, never both: pip install 'semisam-tf[cpu]', or on a machine with an NVIDIA GPU "
    "pip install 'semisam-tf[gpu]' (from a clone: pip install -c constraints.txt -e '.[cpu]')."
)


# They run where a flavour is absent or broken, to say so.
_DIAGNOSTIC = ("semisam_tf.doctor", "semisam_tf.health.")


def is_diagnosis(command: Sequence[str]) -> bool:
    """Whether an interpreter's command, `sys.orig_argv`, runs the doctor or a part of it by `-m`.

    While Python imports the package on its way to the module, nothing else says which module it is after.
    """
    for option, name in pairwise(("", *command)):
        if option.startswith("-") and not option.startswith("--") and option.endswith("m"):
            return name.startswith(_DIAGNOSTIC)
        if name.startswith("-m") and name != "-m":
            return name.removeprefix("-m").startswith(_DIAGNOSTIC)
    return False


def is_installed(module: str) -> bool:
    """Tells whether a top-level module can be imported, without importing it.

    A folder that only shares the module's name (left behind by an uninstall, or lying in the working directory) is a
    namespace package to Python and does not count.

    Args:
        module: Name of a top-level module, as in `import tensorflow`.

    Returns:
        Whether the module is there.
    """
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


def require_any() -> None:
    """Refuses to go on where neither TensorFlow nor ONNX Runtime is installed.

    One of the two is enough to import the package: `semisam_tf.sam` and the exporter run without TensorFlow.

    Raises:
        ImportError: Both are missing; names the extras to install.
    """
    if not is_installed("tensorflow") and not is_installed("onnxruntime"):
        raise ImportError(
            f"semisam_tf expects TensorFlow or ONNX Runtime. Received: neither is installed. {_REMEDY}",
            name="tensorflow",
        )


def require_tensorflow() -> None:
    """Refuses to go on where TensorFlow is missing; for entry points, before their heavy imports.

    Raises:
        ImportError: TensorFlow is missing; names the extras to install.
    """
    _require("tensorflow", "TensorFlow")


def require_onnxruntime() -> None:
    """Refuses to go on where ONNX Runtime is missing; for entry points, before their heavy imports.

    Raises:
        ImportError: ONNX Runtime is missing; names the extras to install.
    """
    _require("onnxruntime", "ONNX Runtime")


def _require(module: str, product: str) -> None:
    if not is_installed(module):
        raise ImportError(f"Expected {product} to be installed. Received: no module {module!r}. {_REMEDY}", name=module)
