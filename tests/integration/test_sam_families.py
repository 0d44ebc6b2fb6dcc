"""Three steps with each kind of SAM: slices or volumes, boxes or clicks, online or cached. SAM is really called."""

import logging

import numpy as np
import pytest

from semisam_tf.config import Config, validate
from semisam_tf.inference.predictor import Predictor
from semisam_tf.sam.ensemble import SamEnsemble
from semisam_tf.sam.views import SliceViews
from semisam_tf.training.rounds import train

# Keras' own, when it saves weights.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def config_of(cohort, workdir, sam_dir, **changes):
    """A tiny run. Instance norm, a fast start and no lower limit of area: there is something to prompt with."""
    settings = {
        "data_dir": str(cohort), "workdir": str(workdir), "labeled": "1", "filters": 2, "patch_size": (16, 16, 16),
        "normalisation": "instance", "dropout": 0.0, "optimizer": "adamw", "learning_rate": 0.05, "max_steps": 3,
        "log_every": 1, "checkpoint_every": 3, "sam_dir": str(sam_dir), "sam_min_area_vox": 1,
        "sam_prompts_from": "student",
    }  # fmt: skip
    config = Config(**{**settings, **changes})
    validate(config)
    return config


@pytest.fixture(scope="module")
def point_sam(tmp_path_factory, write_double):
    """A 2D model in SAM's convention: clicks, boxes as codes, masks."""
    folder = tmp_path_factory.mktemp("sam") / "points"
    write_double(folder, prompt="sam")
    return folder


@pytest.mark.parametrize("mode", ["online", "cached"])
def test_slices_by_points(tiny_cohort, point_sam, tmp_path, mode):
    config = config_of(
        tiny_cohort, tmp_path / "run", point_sam, sam_mode=mode, sam_prompts="point,mask", sam_points=2,
        sam_slice_step=4,
    )  # fmt: skip
    sam = train(config)["sam"]
    # Two unlabelled items a step online; of three scans, two to four are met in three steps and asked about once.
    assert sam["targets"] == (6 if mode == "online" else 3)
    assert sam["prompts_decoded"] >= sam["slices_encoded"] == sam["encoder_calls"] > sam["targets"]
    assert 0 < sam["decoder_calls"] <= sam["prompts_decoded"]
    assert sam["taught_share"] > 0
    assert sam["mean_weight"] == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize(("choice", "x"), [("innermost", 6), ("surest", 11)])
def test_the_choice_of_points_reaches_the_clicks(tiny_cohort, point_sam, tmp_path, monkeypatch, choice, x):
    def unsure_for_low_x(self, image, on_window=None):
        foreground = np.zeros(image.shape[:3], np.float32)
        foreground[4:14, 6:11, 4:8] = np.where(np.arange(4, 14) < 9, 0.6, 0.99)[:, None, None]
        return np.stack([1 - foreground, foreground], axis=-1)

    clicked, prompts = [], SliceViews.prompts
    monkeypatch.setattr(Predictor, "probs", unsure_for_low_x)
    monkeypatch.setattr(
        SliceViews, "prompts", lambda self, asked, *more: clicked.extend(asked) or prompts(self, asked, *more)
    )
    asked = {"sam_mode": "cached", "sam_prompts": "point", "sam_point_choice": choice}
    train(config_of(tiny_cohort, tmp_path / "run", point_sam, **asked))
    assert {tuple(sighting.points_vox[0]) for sighting in clicked} == {(8, x)}


def test_islands_prompt_no_cached_target(tiny_cohort, point_sam, tmp_path, monkeypatch):
    def with_an_island(self, image, on_window=None):
        probs = np.zeros((*image.shape[:3], 2), np.float32)
        probs[4:10, 4:10, 4:10, 1] = probs[12:14, 12:14, 12:14, 1] = 0.9
        probs[..., 0] = 1 - probs[..., 1]
        return probs

    asked, target = [], SamEnsemble.target

    def noted(self, image, probs, **about):
        asked.append(probs.argmax(axis=-1).sum())
        return target(self, image, probs, **about)

    monkeypatch.setattr(Predictor, "probs", with_an_island)
    monkeypatch.setattr(SamEnsemble, "target", noted)
    train(config_of(tiny_cohort, tmp_path / "run", point_sam, sam_mode="cached", largest_component=True))
    assert asked == [6**3] * 3


@pytest.mark.parametrize("mode", ["online", "cached"])
def test_volumes(tiny_cohort, tiny_volume_sam, tmp_path, mode, caplog):
    # Settings of slices are named where they were set, and have no effect.
    of_slices = {"sam_axis": (0,), "sam_slice_step": 100} if mode == "cached" else {}
    with caplog.at_level(logging.WARNING):
        sam = train(config_of(tiny_cohort, tmp_path / "run", tiny_volume_sam, sam_mode=mode, **of_slices))["sam"]
    assert sam["targets"] == (6 if mode == "online" else 3)
    # Crops and scans of about 16 mm x 16 mm x 30 mm: at most three windows of 24 mm each.
    assert 0 < sam["slices_encoded"] == sam["encoder_calls"] <= 3 * sam["targets"]
    assert sam["prompts_decoded"] >= sam["slices_encoded"]
    assert sam["decoder_calls"] > 0
    assert sam["taught_share"] > 0
    assert sam["mean_weight"] == pytest.approx(0.75, abs=0.01)
    named = "double sees volumes, not slices; without effect: --sam_axis, --sam_slice_step."
    assert (named in caplog.text) == (mode == "cached")


def test_cached_without_a_sam_teaches_the_predictions(tiny_cohort, tmp_path):
    sam = train(config_of(tiny_cohort, tmp_path / "run", "", sam_mode="cached", sam_fusion="mean"))["sam"]
    assert (sam["targets"], sam["sam_calls"], sam["sam_share"]) == (3, 0, 0)
    # All of the scan, and of a crop what lies in it.
    assert sam["taught_share"] > 0.5
    assert sam["mean_weight"] == 1
    assert "taught" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
