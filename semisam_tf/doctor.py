"""Looks for what keeps a run from working: `python -m semisam_tf.doctor [flags of the run]`.

It runs where TensorFlow or ONNX Runtime is absent or broken, and where the package that reads flags is: nothing that
could be broken is imported here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from semisam_tf.findings import failed

if TYPE_CHECKING:
    from semisam_tf.health.settings import DoctorConfig


def doctor_command(config: DoctorConfig) -> int:
    """Examines and prints; 1 if anything fails."""
    from semisam_tf.health.report import Report, examine_installation, examine_run

    report = Report(sys.stdout)
    providers = tuple(part.strip() for part in config.sam_providers.split(",") if part.strip())
    examine_installation(report, providers if config.sam_mode != "off" and not config.sam_allow_cpu else ())
    examine_run(report, config)
    return 1 if failed(report.findings) else 0


def without_flags(error: ImportError) -> int:
    """What can be said where flags cannot be read."""
    from semisam_tf.findings import FAIL, Finding
    from semisam_tf.health.report import Report, examine_installation

    report = Report(sys.stdout)
    finding = Finding(FAIL, "flags", f"absl cannot be imported: {error}", "pip install --force-reinstall absl-py")
    report.add("flags", lambda: finding)
    examine_installation(report)
    return 1


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    try:
        from semisam_tf.config import PRESETS
        from semisam_tf.health.settings import DoctorConfig
        from semisam_tf.options import run_command
    except ImportError as error:
        return without_flags(error)
    words = sys.argv[1:] if argv is None else argv
    try:
        return run_command(DoctorConfig, "semisam_tf.doctor", words, doctor_command, PRESETS)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
