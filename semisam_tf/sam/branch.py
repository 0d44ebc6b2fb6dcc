"""From a prediction to SAM's target: views, prompts, encoder (once per view), decoder, masks, trust."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from scipy import ndimage, special

from semisam_tf.sam import trust as trusts
from semisam_tf.sam.cache import EmbeddingCache, ScanEmbeddings, content_key, quantise
from semisam_tf.sam.prompts import AUTO, component_prompts, prompt_kinds
from semisam_tf.sam.resident import ResidentEmbeddings
from semisam_tf.sam.runtime import CPU
from semisam_tf.sam.session import SamSession
from semisam_tf.sam.target import SamTarget, class_dice
from semisam_tf.sam.views import Sighting, Views, views_of

# Views whose embeddings (a few MiB each) and logits are held at a time.
_VIEWS_AT_A_TIME = 16


@dataclasses.dataclass
class _Answer:
    """What SAM said, in view order.

    `surest` uint8 is the class with the largest logit among those asked about (0 where none was), `margin` float32 that
    logit above the model's threshold; `view_ious` has for each prompted view the predicted IoU of its prompts; `lost`
    are the views in which SAM marked nothing, or everything: it has not found its organ there; `unanswered` bool are
    the voxels of components to whose prompts it marked nothing.
    """

    surest: np.ndarray
    margin: np.ndarray
    view_ious: dict[int, list[float]]
    lost: set[int]
    unanswered: np.ndarray

    @property
    def sam_mask(self) -> np.ndarray:
        """uint8, SAM's class of each voxel."""
        return np.where(self.margin > 0, self.surest, 0).astype(np.uint8)

    def soft(self, n_classes: int) -> np.ndarray:
        """float32 [..., K]: the surest class has the sigmoid of its margin, background the rest."""
        share = special.expit(self.margin)
        probs = share[..., None] * np.eye(n_classes, dtype=np.float32)[self.surest]
        probs[..., 0] = 1 - share
        return probs


class SamBranch:
    """Prompts a SAM with a prediction: slice by slice, or in windows of the scan, as its manifest says.

    Args:
        session: The model.
        prompts: Kinds of prompts, as `prompt_kinds` takes them.
        points: Clicks in each component, where prompts are points.
        surest_points: Click among those voxels of a component that the prediction is surest of.
        axis: 2D: axis of [X, Y, Z] along which the scan is cut into slices. Of the two others the first runs along the
            picture's columns (x), the second along its rows (y).
        margin_vox: Voxels added around each component's box.
        min_area_vox: Components of fewer voxels, in a slice or in the scan, are not prompted.
        slice_step: 2D: prompt every so manieth slice of a scan only (those whose index it divides); between two slices
            that are trusted the answer is interpolated.
        max_slices: Prompt at most so many of these views, drawn at random; 0 for all.
        trust: Weight of a prompted view: the product of those of `trusts.VIEW_TRUSTS` that are named, separated by
            commas; "one" for 1.
        channel: The image channel that SAM sees.
        cache: Where embeddings are kept for `target` calls with a key; None to encode each time.

    Raises:
        ValueError: The model does not support the prompts, or an argument is out of range.
    """

    def __init__(
        self,
        session: SamSession,
        prompts: str = AUTO,
        points: int = 1,
        surest_points: bool = False,
        axis: int = 2,
        margin_vox: int = 2,
        min_area_vox: int = 8,
        slice_step: int = 1,
        max_slices: int = 0,
        trust: str = "iou",
        channel: int = 0,
        cache: EmbeddingCache | None = None,
    ) -> None:
        self.kinds = prompt_kinds(session.manifest, prompts)
        low = min(max_slices, margin_vox) < 0 or min(slice_step, points) < 1
        self.trusts = trusts.parse(trust)
        if axis not in (0, 1, 2) or low:
            raise ValueError(
                "Expected axis 0, 1 or 2, max_slices and margin_vox at least 0, slice_step "
                f"and points at least 1. Received: axis={axis}, max_slices={max_slices}, "
                f"margin_vox={margin_vox}, slice_step={slice_step}, points={points}."
            )
        self.session, self.cache = session, cache
        self.surest_points, self.axis, self.channel = surest_points, axis, channel
        self.slice_step, self.max_slices = slice_step, max_slices
        self._find = functools.partial(
            component_prompts, margin_vox=margin_vox, min_area_vox=min_area_vox, n_points=points
        )
        # Other providers round otherwise; a cache that both fill must not mix them.
        provider = "" if session.providers[0] == CPU else session.providers[0]
        self._digest = session.manifest.digest() + provider

    def target(
        self,
        image: np.ndarray,
        class_probs: np.ndarray,
        key: str | None = None,
        rng: np.random.Generator | None = None,
        spacing_mm: Sequence[float] | None = None,
    ) -> SamTarget:
        """SAM's target for one scan or crop.

        Weight 0 goes to voxels that no prompted view shows, to views that the prediction or SAM's mask fills (no border
        to find), to those where SAM answers all prompts with nothing, to components whose own prompt it answers so, and
        to predicted voxels SAM was not asked about.

        Args:
            image: float32 [X, Y, Z, C].
            class_probs: float32 [X, Y, Z, K], a network's prediction; K is at least 2.
            key: Name of the scan, for the cache; None to leave the cache alone (crops).
            rng: Draws the views; needed only with `max_slices`.
            spacing_mm: Size of a voxel along X, Y, Z; a SAM of volumes needs it.

        Raises:
            ValueError: Shapes do not fit, or `rng` or `spacing_mm` is missing.
        """
        if image.ndim != 4 or class_probs.ndim != 4 or image.shape[:3] != class_probs.shape[:3]:
            raise ValueError(
                "Expected image [X, Y, Z, C] and class_probs [X, Y, Z, K] of one grid. "
                f"Received: image={image.shape}, class_probs={class_probs.shape}."
            )
        manifest, n_classes = self.session.manifest, class_probs.shape[-1]
        views = views_of(image[..., self.channel], spacing_mm, manifest, self.axis, self.slice_step)
        predicted_mask = class_probs.argmax(axis=-1).astype(np.uint8).transpose(views.order)
        uncertainty = special.entr(class_probs).sum(axis=-1).transpose(views.order) if self.surest_points else None
        # In 2D as ever by voxels, whatever the slices' spacing.
        find = self._find if manifest.dims == 2 else functools.partial(self._find, spacing=spacing_mm)
        sightings, unasked = views.sightings(predicted_mask, uncertainty, n_classes, find)
        # [K, ...] in view order
        answer = self._answer(views, self._drawn(sightings, rng), class_probs.transpose(3, *views.order), key)
        return self._target(views, answer, unasked, predicted_mask, n_classes)

    def _drawn(self, sightings: list[Sighting], rng: np.random.Generator | None) -> list[Sighting]:
        """Those of at most `max_slices` views."""
        prompted = sorted({sighting.view for sighting in sightings})
        if not self.max_slices or len(prompted) <= self.max_slices:
            return sightings
        if rng is None:
            raise ValueError("Expected rng to draw the slices with. Received: rng=None with max_slices set.")
        drawn = set(rng.choice(prompted, self.max_slices, replace=False).tolist())
        return [sighting for sighting in sightings if sighting.view in drawn]

    def _answer(self, views: Views, sightings: list[Sighting], class_probs: np.ndarray, key: str | None) -> _Answer:
        """Prompts of one class are joined; where classes meet, the larger logit wins."""
        never = np.full(views.scan.shape, -np.inf, np.float32)
        answer = _Answer(np.zeros(views.scan.shape, np.uint8), never, {}, set(), np.zeros(views.scan.shape, bool))
        threshold = np.float32(self.session.manifest.mask_threshold_logits)
        stored = self._stored(views, key) if sightings else None
        prompted = sorted({sighting.view for sighting in sightings})
        for start in range(0, len(prompted), _VIEWS_AT_A_TIME):
            chunk = prompted[start : start + _VIEWS_AT_A_TIME]
            position = {index: i for i, index in enumerate(chunk)}
            asked = [sighting for sighting in sightings if sighting.view in position]
            embeddings = self._embeddings(views, chunk, stored)
            decoded = self.session.decode(
                embeddings,
                views.prompts(asked, class_probs, self.kinds),
                rows=[position[sighting.view] for sighting in asked],
            )
            masks = views.on_voxels(asked, decoded.logits)
            said = dict.fromkeys(chunk, np.zeros((), bool))
            for sighting, logits, iou in zip(asked, masks, decoded.predicted_iou, strict=True):
                region = views.region(sighting.view)
                margin = logits - threshold
                better = margin > answer.margin[region]
                answer.margin[region][better] = margin[better]
                answer.surest[region][better] = sighting.class_index
                answer.view_ious.setdefault(sighting.view, []).append(float(iou))
                said[sighting.view] = said[sighting.view] | (margin > 0)
                if not (margin > 0).any():
                    answer.unanswered[region] |= sighting.voxels
            answer.lost |= {view for view, mask in said.items() if not mask.any() or mask.all()}
        return answer

    def _filled(self, answer: _Answer, weight: np.ndarray) -> np.ndarray:
        """Fills the slices that `slice_step` left out: margins are interpolated between the trusted slices beside them.

        Args:
            answer: Its `margin` and `surest` are filled in place.
            weight: float32 in view order.

        Returns:
            The weight, which is the smaller one of the two slices beside.
        """
        for first in range(0, len(weight) - self.slice_step, self.slice_step):
            last = first + self.slice_step
            if weight[first].max() == 0 or weight[last].max() == 0:
                continue
            for index in range(first + 1, last):
                share = np.float32((index - first) / self.slice_step)
                ends = np.stack([answer.margin[first], answer.margin[last]])
                answer.margin[index] = (1 - share) * ends[0] + share * ends[1]
                answer.surest[index] = np.where(ends[0] >= ends[1], answer.surest[first], answer.surest[last])
                weight[index] = np.minimum(weight[first].max(), weight[last].max())
        return weight

    def _between(self, predicted_mask: np.ndarray, unasked: np.ndarray) -> np.ndarray:
        """bool: parts of a class in the slices left out that lie over no part asked about in the slices beside them."""
        found = np.zeros(predicted_mask.shape, bool)
        for index in np.flatnonzero(predicted_mask.any(axis=(1, 2))):
            first = index - index % self.slice_step
            if first == index:
                continue
            beside = [i for i in (first, first + self.slice_step) if i < len(predicted_mask)]
            asked = np.where(unasked[beside], 0, predicted_mask[beside])
            for class_index in np.unique(predicted_mask[index][predicted_mask[index] > 0]):
                parts, _ = ndimage.label(predicted_mask[index] == class_index, np.ones((3, 3), bool))
                known = np.unique(parts[(asked == class_index).any(axis=0)])
                found[index] |= (parts > 0) & ~np.isin(parts, known)
        return found

    def _embeddings(
        self, views: Views, indices: Sequence[int], stored: ScanEmbeddings | None
    ) -> np.ndarray | ResidentEmbeddings:
        """float16 [N, *embedding_shape] of views, from the cache where it has them."""
        if stored is None and self.session.keeps_resident:
            return self.session.encode_resident(np.stack([views.picture(i) for i in indices]))
        missing = list(indices) if stored is None else stored.missing(indices)
        fresh = np.zeros((len(missing), *self.session.manifest.embedding_shape), np.float16)
        # One graph run at a time into the cache: a killed process loses that run, not a scan's worth of work.
        for start in range(0, len(missing), self.session.encoder_batch):
            part = missing[start : start + self.session.encoder_batch]
            pictures = np.stack([views.picture(i) for i in part])
            fresh[start : start + len(part)] = quantise(self.session.encode(pictures))
            if stored is not None:
                stored.write(part, fresh[start : start + len(part)])
        return fresh if stored is None else stored.read(indices)

    def _stored(self, views: Views, key: str | None) -> ScanEmbeddings | None:
        if self.cache is None or key is None:
            return None
        content = content_key(views.scan, self._digest, views.geometry)
        return self.cache.scan(key, content, views.count, self.session.manifest.embedding_shape)

    def _weight(self, views: Views, answer: _Answer, predicted_mask: np.ndarray) -> np.ndarray:
        """float32 in view order: mean trust of the prompted views that show a voxel; 0 where one of them is lost."""
        total, shown = np.zeros(views.scan.shape, np.float32), np.zeros(views.scan.shape, np.uint16)
        lost = np.zeros(views.scan.shape, bool)
        said, regions = answer.sam_mask, {view: views.region(view) for view in answer.view_ious}
        factors = trusts.view_trust(self.trusts, answer.view_ious, regions, said, predicted_mask)
        for view, region in regions.items():
            total[region] += np.float32(factors[view])
            shown[region] += 1
            lost[region] |= view in answer.lost
        return np.where(lost, np.float32(0), total / np.maximum(shown, 1).astype(np.float32))

    def _target(
        self, views: Views, answer: _Answer, unasked: np.ndarray, predicted_mask: np.ndarray, n_classes: int
    ) -> SamTarget:
        back = np.argsort(views.order)
        weight = self._weight(views, answer, predicted_mask)
        unasked |= answer.unanswered
        if self.session.manifest.dims == 2 and self.slice_step > 1:
            weight = self._filled(answer, weight)
            unasked |= self._between(predicted_mask, unasked)
        sam_mask = answer.sam_mask
        trusted = weight > 0
        ious = [iou for view_ious in answer.view_ious.values() for iou in view_ious]
        scores = {
            "prompts": float(len(ious)),
            "slices_prompted": float(len(answer.view_ious)),
            "weighted_share": float(np.mean(trusted)),
            "mean_weight": float(weight[trusted].mean(dtype=np.float64)) if trusted.any() else 0.0,
            "predicted_iou": float(np.mean(ious)) if ious else 0.0,
            "agreement": class_dice(sam_mask[trusted], predicted_mask[trusted]) if trusted.any() else 0.0,
        }
        # SAM was not asked about specks, so its silence on them is no reason to unlearn them.
        weight = np.where(unasked, np.float32(0), weight).transpose(back)
        probs = np.eye(n_classes, dtype=np.float32)[sam_mask.transpose(back)]
        soft = np.ascontiguousarray(answer.soft(n_classes).transpose(*back, 3))
        return SamTarget(np.ascontiguousarray(probs), np.ascontiguousarray(weight), scores, soft)
