"""Targets for unlabelled scans kept as files: made once from a trained network, and from SAM where one is given.

One HDF5 file a scan, in the training grid: `probs` uint8 [x, y, z, K - 1], 255ths of the probability of each class but
the background, and `weight` uint8 [x, y, z], 255ths of how far to trust it. A coarse-to-fine run's targets are of the
region where it looked, whose corners are the attribute `region`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from semisam_tf.atomic import locked, write_json
from semisam_tf.config import Config
from semisam_tf.data.batches import Batch
from semisam_tf.data.hdf5 import replacing_h5
from semisam_tf.data.preprocess import onto_grid, preprocessing_of
from semisam_tf.data.scans import prepared_from
from semisam_tf.data.volumes import Volume, find_case, load_volume, save_mask, write_on_grid
from semisam_tf.inference.region import Region
from semisam_tf.options import OptionError
from semisam_tf.training.targets import LEVELS, Target, as_bytes, cut

MAKING_FILE = "making.json"
# Among the making: cases whose labels the targets rest on.
LEARNED_FROM = "learned_from"
# Of a case's files for a viewer: its mask, and how sure it is.
_NIFTI = (".nii.gz", "_trust.nii.gz")


def target_path(folder: Path, case_id: str) -> Path:
    """Where a case's target lies; case names may hold slashes, as in the case lists."""
    return folder / f"{case_id}.h5"


def require_same_making(folder: Path, making: Mapping[str, Any]) -> None:
    """Writes down how a folder's targets are made, or compares: those that are there are kept, so all must be alike.

    Of several processes that begin at once the first writes, and the others compare.

    Args:
        making: JSON values by flag, or by what else decides a target.

    Raises:
        OptionError: The folder's targets were made otherwise; names everything that differs.
    """
    with locked(folder, "folder of targets", name=".lock_making", wait=True):
        _require_same_making(folder, making)


def _require_same_making(folder: Path, making: Mapping[str, Any]) -> None:
    there = making_of(folder)
    if there is None:
        if any(folder.glob("*.h5")):
            raise OptionError(
                f"How the targets in {folder} were made is not on record: name another folder, or remove this one."
            )
        write_json(folder / MAKING_FILE, making)
        return
    if isinstance(there.get(LEARNED_FROM), list):
        there[LEARNED_FROM] = sorted(there[LEARNED_FROM])  # other versions kept it in other orders
    if LEARNED_FROM not in there:
        # Of an older version. The run that made them is compared below, so what it rests on is known now.
        there[LEARNED_FROM] = making[LEARNED_FROM]
        write_json(folder / MAKING_FILE, there)
    # A setting that the version which made them did not have yet is at its default.
    defaults = {f"--{name}": value for name, value in Config().to_dict().items()}
    there = {name: defaults[name] for name in making if name in defaults} | there
    differing = [name for name in sorted({*making, *there}) if making.get(name) != there.get(name)]
    if differing:
        shown = "; ".join(f"{name}: {there.get(name)!r} there, {making.get(name)!r} now" for name in differing)
        raise OptionError(
            f"The targets in {folder} were made otherwise ({shown}): go on with the same, name another folder, or "
            "remove this one to make them anew."
        )


def targets_learned_from(folder: Path) -> list[str] | None:
    """Cases whose labels a folder's targets rest on; None where that is not on record."""
    return (making_of(folder) or {}).get(LEARNED_FROM)


def making_of(folder: Path) -> dict[str, Any] | None:
    """How a folder's targets were made, as `require_same_making` kept it; None where that is not on record."""
    path = folder / MAKING_FILE
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"Expected JSON in {path}. Received: {error}. Remove {folder} to make its targets anew."
        ) from error


def targets_sha256(folder: Path, case_ids: Sequence[str]) -> str:
    """One sha256 over the targets of those cases, in order: a run that goes on must find the same ones.

    Raises:
        FileNotFoundError: A target is not there.
    """
    digest = hashlib.sha256()
    for case_id in case_ids:
        digest.update(_existing(folder, case_id).read_bytes())
    return digest.hexdigest()


def write_target(
    folder: Path,
    case_id: str,
    probs: np.ndarray,
    weight: np.ndarray,
    scores: Mapping[str, float],
    region: Region | None = None,
) -> None:
    """Writes one target: probs float32 [x, y, z, K] summing to 1, weight float32 [x, y, z] in [0, 1].

    Args:
        scores: The numbers it was judged by, kept as the attribute `scores`, JSON.
        region: Of a coarse-to-fine run, the part of the scan that the target is of.
    """
    target = as_bytes(probs, weight)
    with replacing_h5(target_path(folder, case_id)) as file:
        file.attrs["scores"] = json.dumps(dict(scores))
        if region is not None:
            file.attrs["region"] = json.dumps(dataclasses.asdict(region))
        file.create_dataset("probs", data=target.probs, compression="gzip", compression_opts=4)
        file.create_dataset("weight", data=target.weight, compression="gzip", compression_opts=4)


def read_target(folder: Path, volume: Volume, n_classes: int) -> Target:
    """The target of a scan in the training grid, cut to the target's region where it has one.

    Raises:
        FileNotFoundError: There is none.
        ValueError: The file is damaged, or is of another grid or number of classes.
    """
    with _opened(folder, volume.case_id) as file:
        target, path = Target(file["probs"][()], file["weight"][()]), file.filename
    wanted = (*volume.size, n_classes - 1)
    if target.probs.shape != wanted or target.weight.shape != volume.size:
        raise ValueError(
            f"Expected a target of {n_classes} classes on the training grid {volume.size} in {path}; it was made with "
            "another --training_spacing_mm, --n_classes, --coarse_to_fine or from another scan. "
            f"Received: probs {target.probs.shape}, weight {target.weight.shape}."
        )
    return target


def target_scores(folder: Path, case_id: str) -> dict[str, float]:
    """The numbers that a target was judged by, as in `SamTarget.scores`; none of one that no SAM was asked for.

    Raises:
        FileNotFoundError, ValueError: As `read_target`.
    """
    with _opened(folder, case_id) as file:
        return dict(json.loads(file.attrs["scores"]))


def target_region(folder: Path, case_id: str) -> Region:
    """The part of a scan, in its own voxels, that a coarse-to-fine run made the target of.

    Raises:
        FileNotFoundError: There is no target.
        ValueError: The file is damaged, or the target is of a run that looks at whole scans.
    """
    with _opened(folder, case_id) as file:
        if "region" not in file.attrs:
            raise ValueError(
                f"Expected the target of a coarse-to-fine run in {file.filename}, with the region that it is of: make "
                "targets from such a run, or leave out --coarse_to_fine. Received: one of a whole scan."
            )
        try:
            corners = json.loads(file.attrs["region"])
            return Region(tuple(corners["low"]), tuple(corners["high"]), corners["found"])
        except (TypeError, ValueError) as error:
            raise KeyError(f"region: {error}") from error


def _existing(folder: Path, case_id: str) -> Path:
    path = target_path(folder, case_id)
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected a target for case {case_id!r} at {path}: write them with python -m semisam_tf.pseudolabel, or "
            "take the case out of the list."
        )
    return path


@contextlib.contextmanager
def _opened(folder: Path, case_id: str) -> Iterator[h5py.File]:
    path = _existing(folder, case_id)
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError) as error:
        raise ValueError(f"Expected a target that pseudolabel wrote in {path}. Received: {error}.") from error


def write_nifti(config: Config, folder: Path, case_id: str, on_source: bool = False) -> None:
    """Draws a target in its scan's own grid: `<case>.nii.gz`, the mask, and `<case>_trust.nii.gz`.

    With `on_source` it is the grid of the scan that `semisam_tf.prepare` made the case of: such a mask can be prepared
    again as that scan's label.

    The trust is how sure the target is of its class, from 0 (no surer than chance) to 1, times its weight.

    A file that is newer than the target stays: it has been drawn, and a mask may have been corrected since.
    """
    made_ns = target_path(folder, case_id).stat().st_mtime_ns
    mask_path, trust_path = (folder / f"{case_id}{ending}" for ending in _NIFTI)
    missing = [path for path in (mask_path, trust_path) if not path.is_file() or path.stat().st_mtime_ns < made_ns]
    if not missing:
        return
    files = find_case(config.data_dir, case_id)
    scan = load_volume(files, with_label=False, default_spacing_mm=config.default_spacing_mm or None)
    preprocessing = preprocessing_of(config)
    region = target_region(folder, case_id) if config.coarse_to_fine else Region.whole(scan)
    grid = preprocessing.to_training_grid(region.crop(scan), config.n_classes)
    target = read_target(folder, grid, config.n_classes)
    foreground = target.probs.astype(np.float32) / LEVELS
    probs = np.concatenate([1 - foreground.sum(axis=-1, keepdims=True), foreground], axis=-1)
    sure = (probs.max(axis=-1) - 1 / config.n_classes) / (1 - 1 / config.n_classes)
    trust = sure * target.weight.astype(np.float32) / LEVELS
    drawn = np.concatenate([probs, trust[..., None]], axis=-1)
    # Nothing is said around the region, or beyond what prepare kept of the scan: background, which nobody vouches for.
    if on_source:
        own_scan = prepared_from(files)
        own = onto_grid(drawn, grid.affine, own_scan.affine, own_scan.size)
        mask, own_trust = own[..., :-1].argmax(axis=-1).astype(np.uint8), own[..., -1]
    else:
        own_scan, own = scan, preprocessing.probs_to_own_grid(drawn, region.size)
        mask = region.paste(own[..., :-1].argmax(axis=-1).astype(np.uint8), scan.size)
        own_trust = region.paste(own[..., -1], scan.size)
    if mask_path in missing:
        save_mask(mask_path, mask, own_scan)
    if trust_path in missing:
        write_on_grid(trust_path, own_trust, own_scan)


class StoredTargets:
    """Targets of a folder for the unlabelled items of a batch: `sam_mode=offline`. They stay in their files."""

    def __init__(self, folder: str | Path, unlabelled: Sequence[Volume], n_classes: int, start_step: int = 0) -> None:
        """Reads each of them once, so that what does not fit is said now; raises what `read_target` does."""
        self.folder, self.start_step, self.n_classes = Path(folder), start_step, n_classes
        scores = []
        for volume in unlabelled:
            read_target(self.folder, volume, n_classes)
            scores.append(target_scores(self.folder, volume.case_id))
        asked = [found for found in scores if found.get("weighted_share")]
        self.sam_share = sum(found["weighted_share"] for found in asked) / max(1, len(scores))
        self.sam_weight = sum(found["mean_weight"] for found in asked) / max(1, len(asked))
        self.totals = {"voxels": 0, "voxels_taught": 0, "weight_sum": 0.0}

    def with_targets(self, step: int, batch: Batch) -> Batch:
        """A step's batch with its targets, for `targets`: made by other threads while steps compute."""
        return dataclasses.replace(batch, targets=self._cut_out(step, batch))

    def _cut_out(self, step: int, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        first = len(batch.labels)
        images = batch.images[first:]
        probs = np.zeros((*images.shape[:4], self.n_classes), np.float32)
        weight = np.zeros(images.shape[:4], np.float32)
        if step < self.start_step:
            return probs, weight
        for item, (case_id, transform) in enumerate(zip(batch.case_ids[first:], batch.transforms[first:], strict=True)):
            with _opened(self.folder, case_id) as file:
                # HDF5 unpacks the chunks that a crop lies in, and no others.
                probs[item], weight[item] = cut(Target(file["probs"], file["weight"]), transform)
        return probs, weight

    def targets(self, step: int, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """As `SamTeaching.targets`; those that the batch has already are taken as they are."""
        probs, weight = batch.targets or self._cut_out(step, batch)
        if step < self.start_step:
            return probs, weight
        self.totals["voxels"] += weight.size
        self.totals["voxels_taught"] += int(np.count_nonzero(weight))
        self.totals["weight_sum"] += float(weight.sum(dtype=np.float64))
        return probs, weight

    def summary(self) -> dict[str, float]:
        """As `SamTeaching.summary`; training itself calls no SAM.

        Also "sam_share", the share of a scan's voxels in whose target SAM has a part, and "sam_weight", their mean
        weight, both means over the scans; 0 of targets in which SAM has none.
        """
        counts = ("targets", "encoder_calls", "decoder_calls", "slices_encoded", "prompts_decoded", "sam_calls")
        return {
            **dict.fromkeys(counts, 0),
            "duration_s": 0.0,
            "taught_share": self.totals["voxels_taught"] / max(1, self.totals["voxels"]),
            "mean_weight": self.totals["weight_sum"] / max(1, self.totals["voxels_taught"]),
            "sam_share": self.sam_share,
            "sam_weight": self.sam_weight,
        }

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, object]]:
        """As `SamTeaching.state`; the targets themselves stay in their files."""
        return {}, {"totals": self.totals}

    def restore(self, arrays: dict[str, np.ndarray], state: dict) -> None:
        """Takes over what `state` returned."""
        self.totals = dict(state["totals"])
