"""What benchmarks/speed.py times of semisam_tf, in a process without torch.

A function returns tasks by name (benchmarks/turns.py), or the figures themselves. TensorFlow is imported in them:
importing semisam_tf comes before it.
"""

from __future__ import annotations

import dataclasses
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sam_steps import Loaded, be_deterministic, la_config, load, steps_in_turns
from tracing import Operation, seconds_by, traced
from turns import Tasks

from semisam_tf.config import PRESETS, Config

if TYPE_CHECKING:
    from semisam_tf.data.batches import Batch
    from semisam_tf.training.state import Training

_PASSES = 8
# A left atrium scan, voxels and their size.
_LA_SIZE, _LA_SPACING_MM = (175, 132, 88), 0.625


def forward(batch: int, size: tuple[int, ...], filters: int, normalisation: str, dropout: float) -> Tasks:
    """Tasks "step", a forward pass in inference mode, and "matmul", a float32 product of 2048 x 2048."""
    be_deterministic()
    import tensorflow as tf

    from semisam_tf.models.vnet import build_vnet

    net = build_vnet(filters=filters, normalisation=normalisation, dropout=dropout)
    infer = tf.function(lambda images: net(images, training=False))
    images, matrix = tf.random.normal((batch, *size, 1)), tf.random.normal((2048, 2048))

    def matmul() -> tf.Tensor:
        product = tf.matmul(matrix, matrix)
        # A GPU has only been told.
        tf.test.experimental.sync_devices()
        return product

    return {"step": lambda: infer(images).numpy(), "matmul": matmul}


def train_step(**settings: Any) -> Tasks:
    """Task "step", one training step of a run on the same batch again and again; arguments as of `_training`."""
    be_deterministic()
    training, batch = _training(**settings), _synthetic_batch(**settings)
    return {"step": lambda: training.take_step(batch)["total"].numpy()}


def teacher_passes(**settings: Any) -> Tasks:
    """UA-MT's passes over the unlabelled items: "eight", as the framework makes them, and "one", a forward of it."""
    be_deterministic()
    import tensorflow as tf

    from semisam_tf.models.softmax import softmax
    from semisam_tf.semi import losses

    training = _training("uncertainty_aware_mean_teacher", **settings)
    teacher, noise = training.teacher, training.train_step.noise
    images = tf.constant(_synthetic_batch(**settings).images[settings["labelled"] :])

    @tf.function
    def eight(images: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        passes = [teacher(images + noise([*images.shape], step, 1 + i), training=True) for i in range(_PASSES)]
        return losses.entropy(tf.add_n([softmax(logits) for logits in passes]) / _PASSES)

    one = tf.function(lambda images: teacher(images, training=True))
    step = tf.constant(0, tf.int64)
    return {"eight": lambda: eight(images, step).numpy(), "one": lambda: one(images).numpy()}


def operations(of: str, arguments: dict[str, Any], repetitions: int) -> dict[str, Any]:
    """Where the time of the tasks of another function of this module goes, that of each task in a call.

    Returns:
        Task -> "seconds", with nobody looking; "kinds": kind of operation -> seconds, with the profiler looking, and
        "convolutions": layer -> seconds.
    """
    found = {}
    for name, task in globals()[of](**arguments).items():
        task()
        began_s = time.perf_counter()
        for _ in range(repetitions):
            task()
        seconds = (time.perf_counter() - began_s) / repetitions
        seen = traced(task, repetitions)
        found[name] = {
            "seconds": seconds,
            "kinds": seconds_by(lambda operation: operation.kind, seen, repetitions),
            "convolutions": seconds_by(_layer_of_convolution, seen, repetitions),
        }
    return found


def _layer_of_convolution(operation: Operation) -> str:
    """Published name of the layer; empty of other operations. The graph's is "vnet_1/block_one.conv.0_1/BiasAdd"."""
    if "Conv3D" not in operation.kind:
        return ""
    return re.sub(r"_\d+$", "", operation.name.split("/")[1])


def semisam(sam_dir: str, sam_providers: str, batch: int, size: tuple[int, ...], **settings: Any) -> Tasks:
    """SemiSAM with a 3D SAM online: tasks "sam", all it is asked in an iteration, and "step", the mean teacher's.

    The student is untrained and its prediction no organ: it is made, and a ball is put in its place.
    """
    be_deterministic()
    from semisam_tf.data.batches import stream_of
    from semisam_tf.training.sam_setup import sam_sessions
    from semisam_tf.training.state import Training
    from semisam_tf.training.step import Schedule

    config = _config("mean_teacher", batch=batch, size=size, **settings)
    config = dataclasses.replace(config, sam_mode="online", sam_dir=sam_dir, sam_providers=sam_providers)
    sessions = sam_sessions(config)
    if sessions[0].manifest.input_spacing_mm is None:
        raise ValueError(f"Expected the export of a 3D SAM, as export.sam --family=sam_med3d. Received: {sam_dir}.")
    scans = synthetic_scans(size, sessions[0].manifest.input_spacing_mm[0])
    training = Training.build(config, 1, *scans, sessions)
    items, ball = batch - settings["labelled"], np.eye(2, dtype=np.float32)[_ball(size)]
    predict = training.sam.crop_probs

    def ball_for_the_prediction(images: np.ndarray) -> np.ndarray:
        predict(images)
        return np.stack([ball] * items)

    training.sam.crop_probs = ball_for_the_prediction
    made = stream_of(config, *scans).batch(0)
    probs, weight = np.stack([ball] * items), np.ones((items, *size), np.float32)
    schedule = Schedule.at(config, 0)

    def sam() -> None:
        _, weight = training.sam.targets(0, made)
        if not weight.any():
            raise RuntimeError("Expected SAM to answer: its weight is 0 everywhere, so it was not asked.")

    def step() -> None:
        training.train_step(schedule, made.images, made.labels, probs, weight)["total"].numpy()

    return {"sam": sam, "step": step}


def sam_modes(
    data_dir: str,
    sam_dir: str,
    sam_providers: str,
    turns: int,
    student_steps: int,
    steps: int,
    online_steps: int,
    limit_s: float,
) -> dict[str, Any]:
    """Steps of a mean teacher of the `cpu` preset on the left atrium, by `sam_mode`, as `steps_in_turns` has them.

    A student is trained first, so that SAM is prompted with organs. Targets are made anew so often that some are timed.
    """
    be_deterministic()
    from semisam_tf.training.pseudolabels import write_target
    from semisam_tf.training.sam_setup import sam_sessions
    from semisam_tf.training.state import Training

    with tempfile.TemporaryDirectory() as folder:
        targets = Path(folder) / "targets"
        config = la_config(
            data_dir, 4, f"--sam_dir={sam_dir}", f"--sam_cache_dir={folder}/cache", f"--targets_dir={targets}",
            "--sam_refresh_visits=2", f"--sam_providers={sam_providers}",
        )  # fmt: skip
        config = dataclasses.replace(config, workdir=folder)
        loaded = load(config, 4)
        trained = Training.build(config, 1, *loaded, [])
        steps_in_turns({"off": trained}, loaded, {"off": student_steps}, turns=0)
        for scan in loaded[1]:
            probs = _whole_scan(config, trained, scan.image)
            write_target(targets, scan.case_id, probs, np.ones(scan.size, np.float32), {})
        trainings = {}
        for mode in ("off", "cached", "offline", "online"):
            changed = dataclasses.replace(config, sam_mode=mode)
            sessions = sam_sessions(changed) if mode in ("cached", "online") else []
            trainings[mode] = Training.build(changed, 1, *loaded, sessions)
            # The student's for both: a teacher's average is not worth much after so few steps.
            for network in trainings[mode].networks().values():
                network.set_weights(trained.student.get_weights())
        for scan in loaded[1]:  # all slices are encoded, so that no step that is timed has to
            column = np.broadcast_to(_ball((*scan.size[:2], 1)), scan.size)
            asked = {"key": scan.case_id, "spacing_mm": scan.spacing_mm}
            trainings["cached"].sam.sam.target(scan.image, np.eye(2, dtype=np.float32)[column], **asked)
        many = dict.fromkeys(trainings, steps) | {"online": online_steps}
        return steps_in_turns(trainings, loaded, many, turns, limit_s)


def _whole_scan(config: Config, training: Training, image: np.ndarray) -> np.ndarray:
    from semisam_tf.inference.predictor import Predictor

    return Predictor(config, training.student).probs(image)


def data(setting: str, data_dir: str, batches: int, seconds: float) -> dict[str, Any]:
    """How fast threads make batches with nothing beside them, and how long steps wait for them.

    Args:
        setting: "cpu": the preset; "published": 112 x 112 x 80 with the paper's network and augmentation.
        data_dir: Folder of the left atrium; empty: scans of its size, of noise.
        batches: How many are timed alone.
        seconds: For how long steps are taken.
    """
    be_deterministic()
    from semisam_tf.data.batches import Prefetcher, stream_of
    from semisam_tf.training.state import Training

    config, loaded = _data_setting(setting, data_dir)
    stream = stream_of(config, *loaded)
    with Prefetcher(stream.batch, 0, batches, workers=config.data_workers) as prefetcher:
        began_s = time.perf_counter()
        for _ in prefetcher:
            pass
        alone_s = time.perf_counter() - began_s
    training = Training.build(config, 1, *loaded, [])
    marks, ready = _steps_for(training, loaded, seconds), stream.batch(0)
    ready_s = []
    for _ in range(10):
        began_s = time.perf_counter()
        training.take_step(ready)["total"].numpy()
        ready_s.append(time.perf_counter() - began_s)
    return {
        "scans": "LA" if data_dir else "noise",
        "batches": batches,
        "batches_per_s": batches / alone_s,
        "steps": len(marks) - 1,
        "step_s": (marks[-1][0] - marks[0][0]) / (len(marks) - 1),
        "wait_share": (marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0]),
        # What the threads take of the cores slows steps down rather than have them wait.
        "ready_step_s": statistics.median(ready_s),
    }


def sustained(data_dir: str, minutes: int, minute_s: float = 60.0) -> dict[str, Any]:
    """Steps a second and memory, minute by minute, of a mean teacher of the `cpu` preset."""
    be_deterministic()
    from semisam_tf.training.state import Training

    config, loaded = _data_setting("cpu", data_dir)
    marks = _steps_for(Training.build(config, 1, *loaded, []), loaded, minutes * minute_s)
    rates, memory = [], []
    for minute in range(minutes):
        inside = [mark for mark in marks[1:] if minute <= (mark[0] - marks[0][0]) / minute_s < minute + 1]
        rates.append(len(inside) / minute_s)
        memory.append(inside[-1][2])
    return {"scans": "LA" if data_dir else "noise", "steps_per_s": rates, "rss_bytes": memory}


def memory(data_dir: str, sam_dir: str, sam_providers: str) -> dict[str, dict[str, int]]:
    """Phase of a mean teacher of the `cpu` preset with SAM -> resident bytes after it, and the most during it.

    Args:
        data_dir: Folder of the left atrium; empty: noise.
        sam_dir: Export of a SAM; empty: without one.
        sam_providers: ONNX Runtime's.
    """
    be_deterministic()
    from semisam_tf.data.batches import stream_of
    from semisam_tf.inference.predictor import Predictor
    from semisam_tf.training.sam_setup import sam_sessions
    from semisam_tf.training.state import Training

    phases: dict[str, dict[str, int]] = {}

    def ends(phase: str) -> None:
        phases[phase] = {"rss_bytes": _resident_bytes(), "peak_rss_bytes": _resident_bytes("VmHWM")}
        # Linux: the most so far is what there is now.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

    with tempfile.TemporaryDirectory() as folder:
        ends("libraries imported")
        config, loaded = _data_setting("cpu", data_dir)
        config = dataclasses.replace(config, workdir=folder, sam_cache_dir="", sam_start_step=2)
        if sam_dir:
            config = dataclasses.replace(config, sam_mode="cached", sam_dir=sam_dir, sam_providers=sam_providers)
        ends(f"{sum(len(scans) for scans in loaded)} scans read")
        sessions = sam_sessions(config)
        if sessions:
            ends("SAM opened")
        training = Training.build(config, 1, *loaded, sessions)
        ends("networks built")
        stream = stream_of(config, *loaded)
        for last, phase in (
            (1, "first step, traced"),
            (2, "second step"),
            (3, "SAM's first targets"),
            (13, "10 steps"),
        ):
            while training.step < last:
                training.take_step(stream.batch(training.step))["total"].numpy()
            if sessions or "SAM" not in phase:
                ends(phase)
        training.save()
        ends("checkpoint")
        Predictor(config, training.teacher).probs(loaded[1][0].image)
        ends("a scan predicted")
    return phases


def first_step() -> dict[str, float]:
    """Time of day (seconds since 1970) at the end of the first step of the `cpu` preset, and what steps took."""
    be_deterministic()
    from semisam_tf.data.batches import stream_of
    from semisam_tf.training.state import Training

    config, loaded = _data_setting("cpu", "")
    training, batch = Training.build(config, 1, *loaded, []), stream_of(config, *loaded).batch(0)
    ends, seconds = [], []
    for _ in range(4):
        began_s = time.perf_counter()
        training.take_step(batch)["total"].numpy()
        seconds.append(time.perf_counter() - began_s)
        ends.append(time.time())
    return {"ended_s": ends[0], "first_step_s": seconds[0], "next_step_s": statistics.median(seconds[1:])}


def _data_setting(setting: str, data_dir: str) -> tuple[Config, Loaded]:
    if setting == "cpu":
        config = la_config(data_dir, 4)
    elif setting == "published":
        config = _config("mean_teacher", 2, 4, (112, 112, 80))
        config = dataclasses.replace(config, data_dir=data_dir, labeled="4", default_spacing_mm=(_LA_SPACING_MM,) * 3)
    else:
        raise ValueError(f"Expected setting of cpu, published. Received: {setting!r}.")
    if data_dir:
        return config, load(config, 16)
    spacing_mm = (config.training_spacing_mm or config.default_spacing_mm)[0]
    return config, synthetic_scans(tuple(round(n * _LA_SPACING_MM / spacing_mm) for n in _LA_SIZE), spacing_mm)


def _steps_for(training: Training, loaded: Loaded, seconds: float) -> list[tuple[float, float, int]]:
    """Takes steps on batches made by threads for so long, after a few that warm up.

    Returns:
        At the start and after each step: the time, seconds spent waiting for batches so far, resident bytes.
    """
    from semisam_tf.data.batches import Prefetcher, stream_of

    config = training.config
    stream, warm_up = stream_of(config, *loaded), 3
    marks: list[tuple[float, float, int]] = []
    with Prefetcher(stream.batch, 0, 2**31, workers=config.data_workers) as prefetcher:
        while not marks or marks[-1][0] - marks[0][0] < seconds:
            training.take_step(prefetcher.next()[1])["total"].numpy()
            warm_up -= 1
            if warm_up <= 0:
                marks.append((time.perf_counter(), prefetcher.wait_s, _resident_bytes()))
    return marks


def _resident_bytes(kind: str = "VmRSS") -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.split(f"{kind}:")[1].split()[0])


def _config(
    method: str,
    labelled: int,
    batch: int,
    size: tuple[int, ...],
    filters: int = PRESETS["paper"]["filters"],
    normalisation: str = PRESETS["paper"]["normalisation"],
    dropout: float = PRESETS["paper"]["dropout"],
    **more: Any,
) -> Config:
    """The paper's settings (SGD) with these and `more` changed."""
    changes = {
        "method": method, "batch_size": batch, "labeled_per_batch": labelled, "patch_size": tuple(size),
        "filters": filters, "normalisation": normalisation, "dropout": dropout, "uncertainty_passes": _PASSES,
    }  # fmt: skip
    return Config(**(PRESETS["paper"] | changes | more))


def _training(method: str, **settings: Any) -> Training:
    """A run at step 0, without SAM; arguments as of `_config`."""
    from semisam_tf.distribution.devices import devices_of
    from semisam_tf.training.state import Training

    config = _config(method, **settings)
    devices = devices_of(config)
    with devices.strategy.scope():
        return Training.build(config, 1, [], [], [], replicas=devices.replicas)


def _synthetic_batch(batch: int, size: tuple[int, ...], labelled: int, **_: Any) -> Batch:
    from semisam_tf.data.batches import Batch

    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, *size, 1), np.float32)
    return Batch(images, (rng.random((labelled, *size)) > 0.9).astype(np.uint8), [], [], tuple(range(batch)))


def synthetic_scans(size: tuple[int, ...], spacing_mm: float) -> Loaded:
    """Four scans of noise, labelled with a ball, and sixteen without label."""
    from semisam_tf.data.volumes import Volume

    rng = np.random.default_rng(0)
    affine = np.diag([spacing_mm] * 3 + [1.0])

    def scan(name: str, label: np.ndarray | None) -> Volume:
        image = rng.standard_normal((*size, 1), np.float32)
        return Volume(name, image, label, (spacing_mm,) * 3, affine)

    ball = _ball(size).astype(np.uint8)
    return [scan(f"labelled_{n}", ball) for n in range(4)], [scan(f"unlabelled_{n}", None) for n in range(16)]


def _ball(size: tuple[int, ...]) -> np.ndarray:
    """Int [X, Y, Z] in {0, 1}: a ball in the middle, its radius 0.3 of each side."""
    axes = np.meshgrid(*[(np.arange(n) + 0.5) / n - 0.5 for n in size], indexing="ij", sparse=True)
    return (sum(axis**2 for axis in axes) < 0.3**2).astype(int)
