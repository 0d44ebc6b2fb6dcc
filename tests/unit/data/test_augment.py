"""Spatial transforms against NumPy's own flips and turns, and against positions worked by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from semisam_tf import geometry
from semisam_tf.data.augment import (
    AUGMENT_PRESETS,
    AUGMENTATIONS,
    AugmentConfig,
    SpatialTransform,
    augment_config,
    bspline_matrix,
    rotation_matrix,
)

NONE = AugmentConfig()
ALL_SPATIAL = AugmentConfig(
    flip="xyz", rotate90=True, rotation_deg=20, scale=0.3, elastic_vox=2, elastic_spacing_vox=4, elastic_probability=0.5
)
sizes = st.tuples(*[st.integers(1, 9)] * 3)


def noise(size: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).normal(size=size).astype(np.float32)


def whole(size: tuple[int, int, int], **parts: object) -> SpatialTransform:
    """A transform that reads the whole scan."""
    return SpatialTransform(size, size, (0, 0, 0), **parts)  # type: ignore[arg-type]


@given(sizes, sizes, st.integers(0, 2**32 - 1))
def test_a_plain_crop_is_a_slice_of_the_padded_scan(
    size: tuple[int, int, int], patch: tuple[int, int, int], seed: int
) -> None:
    array = noise(size)
    transform = SpatialTransform.sample(np.random.default_rng(seed), size, patch, NONE)
    padded, undo = geometry.pad_to(array, patch)
    start = [s + u.start for s, u in zip(transform.start, undo, strict=True)]
    assert all(0 <= s <= n - p for s, n, p in zip(start, padded.shape, patch, strict=True))
    expected = padded[tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))]
    np.testing.assert_array_equal(transform.apply(array, order=1), expected)


def test_crops_reach_every_place_evenly() -> None:
    rng = np.random.default_rng(0)
    starts = [SpatialTransform.sample(rng, (6, 4, 3), (4, 4, 4), NONE).start for _ in range(600)]
    counts = np.bincount([s[0] for s in starts], minlength=3)
    assert counts.sum() == 600
    assert np.all(abs(counts - 200) < 50)
    assert {s[1:] for s in starts} == {(0, 0)}


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize(
    "flips", [(False, False, False), (True, False, False), (False, True, True), (True, True, True)]
)
def test_turns_then_flips_as_numpy(turns: int, flips: tuple[bool, bool, bool]) -> None:
    array = noise((4, 6, 5))
    expected = np.flip(np.rot90(array, turns), tuple(a for a in range(3) if flips[a]))
    patch_size = expected.shape
    transform = SpatialTransform((4, 6, 5), patch_size, (0, 0, 0), turns, flips)
    np.testing.assert_array_equal(transform.apply(array, order=1), expected)
    back = np.rot90(np.flip(transform.apply(array, order=0), tuple(a for a in range(3) if flips[a])), -turns)
    np.testing.assert_array_equal(back, array)


@given(sizes, sizes, st.integers(0, 3), st.tuples(*[st.booleans()] * 3), st.sampled_from([0, 1]), st.integers(0, 99))
def test_interpolating_and_indexing_agree(
    size: tuple[int, int, int],
    patch: tuple[int, int, int],
    turns: int,
    flips: tuple[bool, bool, bool],
    order: int,
    seed: int,
) -> None:
    config = dataclasses.replace(NONE, rotate90=True, flip="xyz")
    exact = SpatialTransform.sample(np.random.default_rng(seed), size, patch, config)
    exact = dataclasses.replace(exact, flips=flips)
    affine = dataclasses.replace(exact, affine=np.eye(3))
    elastic = dataclasses.replace(exact, elastic=np.zeros((3, 4, 5, 6), np.float32))
    array = noise((*size, 2))
    assert exact.exact
    assert not affine.exact
    expected = exact.apply(array, order, fill=-7.0)
    np.testing.assert_allclose(affine.apply(array, order, fill=-7.0), expected, atol=1e-5)
    np.testing.assert_allclose(elastic.apply(array, order, fill=-7.0), expected, atol=1e-5)


def test_a_quarter_turn_of_the_affine_part_is_a_quarter_turn() -> None:
    array = noise((5, 5, 3))
    quarter = np.round(rotation_matrix(0, 0, np.pi / 2))
    # The patch is read at R @ o: its voxel +x comes from the scan's +y, so the content turns from +y to +x.
    got = whole((5, 5, 3), affine=quarter).apply(array, order=1)
    np.testing.assert_allclose(got, np.rot90(array, -1), atol=1e-6)
    assert got[4, 2, 1] == array[2, 4, 1]


def test_rotation_by_thirty_degrees_moves_a_blob_to_where_it_belongs() -> None:
    size = (41, 41, 5)
    grid = np.stack(np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in size), indexing="ij"))
    blob = np.exp(-((grid[0] - 12) ** 2 + grid[1] ** 2) / 8).astype(np.float32)  # 12 voxels from the centre along x
    patch = whole(size, affine=rotation_matrix(0, 0, np.deg2rad(30))).apply(blob, order=1)
    centre = [(grid[axis] * patch).sum() / patch.sum() for axis in range(3)]
    # Read at R(30) o = (12, 0), so o = R(-30) (12, 0).
    np.testing.assert_allclose(centre, (12 * np.cos(np.pi / 6), -12 * np.sin(np.pi / 6), 0), atol=0.02)


def test_scaling_reads_further_out() -> None:
    ramp = np.arange(21, dtype=np.float32).reshape(21, 1, 1) * np.ones((1, 3, 3), np.float32)
    patch = SpatialTransform((21, 3, 3), (11, 3, 3), (5, 0, 0), affine=np.diag([1.5, 1, 1])).apply(ramp, order=1)
    np.testing.assert_allclose(patch[:, 1, 1], 10 + 1.5 * np.arange(-5, 6), atol=1e-5)


def test_rotations_are_rigid_in_millimetres() -> None:
    config = AugmentConfig(rotation_deg=40)
    spacing_mm = (0.7, 1.1, 5.0)
    metric = np.diag(np.square(spacing_mm))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        affine = SpatialTransform.sample(rng, (9, 9, 9), (4, 4, 4), config, spacing_mm=spacing_mm).affine
        assert affine is not None
        np.testing.assert_allclose(affine.T @ metric @ affine, metric, atol=1e-9)
        assert not np.allclose(affine, np.eye(3), atol=0.01)


def test_strengths_bound_what_is_drawn() -> None:
    config = AugmentConfig(rotation_deg=10, scale=0.25)
    for seed in range(200):
        affine = SpatialTransform.sample(np.random.default_rng(seed), (9, 9, 9), (4, 4, 4), config).affine
        assert affine is not None
        scale = np.linalg.norm(affine, axis=0)  # affine = rotation times diagonal
        assert np.all((scale > 1 / 1.25 - 1e-9) & (scale < 1.25 + 1e-9))
        angle = np.arccos((np.trace(affine / scale) - 1) / 2)
        assert angle <= np.deg2rad(10) * np.sqrt(3) + 1e-9


def test_a_constant_displacement_is_a_shift() -> None:
    array = noise((8, 7, 6))
    displacement = np.zeros((3, 4, 4, 4), np.float32)
    displacement[1] = 2
    patch = SpatialTransform((8, 7, 6), (4, 3, 3), (1, 1, 1), elastic=displacement).apply(array, order=1)
    np.testing.assert_allclose(patch, array[1:5, 3:6, 1:4], atol=1e-5)


@given(st.integers(0, 2**32 - 1))
def test_image_label_and_weight_get_the_same_transform(seed: int) -> None:
    size, patch = (12, 14, 9), (8, 6, 11)
    transform = SpatialTransform.sample(np.random.default_rng(seed), size, patch, ALL_SPATIAL)
    image = noise((*size, 1))
    label = (image[..., 0] > 0).astype(np.uint8)
    got = transform.apply(label, order=0)
    assert got.shape == patch
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, transform.apply(image, order=0, fill=-1)[..., 0] > 0)
    # Linear interpolation of the label stays within half a voxel of the nearest one: never from 1 to below 0.125.
    soft = transform.apply(label.astype(np.float32), order=1)
    inside = transform.apply(np.ones(size, np.float32), order=1) > 0
    assert np.all(soft[got == 1] >= 0.125 - 1e-5)
    assert np.all(soft[~inside] == 0)


def test_outside_the_scan_the_weight_is_zero() -> None:
    config = AugmentConfig(rotation_deg=30)
    transform = SpatialTransform.sample(np.random.default_rng(1), (6, 6, 6), (12, 12, 12), config)
    weight = transform.apply(np.ones((6, 6, 6), np.float32), order=1, fill=0.0)
    assert weight.max() == 1
    assert weight[0, 0, 0] == weight[-1, -1, -1] == 0
    assert weight.mean() == pytest.approx(6**3 / 12**3, rel=0.02)


@given(st.integers(0, 2**32 - 1), st.tuples(*[st.integers(0, 19)] * 3))
def test_the_wanted_voxel_is_in_the_patch_and_in_its_middle_where_it_fits(
    seed: int, centre: tuple[int, int, int]
) -> None:
    size, patch = (20, 20, 20), (7, 7, 7)
    array = np.zeros(size, np.uint8)
    array[centre] = 1
    config = AugmentConfig(flip="xyz", rotate90=True)
    transform = SpatialTransform.sample(np.random.default_rng(seed), size, patch, config, centre_vox=centre)
    got = transform.apply(array, order=0)
    assert got.sum() == 1
    if all(3 <= c < 17 for c in centre):
        assert got[3, 3, 3] == 1


def test_without_crop_the_patch_is_the_middle() -> None:
    config = AugmentConfig(crop=False)
    starts = {
        SpatialTransform.sample(np.random.default_rng(s), (11, 10, 4), (5, 4, 8), config, centre_vox=(0, 0, 0)).start
        for s in range(10)
    }
    assert starts == {(3, 3, -2)}


def test_the_same_generator_gives_the_same_transform_and_another_one_another() -> None:
    array = noise((12, 12, 12))
    patches = [
        SpatialTransform.sample(np.random.default_rng(s), (12, 12, 12), (8, 8, 8), ALL_SPATIAL).apply(array, 1)
        for s in (3, 3, 4)
    ]
    np.testing.assert_array_equal(patches[0], patches[1])
    assert not np.allclose(patches[0], patches[2])


def test_arrays_of_another_grid_and_other_orders_are_refused() -> None:
    transform = whole((4, 4, 4))
    with pytest.raises(ValueError, match=r"grid \(4, 4, 4\).*\(4, 4, 5\)"):
        transform.apply(np.zeros((4, 4, 5)), order=1)
    with pytest.raises(ValueError, match="order=3"):
        transform.apply(np.zeros((4, 4, 4)), order=3)


@given(st.integers(1, 60), st.integers(4, 12))
def test_bspline_rows_are_shares_and_linear_control_points_give_a_line(size: int, controls: int) -> None:
    matrix = bspline_matrix(size, controls)
    assert matrix.min() >= 0
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-6)
    # A spline through equidistant values is the line through them: control i sits at i - 1.
    expected = (np.arange(size) + 0.5) / size * (controls - 3)
    np.testing.assert_allclose(matrix @ (np.arange(controls) - 1.0), expected, atol=1e-5)


def test_presets() -> None:
    assert AUGMENT_PRESETS["none"] == NONE
    assert set(AUGMENT_PRESETS) == {"none", "paper", "strong"}
    paper = {
        f.name for f in dataclasses.fields(NONE) if getattr(AUGMENT_PRESETS["paper"], f.name) != getattr(NONE, f.name)
    }
    assert paper == {"flip", "rotate90"}
    assert NONE.crop


def test_augmentations_are_switched_by_name() -> None:
    assert augment_config("strong") == AUGMENT_PRESETS["strong"]
    got = augment_config("strong", on="elastic, gamma=0.7,flip=xy", off="blur,affine")
    expected = dataclasses.replace(
        AUGMENT_PRESETS["strong"], elastic_vox=3.0, gamma=0.7, flip="xy", blur=0.0, rotation_deg=0.0, scale=0.0
    )
    assert got == expected
    everything_off = augment_config("strong", off=",".join(set(AUGMENTATIONS) - {"crop"}))
    for field in dataclasses.fields(everything_off):
        if not field.name.endswith(("_probability", "_spacing_vox")) and field.name != "crop":
            assert not getattr(everything_off, field.name), field.name
    assert augment_config("paper", off="crop").crop is False


@pytest.mark.parametrize(
    ("preset", "on", "off", "message"),
    [
        ("best", "", "", "none, paper, strong"),
        ("none", "wobble", "", "elastic.*wobble"),
        ("none", "", "wobble", "--augment_off.*wobble"),
        ("none", "gamma", "gamma", "named once"),
        ("none", "affine", "rotation", "named once"),
        ("none", "gamma,gamma=1", "", "named once"),
        ("none", "gamma=much", "", "gamma=NUMBER"),
        ("none", "gamma=-1", "", "gamma=-1"),
        ("none", "rotate90=2", "", "no single strength"),
        ("none", "flip=xw", "", "xyz"),
    ],
)
def test_wrong_names_and_strengths_are_refused(preset: str, on: str, off: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        augment_config(preset, on, off)


@pytest.mark.parametrize(
    "wrong", [{"noise_probability": 1.5}, {"scale": -0.1}, {"flip": "xx"}, {"elastic_spacing_vox": 1}]
)
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AugmentConfig(**wrong)


class Sliced:
    """An array that can be sliced and nothing else, as one in a file, and remembers what was asked for."""

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape, self.ndim, self.dtype = array, array.shape, array.ndim, array.dtype
        self.voxels_read: list[int] = []

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        part = self.array[key]
        self.voxels_read.append(int(np.prod(part.shape[:3])))
        return part


@pytest.mark.parametrize("trailing", [(), (2,)])
@pytest.mark.parametrize("parts", [{}, {"rotation_deg": 15, "scale": 0.2}, {"elastic_vox": 2}])
def test_a_patch_reads_its_own_box_alone(parts: dict, trailing: tuple[int, ...]) -> None:
    config = AugmentConfig(flip="xyz", rotate90=True, affine_probability=1, elastic_probability=1, **parts)
    rng, array = np.random.default_rng(1), noise((60, 50, 40, *trailing))
    for _ in range(5):
        transform = SpatialTransform.sample(rng, (60, 50, 40), (10, 12, 8), config)
        sliced = Sliced(array)
        np.testing.assert_array_equal(transform.apply(sliced, order=1), transform.apply(array, order=1))
        (voxels,) = sliced.voxels_read
        # Turned and stretched the box is larger than the patch, but far from the scan's 120,000 voxels.
        assert 10 * 12 * 8 <= voxels <= (10 * 12 * 8 if transform.exact else 12_000)


@given(sizes, sizes, st.integers(0, 2**32 - 1))
def test_a_patch_of_its_box_is_the_patch_of_the_whole_scan(
    size: tuple[int, int, int], patch: tuple[int, int, int], seed: int
) -> None:
    array = noise(size)
    config = dataclasses.replace(ALL_SPATIAL, affine_probability=1)
    transform = SpatialTransform.sample(np.random.default_rng(seed), size, patch, config)
    # The definition in the class's docstring, one voxel of fill around the scan, without a box.
    matrix, offset = transform._matrix_and_offset()
    if transform.elastic is None:
        ramps = np.stack(np.meshgrid(*map(np.arange, patch), indexing="ij"))
        where = np.tensordot(matrix, ramps, axes=1) + offset[:, None, None, None]
    else:
        where = transform._coordinates(matrix, offset).astype(np.float64)
    padded = np.pad(array, 1, constant_values=7.0)
    expected = ndimage.map_coordinates(padded, where + 1, order=1, mode="constant", cval=7.0, prefilter=False)
    np.testing.assert_allclose(transform.apply(array, order=1, fill=7.0), expected, atol=2e-5)
