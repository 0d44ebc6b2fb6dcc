"""Which labels a run has opened, held against what it says of itself. Reads records only: no label, no TensorFlow."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from semisam_tf.config import Config
from semisam_tf.data.label_access import LEDGER_FILE, NO_ENTRIES, PURPOSES, LedgerReading, Opening, read_ledger
from semisam_tf.findings import FAIL, OK, WARN, Finding
from semisam_tf.inference.run_folder import read_run, run_id_of
from semisam_tf.workdir import METRICS_FILE, RESULT_FILE, ROUNDS_FOLDER, RUN_FILE, WORKERS_FOLDER

_DOCTOR = ("data_check", "timing")
# Opened to judge, not to learn from.
_JUDGING = ("scoring", *_DOCTOR)
# Rows of the budget and the purposes that each is made of.
BUDGET_ROWS = {
    "training": ("training",),
    "model choice": ("model_choice",),
    "crops": ("crops",),
    "self-test": ("self_test",),
    "prompts": ("oracle_prompts",),
    "scoring": ("scoring",),
    "doctor": _DOCTOR,
}
_ANEW = "train anew, in another --workdir"


@dataclasses.dataclass(frozen=True)
class Audit:
    """The result.

    Attributes:
        findings: What was compared.
        openings: Of this run.
        labelled, unlabelled: Cases, as the run says.
        learned_from: Cases whose label was opened for anything but judging, by this run or by those that made its
            targets: the label budget.
        oracle: Whether labels prompted SAM.
        config: Settings of the run.
    """

    findings: tuple[Finding, ...]
    openings: tuple[Opening, ...] = ()
    labelled: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    learned_from: tuple[str, ...] = ()
    oracle: bool = False
    config: Config | None = None

    def opened_for(self, purposes: Iterable[str]) -> list[str]:
        """Cases whose label was opened for one of `purposes`, in the order they were first opened."""
        wanted = set(purposes)
        return list(dict.fromkeys(o.case_id for o in self.openings if o.purpose in wanted))


def audit_run(workdir: Path, on_file: dict[str, bool] | None = None) -> Audit:
    """Compares the record of opened labels with the run's own record, in all its rounds and processes.

    Args:
        workdir: Folder of the run.
        on_file: For the run's unlabelled cases, whether there is a label on file; None where nobody looked.

    Raises:
        FileNotFoundError, ValueError: No run there, or its record is damaged.
    """
    run = read_run(workdir)
    last = _audit_folder(workdir, run, run, on_file)
    rounds = {f"round {number}": workdir / ROUNDS_FOLDER / str(number) for number in range(1, run["config"].rounds)}
    # Against the lists of the whole: a round that learns without unlabelled scans lists none.
    others = {name: _audit_folder(folder, read_run(folder), run, on_file) for name, folder in rounds.items()}
    for folder in _process_folders(workdir):
        others[f"process {folder.name}"] = _audit_folder(folder, _record_of_process(folder, run), run, on_file, True)
    audits = []
    for name, audit in others.items():
        found = tuple(dataclasses.replace(f, found=f"{name}: {f.found}") for f in audit.findings)
        audits.append(dataclasses.replace(audit, findings=found))
    audits.append(last)
    return dataclasses.replace(
        last,
        findings=tuple(finding for audit in audits for finding in audit.findings),
        openings=tuple(opening for audit in audits for opening in audit.openings),
        learned_from=tuple(dict.fromkeys(case for audit in audits for case in audit.learned_from)),
        oracle=any(audit.oracle for audit in audits),
    )


def _process_folders(workdir: Path) -> list[Path]:
    """Folders of a run's other processes, each with its record of openings; the chief's is the run's own."""
    return sorted(path.parent for path in (workdir / WORKERS_FOLDER).glob(f"*/{LEDGER_FILE}"))


def _record_of_process(folder: Path, run: dict[str, Any]) -> dict[str, Any]:
    """The record of another process; of one that ended before it wrote its own, the chief's without its marks."""
    if (folder / RUN_FILE).is_file():
        return read_run(folder)
    return run | {"label_ledger": {"run_id": run_id_of(run), **NO_ENTRIES}, "resumed": []}


def _audit_folder(
    workdir: Path,
    run: dict[str, Any],
    lists: dict[str, Any],
    on_file: dict[str, bool] | None,
    every_start: bool = False,
) -> Audit:
    """Audits one folder, whose record is `run`, against the labelled and unlabelled cases of `lists`.

    Args:
        every_start: Openings of every start count: a process that is not the chief begins anew each time, and what its
            earlier starts taught is in the chief's checkpoints.
    """
    reading = read_ledger(workdir)
    if reading is None:
        return Audit((_no_ledger(workdir, run),))
    run_id = run_id_of(run)
    # The doctor looks at a folder before there is a run in it.
    own = [o for o in reading.openings if every_start or o.run_id == run_id or o.purpose in _DOCTOR]
    others = [o for o in reading.openings if o not in own]
    audit = Audit(
        (),
        tuple(own),
        tuple(lists["labelled"]),
        tuple(lists["unlabelled"]),
        config=run["config"],
    )
    opened = audit.opened_for(set(PURPOSES) - set(_JUDGING))
    rests_on = dict.fromkeys([*opened, *(run.get("targets_learned_from") or [])])
    audit = dataclasses.replace(
        audit, learned_from=tuple(rests_on), oracle=bool(run.get("oracle_prompts") or run["config"].oracle_prompts)
    )
    findings = [
        *_chain(workdir, run, reading),
        *_other_starts(others),
        *_labelled(audit),
        *_unlabelled(audit, on_file),
        *_targets(audit, run),
        *_scoring(audit, workdir),
        *_oracle(audit, workdir),
    ]
    return dataclasses.replace(audit, findings=tuple(findings))


def labels_behind(workdir: Path, run: dict[str, Any]) -> list[str] | None:
    """Cases whose labels a run rests on: those that it opened to learn from, and those behind its targets on file.

    Args:
        run: From `read_run(workdir)`.

    Returns:
        None where either is not on record.
    """
    reading = read_ledger(workdir)
    of_targets = run.get("targets_learned_from") if run["config"].sam_mode == "offline" else []
    if reading is None or of_targets is None:
        return None
    opened = [o.case_id for o in reading.openings if o.run_id == run_id_of(run) and o.purpose not in _JUDGING]
    for folder in _process_folders(workdir):
        of_process = read_ledger(folder)
        opened += [o.case_id for o in of_process.openings if o.purpose not in _JUDGING] if of_process else []
    # Sorted: labels are opened by several threads.
    return sorted({*run["labelled"], *opened, *of_targets})


def marks_of(workdir: Path, run: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the run's files say of how far the record of openings had come: (file, mark)."""
    for session in (run, *run.get("resumed", [])):
        if session.get("label_ledger"):
            yield "run.json", session["label_ledger"]
    for name in (RESULT_FILE, METRICS_FILE):
        mark = _read(workdir / name).get("label_ledger")
        if mark:
            yield name, mark


def _no_ledger(workdir: Path, run: dict[str, Any]) -> Finding:
    if run_id_of(run) == "unknown":
        return Finding(
            FAIL, "record", f"the run was made by a version that recorded no openings: {LEDGER_FILE} is absent", _ANEW
        )
    return Finding(
        FAIL, "record", f"{workdir / LEDGER_FILE} is missing, and the run had written it", f"put it back, or {_ANEW}"
    )


def _chain(workdir: Path, run: dict[str, Any], reading: LedgerReading) -> Iterator[Finding]:
    marks = list(marks_of(workdir, run))
    faults = [*reading.faults, *filter(None, (reading.fault_of(mark, where) for where, mark in marks))]
    if run_id_of(run) == "unknown":
        faults.append("the run began with a version that recorded no openings")
    if faults:
        shown = "; ".join(list(dict.fromkeys(faults))[:5])
        yield Finding(FAIL, "record", f"{LEDGER_FILE} is not as it was written: {shown}", f"put it back, or {_ANEW}")
    else:
        n = len(reading.digests) - 1
        yield Finding(
            OK, "record", f"{n} openings, the chain is whole and fits {_list(dict.fromkeys(name for name, _ in marks))}"
        )


def _other_starts(others: Sequence[Opening]) -> Iterator[Finding]:
    if others:
        cases = _list(dict.fromkeys(o.case_id for o in others))
        yield Finding(
            WARN, "other starts",
            f"{len(others)} openings by starts in this folder that left nothing behind ({cases}): "
            "not counted",
        )  # fmt: skip


def _labelled(audit: Audit) -> Iterator[Finding]:
    opened = audit.opened_for(["training"])
    never = [case for case in audit.labelled if case not in opened]
    if never:
        yield Finding(
            FAIL, "labelled", f"run.json calls {_list(never)} labelled, and no opening by training is on record",
            f"the record is incomplete: {_ANEW}",
        )  # fmt: skip
    elif set(audit.labelled) == set(opened):
        yield Finding(OK, "labelled", f"training opened the labels that run.json lists, and no other: {_list(opened)}")


def _unlabelled(audit: Audit, on_file: dict[str, bool] | None) -> Iterator[Finding]:
    """Leaks: labels that the run learned from and does not list as labelled."""
    leaks: dict[tuple[str, str], list[Opening]] = {}
    for opening in audit.openings:
        declared = opening.case_id in audit.labelled or opening.purpose in _JUDGING
        if not declared and not (opening.purpose == "oracle_prompts" and audit.oracle):
            leaks.setdefault((opening.case_id, opening.purpose), []).append(opening)
    for (case_id, purpose), openings in leaks.items():
        kind = "unlabelled" if case_id in audit.unlabelled else "a stranger: in neither list"
        chosen = purpose in ("model_choice", "crops", "self_test") and case_id not in audit.unlabelled
        yield Finding(
            WARN if chosen else FAIL, "leak" if not chosen else "budget",
            f"the label of {case_id} was opened {_times(len(openings))} for {purpose}, and run.json calls it {kind}; "
            f"{openings[0].file}, first at {openings[0].time}",
            "count it among the labelled scans" if chosen else f"mend the code or the lists, and {_ANEW}",
        )  # fmt: skip
    untouched = [case for case in audit.unlabelled if case not in audit.opened_for(PURPOSES)]
    if not untouched:
        return
    text = f"no label of {len(untouched)} unlabelled cases was ever opened"
    if on_file is not None:
        there = sum(on_file.get(case, False) for case in untouched)
        text += f"; {there} of them have one on file" if there else "; none of them has one on file"
    yield Finding(OK, "unlabelled", text)


def _targets(audit: Audit, run: dict[str, Any]) -> Iterator[Finding]:
    """Labels that the run learned from by way of targets on file."""
    if run["config"].sam_mode != "offline":
        return
    known = run.get("targets_learned_from")
    if known is None:
        yield Finding(
            WARN, "targets", f"whose labels the targets of {run['config'].targets_dir or 'this run'} rest on is not on "
            "record", "make them with semisam_tf.pseudolabel, which keeps it",
        )  # fmt: skip
        return
    more = [case for case in known if case not in audit.labelled]
    if more:
        yield Finding(
            FAIL, "leak", f"the targets rest on the labels of {_list(more)}, which run.json does not call labelled",
            "count them among the labelled scans, or make targets from a run that learned from no others",
        )  # fmt: skip
    else:
        yield Finding(OK, "targets", f"they rest on the labels of {_list(known)}")


def _scoring(audit: Audit, workdir: Path) -> Iterator[Finding]:
    scored = audit.opened_for(["scoring"])
    trained = [case for case in scored if case in audit.labelled or case in audit.unlabelled]
    chosen = [case for case in scored if case in audit.learned_from and case not in trained]
    if trained:
        commands = {o.command[1:] for o in audit.openings if o.purpose == "scoring" and o.case_id in trained}
        shown = f"; by: {' '.join(next(iter(commands)))}" if commands else ""
        yield Finding(
            FAIL, "scoring", f"scored on scans of training: {_list(trained)}{shown}", "score on scans of no list"
        )
    if chosen:
        yield Finding(
            FAIL, "scoring", f"scored on scans whose label the run had used: {_list(chosen)}", "score on others"
        )
    reported = [case["case_id"] for case in _read(workdir / METRICS_FILE).get("cases", [])]
    unseen = [case for case in reported if case not in scored]
    if unseen:
        yield Finding(
            FAIL, "scoring", f"{METRICS_FILE} reports {_list(unseen)}, and no opening for scoring is on record",
            "evaluate again",
        )  # fmt: skip
    if not (trained or chosen or unseen):
        yield Finding(OK, "scoring", f"{len(scored)} cases scored, none of them in training" if scored else "none yet")


def _oracle(audit: Audit, workdir: Path) -> Iterator[Finding]:
    for name in (RESULT_FILE, METRICS_FILE):
        values = _read(workdir / name)
        if values and bool(values.get("oracle_prompts", False)) != audit.oracle:
            yield Finding(FAIL, "oracle", f"{name} and run.json disagree on whether labels prompted SAM", _ANEW)
    if audit.oracle:
        yield Finding(
            WARN, "ORACLE", "SAM was prompted with the ground truth of unlabelled scans (--oracle_prompts): the label "
            f"budget is all {len(audit.learned_from)} scans whose label was opened, and no figure of this run is a "
            "semi-supervised result", alarm=True,
        )  # fmt: skip


def budget(audit: Audit) -> dict[str, dict[str, Any]]:
    """By row of BUDGET_ROWS: "cases" with how often the label of each was opened, and a "note"."""
    rows = {}
    for name, purposes in BUDGET_ROWS.items():
        cases = Counter(opening.case_id for opening in audit.openings if opening.purpose in purposes)
        rows[name] = {"cases": dict(cases), "note": _note(name, audit, list(cases))}
    return rows


def _note(row: str, audit: Audit, cases: Sequence[str]) -> str:
    config = audit.config
    if row == "model choice" and not cases:
        return "the last weights are the result; which network is judged takes no label"
    if row == "crops" and not cases:
        share = config.foreground_fraction if config is not None else 0.0
        return f"{share:.0%} of labelled crops are centred by the training labels" if share else ""
    if row == "prompts" and not cases:
        return "SAM is prompted with predictions" if config is not None and config.sam_mode != "off" else "no SAM"
    if row == "scoring" and cases:
        runs = len({(o.pid, o.command) for o in audit.openings if o.purpose == "scoring"})
        return f"in {runs} {'process' if runs == 1 else 'processes; choosing among their figures is model choice'}"
    return ""


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is absent."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"Expected JSON in {path}. Received: {error}. Evaluate or train again.") from error
    return values if isinstance(values, dict) else {}


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _list(names: Iterable[str]) -> str:
    some = list(names)
    return ", ".join(some[:5]) + (f" and {len(some) - 5} more" if len(some) > 5 else "")
