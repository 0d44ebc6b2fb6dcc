"""What a run does, counted: traces, calls of ONNX Runtime, bytes handed over and kept, files opened, memory held.

No clock is read, so work that is done twice or in vain fails here on every machine. The networks' passes are counted in
tests/unit/training/test_step.py.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import gc
import itertools
import os
import tracemalloc
from pathlib import Path

import h5py
import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from scipy import ndimage

from semisam_tf.config import FRAMEWORK_NAMES, Config
from semisam_tf.data.batches import Batch, stream_of
from semisam_tf.data.label_access import outside_runs
from semisam_tf.data.splits import split_of
from semisam_tf.inference.predictor import Predictor
from semisam_tf.models.normalisation import normalisation_layer
from semisam_tf.models.registry import NETWORKS
from semisam_tf.sam.branch import _VIEWS_AT_A_TIME
from semisam_tf.sam.ensemble import SamEnsemble
from semisam_tf.sam.manifest import load_manifest
from semisam_tf.sam.prompts import component_prompts
from semisam_tf.sam.runtime import CPU
from semisam_tf.sam.session import _DECODER_BATCH
from semisam_tf.sam.window import WindowFrame
from semisam_tf.training.loop import load_data, load_unlabelled
from semisam_tf.training.pseudolabels import write_target
from semisam_tf.training.rounds import train
from semisam_tf.training.sam_setup import sam_sessions
from semisam_tf.training.state import Training
from semisam_tf.training.step import TrainStep
from semisam_tf.training.targets import opened

# Keras' own, when it saves weights.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

STEPS, BATCH, LABELLED_ITEMS, SIDE, CLASSES = 6, 4, 2, 16, 2
UNLABELLED = ["case1", "case2", "case3"]
# With these a network so young predicts something, in some slices and not in all, and not the same at both targets.
SEED, MIN_AREA_VOX, REFRESH_VISITS = 18, 20, 2
PROMPTS_A_CALL = _DECODER_BATCH[CPU]
# Memory is compared over fifty steps, once all is there that is made once. Allocations are traced from a little before:
# to trace those of TensorFlow's own tracing would take most of the test's time.
TRACED_FROM_STEP, WARM_STEP, LAST_STEP = 4, 10, 60
# Less than the smallest array of a step, an item's label, kept at each. NumPy's and Python's free lists fill up slowly.
MOST_GROWTH_BYTES = (LAST_STEP - WARM_STEP) * SIDE**3
# Of the process, whose allocators keep what they have had: loose, against leaks in TensorFlow and ONNX Runtime.
MOST_RESIDENT_GROWTH_BYTES = 64 * 2**20


def config_of(cohort, workdir, **changes):
    """A tiny run. All that is scheduled changes from step to step: what did not could hide a trace."""
    settings = {
        "data_dir": str(cohort), "workdir": str(workdir), "labeled": "1", "batch_size": BATCH,
        "labeled_per_batch": LABELLED_ITEMS, "filters": 2, "patch_size": (SIDE,) * 3, "normalisation": "instance",
        "optimizer": "adamw", "learning_rate": 0.01, "lr_schedule": "cosine", "max_steps": STEPS, "seed": SEED,
        "consistency_ramp_steps": STEPS, "copy_paste_start_step": 2, "uncertainty_passes": 2, "log_every": 2,
        "image_every": STEPS, "checkpoint_every": STEPS, "sam_prompts_from": "student",
        "sam_min_area_vox": MIN_AREA_VOX, "sam_refresh_visits": REFRESH_VISITS,
    }  # fmt: skip
    return Config(**{**settings, **changes})


def two_convolutions(input_channels, n_classes, filters, normalisation, dropout, seed, name):
    """In the place of the V-Net: what is counted is the same with any network, and this one is traced in no time."""
    image = keras.Input((None, None, None, input_channels))
    draw = keras.initializers.GlorotUniform(seed)
    x = keras.layers.Conv3D(filters, 3, padding="same", kernel_initializer=draw)(image)
    x = keras.layers.ReLU()(normalisation_layer(normalisation, "norm", filters)(x))
    return keras.Model(image, keras.layers.Conv3D(n_classes, 1, kernel_initializer=draw)(x), name=name)


@dataclasses.dataclass
class Question:
    """A scan, or a crop without a name, that SAM was asked about, and the items of each call of a graph for it."""

    case_id: str | None
    predicted_mask: np.ndarray
    spacing_mm: tuple[float, ...]
    encoded: list[int]
    decoded: list[int]


@dataclasses.dataclass
class Step:
    """A step of training: its batch, what SAM was asked for it, and the arguments of the compiled function."""

    batch: Batch
    questions: list[Question]
    handed: tuple


class Counts:
    """What a run did.

    Attributes:
        training: The run as it ended.
        compiled: The compiled function of each `TrainStep`.
        predictors: All that were made.
        steps: In order.
        graph_calls: All calls of ONNX Runtime: "encoder" or "decoder", and the items in them.
        opened: How often each case's file was opened.
        read: How often each dataset of it was read, by case and name.
    """

    def __init__(self):
        self.training = None
        self.compiled, self.predictors, self.steps = [], [], []
        self.graph_calls = []
        self.opened, self.read = collections.Counter(), collections.Counter()

    def items(self, graph, since=0):
        """Items of each call of a graph."""
        return [n for name, n in self.graph_calls[since:] if name == graph]


def counted(config):
    """Trains and counts. What is called is the real thing, but for the network."""
    counts = Counts()
    build_step, build_predictor = TrainStep.__init__, Predictor.__init__
    take_step, ask, call_graph = Training.take_step, SamEnsemble.target, onnxruntime.InferenceSession.run
    open_file, read_dataset = h5py.h5f.open, h5py.Dataset.__getitem__

    def counting_step(self, *args, **kwargs):
        build_step(self, *args, **kwargs)
        compiled = self._compiled
        counts.compiled.append(compiled)

        def noting(*handed):
            counts.steps[-1].handed = handed
            return compiled(*handed)

        self._compiled = noting

    def noted_predictor(self, *args, **kwargs):
        build_predictor(self, *args, **kwargs)
        counts.predictors.append(self)

    def counted_step(self, batch):
        counts.training = self
        counts.steps.append(Step(batch, [], ()))
        return take_step(self, batch)

    def counted_question(self, image, class_probs, key=None, rng=None, spacing_mm=None):
        before = len(counts.graph_calls)
        answer = ask(self, image, class_probs, key, rng, spacing_mm)
        calls = [counts.items(graph, before) for graph in ("encoder", "decoder")]
        counts.steps[-1].questions.append(Question(key, class_probs.argmax(axis=-1), spacing_mm, *calls))
        return answer

    def counted_call(self, outputs, feeds, *args):
        (role,) = {"images", "boxes", "point_labels"} & set(feeds)
        counts.graph_calls.append(("encoder" if role == "images" else "decoder", len(feeds[role])))
        return call_graph(self, outputs, feeds, *args)

    def case_of(path):
        path = Path(os.fsdecode(path))
        return path.parent.name if path.is_relative_to(config.data_dir) else None

    def counted_opening(path, *args, **kwargs):
        counts.opened[case_of(path)] += 1
        return open_file(path, *args, **kwargs)

    def counted_reading(self, *args, **kwargs):
        counts.read[case_of(self.file.filename), self.name] += 1
        return read_dataset(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "vnet", two_convolutions)
        patch.setattr(TrainStep, "__init__", counting_step)
        patch.setattr(Predictor, "__init__", noted_predictor)
        patch.setattr(Training, "take_step", counted_step)
        patch.setattr(SamEnsemble, "target", counted_question)
        patch.setattr(onnxruntime.InferenceSession, "run", counted_call)
        # Not h5py.File, which stands for a file that is open, too.
        patch.setattr(h5py.h5f, "open", counted_opening)
        patch.setattr(h5py.Dataset, "__getitem__", counted_reading)
        train(config)
    # Of files outside the cohort: checkpoints and targets.
    del counts.opened[None]
    counts.read = {name: n for name, n in counts.read.items() if name[0] is not None}
    assert len(counts.steps) == config.max_steps
    return counts


@pytest.fixture(scope="module")
def sam_dirs(tiny_sam, tiny_volume_sam):
    """Exports of the doubles by their dimensions."""
    return {2: tiny_sam, 3: tiny_volume_sam}


@pytest.fixture(scope="module")
def targets_dir(tiny_cohort, tmp_path_factory):
    """Targets for the unlabelled scans, as `pseudolabel` writes them."""
    folder = tmp_path_factory.mktemp("targets")
    for volume in load_unlabelled(config_of(tiny_cohort, folder), UNLABELLED):
        bright = (volume.image[..., 0] > 1).astype(int)
        write_target(folder, volume.case_id, np.eye(CLASSES)[bright], np.ones(volume.size), {})
    return folder


@pytest.fixture(scope="module")
def run_of(tiny_cohort, sam_dirs, targets_dir, tmp_path_factory):
    """(method, sam_mode, dimensions of the SAM) -> what that run did; each is run once. Every run is given a SAM."""

    @functools.cache
    def run(method, sam_mode, dims=2):
        workdir = tmp_path_factory.mktemp("run") / "run"
        more = {"targets_dir": str(targets_dir)} if sam_mode == "offline" else {}
        changes = {"method": method, "sam_mode": sam_mode, "sam_dir": str(sam_dirs[dims]), **more}
        return counted(config_of(tiny_cohort, workdir, **changes))

    return run


EVERY_RUN = [
    *itertools.product(FRAMEWORK_NAMES, ("off", "online")),
    ("mean_teacher", "cached"),
    ("mean_teacher", "offline"),
]


@pytest.mark.parametrize(("method", "sam_mode"), EVERY_RUN)
def test_the_step_is_traced_once_a_run(run_of, method, sam_mode):
    counts = run_of(method, sam_mode)
    assert [compiled.experimental_get_tracing_count() for compiled in counts.compiled] == [1]
    # Crops online and windows of scans cached; no SAM is prompted otherwise.
    traces = [predictor._forward.experimental_get_tracing_count() for predictor in counts.predictors]
    assert traces == ([1] if sam_mode in ("online", "cached") else [])


@pytest.mark.parametrize(("method", "sam_mode"), EVERY_RUN)
def test_the_step_is_handed_its_batch_and_a_few_scalars(run_of, method, sam_mode):
    counts = run_of(method, sam_mode)
    crop = (SIDE,) * 3
    labelled = BATCH if (method, sam_mode) == ("supervised", "off") else LABELLED_ITEMS
    # Images, labels, and the place of each item in the batch.
    expected = [("float32", (BATCH, *crop, 1)), ("uint8", (labelled, *crop)), ("int32", (BATCH,))]
    if sam_mode != "off":
        taught = BATCH - labelled
        expected += [("float32", (taught, *crop, CLASSES)), ("float32", (taught, *crop))]
    for step in counts.steps:
        handed = [tensor for tensor in tf.nest.flatten(step.handed) if tensor is not None]
        arrays = [(t.dtype.name, tuple(t.shape)) for t in handed if t.shape.rank]
        assert arrays == expected
        scalars = {t.dtype.name for t in handed if not t.shape.rank}
        assert scalars == {"int64", "float32", "bool"}


@pytest.mark.parametrize(("method", "sam_mode"), EVERY_RUN)
def test_the_graph_of_the_step_holds_variables_alone_and_no_double_precision(run_of, method, sam_mode):
    counts = run_of(method, sam_mode)
    graph = counts.compiled[0].get_concrete_function(*counts.steps[-1].handed)
    # A scan or target that the step reached past its arguments would be a captured tensor or a constant.
    assert {tensor.dtype for tensor in graph.captured_inputs} == {tf.resource}
    outputs = [tensor for operation in graph.graph.get_operations() for tensor in operation.outputs]
    assert [tensor.name for tensor in outputs if tensor.dtype == tf.float64] == []
    constants = [tensor for tensor in outputs if tensor.op.type == "Const"]
    assert max(tensor.shape.num_elements() for tensor in constants) < SIDE**2


@pytest.mark.parametrize(("method", "sam_mode"), EVERY_RUN)
def test_each_scan_is_read_once_and_no_label_of_an_unlabelled_one(run_of, method, sam_mode):
    counts = run_of(method, sam_mode)
    unlabelled = [] if (method, sam_mode) == ("supervised", "off") else UNLABELLED
    assert counts.read == {
        ("case0", "/image"): 1,
        ("case0", "/label"): 1,
        **{(case, "/image"): 1 for case in unlabelled},
    }
    # A label is put on record before it is opened, and for that the file is asked whether it has one.
    assert counts.opened == {"case0": 2, **dict.fromkeys(unlabelled, 1)}


@pytest.mark.parametrize("sam_mode", ["off", "offline"])
def test_without_a_sam_at_training_no_graph_is_called(run_of, sam_mode):
    assert run_of("mean_teacher", sam_mode).graph_calls == []


def prompts_by_view(question, manifest):
    """How many prompts each slice, or window, is to be asked about."""
    mask = question.predicted_mask == 1
    if manifest.dims == 3:
        frame = WindowFrame.of(mask.shape, question.spacing_mm, manifest)
        points = component_prompts(mask, min_area_vox=MIN_AREA_VOX, spacing=question.spacing_mm).points_vox
        return {} if mask.all() else collections.Counter(frame.nearest(first) for first, *_ in points)
    counts = {}
    for z in range(mask.shape[2]):
        labels, _ = ndimage.label(mask[:, :, z], np.ones((3, 3)))
        n = int(np.count_nonzero(np.bincount(labels.ravel())[1:] >= MIN_AREA_VOX))
        if n and not mask[:, :, z].all():
            counts[z] = n
    return counts


def decoder_calls(prompts):
    """Prompts in each call: views a few at a time, and their prompts a few at a time."""
    views, calls = sorted(prompts), []
    for start in range(0, len(views), _VIEWS_AT_A_TIME):
        chunk = views[start : start + _VIEWS_AT_A_TIME]
        full, rest = divmod(sum(prompts[view] for view in chunk), PROMPTS_A_CALL)
        calls += [PROMPTS_A_CALL] * full + [rest] * (rest > 0)
    return calls


def assert_no_other_calls(counts):
    """Besides the questions each graph is called once, to try it out before any scan is read."""
    questions = [question for step in counts.steps for question in step.questions]
    assert counts.items("encoder") == [1, *[n for question in questions for n in question.encoded]]
    assert counts.items("decoder") == [1, *[n for question in questions for n in question.decoded]]


@pytest.mark.parametrize("dims", [2, 3])
def test_online_each_unlabelled_crop_is_asked_about_once_in_as_few_calls_as_can_be(run_of, sam_dirs, dims):
    counts, manifest = run_of("mean_teacher", "online", dims), load_manifest(sam_dirs[dims])
    for step in counts.steps:
        assert len(step.questions) == BATCH - LABELLED_ITEMS
        for question in step.questions:
            prompts = prompts_by_view(question, manifest)
            # On the CPU pictures go through one by one.
            assert question.encoded == [1] * len(prompts)
            assert question.decoded == decoder_calls(prompts)
    assert_no_other_calls(counts)
    assert sum(counts.items("decoder")) > 1


@pytest.mark.parametrize("dims", [2, 3])
def test_cached_each_view_is_encoded_once_and_prompted_when_a_target_is_due(run_of, sam_dirs, dims):
    counts, manifest = run_of("mean_teacher", "cached", dims), load_manifest(sam_dirs[dims])
    visits, encoded, spared = collections.Counter(), collections.defaultdict(set), 0
    for step in counts.steps:
        due = []
        for case_id in step.batch.case_ids[LABELLED_ITEMS:]:
            due += [case_id] if visits[case_id] % REFRESH_VISITS == 0 else []
            visits[case_id] += 1
        assert [question.case_id for question in step.questions] == due
        for question in step.questions:
            prompts, known = prompts_by_view(question, manifest), encoded[question.case_id]
            assert question.encoded == [1] * len(prompts.keys() - known)
            assert question.decoded == decoder_calls(prompts)
            spared += len(prompts.keys() & known)
            known.update(prompts)
    assert_no_other_calls(counts)
    assert sorted(encoded) == UNLABELLED
    assert spared > 0


def test_a_second_run_with_the_same_cache_encodes_nothing(tiny_cohort, tiny_sam, tmp_path):
    settings = {"sam_mode": "cached", "sam_dir": str(tiny_sam), "sam_cache_dir": str(tmp_path / "cache")}
    first, second = (counted(config_of(tiny_cohort, tmp_path / name, **settings)) for name in ("first", "second"))
    assert sum(first.items("encoder")) > 1
    assert second.items("encoder") == [1]  # the trial
    assert second.items("decoder") == first.items("decoder")


def test_a_scans_target_is_kept_packed_and_is_two_bytes_a_voxel(run_of):
    kept = run_of("mean_teacher", "cached").training.sam.kept
    assert sorted(kept) == UNLABELLED
    for content in kept.values():
        with opened(content) as target:
            assert {array.dtype.name for array in target} == {"uint8"}
            # One of the class that is not background, one of the weight.
            assert sum(array.nbytes for array in target) == CLASSES * target.weight.size


@dataclasses.dataclass
class Held:
    """What the process holds: tensors and variables, all objects that Python looks after, open files, and bytes.

    `traced_bytes` are those that Python and NumPy allocated since the tracing began, `resident_bytes` the process's.
    """

    tensors: int
    objects: int
    files: int
    traced_bytes: int
    resident_bytes: int

    @classmethod
    def now(cls):
        gc.collect()
        traced_bytes, _ = tracemalloc.get_traced_memory()
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
        files = len(os.listdir("/proc/self/fd"))
        # By exact type: isinstance would fill caches of its own.
        kinds = {type(tf.constant(0.0)), type(tf.Variable(0.0))}
        objects = gc.get_objects()
        tensors = sum(type(held) in kinds for held in objects)
        return cls(tensors, len(objects), files, traced_bytes, pages * os.sysconf("SC_PAGE_SIZE"))


@pytest.mark.parametrize(
    ("network", "changes"),
    [
        # For its running statistics and dropout.
        pytest.param(NETWORKS["vnet"], {"normalisation": "batch"}, marks=pytest.mark.slow),
        (two_convolutions, {"sam_mode": "cached"}),
        (two_convolutions, {"sam_mode": "online", "method": "uncertainty_aware_mean_teacher"}),
        (two_convolutions, {"method": "deep_adversarial_network", "optimizer": "sgd"}),
    ],
    ids=["vnet", "cached", "ua_mt_online", "dan"],
)
def test_fifty_steps_leave_nothing_behind(tiny_cohort, tiny_sam, tmp_path, monkeypatch, network, changes):
    monkeypatch.setitem(NETWORKS, "vnet", network)
    config = config_of(tiny_cohort, tmp_path, max_steps=LAST_STEP, sam_dir=str(tiny_sam), **changes)
    labelled, unlabelled = load_data(config, split_of(config), outside_runs("test"))
    training = Training.build(config, 1, labelled, unlabelled, sam_sessions(config))
    stream = stream_of(config, labelled, unlabelled)
    held = {}
    try:
        # Batches are made when they are due, not ahead in threads: how many are ready would be a matter of time.
        while training.step < LAST_STEP:
            terms = training.take_step(stream.batch(training.step))
            if training.step == TRACED_FROM_STEP:
                tracemalloc.start()
            if training.step in (WARM_STEP, LAST_STEP):
                held[training.step] = Held.now()
    finally:
        tracemalloc.stop()
    early, late = held[WARM_STEP], held[LAST_STEP]
    assert late.tensors <= early.tensors
    assert late.files <= early.files
    assert late.objects - early.objects < LAST_STEP - WARM_STEP
    assert late.traced_bytes - early.traced_bytes < MOST_GROWTH_BYTES
    assert late.resident_bytes - early.resident_bytes < MOST_RESIDENT_GROWTH_BYTES
    assert np.isfinite(terms["total"])
    assert training.train_step.traces == 1
