"""Boxes, points and mask logits from masks drawn by hand and by hypothesis."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from semisam_tf.sam.prompts import component_prompts, mask_prompt_logits

MASKS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12))


def draw(*rows: str) -> np.ndarray:
    """`.` and `#` to a mask."""
    return np.array([[c == "#" for c in row] for row in rows])


def test_each_component_gets_its_box() -> None:
    mask = draw(
        ".##.....",
        ".#......",
        "........",
        ".....###",
    )
    np.testing.assert_array_equal(component_prompts(mask).boxes_vox, [[1, 0, 2, 1], [5, 3, 7, 3]])


def test_touching_corners_are_one_component() -> None:
    np.testing.assert_array_equal(component_prompts(draw("#..", ".#.", "..#")).boxes_vox, [[0, 0, 2, 2]])


def test_margin_is_cut_at_the_border() -> None:
    mask = draw(".....", ".#...", ".....", ".....", ".....")
    np.testing.assert_array_equal(component_prompts(mask, margin_vox=2).boxes_vox, [[0, 0, 3, 3]])


def test_specks_are_left_out() -> None:
    mask = draw("##..#", "##...")
    np.testing.assert_array_equal(component_prompts(mask, min_area_vox=2).boxes_vox, [[0, 0, 1, 1]])
    assert component_prompts(mask, min_area_vox=5).boxes_vox.shape == (0, 4)


def test_empty_mask_has_no_prompt() -> None:
    assert component_prompts(np.zeros((4, 5), bool), margin_vox=3).boxes_vox.shape == (0, 4)


@given(mask=MASKS, margin_vox=st.integers(0, 5), min_area_vox=st.integers(1, 3))
def test_boxes_lie_in_the_slice_and_miss_only_small_components(
    mask: np.ndarray, margin_vox: int, min_area_vox: int
) -> None:
    boxes = component_prompts(mask, margin_vox, min_area_vox).boxes_vox
    covered = np.zeros(mask.shape, bool)
    for x_first, y_first, x_last, y_last in boxes:
        assert 0 <= x_first <= x_last < mask.shape[1]
        assert 0 <= y_first <= y_last < mask.shape[0]
        covered[y_first : y_last + 1, x_first : x_last + 1] = True
    if min_area_vox == 1:
        assert covered[mask].all()
    if margin_vox == 0 and len(boxes):
        # A tight box has a foreground voxel on each of its sides.
        x_first, y_first, x_last, y_last = boxes[0]
        part = mask[y_first : y_last + 1, x_first : x_last + 1]
        assert part[0].any()
        assert part[-1].any()
        assert part[:, 0].any()
        assert part[:, -1].any()


@pytest.mark.parametrize(("shape", "margin_vox"), [((2, 2, 2), 0), ((2, 2), -1)])
def test_wrong_arguments_are_refused(shape: tuple[int, ...], margin_vox: int) -> None:
    with pytest.raises(ValueError, match=f"margin_vox={margin_vox}"):
        component_prompts(np.ones(shape, bool), margin_vox)


def test_mask_prompt_is_logits() -> None:
    logits = mask_prompt_logits(np.array([0.0, 0.5, 1 / (1 + np.exp(-3.0)), 1.0]))
    np.testing.assert_allclose(logits, [-10, 0, 3, 10], atol=1e-6)
    assert logits.dtype == np.float32


def test_point_lies_innermost_and_not_in_the_middle_of_a_crescent():
    crescent = draw("#####", "#####", "##...", "##...", "##...")
    # The middle of its box, (2, 2), is outside. Voxel (1, 1) has two voxels of organ around it on its short side.
    found = component_prompts(crescent)
    np.testing.assert_array_equal(found.boxes_vox, [[0, 0, 4, 4]])
    np.testing.assert_array_equal(found.points_vox, [[1, 1]])


@given(MASKS)
def test_every_point_is_within_its_own_component(mask):
    found = component_prompts(mask)
    labels = ndimage.label(mask, np.ones((3, 3)))[0]
    assert [labels[y, x] for x, y in found.points_vox] == list(range(1, labels.max() + 1))
