"""Who is pasted into whom, and where boxes lie."""

import numpy as np
import pytest
import tensorflow as tf

from semisam_tf.semi import copy_paste

SIZE = (12, 9, 6)


def key(step):
    return tf.constant([0, step], tf.int64)


def test_boxes_have_two_thirds_of_each_side_and_touch_both_ends_of_each_axis():
    outside = np.concatenate([copy_paste.outside_boxes(key(step), 8, SIZE).numpy() for step in range(30)])
    inside = ~outside
    first, last = np.full(3, 99), np.zeros(3, int)
    for box in inside:
        corners = [np.flatnonzero(box.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
        assert [len(c) for c in corners] == [8, 6, 4]
        assert box.sum() == 8 * 6 * 4  # one box, without holes
        first, last = np.minimum(first, [c[0] for c in corners]), np.maximum(last, [c[-1] for c in corners])
    assert list(first) == [0, 0, 0]
    assert list(last) == [11, 8, 5]


def test_boxes_are_a_function_of_the_key_and_differ_between_items():
    one, again, other = (copy_paste.outside_boxes(key(step), 4, SIZE).numpy() for step in (3, 3, 4))
    np.testing.assert_array_equal(one, again)
    assert np.any(one != other)
    assert np.any(one[0] != one[1])


@pytest.mark.parametrize(("labelled", "batch"), [(1, 2), (2, 4), (1, 4), (3, 4), (2, 5), (4, 8)])
def test_every_crop_surrounds_a_box_of_the_other_kind(labelled, batch):
    around, pasted = copy_paste.partners(labelled, batch)
    assert around == list(range(batch))
    assert all((a < labelled) != (p < labelled) and 0 <= p < batch for a, p in zip(around, pasted, strict=True))
    if 1 < labelled == batch - labelled:
        assert sorted(pasted) == around
        assert not set(zip(around, pasted, strict=True)) & set(zip(pasted, around, strict=True))


@pytest.mark.parametrize(("labelled", "batch"), [(1, 4), (2, 4), (3, 4), (2, 5)])
def test_pre_training_mixes_labelled_crops_with_others_of_them(labelled, batch):
    around, pasted = copy_paste.labelled_partners(labelled, batch)
    assert set(around) == set(pasted) == set(range(labelled))
    assert len(around) == batch
    assert labelled == 1 or all(a != p for a, p in zip(around, pasted, strict=True))


def test_a_mixture_is_one_crop_around_the_box_and_the_other_in_it():
    outside = np.ones((2, *SIZE), bool)
    outside[0, 2:5] = False
    outside[1] = False
    mixtures = copy_paste.Mixtures(tf.constant([0, 1]), tf.constant([1, 0]), tf.constant(outside))
    values = np.stack([np.full((*SIZE, 3), 5.0), np.full((*SIZE, 3), 7.0)])
    mixed = mixtures.of(tf.constant(values)).numpy()
    assert np.all(mixed[0, 2:5] == 7.0)
    assert np.all(mixed[0, :2] == 5.0)
    assert np.all(mixed[0, 5:] == 5.0)
    assert np.all(mixed[1] == 5.0)
    np.testing.assert_array_equal(mixtures.of(tf.constant(values[..., 0])), mixed[..., 0])
