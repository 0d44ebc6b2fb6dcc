"""Boxes, points and mask logits from masks drawn by hand and by hypothesis."""

from __future__ import annotations

import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from semisam_tf.sam.prompts import component_prompts, mask_prompt_logits, prompt_kinds

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
    np.testing.assert_array_equal(component_prompts(mask).boxes_vox, [[[0, 1], [1, 2]], [[3, 5], [3, 7]]])


def test_touching_corners_are_one_component() -> None:
    np.testing.assert_array_equal(component_prompts(draw("#..", ".#.", "..#")).boxes_vox, [[[0, 0], [2, 2]]])


def test_margin_is_cut_at_the_border() -> None:
    mask = draw(".....", ".#...", ".....", ".....", ".....")
    np.testing.assert_array_equal(component_prompts(mask, margin_vox=2).boxes_vox, [[[0, 0], [3, 3]]])


def test_specks_are_left_out() -> None:
    mask = draw("##..#", "##...")
    np.testing.assert_array_equal(component_prompts(mask, min_area_vox=2).boxes_vox, [[[0, 0], [1, 1]]])
    assert component_prompts(mask, min_area_vox=5).boxes_vox.shape == (0, 2, 2)


def test_empty_mask_has_no_prompt() -> None:
    assert component_prompts(np.zeros((4, 5), bool), margin_vox=3).boxes_vox.shape == (0, 2, 2)


@given(mask=MASKS, margin_vox=st.integers(0, 5), min_area_vox=st.integers(1, 3))
def test_boxes_lie_in_the_slice_and_miss_only_small_components(
    mask: np.ndarray, margin_vox: int, min_area_vox: int
) -> None:
    boxes = component_prompts(mask, margin_vox=margin_vox, min_area_vox=min_area_vox).boxes_vox
    covered = np.zeros(mask.shape, bool)
    for (y_first, x_first), (y_last, x_last) in boxes:
        assert 0 <= x_first <= x_last < mask.shape[1]
        assert 0 <= y_first <= y_last < mask.shape[0]
        covered[y_first : y_last + 1, x_first : x_last + 1] = True
    if min_area_vox == 1:
        assert covered[mask].all()
    if margin_vox == 0 and len(boxes):
        # A tight box has a foreground voxel on each of its sides.
        (y_first, x_first), (y_last, x_last) = boxes[0]
        part = mask[y_first : y_last + 1, x_first : x_last + 1]
        assert part[0].any()
        assert part[-1].any()
        assert part[:, 0].any()
        assert part[:, -1].any()


@pytest.mark.parametrize(("shape", "margin_vox"), [((2,), 0), ((2, 2), -1)])
def test_wrong_arguments_are_refused(shape: tuple[int, ...], margin_vox: int) -> None:
    with pytest.raises(ValueError, match=f"margin_vox={margin_vox}"):
        component_prompts(np.ones(shape, bool), margin_vox=margin_vox)


def test_mask_prompt_is_logits() -> None:
    logits = mask_prompt_logits(np.array([0.0, 0.5, 1 / (1 + np.exp(-3.0)), 1.0]))
    np.testing.assert_allclose(logits, [-10, 0, 3, 10], atol=1e-6)
    assert logits.dtype == np.float32


def test_point_lies_innermost_and_not_in_the_middle_of_a_crescent():
    crescent = draw("#####", "#####", "##...", "##...", "##...")
    # The middle of its box, (2, 2), is outside. Voxel (1, 1) has two voxels of organ around it on its short side.
    found = component_prompts(crescent)
    np.testing.assert_array_equal(found.boxes_vox, [[[0, 0], [4, 4]]])
    np.testing.assert_array_equal(found.points_vox, [[[1, 1]]])


@given(MASKS)
def test_every_point_is_within_its_own_component(mask):
    found = component_prompts(mask)
    labels = ndimage.label(mask, np.ones((3, 3)))[0]
    assert [labels[y, x] for ((y, x),) in found.points_vox] == list(range(1, labels.max() + 1))


def test_further_points_are_deep_inside_and_apart() -> None:
    mask = draw(
        "#######..",
        "#######..",
        "#######..",
        "......###",
    )
    # Two voxels deep: the middle row from x = 1 to 5. The second point is as deep and as far off; the third, of what is
    # one voxel deep or away, the first.
    found = component_prompts(mask, n_points=3)
    np.testing.assert_array_equal(found.points_vox, [[[1, 1], [1, 3], [1, 5]]])


def test_points_of_low_uncertainty_are_innermost_in_the_surer_half() -> None:
    mask = draw(
        "#######",
        "#######",
        "#######",
        "......#",
    )
    uncertainty = np.tile([0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1], (4, 1))
    # 22 voxels, of which the ten on the right are sure and (the half is eleven) no more than those.
    uncertainty[0, 3] = 0.2
    np.testing.assert_array_equal(component_prompts(mask).points_vox, [[[1, 1]]])
    sure = component_prompts(mask, uncertainty, n_points=2)
    # Of the columns 4 to 6 the middle one; then the tail below, the farthest from it that is as deep as any.
    np.testing.assert_array_equal(sure.points_vox[0, 0], [1, 5])
    assert (uncertainty[tuple(sure.points_vox[0].T)] < 0.5).all()
    # The box is of the whole component.
    np.testing.assert_array_equal(sure.boxes_vox, [[[0, 0], [3, 6]]])


def test_without_a_surer_half_low_uncertainty_is_innermost() -> None:
    mask = draw("#####", "#####", "##...", "##...", "##...")
    even = component_prompts(mask, np.zeros(mask.shape))
    np.testing.assert_array_equal(even.points_vox, component_prompts(mask).points_vox)


@given(mask=MASKS, seed=st.integers(0, 9))
def test_points_of_low_uncertainty_are_in_their_own_components_half(mask: np.ndarray, seed: int) -> None:
    # As probabilities are, some are equal; components differ in how sure they are.
    uncertainty = np.random.default_rng(seed).integers(0, 4, mask.shape).astype(np.float32)
    found = component_prompts(mask, uncertainty, n_points=2)
    for i, points in enumerate(found.points_vox):
        assert (found.components[tuple(points.T)] == i + 1).all()
        all_of_it = uncertainty[found.components == i + 1]
        assert (uncertainty[tuple(points.T)] <= np.median(all_of_it)).all()


def test_uncertainty_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected uncertainty of shape \(2, 3\). Received: \(3, 2\)"):
        component_prompts(np.ones((2, 3), bool), np.zeros((3, 2)))


def test_small_component_repeats_its_point() -> None:
    np.testing.assert_array_equal(component_prompts(draw(".#."), n_points=3).points_vox, [[[0, 1]] * 3])
    # The first voxel of its extent is not the component's.
    diagonal = component_prompts(draw(".#", "#."), n_points=4).points_vox
    np.testing.assert_array_equal(diagonal, [[[0, 1], [1, 0], [0, 1], [0, 1]]])


def test_components_of_a_volume_are_numbered_boxed_and_clicked() -> None:
    mask = np.zeros((9, 8, 7), bool)
    mask[1:4, 2:5, 3:6] = True
    mask[4, 5, 6] = True  # touches a corner: the same component
    mask[8, 0, 0] = True
    mask[6:9, 3:6, 0:3] = True
    found = component_prompts(mask, min_area_vox=2)
    np.testing.assert_array_equal(found.boxes_vox, [[[1, 2, 3], [4, 5, 6]], [[6, 3, 0], [8, 5, 2]]])
    np.testing.assert_array_equal(found.points_vox, [[[2, 3, 4]], [[7, 4, 1]]])
    assert found.components[2, 3, 4] == found.components[4, 5, 6] == 1
    assert found.components[7, 4, 1] == 2
    assert np.argwhere(found.too_small).tolist() == [[8, 0, 0]]
    assert found.components[8, 0, 0] == found.components[0, 0, 0] == 0


def test_depth_is_in_millimetres_where_spacing_is_told() -> None:
    # 4 rows of 1 mm against 3 columns of 4 mm: by voxels the middle column is deepest, by millimetres the middle rows.
    mask = np.ones((4, 3), bool)
    np.testing.assert_array_equal(component_prompts(mask).points_vox, [[[1, 1]]])
    np.testing.assert_array_equal(component_prompts(mask, spacing=(1, 4)).points_vox, [[[1, 0]]])


@given(mask=MASKS, n_points=st.integers(1, 4), spacing=st.tuples(*[st.floats(0.3, 3)] * 2))
def test_all_points_are_within_their_component(mask: np.ndarray, n_points: int, spacing: tuple[float, float]) -> None:
    found = component_prompts(mask, n_points=n_points, spacing=spacing)
    for i, points in enumerate(found.points_vox):
        assert (found.components[tuple(points.T)] == i + 1).all()
        sizes = np.count_nonzero(found.components == i + 1)
        assert len({tuple(point) for point in points}) == min(n_points, sizes)


def manifest_of(prompts: str, inputs: set[str]) -> types.SimpleNamespace:
    """What `prompt_kinds` reads of a manifest."""
    supports = {kind: kind in prompts.split(",") for kind in ("box", "point", "mask")}
    notes = {kind: f"never saw a {kind}" for kind, yes in supports.items() if not yes}
    return types.SimpleNamespace(family="f", prompts=supports, prompt_notes=notes, decoder_inputs=inputs)


SAM = manifest_of("box,point,mask", {"points", "point_labels", "masks", "has_masks"})
SAM_3D = manifest_of("point,mask", {"points", "point_labels", "masks", "has_masks"})
LITE = manifest_of("box", {"boxes"})
MASKS_ALONE = manifest_of("mask", {"masks"})


@pytest.mark.parametrize(
    ("manifest", "wanted", "kinds"),
    [
        (SAM, "auto", ("box",)), (SAM_3D, "auto", ("point",)), (LITE, "auto", ("box",)),
        (MASKS_ALONE, "auto", ("mask",)), (SAM, "mask, box", ("box", "mask")),
        (SAM_3D, "mask,point", ("point", "mask")),
    ],
)  # fmt: skip
def test_kinds_of_prompts_are_chosen(manifest: types.SimpleNamespace, wanted: str, kinds: tuple[str, ...]) -> None:
    assert prompt_kinds(manifest, wanted) == kinds


@pytest.mark.parametrize(
    ("manifest", "wanted", "message"),
    [
        (SAM_3D, "box", r"that f supports \(point, mask\)\. Received: box: never saw a box"),
        (LITE, "box,point", "Received: point: never saw a point"),
        (SAM, "text", "'auto' or some of .*Received: 'text'"),
        (SAM, ",", "'auto' or some of .*Received: ','"),
        (manifest_of("box,mask", {"boxes", "masks", "has_masks"}), "mask", r"\['box'\] among the prompts"),
    ],
)
def test_kinds_that_cannot_be_are_refused(manifest: types.SimpleNamespace, wanted: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prompt_kinds(manifest, wanted)
