"""Opens every scan of the lists: what cannot be read, what is labelled, and what the rest of the run will need."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np

from semisam_tf.config import Config
from semisam_tf.data.label_access import LabelAccess
from semisam_tf.data.preprocess import preprocessing_of
from semisam_tf.data.scan_cache import kept_bytes
from semisam_tf.data.splits import Split
from semisam_tf.data.volumes import find_case, has_label, load_volume
from semisam_tf.findings import FAIL, OK, WARN, Finding
from semisam_tf.health.machine import check_folder, gib

# Lines about single scans; more are counted.
_MOST_LINES = 10


@dataclasses.dataclass(frozen=True)
class ScanFacts:
    """One scan that could be read.

    Attributes:
        case_id: Its name.
        on_file: Whether a label lies beside it or in it.
        channels: Of the image.
        grid_vox: Size on the training grid.
        grid_spacing_mm: Of the voxels there.
        own_bytes: Of the image as loaded, float32.
        shown: For each axis the share of its slices that show an organ, where the label was opened; else None.
    """

    case_id: str
    on_file: bool
    channels: int
    grid_vox: tuple[int, int, int]
    grid_spacing_mm: tuple[float, float, float]
    own_bytes: int
    shown: tuple[float, float, float] | None

    @property
    def grid_bytes(self) -> int:
        """Of the image on the training grid, float32."""
        return 4 * self.channels * int(np.prod(self.grid_vox))


def look_at(config: Config, case_id: str, with_label: LabelAccess | Literal[False]) -> ScanFacts:
    """Opens one scan as training would.

    Raises:
        ValueError, OSError: It cannot be read, or its label has values that there is no class for.
    """
    files = find_case(config.data_dir, case_id)
    scan = load_volume(files, with_label=with_label, default_spacing_mm=config.default_spacing_mm or None)
    grid = preprocessing_of(config).training_size(scan.size, scan.spacing_mm)
    x, y, z = (s * n / g for s, n, g in zip(scan.spacing_mm, scan.size, grid, strict=True))
    shown = None
    if scan.label is not None:
        if int(scan.label.max(initial=0)) >= config.n_classes:
            raise ValueError(
                f"{files.label}: label values up to {scan.label.max()}, expected below --n_classes={config.n_classes}"
            )
        organ = scan.label > 0
        a, b, c = (float(organ.any(axis=tuple(o for o in range(3) if o != axis)).mean()) for axis in range(3))
        shown = (a, b, c)
    channels = scan.image.shape[-1]
    return ScanFacts(case_id, has_label(files), channels, grid, (x, y, z), scan.image.nbytes, shown)


def check_scans(
    config: Config, split: Split, scored: Sequence[str], labels: LabelAccess
) -> tuple[list[Finding], list[ScanFacts]]:
    """Opens every scan, with its label only where the run will.

    Args:
        config: Settings of the run.
        split: Labelled and unlabelled cases of training.
        scored: Cases that the run is to be judged on; their labels stay closed.
        labels: What labels are opened for.
    """
    cases = [*split.labelled, *split.unlabelled, *[case for case in scored if case not in set(split.unlabelled)]]
    cases = list(dict.fromkeys(cases))

    def look(case_id: str) -> ScanFacts | str:
        try:
            return look_at(config, case_id, labels if case_id in split.labelled else False)
        except Exception as error:  # whatever a file does, the others are looked at
            return str(error) or type(error).__name__

    with ThreadPoolExecutor(2, thread_name_prefix="look") as executor:
        looked = dict(zip(cases, executor.map(look, cases), strict=True))
    bad = {case: result for case, result in looked.items() if isinstance(result, str)}
    facts = [result for result in looked.values() if not isinstance(result, str)]
    findings = [
        Finding(FAIL, "scan", f"{case}: {reason}", "repair the file, or name it in --exclude_cases")
        for case, reason in list(bad.items())[:_MOST_LINES]
    ]
    if len(bad) > _MOST_LINES:
        findings.append(Finding(FAIL, "scan", f"{len(bad) - _MOST_LINES} more cannot be read", "see those above"))
    findings += _lists(split, scored, facts)
    findings += _contents(facts)
    if not bad:
        size = sum(fact.own_bytes for fact in facts) / 1024**2
        findings.insert(0, Finding(OK, "scans", f"all {len(facts)} of {config.data_dir} can be read, {size:.0f} MiB"))
    return findings, facts


def check_scan_cache(config: Config, facts: Sequence[ScanFacts]) -> Finding:
    """Whether the training scans fit on the disk in the training grid; a coarse-to-fine run keeps their regions."""
    folder = config.scan_cache_dir
    needed = sum(fact.grid_bytes for fact in facts)
    there = sum(min(fact.grid_bytes, kept_bytes(folder, fact.case_id)) for fact in facts)
    what = f"at most {gib(needed)} for {len(facts)} scans, {gib(there)} is there"
    return check_folder("scan cache", folder, max(0, needed - there), what, "--scan_cache_dir")


def _lists(split: Split, scored: Sequence[str], facts: Sequence[ScanFacts]) -> list[Finding]:
    names = ", ".join(split.labelled[:5]) + (", ..." if len(split.labelled) > 5 else "")
    closed = sum(fact.on_file for fact in facts if fact.case_id in set(split.unlabelled))
    found = f"{len(split.labelled)} labelled ({names}), {len(split.unlabelled)} unlabelled"
    if closed:
        found += f" ({closed} of them have a label on file, which stays closed)"
    findings = [Finding(OK, "labels", found)]
    if not scored:
        return findings
    both = [case for case in scored if case in {*split.labelled, *split.unlabelled}]
    bare = [fact.case_id for fact in facts if fact.case_id in set(scored) and not fact.on_file]
    if both:
        found = f"{len(both)} of {len(scored)} cases to score are trained on: {', '.join(both[:5])}"
        fix = "take them out of the list, or out of training with --exclude_cases"
        findings.append(Finding(WARN, "scoring", found, fix))
    if bare:
        found = f"cases to score without a label on file: {', '.join(bare[:5])}"
        findings.append(Finding(FAIL, "scoring", found, "add their labels, or take them out of --cases"))
    if not both and not bare:
        findings.append(Finding(OK, "scoring", f"{len(scored)} cases to score, none of them in training"))
    return findings


def _contents(facts: Sequence[ScanFacts]) -> list[Finding]:
    findings = []
    channels = sorted({fact.channels for fact in facts})
    if len(channels) > 1:
        found = f"scans with {' and '.join(map(str, channels))} channels"
        findings.append(Finding(FAIL, "channels", found, "give all scans the same channels"))
    empty = [fact.case_id for fact in facts if fact.shown is not None and not any(fact.shown)]
    if empty:
        found = f"labelled scans whose label is empty: {', '.join(empty[:5])}"
        findings.append(Finding(WARN, "labels", found, "label another scan"))
    return findings
