"""The box that a coarse pass finds, and scans cut to it and pasted back."""

import dataclasses
import logging

import keras
import numpy as np
import pytest

from semisam_tf.config import Config
from semisam_tf.data.orientation import axis_order
from semisam_tf.data.volumes import Volume
from semisam_tf.inference.evaluation import large_pieces
from semisam_tf.inference.region import (
    PIECE_SHARE,
    Locator,
    Region,
    RegionTally,
    box_around,
    coarse_settings,
    found_classes,
)

CONFIG = Config(
    coarse_to_fine=True, coarse_spacing_mm=(2.0, 2.0, 2.0), coarse_patch_size=(16, 16, 16), region_margin_mm=3.0,
    lower_percentile=0, upper_percentile=100,
)  # fmt: skip


def scan(label=None):
    """40 x 20 x 24 voxels of 1 x 2 x 1 mm; a bright box off the middle."""
    image = np.zeros((40, 20, 24, 1), np.float32)
    image[8:16, 4:8, 6:14] = 1
    return Volume("case", image, label, (1.0, 2.0, 1.0), np.diag([1.0, 2.0, 1.0, 1.0]))


def bright(n_classes=2):
    """Logits that call class 1 what is 3 standard deviations brighter than the mean of a scan, and nothing class 2."""
    image = keras.Input((None, None, None, 1))
    layer = keras.layers.Conv3D(n_classes, 1)
    model = keras.Model(image, layer(image))
    kernel = np.zeros((1, 1, 1, 1, n_classes), np.float32)
    kernel[..., 1] = 40
    layer.set_weights([kernel, np.array([0, -120, -1000][:n_classes], np.float32)])
    return model


def test_box_by_hand():
    found = np.zeros((10, 10, 10), bool)
    found[2:5, 3, 9] = True
    # Voxels of 5 along x, 2 along y, 1 along z; margins of 1.5, 3 and 0.75 voxels.
    region = box_around(found, (50, 20, 10), (2.0, 1.0, 4.0), margin_mm=3.0)
    assert region == Region((8, 3, 8), (27, 11, 10))
    assert region.size == (19, 8, 2)
    assert region.share((50, 20, 10)) == pytest.approx(19 * 8 * 2 / 10_000)


def test_a_border_on_a_voxels_edge_takes_no_voxel_more():
    found = np.zeros((3, 3, 3), bool)
    found[1, 1, 1] = True
    # 0.1 + 0.2 is more than 0.3 in floating point: 3 x 0.1 mm of margin are three voxels.
    region = box_around(found, (30, 30, 30), (0.1, 0.1, 0.1), margin_mm=0.1 + 0.2)
    assert region == Region((7, 7, 7), (23, 23, 23))


def test_what_may_be_an_organ_counts_as_one():
    probs = np.array([[0.76, 0.14, 0.1], [0.74, 0.1, 0.16], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], np.float32)
    assert found_classes(probs.reshape(4, 1, 1, 3)).ravel().tolist() == [0, 2, 1, 2]


def test_pieces_of_a_fair_size_count_and_specks_do_not():
    mask = np.zeros((20, 9, 9), np.uint8)
    mask[0:4, 0:4, 0:4] = 1  # 64 voxels
    mask[8:12, 0:4, 0] = 1  # 16: a quarter
    mask[14:18, 0:4, 0] = 1
    mask[17, 3, 0] = 0  # 15
    mask[0, 8, 8] = 2  # small, and the largest of its class
    kept = large_pieces(mask, PIECE_SHARE)
    assert kept.sum() == 64 + 16 + 1
    assert kept[8, 0, 0]
    assert not kept[14:18].any()
    assert kept[0, 8, 8]


@pytest.mark.parametrize("code", ["RAS", "LAS", "PSR", "ILA"])
def test_a_turned_region_is_the_region_of_the_turned_scan(code):
    order = axis_order("RAS", code)
    marked = np.zeros((7, 8, 9), bool)
    region = Region((1, 2, 4), (3, 7, 5), found=False)
    marked[region.place] = True
    turned = region.turned(order, marked.shape)
    expected = np.argwhere(order.apply(marked))
    assert turned.low == tuple(expected.min(axis=0))
    assert turned.high == tuple(expected.max(axis=0) + 1)
    assert not turned.found


def test_a_cut_scan_lies_where_it_lay():
    label = (scan().image[..., 0] > 0).astype(np.uint8)
    region = Region((5, 2, 3), (20, 12, 20))
    cut = region.crop(scan(label))
    assert cut.size == (15, 10, 17)
    np.testing.assert_array_equal(cut.image, scan().image[5:20, 2:12, 3:20])
    np.testing.assert_array_equal(cut.label, label[5:20, 2:12, 3:20])
    np.testing.assert_allclose(cut.affine @ [0, 0, 0, 1], scan().affine @ [5, 2, 3, 1])
    np.testing.assert_allclose(cut.affine[:3, :3], scan().affine[:3, :3])
    whole = scan()
    assert Region.whole(whole).crop(whole) is whole


def test_around_the_box_all_is_background_for_certain():
    probs = np.full((2, 3, 4, 3), 1 / 3, np.float32)
    pasted = Region((1, 0, 2), (3, 3, 6)).paste_probs(probs, (5, 4, 8))
    np.testing.assert_allclose(pasted.sum(axis=-1), 1, atol=1e-6)
    np.testing.assert_array_equal(pasted[1:3, 0:3, 2:6], probs)
    assert (pasted[..., 0] == 1).sum() == 5 * 4 * 8 - 2 * 3 * 4
    assert pasted[0, 0, 0].tolist() == [1, 0, 0]


def test_the_locator_finds_the_box_in_the_scans_own_voxels():
    region = Locator(CONFIG, bright()).locate(scan())
    # The bright box, 3 mm of margin on all sides, to whole voxels.
    assert region == Region((5, 2, 3), (19, 10, 17))


def test_a_label_is_not_looked_at():
    poison = np.full((40, 20, 24), 250, np.uint8)  # values that no class has: looking at them would fail
    locator = Locator(CONFIG, bright())
    assert locator.locate(scan(poison)) == locator.locate(scan())


def test_a_missing_class_takes_the_whole_scan_and_says_so(caplog):
    with caplog.at_level(logging.WARNING, "absl"):
        region = Locator(dataclasses.replace(CONFIG, n_classes=3), bright(3)).locate(scan())
    assert region == Region((0, 0, 0), (40, 20, 24), found=False)
    assert "case: the coarse pass found nothing of class 2" in caplog.text


def test_the_tally_counts_by_case():
    tally = RegionTally()
    tally.add(scan(), Region((0, 0, 0), (40, 20, 12)))
    assert tally.summary() == {"mean_region_share": 0.5, "taken_whole": []}
    tally.add(dataclasses.replace(scan(), case_id="b"), Region.whole(scan(), found=False))
    assert tally.summary() == {"mean_region_share": 0.75, "taken_whole": ["b"]}


def test_the_coarse_stage_learns_from_labelled_items_alone():
    settings = coarse_settings(dataclasses.replace(CONFIG, sam_mode="cached", method="mean_teacher", coarse_steps=7))
    assert settings.labelled_items() == settings.batch_size
    assert (settings.max_steps, settings.patch_size) == (7, (16, 16, 16))
    assert settings.training_spacing_mm == (2.0, 2.0, 2.0)
    assert not settings.coarse_to_fine
