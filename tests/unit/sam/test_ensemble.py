"""Several answers become one: values worked by hand, and on the double."""

import numpy as np
import pytest

from semisam_tf.sam.branch import SamBranch
from semisam_tf.sam.ensemble import SamEnsemble
from semisam_tf.sam.fusion import fuse
from semisam_tf.sam.session import SamSession
from semisam_tf.sam.target import SamTarget
from semisam_tf.sam.trust import OrganPrior

SCORES = {"prompts": 1.0, "slices_prompted": 1.0, "weighted_share": 1.0, "mean_weight": 1.0, "predicted_iou": 1.0}


class Said:
    """A branch that says the same of each voxel of a scan: share of the organ and weight by voxel."""

    def __init__(self, shares, weights):
        self.shares, self.weights = np.array(shares, np.float32), np.array(weights, np.float32)

    def target(self, image, class_probs, key, rng, spacing_mm):
        soft = np.stack([1 - self.shares, self.shares], axis=-1).reshape(class_probs.shape)
        hard = np.eye(2, dtype=np.float32)[(soft[..., 1] > 0.5).astype(int)]
        return SamTarget(hard, self.weights.reshape(class_probs.shape[:3]), SCORES | {"agreement": 0.0}, soft)


def asked(branches, trusts=(), prior=None, predicted=(1, 1, 1, 1)):
    predicted = np.eye(2, dtype=np.float32)[np.array(predicted)].reshape(4, 1, 1, 2)
    return SamEnsemble(branches, trusts, prior).target(
        np.zeros((4, 1, 1, 1), np.float32), predicted, spacing_mm=(1, 1, 1)
    )


def test_mean_is_weighted_by_trust():
    target = asked([Said([0.9, 0.9, 0.9, 0.9], [1, 1, 1, 0]), Said([0.3, 0.3, 0.3, 0.3], [1, 0.5, 0, 0])])
    np.testing.assert_allclose(target.probs[:, 0, 0, 1], [0.6, 0.7, 0.9, 0], rtol=1e-6)
    np.testing.assert_allclose(target.probs.sum(axis=-1), 1, rtol=1e-6)
    # The mean of those that say something.
    np.testing.assert_allclose(target.weight[:, 0, 0], [1, 0.75, 1, 0])
    assert target.scores["weighted_share"] == 0.75
    assert target.scores["agreement"] == 1.0


def test_agreement_lowers_the_weight_where_answers_differ():
    target = asked([Said([0.9, 0.9, 0.9, 0.9], [1] * 4), Said([0.1, 0.8, 0.1, 0.8], [1, 1, 0, 1])], ("agreement",))
    np.testing.assert_allclose(target.weight[:, 0, 0], [0, 1, 1, 1])


def test_prior_weighs_the_whole_scan():
    label = np.array([0, 1, 1, 0], np.uint8).reshape(4, 1, 1)
    prior = OrganPrior.of([label], [(1.0, 1.0, 1.0)], 2)
    likely = asked([Said([0.1, 0.9, 0.9, 0.1], [1] * 4)], ("prior",), prior)
    assert likely.weight.max() == 1.0
    twice = asked([Said([0.9, 0.9, 0.9, 0.9], [1] * 4)], ("prior",), prior)
    assert twice.weight.max() == pytest.approx(np.exp(-0.5 * (np.log(2) / 0.33) ** 2))
    # Where SAM says nothing the prediction's size counts.
    unasked = asked([Said([0.9, 0.9, 0.9, 0.9], [1, 1, 0, 0])], ("prior",), prior, predicted=(0, 0, 1, 1))
    assert unasked.weight.max() == pytest.approx(twice.weight.max())
    with pytest.raises(ValueError, match="OrganPrior"):
        SamEnsemble([Said([0] * 4, [0] * 4)], ("prior",))


def test_margins_and_models_of_real_branches(session: SamSession, tmp_path, write_double):
    write_double(tmp_path / "other")
    other = SamSession(tmp_path / "other")
    mask = np.zeros((16, 16, 2), int)
    mask[6:10, 6:10] = 1
    image = np.ones((16, 16, 2, 1), np.float32)
    image[-1, -1] = 0
    branches = [SamBranch(session, margin_vox=0), SamBranch(session, margin_vox=2), SamBranch(other, margin_vox=0)]
    ensemble = SamEnsemble(branches, ("agreement",))
    target = ensemble.target(image, np.eye(2, dtype=np.float32)[mask])
    # Within the box all three agree, in the margin's ring one of three is outvoted: 2/3 of the votes, trust 1/3.
    assert target.weight[8, 8, 0] == pytest.approx(0.75)
    assert target.weight[5, 8, 0] == pytest.approx(0.25)
    # Logits -0.5, 1.5 and -0.5 there.
    assert target.probs[5, 8, 0, 1] == pytest.approx((2 * 0.37754 + 0.81757) / 3, abs=1e-4)
    # Each session is counted once.
    assert ensemble.counts()["prompts_decoded"] == 6


def test_fusions():
    soft = np.array([[0.2, 0.8], [0.6, 0.4], [0.9, 0.1]], np.float32).reshape(3, 1, 1, 2)
    said = SamTarget(soft, np.array([1, 0.5, 0], np.float32).reshape(3, 1, 1), {}, soft)
    predicted = np.array([[0.4, 0.6], [0.0, 1.0], [0.3, 0.7]], np.float32).reshape(3, 1, 1, 2)
    probs, weight = fuse(said, predicted, "sam")
    np.testing.assert_array_equal(probs[:, 0, 0], [[0, 1], [1, 0], [1, 0]])
    np.testing.assert_array_equal(weight, said.weight)
    probs, weight = fuse(said, predicted, "mean")
    # Half and half; a third for SAM of weight 0.5; the network alone.
    np.testing.assert_allclose(probs[:, 0, 0, 1], [0.7, 2 / 3 * 1.0 + 1 / 3 * 0.4, 0.7], rtol=1e-6)
    np.testing.assert_array_equal(weight, 1)
    smooth, _ = fuse(said, predicted, "mean", 1.0)
    np.testing.assert_allclose(smooth.sum(axis=-1), 1, rtol=1e-6)
    assert np.ptp(smooth[..., 1]) < np.ptp(probs[..., 1])
