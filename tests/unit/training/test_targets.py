"""A kept target says the same class of each voxel as the probabilities it was made of."""

import numpy as np

from semisam_tf.training.targets import Target, as_bytes, mask_of, opened, packed


def test_the_mask_is_the_likeliest_class():
    probs = np.random.default_rng(0).dirichlet(np.ones(3), size=(5, 6, 7)).astype(np.float32)
    one_hot = np.eye(3, dtype=np.float32)[probs.argmax(axis=-1)]
    for made_of in (probs, one_hot):
        mask = mask_of(as_bytes(made_of, np.ones((5, 6, 7), np.float32)).probs)
        assert mask.dtype == np.uint8
        np.testing.assert_array_equal(mask, probs.argmax(axis=-1))


def test_packing_loses_nothing_and_takes_little():
    """A ball with a soft rim, of two classes: as the targets of real scans are."""
    size = (90, 70, 40)
    distance = np.linalg.norm(np.indices(size) - np.array([20, 15, 10])[:, None, None, None], axis=0)
    organ = np.clip(9 - distance, 0, 1) * 255
    target = Target(np.stack([organ, 255 - organ], axis=-1).astype(np.uint8), np.full(size, 180, np.uint8))
    content = packed(target)
    with opened(content) as again:
        for a, b in zip(again, target, strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            np.testing.assert_array_equal(a[()], b)
    assert content.dtype == np.uint8
    assert content.nbytes < (target.probs.nbytes + target.weight.nbytes) / 10


def test_where_nothing_was_said_it_is_background():
    np.testing.assert_array_equal(mask_of(np.zeros((2, 2, 2, 1), np.uint8)), np.zeros((2, 2, 2), np.uint8))
