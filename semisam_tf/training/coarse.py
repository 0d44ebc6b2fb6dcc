"""The first stage of coarse to fine: a network of low resolution learns from the labelled scans where the organs are.

It is a training like any other, with its checkpoints in `<workdir>/coarse`, so it resumes like any other. Its
weights go to `<workdir>/coarse.weights.h5`; then every training scan is cut to its region. An unlabelled scan's region
is what the coarse network finds in it, or found in the run that made its target, where targets are files. A labelled
scan's is that united with the box of its label: the network has to see the surroundings that it will meet in
prediction, and no labelled voxel may be lost. At test time labels are no part of it (`inference.region`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from semisam_tf.atomic import replacing, write_json
from semisam_tf.config import Config
from semisam_tf.data.batches import TwoStream, stream_of
from semisam_tf.data.volumes import Volume
from semisam_tf.inference.predictor import load_network
from semisam_tf.inference.region import COARSE_FOLDER, Locator, Region, RegionTally, box_around, coarse_settings
from semisam_tf.inference.run_folder import read_result
from semisam_tf.training.pseudolabels import target_path, target_region
from semisam_tf.training.state import Training
from semisam_tf.workdir import RESULT_FILE

WEIGHTS = "coarse"


class CoarseStage:
    """Trains, or goes on training, or reads the coarse network of a run; then cuts scans to their regions.

    Args:
        config: Settings of the run.
        labelled: Labelled scans in the coarse grid.
        take_steps: Runs a Training to its last step on the batches of a stream.
    """

    def __init__(
        self, config: Config, labelled: list[Volume], take_steps: Callable[[Training, TwoStream], None]
    ) -> None:
        self.config = config
        channels = labelled[0].image.shape[-1]
        workdir = Path(config.workdir)
        if not (workdir / COARSE_FOLDER / RESULT_FILE).is_file():
            _train(config, labelled, take_steps)
        self.locator = Locator(config, load_network(workdir, {"config": config, "channels": channels}, WEIGHTS))
        self.tally = RegionTally()

    def crop(self, volume: Volume) -> Volume:
        """A training scan, as loaded, cut to its region."""
        region = region_in_training(self.locator, volume)
        self.tally.add(volume, region)
        return region.crop(volume)

    def result(self) -> dict[str, Any]:
        """JSON values: the coarse training's time, and what became of the training scans."""
        trained = read_result(Path(self.config.workdir) / COARSE_FOLDER)
        return {**{key: trained[key] for key in ("steps", "duration_s")}, **self.tally.summary()}


def region_in_training(locator: Locator, volume: Volume) -> Region:
    """Where the training of a run looks in a scan as loaded, whether it goes on or is finished.

    Raises:
        ValueError: The scan's target on file is damaged, or of a run that looks at whole scans.
    """
    config, folder = locator.config, Path(locator.config.targets_dir)
    if volume.label is None and config.sam_mode == "offline" and target_path(folder, volume.case_id).is_file():
        return target_region(folder, volume.case_id)
    return training_region(locator.locate(volume), volume, config.region_margin_mm)


def training_region(region: Region, volume: Volume, margin_mm: float) -> Region:
    """What a training scan is cut to: `region`, what the coarse pass found, and around a label that there is."""
    if volume.label is None or not volume.label.any():
        return region
    of_label = box_around(volume.label > 0, volume.size, volume.spacing_mm, margin_mm)
    return region.united(of_label) if region.found else of_label


class RegionCutter:
    """Cuts scans as the training of a finished run cuts them, and remembers where; without `locator` they stay whole.

    Attributes:
        regions: By case; None of those that stayed whole for want of a locator.
    """

    def __init__(self, locator: Locator | None) -> None:
        self.locator = locator
        self.regions: dict[str, Region | None] = {}

    def __call__(self, volume: Volume) -> Volume:
        """A scan as loaded, cut."""
        if self.locator is None:
            self.regions[volume.case_id] = None
            return volume
        region = region_in_training(self.locator, volume)
        self.regions[volume.case_id] = region
        return region.crop(volume)


def _train(config: Config, labelled: list[Volume], take_steps: Callable[[Training, TwoStream], None]) -> None:
    workdir = Path(config.workdir)
    settings = dataclasses.replace(coarse_settings(config), workdir=str(workdir / COARSE_FOLDER))
    logging.info("Coarse stage: %d steps at %s mm.", settings.max_steps, settings.training_spacing_mm)
    keras.utils.set_random_seed(config.seed)
    tf.config.experimental.enable_op_determinism()
    training = Training.build(settings, labelled[0].image.shape[-1], labelled, [], [])
    training.restore()
    stream = stream_of(settings, labelled, [])
    take_steps(training, stream)
    # Not the teacher: over so few steps its average still holds weights from before anything was learnt.
    with replacing(workdir / f"{WEIGHTS}.weights.h5") as temporary:
        training.student.save_weights(temporary)
    write_json(workdir / COARSE_FOLDER / RESULT_FILE, training.result())
    logging.info("Coarse stage finished after %.0f s.", training.duration_s)
