"""How far SAM's answers are believed: values worked by hand."""

import numpy as np
import pytest

from semisam_tf.sam.trust import OrganPrior, parse, view_trust, voxel_agreement


def square(start, stop, size=(1, 8, 8)):
    mask = np.zeros(size, np.uint8)
    mask[:, start:stop, start:stop] = 1
    return mask


def slices(*squares):
    """Masks of slices, one above the other, and their regions."""
    stack = np.concatenate(squares)
    return stack, {i: (slice(i, i + 1), slice(None), slice(None)) for i in range(len(stack))}


def test_names():
    assert parse("one") == ()
    assert parse("iou, prior") == ("iou", "prior")
    for wrong in ("", "faith", "one,iou"):
        with pytest.raises(ValueError, match="separated by commas"):
            parse(wrong)


def test_views_multiply_what_is_named():
    said, regions = slices(square(2, 6), square(2, 6))
    predicted, _ = slices(square(2, 6), square(2, 4))
    ious = {0: [0.5, 1.5], 1: [0.5]}
    assert view_trust((), ious, regions, said, predicted) == {0: 1.0, 1: 1.0}
    # 1.5 counts as 1.
    assert view_trust(("iou",), ious, regions, said, predicted) == {0: 0.75, 1: 0.5}
    # 16 voxels against 4 within them: Dice 8 / 20.
    assert view_trust(("prediction",), ious, regions, said, predicted) == {0: 1.0, 1: pytest.approx(0.4)}
    both = view_trust(("iou", "prediction"), ious, regions, said, predicted)
    assert both == {0: 0.75, 1: pytest.approx(0.2)}


def test_continuity_is_the_better_of_two_neighbours():
    said, regions = slices(square(2, 6), square(2, 6), square(6, 8), square(0, 1))
    views = {0: [1.0], 1: [1.0], 2: [1.0], 3: [1.0]}
    trust = view_trust(("continuity",), views, regions, said, said)
    assert trust == {0: 1.0, 1: 1.0, 2: 0.0, 3: 0.0}
    # The neighbours are those that were asked about, however far; one alone has none.
    assert view_trust(("continuity",), {0: [1.0], 3: [1.0]}, regions, said, said)[0] == 0.0
    assert view_trust(("continuity",), {3: [1.0]}, regions, said, said) == {3: 1.0}


def test_agreement_counts_only_those_that_say_something():
    masks = np.eye(2, dtype=np.float32)[np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 0, 0, 0]])].reshape(3, 1, 1, 4, 2)
    said = np.ones((3, 1, 1, 4), bool)
    said[2, 0, 0, 3] = False
    agreement = voxel_agreement(masks, said)
    # Votes 3 of 3; 2 of 3 for background; 3 of 3; 2 of the 2 that say something.
    np.testing.assert_allclose(agreement[0, 0], [1, 1 / 3, 1, 1], rtol=1e-6)
    assert voxel_agreement(masks, np.zeros_like(said)).max() == 0


def test_prior_knows_size_and_place():
    label = np.zeros((10, 10, 10), np.uint8)
    label[4:6, 4:6, 4:6] = 1
    prior = OrganPrior.of([label], [(1.0, 1.0, 2.0)], 2)
    assert prior.log_volume == pytest.approx([np.log(16.0)])
    np.testing.assert_allclose(prior.centre, [[0.5, 0.5, 0.5]])
    assert prior.trust(label, (1.0, 1.0, 2.0)) == 1.0
    # The same voxels are twice as large: log 2 is 2.1 of the least spread of 0.33.
    assert prior.trust(label, (2.0, 1.0, 2.0)) == pytest.approx(np.exp(-0.5 * (np.log(2) / 0.33) ** 2))
    # A tenth of the extent is one standard deviation.
    assert prior.trust(np.roll(label, 1, axis=2), (1.0, 1.0, 2.0)) == pytest.approx(np.exp(-0.5))
    assert prior.trust(np.zeros_like(label), (1.0, 1.0, 2.0)) == 0.0


def test_prior_needs_every_class():
    with pytest.raises(ValueError, match=r"none of class \[2\]"):
        OrganPrior.of([np.ones((2, 2, 2), np.uint8)], [(1.0, 1.0, 1.0)], 3)
