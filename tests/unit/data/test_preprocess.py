"""Normalisation and grids, with numbers worked by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semisam_tf.data.preprocess import Preprocessing
from semisam_tf.data.volumes import Volume


def volume(size: tuple[int, int, int], spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Volume:
    image = np.random.default_rng(0).normal(size=(*size, 1)).astype(np.float32)
    return Volume("case", image, None, spacing_mm, np.diag([*spacing_mm, 1.0]))


def test_z_score_by_hand() -> None:
    image = np.array([1, 2, 3, 4], np.float32).reshape(4, 1, 1, 1)
    got = Preprocessing(0, 100).normalise(image).ravel()
    np.testing.assert_allclose(got, np.array([-1.5, -0.5, 0.5, 1.5]) / np.sqrt(1.25), rtol=1e-6)


def test_percentiles_clip_by_hand() -> None:
    # 0..100 and a far outlier: the 10th and 90th percentile of 101 equidistant values are 10 and 90.
    image = np.arange(101, dtype=np.float32).reshape(101, 1, 1, 1)
    got = Preprocessing(10, 90).normalise(image).ravel()
    clipped = np.clip(np.arange(101.0), 10, 90)
    np.testing.assert_allclose(got, (clipped - 50) / clipped.std(), atol=1e-6)


def test_channels_are_normalised_apart() -> None:
    image = np.random.default_rng(0).normal(size=(8, 8, 8, 2)).astype(np.float32)
    both = Preprocessing().normalise((image * [1, 1000] + [0, -7]).astype(np.float32))
    np.testing.assert_allclose(both[..., :1], Preprocessing().normalise(image[..., :1]), atol=1e-6)
    np.testing.assert_allclose(both[..., 1:], Preprocessing().normalise(image[..., 1:]), atol=1e-4)


@given(st.floats(0.01, 1000), st.floats(-1000, 1000), st.integers(0, 2**32 - 1))
def test_units_of_the_scanner_do_not_matter(scale: float, shift: float, seed: int) -> None:
    image = np.random.default_rng(seed).normal(size=(6, 6, 6, 1))
    plain = Preprocessing().normalise(image.astype(np.float32))
    # A large shift costs float32 digits of the image itself.
    tolerance = 1e-4 + 1e-6 * abs(shift) / scale
    np.testing.assert_allclose(
        Preprocessing().normalise((scale * image + shift).astype(np.float32)), plain, atol=tolerance
    )
    assert abs(plain.mean()) < 1e-5
    assert abs(plain.std() - 1) < 1e-5


@pytest.mark.parametrize("value", [0.0, 0.1, -3e5])
def test_a_constant_image_becomes_zeros(value: float) -> None:
    image = np.full((7, 5, 3, 1), value, np.float32)
    np.testing.assert_array_equal(Preprocessing().normalise(image), 0)
    image[0, 0, 0] = 1e6  # one hot pixel among 105 is clipped away as well
    np.testing.assert_array_equal(Preprocessing(5, 95).normalise(image), 0)


def test_training_grid_size_spacing_and_voxel_centres() -> None:
    before = volume((20, 10, 6), (0.5, 1.0, 3.0))
    after = Preprocessing(training_spacing_mm=(1.0, 1.0, 1.5)).to_training_grid(before, 2)
    assert after.size == (10, 10, 12)
    assert after.spacing_mm == (1.0, 1.0, 1.5)
    # The first voxel of x covers the old voxels 0 and 1: its centre is at 0.5 old voxels, 0.25 mm.
    # The first of z is the lower half of the old first voxel: -0.25 old voxels, -0.75 mm.
    np.testing.assert_allclose(after.affine @ (0, 0, 0, 1), (0.25, 0.0, -0.75, 1.0))
    np.testing.assert_allclose(after.affine @ (9, 9, 11, 1), (0.25 + 9, 9.0, -0.75 + 11 * 1.5, 1.0))


def test_normalising_comes_before_resampling() -> None:
    before = volume((16, 16, 16))
    after = Preprocessing(training_spacing_mm=(2.0, 2.0, 2.0)).to_training_grid(before, 2)
    # White noise loses power when it is smoothed down; z-scoring afterwards would restore a deviation of 1.
    assert after.image.std() < 0.6


def test_a_linear_ramp_is_resampled_to_itself() -> None:
    ramp = np.arange(16, dtype=np.float32).reshape(16, 1, 1, 1) * np.ones((1, 4, 4, 1), np.float32)
    before = Volume("case", ramp, None, (1.0, 1.0, 1.0), np.eye(4))
    after = Preprocessing(0, 100, training_spacing_mm=(2.0, 1.0, 1.0)).to_training_grid(before, 2)
    where = after.affine[0, 0] * np.arange(8) + after.affine[0, 3]
    np.testing.assert_allclose(after.image[1:-1, 0, 0, 0], (where[1:-1] - ramp.mean()) / ramp.std(), atol=1e-5)


def test_own_grid_is_left_alone() -> None:
    before = volume((5, 4, 3), (0.7, 0.8, 0.9))
    for spacing in (None, (0.7, 0.8, 0.9)):
        after = Preprocessing(training_spacing_mm=spacing).to_training_grid(before, 2)
        np.testing.assert_array_equal(after.image, Preprocessing().normalise(before.image))
        assert after.spacing_mm == before.spacing_mm
        np.testing.assert_array_equal(after.affine, before.affine)


def test_labels_take_the_class_with_the_largest_share() -> None:
    label = np.zeros((8, 4, 4), np.uint8)
    label[3:6] = 2  # halved: old voxels 2,3 | 4,5, with the triangle's tails
    label[6:] = 1
    before = Volume("case", np.zeros((8, 4, 4, 1), np.float32), label, (1.0, 1.0, 1.0), np.eye(4))
    after = Preprocessing(training_spacing_mm=(2.0, 1.0, 1.0)).to_training_grid(before, 3).label
    assert after is not None
    assert after.dtype == np.uint8
    # New voxel 1 (triangle 1 3 3 1 over old voxels 1..4): class 2 has 3 + 1 of 8, a tie, which background wins.
    np.testing.assert_array_equal(after, np.array([0, 0, 2, 1], np.uint8).reshape(4, 1, 1) * np.ones((1, 4, 4), int))


def test_labels_survive_a_trip_up_the_grid() -> None:
    label = np.zeros((6, 6, 6), np.uint8)
    label[2:4, 2:4, 2:4] = 1
    before = Volume("case", np.zeros((6, 6, 6, 1), np.float32), label, (2.0, 2.0, 2.0), np.eye(4))
    after = Preprocessing(training_spacing_mm=(1.0, 1.0, 1.0)).to_training_grid(before, 2).label
    assert after is not None
    # A block of 2^3 voxels covers 4^3 of half the size; linear interpolation rounds its 8 corners and 24 edges' voxels.
    assert after[5:7, 4:8, 5:7].all()
    assert after[:4].sum() == after[8:].sum() == 0
    assert 32 <= after.sum() <= 64


def test_label_values_without_a_class_are_refused() -> None:
    before = Volume("p7", np.zeros((2, 2, 2, 1), np.float32), np.full((2, 2, 2), 2, np.uint8), (1, 1, 1), np.eye(4))
    assert Preprocessing().to_training_grid(before, 3).label is not None
    with pytest.raises(ValueError, match=r"n_classes=2.*'p7'.*\[2\]"):
        Preprocessing().to_training_grid(before, 2)


@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.integers(1, 9)] * 3), st.integers(0, 2**32 - 1))
def test_probs_stay_probs_on_the_way_back(small: tuple[int, int, int], own: tuple[int, int, int], seed: int) -> None:
    probs = np.random.default_rng(seed).dirichlet([0.3, 0.3, 0.3], small).astype(np.float32)
    back = Preprocessing().probs_to_own_grid(probs, own)
    assert back.shape == (*own, 3)
    assert back.dtype == np.float32
    np.testing.assert_allclose(back.sum(axis=-1), 1, atol=1e-5)
    assert back.min() >= probs.min() - 1e-6


def test_settings_survive_json() -> None:
    for settings in (Preprocessing(), Preprocessing(1, 99, (1.25, 1.25, 2.0))):
        assert Preprocessing.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@pytest.mark.parametrize(
    "values", [(-1, 50, None), (50, 50, None), (0, 101, None), (1, 99, (1, 1)), (1, 99, (1, 1, 0))]
)
def test_impossible_settings_are_refused(values: tuple) -> None:
    with pytest.raises(ValueError, match="Expected"):
        Preprocessing(*values)
