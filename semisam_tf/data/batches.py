"""Two-stream batches, labelled items first, and threads that make them ahead of the step."""

from __future__ import annotations

import functools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from semisam_tf.config import Config
from semisam_tf.data.augment import AugmentConfig, SpatialTransform, augment_intensity
from semisam_tf.data.augment_config import augment_of
from semisam_tf.data.intensity import match_quantiles, scan_quantiles
from semisam_tf.data.volumes import Volume

_LABELLED, _UNLABELLED = 0, 1


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step sees.

    Attributes:
        images: float32 [B, X, Y, Z, C], labelled items first, intensities augmented.
        labels: uint8 [L, X, Y, Z], of the labelled items only: there is nothing to leak.
        case_ids: B names.
        transforms: B transforms from the case's grid to its patch; a SAM target of the case goes through the same.
        items: Place of each in the whole batch: 0..B-1, unless this is one process's share of it.
        targets: What targets on file say of the unlabelled items, where somebody has cut them out already: probs
            float32 [B - L, X, Y, Z, K], weight float32 [B - L, X, Y, Z].
    """

    images: np.ndarray
    labels: np.ndarray
    case_ids: list[str]
    transforms: list[SpatialTransform]
    items: tuple[int, ...]
    targets: tuple[np.ndarray, np.ndarray] | None = None


class TwoStream:
    """Batches of L labelled and B - L unlabelled patches; batch t is a pure function of (seed, t).

    Each stream goes through its cases in an order that is shuffled anew every epoch.
    """

    def __init__(
        self,
        labelled: Sequence[Volume],
        unlabelled: Sequence[Volume],
        batch_size: int,
        labelled_per_batch: int,
        patch_size: Sequence[int],
        augment: AugmentConfig,
        seed: int,
        foreground_fraction: float = 0.5,
        items: Sequence[int] | None = None,
    ) -> None:
        """Checks what it is given.

        Args:
            labelled: Scans with label, in the training grid.
            unlabelled: Scans without; may be empty if `labelled_per_batch == batch_size` (supervised).
            batch_size: B.
            labelled_per_batch: L, 1..B.
            patch_size: Voxels (X, Y, Z) of a patch.
            augment: Strengths.
            seed: Non-negative.
            foreground_fraction: Probability that a labelled patch is centred on a voxel of an organ (first the
                class is drawn, then the voxel). Unlabelled patches are uniform in the scan.
            items: Which items of each batch are made, labelled ones first; None: all.

        Raises:
            ValueError: Counts do not fit, a labelled scan has no label, or an unlabelled scan carries one.
        """
        self.labelled, self.unlabelled = list(labelled), list(unlabelled)
        self.batch_size, self.labelled_per_batch = batch_size, labelled_per_batch
        self.patch_size = tuple(int(n) for n in patch_size)
        self.augment, self.seed, self.foreground_fraction = augment, seed, foreground_fraction
        self.items = tuple(range(batch_size)) if items is None else tuple(items)
        self._check()
        self._foreground = [_foreground_voxels(volume.label) for volume in self.labelled if volume.label is not None]
        scans = [*self.labelled, *self.unlabelled] if augment.style > 0 else []
        self._quantiles = {volume.case_id: scan_quantiles(volume.image) for volume in scans}
        # Small: one permutation per epoch and stream. Pure, so it does not matter which thread fills it.
        self._permutation = functools.lru_cache(maxsize=16)(self._draw_permutation)

    def _check(self) -> None:
        if not 1 <= self.labelled_per_batch <= self.batch_size or not self.labelled:
            raise ValueError(
                "Expected 1 <= labelled_per_batch <= batch_size and at least one labelled scan. Received: "
                f"labelled_per_batch={self.labelled_per_batch}, batch_size={self.batch_size}, "
                f"{len(self.labelled)} labelled scans."
            )
        if self.labelled_per_batch < self.batch_size and not self.unlabelled:
            raise ValueError(
                "Expected unlabelled scans for the unlabelled part of each batch; add cases to the list, or set "
                f"labelled_per_batch to batch_size. Received: 0 unlabelled scans, "
                f"labelled_per_batch={self.labelled_per_batch}, batch_size={self.batch_size}."
            )
        if len(self.patch_size) != 3 or min(self.patch_size) < 1 or not 0 <= self.foreground_fraction <= 1:
            raise ValueError(
                "Expected three positive patch sizes and 0 <= foreground_fraction <= 1. Received: "
                f"patch_size={self.patch_size}, foreground_fraction={self.foreground_fraction}."
            )
        without = [v.case_id for v in self.labelled if v.label is None]
        leaking = [v.case_id for v in self.unlabelled if v.label is not None]
        if without or leaking:
            raise ValueError(
                "Expected a label on every labelled scan and none on any unlabelled scan; load unlabelled scans "
                f"with with_label=False. Received: labelled without label: {without}, unlabelled with label: {leaking}."
            )
        twice = sorted({v.case_id for v in self.labelled} & {v.case_id for v in self.unlabelled})
        if twice:
            raise ValueError(f"Expected each case in one stream. Received: labelled and unlabelled: {twice}.")

    def batch(self, t: int) -> Batch:
        """Batch number `t` (from 0)."""
        images, labels, case_ids, transforms = [], [], [], []
        for item in self.items:
            rng = np.random.default_rng([self.seed, t, item])
            volume, foreground = self._case(t, item)
            transform = SpatialTransform.sample(
                rng,
                volume.size,
                self.patch_size,
                self.augment,
                centre_vox=self._foreground_centre(rng, volume, foreground),
                spacing_mm=volume.spacing_mm,
            )
            patch = self._restyled(rng, volume, transform.apply(volume.image, order=1))
            images.append(augment_intensity(rng, patch, self.augment))
            if volume.label is not None:
                labels.append(transform.apply(volume.label, order=0))
            case_ids.append(volume.case_id)
            transforms.append(transform)
        return Batch(np.stack(images), np.stack(labels), case_ids, transforms, self.items)

    def _case(self, t: int, item: int) -> tuple[Volume, list[np.ndarray]]:
        """The scan of an item and the flat indices of its foreground voxels per class (none for unlabelled)."""
        if item < self.labelled_per_batch:
            index = self._index(_LABELLED, len(self.labelled), t * self.labelled_per_batch + item)
            return self.labelled[index], self._foreground[index]
        per_batch = self.batch_size - self.labelled_per_batch
        index = self._index(_UNLABELLED, len(self.unlabelled), t * per_batch + item - self.labelled_per_batch)
        return self.unlabelled[index], []

    def _restyled(self, rng: np.random.Generator, volume: Volume, patch: np.ndarray) -> np.ndarray:
        """The patch with some of another scan's intensities; without `style` nothing is drawn."""
        if not self._quantiles or rng.random() >= self.augment.style_probability:
            return patch
        other = list(self._quantiles)[rng.integers(len(self._quantiles))]
        share = rng.uniform(0, self.augment.style)
        return match_quantiles(patch, self._quantiles[volume.case_id], self._quantiles[other], share)

    def _index(self, stream: int, n_cases: int, draw: int) -> int:
        return int(self._permutation(stream, n_cases, draw // n_cases)[draw % n_cases])

    def _draw_permutation(self, stream: int, n_cases: int, epoch: int) -> np.ndarray:
        # Four numbers where items use three: the two kinds of generators never share a stream.
        return np.random.default_rng([self.seed, stream, epoch, n_cases]).permutation(n_cases)

    def _foreground_centre(
        self, rng: np.random.Generator, volume: Volume, foreground: list[np.ndarray]
    ) -> tuple[int, ...] | None:
        if not foreground or rng.random() >= self.foreground_fraction:
            return None
        voxels = foreground[int(rng.integers(len(foreground)))]
        return tuple(int(i) for i in np.unravel_index(int(voxels[rng.integers(len(voxels))]), volume.size))


def stream_of(
    config: Config, labelled: Sequence[Volume], unlabelled: Sequence[Volume], items: Sequence[int] | None = None
) -> TwoStream:
    """The batches that a run's settings describe, or the `items` of each that are one process's share."""
    return TwoStream(
        labelled,
        unlabelled,
        batch_size=config.batch_size,
        labelled_per_batch=config.labelled_items(),
        patch_size=config.patch_size,
        augment=augment_of(config),
        seed=config.seed,
        foreground_fraction=config.foreground_fraction,
        items=items,
    )


def _foreground_voxels(label: np.ndarray) -> list[np.ndarray]:
    return [np.flatnonzero(label == value) for value in np.unique(label) if value]


class Prefetcher:
    """Makes `make(start)`, ..., `make(stop - 1)` ahead in threads and hands them out in order.

    Threads, not processes: NumPy and SciPy release the interpreter lock in the parts that take the time, and the
    scans are shared. What is handed out does not depend on the number of workers.

    Attributes:
        wait_s: Seconds that callers have spent waiting for a batch so far.
    """

    def __init__(
        self, make: Callable[[int], Any], start: int, stop: int, workers: int = 2, depth: int | None = None
    ) -> None:
        """Starts at once; `depth` batches at most are kept ready or in the making: by default 4, or two a worker."""
        depth = max(4, 2 * workers) if depth is None else depth
        if workers < 1 or depth < 1:
            raise ValueError(f"Expected workers >= 1 and depth >= 1. Received: workers={workers}, depth={depth}.")
        self.wait_s = 0.0
        self._make, self._stop, self._submitted = make, stop, start
        self._executor = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
        self._ahead: deque[tuple[int, Future[Any]]] = deque()
        for _ in range(depth):
            self._submit()

    def next(self) -> tuple[int, Any]:
        """The next (t, batch).

        Raises:
            IndexError: All batches have been handed out.
            Exception: Whatever `make` raised for this t.
        """
        if not self._ahead:
            raise IndexError(f"Expected next() to be called for steps below {self._stop} only; no batches are left.")
        t, future = self._ahead.popleft()
        began_s = time.perf_counter()
        try:
            batch = future.result()
        finally:
            self.wait_s += time.perf_counter() - began_s
        self._submit()
        return t, batch

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        while self._ahead:
            yield self.next()

    def close(self) -> None:
        """Drops what was not handed out and ends the threads."""
        self._ahead.clear()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def _submit(self) -> None:
        if self._submitted < self._stop:
            self._ahead.append((self._submitted, self._executor.submit(self._make, self._submitted)))
            self._submitted += 1
