"""The adversary: its size, and what it looks at."""

import numpy as np
import tensorflow as tf

from semisam_tf.models.discriminator import build_discriminator
from semisam_tf.models.registry import trainable_parameters


def test_size_as_published():
    # FC3DDiscriminator of SSL4MIS: 64 filters, two classes, one channel.
    assert trainable_parameters(build_discriminator()) == 11_024_386


def test_crops_of_any_size_give_two_logits_an_item():
    model = build_discriminator(input_channels=2, n_classes=3, filters=2)
    for size in ((16, 16, 16), (48, 32, 16)):
        assert model([tf.zeros([3, *size, 3]), tf.zeros([3, *size, 2])]).shape == (3, 2)


def test_prediction_and_image_both_matter_and_items_do_not_touch():
    rng = np.random.default_rng(0)
    probs, image = (rng.normal(size=(2, 16, 16, 16, c)).astype(np.float32) for c in (2, 1))
    model = build_discriminator(filters=2)
    plain = model([probs, image]).numpy()
    for position in (0, 1):
        changed = [probs.copy(), image.copy()]
        changed[position][0] *= 2.0
        other = model(changed).numpy()
        assert np.abs(other[0] - plain[0]).max() > 1e-4
        np.testing.assert_allclose(other[1], plain[1], atol=1e-6)


def test_dropout_is_for_training_only():
    model = build_discriminator(filters=2)
    values = [tf.ones([1, 16, 16, 16, 2]), tf.ones([1, 16, 16, 16, 1])]
    np.testing.assert_array_equal(model(values, training=False), model(values, training=False))
    assert np.any(model(values, training=True).numpy() != model(values, training=True).numpy())
