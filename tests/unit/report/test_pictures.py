"""A cut lies where its voxels are: axes, directions, millimetres, crop; and outlines follow the masks."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from semisam_tf.report.pictures import _OUTLINE_TOLERANCE_VOX, _outline, cut_through

SPACING_MM = (1.0, 2.0, 4.0)


def pixels_of(cut):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(cut["png"]))))


def points_of(path):
    """Closed lines of a path, each [n, 2] as x, y in millimetres from the top left."""
    return [np.array([pair.split(",") for pair in line.split()], float) for line in re.findall(r"M([^Z]+)Z", path)]


@pytest.mark.parametrize(("axis", "across", "up"), [(0, 1, 2), (1, 0, 2), (2, 0, 1)])
def test_axes_and_directions(axis, across, up):
    image = np.zeros((8, 9, 10))
    corner = [0, 0, 0]
    corner[across] = image.shape[across] - 1  # last voxel to the right, first one upwards: the lower right corner
    image[tuple(corner)] = 1.0
    cut = cut_through(image, {}, SPACING_MM, axis, 0, "name")
    shown = pixels_of(cut)
    assert shown.shape == (image.shape[up], image.shape[across])
    assert np.argwhere(shown == 255).tolist() == [[image.shape[up] - 1, image.shape[across] - 1]]
    assert cut["width_mm"] == image.shape[across] * SPACING_MM[across]
    assert cut["height_mm"] == image.shape[up] * SPACING_MM[up]


def test_an_outline_lies_on_the_edge_of_its_voxels_in_millimetres():
    mask = np.zeros((40, 40, 3), np.uint8)
    mask[10:20, 25:31, 1] = 1
    cut = cut_through(np.zeros(mask.shape), {"truth": mask, "none": 0 * mask}, (1.0, 1.0, 1.0), 2, 1, "c")
    # The crop is the mask and 12 mm around it: x from 0 to 32 (10 - 12 is outside), y from 13 to 40.
    assert (cut["width_mm"], cut["height_mm"]) == (32.0, 27.0)
    (line,) = points_of(cut["outlines"]["truth"])
    np.testing.assert_allclose(line.min(axis=0), [10, 40 - 31], atol=0.01)
    np.testing.assert_allclose(line.max(axis=0), [20, 40 - 25], atol=0.01)
    assert cut["outlines"]["none"] == ""


def test_the_crop_holds_every_mask_and_the_image_moves_with_it():
    masks = {name: np.zeros((60, 60, 3), np.uint8) for name in ("truth", "student")}
    masks["truth"][20:24, 30:34, 1] = masks["student"][40:44, 30:34, 1] = 1
    image = sum(masks.values()).astype(float)
    cut = cut_through(image, masks, (1.0, 1.0, 1.0), 2, 1, "c")
    assert (cut["width_mm"], cut["height_mm"]) == (24 + 24, 4 + 24)
    bright = np.argwhere(pixels_of(cut) == 255)
    lines = [points_of(cut["outlines"][name])[0] for name in masks]
    for line, columns in zip(lines, (bright[bright[:, 1] < 24], bright[bright[:, 1] >= 24]), strict=True):
        low, high = columns.min(axis=0), columns.max(axis=0) + 1
        np.testing.assert_allclose(line.min(axis=0), low[::-1], atol=0.01)
        np.testing.assert_allclose(line.max(axis=0), high[::-1], atol=0.01)


def test_classes_have_lines_of_their_own_and_a_full_mask_is_closed():
    plane = np.zeros((10, 12), np.uint8)
    plane[2:5, 2:5], plane[6:9, 6:9] = 1, 2
    assert len(points_of(_outline(plane, np.ones(2)))) == 2
    (line,) = points_of(_outline(np.ones((4, 6), np.uint8), np.ones(2)))
    np.testing.assert_array_equal([line.min(axis=0), line.max(axis=0)], [[0, 0], [6, 4]])


def test_outlines_of_large_organs_are_short_and_true():
    y, x = np.mgrid[:300, :300]
    (line,) = points_of(_outline((np.hypot(x - 149.5, y - 149.5) < 120).astype(np.uint8), np.ones(2)))
    assert len(line) < 400
    # Half a voxel of the marching squares, the tolerance, and the rounding to 0.1 mm.
    radius = np.hypot(*(line - 150).T)
    assert np.abs(radius - 120).max() < 1.0 + _OUTLINE_TOLERANCE_VOX + 0.1


def test_images_are_small_whatever_the_scan():
    image = np.random.default_rng(0).normal(size=(700, 400, 2))
    cut = cut_through(image, {}, (0.5, 0.5, 1.0), 2, 0, "c")
    assert max(pixels_of(cut).shape) == 256
    assert (cut["width_mm"], cut["height_mm"]) == (350.0, 200.0)
    flat = cut_through(np.full((5, 6, 7), 3.0), {}, SPACING_MM, 2, 0, "c")
    assert pixels_of(flat).shape == (6, 5)
