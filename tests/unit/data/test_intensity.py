"""Each intensity change alone, with its closed form or its defining property."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semisam_tf.data.augment_config import AugmentConfig
from semisam_tf.data.intensity import augment_intensity, change_gamma, match_quantiles, multiply_field, scan_quantiles


def patch(channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(12, 10, 8, channels)).astype(np.float32)


def only(name: str, strength: float) -> AugmentConfig:
    values: dict[str, Any] = {name: strength, f"{name}_probability": 1.0}
    return AugmentConfig(**values)


def test_without_strength_nothing_changes() -> None:
    image = patch(2)
    got = augment_intensity(np.random.default_rng(0), image, AugmentConfig())
    np.testing.assert_array_equal(got, image)


@pytest.mark.parametrize("name", ["gamma", "contrast", "brightness", "noise", "blur", "bias_field"])
def test_each_changes_the_patch_repeatably_and_leaves_the_input_alone(name: str) -> None:
    image = patch(2)
    before = image.copy()
    first, second, other = (augment_intensity(np.random.default_rng(s), image, only(name, 0.5)) for s in (1, 1, 2))
    assert first.dtype == np.float32
    assert first.shape == image.shape
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(image, before)
    assert abs(first - image).max() > 1e-3
    assert abs(first - other).max() > 1e-3
    # Channels have a scale of their own: each gets its own draw.
    same = np.repeat(image[..., :1], 2, axis=-1)
    got = augment_intensity(np.random.default_rng(1), same, only(name, 0.5))
    assert abs(got[..., 0] - got[..., 1]).max() > 1e-3


@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_probability_is_how_often(probability: float) -> None:
    image = np.zeros((2, 2, 2, 1), np.float32)
    config = AugmentConfig(brightness=1, brightness_probability=probability)
    changed = sum(bool(augment_intensity(np.random.default_rng(s), image, config).any()) for s in range(400))
    assert abs(changed - 400 * probability) <= 40 * (probability > 0)


def test_gamma_by_hand() -> None:
    values = np.array([-1.0, 0.0, 1.0, 3.0], np.float32).reshape(4, 1, 1)
    # Shares of the range 0, 1/4, 1/2, 1; squared 0, 1/16, 1/4, 1; back on -1..3.
    np.testing.assert_allclose(change_gamma(values, 2.0).ravel(), [-1.0, -0.75, 0.0, 3.0], atol=1e-6)
    np.testing.assert_array_equal(change_gamma(np.full((2, 2, 2), 5, np.float32), 2.0), 5)


@given(st.floats(0.3, 3.0), st.integers(0, 2**32 - 1))
def test_gamma_keeps_order_and_range(exponent: float, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(3, 3, 3)).astype(np.float32)
    got = change_gamma(values, exponent)
    assert np.all(np.diff(got.ravel()[np.argsort(values.ravel())]) >= -1e-6)
    np.testing.assert_allclose((got.min(), got.max()), (values.min(), values.max()), atol=1e-5)


def test_contrast_keeps_the_mean_and_brightness_the_deviation() -> None:
    image = patch()
    got = augment_intensity(np.random.default_rng(3), image, only("contrast", 0.5))
    assert got.mean() == pytest.approx(image.mean(), abs=1e-5)
    factor = got.std() / image.std()
    assert np.exp(-0.5) <= factor <= np.exp(0.5)
    np.testing.assert_allclose((got - image.mean()), factor * (image - image.mean()), atol=1e-4)
    shift = augment_intensity(np.random.default_rng(3), image, only("brightness", 0.5)) - image
    assert np.ptp(shift) < 1e-5
    assert 0 < abs(shift.mean()) <= 0.5


def test_noise_is_white_and_of_bounded_strength() -> None:
    image = np.zeros((30, 30, 30, 1), np.float32)
    for seed in range(5):
        got = augment_intensity(np.random.default_rng(seed), image, only("noise", 0.4))[..., 0]
        assert 0 < got.std() <= 0.41
        assert abs(got.mean()) < 5 * got.std() / np.sqrt(got.size)
        assert abs(np.corrcoef(got[1:].ravel(), got[:-1].ravel())[0, 1]) < 0.05


def test_blur_keeps_a_constant_and_smooths_noise() -> None:
    config = only("blur", 1.5)
    constant = np.full((6, 6, 6, 1), 3.0, np.float32)
    np.testing.assert_allclose(augment_intensity(np.random.default_rng(0), constant, config), 3, atol=1e-5)
    assert augment_intensity(np.random.default_rng(0), patch(), config).std() < patch().std()


def test_the_field_multiplies_what_is_above_the_darkest_voxel() -> None:
    rng = np.random.default_rng(0)
    coefficients = rng.uniform(-0.4, 0.4, (4, 4, 4))
    first, second = (rng.uniform(1, 5, (9, 8, 7)).astype(np.float32) for _ in range(2))
    first[0, 0, 0] = second[0, 0, 0] = 0
    with np.errstate(invalid="ignore"):
        fields = [multiply_field(p, coefficients) / p for p in (first, second)]
    np.testing.assert_allclose(fields[0].ravel()[1:], fields[1].ravel()[1:], rtol=1e-5)  # the same whatever the image
    assert fields[0].ravel()[1:].min() > 0
    np.testing.assert_allclose(
        multiply_field(first - 2, coefficients), multiply_field(first, coefficients) - 2, atol=1e-5
    )


def test_the_field_of_one_linear_term_by_hand() -> None:
    coefficients = np.zeros((4, 4, 4))
    coefficients[0, 1, 0] = 0.6
    coefficients[0, 0, 0] = 9.0  # a constant factor is contrast, not a field: ignored
    ones = np.ones((2, 4, 3), np.float32)
    ones[0, 0, 0] = 0
    got = multiply_field(ones, coefficients)
    # 19 terms have a degree of 1 to 3; the linear Legendre polynomial is y in [-1, 1] at voxel centres.
    expected = np.exp(0.6 / np.sqrt(19 / 3) * np.array([-0.75, -0.25, 0.25, 0.75]))
    np.testing.assert_allclose(got[1], np.repeat(expected[:, None], 3, axis=1), rtol=1e-5)


def test_quantiles_of_another_scan_are_taken_over_by_share() -> None:
    own, other = np.linspace(0, 1, 64, dtype=np.float32), np.linspace(10, 12, 64, dtype=np.float32)
    patch = own.reshape(4, 4, 4, 1)
    quantiles = [scan_quantiles(values.reshape(4, 4, 4, 1)) for values in (own, other)]
    whole = match_quantiles(patch, *quantiles, 1.0)
    np.testing.assert_allclose(whole.ravel(), other, atol=1e-4)
    np.testing.assert_array_equal(match_quantiles(patch, *quantiles, 0.0), patch)
    np.testing.assert_allclose(match_quantiles(patch, *quantiles, 0.5), (patch + whole) / 2, atol=1e-5)
