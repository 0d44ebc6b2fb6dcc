"""From a prediction to a target, on the double: values worked by hand.

The double fills a box where the picture is bright; slices of 16x16 voxels are its pictures one to one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semisam_tf.sam.branch import SamBranch
from semisam_tf.sam.cache import EmbeddingCache
from semisam_tf.sam.manifest import Manifest
from semisam_tf.sam.session import SamSession
from semisam_tf.sam.target import class_dice, dice


def bright_image(shape: tuple[int, int, int] = (16, 16, 4)) -> np.ndarray:
    """[X, Y, Z, 1]: white, but for one black voxel in each slice to stretch from."""
    image = np.ones((*shape, 1), np.float32)
    image[-1, -1] = 0
    return image


def one_hot(mask: np.ndarray, n_classes: int = 2) -> np.ndarray:
    """Class indices to a prediction that is sure of itself."""
    return np.eye(n_classes, dtype=np.float32)[mask]


def l_shape() -> np.ndarray:
    """In slice 1 an L whose box is x 3..6, y 2..8; nothing elsewhere."""
    mask = np.zeros((16, 16, 4), int)
    mask[3, 2:9, 1] = 1
    mask[3:7, 8, 1] = 1
    return mask


def test_box_of_the_prediction_becomes_the_target(session: SamSession) -> None:
    target = SamBranch(session, margin_vox=0, min_area_vox=1).target(bright_image(), one_hot(l_shape()))
    expected = np.zeros((16, 16, 4), int)
    expected[3:7, 2:9, 1] = 1
    np.testing.assert_array_equal(target.probs, one_hot(expected))
    np.testing.assert_array_equal(target.weight[:, :, 1], 0.75)
    np.testing.assert_array_equal(target.weight[:, :, [0, 2, 3]], 0)
    assert target.probs.dtype == target.weight.dtype == np.float32
    # The L has 10 voxels, all in the box of 28.
    assert target.scores == {
        "prompts": 1, "slices_prompted": 1, "weighted_share": 0.25, "mean_weight": 0.75, "predicted_iou": 0.75,
        "agreement": pytest.approx(20 / 38),
    }  # fmt: skip
    assert session.counts() == {"encoder_calls": 1, "slices_encoded": 1, "decoder_calls": 1, "prompts_decoded": 1}


def test_click_of_low_uncertainty_lies_along_the_right_axis(
    tmp_path: Path, write_double: Callable[..., Manifest]
) -> None:
    write_double(tmp_path / "points", prompt="sam")
    session = SamSession(tmp_path / "points")
    mask = np.zeros((16, 16, 4), int)
    mask[2:13, 3:8, 1] = 1
    # Unsure where x is below 7: five of the eleven columns.
    foreground = mask * np.where(np.arange(16) < 7, 0.6, 0.99)[:, None, None]
    class_probs = np.stack([1 - foreground, foreground], axis=-1).astype(np.float32)
    clicked, real = [], session.decode
    session.decode = lambda embeddings, prompts, rows: clicked.append(prompts.points) or real(embeddings, prompts, rows)
    for surest in (False, True):
        SamBranch(session, prompts="point", surest_points=surest).target(bright_image(), class_probs)
    # Row y = 5 is the middle one; the first voxels two deep are x = 4, and in what is surer x = 9.
    assert [points[0, 0].tolist() for points in clicked] == [[5, 4], [5, 9]]


def test_margin_widens_the_target(session: SamSession) -> None:
    target = SamBranch(session, margin_vox=2).target(bright_image(), one_hot(l_shape()))
    x, y = np.nonzero(target.probs[:, :, 1, 1])
    assert (x.min(), x.max(), y.min(), y.max()) == (1, 8, 0, 10)


def test_sam_looks_at_the_image(session: SamSession) -> None:
    image = bright_image()
    image[:, :4, 1] = 0  # dark where y < 4: the double's mask ends there
    target = SamBranch(session, margin_vox=0).target(image, one_hot(l_shape()))
    x, y = np.nonzero(target.probs[:, :, 1, 1])
    assert (x.min(), x.max(), y.min(), y.max()) == (3, 6, 4, 8)


def test_components_of_a_slice_are_joined(session: SamSession) -> None:
    mask = np.zeros((16, 16, 4), int)
    mask[0:4, 0:4, 2] = 1
    mask[10:14, 4:8, 2] = 1
    target = SamBranch(session, margin_vox=0).target(bright_image(), one_hot(mask))
    np.testing.assert_array_equal(target.probs, one_hot(mask))
    assert target.scores["prompts"] == 2
    assert session.slices_encoded == 1


def test_classes_are_asked_apart_and_the_surer_one_wins(session: SamSession) -> None:
    mask = np.zeros((16, 16, 1), int)
    mask[0:8, 0:12, 0] = 1
    mask[8:16, 0:12, 0] = 2
    target = SamBranch(session, margin_vox=2).target(bright_image((16, 16, 1)), one_hot(mask, 3))
    # Boxes x 0..9 and 6..15: where they overlap the deeper one wins, so the border stays between 7 and 8.
    assert target.probs[7, 5, 0].tolist() == [0, 1, 0]
    assert target.probs[8, 5, 0].tolist() == [0, 0, 1]
    assert target.scores["prompts"] == 2


def test_empty_prediction_asks_nothing(session: SamSession) -> None:
    target = SamBranch(session).target(bright_image(), one_hot(np.zeros((16, 16, 4), int)))
    assert target.weight.max() == 0
    np.testing.assert_array_equal(target.probs, one_hot(np.zeros((16, 16, 4), int)))
    assert set(target.scores.values()) == {0.0}
    assert session.encoder_calls == session.decoder_calls == 0


def test_specks_ask_nothing(session: SamSession) -> None:
    mask = np.zeros((16, 16, 4), int)
    mask[5, 5, :] = 1
    assert SamBranch(session, min_area_vox=2).target(bright_image(), one_hot(mask)).weight.max() == 0
    assert session.encoder_calls == 0


def test_prediction_that_fills_a_slice_asks_nothing_there(session: SamSession) -> None:
    mask = l_shape()
    mask[:, :, 3] = 1
    target = SamBranch(session, margin_vox=0).target(bright_image(), one_hot(mask))
    assert target.weight[:, :, 3].max() == 0
    assert target.weight[:, :, 1].min() == 0.75
    assert session.prompts_decoded == 1


def test_slice_where_sam_finds_nothing_is_not_trusted(session: SamSession) -> None:
    mask = np.zeros((16, 16, 2), int)
    mask[4:8, 4:8] = 1
    image = bright_image((16, 16, 2))
    image[:8, :, 1] = 0  # nothing bright in slice 1's box
    target = SamBranch(session, margin_vox=0).target(image, one_hot(mask))
    assert target.scores["prompts"] == target.scores["slices_prompted"] == 2
    assert target.weight[0, 0].tolist() == [0.75, 0.0]
    assert target.scores["agreement"] == 1


def test_a_part_that_sam_finds_nothing_in_is_not_unlearned(session: SamSession) -> None:
    mask = np.zeros((16, 16, 2), int)
    mask[1:5, 1:5, 0] = mask[8:12, 8:12, 0] = 1
    image = bright_image((16, 16, 2))
    image[8:12, 8:12, 0] = 0
    target = SamBranch(session, margin_vox=0).target(image, one_hot(mask))
    assert target.scores["prompts"] == 2
    expected = np.full((16, 16), 0.75)
    expected[8:12, 8:12] = 0
    np.testing.assert_array_equal(target.weight[:, :, 0], expected)
    assert np.argwhere(target.probs[:, :, 0, 1]).tolist() == [[x, y] for x in range(1, 5) for y in range(1, 5)]


def test_a_part_between_prompted_slices_that_lies_over_none_is_not_unlearned(session: SamSession) -> None:
    mask = np.zeros((16, 16, 3), int)
    mask[1:5, 1:5] = 1
    mask[9:13, 9:13, 1] = 1  # in the slice left out alone
    mask[4:7, 4:7, 1] = 1  # of the part below and above
    target = SamBranch(session, margin_vox=0, slice_step=2).target(bright_image((16, 16, 3)), one_hot(mask))
    assert target.scores["prompts"] == 2
    expected = np.full((16, 16), 0.75)
    expected[9:13, 9:13] = 0
    np.testing.assert_array_equal(target.weight[:, :, 1], expected)
    np.testing.assert_array_equal(target.weight[:, :, [0, 2]], np.float32(0.75))


def test_mask_filling_the_slice_gets_no_weight(tmp_path: Path, write_double: Callable[..., Manifest]) -> None:
    write_double(tmp_path, mask_threshold_logits=-1000.0)
    mask = np.zeros((16, 16, 4), int)
    mask[2:14, 2:14, :] = 1
    target = SamBranch(SamSession(tmp_path)).target(bright_image(), one_hot(mask))
    assert target.scores["slices_prompted"] == 4
    assert target.weight.max() == 0


def test_threshold_of_the_manifest_is_used(tmp_path: Path, write_double: Callable[..., Manifest]) -> None:
    # Logits are 0.5 on the box's rim and 1.5 one pixel further in.
    write_double(tmp_path, mask_threshold_logits=1.0)
    mask = np.zeros((16, 16, 4), int)
    mask[4:10, 4:10, 0] = 1
    target = SamBranch(SamSession(tmp_path), margin_vox=0).target(bright_image(), one_hot(mask))
    expected = np.zeros((16, 16, 4))
    expected[5:9, 5:9, 0] = 1
    np.testing.assert_array_equal(target.probs[..., 1], expected)


@pytest.mark.parametrize(
    ("predicted_iou", "trust", "weight"),
    [(1.5, "iou", 1.0), (-0.5, "iou", 0.0), (0.25, "iou", 0.25), (0.25, "one", 1.0)],
)
def test_weight_is_sams_own_opinion_or_one(
    tmp_path: Path, write_double: Callable[..., Manifest], predicted_iou: float, trust: str, weight: float
) -> None:
    write_double(tmp_path, predicted_iou=predicted_iou)
    target = SamBranch(SamSession(tmp_path), trust=trust).target(bright_image(), one_hot(l_shape()))
    np.testing.assert_array_equal(target.weight[:, :, 1], np.float32(weight))


def test_only_so_many_slices_are_drawn(session: SamSession) -> None:
    mask = np.zeros((16, 16, 9), int)
    mask[2:9, 2:9] = 1
    branch = SamBranch(session, max_slices=3)
    drawn = {}
    for seed in range(8):
        target = branch.target(bright_image((16, 16, 9)), one_hot(mask), rng=np.random.default_rng(seed))
        drawn[seed] = tuple(np.flatnonzero(target.weight[0, 0]))
        assert len(drawn[seed]) == 3
    again = branch.target(bright_image((16, 16, 9)), one_hot(mask), rng=np.random.default_rng(5))
    assert tuple(np.flatnonzero(again.weight[0, 0])) == drawn[5]
    assert len(set(drawn.values())) > 1
    with pytest.raises(ValueError, match="rng=None"):
        branch.target(bright_image((16, 16, 9)), one_hot(mask))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_each_axis_is_the_same_up_to_the_order_of_axes(session: SamSession, axis: int) -> None:
    # Cut along `axis`, the first of the two other axes runs along the picture's columns.
    order = [*[a for a in (0, 1, 2) if a != axis], axis]
    image = np.random.default_rng(0).random((16, 16, 4, 1)).astype(np.float32)
    reference = SamBranch(session, axis=2).target(image, one_hot(l_shape()))
    back = np.argsort(order)
    turned = SamBranch(session, axis=axis).target(image.transpose(*back, 3), one_hot(l_shape().transpose(back)))
    np.testing.assert_array_equal(turned.probs.transpose(*order, 3), reference.probs)
    np.testing.assert_array_equal(turned.weight.transpose(order), reference.weight)


def test_other_channels_are_not_seen(session: SamSession) -> None:
    image = np.concatenate([np.zeros_like(bright_image()), bright_image()], axis=-1)
    seen = SamBranch(session, margin_vox=0, channel=1).target(image, one_hot(l_shape()))
    unseen = SamBranch(session, margin_vox=0, channel=0).target(image, one_hot(l_shape()))
    assert seen.probs[..., 1].sum() == 28
    assert unseen.probs[..., 1].sum() == 0
    assert unseen.weight.max() == 0


def random_case(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An image of noise in float steps that float16 does not hold, and a prediction with something in each slice."""
    rng = np.random.default_rng(seed)
    image = rng.random((13, 11, 6, 1)).astype(np.float32)
    mask = np.zeros((13, 11, 6), int)
    mask[2:9, 3:8] = 1
    return image, one_hot(mask)


def test_cold_and_warm_cache_and_no_cache_give_equal_targets(session: SamSession, tmp_path: Path) -> None:
    image, class_probs = random_case()
    without = SamBranch(session).target(image, class_probs)
    branch = SamBranch(session, cache=EmbeddingCache(tmp_path))
    cold = branch.target(image, class_probs, key="case")
    assert session.slices_encoded == 12
    warm = SamBranch(session, cache=EmbeddingCache(tmp_path)).target(image, class_probs, key="case")
    assert session.slices_encoded == 12
    assert session.prompts_decoded == 18
    for target in (cold, warm):
        np.testing.assert_array_equal(target.probs, without.probs)
        np.testing.assert_array_equal(target.weight, without.weight)
        assert target.scores == without.scores


def test_embeddings_are_rounded_before_decoding_even_without_a_cache(session: SamSession) -> None:
    seen = []
    real = session.decode
    session.decode = lambda embeddings, *asked, **rows: (
        seen.append(embeddings.dtype) or real(embeddings, *asked, **rows)
    )
    SamBranch(session).target(*random_case())
    assert seen == [np.float16]


def test_only_new_slices_are_encoded(session: SamSession, tmp_path: Path) -> None:
    image, class_probs = random_case()
    branch = SamBranch(session, cache=EmbeddingCache(tmp_path))
    first = class_probs.copy()
    first[:, :, 3:] = [1, 0]
    branch.target(image, first, key="case")
    assert session.slices_encoded == 3
    branch.target(image, class_probs, key="case")
    assert session.slices_encoded == 6
    branch.target(image + 1, class_probs, key="case")
    assert session.slices_encoded == 12


def test_changed_image_under_the_same_name_is_encoded_again(session: SamSession, tmp_path: Path) -> None:
    image, class_probs = random_case()
    branch = SamBranch(session, cache=EmbeddingCache(tmp_path))
    branch.target(image, class_probs, key="case")
    changed = image[::-1].copy()
    target = branch.target(changed, class_probs, key="case")
    assert session.slices_encoded == 12
    np.testing.assert_array_equal(target.probs, SamBranch(session).target(changed, class_probs).probs)


def test_a_removed_scan_is_encoded_again_to_the_same_embeddings(session: SamSession, tmp_path: Path) -> None:
    image, class_probs = random_case()
    SamBranch(session, cache=EmbeddingCache(tmp_path / "unlimited")).target(image, class_probs, key="case")
    (kept,) = (tmp_path / "unlimited").iterdir()
    # Both scans do not fit.
    limit_bytes = 2 * 512 * kept.stat().st_blocks - 4096
    branch = SamBranch(session, cache=EmbeddingCache(tmp_path / "limited", limit_bytes))
    first = branch.target(image, class_probs, key="case")
    branch.target(image + 1, class_probs, key="other")
    assert [path.name[:5] for path in (tmp_path / "limited").iterdir()] == ["other"]
    encoded = session.slices_encoded
    again = branch.target(image, class_probs, key="case")
    assert session.slices_encoded == encoded + 6
    np.testing.assert_array_equal(again.probs, first.probs)
    np.testing.assert_array_equal(again.weight, first.weight)
    assert (tmp_path / "limited" / kept.name).read_bytes() == kept.read_bytes()


def test_crops_leave_the_cache_alone(session: SamSession, tmp_path: Path) -> None:
    SamBranch(session, cache=EmbeddingCache(tmp_path)).target(*random_case(), key=None)
    assert list(tmp_path.glob("*.embeddings")) == []


def test_wrong_arguments_are_refused(session: SamSession) -> None:
    for arguments in ({"axis": 3}, {"trust": "faith"}, {"max_slices": -1}, {"margin_vox": -1}, {"points": 0}):
        name, value = next(iter(arguments.items()))
        with pytest.raises(ValueError, match=f"{name}={value!r}"):
            SamBranch(session, **arguments)
    image, class_probs = random_case()
    with pytest.raises(ValueError, match=r"one grid\. Received: image=\(13, 11, 6\)"):
        SamBranch(session).target(image[..., 0], class_probs)
    with pytest.raises(ValueError, match=r"class_probs=\(13, 11, 5, 2\)"):
        SamBranch(session).target(image, class_probs[:, :, :5])


@pytest.mark.parametrize("wanted", ["point", "box,mask"])
def test_prompts_that_the_model_does_not_know_are_refused_with_its_reason(session: SamSession, wanted: str) -> None:
    with pytest.raises(
        ValueError, match=r"supports \(box\)\. Received: (point|mask): this double takes no (point|mask)"
    ):
        SamBranch(session, prompts=wanted)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shape=st.tuples(*[st.integers(1, 9)] * 3), seed=st.integers(0, 99), axis=st.integers(0, 2))
def test_any_grid_and_prediction_gives_a_sound_target(
    session: SamSession, shape: tuple[int, int, int], seed: int, axis: int
) -> None:
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((*shape, 1)).astype(np.float32)
    class_probs = rng.dirichlet(np.ones(3), shape).astype(np.float32)
    target = SamBranch(session, axis=axis, min_area_vox=1).target(image, class_probs)
    assert target.probs.shape == (*shape, 3)
    np.testing.assert_array_equal(target.probs.sum(axis=-1), 1)
    assert set(np.unique(target.weight)) <= {0.0, 0.75}
    # Trust is a slice's, less the parts in it that SAM found nothing in when asked about them.
    background = np.where(class_probs.argmax(axis=-1) == 0, target.weight, np.nan)
    for weights in np.moveaxis(background, axis, 0):
        assert len(np.unique(weights[~np.isnan(weights)])) <= 1


def test_dice_of_classes_knows_organs_from_each_other() -> None:
    mask = np.array([0, 1, 1, 2, 2, 0])
    assert class_dice(mask, mask) == 1
    # Foreground and foreground are the same.
    assert class_dice(mask, np.array([0, 2, 2, 1, 1, 0])) == 0
    # Class 1 agrees, of class 2 half is missing: 2 / 3.
    assert class_dice(mask, np.array([0, 1, 1, 2, 0, 0])) == pytest.approx((1 + 2 / 3) / 2)
    assert class_dice(mask * 0, mask * 0) == 1
    assert class_dice(np.array([0, 1]), np.array([0, 0])) == 0


def test_agreement_is_the_mean_over_organs_and_not_over_their_voxels(session: SamSession) -> None:
    mask = np.zeros((16, 16, 1), int)
    mask[2:8, 2:8, 0], mask[10:12, 2:8, 0] = 1, 2
    branches = [SamBranch(session, margin_vox=margin_vox) for margin_vox in (0, 1)]
    targets = [branch.target(bright_image((16, 16, 1)), one_hot(mask, 3)) for branch in branches]
    agreement = [target.scores["agreement"] for target in targets]
    # With a voxel around: 36 of 64, and 12 of 32. Of all voxels together it would be 2 * 48 / 144.
    assert agreement == pytest.approx([1, (72 / 100 + 24 / 44) / 2])


def test_dice() -> None:
    a = np.array([True, True, False, False])
    assert dice(a, np.array([True, False, True, False])) == 0.5
    assert dice(a, a) == 1
    assert dice(a, ~a) == 0
    assert dice(a & ~a, a & ~a) == 1


def test_point_prompt_where_the_manifest_has_no_boxes(tmp_path: Path, write_double: Callable[..., Manifest]) -> None:
    write_double(tmp_path / "sam", prompt="point")
    mask = np.zeros((16, 16, 4), int)
    mask[3:8, 6:11, 2] = 1
    target = SamBranch(SamSession(tmp_path / "sam")).target(bright_image(), one_hot(mask))
    # The innermost voxel is (5, 8); the double answers with a square of radius 2 about it.
    np.testing.assert_array_equal(target.probs, one_hot(mask))
    assert target.weight[0, 0].tolist() == [0, 0, 0.75, 0]


@pytest.mark.parametrize("meta", [False, True])
def test_points_and_boxes_of_sams_own_convention(
    tmp_path: Path, write_double: Callable[..., Manifest], meta: bool
) -> None:
    """Our decoder with codes, and Meta's with a batch of 1 behind an encoder that pads in the graph."""
    layout = "channels_last_unbatched" if meta else "channels_first"
    write_double(tmp_path / "sam", prompt="sam", meta=meta, image_layout=layout)
    mask = np.zeros((12, 16, 4), int)
    mask[2:9, 5:12, 2] = 1
    image = bright_image((12, 16, 4))
    boxed = SamBranch(SamSession(tmp_path / "sam"), margin_vox=0).target(image, one_hot(mask))
    np.testing.assert_array_equal(boxed.probs, one_hot(mask))
    clicked = SamBranch(SamSession(tmp_path / "sam"), prompts="point").target(image, one_hot(mask))
    expected = np.zeros((12, 16, 4), int)
    expected[3:8, 6:11, 2] = 1  # radius 2 about (5, 8)
    np.testing.assert_array_equal(clicked.probs, one_hot(expected))
    masked = SamBranch(SamSession(tmp_path / "sam"), prompts="point,mask").target(image, one_hot(mask))
    np.testing.assert_array_equal(masked.probs, one_hot(mask))
    np.testing.assert_array_equal(masked.weight[:, :, 2], np.float32(0.75))


def test_mask_prompt_is_the_classes_logits(tmp_path: Path, write_double: Callable[..., Manifest]) -> None:
    write_double(tmp_path / "sam", prompt="mask")
    mask = np.zeros((16, 16, 4), int)
    mask[3:7, 2:9, 1] = 1
    mask[10, 10:14, 1] = 2
    target = SamBranch(SamSession(tmp_path / "sam"), min_area_vox=1).target(bright_image(), one_hot(mask, 3))
    np.testing.assert_array_equal(target.probs, one_hot(mask, 3))


def test_unknown_decoder_input_is_refused(tmp_path: Path, write_double: Callable[..., Manifest]) -> None:
    manifest = write_double(tmp_path / "sam")
    inputs = {**manifest.decoder_inputs, "text": manifest.decoder_inputs["boxes"]}
    write_double(tmp_path / "sam", decoder_inputs=inputs)
    with pytest.raises(ValueError, match="text"):
        SamBranch(SamSession(tmp_path / "sam"))


def test_specks_that_were_not_prompted_are_not_unlearned(session: SamSession) -> None:
    mask = np.zeros((16, 16, 4), int)
    mask[3:8, 6:11, 1] = 1
    mask[12, 12:14, 1] = 2  # two voxels of another class, below the least area, in the same slice
    target = SamBranch(session, margin_vox=0, min_area_vox=8).target(bright_image(), one_hot(mask, 3))
    np.testing.assert_array_equal(target.weight[12, 12:14, 1], 0)
    assert target.weight[12, 11, 1] == target.weight[5, 8, 1] == 0.75


def test_only_every_second_slice_is_prompted(session: SamSession) -> None:
    mask = np.zeros((16, 16, 4), int)
    mask[3:8, 6:11] = 1
    target = SamBranch(session, slice_step=2).target(bright_image(), one_hot(mask))
    # Between them the answer is interpolated; beyond the last one there is nothing to interpolate to.
    assert target.weight[0, 0].tolist() == [0.75, 0.75, 0.75, 0]
    assert session.counts()["slices_encoded"] == 2


def test_left_out_slices_lie_between_their_neighbours(session: SamSession) -> None:
    """Boxes of 12 and 4 voxels with a slice between; the double's logit is 0.5 at the rim and grows by 1 a pixel."""
    mask = np.zeros((16, 16, 3), int)
    mask[2:14, 2:14, 0] = 1
    mask[6:10, 6:10, 2] = 1
    target = SamBranch(session, margin_vox=0, slice_step=2).target(bright_image((16, 16, 3)), one_hot(mask))
    where = np.flatnonzero(target.probs[:, 8, 1, 1])
    # Half of the way in, as a distance map between the two would have it.
    assert (where.min(), where.max()) == (4, 11)


def test_soft_is_the_sigmoid_of_the_logit_above_the_threshold(session: SamSession) -> None:
    target = SamBranch(session, margin_vox=0, min_area_vox=1).target(bright_image(), one_hot(l_shape()))
    assert target.soft[3, 2, 1].tolist() == pytest.approx([1 - 0.62246, 0.62246], abs=1e-4)  # logit 0.5 on the rim
    np.testing.assert_array_equal(target.soft.argmax(axis=-1)[:, :, 1], target.probs.argmax(axis=-1)[:, :, 1])
    np.testing.assert_array_equal(target.soft[:, :, 0, 1], 0)
