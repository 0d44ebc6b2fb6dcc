"""What training leaves for the report, and the report itself while training goes on. Never the reason that a run fails.

`history.jsonl` gets an entry whenever the losses are looked at; `overlays/sam.json` has SAM's last targets of a few
scans; `report.html` is written anew with the checkpoints, as long as all of this stays below 1 % of the time.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from semisam_tf.atomic import write_json
from semisam_tf.inference.overlays import sam_overlay
from semisam_tf.report.history import History
from semisam_tf.report.page import write_report
from semisam_tf.sam.target import SamTarget
from semisam_tf.training.sam_teaching import SamTeaching
from semisam_tf.training.state import Training
from semisam_tf.training.step import Schedule
from semisam_tf.workdir import HISTORY_FILE, SAM_OVERLAYS_FILE

_SHARE_OF_TIME = 0.01
_SAM_CASES = 3


def write_again(workdir: Path) -> None:
    """Writes the report of a finished run, which may have been killed before it had one; a warning where that fails."""
    try:
        write_report(workdir)
    except Exception as error:
        logging.warning("The report of %s: not written. %s: %s", workdir, type(error).__name__, error)


class LiveReport:
    """Records a run that goes on from `training.step`. An error in here is a warning in the log and nothing else."""

    def __init__(self, training: Training) -> None:
        self._training, self._workdir = training, Path(training.config.workdir)
        self._spent_s = 0.0
        self._history: History | None = None
        self._drawn: dict[str, dict[str, Any]] = {}
        # Targets that are files are drawn by nobody: SAM made them elsewhere.
        self._sam = training.sam if isinstance(training.sam, SamTeaching) else None
        self._sam_cases = [] if self._sam is None else list(self._sam.volumes)[:_SAM_CASES]
        with self._harmless(HISTORY_FILE):
            self._history = History(self._workdir / HISTORY_FILE, training.step)
        if self._sam is not None:
            self._sam.on_target = self._draw
            with self._harmless(SAM_OVERLAYS_FILE):
                self._drawn = self._drawn_before()

    def record(self, means: Mapping[str, float], schedule: Schedule) -> None:
        """Appends an entry for the step just taken. Comes before its checkpoint: no checkpoint is ahead of it."""
        training, history = self._training, self._history
        if history is None:
            return
        entry: dict[str, Any] = {
            "step": training.step,
            "terms": dict(means),
            "weights": schedule.weights,
            "learning_rate": schedule.learning_rate,
            "ema_decay": schedule.ema_decay,
            "entropy_threshold": schedule.entropy_threshold,
            "duration_s": round(training.duration_s, 3),
            "data_wait_s": round(training.data_wait_s, 3),
        }
        if training.sam is not None:
            entry["sam"] = training.sam.summary() | training.sam.totals
        with self._harmless(HISTORY_FILE):
            history.append(entry)

    def write(self) -> None:
        """Writes the report, unless what was written before has used up its share of the time."""
        if self._spent_s <= _SHARE_OF_TIME * self._training.duration_s:
            self.write_last()

    def write_last(self) -> None:
        """Writes the report, whatever it costs."""
        with self._harmless("The report"):
            if self._drawn:
                cases = [self._drawn[case_id] for case_id in self._sam_cases if case_id in self._drawn]
                write_json(self._workdir / SAM_OVERLAYS_FILE, {"cases": cases})
            write_report(self._workdir)

    def _draw(self, case_id: str, predicted: np.ndarray, target: SamTarget) -> None:
        """Told of each target that SAM makes of a whole scan; keeps a picture of the last one of a few scans."""
        training = self._training
        if case_id not in self._sam_cases or self._sam is None:
            return
        with self._harmless(SAM_OVERLAYS_FILE):
            overlay = sam_overlay(
                self._sam.volumes[case_id],
                np.argmax(predicted, axis=-1).astype(np.uint8),
                target,
                prompted_by=training.config.sam_prompts_from,
                axis=training.config.sam_axis[0],
                channel=training.config.sam_channel,
            )
            self._drawn[case_id] = {**overlay, "step": training.step + 1}

    def _drawn_before(self) -> dict[str, dict[str, Any]]:
        """Pictures of the run that is resumed, without those of targets that will be made again."""
        path = self._workdir / SAM_OVERLAYS_FILE
        if not path.is_file():
            return {}
        cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
        return {case["case_id"]: case for case in cases if case["step"] <= self._training.step}

    @contextlib.contextmanager
    def _harmless(self, what: str) -> Iterator[None]:
        began_s = time.monotonic()
        try:
            yield
        except Exception as error:
            logging.warning("%s: not written, training goes on. %s: %s", what, type(error).__name__, error)
        finally:
            self._spent_s += time.monotonic() - began_s
