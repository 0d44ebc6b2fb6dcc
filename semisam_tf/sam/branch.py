"""From a prediction to SAM's target: slices, prompts, encoder (once per slice), decoder, masks, trust."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from semisam_tf.sam.cache import EmbeddingCache, ScanEmbeddings, content_key, quantise
from semisam_tf.sam.frame import SliceFrame, clip_range
from semisam_tf.sam.prompts import component_prompts, mask_prompt_logits
from semisam_tf.sam.session import CPU, SamSession
from semisam_tf.sam.target import SamTarget, dice

# Slices whose embeddings (4 MiB each) and logits are held at a time.
_SLICES_AT_A_TIME = 16
TRUSTS = ("iou", "one")
# Inputs of a decoder that can be made from a prediction, and the kind of prompt they are.
PROMPT_ROLES = {"boxes": "box", "points": "point", "point_labels": "point", "masks": "mask"}
# Mask prompts beyond the slice: surely background, and no more so than a sure voxel within.
_SURE_LOGIT = 10.0


@dataclasses.dataclass(frozen=True)
class _Prompt:
    """One component of the prediction: in which slice, of which class, its box and innermost voxel in the slice."""

    slice_index: int
    class_index: int
    box_vox: np.ndarray
    point_vox: np.ndarray


@dataclasses.dataclass
class _Answer:
    """What SAM said, on slices.

    `sam_mask` uint8 [slices, rows, columns] is SAM's class of each voxel; `slice_ious` has for each prompted slice the
    predicted IoU of its prompts.
    """

    sam_mask: np.ndarray
    slice_ious: dict[int, list[float]]


class SamBranch:
    """Prompts a 2D SAM with a prediction, slice by slice: boxes, points and masks as its manifest allows.

    Args:
        session: The model.
        axis: Axis of [X, Y, Z] along which the scan is cut into slices. Of the two others the first runs along the
            picture's columns (x), the second along its rows (y).
        margin_vox: Voxels added around each component's box.
        min_area_vox: Components of fewer voxels in a slice are not prompted.
        slice_step: Prompt every so manieth slice of a scan only (those whose index it divides).
        max_slices: Prompt at most so many of these, drawn at random; 0 for all.
        trust: Weight of a prompted slice: "iou" for SAM's own predicted IoU, clipped to [0, 1] (mean over the slice's
            prompts); "one" for 1.
        channel: The image channel that SAM sees.
        cache: Where embeddings are kept for `target` calls with a key; None to encode each time.

    Raises:
        ValueError: The model wants a prompt that a prediction cannot give, or an argument is out of range.
    """

    def __init__(
        self,
        session: SamSession,
        axis: int = 2,
        margin_vox: int = 2,
        min_area_vox: int = 8,
        slice_step: int = 1,
        max_slices: int = 0,
        trust: str = "iou",
        channel: int = 0,
        cache: EmbeddingCache | None = None,
    ) -> None:
        allowed = {role for role, kind in PROMPT_ROLES.items() if session.manifest.prompts[kind]}
        wanted = set(session.manifest.decoder_inputs) - {"embeddings"}
        if not wanted or wanted - allowed:
            raise ValueError(
                f"Expected a SAM whose decoder takes prompts of {sorted(PROMPT_ROLES)} and was trained with them. "
                f"Received: family={session.manifest.family!r}, prompts={sorted(wanted)}, trained with "
                f"{sorted(allowed)}; {dict(session.manifest.prompt_notes)}."
            )
        if session.manifest.dims != 2:
            raise ValueError(
                f"Expected a SAM of slices (dims=2); SAMs of volumes cannot be driven yet. Received: "
                f"family={session.manifest.family!r}, dims={session.manifest.dims}."
            )
        if axis not in (0, 1, 2) or trust not in TRUSTS or max_slices < 0 or margin_vox < 0 or slice_step < 1:
            raise ValueError(
                f"Expected axis 0, 1 or 2, trust one of {TRUSTS}, max_slices and margin_vox at least 0, slice_step "
                f"at least 1. Received: axis={axis}, trust={trust!r}, max_slices={max_slices}, "
                f"margin_vox={margin_vox}, slice_step={slice_step}."
            )
        self.session, self.cache = session, cache
        self.axis, self.channel, self.trust = axis, channel, trust
        self.margin_vox, self.min_area_vox = margin_vox, min_area_vox
        self.slice_step, self.max_slices = slice_step, max_slices
        # Other providers round otherwise; a cache that both fill must not mix them.
        provider = "" if session.providers[0] == CPU else session.providers[0]
        self._digest = session.manifest.digest() + provider
        # [X, Y, Z] -> [slices, rows, columns]; argsort of it leads back.
        self._order = (axis, *[a for a in (2, 1, 0) if a != axis])

    def target(
        self,
        image: np.ndarray,
        class_probs: np.ndarray,
        key: str | None = None,
        rng: np.random.Generator | None = None,
    ) -> SamTarget:
        """SAM's target for one scan or crop.

        Weight 0 goes to slices without a prompt, to those that the prediction or SAM's mask fills (no border to find),
        and to those where SAM answers the prompts with nothing.

        Args:
            image: float32 [X, Y, Z, C].
            class_probs: float32 [X, Y, Z, K], a network's prediction; K is at least 2.
            key: Name of the scan, for the cache; None to leave the cache alone (crops).
            rng: Draws the slices; needed only with `max_slices`.

        Raises:
            ValueError: Shapes do not fit, or `rng` is missing.
        """
        if image.ndim != 4 or class_probs.ndim != 4 or image.shape[:3] != class_probs.shape[:3]:
            raise ValueError(
                "Expected image [X, Y, Z, C] and class_probs [X, Y, Z, K] of one grid. "
                f"Received: image={image.shape}, class_probs={class_probs.shape}."
            )
        # [slices, rows, columns]
        planes = np.ascontiguousarray(image[..., self.channel].transpose(self._order), np.float32)
        predicted_mask = class_probs.argmax(axis=-1).astype(np.uint8).transpose(self._order)
        prompts, unasked = self._prompts(predicted_mask, class_probs.shape[-1], rng)
        frame = SliceFrame.of(planes.shape[1:], self.session.manifest)
        # [K, slices, rows, columns]
        class_planes = class_probs.transpose(3, *self._order)
        answer = self._answer(planes, prompts, frame, key, class_planes)
        return self._target(answer, unasked, predicted_mask, class_probs.shape[-1])

    def _prompts(
        self, predicted_mask: np.ndarray, n_classes: int, rng: np.random.Generator | None
    ) -> tuple[list[_Prompt], np.ndarray]:
        """Prompts of the slices that are asked about, and the predicted voxels too few to ask about (`unasked`)."""
        prompts: list[_Prompt] = []
        unasked = np.zeros(predicted_mask.shape, bool)
        full = predicted_mask[0].size
        for index in np.flatnonzero(predicted_mask.any(axis=(1, 2))):
            if index % self.slice_step:
                continue
            for class_index in range(1, n_classes):
                foreground_mask = predicted_mask[index] == class_index
                if np.count_nonzero(foreground_mask) == full:
                    continue
                found = component_prompts(foreground_mask, self.margin_vox, self.min_area_vox)
                unasked[index] |= found.too_small
                pairs = zip(found.boxes_vox, found.points_vox, strict=True)
                prompts += [_Prompt(int(index), class_index, box, point) for box, point in pairs]
        slices = sorted({prompt.slice_index for prompt in prompts})
        if self.max_slices and len(slices) > self.max_slices:
            if rng is None:
                raise ValueError("Expected rng to draw the slices with. Received: rng=None with max_slices set.")
            drawn = set(rng.choice(slices, self.max_slices, replace=False).tolist())
            prompts = [prompt for prompt in prompts if prompt.slice_index in drawn]
        return prompts, unasked

    def _answer(
        self, planes: np.ndarray, prompts: list[_Prompt], frame: SliceFrame, key: str | None, class_planes: np.ndarray
    ) -> _Answer:
        """Prompts of one class in one slice are joined; where classes meet, the larger logit wins."""
        answer = _Answer(np.zeros(planes.shape, np.uint8), {})
        if not prompts:
            return answer
        scan_range = clip_range(planes, self.session.manifest.scaling)
        stored = self._stored(planes, key)
        slices = sorted({prompt.slice_index for prompt in prompts})
        for start in range(0, len(slices), _SLICES_AT_A_TIME):
            chunk = slices[start : start + _SLICES_AT_A_TIME]
            position = {index: i for i, index in enumerate(chunk)}
            asked = [prompt for prompt in prompts if prompt.slice_index in position]
            embeddings = self._embeddings(planes, chunk, frame, scan_range, stored)
            decoded = self.session.decode(
                embeddings[[position[prompt.slice_index] for prompt in asked]],
                self._roles(asked, frame, class_planes),
            )
            # [chunk, classes, rows, columns]; the background's logit is the threshold itself.
            best = np.full((len(chunk), len(class_planes), *planes.shape[1:]), -np.inf, np.float32)
            best[:, 0] = self.session.manifest.mask_threshold_logits
            for prompt, logits, iou in zip(asked, frame.logits(decoded.logits), decoded.predicted_iou, strict=True):
                place = best[position[prompt.slice_index], prompt.class_index]
                np.maximum(place, logits, out=place)
                answer.slice_ious.setdefault(prompt.slice_index, []).append(float(iou))
            answer.sam_mask[chunk] = best.argmax(axis=1)
        return answer

    def _roles(self, asked: list[_Prompt], frame: SliceFrame, class_planes: np.ndarray) -> dict[str, np.ndarray]:
        """The decoder's inputs for these prompts, by role; only those that this decoder has."""
        tensors = self.session.manifest.decoder_inputs
        roles: dict[str, np.ndarray] = {}
        if "boxes" in tensors:
            roles["boxes"] = frame.boxes(np.array([prompt.box_vox for prompt in asked]))
        if "points" in tensors:
            roles["points"] = frame.points(np.array([prompt.point_vox for prompt in asked]))[:, None]
        if "point_labels" in tensors:
            roles["point_labels"] = np.ones((len(asked), 1), np.float32)
        if "masks" in tensors:
            size = [int(n) for n in tensors["masks"].shape[1:]]
            logits = [mask_prompt_logits(class_planes[p.class_index, p.slice_index], _SURE_LOGIT) for p in asked]
            roles["masks"] = np.stack([frame.mask_prompt(plane, size, -_SURE_LOGIT) for plane in logits])
        return roles

    def _embeddings(
        self,
        planes: np.ndarray,
        indices: Sequence[int],
        frame: SliceFrame,
        scan_range: tuple[float, float],
        stored: ScanEmbeddings | None,
    ) -> np.ndarray:
        """float16 [N, *embedding_shape] of slices, from the cache where it has them."""
        scaling = self.session.manifest.scaling
        missing = list(indices) if stored is None else stored.missing(indices)
        fresh = np.zeros((len(missing), *self.session.manifest.embedding_shape), np.float16)
        # One graph run at a time into the cache: a killed process loses that run, not a scan's worth of work.
        for start in range(0, len(missing), self.session.encoder_batch):
            part = missing[start : start + self.session.encoder_batch]
            pictures = np.stack([frame.picture(planes[i], scaling, scan_range) for i in part])
            fresh[start : start + len(part)] = quantise(self.session.encode(pictures))
            if stored is not None:
                stored.write(part, fresh[start : start + len(part)])
        return fresh if stored is None else stored.read(indices)

    def _stored(self, planes: np.ndarray, key: str | None) -> ScanEmbeddings | None:
        if self.cache is None or key is None:
            return None
        content = content_key(planes, self._digest, self.axis)
        return self.cache.scan(key, content, len(planes), self.session.manifest.embedding_shape)

    def _slice_weight(self, answer: _Answer) -> np.ndarray:
        weight = np.zeros(len(answer.sam_mask), np.float32)
        for index, ious in answer.slice_ious.items():
            said = answer.sam_mask[index] > 0
            if said.any() and not said.all():
                weight[index] = 1.0 if self.trust == "one" else np.clip(ious, 0, 1).mean()
        return weight

    def _target(self, answer: _Answer, unasked: np.ndarray, predicted_mask: np.ndarray, n_classes: int) -> SamTarget:
        back = np.argsort(self._order)
        slice_weight = self._slice_weight(answer)
        trusted = slice_weight > 0
        ious = [iou for slice_ious in answer.slice_ious.values() for iou in slice_ious]
        scores = {
            "prompts": float(len(ious)),
            "slices_prompted": float(len(answer.slice_ious)),
            "weighted_share": float(np.mean(trusted)),
            "mean_weight": float(slice_weight[trusted].mean()) if trusted.any() else 0.0,
            "predicted_iou": float(np.mean(ious)) if ious else 0.0,
            "agreement": dice(answer.sam_mask[trusted] > 0, predicted_mask[trusted] > 0) if trusted.any() else 0.0,
        }
        # SAM was not asked about specks, so its silence on them is no reason to unlearn them.
        weight = np.where(unasked, np.float32(0), slice_weight[:, None, None]).transpose(back)
        probs = np.eye(n_classes, dtype=np.float32)[answer.sam_mask.transpose(back)]
        return SamTarget(np.ascontiguousarray(probs), np.ascontiguousarray(weight), scores)
