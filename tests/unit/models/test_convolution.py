"""Initial distributions are PyTorch's; seeds are explicit."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from semisam_tf.models.convolution import convolution, seeds


def _built(kind: str, kernel: str = "torch_default", seed: int = 0, size: int = 2):
    layer = convolution("c", 16, 32, size, seeds(seed), kind, kernel)
    layer.build((None, None, None, None, 16))
    return layer


def test_seeds_are_a_pure_function_and_differ_from_each_other():
    first = list(itertools.islice(seeds(7), 50))
    assert first == list(itertools.islice(seeds(7), 50))
    assert len(set(first) | set(itertools.islice(seeds(8), 50))) == 100


@pytest.mark.parametrize(("kind", "fan_in"), [("same", 16 * 8), ("down", 16 * 8), ("up", 32 * 8)])
def test_kernel_and_bias_are_uniform_within_one_over_the_root_of_fan_in(kind: str, fan_in: int):
    layer = _built(kind)
    bound = fan_in**-0.5
    kernel, bias = layer.kernel.numpy(), layer.bias.numpy()
    assert np.abs(kernel).max() <= bound
    assert np.abs(bias).max() <= bound
    # A uniform variable's standard deviation is bound / sqrt(3); 4096 of them know it within a few percent.
    assert kernel.std() == pytest.approx(bound / 3**0.5, rel=0.04)
    assert bias.std() == pytest.approx(bound / 3**0.5, rel=0.4)


def test_kaiming_normal_kernel():
    kernel = _built("same", "kaiming_normal", size=3).kernel.numpy()
    wanted = (2 / (16 * 27)) ** 0.5
    assert kernel.std() == pytest.approx(wanted, rel=0.03)
    assert np.abs(kernel).max() > 2.2 * wanted  # not truncated at two standard deviations


def test_equal_seeds_give_equal_kernels_and_others_do_not():
    np.testing.assert_array_equal(_built("same", seed=3).kernel, _built("same", seed=3).kernel)
    assert not np.array_equal(_built("same", seed=3).kernel, _built("same", seed=4).kernel)


def test_down_and_up_by_hand():
    down, up = convolution("d", 1, 1, 2, seeds(0), "down"), convolution("u", 1, 1, 2, seeds(0), "up")
    x = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2, 1)
    down.build(x.shape)
    down.kernel.assign(np.arange(8, dtype=np.float32).reshape(2, 2, 2, 1, 1))
    down.bias.assign([0.5])
    np.testing.assert_allclose(down(x).numpy().ravel(), [sum(i * i for i in range(8)) + 0.5])
    up.build((1, 1, 1, 1, 1))
    up.kernel.assign(np.arange(8, dtype=np.float32).reshape(2, 2, 2, 1, 1))
    up.bias.assign([1.0])
    np.testing.assert_allclose(up(np.full((1, 1, 1, 1, 1), 2, np.float32)).numpy().ravel(), 2 * np.arange(8) + 1)


def test_halving_pads_both_ends_alike():
    layer = convolution("c", 1, 1, 4, seeds(0), "halve")
    layer.build((None, 6, 6, 6, 1))
    layer.set_weights([np.ones((4, 4, 4, 1, 1)), np.zeros(1)])
    out = layer(np.ones((1, 6, 6, 6, 1), np.float32)).numpy()[0, ..., 0]
    # Of the four voxels under the kernel one lies outside at either end.
    line = np.array([3.0, 4.0, 3.0])
    np.testing.assert_allclose(out, line[:, None, None] * line[:, None] * line)


def test_unknown_kinds_are_named():
    with pytest.raises(ValueError, match="Received: kind='sideways'"):
        convolution("c", 1, 1, 3, seeds(0), "sideways")
    with pytest.raises(ValueError, match="Received: kernel='zeros'"):
        convolution("c", 1, 1, 3, seeds(0), kernel="zeros")
