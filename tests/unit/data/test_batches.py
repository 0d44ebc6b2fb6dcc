"""Two-stream batches: pure in (seed, t), labelled first, and no label where none may be."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from semisam_tf.data.augment import AUGMENT_PRESETS, AugmentConfig
from semisam_tf.data.batches import Batch, Prefetcher, TwoStream
from semisam_tf.data.volumes import Volume

NONE, STRONG = AUGMENT_PRESETS["none"], AUGMENT_PRESETS["strong"]


def volume(case_id: str, labelled: bool, size: tuple[int, int, int] = (12, 10, 9), channels: int = 1) -> Volume:
    rng = np.random.default_rng(sum(map(ord, case_id)))
    image = rng.normal(size=(*size, channels)).astype(np.float32)
    label = None
    if labelled:
        label = np.zeros(size, np.uint8)
        label[2, 3, 4] = 1
        label[8:10, 7, 2] = 2
    return Volume(case_id, image, label, (1.0, 1.0, 2.0), np.eye(4))


def stream(n_labelled: int = 2, n_unlabelled: int = 3, **changes: object) -> TwoStream:
    arguments: dict = {
        "batch_size": 4,
        "labelled_per_batch": 1,
        "patch_size": (8, 8, 4),
        "augment": STRONG,
        "seed": 0,
    } | changes
    labelled = [volume(f"l{i}", True) for i in range(n_labelled)]
    return TwoStream(labelled, [volume(f"u{i}", False) for i in range(n_unlabelled)], **arguments)


def assert_same(first: Batch, second: Batch) -> None:
    assert first.case_ids == second.case_ids
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.labels, second.labels)


def test_shapes_types_and_labelled_first() -> None:
    batch = stream().batch(0)
    assert (batch.images.shape, str(batch.images.dtype)) == ((4, 8, 8, 4, 1), "float32")
    assert (batch.labels.shape, str(batch.labels.dtype)) == ((1, 8, 8, 4), "uint8")
    assert [name[0] for name in batch.case_ids] == ["l", "u", "u", "u"]
    assert len(batch.transforms) == 4


@settings(max_examples=10)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_batch_t_is_a_pure_function_of_seed_and_t(seed: int, t: int) -> None:
    used = stream(seed=seed)
    for earlier in (t + 5, 0):
        used.batch(earlier)
    first = used.batch(t)
    assert_same(first, stream(seed=seed).batch(t))
    for other in (stream(seed=seed).batch(t + 1), stream(seed=seed + 1).batch(t)):
        assert abs(first.images - other.images).max() > 1e-3


def test_items_of_a_batch_differ_even_for_one_case() -> None:
    batch = stream(1, 1, labelled_per_batch=2).batch(0)
    assert batch.case_ids == ["l0", "l0", "u0", "u0"]
    assert abs(batch.images[0] - batch.images[1]).max() > 1e-3
    assert abs(batch.images[2] - batch.images[3]).max() > 1e-3


def test_each_epoch_has_each_case_once_in_an_order_of_its_own() -> None:
    batches = stream(n_labelled=3, n_unlabelled=5, augment=NONE)
    names = [batches.batch(t).case_ids for t in range(30)]
    labelled = [n for batch in names for n in batch[:1]]
    unlabelled = [n for batch in names for n in batch[1:]]
    for drawn, cases in ((labelled, 3), (unlabelled, 5)):
        epochs = [tuple(drawn[i : i + cases]) for i in range(0, len(drawn), cases)]
        assert all(len(set(epoch)) == cases for epoch in epochs)
        assert len(set(epochs)) > 3


def test_image_and_label_are_what_the_transform_gives() -> None:
    batches = stream(augment=AugmentConfig(flip="xyz", rotate90=True, rotation_deg=10), n_labelled=1)
    batch = batches.batch(3)
    scan = batches.labelled[0]
    assert scan.label is not None
    np.testing.assert_array_equal(batch.images[0], batch.transforms[0].apply(scan.image, order=1))
    np.testing.assert_array_equal(batch.labels[0], batch.transforms[0].apply(scan.label, order=0))


def test_all_labelled_is_supervised() -> None:
    batch = stream(n_unlabelled=0, labelled_per_batch=4).batch(1)
    assert batch.labels.shape[0] == batch.images.shape[0] == 4


def test_foreground_crops_hold_each_class_as_often() -> None:
    batches = stream(n_labelled=1, patch_size=(3, 3, 3), augment=NONE, foreground_fraction=1.0)
    labels = [batches.batch(t).labels[0] for t in range(200)]
    # The classes lie too far apart for one patch; class 2 has twice the voxels of class 1 but is drawn as often.
    assert all((label > 0).any() for label in labels)
    ones = sum(bool((label == 1).any()) for label in labels)
    assert 70 < ones < 130
    assert sum(bool((label == 2).any()) for label in labels) == 200 - ones


def test_uniform_crops_do_not_look_for_foreground() -> None:
    batches = stream(n_labelled=1, patch_size=(3, 3, 3), augment=NONE, foreground_fraction=0.0)
    assert sum(bool(batches.batch(t).labels.any()) for t in range(100)) < 40


def test_a_labelled_scan_without_foreground_is_cropped_anywhere() -> None:
    scan = volume("l0", True)
    empty = Volume("e", scan.image, np.zeros(scan.size, np.uint8), scan.spacing_mm, scan.affine)
    batches = TwoStream([empty], [], 1, 1, (3, 3, 3), NONE, seed=0, foreground_fraction=1.0)
    assert len({batches.batch(t).transforms[0].start for t in range(20)}) > 5


def test_scans_smaller_than_the_patch_are_padded() -> None:
    batches = stream(patch_size=(16, 16, 16), augment=NONE)
    batch = batches.batch(0)
    scan = next(v for v in batches.labelled if v.case_id == batch.case_ids[0])
    np.testing.assert_array_equal(batch.images[0, 2:14, 3:13, 3:12], scan.image)
    assert np.count_nonzero(batch.images[0]) == scan.image.size


def test_several_channels_share_the_crop() -> None:
    scan = volume("u0", False, channels=2)
    twin = Volume("u0", np.repeat(scan.image[..., :1], 2, axis=-1), None, scan.spacing_mm, scan.affine)
    batch = TwoStream([volume("l0", True, channels=2)], [twin], 2, 1, (8, 8, 4), NONE, seed=0).batch(0)
    assert batch.images.shape[-1] == 2
    np.testing.assert_array_equal(batch.images[1, ..., 0], batch.images[1, ..., 1])


def test_an_unlabelled_scan_that_carries_a_label_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unlabelled with label: \['leak'\]"):
        TwoStream([volume("l", True)], [volume("u", False), volume("leak", True)], 2, 1, (4, 4, 4), NONE, 0)
    with pytest.raises(ValueError, match=r"labelled without label: \['l'\]"):
        TwoStream([volume("l", False)], [volume("u", False)], 2, 1, (4, 4, 4), NONE, 0)
    with pytest.raises(ValueError, match=r"one stream.*\['l'\]"):
        TwoStream([volume("l", True)], [volume("l", False)], 2, 1, (4, 4, 4), NONE, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labelled_per_batch": 0}, "labelled_per_batch=0"),
        ({"labelled_per_batch": 5}, "labelled_per_batch=5"),
        ({"n_labelled": 0}, "0 labelled"),
        ({"n_unlabelled": 0}, "0 unlabelled"),
        ({"patch_size": (0, 4, 4)}, "patch_size"),
        ({"foreground_fraction": 1.5}, "foreground_fraction=1.5"),
    ],
)
def test_impossible_streams_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stream(**changes)


@pytest.mark.parametrize("workers", [1, 3])
def test_prefetching_keeps_order_and_values(workers: int) -> None:
    batches = stream()
    with Prefetcher(batches.batch, 2, 9, workers=workers, depth=3) as ahead:
        got = [ahead.next() for _ in range(7)]
        with pytest.raises(IndexError, match="below 9"):
            ahead.next()
    assert [t for t, _ in got] == list(range(2, 9))
    for t, batch in got:
        assert_same(batch, batches.batch(t))


def test_an_error_comes_where_its_batch_would_have_come() -> None:
    def make(t: int) -> int:
        if t == 2:
            raise ValueError("broken scan")
        return 10 * t

    with Prefetcher(make, 0, 5) as ahead:
        assert [ahead.next(), ahead.next()] == [(0, 0), (1, 10)]
        with pytest.raises(ValueError, match="broken scan"):
            ahead.next()


def test_no_more_than_depth_is_made_ahead_and_waiting_is_measured() -> None:
    made, release = [], threading.Event()

    def make(t: int) -> int:
        made.append(t)
        release.wait(10)
        return t

    with Prefetcher(make, 0, 100, workers=8, depth=3) as ahead:
        assert ahead.wait_s == 0
        deadline_s = time.monotonic() + 10
        while len(made) < 3 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        assert sorted(made) == [0, 1, 2]
        threading.Timer(0.5, release.set).start()
        assert ahead.next() == (0, 0)
        assert 0.05 < ahead.wait_s < 10
        assert list(zip(range(4), ahead, strict=False))[-1] == (3, (4, 4))
    assert len(made) <= 9


@pytest.mark.parametrize(("workers", "ahead"), [(1, 4), (6, 12)])
def test_every_worker_has_work(workers: int, ahead: int) -> None:
    made = []
    with Prefetcher(lambda t: made.append(t), 0, 100, workers=workers):
        deadline_s = time.monotonic() + 10
        while len(made) < ahead and time.monotonic() < deadline_s:
            time.sleep(0.01)
        time.sleep(0.05)
        assert sorted(made) == list(range(ahead))


def test_closing_early_ends_the_threads() -> None:
    before = threading.active_count()
    with Prefetcher(lambda t: t, 0, 10**9, workers=2, depth=2) as ahead:
        ahead.next()
    assert threading.active_count() == before
    with pytest.raises(ValueError, match="workers=0"):
        Prefetcher(lambda t: t, 0, 1, workers=0)
