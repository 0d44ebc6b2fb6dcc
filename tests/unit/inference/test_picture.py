"""The picture is a PNG in which truth and prediction can be told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib import colors
from matplotlib.image import imread

from semisam_tf.data.volumes import Volume
from semisam_tf.inference.picture import (
    PREDICTION_COLOUR,
    TRUTH_COLOUR,
    CasePicture,
    organ_centre_vox,
    save_picture,
    save_rows,
)


def _volume(case_id: str = "a", truth: bool = True) -> Volume:
    image = np.random.default_rng(0).random((12, 10, 6, 1), np.float32)
    label = np.zeros((12, 10, 6), np.uint8)
    label[3:8, 3:7, 2:4] = 1
    return Volume(case_id, image, label if truth else None, (1.0, 1.0, 3.0), np.eye(4))


def _count(path: Path, colour: str) -> int:
    pixels = imread(path)[..., :3]
    return int((np.abs(pixels - np.array(colors.to_rgb(colour))).max(axis=-1) < 0.02).sum())


def test_truth_and_prediction_are_outlined(tmp_path: Path):
    volume = _volume()
    assert volume.label is not None
    save_rows(tmp_path / "both.png", [CasePicture("a", volume, np.roll(volume.label, 2, axis=0))])
    save_rows(tmp_path / "no_truth.png", [CasePicture("a", _volume(truth=False), volume.label)])
    legend = 100  # the legend's line shows either colour even where nothing is outlined
    assert _count(tmp_path / "both.png", TRUTH_COLOUR) > 3 * legend
    assert _count(tmp_path / "both.png", PREDICTION_COLOUR) > 3 * legend
    assert _count(tmp_path / "no_truth.png", TRUTH_COLOUR) < legend
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["both.png", "no_truth.png"]


@pytest.mark.parametrize("value", [0, 1])
def test_empty_and_full_predictions_are_drawn_without_a_word(tmp_path: Path, value: int):
    save_rows(tmp_path / "p.png", [CasePicture("a", _volume(), np.full((12, 10, 6), value, np.uint8))])
    assert _count(tmp_path / "p.png", TRUTH_COLOUR) > 0


def test_rows_are_best_median_and_worst(tmp_path: Path):
    dice = {"a": 0.3, "b": 0.9, "c": 0.5, "d": 0.1}
    report = {"cases": [{"case_id": case_id, "dice": value} for case_id, value in dice.items()]}
    loaded = []

    def load(case_id: str) -> Volume:
        loaded.append(case_id)
        return _volume(case_id)

    masks = {case_id: np.zeros((12, 10, 6), np.uint8) for case_id in dice}
    save_picture(tmp_path / "sub" / "p.png", report, load, masks)
    assert loaded == ["b", "c", "d"]
    height, width = imread(tmp_path / "sub" / "p.png").shape[:2]
    assert height > 0.8 * width


def test_no_rows_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="at least one case"):
        save_rows(tmp_path / "p.png", [])


def test_organ_centre():
    mask = np.zeros((9, 9, 9), np.uint8)
    mask[2:5, 4, 6] = 1
    empty = np.zeros_like(mask)
    assert organ_centre_vox(mask, empty) == (3, 4, 6)
    assert organ_centre_vox(empty, mask) == (3, 4, 6)
    assert organ_centre_vox(empty, empty) == (4, 4, 4)
