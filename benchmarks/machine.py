"""What a figure was measured on, and how it is kept."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def describe(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Cores, processor, load, date and versions, as JSON values. The load is the average of the last 15 minutes."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "load_average": os.getloadavg()[2],
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def keep(path: Path, result: dict[str, Any]) -> None:
    """Writes a result as JSON, whole or not at all."""
    # Not at the top: a benchmark puts its own clone first on the path before it needs anything of the package.
    from semisam_tf.atomic import write_json

    write_json(path, result)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
