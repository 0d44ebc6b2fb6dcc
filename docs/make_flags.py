"""Writes docs/flags.md, the reference of all flags, from what --help says: `make flags`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COMMANDS = (
    "semisam_tf.prepare",
    "semisam_tf.doctor",
    "semisam_tf.train",
    "semisam_tf.evaluate",
    "semisam_tf.audit",
    "semisam_tf.report",
    "semisam_tf.predict",
    "semisam_tf.pseudolabel",
    "semisam_tf.rank",
    "semisam_tf.serving.save",
    "semisam_tf.serving.client",
    "semisam_tf.data.simulate",
    "export.sam",
)
REPO = Path(__file__).resolve().parent.parent


def help_of(command: str) -> str:
    """What `python -m <command> --help` prints, without where the clone lies."""
    environment = os.environ | {"PYTHONPATH": str(REPO), "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"}
    words = [sys.executable, "-m", command, "--help"]
    done = subprocess.run(words, cwd=REPO, env=environment, capture_output=True, encoding="utf-8", check=True)
    return done.stdout.replace(f"{REPO}/", "")


def reference() -> str:
    """The whole page."""
    parts = ["# Flags", "", "Made by `make flags` from what each command's `--help` prints."]
    for command in COMMANDS:
        parts += ["", f"## {command}", "", "```text", help_of(command).rstrip(), "```"]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    (REPO / "docs" / "flags.md").write_text(reference(), encoding="utf-8")
