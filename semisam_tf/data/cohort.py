"""Loads the scans of a run into the training grid."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np

from semisam_tf.data.label_access import LabelAccess
from semisam_tf.data.preprocess import Preprocessing
from semisam_tf.data.scan_cache import ScanCache
from semisam_tf.data.volumes import CaseFiles, Volume, find_case, load_volume


def load_cohort(
    data_dir: str | os.PathLike[str],
    case_ids: Sequence[str],
    with_label: LabelAccess | Literal[False],
    preprocessing: Preprocessing,
    default_spacing_mm: Sequence[float] | None,
    n_classes: int,
    workers: int = 2,
    crop: Callable[[Volume], Volume] | None = None,
    cache: ScanCache | None = None,
) -> list[Volume]:
    """Finds, reads, normalises and resamples cases; only the training grid stays in memory, or only the labels.

    Args:
        data_dir: Root of the data.
        case_ids: Names, the order of the result.
        with_label: What the labels are opened for; False reads no label at all, see `load_volume`.
        preprocessing: Normalisation and training spacing.
        default_spacing_mm: For HDF5 files without spacing.
        n_classes: With background; larger label values are an error.
        workers: Threads.
        crop: Cuts a scan, as loaded, before it is normalised; called from several threads. None: nothing is cut.
        cache: Where images in the training grid are kept and read from; None: in memory.

    Raises:
        FileNotFoundError, ValueError: The first case of the list that is missing, else the first that is bad, naming
            its file; or scans with different numbers of channels.
    """

    def load(files: CaseFiles) -> Volume:
        volume = load_volume(files, with_label=with_label, default_spacing_mm=default_spacing_mm)
        try:
            volume = dataclasses.replace(volume, content=_content(volume))
            cut = volume if crop is None else crop(volume)
            if cache is None:
                return preprocessing.to_training_grid(cut, n_classes)
            return cache.to_training_grid(cut, preprocessing, n_classes)
        except ValueError as error:
            raise ValueError(f"{files.label or files.image}: {error}") from error

    # Before the first is read: reading a large cohort takes minutes.
    found = [find_case(data_dir, case_id) for case_id in case_ids]
    executor = ThreadPoolExecutor(workers, thread_name_prefix="load")
    try:
        volumes = list(executor.map(load, found))
    finally:
        # One bad file is enough to stop: the rest need not be read first.
        executor.shutdown(wait=True, cancel_futures=True)
    check_channels(volumes)
    return volumes


def _content(volume: Volume) -> str:
    digest = hashlib.sha256(f"{volume.size} {volume.image.shape} {volume.spacing_mm} {volume.affine.tolist()}".encode())
    for array in (volume.image, volume.label):
        if array is not None:
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def check_channels(volumes: Sequence[Volume]) -> None:
    """Raises ValueError unless all scans have the same number of channels."""
    for volume in volumes:
        if volume.image.shape[-1] != volumes[0].image.shape[-1]:
            raise ValueError(
                f"Expected all scans to have the same channels. Received: {volumes[0].image.shape[-1]} in case "
                f"{volumes[0].case_id!r}, {volume.image.shape[-1]} in case {volume.case_id!r}."
            )
