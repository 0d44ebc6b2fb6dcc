"""Where things lie in the body after orientation, crop and resampling, against positions worked by hand."""

import numpy as np
import pytest

from semisam_tf.data.volumes import Volume
from semisam_tf.preparation.cropping import slices
from semisam_tf.preparation.reading import RawCase
from semisam_tf.preparation.regridding import Grid, Target, prepare_case

# Index i grows 2 mm to the back, j 1 mm downwards, k 1.5 mm to the right; voxel (0, 0, 0) lies at R 10, A 50, S -20.
PIR = np.array([[0, 0, 1.5, 10], [-2, 0, 0, 50], [0, -1, 0, -20], [0, 0, 0, 1.0]])
SIZE = (24, 30, 20)


def target(**changes):
    values = {
        "orientation": "RAS", "spacing_mm": (1.0, 1.0, 1.0), "crop": "none", "crop_margin_mm": 0.0,
        "label_map": ((0, 0), (1, 1), (2, 2)), "keep_integers": True,
    }  # fmt: skip
    return Target(**(values | changes))


def raw(values, affine, image=None):
    image = 100.0 * (values > 0) if image is None else image
    spacing = tuple(float(s) for s in np.linalg.norm(affine[:3, :3], axis=0))
    return RawCase(Volume("x", image[..., None].astype(np.float32), None, spacing, affine), values)


def two_blobs():
    """Class 1: i 3..8, j 10..17, k 2..7. Class 2, smaller: i 15..20, j 3..8, k 12..15."""
    values = np.zeros(SIZE, np.int16)
    values[3:9, 10:18, 2:8] = 1
    values[15:21, 3:9, 12:16] = 2
    return values


# Middles (i, j, k): (5.5, 13.5, 4.5) and (17.5, 5.5, 13.5); R = 10 + 1.5 k, A = 50 - 2 i, S = -20 - j.
BLOB_1_MM, BLOB_2_MM = (16.75, 39.0, -33.5), (30.25, 15.0, -25.5)
# Extents along R, A, S: 6 x 1.5, 6 x 2, 8 x 1 mm and 4 x 1.5, 6 x 2, 6 x 1 mm.
BLOB_1_ML, BLOB_2_ML = 9 * 12 * 8 / 1000, 6 * 12 * 6 / 1000


def centre_mm(weights, affine):
    """Weighted middle of an array in RAS millimetres."""
    voxels = np.stack(np.meshgrid(*map(np.arange, weights.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    return affine[:3, :3] @ np.average(voxels, axis=0, weights=weights.ravel()) + affine[:3, 3]


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SAL"])
@pytest.mark.parametrize("crop", ["none", "foreground"])
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (0.7, 1.3, 1.1), None])
def test_blobs_end_where_they_were(orientation, crop, spacing_mm):
    prepared = prepare_case(raw(two_blobs(), PIR), target(orientation=orientation, crop=crop, spacing_mm=spacing_mm))
    volume = prepared.volume
    voxel_ml = np.prod(volume.spacing_mm) / 1000
    for k, expected_mm, expected_ml in ((1, BLOB_1_MM, BLOB_1_ML), (2, BLOB_2_MM, BLOB_2_ML)):
        mask = volume.label == k
        np.testing.assert_allclose(centre_mm(mask, volume.affine), expected_mm, atol=0.4)
        assert mask.sum() * voxel_ml == pytest.approx(expected_ml, rel=0.2)
    whole_mm = (BLOB_1_ML * np.array(BLOB_1_MM) + BLOB_2_ML * np.array(BLOB_2_MM)) / (BLOB_1_ML + BLOB_2_ML)
    np.testing.assert_allclose(centre_mm(volume.image[..., 0], volume.affine), whole_mm, atol=0.2)
    assert volume.spacing_mm == pytest.approx(np.linalg.norm(volume.affine[:3, :3], axis=0))
    if spacing_mm is not None:
        assert volume.spacing_mm == spacing_mm
    if crop == "foreground":
        assert np.prod([high - low for low, high in prepared.crop_vox]) < np.prod(prepared.uncropped_vox)


def test_an_oblique_scan_stays_oblique():
    """PIR turned by 20 degrees about the vertical axis through the origin: x' = x cos - y sin, y' = x sin + y cos."""
    cos, sin = np.cos(np.pi / 9), np.sin(np.pi / 9)
    turn = np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    volume = prepare_case(raw(two_blobs(), turn @ PIR), target()).volume
    x, y, z = BLOB_2_MM
    expected = (x * cos - y * sin, x * sin + y * cos, z)
    np.testing.assert_allclose(centre_mm(volume.label == 2, volume.affine), expected, atol=0.4)
    np.testing.assert_allclose(volume.affine[:3, 0], [cos, sin, 0], atol=1e-9)


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (2.2, 2.9, 1.7), (0.6, 0.6, 0.6)])
def test_the_mask_stays_on_its_image(spacing_mm):
    """One class: where the image, which is its mask, is above its half is where the mask is."""
    values = (two_blobs() == 1).astype(np.uint8)
    volume = prepare_case(raw(values, PIR, image=values.astype(np.float32)), target(spacing_mm=spacing_mm)).volume
    np.testing.assert_array_equal(volume.label == 1, volume.image[..., 0] > 0.5)
    assert volume.label.any()


def test_the_mask_does_not_change_image_or_crop():
    image = np.random.default_rng(0).normal(size=SIZE)
    image[:3] = image[:, -4:] = 0
    made = [
        prepare_case(raw(values, PIR, image), target(crop=crop, spacing_mm=(1.1, 1.2, 1.3)))
        for crop in ("foreground", "body")
        for values in (two_blobs(), np.roll(two_blobs(), 5, axis=0), None)
        for values in [values if values is not None else np.zeros(SIZE, np.int16)]
    ]
    for group in (made[:3], made[3:]):
        assert len({one.crop_vox for one in group}) == 1
        assert len({one.volume.image.tobytes() for one in group}) == 1
        assert len({one.volume.affine.tobytes() for one in group}) == 1
    assert made[0].crop_vox == ((0, 20), (0, 21), (4, 30))  # R: k; A: 23 - i; S: 29 - j


def test_whole_numbers_of_a_byte_are_kept_as_they_are():
    values = two_blobs()
    image = np.random.default_rng(0).integers(0, 256, SIZE)
    kept = prepare_case(raw(values, PIR, image), target(spacing_mm=None)).volume
    assert kept.image.dtype == np.uint8
    # To RAS: (i, j, k) -> (k, -i, -j).
    np.testing.assert_array_equal(kept.image[..., 0], image.transpose(2, 0, 1)[:, ::-1, ::-1])
    np.testing.assert_array_equal(kept.label, values.transpose(2, 0, 1)[:, ::-1, ::-1])
    np.testing.assert_allclose(kept.affine[:3, 3], [10, 50 - 2 * 23, -20 - 29])
    assert (
        prepare_case(raw(values, PIR, image), target(spacing_mm=None, keep_integers=False)).volume.image.dtype == "f4"
    )
    for other in (image - 1, image + 0.5, image + 1):
        assert prepare_case(raw(values, PIR, other), target(spacing_mm=None)).volume.image.dtype == np.float32


def test_a_spacing_that_is_right_is_not_interpolated():
    image = np.random.default_rng(0).integers(0, 256, SIZE)
    volume = prepare_case(raw(two_blobs(), PIR, image), target(spacing_mm=(1.5001, 2.0, 0.9999))).volume
    assert volume.image.dtype == np.uint8
    assert volume.spacing_mm == (1.5, 2.0, 1.0)


def test_a_grid_keeps_the_centre():
    grid = Grid.of((10, 7, 5), (1.0, 2.0, 3.0), (1.5, 2.0, 0.7))
    assert grid.size == (7, 7, 21)  # 10 / 1.5 = 6.7, untouched, 15 / 0.7 = 21.4
    assert grid.spacing_mm == (1.5, 2.0, 0.7)
    middle = grid.to_old_voxels() @ [3, 3, 10, 1]
    np.testing.assert_allclose(middle[:3], [4.5, 3, 2])
    assert not grid.is_identity
    assert Grid.of((10, 7, 5), (1.0, 2.0, 3.0), None).is_identity


def test_what_crop_and_resampling_take_from_a_mask_is_said():
    image = np.zeros(SIZE)
    image[10:23, 1:-1, 1:-1] = 7
    made = prepare_case(raw(two_blobs(), PIR, image), target(crop="foreground", spacing_mm=None))
    assert made.warnings == ("the crop cut off 288 voxels of the mask; take --crop=none or a larger --crop_margin_mm.",)
    assert not (made.volume.label == 1).any()
    values = two_blobs()
    values[values == 2] = 0
    values[20, 20, 15] = 2
    coarse = prepare_case(raw(values, PIR), target(spacing_mm=(3.0, 3.0, 3.0)))
    assert coarse.warnings == ("resampling left nothing of class 2; take a finer --spacing_mm.",)


def test_a_box_is_cut_where_it_says():
    made = prepare_case(raw(two_blobs(), PIR), target(crop="foreground", spacing_mm=None))
    assert made.crop_vox == ((2, 16), (3, 21), (12, 27))  # k; 23 - i; 29 - j
    whole = prepare_case(raw(two_blobs(), PIR), target(spacing_mm=None)).volume
    np.testing.assert_array_equal(made.volume.label, whole.label[slices(made.crop_vox)])
