"""What a run's folder says, read as it is: nothing here needs the version that wrote it, or TensorFlow."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from semisam_tf.config import Config
from semisam_tf.report.history import Entry, read_history
from semisam_tf.workdir import (
    HISTORY_FILE,
    LEDGER_FILE,
    METRICS_FILE,
    RESULT_FILE,
    ROUNDS_FOLDER,
    RUN_FILE,
    SAM_OVERLAYS_FILE,
    SCORED_OVERLAYS_FILE,
    WORKERS_FOLDER,
)


@dataclass(frozen=True, eq=False)
class RunFiles:
    """The JSON of a run's folder.

    Attributes:
        name: The folder's.
        run: `run.json`.
        result: `result.json`, or None while the run is not finished.
        history: `history.jsonl`; empty where there is none.
        metrics: `metrics.json`, or None where no evaluation wrote one.
        scored: Overlays of the cases of `metrics`; empty where they are absent or of another evaluation.
        sam: Overlays of SAM's targets.
        openings: Of the run's labels, by purpose and case, as recorded; empty where there is no record. Whether the
            record is whole is for `semisam_tf.audit` to say.
    """

    name: str
    run: dict[str, Any]
    result: dict[str, Any] | None
    history: list[Entry]
    metrics: dict[str, Any] | None
    scored: list[dict[str, Any]]
    sam: list[dict[str, Any]]
    openings: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """The run's settings; those that its version did not have yet are at their defaults."""
        return Config().to_dict() | self.run["config"]

    @property
    def step(self) -> int:
        """Steps taken, as far as the folder says."""
        if self.result is not None:
            return self.result["steps"]
        return self.history[-1]["step"] if self.history else 0


def read_run_files(workdir: str | os.PathLike[str]) -> RunFiles:
    """Reads a run's folder.

    Raises:
        FileNotFoundError: No run there.
        ValueError: A file is damaged; names it.
    """
    folder = Path(workdir)
    run = _read_json(folder / RUN_FILE)
    if run is None:
        raise FileNotFoundError(
            f"Expected a training run in {folder}: {RUN_FILE} is missing. Train it, or name another folder."
        )
    scored = _read_json(folder / SCORED_OVERLAYS_FILE) or {}
    sam = _read_json(folder / SAM_OVERLAYS_FILE) or {}
    metrics = _read_json(folder / METRICS_FILE)
    belongs = metrics is not None and scored.get("metrics_sha256") == sha256_of(folder / METRICS_FILE)
    return RunFiles(
        folder.resolve().name,
        run,
        _read_json(folder / RESULT_FILE),
        read_history(folder / HISTORY_FILE),
        metrics,
        scored["cases"] if belongs else [],
        sam.get("cases", []),
        _read_openings(folder),
    )


def sha256_of(path: Path) -> str:
    """Of a file: it ties what is drawn of an evaluation to its scores."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_openings(workdir: Path) -> dict[str, dict[str, int]]:
    """Purpose -> case -> how often the run opened its label, in all rounds and all its processes; the doctor's looks at
    the folder as well.

    Lines that cannot be read are the audit's to find.
    """
    found: dict[str, dict[str, int]] = {}
    others = sorted(path.parent for path in (workdir / WORKERS_FOLDER).glob(f"*/{LEDGER_FILE}"))
    for folder in (*sorted((workdir / ROUNDS_FOLDER).glob("*")), workdir, *others):
        run_id = ((_read_json(folder / RUN_FILE) or {}).get("label_ledger") or {}).get("run_id")
        path = folder / LEDGER_FILE
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
            try:
                entry = json.loads(line)
                case_id, purpose, of = entry["case_id"], entry["purpose"], entry["run_id"]
            except (ValueError, KeyError, TypeError):
                continue
            # Another process begins anew at each start, and what its earlier starts taught is in the chief's weights.
            if of in (run_id, "doctor") or folder in others:
                cases = found.setdefault(purpose, {})
                cases[case_id] = cases.get(case_id, 0) + 1
    return found


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"Expected JSON in {path}. Received: {error}. Remove the file, or have it written again."
        ) from error
    if not isinstance(values, dict):
        raise ValueError(f"Expected a JSON object in {path}. Received: a {type(values).__name__}; remove the file.")
    return values
