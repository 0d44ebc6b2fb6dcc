"""Boxes from the image alone."""

import inspect

import numpy as np

from semisam_tf.preparation import cropping
from semisam_tf.preparation.cropping import crop_box


def test_no_function_here_takes_a_label():
    functions = [f for _, f in inspect.getmembers(cropping, inspect.isfunction) if f.__module__ == cropping.__name__]
    assert len(functions) > 3
    assert not [f for f in functions if {"label", "mask", "values", "volume"} & set(inspect.signature(f).parameters)]


def test_none_keeps_all():
    assert crop_box(np.zeros((3, 4, 5, 1), np.float32), (1, 1, 1), "none", 0) == ((0, 3), (0, 4), (0, 5))


def test_foreground_is_what_is_not_padding_in_any_channel():
    image = np.full((20, 16, 12, 2), -1024, np.float32)
    image[..., 1] = 3
    image[4:9, 5:7, 6, 0] = -1023
    image[7, 8, 7, 1] = 4
    assert crop_box(image, (1, 1, 1), "foreground", 0) == ((4, 9), (5, 9), (6, 8))
    # A margin in millimetres, up to the edge.
    assert crop_box(image, (1, 2, 4), "foreground", 5) == ((0, 14), (2, 12), (4, 10))


def test_foreground_of_noise_is_everything():
    image = np.random.default_rng(0).normal(size=(9, 8, 7, 1)).astype(np.float32)
    assert crop_box(image, (1, 1, 1), "foreground", 0) == ((0, 9), (0, 8), (0, 7))


def test_a_box_is_a_volume():
    image = np.zeros((9, 8, 7, 1), np.float32)
    image[8, 0, 3] = 1
    assert crop_box(image, (1, 1, 1), "foreground", 0) == ((7, 9), (0, 2), (3, 5))


def test_body_leaves_out_table_and_air():
    """An ellipsoid of 60 x 40 x 60 mm in noisy air on a bright table of 4 mm, and one voxel of metal."""
    rng = np.random.default_rng(0)
    spacing_mm = np.array([2.0, 2.0, 3.0])
    x, y, z = np.meshgrid(*(np.arange(n) for n in (80, 80, 40)), indexing="ij")
    body = ((x - 40) / 15) ** 2 + ((y - 31) / 10) ** 2 + ((z - 20) / 10) ** 2 <= 1
    image = np.where(body, 50, -1000) + rng.normal(0, 20, body.shape)
    image[10:70, 42:44, :] = 200
    image[40, 31, 20] = 20000
    box = np.array(crop_box(image[..., None].astype(np.float32), spacing_mm, "body", 8.0))
    true = np.array([[25, 56], [21, 42], [10, 31]])
    outside_mm = (true - box) * [1, -1] * spacing_mm[:, None]
    # All of the body is inside, with its margin and at most two coarse voxels more.
    assert (outside_mm >= 4).all()
    assert (outside_mm <= 16).all()
