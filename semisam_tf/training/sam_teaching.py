"""Where TensorFlow meets SAM: targets for the unlabelled items of a batch, made between compiled steps.

online: SAM sees the batch's crops, as published.
cached: SAM sees whole scans in their own frame; a scan's target is kept, and cut, turned and flipped with the image.

Where a call of SAM fails, the crop, or the scan until its next visit, has weight 0, and the run goes on.
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
from semisam_tf.sam.ensemble import SamEnsemble
from semisam_tf.sam.fusion import fuse
from semisam_tf.sam.session import SamCallError
from semisam_tf.sam.target import SamTarget
from semisam_tf.training.oracle import OraclePrompts
from semisam_tf.training.targets import Target, as_bytes, cut, opened, packed

# A SAM that fails so often without an answer in between is broken, and hours of training without it are wasted.
MOST_FAILURES = 10


class SamTeaching:
    """SAM's targets and their state.

    Args:
        config: `sam_*` settings.
        sam: What asks SAM; None: nobody, and the targets are the predictions (cached, fused as their mean).
        crop_probs: [U, x, y, z, C] -> probs [U, x, y, z, K] of the model whose predictions prompt SAM.
        volume_probs: The same for a whole scan [X, Y, Z, C] -> [X, Y, Z, K].
        unlabelled: The unlabelled scans, in the training grid.
        oracle: Prompts SAM in the place of the model.
    """

    def __init__(
        self,
        config: Config,
        sam: SamEnsemble | None,
        crop_probs: Callable[[np.ndarray], np.ndarray],
        volume_probs: Callable[[np.ndarray], np.ndarray],
        unlabelled: list[Volume],
        oracle: OraclePrompts | None = None,
    ) -> None:
        self.config, self.sam = config, sam
        self.crop_probs, self.volume_probs, self.oracle = crop_probs, volume_probs, oracle
        self.volumes = {volume.case_id: volume for volume in unlabelled}
        self.visits: dict[str, int] = {}
        # Case -> its `packed` target: there may be thousands.
        self.kept: dict[str, np.ndarray] = {}
        # Told of each target of a whole scan: case, the probs [X, Y, Z, K] that prompted it, target.
        self.on_target: Callable[[str, np.ndarray, SamTarget], None] | None = None
        self.totals = {
            "targets": 0, "failed_targets": 0, "encoder_calls": 0, "decoder_calls": 0, "slices_encoded": 0,
            "prompts_decoded": 0, "voxels": 0, "voxels_taught": 0, "weight_sum": 0.0, "sam_share_sum": 0.0,
            "sam_weight_sum": 0.0, "weighed_targets": 0, "trusted_targets": 0, "duration_s": 0.0,
        }  # fmt: skip
        self.failures_in_a_row = 0
        self._warn_of_stale_targets()

    def _warn_of_stale_targets(self) -> None:
        config = self.config
        steps = config.max_steps - config.sam_start_step
        visits = steps * (config.batch_size - config.labelled_items()) / max(1, len(self.volumes))
        if config.sam_mode == "cached" and visits <= config.sam_refresh_visits:
            logging.warning(
                "Each of the %d unlabelled scans is visited about %.0f times from --sam_start_step=%d on, and SAM is "
                "asked about it once: its target, from what the network knows by then, stays to the end. Lower "
                "--sam_refresh_visits (%d) to have targets follow the network.",
                len(self.volumes), visits, config.sam_start_step, config.sam_refresh_visits,
            )  # fmt: skip

    def targets(self, step: int, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """SAM's say on the unlabelled items of `batch` at 0-based `step`; zeros before `sam_start_step`.

        Returns:
            probs float32 [U, x, y, z, K]; weight float32 [U, x, y, z] in [0, 1].
        """
        images = batch.images[len(batch.labels) :]
        probs = np.zeros((*images.shape[:4], self.config.n_classes), np.float32)
        weight = np.zeros(images.shape[:4], np.float32)
        if step < self.config.sam_start_step:
            return probs, weight
        before, began_s = self._counts(), time.monotonic()
        if self.config.sam_mode == "online":
            self._online(step, batch, probs, weight)
        else:
            self._cached(batch, probs, weight)
        for name, count in self._counts().items():
            self.totals[name] += count - before[name]
        self.totals["duration_s"] += time.monotonic() - began_s
        self.totals["voxels"] += weight.size
        self.totals["voxels_taught"] += int(np.count_nonzero(weight))
        self.totals["weight_sum"] += float(weight.sum(dtype=np.float64))
        return probs, weight

    def _counts(self) -> dict[str, int]:
        return {} if self.sam is None else self.sam.counts()

    def _online(self, step: int, batch: Batch, probs: np.ndarray, weight: np.ndarray) -> None:
        first = len(batch.labels)
        images = batch.images[first:]
        predictions = self.crop_probs(images) if self.oracle is None else self.oracle.crop_probs(batch)
        for item, (image, predicted) in enumerate(zip(images, predictions, strict=True)):
            # Four numbers where a batch's items use three: the slices drawn do not hang together with the crops.
            rng = np.random.default_rng([self.config.seed, step, batch.items[first + item], 1])
            x, y, z = self.volumes[batch.case_ids[first + item]].spacing_mm
            # Quarter turns in the plane change the two axes over.
            spacing_mm = (y, x, z) if batch.transforms[first + item].turns % 2 else (x, y, z)
            target = self._asked(batch.case_ids[first + item], image, predicted, rng=rng, spacing_mm=spacing_mm)
            if target is not None:
                probs[item], weight[item] = self._fused(target, predicted)

    def _cached(self, batch: Batch, probs: np.ndarray, weight: np.ndarray) -> None:
        first = len(batch.labels)
        for item, (case_id, transform) in enumerate(zip(batch.case_ids[first:], batch.transforms[first:], strict=True)):
            visit = self.visits.get(case_id, 0)
            if visit % self.config.sam_refresh_visits == 0 or case_id not in self.kept:
                self._refresh(case_id)
            self.visits[case_id] = visit + 1
            if case_id in self.kept:
                with opened(self.kept[case_id]) as target:
                    probs[item], weight[item] = cut(target, transform)

    def _refresh(self, case_id: str) -> None:
        volume = self.volumes[case_id]
        predicted = self.volume_probs(volume.image) if self.oracle is None else self.oracle.scan_probs(case_id)
        target = self._asked(case_id, volume.image, predicted, key=case_id, spacing_mm=volume.spacing_mm)
        if target is None:
            self.kept.pop(case_id, None)
            return
        self.kept[case_id] = packed(as_bytes(*self._fused(target, predicted)))
        if self.sam is None:
            return
        # The first targets take seconds each, so the steps' own progress lines would be long in coming.
        logging.log_every_n_seconds(
            logging.INFO, "SAM: %s, %.0f prompts in %.0f views, Dice %.3f with the prediction; target %d", 15,
            case_id, target.scores["prompts"], target.scores["slices_prompted"], target.scores["agreement"],
            self.totals["targets"],
        )  # fmt: skip
        if self.on_target is not None:
            self.on_target(case_id, predicted, target)

    def _fused(self, target: SamTarget, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return fuse(target, predicted, self.config.sam_fusion, self.config.sam_smoothing_vox)

    def _asked(self, case_id: str, image: np.ndarray, predicted: np.ndarray, **about: Any) -> SamTarget | None:
        """The branch's target; None, counted and logged, where a call of SAM failed.

        Raises:
            RuntimeError: So many targets failed in a row that SAM is broken.
        """
        if self.sam is None:
            self.totals["targets"] += 1
            return SamTarget.silent(predicted.shape)
        try:
            target = self.sam.target(image, predicted, **about)
        except SamCallError as error:
            self.totals["failed_targets"] += 1
            self.failures_in_a_row += 1
            if self.failures_in_a_row >= MOST_FAILURES:
                raise RuntimeError(
                    f"Expected answers from SAM in {self.config.sam_dir}. Received: {self.failures_in_a_row} "
                    f"failures in a row, the last for {case_id}: {error}. Mend that, or train with --sam_mode=off in "
                    "another --workdir; the same command again goes on from the last checkpoint."
                ) from error
            logging.warning(
                "SAM failed on %s, which has weight 0 until SAM answers (%d in a row, %d in all): %s",
                case_id, self.failures_in_a_row, self.totals["failed_targets"], error,
            )  # fmt: skip
            return None
        # A target without prompts took no call.
        if target.scores["prompts"]:
            self.failures_in_a_row = 0
        self.totals["targets"] += 1
        self.totals["weighed_targets"] += 1
        self.totals["trusted_targets"] += target.scores["weighted_share"] > 0
        self.totals["sam_share_sum"] += target.scores["weighted_share"]
        self.totals["sam_weight_sum"] += target.scores["mean_weight"]
        return target

    def summary(self) -> dict[str, float]:
        """Calls and seconds so far, share of the unlabelled voxels that targets taught, and the mean weight of those.

        Counted from `sam_start_step` on. Encoder calls are those that the cache did not spare. What is taught need not
        be SAM's: under --sam_fusion=mean the network's own prediction is, where SAM says nothing. Hence "sam_share",
        the share of a scan's (online: a crop's) voxels in whose target SAM has a part, and "sam_weight", their mean
        weight, both means over the targets made, as of targets on file.
        """
        summed = ("voxels", "voxels_taught", "weight_sum", "sam_share_sum", "sam_weight_sum", "weighed_targets",
                  "trusted_targets")  # fmt: skip
        return {
            **{k: v for k, v in self.totals.items() if k not in summed},
            "sam_calls": self.totals["encoder_calls"] + self.totals["decoder_calls"],
            "taught_share": self.totals["voxels_taught"] / max(1, self.totals["voxels"]),
            "mean_weight": self.totals["weight_sum"] / max(1, self.totals["voxels_taught"]),
            "sam_share": self.totals["sam_share_sum"] / max(1, self.totals["weighed_targets"]),
            "sam_weight": self.totals["sam_weight_sum"] / max(1, self.totals["trusted_targets"]),
        }

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and JSON values from which `restore` makes the same object."""
        arrays = {f"packed/{case_id}": content for case_id, content in self.kept.items()}
        state = {"visits": self.visits, "totals": self.totals, "failures_in_a_row": self.failures_in_a_row}
        return arrays, state

    def restore(self, arrays: Mapping[str, np.ndarray], state: Mapping[str, Any]) -> None:
        """Takes over what `state` returned."""
        # Checkpoints of older versions count no failures, and have the targets' arrays as they are.
        self.visits, self.totals = dict(state["visits"]), self.totals | state["totals"]
        self.failures_in_a_row = state.get("failures_in_a_row", 0)
        self.kept = {}
        for name, array in arrays.items():
            kind, case_id = name.split("/", 1)
            if kind == "packed":
                self.kept[case_id] = array
            elif kind == "probs":
                self.kept[case_id] = packed(Target(array, arrays[f"weight/{case_id}"]))
