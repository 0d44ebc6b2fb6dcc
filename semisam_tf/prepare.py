"""Makes a data folder for training out of scans and masks: `python -m semisam_tf.prepare --images=DIR --output=DIR`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from semisam_tf.options import run_command
from semisam_tf.preparation.settings import PrepareConfig, check


def prepare_command(config: PrepareConfig) -> int:
    """Prepares and prints the summary; 1 if a case was left out."""
    check(config)
    from semisam_tf.preparation.report import table
    from semisam_tf.preparation.run import FLAG_FILE, prepare

    report = prepare(config)
    if config.shard:
        return _end_of_shard(config, report["cases"])
    sys.stdout.write(table(report["cases"]))
    for line in _warnings(report):
        sys.stderr.write(f"warning: {line}\n")
    splits = report["splits"]
    counts = ", ".join(f"{len(cases)} {name}" for name, cases in splits.items())
    sys.stdout.write(f"{counts}; {report['channels']} channel(s), {report['n_classes']} classes with background\n")
    sys.stdout.write(f"Summary: {config.output}/prepare.json\nPicture: {config.output}/cases.png\n")
    if splits["labelled"]:
        sys.stdout.write(
            f"Next: python -m semisam_tf.train --flagfile={config.output}/{FLAG_FILE} --preset=cpu --workdir=DIR\n"
        )
    return _left_out(report["cases"])


def _end_of_shard(config: PrepareConfig, cases: list[dict[str, Any]]) -> int:
    counts = Counter(case["status"] for case in cases)
    shown = ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "no case"
    sys.stdout.write(f"Shard {config.shard}: {shown}\n")
    sys.stdout.write("Next, when all shards are done: the same command without --shard, for lists and summary\n")
    return _left_out(cases)


def _left_out(cases: list[dict[str, Any]]) -> int:
    """Names the cases that were left out; 1 if there are any."""
    bad = [case for case in cases if case["problem"]]
    if not bad:
        return 0
    sys.stderr.write(f"error: {len(bad)} of {len(cases)} cases were left out:\n")
    sys.stderr.writelines(f"  {case['case_id']}: {case['problem']}\n" for case in bad)
    return 1


def _warnings(report: dict[str, Any]) -> list[str]:
    of_cases = [f"{case['case_id']}: {line}" for case in report["cases"] if case["prepared"]
                for line in case["prepared"]["warnings"]]  # fmt: skip
    if not report["splits"]["labelled"]:
        of_cases.append("no case is labelled: training needs at least one; give masks by --labels.")
    return [*report["notes"], *of_cases]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(PrepareConfig, "semisam_tf.prepare", sys.argv[1:] if argv is None else argv, prepare_command)


if __name__ == "__main__":
    sys.exit(main())
