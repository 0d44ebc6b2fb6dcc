"""What a run is: `run.json` in its workdir, and whether a command goes on with it or contradicts it."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from semisam_tf import __version__
from semisam_tf.atomic import write_json
from semisam_tf.config import Config
from semisam_tf.inference.region import COARSE_FOLDER
from semisam_tf.inference.run_folder import read_run, run_id_of
from semisam_tf.options import OptionError
from semisam_tf.workdir import RESULT_FILE, RUN_FILE

_PACKAGES = ("tensorflow", "tensorflow-cpu", "keras", "onnxruntime", "onnxruntime-gpu", "numpy", "scipy", "h5py")
# Settings that may differ when a run is resumed: where things lie (their content is compared instead) and how often
# something is written. None of them touches the arrays that the run ends with.
_MAY_CHANGE = frozenset(
    {
        "preset", "data_dir", "workdir", "train_list", "labeled", "exclude_cases", "quickstart_cohort",
        "scan_cache_dir", "sam_dir", "targets_dir", "sam_cache_dir", "sam_cache_gib", "sam_allow_cpu", "sam_gpu_id",
        "sam_gpu_mem_gib", "data_workers", "log_every", "image_every", "checkpoint_every",
    }
)  # fmt: skip


def begun(config: Config) -> dict[str, Any] | None:
    """The record of the run in the workdir, if it has anything to go on from; None for a fresh or failed start."""
    workdir = Path(config.workdir)
    folders = (workdir / "checkpoints", workdir / COARSE_FOLDER / "checkpoints")
    has_state = (workdir / RESULT_FILE).is_file() or any(any(folder.glob("step_*.h5")) for folder in folders)
    return read_run(workdir) if has_state else None


def run_id(config: Config) -> str:
    """Name of the run in its record of opened labels: a new one for a fresh or failed start."""
    record = begun(config)
    return uuid.uuid4().hex if record is None else run_id_of(record)


def lasting(config: Config) -> dict[str, Any]:
    """The settings that decide what a run ends with, as JSON values."""
    return {name: value for name, value in config.to_dict().items() if name not in _MAY_CHANGE}


def check_same_run(config: Config, facts: dict[str, Any]) -> None:
    """Refuses to go on in a workdir whose run had other settings or other data.

    Args:
        facts: What the settings led to, as in `write`: only what is given is compared.

    Raises:
        OptionError: Names everything that differs, with both values.
    """
    record = begun(config)
    if record is None:
        return
    old, new = lasting(record["config"]), lasting(config)
    changed = [f"--{n}={new[n]} (was {old[n]})" for n in new if new[n] != old[n]]
    for name, value in facts.items():
        if record.get(name) != value:
            changed.append(f"{name}: {_shown(value)} (was {_shown(record.get(name))})")
    if changed:
        raise OptionError(
            f"{config.workdir} holds a run with other settings. Choose another --workdir, or set them back: "
            f"{'; '.join(changed)}."
        )


def check_same_scans(config: Config, scans: Mapping[str, str]) -> None:
    """Refuses to go on where a scan of the run in the workdir has changed: its batches would be others.

    Args:
        scans: Case -> `Volume.content`.

    Raises:
        OptionError: Names the scans.
    """
    record = begun(config)
    # Runs of older versions did not note it.
    before = {} if record is None else record.get("scans", {})
    changed = sorted(case for case, content in before.items() if scans.get(case, content) != content)
    if changed:
        raise OptionError(
            f"{config.workdir} holds a run that began with other scans under the same names: {', '.join(changed)}. "
            "Put back what they were, or choose another --workdir."
        )


def write(
    config: Config,
    channels: int,
    facts: dict[str, Any],
    orientation: str | None = None,
    label_ledger: dict[str, Any] | None = None,
) -> None:
    """Writes `<workdir>/run.json`: settings, cases, SAM, command, git commit, versions.

    A resumed run keeps its first record and adds the command, commit and versions that it goes on with.

    Args:
        channels: Image channels; with the settings, all that is needed to build the network again.
        facts: "labelled", "unlabelled": case names as used; "sam_sha256": files of the SAM export, or None; "scans":
            case -> sha256 of its content.
        orientation: Axis code that all training scans share, such as "RAS": `predict` turns scans to it. None where
            they differ or a file stores none: then nobody knows, and scans are taken in the order of their files.
        label_ledger: `LabelLedger.mark` after the scans are loaded: which openings of labels the run rests on.
    """
    path = Path(config.workdir) / RUN_FILE
    session = {
        "command": sys.argv,
        "git_commit": _git_commit(),
        "semisam_tf": __version__,
        "python": platform.python_version(),
        "versions": _versions(),
        "label_ledger": label_ledger,
    }
    record = begun(config)
    if record is None:
        record = {"config": config.to_dict(), "channels": channels, "orientation": orientation}
        record |= {"oracle_prompts": config.oracle_prompts, **facts, **session, "resumed": []}
    else:
        record["config"] = record["config"].to_dict()
        record["resumed"].append(session)
    write_json(path, record)


def _shown(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 4:
        return f"{len(value)} cases"
    return str(value)


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _git_commit() -> str | None:
    """Commit of the code's own checkout, with "+changes" where it is not clean; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        status = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if status.stdout.strip() else "")
