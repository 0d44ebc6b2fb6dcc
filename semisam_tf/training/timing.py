"""Times a few steps of a run and a few answers of SAM, in a process of its own, for `semisam_tf.doctor`.

    python -m semisam_tf.training.timing < request.json

The request has "config", "labelled", "unlabelled" (cases to do it with), "ledger_dir" and "workdir", a folder to throw
away. The answer is one JSON object on the standard output.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semisam_tf.config import Config

if TYPE_CHECKING:
    from semisam_tf.data.label_access import LabelAccess
    from semisam_tf.data.splits import Split
    from semisam_tf.training.state import Training

# The first steps trace the graph and find batches made in advance; what comes after is measured.
_FIRST_STEPS, _TIMED_STEPS = 4, 8
_TIMED_S = 30.0
# Enough to see what a slice takes; encoding a scan of them may take minutes.
_SLICES = 6


def time_run(config: Config, labelled: list[str], unlabelled: list[str], ledger_dir: str) -> dict[str, Any]:
    """Seconds a step, seconds for SAM's parts, and the most memory that the process took.

    Args:
        config: The run's settings; `workdir` is a folder to throw away.
        labelled, unlabelled: A few of its cases.
        ledger_dir: Folder whose record of opened labels this is written to.
    """
    from semisam_tf.data.label_access import LabelLedger
    from semisam_tf.data.splits import Split
    from semisam_tf.distribution.devices import require_precision
    from semisam_tf.training.loop import load_data
    from semisam_tf.training.sam_setup import sam_sessions
    from semisam_tf.training.sam_teaching import SamTeaching
    from semisam_tf.training.state import Training

    require_precision(config)
    labels = LabelLedger(ledger_dir, "doctor").access("timing")
    # Targets that are files take no time worth counting. Those of earlier rounds are made as cached ones are.
    if config.sam_mode == "offline":
        # Not of a coarse-to-fine run: it predicts regions, which nobody knows yet, and whole scans would take too long.
        asks = config.rounds > 1 and config.sam_folders() and not config.coarse_to_fine
        config = dataclasses.replace(config, sam_mode="cached" if asks else "off", rounds=1)
    coarse = _time_coarse(config, Split(tuple(labelled), ()), labels) if config.coarse_to_fine else {}
    sessions = sam_sessions(config)
    scans = load_data(config, Split(tuple(labelled), tuple(unlabelled)), labels)
    # Without SAM's answers, whose time hangs on what a trained network says: they are timed on their own.
    late = dataclasses.replace(config, sam_start_step=config.max_steps, sam_selftest=False, sam_trust="one")
    late = dataclasses.replace(late, oracle_prompts=False)
    training = Training.build(late, scans[0][0].image.shape[-1], *scans, sessions)
    times = time_steps(training, scans)
    if isinstance(training.sam, SamTeaching) and training.sam.sam is not None:
        times |= time_sam(training, scans[1][0])
    return times | coarse | {"peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def _time_coarse(config: Config, cases: Split, labels: LabelAccess) -> dict[str, float]:
    """Seconds a step of the first stage of a coarse-to-fine run, by the same names with "coarse_" before them."""
    from semisam_tf.inference.region import coarse_settings
    from semisam_tf.training.loop import load_labelled
    from semisam_tf.training.state import Training

    settings = coarse_settings(config)
    scans = load_labelled(settings, cases.labelled, labels)
    training = Training.build(settings, scans[0].image.shape[-1], scans, [], [])
    times = time_steps(training, (scans, []))
    return {f"coarse_{name}": times[name] for name in ("first_step_s", "step_s")}


def time_steps(training: Training, scans: tuple[list[Any], list[Any]]) -> dict[str, Any]:
    """Takes steps on real batches, made by as many threads as the run has.

    Returns:
        "first_step_s": with tracing; "step_s": mean of the timed steps, data wait included; "steps": how many.
    """
    from semisam_tf.data.batches import Prefetcher, stream_of

    config = training.config
    stream = stream_of(config, *scans)
    marks = [time.monotonic()]
    with Prefetcher(
        training.batches_of(stream), 0, _FIRST_STEPS + _TIMED_STEPS, workers=config.data_workers
    ) as prefetcher:
        for _, batch in prefetcher:
            training.take_step(batch)["total"].numpy()
            marks.append(time.monotonic())
            if len(marks) > _FIRST_STEPS and marks[-1] - marks[1] > _TIMED_S:
                break
    timed = marks[min(_FIRST_STEPS, len(marks) - 2) :]
    steps = len(timed) - 1
    return {"first_step_s": marks[1] - marks[0], "step_s": (timed[-1] - timed[0]) / steps, "steps": steps}


def time_sam(training: Training, scan: Any) -> dict[str, Any]:
    """Has SAM answer a prediction made up for a scan: a ball, of a few slices.

    Returns:
        "view_s": seconds for a slice or window that is encoded and decoded; "again_s": for one whose embedding is
        kept; "scan_s": for the network to predict a whole scan (0 where SAM sees crops).
    """
    import numpy as np

    from semisam_tf.training.sam_teaching import SamTeaching

    config, sam = training.config, training.sam
    if not isinstance(sam, SamTeaching) or sam.sam is None:
        raise ValueError(f"Expected a run that asks SAM. Received: {config.sam_mode=}, {config.sam_dir=}.")
    cached = config.sam_mode == "cached"
    image, scan_s = scan.image, 0.0
    if cached:
        began_s = time.monotonic()
        sam.volume_probs(image)
        scan_s = time.monotonic() - began_s
    else:
        size = [min(n, most) for n, most in zip(image.shape[:3], config.patch_size, strict=True)]
        image = image[: size[0], : size[1], : size[2]]
    axes = np.meshgrid(*[(np.arange(n) + 0.5) / n - 0.5 for n in image.shape[:3]], indexing="ij", sparse=True)
    ball = sum(axis**2 for axis in axes) < 0.3**2
    if all(branch.session.manifest.dims == 2 for branch in sam.sam.branches):
        cut = config.sam_axis[0]
        middle = np.abs(np.arange(image.shape[cut]) - image.shape[cut] // 2)
        near = middle <= _SLICES * config.sam_slice_step // 2
        ball &= near.reshape([-1 if axis == cut else 1 for axis in range(3)])
    # Margins share the encoding of a slice; axes and models do not.
    kinds = len({(id(branch.session), branch.axis) for branch in sam.sam.branches})
    probs = np.eye(config.n_classes, dtype=np.float32)[ball.astype(int)]
    seconds, views = [], 1.0
    for _ in range(2):
        began_s = time.monotonic()
        rng = np.random.default_rng(0)
        key = scan.case_id if cached else None
        target = sam.sam.target(image, probs, key=key, rng=rng, spacing_mm=scan.spacing_mm)
        seconds.append(time.monotonic() - began_s)
        views = max(1.0, kinds * target.scores["slices_prompted"])
    return {"view_s": seconds[0] / views, "again_s": seconds[1] / views, "scan_s": scan_s}


def main() -> int:
    """Reads the request, answers; 1, with one line, if it fails."""
    try:
        request = json.load(sys.stdin)
        # What is written on the way goes with the workdir.
        own: dict[str, Any] = {"workdir": request["workdir"], "sam_cache_dir": "", "scan_cache_dir": ""}
        config = dataclasses.replace(Config.from_dict(request["config"]), **own)
        Path(config.workdir).mkdir(parents=True, exist_ok=True)
        answer = time_run(config, request["labelled"], request["unlabelled"], request["ledger_dir"])
    except Exception as error:  # the doctor reports whatever it is
        sys.stderr.write(f"{' '.join(str(error).split()) or type(error).__name__}\n")
        return 1
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
