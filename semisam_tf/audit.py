"""Shows which labels a run has opened: `python -m semisam_tf.audit --workdir=DIR`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semisam_tf.findings import Finding, failed, red, wants_colour
from semisam_tf.options import OptionError, option, run_command

if TYPE_CHECKING:
    from semisam_tf.inference.label_audit import Audit


@dataclasses.dataclass(frozen=True)
class AuditConfig:
    """Shows which labels a run has opened, by which part and how often, and its true label budget."""

    workdir: str = option("", "Folder of a training run, finished or not.")
    data_dir: str = option(
        "", "Folder of scans, to say which unlabelled cases have a label on file. Empty: where the run had it."
    )
    output: str = option("", "JSON file for the result. Empty: none.")


def labels_on_file(data_dir: str, case_ids: Sequence[str]) -> dict[str, bool] | None:
    """Which cases have a label on file; opens none. None where the folder of scans is not there."""
    from semisam_tf.data.volumes import find_case, has_label

    if not Path(data_dir).is_dir():
        return None
    there = {}
    for case_id in case_ids:
        try:
            there[case_id] = has_label(find_case(data_dir, case_id))
        except (FileNotFoundError, ValueError):
            continue  # of a case that is gone nothing can be said; the audit is about the record
    return there


def audit_command(config: AuditConfig) -> int:
    """Audits and prints; 1 if anything fails."""
    if not config.workdir:
        raise OptionError("--workdir is needed: the folder of a run (--help lists every flag).")
    from semisam_tf.atomic import write_json
    from semisam_tf.inference.label_audit import audit_run
    from semisam_tf.inference.run_folder import read_run

    run = read_run(Path(config.workdir))
    on_file = labels_on_file(config.data_dir or run["config"].data_dir, run["unlabelled"])
    audit = audit_run(Path(config.workdir), on_file)
    sys.stdout.write(report(audit, config.workdir, wants_colour(sys.stdout)))
    if config.output:
        write_json(config.output, as_json(audit))
    return 1 if failed(audit.findings) else 0


def report(audit: Audit, workdir: str, colour: bool = False) -> str:
    """The audit as text: who opened what, the budget, and what was compared."""
    from semisam_tf.inference.label_audit import budget

    lines = [f"Labels that {workdir} opened"]
    if audit.openings:
        lines += ["", f"{'part':<14} {'scans':>5} {'openings':>8}  scans, and how often where more than once"]
        for name, row in budget(audit).items():
            cases = row["cases"]
            names = ", ".join(case if n == 1 else f"{case} ({n})" for case, n in cases.items())
            text = f"{name:<14} {len(cases):>5} {sum(cases.values()):>8}  {names or row['note']}"
            lines.append(red(text, colour) if name == "prompts" and cases else text.rstrip())
            if names and row["note"]:
                lines.append(f"{'':<30}{row['note']}")
        learned = len(audit.learned_from)
        of = f"run.json lists {len(audit.labelled)} as labelled"
        text = f"Label budget: {learned} {'scan' if learned == 1 else 'scans'} learned from ({of})"
        lines += ["", red(text, colour) if audit.oracle or learned > len(audit.labelled) else text]
    lines += ["", *(finding.line(colour) for finding in audit.findings)]
    return "\n".join(lines) + "\n"


def as_json(audit: Audit) -> dict[str, Any]:
    """JSON-ready values of the audit."""
    from semisam_tf.inference.label_audit import budget

    return {
        "failed": failed(audit.findings),
        "oracle_prompts": audit.oracle,
        "labelled": list(audit.labelled),
        "learned_from": list(audit.learned_from),
        "budget": budget(audit),
        "findings": [_plain(finding) for finding in audit.findings],
    }


def _plain(finding: Finding) -> dict[str, str]:
    return {"status": finding.status, "subject": finding.subject, "found": finding.found, "fix": finding.fix}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(AuditConfig, "semisam_tf.audit", sys.argv[1:] if argv is None else argv, audit_command)


if __name__ == "__main__":
    sys.exit(main())
