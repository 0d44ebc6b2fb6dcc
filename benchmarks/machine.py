"""What a figure was measured on, how it is kept, and how a benchmark of one finished run goes about it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app

REPO = Path(__file__).resolve().parent.parent


def describe(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Cores, processor, load, date and versions, as JSON values. Loads are means of the last 15 minutes and of one."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "load_average": os.getloadavg()[2],
        "load_average_1_minute": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
        "versions": {name: version for name in packages if (version := _version(name))},
        **({"gpus": gpus} if (gpus := _gpus()) else {}),
    }


def _version(package: str) -> str:
    """Empty where it is not installed, as of the two flavours one is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _gpus() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=False).stdout.split("\n")[:-1]


class OtherWork:
    """What other programs computed since this was made: to be told from the benchmark's own work, which loads count."""

    def __init__(self) -> None:
        self._began_s, self._others_s = time.monotonic(), _others_s()

    def cores(self) -> float:
        """How many cores they kept busy on average. All processes that this one started must have ended."""
        return (_others_s() - self._others_s) / (time.monotonic() - self._began_s)


def _others_s() -> float:
    """Seconds that all cores were busy since the machine started, less those of this process and its ended ones."""
    # user, nice, system, idle, iowait, irq, softirq, steal; what comes after is counted in these, too.
    ticks = [int(n) for n in Path("/proc/stat").read_text(encoding="utf-8").split("\n")[0].split()[1:9]]
    busy_s = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return busy_s - sum(usage.ru_utime + usage.ru_stime for usage in used)


def keep(path: Path, result: dict[str, Any]) -> None:
    """Writes a result as JSON, whole or not at all."""
    # Not at the top: a benchmark puts its own clone first on the path before it needs anything of the package.
    from semisam_tf.atomic import write_json

    write_json(path, result)


def train_and_score(
    flags: Sequence[str], workdir: Path, data_dir: str, cases: str, score_flags: Sequence[str] = ()
) -> dict[str, Any]:
    """Runs `train` and `evaluate` in processes of their own.

    Args:
        flags: Of `train`, but for --workdir and --data_dir.
        workdir: The run's.
        data_dir: Folder of the scans.
        cases: List of those to score, in a file.
        score_flags: More flags of `evaluate`.

    Returns:
        The command, the scores and `result.json` of the run, as JSON values.

    Raises:
        subprocess.CalledProcessError: One of the two failed.
    """
    train = ["-m", "semisam_tf.train", *flags]
    where = [f"--workdir={workdir}", f"--data_dir={data_dir}"]
    for words in ([*train, *where], ["-m", "semisam_tf.evaluate", *where, f"--cases={cases}", *score_flags]):
        subprocess.run([sys.executable, *words], cwd=REPO, check=True)
    metrics = json.loads((workdir / "metrics.json").read_text(encoding="utf-8"))
    return {
        "command": "python " + " ".join(train),
        "mean": metrics["mean"],
        "std": metrics["std"],
        "n_empty": metrics["n_empty"],
        "dice": {case["case_id"]: round(case["dice"], 4) for case in metrics["cases"]},
        "coarse_to_fine": metrics.get("coarse_to_fine"),
        "training": json.loads((workdir / "result.json").read_text(encoding="utf-8")),
    }


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
