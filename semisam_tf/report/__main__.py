"""Writes a run's report anew: `python -m semisam_tf.report --workdir=DIR`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from semisam_tf.options import OptionError, option, run_command


@dataclasses.dataclass(frozen=True)
class ReportConfig:
    """Writes report.html of a run, finished or not, from the files in its folder."""

    workdir: str = option("", "Folder of the run.")


def report_command(config: ReportConfig) -> int:
    """Writes the report and prints where it is."""
    if not config.workdir:
        raise OptionError("--workdir is needed (--help lists every flag).")
    from semisam_tf.report.page import write_report

    sys.stdout.write(f"Report: {write_report(config.workdir)}\n")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(ReportConfig, "semisam_tf.report", sys.argv[1:] if argv is None else argv, report_command)


if __name__ == "__main__":
    sys.exit(main())
