"""From a prediction to a target with a model of volumes, on the double: values worked by hand.

The double answers a click with a cube of radius 2 where its input is bright; scans of 1.5 mm are its input one to one.
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
from semisam_tf.sam.decoder_inputs import Prompts
from semisam_tf.sam.manifest import Manifest
from semisam_tf.sam.session import SamSession

SPACING = (1.5, 1.5, 1.5)


@pytest.fixture
def volume_session(tmp_path: Path, write_double: Callable[..., Manifest]) -> SamSession:
    """The double of a model of volumes."""
    write_double(tmp_path / "volume", prompt="sam", dims=3)
    return SamSession(tmp_path / "volume")


def scan(size: tuple[int, int, int] = (16, 16, 16)) -> np.ndarray:
    """[X, Y, Z, 1]: bright but for the last block of x, the last layer of which is the minimum."""
    image = np.full((*size, 1), 5.0, np.float32)
    image[-4:] = 1.0
    image[-1] = 0.0
    return image


def one_hot(mask: np.ndarray, n_classes: int = 2) -> np.ndarray:
    """Class indices to a prediction that is sure of itself."""
    return np.eye(n_classes, dtype=np.float32)[mask]


def cube(size: tuple[int, ...], centre: tuple[int, ...], radius: int = 2) -> np.ndarray:
    """1 in a cube, 0 elsewhere."""
    mask = np.zeros(size, int)
    mask[tuple(slice(c - radius, c + radius + 1) for c in centre)] = 1
    return mask


def prompts_of(session: SamSession, predicted: np.ndarray, spacing: tuple[float, ...], points: int) -> list[Prompts]:
    """What the decoder is asked."""
    seen = []
    real = session.decode
    session.decode = lambda embeddings, prompts, rows: seen.append(prompts) or real(embeddings, prompts, rows)
    SamBranch(session, points=points).target(scan(predicted.shape), one_hot(predicted), spacing_mm=spacing)
    return seen


def unsure_where(mask: np.ndarray, unsure: np.ndarray) -> np.ndarray:
    """A prediction of `mask` that is sure but where `unsure`."""
    foreground = np.where(unsure, 0.55, 0.99) * mask
    return np.stack([1 - foreground, foreground], axis=-1).astype(np.float32)


def test_click_of_low_uncertainty_is_where_the_prediction_is_sure(volume_session: SamSession) -> None:
    predicted = np.zeros((16, 16, 16), int)
    predicted[2:11, 2:7, 3:8] = 1
    # Four of nine layers along x are unsure.
    probs = unsure_where(predicted, np.arange(16)[:, None, None] < 6)
    branches = [SamBranch(volume_session, surest_points=surest) for surest in (False, True)]
    answers = [branch.target(scan(), probs, spacing_mm=SPACING).probs[..., 1] for branch in branches]
    # The double's answer is a cube around the click.
    assert [np.argwhere(answer).mean(axis=0).tolist() for answer in answers] == [[4, 4, 5], [8, 4, 5]]


def test_click_in_the_innermost_voxel_becomes_the_target(volume_session: SamSession) -> None:
    predicted = cube((16, 16, 16), (5, 8, 6), 1)
    target = SamBranch(volume_session).target(scan(), one_hot(predicted), spacing_mm=SPACING)
    expected = cube((16, 16, 16), (5, 8, 6), 2)
    np.testing.assert_array_equal(target.probs, one_hot(expected))
    np.testing.assert_array_equal(target.weight, np.float32(0.75))
    assert target.scores == {
        "prompts": 1, "slices_prompted": 1, "weighted_share": 1, "mean_weight": 0.75, "predicted_iou": 0.75,
        "agreement": pytest.approx(2 * 27 / (27 + 125)),
    }  # fmt: skip
    assert volume_session.counts() == {
        "encoder_calls": 1, "slices_encoded": 1, "decoder_calls": 1, "prompts_decoded": 1,
    }  # fmt: skip


def test_sam_looks_at_the_image(volume_session: SamSession) -> None:
    image = scan()
    image[:-1, :, :8] = 1
    target = SamBranch(volume_session).target(image, one_hot(cube((16, 16, 16), (5, 8, 8))), spacing_mm=SPACING)
    expected = cube((16, 16, 16), (5, 8, 8))
    expected[:, :, :8] = 0
    np.testing.assert_array_equal(target.probs, one_hot(expected))


def test_crop_smaller_than_the_window_is_answered_on_its_own_voxels(volume_session: SamSession) -> None:
    predicted = cube((8, 8, 8), (2, 4, 3), 1)
    target = SamBranch(volume_session).target(scan((8, 8, 8)), one_hot(predicted), spacing_mm=SPACING)
    # The crop lies at 4..11 of the input along each axis; it is bright where x is below 4.
    expected = cube((8, 8, 8), (2, 4, 3), 2)
    expected[4:] = 0
    np.testing.assert_array_equal(target.probs, one_hot(expected))
    assert target.weight.min() == 0.75


def test_finer_scan_is_resampled(volume_session: SamSession) -> None:
    predicted = cube((32, 16, 16), (11, 8, 6), 1)
    target = SamBranch(volume_session).target(scan((32, 16, 16)), one_hot(predicted), spacing_mm=(0.75, 1.5, 1.5))
    # The click is at pixel (11 + 0.5) / 2 - 0.5 = 5.25. Logits are 2.5 - |pixel - 5.25|, so at most 2.5 pixels away.
    x = np.flatnonzero(target.probs[:, 8, 6, 1])
    pixels = (np.arange(32) + 0.5) / 2 - 0.5
    assert x.tolist() == np.flatnonzero(np.abs(pixels - 5.25) < 2.5).tolist()


def test_a_part_that_sam_finds_nothing_in_is_not_unlearned(volume_session: SamSession) -> None:
    size = (16, 16, 16)
    found, missed = cube(size, (4, 4, 5), 1), cube(size, (14, 11, 9), 1)  # the scan is dark where x is 12 or more
    target = SamBranch(volume_session).target(scan(size), one_hot(found + missed), spacing_mm=SPACING)
    assert target.scores["prompts"] == 2
    np.testing.assert_array_equal(target.weight, np.where(missed, 0, np.float32(0.75)))
    np.testing.assert_array_equal(target.probs[..., 1], cube(size, (4, 4, 5)))


def test_component_prompts_the_nearest_window_and_nothing_is_said_beyond(volume_session: SamSession) -> None:
    size = (16, 16, 40)
    target = SamBranch(volume_session).target(scan(size), one_hot(cube(size, (5, 8, 34))), spacing_mm=SPACING)
    np.testing.assert_array_equal(target.probs, one_hot(cube(size, (5, 8, 34))))
    np.testing.assert_array_equal(target.weight[:, :, :24], 0)
    np.testing.assert_array_equal(target.weight[:, :, 24:], np.float32(0.75))
    assert target.scores["weighted_share"] == 16 / 40
    assert volume_session.slices_encoded == 1


def test_each_component_has_its_window_and_answers_are_joined(volume_session: SamSession) -> None:
    size = (16, 16, 40)
    predicted = cube(size, (5, 8, 3)) + cube(size, (5, 8, 20)) + 2 * cube(size, (6, 8, 35))
    target = SamBranch(volume_session).target(scan(size), one_hot(predicted, 3), spacing_mm=SPACING)
    np.testing.assert_array_equal(target.probs, one_hot(predicted, 3))
    assert target.weight.min() == 0.75
    assert target.scores["prompts"] == target.scores["slices_prompted"] == volume_session.slices_encoded == 3


def test_window_where_sam_finds_nothing_is_not_trusted_even_where_another_shows_it(volume_session: SamSession) -> None:
    size = (16, 16, 24)
    image = scan(size)
    image[:-1, :, 16:] = 1
    predicted = cube(size, (5, 8, 3)) + cube(size, (5, 8, 20))
    target = SamBranch(volume_session).target(image, one_hot(predicted), spacing_mm=SPACING)
    # Windows 0..15 and 8..23; the second is asked about a component that is dark.
    assert target.scores["slices_prompted"] == 2
    np.testing.assert_array_equal(target.weight[:, :, :8], np.float32(0.75))
    np.testing.assert_array_equal(target.weight[:, :, 8:], 0)


def test_what_a_component_has_beyond_its_window_is_not_unlearned(volume_session: SamSession) -> None:
    size = (16, 16, 40)
    predicted = np.zeros(size, int)
    # Its innermost voxels are about z = 4, in window 0..15; its tail reaches into window 24..39, asked about another.
    predicted[3:8, 6:11, 2:7] = 1
    predicted[5, 8, 7:30] = 1
    predicted[3:8, 2:4, 34:38] = 1
    target = SamBranch(volume_session).target(scan(size), one_hot(predicted), spacing_mm=SPACING)
    assert target.scores["prompts"] == 2
    np.testing.assert_array_equal(target.weight[5, 8, :16], np.float32(0.75))
    np.testing.assert_array_equal(target.weight[5, 8, 16:30], 0)
    np.testing.assert_array_equal(target.weight[5, 8, 30:], np.float32(0.75))
    assert target.weight[5, 9, 27] == np.float32(0.75)


def test_specks_filled_scans_and_empty_predictions_ask_nothing(volume_session: SamSession) -> None:
    branch = SamBranch(volume_session, min_area_vox=8)
    speck = cube((16, 16, 16), (5, 8, 6), 0)
    for predicted in (speck, np.zeros_like(speck), np.ones_like(speck)):
        target = branch.target(scan(), one_hot(predicted), spacing_mm=SPACING)
        assert target.weight.max() == 0
    assert volume_session.encoder_calls == 0
    both = branch.target(scan(), one_hot(speck + 2 * cube((16, 16, 16), (5, 3, 3)), 3), spacing_mm=SPACING)
    assert both.weight[5, 8, 6] == 0
    assert both.weight[5, 8, 7] == np.float32(0.75)


def test_component_that_fills_its_window_has_no_border_to_find(volume_session: SamSession) -> None:
    predicted = np.zeros((16, 16, 64), int)
    predicted[:, :, :40] = 1
    target = SamBranch(volume_session).target(scan((16, 16, 64)), one_hot(predicted), spacing_mm=SPACING)
    assert target.weight.max() == 0
    assert volume_session.encoder_calls == 0


def test_mask_larger_than_the_picture_is_not_trusted(tmp_path: Path, write_double: Callable[..., Manifest]) -> None:
    write_double(tmp_path, prompt="sam", dims=3, mask_threshold_logits=-1000.0)
    branch = SamBranch(SamSession(tmp_path))
    target = branch.target(scan(), one_hot(cube((16, 16, 16), (5, 8, 6))), spacing_mm=SPACING)
    assert target.scores["prompts"] == 1
    assert target.weight.max() == 0


def test_further_clicks_are_deep_and_apart(volume_session: SamSession) -> None:
    predicted = np.zeros((16, 16, 16), int)
    predicted[3:8, 2:14, 3:8] = 1
    seen = prompts_of(volume_session, predicted, SPACING, 3)
    # All of the middle line y 4..11 is 3 voxels deep; the first of them, then the first 3 voxels on, then 3 more.
    np.testing.assert_array_equal(seen[0].points, [[[5, 4, 5], [5, 7, 5], [5, 10, 5]]])
    assert seen[0].point_labels is None


def test_clicks_beyond_the_window_are_not_made(volume_session: SamSession) -> None:
    predicted = np.zeros((16, 16, 40), int)
    predicted[4:9, 6:11, 1:39] = 1
    (prompts,) = prompts_of(volume_session, predicted, SPACING, 3)
    # 3 deep from z = 3 on, in window 0..15. The next clicks are 3 on, and 3 more.
    np.testing.assert_array_equal(prompts.points, [[[6, 8, 3], [6, 8, 6], [6, 8, 9]]])
    predicted[4:9, 6:11, 4:36] = 0
    predicted[6, 8, 4:36] = 1
    # Two ends on a thin rod, voxel (5, 7, 37) as deep as (5, 7, 2) but far beyond its window: the first again.
    (prompts,) = prompts_of(volume_session, predicted, SPACING, 2)
    np.testing.assert_array_equal(prompts.points, [[[5, 7, 2], [5, 7, 2]]])


def test_depth_is_in_millimetres(volume_session: SamSession) -> None:
    predicted = np.zeros((16, 16, 16), int)
    # 5 x 5 x 3 voxels. By voxels the middle layer is deepest, first at (6, 6, 7); but in z they are four times as
    # large, so that the middle of x and y is deepest, 3 voxels of 0.75 mm, in any layer.
    predicted[5:10, 5:10, 6:9] = 1
    (prompts,) = prompts_of(volume_session, predicted, (0.75, 0.75, 3.0), 1)
    pixel = (np.array([7, 7, 6]) + 0.5) * [0.5, 0.5, 2] - 0.5 + [4, 4, -8]
    np.testing.assert_allclose(prompts.points, [[pixel]])


def test_mask_prompt_is_the_classes_logits(volume_session: SamSession) -> None:
    predicted = np.zeros((8, 16, 16), int)
    predicted[1:4, 5, 6:9] = 1
    branch = SamBranch(volume_session, prompts="mask", min_area_vox=1)
    target = branch.target(scan((8, 16, 16)), one_hot(predicted), spacing_mm=SPACING)
    np.testing.assert_array_equal(target.probs, one_hot(predicted))


def test_cold_and_warm_cache_and_no_cache_give_equal_targets(volume_session: SamSession, tmp_path: Path) -> None:
    size = (16, 16, 40)
    image = np.random.default_rng(0).random((*size, 1)).astype(np.float32)
    class_probs = one_hot(cube(size, (5, 8, 3)) + cube(size, (5, 8, 34)))
    without = SamBranch(volume_session).target(image, class_probs, spacing_mm=SPACING)
    cold = SamBranch(volume_session, cache=EmbeddingCache(tmp_path)).target(
        image, class_probs, key="case", spacing_mm=SPACING
    )
    assert volume_session.slices_encoded == 4
    branch = SamBranch(volume_session, cache=EmbeddingCache(tmp_path))
    warm = branch.target(image, class_probs, key="case", spacing_mm=SPACING)
    assert volume_session.slices_encoded == 4
    for target in (cold, warm):
        np.testing.assert_array_equal(target.probs, without.probs)
        np.testing.assert_array_equal(target.weight, without.weight)
    # The same voxels at another spacing are another picture.
    branch.target(image, class_probs, key="case", spacing_mm=(1.5, 1.5, 1.4))
    assert volume_session.slices_encoded > 4


def test_spacing_must_be_told_and_boxes_are_refused(volume_session: SamSession) -> None:
    with pytest.raises(ValueError, match="spacing_mm=None"):
        SamBranch(volume_session).target(scan(), one_hot(cube((16, 16, 16), (5, 8, 6))))
    with pytest.raises(ValueError, match=r"Received: box: this double takes no box"):
        SamBranch(volume_session, prompts="box")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(*[st.integers(1, 30)] * 3), spacing=st.tuples(*[st.floats(0.4, 3)] * 3), seed=st.integers(0, 99),
    prompts=st.sampled_from(["point", "mask", "point,mask"]), points=st.integers(1, 3),
)  # fmt: skip
def test_any_grid_spacing_and_prediction_gives_a_sound_target(
    volume_session: SamSession, shape: tuple[int, ...], spacing: tuple[float, ...], seed: int, prompts: str, points: int
) -> None:
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((*shape, 1)).astype(np.float32)
    class_probs = rng.dirichlet(np.ones(3) / 3, shape).astype(np.float32)
    # Large components next to specks.
    class_probs[: shape[0] // 2, : shape[1] // 2] = [0.2, 0.7, 0.1]
    branch = SamBranch(volume_session, prompts=prompts, points=points, min_area_vox=4)
    target = branch.target(image, class_probs, spacing_mm=spacing)
    assert target.probs.shape == (*shape, 3)
    np.testing.assert_array_equal(target.probs.sum(axis=-1), 1)
    assert set(np.unique(target.weight)) <= {0.0, 0.75}
