"""Resampling, padding and windows: by hand, and by properties over many sizes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semisam_tf import geometry

SIZES = st.tuples(*[st.integers(1, 24)] * 3)


def test_doubling_interpolates_between_centres():
    expected = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    np.testing.assert_allclose(geometry.resampling_matrix(2, 4), expected, atol=1e-7)


def test_halving_averages_over_a_wider_triangle():
    # Output centre 0.5 of the input: distances 0.5, 0.5, 1.5 over the triangle's half width 2, then made to sum to 1.
    weights = np.array([0.75, 0.75, 0.25, 0])
    np.testing.assert_allclose(geometry.resampling_matrix(4, 2)[0], weights / weights.sum(), rtol=1e-6)


@given(st.integers(1, 40), st.integers(1, 40))
def test_rows_sum_to_one_and_are_mirror_images(size_in, size_out):
    matrix = geometry.resampling_matrix(size_in, size_out)
    assert matrix.shape == (size_out, size_in)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(matrix, matrix[::-1, ::-1], atol=1e-5)


@given(st.integers(1, 40))
def test_same_size_is_the_identity(size):
    np.testing.assert_array_equal(geometry.resampling_matrix(size, size), np.eye(size))


@given(st.integers(2, 20), st.integers(1, 4))
def test_a_ramp_stays_a_ramp_within(size_in, factor):
    size_out = size_in * factor
    ramp = (np.arange(size_in) + 0.5) / size_in
    resampled = geometry.resampling_matrix(size_in, size_out) @ ramp
    expected = (np.arange(size_out) + 0.5) / size_out
    # At the ends linear interpolation has nothing to go by beyond the last voxel.
    inside = (expected > 0.5 / size_in) & (expected < 1 - 0.5 / size_in)
    np.testing.assert_allclose(resampled[inside], expected[inside], atol=1e-5)


def test_resample_acts_on_each_axis_alone_and_leaves_channels():
    array = np.random.default_rng(0).normal(size=(4, 6, 5, 2)).astype(np.float32)
    result = geometry.resample(array, (8, 3, 5))
    assert result.shape == (8, 3, 5, 2)
    x, y = geometry.resampling_matrix(4, 8), geometry.resampling_matrix(6, 3)
    np.testing.assert_allclose(result, np.einsum("ax,by,xyzc->abzc", x, y, array), rtol=1e-4, atol=1e-6)


def test_resampled_size_keeps_the_extent():
    assert geometry.resampled_size((176, 132, 88), (0.625, 0.625, 0.625), (1.25, 1.25, 1.25)) == (88, 66, 44)
    assert geometry.resampled_size((1, 10, 10), (0.1, 1, 2), (5, 2, 1)) == (1, 5, 20)


@given(SIZES, SIZES)
def test_padding_is_undone(size, minimum):
    array = np.random.default_rng(0).normal(size=(*size, 2))
    padded, undo = geometry.pad_to(array, minimum)
    assert padded.shape[:3] == tuple(map(max, size, minimum))
    np.testing.assert_array_equal(padded[undo], array)
    assert np.count_nonzero(padded) == array.size


@given(SIZES, SIZES, st.floats(0, 0.95))
def test_windows_cover_every_voxel_and_stay_within(size, window, overlap):
    window = tuple(map(min, size, window))
    seen = np.zeros(size, int)
    for x, y, z in geometry.window_starts(size, window, overlap):
        part = seen[x : x + window[0], y : y + window[1], z : z + window[2]]
        assert part.shape == window
        part += 1
    assert seen.min() >= 1


def test_windows_overlap_by_what_was_asked():
    starts = sorted({x for x, _, _ in geometry.window_starts((20, 4, 4), (8, 4, 4), 0.5)})
    assert starts == [0, 4, 8, 12]


def test_window_that_does_not_fit():
    with pytest.raises(ValueError, match=r"pad the volume first.*window=\(8, 8, 8\), size=\(9, 7, 9\)"):
        geometry.window_starts((9, 7, 9), (8, 8, 8), 0.5)


def test_gaussian_window_is_symmetric_and_never_zero():
    weights = geometry.gaussian_window((9, 16, 5))
    assert weights.shape == (9, 16, 5)
    assert weights.dtype == np.float32
    assert weights.max() == weights[4, 7, 2] == weights[4, 8, 2] == 1
    assert weights.min() == np.float32(1e-3)
    np.testing.assert_allclose(weights, weights[::-1, ::-1, ::-1], rtol=1e-6)
    # One sigma, an eighth of the side, off the middle along z: 5/8 of a voxel; the nearest voxel is 1 off.
    assert weights[4, 7, 3] == pytest.approx(np.exp(-0.5 * (8 / 5) ** 2), rel=1e-4)
