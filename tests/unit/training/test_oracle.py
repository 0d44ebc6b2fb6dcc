"""Oracle prompts lie where the image does, and no model is asked."""

import numpy as np
import pytest

from semisam_tf.config import Config
from semisam_tf.data.augment import AugmentConfig
from semisam_tf.data.batches import TwoStream
from semisam_tf.data.volumes import Volume
from semisam_tf.sam.target import SamTarget
from semisam_tf.training.oracle import OraclePrompts
from semisam_tf.training.sam_teaching import SamTeaching

SCORES = {"prompts": 1.0, "slices_prompted": 1.0, "agreement": 1.0, "weighted_share": 1.0, "mean_weight": 1.0}


class Session:
    def counts(self):
        return {}


class Branch:
    """Keeps what it is asked."""

    def __init__(self):
        self.session, self.asked = Session(), []

    def target(self, image, class_probs, **_):
        self.asked.append((image[..., 0], class_probs))
        return SamTarget(class_probs, np.ones(image.shape[:3], np.float32), SCORES, class_probs)

    def counts(self):
        return self.session.counts()


def never(image):
    raise AssertionError("a model was asked")


@pytest.mark.parametrize("mode", ["online", "cached"])
def test_prompts_are_the_label_cut_and_turned_with_the_image(mode):
    label = np.zeros((20, 18, 17), np.uint8)
    label[3:9, 2:12, 4:7] = 1
    label[12:16, 8:15, 5:15] = 2
    # The label is its own image, so a crop, flip or turn that the prompt missed would show.
    image = label[..., None].astype(np.float32)
    scans = [Volume(name, image, label if name == "a" else None, (1, 1, 1), np.eye(4)) for name in "abc"]
    stream = TwoStream(scans[:1], scans[1:], 3, 1, (16, 16, 16), AugmentConfig(flip="xyz", rotate90=True), seed=1)
    config = Config(sam_mode=mode, sam_dir="s", n_classes=3, sam_refresh_visits=1, oracle_prompts=True)
    branch, oracle = Branch(), OraclePrompts({"b": label, "c": label}, n_classes=3)
    sam = SamTeaching(config, branch, never, never, scans[1:], oracle)
    for t in range(4):
        sam.targets(t, stream.batch(t))
    assert len(branch.asked) == 8
    for seen, probs in branch.asked:
        np.testing.assert_array_equal(probs.argmax(-1), seen)
        np.testing.assert_array_equal(probs.sum(-1), 1.0)
