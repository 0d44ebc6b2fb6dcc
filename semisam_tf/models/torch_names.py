"""Weights travel by name between a PyTorch state dict (as NumPy arrays) and a Keras model.

The one rule: a Keras layer is named as the torch module (`block_two.conv.3`), and its variables are called as below.
"""

from __future__ import annotations

from collections.abc import Mapping

import keras
import numpy as np

_TORCH_NAME = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}

# A counter that PyTorch keeps and nothing reads while momentum is a number.
_IGNORED_SUFFIX = ".num_batches_tracked"


def _variables(model: keras.Model) -> dict[str, keras.Variable]:
    """Torch name -> variable, for every weight but the state of random generators."""
    found = {}
    for layer in model.layers:
        for variable in layer.variables:
            if variable.name in _TORCH_NAME:
                found[f"{layer.name}.{_TORCH_NAME[variable.name]}"] = variable
    return found


def _to_keras(array: np.ndarray) -> np.ndarray:
    """Kernels [out, in, kx, ky, kz] -> [kx, ky, kz, in, out]; transposed [in, out, ...] -> [..., out, in], likewise."""
    return array.transpose(2, 3, 4, 1, 0) if array.ndim == 5 else array


def load_torch_arrays(model: keras.Model, arrays: Mapping[str, np.ndarray], prefix: str = "") -> None:
    """Assigns every weight of `model` from the array of its torch name.

    Args:
        model: A network of `semisam_tf.models`.
        arrays: Torch name -> array in PyTorch's layout; `num_batches_tracked` is ignored.
        prefix: Only names that start with it are looked at, and it is cut off.

    Raises:
        ValueError: A weight without array, an array without weight or a wrong shape; one message lists them all,
            and nothing is assigned.
    """
    given = {
        key[len(prefix) :]: _to_keras(np.asarray(array))
        for key, array in arrays.items()
        if key.startswith(prefix) and not key.endswith(_IGNORED_SUFFIX)
    }
    wanted = _variables(model)
    problems = [f"weight without array: {key}" for key in sorted(wanted.keys() - given.keys())]
    problems += [f"array without weight: {key}" for key in sorted(given.keys() - wanted.keys())]
    problems += [
        f"shape of {key}: expected {tuple(wanted[key].shape)} (Keras layout), received {given[key].shape}"
        for key in sorted(wanted.keys() & given.keys())
        if tuple(wanted[key].shape) != given[key].shape
    ]
    if problems:
        raise ValueError(
            f"The arrays do not fit the network {model.name!r}; check filters, classes, channels and normalisation.\n"
            + "\n".join(problems)
        )
    for key, variable in wanted.items():
        variable.assign(given[key])


def export_torch_arrays(model: keras.Model) -> dict[str, np.ndarray]:
    """The inverse of `load_torch_arrays`: torch name -> float32 array in PyTorch's layout."""
    arrays = {}
    for key, variable in _variables(model).items():
        value = np.asarray(variable.numpy(), np.float32)
        arrays[key] = np.ascontiguousarray(value.transpose(4, 3, 0, 1, 2)) if value.ndim == 5 else value
    return arrays
