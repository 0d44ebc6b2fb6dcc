"""All checks in order. A check that breaks is a finding itself: nothing here raises."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from semisam_tf.findings import FAIL, OK, WARN, Finding, failed, wants_colour
from semisam_tf.health.devices import check_devices, check_imports
from semisam_tf.health.machine import check_folder, check_memory, memory_bytes
from semisam_tf.health.packages import check_flavour, check_python, check_requirements, installed_packages
from semisam_tf.health.probe import described

if TYPE_CHECKING:
    from semisam_tf.config import Config
    from semisam_tf.data.splits import Split
    from semisam_tf.health.scans import ScanFacts
    from semisam_tf.health.settings import DoctorConfig
    from semisam_tf.sam.manifest import Manifest

# Less, and the checkpoints of a large network do not fit.
_WORKDIR_BYTES = 1024**3


class Report:
    """Prints findings as they come, and keeps them."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.findings = stream, list[Finding]()
        self._colour = wants_colour(stream)

    def add(self, subject: str, check: Callable[[], Finding | Iterable[Finding]]) -> bool:
        """Runs a check; whatever it raises is a failure of `subject`. Returns whether nothing failed in it."""
        try:
            result = check()
            findings = [result] if isinstance(result, Finding) else list(result)
        except Exception as error:  # a doctor that dies is no help
            module = error.name if isinstance(error, ImportError) and error.name else ""
            fix = f"install {module} again, and see the lines above" if module else "see the lines above"
            findings = [Finding(FAIL, subject, described(error), fix)]
        for finding in findings:
            self.stream.write(finding.line(self._colour) + "\n")
            self.stream.flush()
        self.findings += findings
        return not failed(findings)


def examine_installation(report: Report, providers: tuple[str, ...] = ()) -> None:
    """Python, packages and devices; needs no other package than those it looks at."""
    report.add("python", check_python)
    installed = installed_packages()
    report.add("flavour", lambda: check_flavour(installed))
    report.add("packages", lambda: check_requirements(installed))
    report.add("import", lambda: check_imports(installed))
    report.add("devices", lambda: check_devices(installed, providers))


def examine_run(report: Report, doctor: DoctorConfig) -> None:
    """The run that the flags describe: as far as they describe one."""
    config = doctor.of_the_run()
    run = _Run(report, config)
    if config.workdir:
        report.add("workdir", run.check_workdir)
    if config.sam_folders():
        report.add("sam", run.check_sam)
    if not config.data_dir:
        report.add("data", lambda: Finding(WARN, "data", "not looked at", "give the flags of the run: --data_dir, ..."))
    elif config.quickstart_cohort and not (Path(config.data_dir) / "train.list").is_file():
        report.add("data", lambda: Finding(WARN, "data", "the simulated cohort is made by the train command", "train"))
    elif report.add("settings", run.check_settings) and report.add("data", lambda: run.check_data(doctor.cases)):
        if config.sam_mode in ("cached", "offline") and run.manifests:
            report.add("sam cache", run.check_cache)
        if doctor.timing:
            report.add("step time", run.check_time)
    report.add("memory", lambda: check_memory(run.needs, memory_bytes()))


@dataclasses.dataclass
class _Run:
    """What the checks of one run tell each other."""

    report: Report
    config: Config
    manifests: list[Manifest] = dataclasses.field(default_factory=list)
    split: Split | None = None
    facts: list[ScanFacts] = dataclasses.field(default_factory=list)
    needs: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def ledger_dir(self) -> str:
        """The workdir, where there is one to keep a record of opened labels in."""
        return self.config.workdir if self.config.workdir and Path(self.config.workdir).is_dir() else ""

    def check_workdir(self) -> Finding:
        what = "a run is there already" if (Path(self.config.workdir) / "run.json").is_file() else "no run is there yet"
        return check_folder("workdir", self.config.workdir, _WORKDIR_BYTES, what, "--workdir")

    def check_settings(self) -> list[Finding]:
        from semisam_tf.config import validate
        from semisam_tf.data.splits import split_of
        from semisam_tf.distribution.shares import require_shares

        try:
            validate(dataclasses.replace(self.config, workdir=self.config.workdir or "any"))
            self.split = split_of(self.config)
            require_shares(self.config)
        except (ValueError, OSError) as error:
            return [Finding(FAIL, "settings", str(error), "change the flag")]
        return [Finding(OK, "settings", f"fit each other: {self.config.method}, {self.config.max_steps} steps")]

    def check_data(self, cases: str) -> list[Finding]:
        from semisam_tf.data.label_access import LabelLedger, outside_runs
        from semisam_tf.data.splits import read_cases
        from semisam_tf.health.scans import check_scan_cache, check_scans

        labels = outside_runs("no run yet")
        if self.ledger_dir:
            labels = LabelLedger(self.ledger_dir, "doctor").access("data_check")
        scored = cases or Path(self.config.data_dir) / "test.list"
        names = read_cases(scored) if cases or Path(scored).is_file() else []
        findings, self.facts = check_scans(self.config, self._known_split(), names, labels)
        training = {*self._known_split().labelled, *self._known_split().unlabelled}
        of_training = [fact for fact in self.facts if fact.case_id in training]
        if self.config.scan_cache_dir:
            return [*findings, check_scan_cache(self.config, of_training)]
        self.needs["the scans"] = sum(fact.grid_bytes for fact in of_training)
        return findings

    def check_sam(self) -> list[Finding]:
        from semisam_tf.health.sam import check_exports

        findings, self.manifests = check_exports(self.config)
        return findings

    def check_cache(self) -> list[Finding]:
        from semisam_tf.health.sam import check_cache

        unlabelled = set(self._known_split().unlabelled)
        return [check_cache(self.config, self.manifests, [fact for fact in self.facts if fact.case_id in unlabelled])]

    def check_time(self) -> list[Finding]:
        from semisam_tf.health.timing import check_time, other_load, sam_work, time_run

        if failed(self.report.findings):
            return [Finding(WARN, "step time", "not taken", "mend what fails first")]
        load = other_load()
        times, error = time_run(self.config, self._known_split(), self.ledger_dir)
        work = None
        asks_sam = self.config.sam_mode in ("online", "cached") or (
            self.config.rounds > 1 and not self.config.coarse_to_fine
        )
        if self.manifests and asks_sam:
            work = sam_work(self.config, self.manifests, self.facts, self._known_split())
        if "peak_bytes" in times:
            self.needs["a step"] = int(times["peak_bytes"])
        return check_time(self.config, times, error, work, load)

    def _known_split(self) -> Split:
        if self.split is None:
            raise RuntimeError("Expected the settings to be checked first.")
        return self.split
