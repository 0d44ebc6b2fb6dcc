"""How long a step and the whole run will take, from a few steps that are really taken."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from semisam_tf.config import Config
from semisam_tf.data.splits import Split
from semisam_tf.findings import FAIL, OK, WARN, Finding
from semisam_tf.health.probe import run_probe
from semisam_tf.health.sam import views_of_scan
from semisam_tf.health.scans import ScanFacts
from semisam_tf.sam.manifest import Manifest

PROGRAM = "semisam_tf.training.timing"
# With so few scans of each kind the first batch is there soon.
_LABELLED, _UNLABELLED = 2, 3
_TIMEOUT_S = 900.0


def time_run(config: Config, split: Split, ledger_dir: str) -> tuple[dict[str, float], str]:
    """Times the run in a process of its own. Returns the answer of `semisam_tf.training.timing`, or what went wrong.

    Args:
        config: Settings of the run.
        split: Its cases; the first few are used.
        ledger_dir: Folder of the run whose record says that labels were opened; empty where there is none yet.
    """
    with tempfile.TemporaryDirectory(prefix="semisam_doctor_") as folder:
        request = {
            "config": config.to_dict(),
            "labelled": split.labelled[:_LABELLED],
            "unlabelled": split.unlabelled[:_UNLABELLED],
            "ledger_dir": ledger_dir or folder,
            "workdir": str(Path(folder) / "run"),
        }
        answer = run_probe(PROGRAM, timeout_s=_TIMEOUT_S, standard_input=json.dumps(request))
    if answer.error or not answer.values:
        return {}, answer.error or "no answer"
    return answer.values[-1], ""


@dataclasses.dataclass(frozen=True)
class SamWork:
    """What SAM will be asked in a run: `encodes` views once, `decodes` views again, `scans` predicted for it."""

    encodes: float
    decodes: float
    scans: float

    def seconds(self, times: Mapping[str, float]) -> float:
        """How long it takes, by the times of `semisam_tf.training.timing`."""
        encode_s = max(0.0, times["view_s"] - times["again_s"])
        return self.encodes * encode_s + self.decodes * times["again_s"] + self.scans * times["scan_s"]


def sam_work(config: Config, manifests: Sequence[Manifest], facts: Sequence[ScanFacts], split: Split) -> SamWork:
    """Counts the views that the SAMs will be shown; a scan is predicted once for all of them.

    Of the slices of a scan as many are prompted as show the organ in the labelled scans; of a crop's, all.
    """
    if config.sam_mode == "offline":
        config = dataclasses.replace(config, sam_start_step=0)  # which has nothing to do with when targets are made
    draws = (config.batch_size - config.labelled_items()) * max(0, config.max_steps - config.sam_start_step)
    if config.sam_mode == "online":
        views = sum(_views_of_crop(config, manifest) for manifest in manifests)
        # Nothing is kept: each view is encoded and decoded.
        return SamWork(draws * views, draws * views, 0)
    unlabelled = [fact for fact in facts if fact.case_id in set(split.unlabelled)]
    scans = min(len(unlabelled), draws)
    if not scans:
        return SamWork(0, 0, 0)
    views_a_scan = sum(
        _shown_share(config, manifest, facts) * views_of_scan(config, manifest, fact)
        for manifest in manifests
        for fact in unlabelled
    ) / len(unlabelled)
    if config.sam_mode == "offline":
        # Between the rounds, of every scan.
        made = len(unlabelled) * (config.rounds - 1)
        return SamWork(len(unlabelled) * views_a_scan, made * views_a_scan, made)
    refreshes = math.ceil(draws / len(unlabelled) / config.sam_refresh_visits)
    return SamWork(scans * views_a_scan, scans * views_a_scan * refreshes, scans * refreshes)


def _views_of_crop(config: Config, manifest: Manifest) -> int:
    if manifest.dims == 3:
        return 1
    views = [math.ceil(config.patch_size[axis] / config.sam_slice_step) for axis in config.sam_axis]
    return sum(min(n, config.sam_max_slices or n) for n in views)


def _shown_share(config: Config, manifest: Manifest, facts: Sequence[ScanFacts]) -> float:
    """Share of a scan's views that show the organ, by the labelled scans."""
    shares = [fact.shown[axis] for fact in facts if fact.shown is not None for axis in config.sam_axis]
    return sum(shares) / len(shares) if shares and manifest.dims == 2 else 1.0


def other_load() -> str:
    """In words, how much other programs compute now; empty where they leave a processor to this one."""
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    return f"other programs are at work, load {load:.1f} on {processors} processors" if load > processors - 0.5 else ""


def check_time(
    config: Config, times: Mapping[str, float], error: str, work: SamWork | None, load: str = ""
) -> list[Finding]:
    """Seconds a step, and the whole run.

    Args:
        config: Settings of the run.
        times: From `time_run`, as is `error`.
        error: What went wrong; empty if nothing did.
        work: What SAM will be asked; None without SAM.
        load: From `other_load`, before the steps were timed.
    """
    if error:
        fix = "the train command would fail in the same way: change what it names"
        return [Finding(FAIL, "step time", f"a few steps of the run fail: {error}", fix)]
    steps = config.max_steps + (config.rounds - 1) * (config.round_steps or config.max_steps)
    steps_s = config.rounds * times["first_step_s"] + steps * times["step_s"]
    found = (
        f"{times['step_s']:.2f} s a step (mean of {times['steps']:.0f}; the first took {times['first_step_s']:.1f} s)"
    )
    findings = [Finding(OK, "step time", found)]
    total_s, parts = steps_s, f"{steps} steps take {duration(steps_s)}"
    if config.rounds > 1:
        parts += f" in {config.rounds} rounds"
    if config.coarse_to_fine:
        coarse_s = config.rounds * (times["coarse_first_step_s"] + config.coarse_steps * times["coarse_step_s"])
        total_s += coarse_s
        parts += f", the coarse stage before them {duration(coarse_s)}"
    if config.rounds > 1 and work is None:
        parts += "; the predictions between the rounds are not counted"
    if work is not None and "view_s" in times:
        sam_s = work.seconds(times)
        total_s += sam_s
        parts += f", SAM adds about {duration(sam_s)} ({times['view_s']:.2f} s a slice or window the first time"
        parts += f", {times['again_s']:.2f} s again)"
    findings.append(Finding(OK, "run time", f"about {duration(total_s)}: {parts}"))
    if load:
        findings.append(Finding(WARN, "load", f"{load}: the times are too long", "try again when they are done"))
    return findings


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
