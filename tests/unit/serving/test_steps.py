"""Each step of the graph against the NumPy of the Python pipeline."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from semisam_tf import geometry
from semisam_tf.config import WINDOW_BLENDS
from semisam_tf.data.preprocess import Preprocessing
from semisam_tf.inference.evaluation import large_pieces, largest_component
from semisam_tf.inference.region import PIECE_SHARE, box_around
from semisam_tf.inference.sliding_window import predict_probs
from semisam_tf.serving import components, normalising, region, resampling, windows

SIZES = st.tuples(*[st.integers(1, 9)] * 3)
MATRIX = tf.function(resampling.resampling_matrix, input_signature=[tf.TensorSpec([], tf.int32)] * 2, autograph=False)
LARGEST = tf.function(
    lambda mask: components.largest_component(mask, 3), input_signature=[tf.TensorSpec([None] * 3, tf.uint8)]
)

LARGE = tf.function(
    lambda mask: components.large_pieces(mask, 3), input_signature=[tf.TensorSpec([None] * 3, tf.uint8)]
)
BOX = tf.function(region.box_around)


@given(size=SIZES, share=st.floats(0, 0.4), seed=st.integers(0, 99))
def test_large_pieces_are_those_of_numpy(size, share, seed):
    rng = np.random.default_rng(seed)
    mask = rng.integers(1, 3, size).astype(np.uint8) * (rng.random(size) < share)
    np.testing.assert_array_equal(LARGE(tf.constant(mask)), large_pieces(mask, PIECE_SHARE))


@given(
    coarse=SIZES,
    size=st.tuples(*[st.integers(1, 40)] * 3),
    spacing_mm=st.tuples(*[st.sampled_from([0.1, 0.3, 0.625, 1.0, 1.7, 3.3])] * 3),
    margin_mm=st.sampled_from([0.0, 0.3, 1.0, 2.5, 1e9]),
    seed=st.integers(0, 99),
)
def test_box_is_that_of_python(coarse, size, spacing_mm, margin_mm, seed):
    found = np.random.default_rng(seed).random(coarse) < 0.1
    found[tuple(n // 2 for n in coarse)] = True
    low, high = BOX(
        tf.constant(found), tf.constant(size), tf.constant(spacing_mm, tf.float64), tf.constant(margin_mm, tf.float64)
    )
    expected = box_around(found, size, spacing_mm, margin_mm)
    assert (tuple(low.numpy()), tuple(high.numpy())) == (expected.low, expected.high)


@given(size_in=st.integers(1, 40), size_out=st.integers(1, 40))
def test_matrix_is_that_of_geometry(size_in, size_out):
    np.testing.assert_allclose(
        MATRIX(size_in, size_out), geometry.resampling_matrix(size_in, size_out), rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("size", [(5, 6, 7), (10, 3, 7), (2, 12, 1)])
def test_resampling_keeps_axes_and_channels_apart(size):
    volume = np.random.default_rng(0).normal(size=(5, 6, 7, 2)).astype(np.float32)
    found = resampling.resample(tf.constant(volume.transpose(3, 0, 1, 2)), tf.constant(size))
    expected = geometry.resample(volume, size).transpose(3, 0, 1, 2)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@given(n=st.integers(1, 50), percent=st.floats(0, 100), seed=st.integers(0, 9))
def test_percentile_is_numpys(n, percent, seed):
    values = np.random.default_rng(seed).normal(size=n).astype(np.float32).round(1)
    (expected,) = np.percentile(values, (percent,))
    assert float(normalising.percentile(tf.constant(values), percent)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("percentiles", [(0.5, 99.5), (0, 100), (10, 60)])
def test_normalising_is_that_of_preprocess(percentiles):
    image = np.random.default_rng(1).gamma(2, 300, size=(9, 8, 7, 3)).astype(np.float32)
    image[..., 1] = 1e6 + image[..., 1]
    image[..., 2] = 5
    expected = Preprocessing(*percentiles).normalise(image).transpose(3, 0, 1, 2)
    np.testing.assert_allclose(normalising.normalise(tf.constant(image), *percentiles), expected, rtol=0, atol=1e-5)
    assert not expected[2].any()


@given(n=st.integers(0, 60), window=st.integers(1, 20), overlap=st.sampled_from([0, 0.25, 0.5, 0.9]))
def test_starts_are_those_of_geometry(n, window, overlap):
    expected = [x for x, _, _ in geometry.window_starts((window + n, 1, 1), (window, 1, 1), overlap)]
    assert windows.window_starts(tf.constant(window + n), window, overlap).numpy().tolist() == expected


@settings(max_examples=12)
@given(size=SIZES, overlap=st.sampled_from([0.0, 0.5]), blend=st.sampled_from(WINDOW_BLENDS))
def test_windows_are_placed_and_blended_as_in_python(size, overlap, blend):
    """A network that says where in its window a voxel lies: a wrong corner or weight shows."""
    window = (4, 3, 2)
    place = np.linspace(-1, 1, 24, dtype=np.float32).reshape(1, *window, 1)

    def network(x):
        return tf.concat([x + place, x * 2, place + 0 * x], axis=-1)

    image = np.random.default_rng(2).normal(size=(*size, 1)).astype(np.float32)
    expected = predict_probs(lambda x: tf.nn.softmax(network(x)).numpy(), image, window, overlap, blend)
    found = windows.predict_probs(
        network, tf.ensure_shape(tf.constant(image), [None, None, None, 1]), window, 3, overlap, blend
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@given(size=SIZES, share=st.sampled_from([0, 0.1, 0.25, 0.5, 1]), seed=st.integers(0, 99))
def test_largest_component_is_that_of_evaluation(size, share, seed):
    rng = np.random.default_rng(seed)
    mask = ((rng.random(size) < share) * (1 + (rng.random(size) < 0.3))).astype(np.uint8)
    np.testing.assert_array_equal(LARGEST(mask), largest_component(mask))


def test_a_spiral_is_one_piece_and_of_equal_pieces_the_first_stays():
    mask = np.zeros((3, 41, 41), np.uint8)
    y, x, step = 0, 0, (0, 1)
    for length in (40, 40, 40, 38, 38, 36, 36, 34, 34, 32, 32, 30):
        for _ in range(length):
            mask[1, y, x] = 1
            y, x = y + step[0], x + step[1]
        step = (step[1], -step[0])
    np.testing.assert_array_equal(LARGEST(mask), largest_component(mask))
    twins = np.zeros((9, 9, 9), np.uint8)
    twins[1:3, 6, 6] = twins[7, 2:4, 1] = 1
    kept = LARGEST(twins).numpy()
    assert kept[1, 6, 6] == 1
    assert kept.sum() == 2
