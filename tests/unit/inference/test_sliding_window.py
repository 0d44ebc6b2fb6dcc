"""Whole-scan prediction with predictors whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from semisam_tf.inference.sliding_window import predict_probs, predict_whole


def _image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _plus_one(windows: np.ndarray) -> np.ndarray:
    return windows + 1


@pytest.mark.parametrize("blend", ["gaussian", "uniform"])
@pytest.mark.parametrize(
    ("shape", "window", "overlap", "window_batch"),
    [
        ((16, 16, 16, 1), (16, 16, 16), 0.5, 1),  # one window
        ((20, 17, 33, 2), (16, 16, 16), 0.5, 4),  # does not divide
        ((20, 17, 33, 1), (16, 16, 16), 0.0, 3),  # no overlap asked for
        ((5, 7, 3, 1), (8, 8, 8), 0.25, 1),  # smaller than the window on every side
        ((40, 6, 9, 3), (16, 8, 4), 0.75, 5),  # smaller on one side only
        ((1, 1, 1, 1), (2, 2, 2), 0.5, 1),  # a single voxel
    ],
)
def test_plus_one_over_a_table_of_shapes(shape, window, overlap, window_batch, blend):
    image = _image(*shape)
    probs = predict_probs(_plus_one, image, window, overlap, blend, window_batch)
    assert probs.shape == shape
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs, image + 1, atol=1e-5)


def test_windows_come_in_batches_of_the_windows_size_and_padding_is_zero():
    seen = []

    def remember(windows: np.ndarray) -> np.ndarray:
        seen.append(windows)
        return windows

    predict_probs(remember, np.ones((12, 4, 2, 1), np.float32), (4, 4, 4), overlap=0.0, window_batch=2)
    assert [batch.shape for batch in seen] == [(2, 4, 4, 4, 1), (1, 4, 4, 4, 1)]
    np.testing.assert_array_equal(seen[0][0, 0, 0, :, 0], [0, 1, 1, 0])


def test_a_whole_scan_is_one_window_whose_last_voxels_are_repeated():
    image, seen, told = _image(20, 16, 5, 2), [], []

    def remember(windows: np.ndarray) -> np.ndarray:
        seen.append(windows)
        return windows + 1

    probs = predict_whole(remember, image, on_window=lambda done, of: told.append((done, of)))
    np.testing.assert_allclose(probs, image + 1, atol=1e-6)
    assert [windows.shape for windows in seen] == [(1, 32, 16, 16, 2)]
    assert told == [(1, 1)]
    np.testing.assert_array_equal(seen[0][0, 25, 3, 9], image[19, 3, 4])


def test_a_scan_longer_than_a_window_may_be_takes_several():
    image, seen = _image(70, 16, 16, 1), []

    def remember(windows: np.ndarray) -> np.ndarray:
        seen.append(windows.shape[1:4])
        return windows + 1

    np.testing.assert_allclose(predict_whole(remember, image, most=32), image + 1, atol=1e-5)
    assert set(seen) == {(32, 16, 16)}
    assert len(seen) == 3


def test_uniform_overlap_is_the_plain_mean():
    # Windows 0..3 and 2..5 answer 0 and 1: the voxels that both see get one half.
    answers = iter([0.0, 1.0])

    def constant(windows: np.ndarray) -> np.ndarray:
        return np.full((*windows.shape[:4], 1), next(answers), np.float32)

    probs = predict_probs(constant, np.zeros((6, 4, 4, 1), np.float32), (4, 4, 4), 0.5, "uniform")
    np.testing.assert_allclose(probs[:, 0, 0, 0], [0, 0, 0.5, 0.5, 1, 1])


def test_gaussian_overlap_trusts_the_window_whose_middle_is_nearer():
    answers = iter([0.0, 1.0])

    def constant(windows: np.ndarray) -> np.ndarray:
        return np.full((*windows.shape[:4], 1), next(answers), np.float32)

    # Windows 0..7 and 4..11. Looked at through the middle, where the weights are above their floor.
    probs = predict_probs(constant, np.zeros((12, 8, 8, 1), np.float32), (8, 8, 8), 0.5, "gaussian")[:, 3, 3, 0]
    np.testing.assert_array_equal(probs[:4], 0.0)
    assert 0 < probs[4] < probs[5] < 0.5 < probs[6] < probs[7] < 1
    np.testing.assert_allclose(probs, 1 - probs[::-1], atol=1e-6)


def test_classes_still_sum_to_one():
    def two_classes(windows: np.ndarray) -> np.ndarray:
        share = 1 / (1 + np.exp(-windows))
        return np.concatenate([share, 1 - share], axis=-1)

    probs = predict_probs(two_classes, _image(20, 18, 9, 1), (8, 8, 8))
    np.testing.assert_allclose(probs.sum(axis=-1), 1.0, atol=1e-6)


def test_what_does_not_fit_is_named():
    image = _image(8, 8, 8, 1)
    with pytest.raises(ValueError, match=r"image\.shape=\(8, 8, 8\)"):
        predict_probs(_plus_one, image[..., 0], (8, 8, 8))
    with pytest.raises(ValueError, match="Received: blend='max'"):
        predict_probs(_plus_one, image, (8, 8, 8), blend="max")
    with pytest.raises(ValueError, match="Received: window_batch=0"):
        predict_probs(_plus_one, image, (8, 8, 8), window_batch=0)
    with pytest.raises(ValueError, match=r"Received: predict\(\.\.\.\)\.shape=\(1, 4, 8, 8, 1\)"):
        predict_probs(lambda windows: windows[:, ::2], image, (8, 8, 8))
    with pytest.raises(ValueError, match="overlap=1"):
        predict_probs(_plus_one, image, (8, 8, 8), overlap=1.0)
