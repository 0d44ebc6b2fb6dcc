"""Where TensorFlow meets SAM: targets for the unlabelled items of a batch, made between compiled steps.

online: SAM sees the batch's crops, as published.
cached: SAM sees whole scans in their own frame; a scan's target is kept, and cut, turned and flipped with the image.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from absl import logging

from semisam_tf.config import Config
from semisam_tf.data.batches import Batch
from semisam_tf.data.volumes import Volume
from semisam_tf.sam.branch import SamBranch
from semisam_tf.training.oracle import OraclePrompts

# Targets are kept as bytes, the weight in 255ths: they go into every checkpoint.
_WEIGHT_LEVELS = 255.0


class SamTeaching:
    """SAM's targets and their state.

    Args:
        config: `sam_*` settings.
        branch: SAM behind its manifest.
        crop_probs: [U, x, y, z, C] -> probs [U, x, y, z, K] of the model whose predictions prompt SAM.
        volume_probs: The same for a whole scan [X, Y, Z, C] -> [X, Y, Z, K].
        unlabelled: The unlabelled scans, in the training grid.
        oracle: Prompts SAM in the place of the model.
    """

    def __init__(
        self,
        config: Config,
        branch: SamBranch,
        crop_probs: Callable[[np.ndarray], np.ndarray],
        volume_probs: Callable[[np.ndarray], np.ndarray],
        unlabelled: list[Volume],
        oracle: OraclePrompts | None = None,
    ) -> None:
        self.config, self.branch = config, branch
        self.crop_probs, self.volume_probs, self.oracle = crop_probs, volume_probs, oracle
        self.volumes = {volume.case_id: volume for volume in unlabelled}
        self.visits: dict[str, int] = {}
        self.masks: dict[str, np.ndarray] = {}
        self.weights: dict[str, np.ndarray] = {}
        self.totals = {
            "targets": 0, "encoder_calls": 0, "decoder_calls": 0, "slices_encoded": 0, "prompts_decoded": 0,
            "voxels": 0, "voxels_taught": 0, "weight_sum": 0.0, "duration_s": 0.0,
        }  # fmt: skip

    def targets(self, step: int, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """SAM's say on the unlabelled items of `batch` at 0-based `step`; zeros before `sam_start_step`.

        Returns:
            probs float32 [U, x, y, z, K], one-hot; weight float32 [U, x, y, z] in [0, 1].
        """
        images = batch.images[len(batch.labels) :]
        probs = np.zeros((*images.shape[:4], self.config.n_classes), np.float32)
        weight = np.zeros(images.shape[:4], np.float32)
        if step < self.config.sam_start_step:
            return probs, weight
        before, began_s = self.branch.session.counts(), time.monotonic()
        if self.config.sam_mode == "online":
            self._online(step, batch, probs, weight)
        else:
            self._cached(batch, probs, weight)
        for name, count in self.branch.session.counts().items():
            self.totals[name] += count - before[name]
        self.totals["duration_s"] += time.monotonic() - began_s
        self.totals["voxels"] += weight.size
        self.totals["voxels_taught"] += int(np.count_nonzero(weight))
        self.totals["weight_sum"] += float(weight.sum(dtype=np.float64))
        return probs, weight

    def _online(self, step: int, batch: Batch, probs: np.ndarray, weight: np.ndarray) -> None:
        first = len(batch.labels)
        images = batch.images[first:]
        predictions = self.crop_probs(images) if self.oracle is None else self.oracle.crop_probs(batch)
        for item, (image, predicted) in enumerate(zip(images, predictions, strict=True)):
            # Four numbers where a batch's items use three: the slices drawn do not hang together with the crops.
            rng = np.random.default_rng([self.config.seed, step, item, 1])
            x, y, z = self.volumes[batch.case_ids[first + item]].spacing_mm
            # Quarter turns in the plane change the two axes over.
            spacing_mm = (y, x, z) if batch.transforms[first + item].turns % 2 else (x, y, z)
            target = self.branch.target(image, predicted, rng=rng, spacing_mm=spacing_mm)
            probs[item], weight[item] = target.probs, target.weight
            self.totals["targets"] += 1

    def _cached(self, batch: Batch, probs: np.ndarray, weight: np.ndarray) -> None:
        first = len(batch.labels)
        for item, (case_id, transform) in enumerate(zip(batch.case_ids[first:], batch.transforms[first:], strict=True)):
            visit = self.visits.get(case_id, 0)
            if visit % self.config.sam_refresh_visits == 0:
                self._refresh(case_id)
            self.visits[case_id] = visit + 1
            mask = transform.apply(self.masks[case_id], order=0, fill=0)
            probs[item] = np.eye(self.config.n_classes, dtype=np.float32)[mask]
            shares = self.weights[case_id].astype(np.float32) / _WEIGHT_LEVELS
            # Nearest, not linear: a weight smeared over the edge of the trusted region trusts what SAM did not say.
            weight[item] = transform.apply(shares, order=0, fill=0)

    def _refresh(self, case_id: str) -> None:
        volume = self.volumes[case_id]
        predicted = self.volume_probs(volume.image) if self.oracle is None else self.oracle.scan_probs(case_id)
        target = self.branch.target(volume.image, predicted, key=case_id, spacing_mm=volume.spacing_mm)
        # The first targets take seconds each, so the steps' own progress lines would be long in coming.
        logging.log_every_n_seconds(
            logging.INFO, "SAM: %s, %.0f prompts in %.0f views, Dice %.3f with the prediction; target %d", 15,
            case_id, target.scores["prompts"], target.scores["slices_prompted"], target.scores["agreement"],
            self.totals["targets"] + 1,
        )  # fmt: skip
        self.masks[case_id] = np.argmax(target.probs, axis=-1).astype(np.uint8)
        self.weights[case_id] = np.round(target.weight * _WEIGHT_LEVELS).astype(np.uint8)
        self.totals["targets"] += 1

    def summary(self) -> dict[str, float]:
        """Calls and seconds so far, share of the unlabelled voxels that SAM taught, and the mean weight of those.

        Counted from `sam_start_step` on. Encoder calls are those that the cache did not spare.
        """
        return {
            **{k: v for k, v in self.totals.items() if k not in ("voxels", "voxels_taught", "weight_sum")},
            "sam_calls": self.totals["encoder_calls"] + self.totals["decoder_calls"],
            "taught_share": self.totals["voxels_taught"] / max(1, self.totals["voxels"]),
            "mean_weight": self.totals["weight_sum"] / max(1, self.totals["voxels_taught"]),
        }

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and JSON values from which `restore` makes the same object."""
        arrays = {f"mask/{k}": v for k, v in self.masks.items()} | {f"weight/{k}": v for k, v in self.weights.items()}
        return arrays, {"visits": self.visits, "totals": self.totals}

    def restore(self, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        """Takes over what `state` returned."""
        self.visits, self.totals = dict(state["visits"]), dict(state["totals"])
        for name, array in arrays.items():
            kind, case_id = name.split("/", 1)
            (self.masks if kind == "mask" else self.weights)[case_id] = array
