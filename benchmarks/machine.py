"""What a figure was measured on, how it is kept, and how a benchmark of one finished run goes about it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app


def describe(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Cores, processor, load, date and versions, as JSON values. Loads are averages of the last 15 minutes and of one."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "load_average": os.getloadavg()[2],
        "load_average_1_minute": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def keep(path: Path, result: dict[str, Any]) -> None:
    """Writes a result as JSON, whole or not at all."""
    # Not at the top: a benchmark puts its own clone first on the path before it needs anything of the package.
    from semisam_tf.atomic import write_json

    write_json(path, result)


def measure_and_print(
    argv: list[str],
    results: Path,
    measure: Callable[[], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
    needed: dict[str, str | None],
    print_only: bool,
) -> None:
    """Body of a benchmark that measures one finished run: its JSON under a name, then the tables of all that are there.

    Args:
        argv: As `absl.app` gives it; flags only.
        needed: Flag -> value, of those without which nothing can be measured; "name" is the result's.
    """
    if argv[1:]:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}.")
    if not print_only:
        if not all(needed.values()):
            raise app.UsageError(f"{', '.join(f'--{name}' for name in needed)} are needed (or --print_only).")
        keep(results / f"{needed['name']}.json", {"name": needed["name"]} | measure())
    for path in sorted(results.glob("*.json")):
        sys.stdout.write(table(json.loads(path.read_text(encoding="utf-8"))) + "\n\n")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
