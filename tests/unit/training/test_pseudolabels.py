"""Targets as files: what is written is what a batch sees, and what does not fit is refused by name."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from semisam_tf.data.augment import AugmentConfig
from semisam_tf.data.batches import TwoStream
from semisam_tf.data.volumes import Volume
from semisam_tf.options import OptionError
from semisam_tf.training import pseudolabels
from semisam_tf.training.pseudolabels import (
    StoredTargets,
    read_target,
    require_same_making,
    target_path,
    target_region,
    targets_learned_from,
    write_target,
)
from semisam_tf.training.targets import Target, cut

SIZE = (20, 18, 16)


def volume(case_id, label=None):
    image = np.zeros((*SIZE, 1), np.float32)
    image[4:12, 5:9, 3:8] = 1.0
    return Volume(case_id, image, label, (1, 1, 1), np.eye(4))


def write(folder, case_id="u/1", n_classes=2):
    """Probability 0.8 where the image is 1, weight 0.4 in the lower half of x."""
    share = 0.8 * volume(case_id).image[..., 0]
    probs = np.zeros((*SIZE, n_classes), np.float32)
    probs[..., 0], probs[..., 1] = 1 - share, share
    weight = np.zeros(SIZE, np.float32)
    weight[:10] = 0.4
    write_target(folder, case_id, probs, weight, {"agreement": 0.5})
    return probs, weight


def test_a_batch_sees_the_target_that_lies_on_its_crop(tmp_path):
    write(tmp_path)
    targets = StoredTargets(tmp_path, [volume("u/1")], 2, start_step=1)
    labelled = volume("l", np.ones(SIZE, np.uint8))
    stream = TwoStream(
        [labelled], [volume("u/1")], 2, 1, (16, 16, 16), AugmentConfig(flip="xyz", rotate90=True), seed=1
    )
    for step in range(1, 6):
        batch = stream.batch(step)
        probs, weight = targets.targets(step, batch)
        np.testing.assert_allclose(probs[0, ..., 1], 0.8 * batch.images[1, ..., 0], atol=1 / 255)
        np.testing.assert_allclose(probs.sum(axis=-1), 1, rtol=1e-6)
        assert set(np.unique(weight)) == {np.float32(0), np.float32(0.4)}
    assert targets.targets(0, stream.batch(0))[1].max() == 0
    summary = targets.summary()
    assert summary["sam_calls"] == 0
    assert summary["mean_weight"] == pytest.approx(0.4, abs=1e-6)
    restored = StoredTargets(tmp_path, [volume("u/1")], 2)
    restored.restore(*targets.state())
    assert restored.summary() == summary


def test_targets_stay_in_their_files_and_are_cut_as_from_memory(tmp_path):
    write(tmp_path, n_classes=3)
    targets, unlabelled = StoredTargets(tmp_path, [volume("u/1")], 3), volume("u/1")
    assert not any(
        isinstance(value, (np.ndarray, Target, dict)) and name != "totals" for name, value in vars(targets).items()
    )
    config = AugmentConfig(flip="xyz", rotate90=True, rotation_deg=20, elastic_vox=2, elastic_probability=0.5)
    labelled = volume("l", np.ones(SIZE, np.uint8))
    stream = TwoStream([labelled], [unlabelled], 2, 1, (16, 16, 16), config, seed=1)
    kept, shown = read_target(tmp_path, unlabelled, 3), 0
    for step in range(6):
        batch = stream.batch(step)
        probs, weight = targets.targets(step, batch)
        expected_probs, expected_weight = cut(kept, batch.transforms[1])
        np.testing.assert_array_equal(probs[0], expected_probs)
        np.testing.assert_array_equal(weight[0], expected_weight)
        shown += int(np.count_nonzero(weight))
    assert shown > 1000
    ahead, totals = targets.with_targets(5, batch), targets.summary()
    assert targets.summary() == totals  # a batch that is made ahead may never be seen
    target_path(tmp_path, "u/1").write_bytes(b"overwritten")
    for found, expected in zip(targets.targets(5, ahead), (expected_probs, expected_weight), strict=True):
        np.testing.assert_array_equal(found[0], expected)
    assert targets.totals["voxels"] == 7 * 16**3
    with pytest.raises(ValueError, match=r"Expected a target that pseudolabel wrote in .*1\.h5"):
        targets.targets(6, batch)


def test_the_scores_are_kept(tmp_path):
    write(tmp_path)
    with h5py.File(target_path(tmp_path, "u/1")) as file:
        assert json.loads(file.attrs["scores"]) == {"agreement": 0.5}


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected a target for case 'u/1' at"):
        read_target(tmp_path, volume("u/1"), 2)
    write(tmp_path)
    with pytest.raises(ValueError, match=r"3 classes on the training grid \(20, 18, 16\)"):
        read_target(tmp_path, volume("u/1"), 3)
    path = target_path(tmp_path, "u/1")
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"Expected a target that pseudolabel wrote in .*1\.h5"):
        read_target(tmp_path, volume("u/1"), 2)


def test_a_damaged_region_or_making_names_its_file(tmp_path):
    write(tmp_path)
    with h5py.File(target_path(tmp_path, "u/1"), "r+") as file:
        file.attrs["region"] = '{"low": [0, 0'
    with pytest.raises(ValueError, match=r"Expected a target that pseudolabel wrote in .*1\.h5.*region"):
        target_region(tmp_path, "u/1")
    (tmp_path / "making.json").write_text("{", encoding="utf-8")
    with pytest.raises(OptionError, match=r"Expected JSON in .*making\.json"):
        targets_learned_from(tmp_path)


def test_of_two_that_begin_at_once_the_second_compares(tmp_path, monkeypatch):
    read = pseudolabels.making_of

    def slowly(folder):
        there = read(folder)
        time.sleep(0.2)  # long enough for the other to read, too, if it may
        return there

    monkeypatch.setattr(pseudolabels, "making_of", slowly)
    with ThreadPoolExecutor(2) as executor:
        began = [executor.submit(require_same_making, tmp_path, {"run": run, "learned_from": []}) for run in "ab"]
        refused = [isinstance(future.exception(), OptionError) for future in began]
    assert sorted(refused) == [False, True]
    assert read(tmp_path)["run"] == "ab"[refused.index(False)]


def test_what_targets_rest_on_is_compared_in_no_order(tmp_path):
    require_same_making(tmp_path, {"run": "r", "learned_from": ["b", "a"]})
    require_same_making(tmp_path, {"run": "r", "learned_from": ["a", "b"]})
    with pytest.raises(OptionError, match="learned_from"):
        require_same_making(tmp_path, {"run": "r", "learned_from": ["a", "c"]})
