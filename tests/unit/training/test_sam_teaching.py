"""SAM's targets follow their scan through crop, flip and rotation, are made when due, and are zero before the start."""

import dataclasses

import numpy as np
import pytest

from semisam_tf.config import Config
from semisam_tf.data.augment import AugmentConfig
from semisam_tf.data.batches import TwoStream
from semisam_tf.data.volumes import Volume
from semisam_tf.sam.target import SamTarget
from semisam_tf.training.sam_teaching import SamTeaching

CONFIG = Config(sam_mode="cached", sam_dir="s", n_classes=3, sam_refresh_visits=2)
SIZE = (20, 18, 16)
SCORES = {"prompts": 1.0, "slices_prompted": 1.0, "agreement": 1.0}


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

    def target(self, image, class_probs, key=None, rng=None, spacing_mm=None):
        self.session.calls += 1
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
