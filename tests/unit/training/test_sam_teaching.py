"""SAM's targets follow their scan through crop, flip and rotation, are made when due, and are zero before the start."""

import dataclasses
import logging

import numpy as np
import pytest

from semisam_tf.config import Config
from semisam_tf.data.augment import AugmentConfig
from semisam_tf.data.batches import TwoStream
from semisam_tf.data.volumes import Volume
from semisam_tf.sam.session import SamCallError
from semisam_tf.sam.target import SamTarget
from semisam_tf.training.sam_teaching import MOST_FAILURES, SamTeaching
from semisam_tf.training.targets import Target, opened

CONFIG = Config(sam_mode="cached", sam_dir="s", n_classes=3, sam_refresh_visits=2)
SIZE = (20, 18, 16)
SCORES = {"prompts": 1.0, "slices_prompted": 1.0, "agreement": 1.0, "weighted_share": 0.25, "mean_weight": 0.6}


class Session:
    """Counts as SamSession does."""

    def __init__(self):
        self.calls = 0

    def counts(self):
        return {"encoder_calls": self.calls, "decoder_calls": 0, "slices_encoded": self.calls, "prompts_decoded": 0}


class Branch:
    """Answers with the scan itself: mask = class painted into the image, weight = 0.6 where the image is not 0."""

    def __init__(self):
        self.session, self.keys, self.spacings = Session(), [], []
        self.broken = set()  # numbers of the calls that fail

    def target(self, image, class_probs, key=None, rng=None, spacing_mm=None):
        self.session.calls += 1
        if self.session.calls in self.broken:
            raise SamCallError("no memory")
        self.keys.append(key)
        self.spacings.append(spacing_mm)
        classes = image[..., 0].round().astype(int)
        probs = np.eye(3, dtype=np.float32)[classes]
        return SamTarget(probs, 0.6 * (classes > 0).astype(np.float32), SCORES, probs)

    def counts(self):
        return self.session.counts()


def volume(case_id, label):
    rng = np.random.default_rng(len(case_id))
    image = np.zeros((*SIZE, 1), np.float32)
    image[4:12, 5:9, 3:8] = 1.0
    image[6:15, 10:16, 6:14] = 2.0
    return Volume(case_id, image, rng.integers(0, 2, SIZE).astype(np.uint8) if label else None, (1, 1, 1), np.eye(4))


@pytest.fixture
def unlabelled():
    return [volume("b", False), volume("cc", False)]


@pytest.fixture
def stream(unlabelled):
    augment = AugmentConfig(flip="xyz", rotate90=True)
    return TwoStream([volume("a", True)], unlabelled, 3, 1, (16, 16, 16), augment, seed=3)


def teaching(config, unlabelled):
    def never(images):
        raise AssertionError("this model is not the one that prompts")

    crops = (lambda images: np.zeros((*images.shape[:4], 3), np.float32)) if config.sam_mode == "online" else never
    scans = (lambda image: np.zeros((*image.shape[:3], 3), np.float32)) if config.sam_mode == "cached" else never
    return SamTeaching(config, Branch(), crops, scans, unlabelled)


@pytest.mark.parametrize("mode", ["cached", "online"])
def test_target_lies_where_the_image_does(stream, unlabelled, mode):
    sam = teaching(dataclasses.replace(CONFIG, sam_mode=mode), unlabelled)
    for t in range(8):
        batch = stream.batch(t)
        probs, weight = sam.targets(t, batch)
        assert probs.shape == (2, 16, 16, 16, 3)
        # The image is its own answer, so any crop, flip or turn that the target missed would show.
        np.testing.assert_array_equal(probs.argmax(-1), batch.images[1:, ..., 0])
        np.testing.assert_allclose(weight, 0.6 * (batch.images[1:, ..., 0] > 0), rtol=1e-6)


@pytest.mark.parametrize("mode", ["cached", "online"])
def test_sam_is_told_the_spacing_of_what_it_sees(mode):
    scan = dataclasses.replace(volume("b", False), spacing_mm=(0.5, 1.0, 2.0))
    stream = TwoStream([volume("a", True)], [scan], 2, 1, (16, 16, 16), AugmentConfig(rotate90=True), seed=3)
    sam = teaching(dataclasses.replace(CONFIG, sam_mode=mode, sam_refresh_visits=1), [scan])
    batches = [stream.batch(t) for t in range(12)]
    for t, batch in enumerate(batches):
        sam.targets(t, batch)
    turned = [mode == "online" and batch.transforms[1].turns % 2 == 1 for batch in batches]
    assert sam.sam.spacings == [(1.0, 0.5, 2.0) if odd else (0.5, 1.0, 2.0) for odd in turned]
    assert any(turned) == (mode == "online")


def test_nothing_is_taught_before_the_start(stream, unlabelled):
    sam = teaching(dataclasses.replace(CONFIG, sam_start_step=5), unlabelled)
    probs, weight = sam.targets(4, stream.batch(4))
    assert probs.sum() == weight.sum() == 0
    assert sam.sam.keys == []
    assert sam.targets(5, stream.batch(5))[1].sum() > 0


def test_a_scan_is_asked_about_every_second_visit(stream, unlabelled):
    sam = teaching(CONFIG, unlabelled)
    for t in range(5):
        sam.targets(t, stream.batch(t))
    # Each batch visits both scans once: due at visits 0, 2 and 4.
    assert sorted(sam.sam.keys) == ["b"] * 3 + ["cc"] * 3
    assert sam.summary()["sam_calls"] == 6
    assert sam.summary()["targets"] == 6


@pytest.mark.parametrize(("steps", "warned"), [(6, True), (8, False)])
def test_targets_that_are_never_made_anew_are_said(unlabelled, caplog, steps, warned):
    # Two unlabelled items a step and two scans, so a visit a step: from step 4 on two of each scan, or four.
    config = dataclasses.replace(CONFIG, sam_start_step=4, max_steps=steps)
    with caplog.at_level(logging.WARNING):
        teaching(config, unlabelled)
    assert ("visited about 2 times from --sam_start_step=4 on" in caplog.text) == warned


@pytest.mark.parametrize("fusion", ["sam", "mean"])
def test_sams_part_is_counted_before_its_answer_is_averaged(stream, unlabelled, fusion):
    sam = teaching(dataclasses.replace(CONFIG, sam_fusion=fusion), unlabelled)
    for t in range(3):
        sam.targets(t, stream.batch(t))
    said = sam.summary()
    assert said["sam_share"] == pytest.approx(SCORES["weighted_share"])
    assert said["sam_weight"] == pytest.approx(SCORES["mean_weight"])
    # Averaged, the prediction is taught where SAM says nothing.
    assert (said["mean_weight"] == 1) == (fusion == "mean")


def test_without_sam_the_prediction_is_the_target(stream, unlabelled):
    """What a run with SAM is to be held against: the same targets, made as often, without SAM's part."""
    config = dataclasses.replace(CONFIG, sam_dir="", sam_fusion="mean")

    def half_sure(image):
        probs = np.zeros((*image.shape[:3], 3), np.float32)
        probs[..., 0] = probs[..., 1] = 0.5
        return probs

    sam = SamTeaching(config, None, None, half_sure, unlabelled)
    for t in range(3):
        batch = stream.batch(t)
        probs, weight = sam.targets(t, batch)
        inside = weight > 0
        np.testing.assert_allclose(probs[inside][:, 1], 127 / 255, atol=1e-6)
        assert probs[inside][:, 2].max() == 0
        assert (weight[inside] == 1).all()
    said = sam.summary()
    # At visits 0 and 2 of two scans.
    assert (said["targets"], said["sam_calls"], said["sam_share"], said["taught_share"] > 0.5) == (4, 0, 0, True)


def test_summary_counts_voxels_and_weight(stream, unlabelled):
    sam = teaching(CONFIG, unlabelled)
    weights = np.array([sam.targets(t, stream.batch(t))[1] for t in range(3)])
    assert 0 < sam.summary()["taught_share"] < 0.9
    assert sam.summary()["taught_share"] == pytest.approx(np.mean(weights > 0))
    assert sam.summary()["mean_weight"] == pytest.approx(weights[weights > 0].mean())


def test_restored_state_goes_on_as_the_old_one(stream, unlabelled):
    old, new = teaching(CONFIG, unlabelled), teaching(CONFIG, unlabelled)
    for t in range(3):
        old.targets(t, stream.batch(t))
    new.restore(*old.state())
    asked_before = len(old.sam.keys)
    for t in range(3, 6):
        batch = stream.batch(t)
        for a, b in zip(old.targets(t, batch), new.targets(t, batch), strict=True):
            np.testing.assert_array_equal(a, b)
    assert new.sam.keys == old.sam.keys[asked_before:]
    expected, received = old.summary(), new.summary()
    assert received.pop("duration_s") > 0
    expected.pop("duration_s")
    assert received == expected


@pytest.mark.parametrize("mode", ["cached", "online"])
def test_a_failed_call_costs_its_scan_the_weight_until_the_next_visit_and_nothing_else(
    mode, stream, unlabelled, caplog
):
    sam = teaching(dataclasses.replace(CONFIG, sam_mode=mode), unlabelled)
    sam.sam.broken = {2}  # of the first batch, the second unlabelled item
    batch = stream.batch(0)
    probs, weight = sam.targets(0, batch)
    np.testing.assert_allclose(weight[0], 0.6 * (batch.images[1, ..., 0] > 0), rtol=1e-6)
    assert probs[1].sum() == weight[1].sum() == 0
    assert f"SAM failed on {batch.case_ids[2]}" in caplog.text
    assert "no memory" in caplog.text
    restored = teaching(sam.config, unlabelled)
    restored.restore(*sam.state())
    for resumed in (sam, restored):
        weight = resumed.targets(1, stream.batch(1))[1]
        np.testing.assert_allclose(weight, 0.6 * (stream.batch(1).images[1:, ..., 0] > 0), rtol=1e-6)
        assert resumed.summary()["failed_targets"] == 1


def test_a_failed_refresh_forgets_the_old_target(stream, unlabelled):
    sam = teaching(CONFIG, unlabelled)
    sam.sam.broken = {3}  # visits 0 and 1 of both scans take two calls
    for t in range(2):
        assert sam.targets(t, stream.batch(t))[1][0].any()
    assert not sam.targets(2, stream.batch(2))[1][0].any()


def test_a_sam_that_only_fails_ends_the_run(stream, unlabelled):
    sam = teaching(CONFIG, unlabelled)
    sam.sam.broken = set(range(100))
    for t in range(MOST_FAILURES // 2 - 1):
        sam.targets(t, stream.batch(t))
    with pytest.raises(RuntimeError, match=f"in s\\..*{MOST_FAILURES} failures in a row.*no memory.*last checkpoint"):
        sam.targets(9, stream.batch(9))


def test_an_answer_between_failures_starts_the_count_anew(stream, unlabelled):
    sam = teaching(dataclasses.replace(CONFIG, sam_mode="online"), unlabelled)
    sam.sam.broken = set(range(100)) - {MOST_FAILURES, 2 * MOST_FAILURES}
    for t in range(MOST_FAILURES):
        sam.targets(t, stream.batch(t))
    assert sam.summary()["failed_targets"] == 2 * MOST_FAILURES - 2


def test_checkpoints_with_targets_as_they_are_are_taken(stream, unlabelled):
    old, new = teaching(CONFIG, unlabelled), teaching(CONFIG, unlabelled)
    old.targets(0, stream.batch(0))
    arrays, state = old.state()
    assert set(arrays) == {"packed/b", "packed/cc"}
    plain = {}
    for name, content in arrays.items():
        with opened(content) as target:
            for kind, array in zip(Target._fields, target, strict=True):
                plain[f"{kind}/{name.removeprefix('packed/')}"] = array[()]
    new.restore(plain, state)
    for a, b in zip(old.targets(1, stream.batch(1)), new.targets(1, stream.batch(1)), strict=True):
        np.testing.assert_array_equal(a, b)
    # A scan is asked about every second visit: this was not one.
    assert new.sam.keys == []


def test_checkpoints_without_a_count_of_failures_are_taken(stream, unlabelled):
    sam = teaching(CONFIG, unlabelled)
    arrays, state = sam.state()
    older = {"visits": state["visits"], "totals": {k: v for k, v in state["totals"].items() if k != "failed_targets"}}
    sam.restore(arrays, older)
    assert sam.summary()["failed_targets"] == 0
