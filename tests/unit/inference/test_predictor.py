"""From a scan to a mask in its own grid, and back from a workdir to a network."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from semisam_tf.config import Config
from semisam_tf.data.orientation import axis_order
from semisam_tf.data.volumes import Volume
from semisam_tf.inference.predictor import Predictor, chosen_model, load_network, load_predictor, network_of
from semisam_tf.inference.run_folder import read_run
from semisam_tf.inference.sliding_window import predict_probs

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


def leaning(axis=0):
    """Logits that compare each voxel with its neighbour along `axis`: a mirrored scan gives another mask."""
    image = keras.Input((None, None, None, 1))
    size = [1, 1, 1]
    size[axis] = 3
    layer = keras.layers.Conv3D(2, size, padding="same")
    model = keras.Model(image, layer(image))
    kernel = np.zeros((3, 2), np.float32)
    kernel[:, 1] = [-3, 1, 2]
    layer.set_weights([kernel.reshape(*size, 1, 2), np.array([0, 0.1], np.float32)])
    return model


def noise(code="RAS"):
    """20 x 17 x 18 voxels of 2 x 1 x 1 mm in RAS, stored as `code`."""
    image = np.random.default_rng(2).normal(size=(20, 17, 18, 1)).astype(np.float32)
    affine = np.diag([2.0, 1.0, 1.0, 1.0])
    volume = Volume("case", image, None, (2.0, 1.0, 1.0), affine)
    return axis_order("RAS", code).apply_to(volume)


@pytest.mark.parametrize("code", ["LAS", "PSR", "ILA"])
def test_however_a_scan_is_stored_its_prediction_is_the_same_in_the_world(code):
    predictor = Predictor(CONFIG, leaning(), orientation="RAS")
    expected, stored = predictor.predict(noise()), predictor.predict(noise(code))
    back = axis_order(code, "RAS")
    assert 0.1 < expected.mask.mean() < 0.9
    np.testing.assert_array_equal(back.apply(stored.mask), expected.mask)
    np.testing.assert_allclose(back.apply(stored.probs), expected.probs, atol=1e-6)
    assert stored.mask.shape == noise(code).size
    assert stored.mask.flags.c_contiguous


def test_without_a_known_orientation_scans_are_taken_in_file_order():
    mirrored = noise("LAS")
    in_order = Predictor(CONFIG, leaning()).mask(mirrored)
    np.testing.assert_array_equal(
        Predictor(CONFIG, leaning(), orientation="RAS").mask(dataclasses.replace(mirrored, has_orientation=False)),
        in_order,
    )
    np.testing.assert_array_equal(
        in_order, Predictor(CONFIG, leaning()).mask(dataclasses.replace(mirrored, affine=np.eye(4)))
    )
    assert np.any(in_order != Predictor(CONFIG, leaning(), orientation="RAS").mask(mirrored))


def test_flips_of_a_model_that_does_not_lean_change_nothing():
    plain, averaged = (Predictor(CONFIG, bright_is_foreground(), flips=flips).predict(scan()) for flips in ("", "xyz"))
    np.testing.assert_allclose(averaged.probs, plain.probs, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flips_are_averaged_by_hand(axis):
    """A model that leans along one axis has two different answers; each of the eight flips gives one."""
    model, crop = leaning(axis), np.random.default_rng(3).normal(size=(2, 16, 16, 16, 1)).astype(np.float32)
    plain = Predictor(CONFIG, model)
    mirrored = np.flip(plain.crop_probs(np.flip(crop, axis + 1)), axis + 1)
    expected = (plain.crop_probs(crop) + mirrored) / 2
    np.testing.assert_allclose(Predictor(CONFIG, model, flips="xyz").crop_probs(crop), expected, atol=1e-6)
    # Of the other two axes nothing changes: the model does not lean along them.
    others = "xyz".replace("xyz"[axis], "")
    np.testing.assert_allclose(
        Predictor(CONFIG, model, flips=others).crop_probs(crop), plain.crop_probs(crop), atol=1e-6
    )


def test_the_probabilities_decide_the_mask_and_windows_are_counted():
    seen = []
    predictor = Predictor(CONFIG, leaning(), window_batch=3)
    prediction = predictor.predict(noise(), lambda done, total: seen.append((done, total)))
    np.testing.assert_array_equal(prediction.mask, prediction.probs.argmax(axis=-1))
    np.testing.assert_allclose(prediction.probs.sum(axis=-1), 1, atol=1e-6)
    assert seen == [(3, 8), (6, 8), (8, 8)]
    np.testing.assert_allclose(prediction.probs, Predictor(CONFIG, leaning()).predict(noise()).probs, atol=1e-6)


def test_a_scan_of_another_size_is_traced_only_for_a_number_of_windows_that_is_new():
    predictor, done = Predictor(CONFIG, leaning(), window_batch=3), []
    traces = []
    # 4, 16, 2 and again 4 windows: batches of 3 and 1, the same, one of 2, and nothing new.
    for size in ((16, 16, 28), (16, 28, 28), (16, 16, 20), (16, 16, 28)):
        predictor.probs(np.zeros((*size, 1), np.float32), lambda windows, total: done.append((windows, total)))
        traces.append(predictor._forward.experimental_get_tracing_count())
    assert [total for windows, total in done if windows == total] == [4, 16, 2, 4]
    assert traces == [2, 2, 3, 3]


def always_foreground():
    """Logits that call every voxel foreground."""
    image = keras.Input((None, None, None, 1))
    layer = keras.layers.Conv3D(2, 1)
    model = keras.Model(image, layer(image))
    layer.set_weights([np.zeros((1, 1, 1, 1, 2), np.float32), np.array([0, 20], np.float32)])
    return model


COARSE = dataclasses.replace(
    CONFIG, coarse_to_fine=True, coarse_spacing_mm=(2.0, 2.0, 1.5), coarse_patch_size=(16, 16, 16), region_margin_mm=2.0
)


@pytest.mark.parametrize("code", ["RAS", "LAS", "PSR", "ILA"])
def test_a_coarse_to_fine_run_looks_at_the_region_alone(code):
    """However the scan is stored: the fine network answers foreground everywhere, and so its mask is the region."""
    predictor = Predictor(COARSE, always_foreground(), orientation="RAS", coarse_model=bright_is_foreground())
    order = axis_order("RAS", code)
    stored = order.apply_to(scan())
    windows = []
    prediction = predictor.predict(stored, lambda done, total: windows.append(total))
    inside = np.zeros(scan().size, np.uint8)
    inside[2:14, 4:20, 0:16] = 1  # the bright box of 8 x 12 x 8 voxels, on the coarse grid, and 2 mm around it
    np.testing.assert_array_equal(prediction.mask, order.apply(inside))
    np.testing.assert_array_equal(prediction.probs[..., 1] > 0.5, order.apply(inside) == 1)
    np.testing.assert_array_equal(prediction.probs[prediction.mask == 0], [[1, 0]] * int((inside == 0).sum()))
    marked = np.zeros(stored.size, np.uint8)
    marked[prediction.region.place] = 1
    np.testing.assert_array_equal(marked, prediction.mask)
    assert windows[-1] == 1


def test_a_coarse_to_fine_run_needs_its_coarse_network():
    with pytest.raises(ValueError, match="coarse_model=None"):
        Predictor(COARSE, always_foreground()).predict(scan())


def test_blend_reaches_the_windows():
    gaussian, uniform = (Predictor(CONFIG, leaning(), blend=b).probs(noise().image) for b in ("gaussian", "uniform"))
    expected = predict_probs(Predictor(CONFIG, leaning()).crop_probs, noise().image, (16, 16, 16), blend="uniform")
    np.testing.assert_array_equal(uniform, expected)
    assert np.any(gaussian != uniform)


def test_choice_of_the_model():
    assert chosen_model(Config()) == "teacher"
    assert chosen_model(Config(eval_model="student")) == "student"
    assert chosen_model(Config(eval_model="student"), "teacher") == "teacher"


def test_networks_of_a_run_start_apart_and_runs_by_their_seed():
    def kernel(seed, name):
        return network_of(dataclasses.replace(CONFIG, seed=seed), 1, name).trainable_variables[0].numpy()

    np.testing.assert_array_equal(kernel(3, "student"), kernel(3, "student"))
    assert np.any(kernel(3, "student") != kernel(4, "student"))
    assert np.any(kernel(3, "student") != kernel(3, "teacher"))
    second = kernel(3, "second")
    for seed, name in ((3, "student"), (3, "teacher"), (4, "second")):
        assert np.any(second != kernel(seed, name))


def test_a_whole_scan_is_seen_at_once_by_a_network_that_looks_no_further_than_its_kernels():
    image = np.random.default_rng(0).normal(size=(21, 40, 16, 1)).astype(np.float32)
    model = network_of(CONFIG, 1, "student")
    found = Predictor(CONFIG, model, whole_scan=True).probs(image)
    padded = np.pad(image, [(0, 11), (0, 8), (0, 0), (0, 0)], mode="edge")
    expected = tf.nn.softmax(model(padded[None], training=False)).numpy()[0, :21, :40]
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("normalisation", ["instance", "group"])
def test_a_whole_scan_is_refused_to_a_network_that_looks_at_all_of_a_window(tmp_path, normalisation):
    config = dataclasses.replace(CONFIG, normalisation=normalisation)
    (tmp_path / "run.json").write_text(json.dumps({"config": config.to_dict(), "channels": 1}), encoding="utf-8")
    with pytest.raises(ValueError, match=f"--whole_scan: expected .*batch or none. Received: --norm.*={normalisation}"):
        load_predictor(tmp_path, whole_scan=True)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_a_run_is_loaded_with_the_weights_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run\.json is missing"):
        load_predictor(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"config": CONFIG.to_dict(), "channels": 1}), encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="train command again"):
        load_predictor(tmp_path)
    (tmp_path / "result.json").write_text("{}", encoding="utf-8")
    for name in ("student", "teacher"):
        network_of(CONFIG, 1, name).save_weights(tmp_path / f"{name}.weights.h5")
    image = np.random.default_rng(0).normal(size=(16, 16, 16, 1)).astype(np.float32)
    for wanted, name in (("auto", "teacher"), ("student", "student")):
        predictor, which = load_predictor(tmp_path, wanted)
        assert which == name
        expected = Predictor(CONFIG, network_of(CONFIG, 1, name)).probs(image)
        # Batch norm, which the convolutions have taken in.
        np.testing.assert_allclose(predictor.probs(image), expected, atol=1e-5)
        layers = load_network(tmp_path, read_run(tmp_path), name).layers
        assert not any("Normalization" in type(layer).__name__ for layer in layers)
    with pytest.raises(ValueError, match="trained with flips"):
        load_predictor(tmp_path, tta=True)
    flipped = dataclasses.replace(CONFIG, augment="paper")  # mirrors x and y
    (tmp_path / "run.json").write_text(json.dumps({"config": flipped.to_dict(), "channels": 1}), encoding="utf-8")
    averaged, _ = load_predictor(tmp_path, "student", tta=True)
    expected = Predictor(CONFIG, network_of(CONFIG, 1, "student"), flips="xy").probs(image)
    np.testing.assert_allclose(averaged.probs(image), expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_a_damaged_run_is_named_with_what_to_do(tmp_path):
    (tmp_path / "run.json").write_text('{"channels": 1}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"run\.json\. Received: one without config\. Copy the run's folder again"):
        load_predictor(tmp_path)
    (tmp_path / "run.json").write_text('{"channels":', encoding="utf-8")
    with pytest.raises(ValueError, match=r"JSON that training writes in .*run\.json"):
        load_predictor(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"config": CONFIG.to_dict(), "channels": 1}), encoding="utf-8")
    (tmp_path / "result.json").write_text("{}", encoding="utf-8")
    weights = tmp_path / "teacher.weights.h5"
    network_of(CONFIG, 1, "teacher").save_weights(weights)
    whole = weights.read_bytes()
    for size in (0, 100, len(whole) // 2):
        weights.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"teacher\.weights\.h5\. Received: .* Copy the run's folder again"):
            load_predictor(tmp_path)


def test_a_mask_of_the_training_grid_comes_back_in_the_scans_own_grid_and_axis_order():
    """SAM's targets of training are kept in the training grid."""
    stored = dataclasses.replace(scan(), affine=np.diag([-1.0, 1.0, 0.5, 1.0]))  # LAS; the network's is RAS
    predictor = Predictor(CONFIG, bright_is_foreground(), orientation="RAS")
    turned = predictor.axis_order(stored).apply_to(stored)
    grid = predictor.preprocessing.to_training_grid(turned, 2)
    mask = predictor.mask_to_own_grid((grid.image[..., 0] > 1).astype(np.uint8), stored)
    assert (mask.shape, mask.dtype) == ((20, 24, 18), np.uint8)
    # Even edges lie on the coarse grid of x; z, 0.5 mm for 1 mm, may move by a voxel.
    np.testing.assert_array_equal(np.argwhere(mask[:, 12, 7] > 0).ravel(), np.arange(4, 12))
    np.testing.assert_array_equal(np.argwhere(mask[8, :, 7] > 0).ravel(), np.arange(6, 18))
    with pytest.raises(ValueError, match=r"on the training grid, \(10, 24, 9\)"):
        predictor.mask_to_own_grid(np.zeros((20, 24, 18), np.uint8), stored)
