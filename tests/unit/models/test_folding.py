"""A network without batch norm that computes what the one with it does."""

import numpy as np
import pytest

from semisam_tf.models.folding import folded_into
from semisam_tf.models.registry import NETWORKS, build_network


def with_statistics(name):
    """A network whose running statistics, scales and offsets are none of them what they start as."""
    model = build_network(name, filters=2, normalisation="batch", seed=1)
    rng = np.random.default_rng(0)
    for variable in model.variables:
        kind = variable.path.rsplit("/", 1)[-1]
        if kind in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 2.0, variable.shape))
        elif kind in ("beta", "moving_mean"):
            variable.assign(rng.normal(size=variable.shape))
    return model


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_folded_network_predicts_the_same(name):
    source = with_statistics(name)
    target = build_network(name, filters=2, normalisation="none", seed=2)
    image = np.random.default_rng(1).normal(size=(1, 32, 16, 16, 1)).astype(np.float32)
    expected = source(image, training=False).numpy()
    assert np.abs(target(image, training=False).numpy() - expected).max() > 0.1
    folded = folded_into(target, source)(image, training=False).numpy()
    np.testing.assert_allclose(folded, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_another_network_is_refused():
    with pytest.raises(ValueError, match="the same 30 convolutions"):
        folded_into(build_network("unet3d", filters=2, normalisation="none"), with_statistics("vnet"))
