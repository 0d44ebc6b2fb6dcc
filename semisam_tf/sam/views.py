"""What a SAM sees of one scan, view by view: slices for a 2D model, windows for a 3D one.

A view is what goes through the encoder once. `SamBranch` asks both kinds the same questions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from semisam_tf.sam.decoder_inputs import Prompts
from semisam_tf.sam.frame import SliceFrame
from semisam_tf.sam.intensity import clip_range
from semisam_tf.sam.manifest import Manifest
from semisam_tf.sam.prompts import ComponentPrompts, mask_prompt_logits
from semisam_tf.sam.window import WindowFrame

# Mask prompts beyond the scan: surely background, and no more so than a sure voxel within.
_SURE_LOGIT = 10.0
Region = tuple[slice, ...]
# bool mask, and its voxels' uncertainty or None -> its components' prompts.
Find = Callable[[np.ndarray, np.ndarray | None], ComponentPrompts]


@dataclasses.dataclass(frozen=True)
class Sighting:
    """One component of the prediction: in which view it is asked about, its class, its box and points in voxels.

    `box_vox` [2, dims] and `points_vox` [p, dims] are voxels of the slice, or of the scan for windows; `voxels`, bool,
    are the component's own in the region that the view shows.
    """

    view: int
    class_index: int
    box_vox: np.ndarray
    points_vox: np.ndarray
    voxels: np.ndarray


class Views(Protocol):
    """The views of one scan. Arrays of the scan are transposed to `order` first: view order.

    Attributes:
        order: Axes of [X, Y, Z] in view order.
        count: How many views there are.
        scan: float32, the scan in view order.
        geometry: In words, all that decides the views besides scan and manifest.
    """

    order: tuple[int, ...]
    count: int
    scan: np.ndarray
    geometry: str

    def picture(self, index: int) -> np.ndarray:
        """float32 picture of a view, for `SamSession.encode`."""

    def sightings(
        self, predicted_mask: np.ndarray, uncertainty: np.ndarray | None, n_classes: int, find: Find
    ) -> tuple[list[Sighting], np.ndarray]:
        """What to ask about, ordered by view, and a bool mask of predicted voxels that no view is asked about.

        Args:
            predicted_mask: uint8 classes, in view order.
            uncertainty: float32 of the mask's shape, the prediction's; None where `find` does without.
            n_classes: Classes with background.
            find: Makes the prompts of one class's mask.
        """

    def prompts(self, asked: Sequence[Sighting], class_probs: np.ndarray, kinds: Sequence[str]) -> Prompts:
        """In pixels of the views' pictures; `class_probs` [K, ...] is in view order."""

    def region(self, index: int) -> Region:
        """The scan's voxels that a view shows, in view order."""

    def on_voxels(self, asked: Sequence[Sighting], low_res_logits: np.ndarray) -> Iterator[np.ndarray]:
        """The decoder's masks on the voxels of their views' regions."""


def views_of(
    scan: np.ndarray, spacing_mm: Sequence[float] | None, manifest: Manifest, axis: int, slice_step: int
) -> Views:
    """The views of one channel float32 [X, Y, Z] of a scan that the model of `manifest` takes.

    Args:
        scan: Intensities.
        spacing_mm: Of its voxels; a model of slices does without.
        manifest: The model's.
        axis: Slices are cut along it. Of the two others the first runs along the picture's columns.
        slice_step: Only every so manieth slice is asked about.

    Raises:
        ValueError: From the frames.
    """
    if manifest.dims == 3:
        return WindowViews(scan, spacing_mm, manifest)
    return SliceViews(scan, manifest, axis, slice_step)


class SliceViews:
    """Slices along an axis, each with its own components. View order is [slices, rows, columns]."""

    def __init__(self, scan: np.ndarray, manifest: Manifest, axis: int, slice_step: int) -> None:
        self.order: tuple[int, ...] = (axis, *[a for a in (2, 1, 0) if a != axis])
        self.scan = np.ascontiguousarray(scan.transpose(self.order), np.float32)
        self.count = len(self.scan)
        self.geometry = f"axis {axis}"
        self._slice_step, self._manifest = slice_step, manifest
        self._frame = SliceFrame.of(self.scan.shape[1:], manifest)

    @functools.cached_property
    def _scan_range(self) -> tuple[float, float]:
        return clip_range(self.scan, self._manifest.scaling)

    def picture(self, index: int) -> np.ndarray:
        """See `Views`."""
        return self._frame.picture(self.scan[index], self._manifest.scaling, self._scan_range)

    def sightings(
        self, predicted_mask: np.ndarray, uncertainty: np.ndarray | None, n_classes: int, find: Find
    ) -> tuple[list[Sighting], np.ndarray]:
        """See `Views`. A slice that a class fills has no border to find: it is not asked about that class."""
        found: list[Sighting] = []
        unasked = np.zeros(predicted_mask.shape, bool)
        for index in np.flatnonzero(predicted_mask.any(axis=(1, 2))):
            if index % self._slice_step:
                continue
            for class_index in range(1, n_classes):
                foreground_mask = predicted_mask[index] == class_index
                if foreground_mask.all():
                    continue
                prompts = find(foreground_mask, None if uncertainty is None else uncertainty[index])
                unasked[index] |= prompts.too_small
                pairs = zip(prompts.boxes_vox, prompts.points_vox, strict=True)
                found += [
                    Sighting(int(index), class_index, box, points, prompts.components[None] == number)
                    for number, (box, points) in enumerate(pairs, start=1)
                ]
        return found, unasked

    def prompts(self, asked: Sequence[Sighting], class_probs: np.ndarray, kinds: Sequence[str]) -> Prompts:
        """See `Views`."""
        frame, size = self._frame, self._manifest.mask_size

        def mask(class_index: int, view: int) -> np.ndarray:
            logits = mask_prompt_logits(class_probs[class_index, view], _SURE_LOGIT)
            return frame.mask_prompt(logits, size, -_SURE_LOGIT)

        return Prompts(
            points=frame.points(np.array([s.points_vox for s in asked])) if "point" in kinds else None,
            boxes=frame.boxes(np.array([s.box_vox for s in asked])) if "box" in kinds else None,
            masks=_masks(asked, mask) if "mask" in kinds else None,
        )

    def region(self, index: int) -> Region:
        """See `Views`."""
        return (slice(index, index + 1), slice(None), slice(None))

    def on_voxels(self, asked: Sequence[Sighting], low_res_logits: np.ndarray) -> Iterator[np.ndarray]:
        """See `Views`."""
        yield from self._frame.logits(low_res_logits)[:, None]


class WindowViews:
    """Overlapping windows; each component of the scan is asked about in the window nearest to its innermost voxel."""

    def __init__(self, scan: np.ndarray, spacing_mm: Sequence[float] | None, manifest: Manifest) -> None:
        self.order: tuple[int, ...] = (0, 1, 2)
        self.scan = np.ascontiguousarray(scan, np.float32)
        self._manifest = manifest
        self._frame = WindowFrame.of(self.scan.shape, spacing_mm, manifest)
        self.count = len(self._frame.starts)
        self.geometry = f"windows {self._frame}"

    @functools.cached_property
    def _scan_range(self) -> tuple[float, float]:
        return clip_range(self.scan, self._manifest.scaling)

    @functools.cached_property
    def _padded(self) -> np.ndarray:
        return self._frame.on_models_grid(self.scan, self._scan_range)

    def picture(self, index: int) -> np.ndarray:
        """See `Views`."""
        return self._frame.picture(index, self._padded, self._manifest.scaling, self._scan_range)

    def sightings(
        self, predicted_mask: np.ndarray, uncertainty: np.ndarray | None, n_classes: int, find: Find
    ) -> tuple[list[Sighting], np.ndarray]:
        """See `Views`. A component that fills its window has no border to find there: it is not asked about."""
        found: list[Sighting] = []
        unasked = np.zeros(predicted_mask.shape, bool)
        for class_index in range(1, n_classes):
            foreground_mask = predicted_mask == class_index
            if foreground_mask.all():
                continue
            prompts = find(foreground_mask, uncertainty)
            unasked |= prompts.too_small
            nearest = [self._frame.nearest(points[0]) for points in prompts.points_vox]
            for view in sorted(set(nearest)):
                numbers = 1 + np.flatnonzero(np.array(nearest) == view)
                filled = self._filling(prompts.components, view)
                # What lies beyond the window the model is not shown, so nothing is learnt of it.
                beyond = np.isin(prompts.components, numbers)
                beyond[self.region(view)] &= filled in numbers
                unasked |= beyond
                for i in numbers[numbers != filled] - 1:
                    points = self._within(prompts.points_vox[i], view)
                    voxels = prompts.components[self.region(view)] == i + 1
                    found.append(Sighting(view, class_index, prompts.boxes_vox[i], points, voxels))
        return sorted(found, key=lambda sighting: sighting.view), unasked

    def _filling(self, components: np.ndarray, view: int) -> int:
        """Number of the component that fills a window; -1 if none does."""
        part = components[self.region(view)]
        number = int(part.flat[0])
        return number if number and (part == number).all() else -1

    def _within(self, points_vox: np.ndarray, view: int) -> np.ndarray:
        """Clicks [p, 3]; those beyond the window are the first one again, which is within."""
        region = self.region(view)
        inside = [(points_vox[:, a] >= span.start) & (points_vox[:, a] < span.stop) for a, span in enumerate(region)]
        return np.where(np.all(inside, axis=0)[:, None], points_vox, points_vox[0])

    def prompts(self, asked: Sequence[Sighting], class_probs: np.ndarray, kinds: Sequence[str]) -> Prompts:
        """See `Views`."""
        frame, size = self._frame, self._manifest.mask_size
        logits_of = functools.cache(lambda class_index: mask_prompt_logits(class_probs[class_index], _SURE_LOGIT))

        def mask(class_index: int, view: int) -> np.ndarray:
            return frame.mask_prompt(logits_of(class_index), view, size, -_SURE_LOGIT)

        return Prompts(
            points=np.stack([frame.points(s.points_vox, s.view) for s in asked]) if "point" in kinds else None,
            masks=_masks(asked, mask) if "mask" in kinds else None,
        )

    def region(self, index: int) -> Region:
        """See `Views`."""
        return self._frame.region(index)

    def on_voxels(self, asked: Sequence[Sighting], low_res_logits: np.ndarray) -> Iterator[np.ndarray]:
        """See `Views`."""
        for sighting, logits in zip(asked, low_res_logits, strict=True):
            yield self._frame.logits(logits, sighting.view)


def _masks(asked: Sequence[Sighting], mask: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """float32 [n, *mask_size]: the class's mask in the view, made once for all its components."""
    made = functools.cache(mask)
    return np.stack([made(sighting.class_index, sighting.view) for sighting in asked])
