"""What training and evaluation leave in a workdir, read without TensorFlow."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from semisam_tf.config import Config
from semisam_tf.data.splits import split_of
from semisam_tf.options import OptionError
from semisam_tf.workdir import RESULT_FILE, ROUNDS_FOLDER, RUN_FILE

REMEDY = "Copy the run's folder again, name another, or train it anew."


def read_run(workdir: Path) -> dict[str, Any]:
    """The record that training keeps in `workdir`; `config` in it is a Config.

    Raises:
        FileNotFoundError: No run there.
        ValueError: The record is damaged, or of something else.
    """
    path = workdir / RUN_FILE
    if not path.is_file():
        fix = "Train it, or name another folder."
        if (workdir / ROUNDS_FOLDER).is_dir():
            fix = f"Its last round has not begun; those before are runs of their own in {workdir / ROUNDS_FOLDER}."
        raise FileNotFoundError(f"Expected a training run in {workdir}: {path} is missing. {fix}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"Expected the JSON that training writes in {path}. Received: {error}. {REMEDY}") from error
    missing = [key for key in ("config", "channels") if not isinstance(record, dict) or key not in record]
    if missing:
        raise ValueError(
            f"Expected the record of a training run in {path}. Received: one without {' and '.join(missing)}. {REMEDY}"
        )
    return record | {"config": Config.from_dict(record["config"])}


def unlabelled_cases(run: dict[str, Any], data_dir: str = "") -> list[str]:
    """Training cases of whose labels the run of `read_run` knows nothing.

    A plain supervised run loads no such case and its record names none; its lists are read again then.

    Args:
        run: From `read_run`.
        data_dir: Where the scans are now; empty: where they were.

    Raises:
        OptionError: There is none.
    """
    cases = list(run["unlabelled"])
    if not cases:
        config = dataclasses.replace(run["config"], data_dir=data_dir or run["config"].data_dir)
        # By the record, too: a list that was edited since may call a scan unlabelled that the run learned from.
        cases = [case for case in split_of(config).unlabelled if case not in run["labelled"]]
    if not cases:
        raise OptionError("--cases is needed: the run had no unlabelled cases.")
    return cases


def rounds_of(workdir: Path) -> list[Path]:
    """Folders of a run's finished rounds, first to last; the workdir itself is the last."""
    earlier = sorted(workdir.glob(f"{ROUNDS_FOLDER}/*/{RESULT_FILE}"), key=lambda path: int(path.parent.name))
    return [*(path.parent for path in earlier), workdir]


def read_result(workdir: Path) -> dict[str, Any]:
    """`result.json`, which training writes last: steps, time, and what SAM did.

    Raises:
        FileNotFoundError: Training has not finished.
    """
    path = workdir / RESULT_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"Expected {path}, which training writes at its end. Run the train command again: it goes on from the last "
            "checkpoint."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def run_id_of(record: dict[str, Any]) -> str:
    """Name of the run in its record of opened labels; "unknown" for runs of versions that kept none."""
    return (record.get("label_ledger") or {}).get("run_id", "unknown")
