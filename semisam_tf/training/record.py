"""What a run is: `run.json` in its workdir, and whether a command goes on with it or contradicts it."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path

from semisam_tf import __version__
from semisam_tf.atomic import write_json
from semisam_tf.config import Config
from semisam_tf.data.splits import Split
from semisam_tf.data.volumes import Volume
from semisam_tf.inference.predictor import RUN_FILE, read_run
from semisam_tf.options import OptionError

# Settings that may differ when a run is resumed: they do not touch the arrays it ends with.
_MAY_CHANGE = {
    "preset",
    "data_dir",
    "sam_dir",
    "sam_cache_dir",
    "data_workers",
    "log_every",
    "image_every",
    "checkpoint_every",
}


def check_same_run(config: Config) -> None:
    """Refuses to go on in a workdir whose run had other settings.

    Raises:
        OptionError: Names every setting that differs, with both values.
    """
    workdir = Path(config.workdir)
    if not (workdir / RUN_FILE).is_file():
        return
    old, new = read_run(workdir)["config"].to_dict(), config.to_dict()
    differing = [name for name in new if new[name] != old[name] and name not in _MAY_CHANGE]
    if differing:
        changed = "; ".join(f"--{name}={new[name]} (was {old[name]})" for name in differing)
        raise OptionError(
            f"{workdir} holds a run with other settings. Choose another --workdir, or set them back: {changed}."
        )


def write(config: Config, channels: int, split: Split, unlabelled: list[Volume]) -> None:
    """Writes `<workdir>/run.json`: settings, cases, command, git commit, versions.

    Args:
        channels: Image channels; with the settings, all that is needed to build the network again.
        split: As asked for.
        unlabelled: As loaded: empty where nothing learns from them.
    """
    packages = (
        "semisam-tf",
        "tensorflow",
        "tensorflow-cpu",
        "keras",
        "onnxruntime",
        "onnxruntime-gpu",
        "numpy",
        "h5py",
    )
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    record = {
        "semisam_tf": __version__,
        "config": config.to_dict(),
        "channels": channels,
        "labelled": list(split.labelled),
        "unlabelled": [volume.case_id for volume in unlabelled],
        "command": sys.argv,
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "versions": versions,
    }
    write_json(Path(config.workdir) / RUN_FILE, record)


def _git_commit() -> str | None:
    """Commit of the code's own checkout, with "+changes" where it is not clean; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        status = subprocess.run(
            ["git", "-C", str(folder), "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if status else "")
