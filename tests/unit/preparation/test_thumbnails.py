"""The thumbnail shows the right side on the left, the front and the head at the top, and the mask's outline."""

import matplotlib.image
import numpy as np
import pytest

from semisam_tf.data.orientation import axis_code, axis_order
from semisam_tf.data.volumes import Volume
from semisam_tf.preparation import thumbnails
from semisam_tf.preparation.thumbnails import Thumbnail, save_sheets, thumbnail

SIDE = 128


def volume(code):
    """A dark cube with bright pieces to the right, in front and at the head of it, stored with the axes of `code`."""
    image = np.zeros((32, 32, 32, 1), np.float32)
    image[24:30, 14:18, 14:18] = image[14:18, 24:30, 14:18] = image[14:18, 14:18, 24:30] = 1
    label = np.zeros((32, 32, 32), np.uint8)
    label[13:19, 13:19, 13:19] = 1
    ras = Volume("x", image, label, (1.0, 1.0, 1.0), np.eye(4))
    return axis_order("RAS", code).apply_to(ras)


@pytest.mark.parametrize("code", ["RAS", "LPS", "SAL"])
def test_sides(code):
    stored = volume(code)
    assert axis_code(stored.affine) == code
    pixels = thumbnail(stored)
    assert pixels.shape == (SIDE, 3 * SIDE, 3)
    axial, coronal, sagittal = (pixels[:, i * SIDE : (i + 1) * SIDE].max(axis=-1) for i in range(3))
    # The middle of the piece lies 11 voxels of 4 pixels from the middle.
    for picture, right in ((axial, True), (coronal, True), (sagittal, False)):
        assert picture[64 - 44, 64] > 200  # front, or head, at the top
        assert picture[64 + 44, 64] < 50
        assert (picture[64, 64 - 44] > 200) == right
        assert picture[64, 64 + 44] < 50 or not right
    # The mask's edge, 3 voxels from the middle, is drawn in colour; its inside is not.
    outlined = np.ptp(pixels[:, :SIDE].astype(int), axis=-1) > 40
    assert outlined[64, 64 - 12] or outlined[64, 64 - 11]
    assert not outlined[60:68, 60:68].any()
    assert not outlined[:40].any()


def test_proportions_are_those_of_the_body():
    flat = Volume("x", np.ones((20, 20, 5, 1), np.float32) * np.arange(20)[:, None, None, None], None, (1, 1, 2.0),
                  np.diag([1, 1, 2.0, 1]))  # fmt: skip
    coronal = thumbnail(flat)[:, SIDE : 2 * SIDE].max(axis=-1)
    assert np.flatnonzero(coronal.max(axis=1)).tolist() == list(range(32, 96))  # 10 mm of 20 mm


def test_sheets(tmp_path, monkeypatch):
    monkeypatch.setattr(thumbnails, "_CASES_A_SHEET", 3)
    (tmp_path / "cases_7.png").touch()
    cases = [Thumbnail(f"case {i}", np.full((SIDE, 3 * SIDE, 3), i, np.uint8)) for i in range(4)]
    paths = save_sheets(tmp_path, cases)
    assert [path.name for path in paths] == ["cases.png", "cases_2.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cases.png", "cases_2.png"]
    second = matplotlib.image.imread(paths[1])
    assert second.shape[:2] == (148, 388)
    np.testing.assert_allclose(second[40:100, 20:300, :3] * 255, 3, atol=1)
