"""Weights travel by name, and what does not fit is told all at once."""

from __future__ import annotations

import numpy as np
import pytest

from semisam_tf.models.torch_names import export_torch_arrays, load_torch_arrays
from semisam_tf.models.vnet import build_vnet


def test_round_trip_and_torch_layout():
    model, other = build_vnet(filters=2, seed=1), build_vnet(filters=2, seed=2)
    arrays = export_torch_arrays(model)
    # [out, in, kx, ky, kz]; the transposed one [in, out, kx, ky, kz].
    assert arrays["block_one_dw.conv.0.weight"].shape == (4, 2, 2, 2, 2)
    assert arrays["block_eight_up.conv.0.weight"].shape == (4, 2, 2, 2, 2)
    assert arrays["block_five_up.conv.0.weight"].shape == (32, 16, 2, 2, 2)
    kernel = model.get_layer("block_two.conv.0").kernel.numpy()
    assert arrays["block_two.conv.0.weight"][3, 1, 0, 1, 2] == kernel[0, 1, 2, 1, 3]
    load_torch_arrays(other, {f"w/{k}": v for k, v in arrays.items()} | {"x": np.zeros(3)}, prefix="w/")
    for key, array in export_torch_arrays(other).items():
        np.testing.assert_array_equal(array, arrays[key])


def test_batch_counters_are_ignored():
    model = build_vnet(filters=2)
    arrays = export_torch_arrays(model) | {"block_one.conv.1.num_batches_tracked": np.array(5)}
    load_torch_arrays(model, arrays)


def test_one_error_lists_every_misfit_and_nothing_is_assigned():
    model = build_vnet(filters=2)
    before = export_torch_arrays(model)
    arrays = {key: array + 1 for key, array in before.items()}
    del arrays["out_conv.bias"]
    arrays["encoder.weight"] = np.zeros((1,))
    arrays["block_one.conv.0.weight"] = np.zeros((3, 1, 3, 3, 3))
    with pytest.raises(ValueError, match="'vnet'") as caught:
        load_torch_arrays(model, arrays)
    message = str(caught.value)
    assert "weight without array: out_conv.bias" in message
    assert "array without weight: encoder.weight" in message
    assert "block_one.conv.0.weight: expected (3, 3, 3, 1, 2) (Keras layout), received (3, 3, 3, 1, 3)" in message
    for key, array in export_torch_arrays(model).items():
        np.testing.assert_array_equal(array, before[key])
