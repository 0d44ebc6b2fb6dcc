"""Values at the voxels of another grid in the same world: turned, finer, larger; by hand."""

import numpy as np
import pytest

from semisam_tf.data.orientation import axis_order
from semisam_tf.data.preprocess import onto_grid


def test_a_turned_grid_gets_the_same_values():
    array = np.random.default_rng(0).normal(size=(3, 4, 5, 2)).astype(np.float32)
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = 7, -5, 11
    order = axis_order("RAS", "SLP")
    found = onto_grid(array, affine, order.affine_of(affine, (3, 4, 5)), (5, 3, 4))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, order.apply(array), atol=1e-5)


def test_a_finer_and_larger_grid_is_interpolated_within_the_array_and_0_beyond():
    array = np.array([0.0, 10.0, 20.0], np.float32).reshape(3, 1, 1, 1)
    # Half as large voxels, the first of them a millimetre before the array's first edge: centres at -1.25, -0.75, ...
    finer = np.diag([0.5, 1.0, 1.0, 1.0])
    finer[0, 3] = -1.25
    found = onto_grid(array, np.eye(4), finer, (9, 1, 1))
    # The array ends half a voxel beyond its last centre, which is at 2.
    assert found[:, 0, 0, 0].tolist() == pytest.approx([0, 0, 0, 2.5, 7.5, 12.5, 17.5, 20, 0])


def test_a_centre_on_the_edge_is_within():
    array = np.ones((2, 2, 2, 1), np.float32)
    edge = np.eye(4)
    edge[:3, 3] = -0.5
    assert onto_grid(array, np.eye(4), edge, (3, 3, 3)).min() == 1
