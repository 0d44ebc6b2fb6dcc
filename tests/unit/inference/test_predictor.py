"""From a scan to a mask in its own grid, and back from a workdir to a network."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from semisam_tf.config import Config
from semisam_tf.data.volumes import Volume
from semisam_tf.inference.predictor import Predictor, chosen_model, load_predictor, network_of

CONFIG = Config(
    patch_size=(16, 16, 16), lower_percentile=0, upper_percentile=100, training_spacing_mm=(2.0, 1.0, 1.0), filters=2
)


def bright_is_foreground(channels=1):
    """Logits that call a voxel of `scan` foreground where it is more bright than dark: above 0.5 before the z-score."""
    image = keras.Input((None, None, None, channels))
    layer = keras.layers.Conv3D(2, 1, use_bias=True)
    model = keras.Model(image, layer(image))
    kernel = np.zeros((1, 1, 1, channels, 2), np.float32)
    kernel[..., 0, 1] = 10
    bright_share = (8 * 12 * 8) / (20 * 24 * 18)
    half = (0.5 - bright_share) / np.sqrt(bright_share * (1 - bright_share))
    layer.set_weights([kernel, np.array([0, -10 * half], np.float32)])
    return model


def scan(channels=1):
    """20 x 24 x 18 voxels of 1 x 1 x 0.5 mm; an off-centre box is bright."""
    image = np.zeros((20, 24, 18, channels), np.float32)
    image[4:12, 6:18, 3:11, 0] = 1
    return Volume("case", image, None, (1.0, 1.0, 0.5), np.eye(4))


def test_mask_comes_back_in_the_scans_own_grid():
    """The training grid is half as fine along x and z: a swapped or missing axis would move the box."""
    mask = Predictor(CONFIG, bright_is_foreground()).mask(scan())
    assert mask.shape == (20, 24, 18)
    assert mask.dtype == np.uint8
    expected = np.zeros(mask.shape, np.uint8)
    expected[4:12, 6:18, 3:11] = 1
    np.testing.assert_array_equal(mask[:, :, 4:10], expected[:, :, 4:10])
    # Edges that do not lie on the coarse grid may move by a voxel, not more.
    np.testing.assert_array_equal(mask[:, :, [0, 1, 13, 17]], 0)


def test_largest_component_is_a_setting_of_the_run():
    volume = scan()
    volume.image[15:18, 20:23, 12:17] = 1
    both = Predictor(CONFIG, bright_is_foreground()).mask(volume)
    one = Predictor(dataclasses.replace(CONFIG, largest_component=True), bright_is_foreground()).mask(volume)
    assert both[16, 21, 14] == 1
    assert one[16, 21, 14] == 0
    assert one[8, 12, 7] == 1


def test_other_channels_than_in_training_are_refused():
    with pytest.raises(ValueError, match=r"'case': expected 2 image channels, as in training\. Received: 1"):
        Predictor(CONFIG, bright_is_foreground(channels=2)).mask(scan())


def test_choice_of_the_model():
    assert chosen_model(Config()) == "teacher"
    assert chosen_model(Config(eval_model="student")) == "student"
    assert chosen_model(Config(eval_model="student"), "teacher") == "teacher"


def test_student_and_teacher_start_apart_and_runs_by_their_seed():
    def kernel(seed, name):
        return network_of(dataclasses.replace(CONFIG, seed=seed), 1, name).trainable_variables[0].numpy()

    np.testing.assert_array_equal(kernel(3, "student"), kernel(3, "student"))
    assert np.any(kernel(3, "student") != kernel(4, "student"))
    assert np.any(kernel(3, "student") != kernel(3, "teacher"))


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_a_run_is_loaded_with_the_weights_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run\.json is missing"):
        load_predictor(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"config": CONFIG.to_dict(), "channels": 1}))
    with pytest.raises(FileNotFoundError, match="train command again"):
        load_predictor(tmp_path)
    (tmp_path / "result.json").write_text("{}")
    for name in ("student", "teacher"):
        network_of(CONFIG, 1, name).save_weights(tmp_path / f"{name}.weights.h5")
    image = np.random.default_rng(0).normal(size=(16, 16, 16, 1)).astype(np.float32)
    for wanted, name in (("auto", "teacher"), ("student", "student")):
        predictor, which = load_predictor(tmp_path, wanted)
        assert which == name
        expected = Predictor(CONFIG, network_of(CONFIG, 1, name)).probs(image)
        np.testing.assert_array_equal(predictor.probs(image), expected)
