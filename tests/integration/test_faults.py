"""What goes wrong around a training: damaged, swapped and vanished files, a SAM that fails, names that lead elsewhere.

Each is an error that names the file and the way out, or a logged skip; what was done before is never lost. The table is
in docs/reliability.md.
"""

import json
import logging
import shutil

import h5py
import numpy as np
import pytest
import tensorflow as tf

from semisam_tf.config import Config
from semisam_tf.options import OptionError
from semisam_tf.sam.cache import EmbeddingCache
from semisam_tf.training import loop
from semisam_tf.training.rounds import train
from semisam_tf.training.state import Training

# Keras' own, when it saves weights.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

STEPS = 5


def config_of(data, workdir, sam, **changes):
    """This seed and a low rate: a network this young has foreground to prompt with, and keeps it."""
    settings = {
        "data_dir": str(data), "workdir": str(workdir), "labeled": "1", "filters": 2, "patch_size": (16, 16, 16),
        "network": "unet3d", "normalisation": "instance", "dropout": 0.3, "optimizer": "adamw", "learning_rate": 0.001,
        "max_steps": STEPS, "log_every": 1, "checkpoint_every": 1, "sam_mode": "cached", "sam_dir": str(sam), "seed": 8,
        "sam_min_area_vox": 1, "sam_refresh_visits": 2, "sam_prompts_from": "student", "augment": "paper",
    }  # fmt: skip
    return Config(**{**settings, **changes})


def final_arrays(workdir):
    """All that the run ends with: student, teacher, optimiser, SAM's masks and weights."""
    with h5py.File(workdir / "checkpoints" / f"step_{STEPS:08d}.h5") as file:
        return {f"{group.name}/{item.attrs['name']}": item[()] for group in file.values() for item in group.values()}


def assert_same_end(received, expected):
    received, expected = final_arrays(received), final_arrays(expected)
    assert received.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(received[name], array, err_msg=name)


def earlier_work(workdir):
    return {path.name: path.read_bytes() for path in (workdir / "checkpoints").iterdir()}


@pytest.fixture(scope="module")
def whole(tiny_cohort, tiny_sam, tmp_path_factory):
    """The workdir of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert train(config_of(tiny_cohort, workdir, tiny_sam))["sam"]["prompts_decoded"] > 0
    return workdir


@pytest.fixture(scope="module")
def stopped_run(tiny_cohort, tiny_sam, tmp_path_factory):
    """The workdir of the same run, stopped by Ctrl-C in its fourth step."""
    workdir = tmp_path_factory.mktemp("runs") / "stopped"
    take_step = Training.take_step

    def stop(training, batch):
        if training.step == 3:
            raise KeyboardInterrupt
        return take_step(training, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "take_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(config_of(tiny_cohort, workdir, tiny_sam))
    return workdir


@pytest.fixture
def stopped(stopped_run, tmp_path):
    """A copy of the stopped run's workdir."""
    return shutil.copytree(stopped_run, tmp_path / "stopped")


@pytest.fixture
def data(tiny_cohort, tmp_path):
    """A copy of the cohort."""
    return shutil.copytree(tiny_cohort, tmp_path / "data")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_costs_one_checkpoint(stopped, whole, tiny_cohort, tiny_sam, caplog):
    flip_a_bit(stopped / "checkpoints" / "step_00000003.h5")
    train(config_of(tiny_cohort, stopped, tiny_sam))
    assert "step_00000003.h5 is damaged" in caplog.text
    assert (stopped / "checkpoints" / "step_00000003.h5.damaged").is_file()
    assert_same_end(stopped, whole)


def test_only_damaged_checkpoints_are_an_error(stopped, tiny_cohort, tiny_sam):
    for path in (stopped / "checkpoints").iterdir():
        flip_a_bit(path)
    before = earlier_work(stopped)
    with pytest.raises(ValueError, match=r"remove the files to start again.*step_00000003\.h5.*step_00000002\.h5"):
        train(config_of(tiny_cohort, stopped, tiny_sam))
    assert earlier_work(stopped) == before


def test_a_scan_that_vanished_is_named_and_nothing_is_lost(stopped, data, tiny_sam):
    shutil.rmtree(data / "case2")
    before = earlier_work(stopped)
    with pytest.raises(FileNotFoundError, match=r"case 'case2' at .*none is there\. Check --data_dir"):
        train(config_of(data, stopped, tiny_sam))
    assert earlier_work(stopped) == before


def test_a_scan_that_changed_under_its_name_is_refused(stopped, data, tiny_sam):
    shutil.copy(data / "case4" / "mri_norm2.h5", data / "case2" / "mri_norm2.h5")
    before = earlier_work(stopped)
    with pytest.raises(OptionError, match=r"other scans under the same names: case2\. Put back"):
        train(config_of(data, stopped, tiny_sam))
    assert earlier_work(stopped) == before


def cut(path):
    path.write_bytes(path.read_bytes()[:-3000])


def not_a_number(path):
    with h5py.File(path, "r+") as file:
        file["image"][3, 4, 5] = np.nan


@pytest.mark.parametrize(
    ("spoil", "case", "message"),
    [(cut, "case0", "truncated or damaged"), (cut, "case3", "truncated"), (not_a_number, "case3", "1 voxels.*NaN")],
)
def test_a_bad_scan_is_named_before_training_starts(data, tiny_sam, tmp_path, spoil, case, message):
    path = data / case / "mri_norm2.h5"
    spoil(path)
    with pytest.raises(ValueError, match=message) as raised:
        train(config_of(data, tmp_path / "run", tiny_sam))
    assert str(path) in str(raised.value)
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize("name", ["../case1", "{data}/case1", "a/../../case1", "..\\case1", "C:\\case1", "."])
def test_names_that_lead_elsewhere_are_refused(data, tiny_sam, tmp_path, name):
    (data / "train.list").write_text(f"case0\n{name.format(data=data)}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"without '\.\.' and not absolute"):
        train(config_of(data, tmp_path / "run", tiny_sam))


def test_a_sam_channel_that_scans_lack_is_refused(tiny_cohort, tiny_sam, tmp_path):
    with pytest.raises(OptionError, match="--sam_channel: expected less than the scans' 1 channels"):
        train(config_of(tiny_cohort, tmp_path / "run", tiny_sam, sam_channel=1))


def test_a_swapped_graph_is_refused_at_start_and_at_resuming(stopped, tiny_cohort, tiny_sam, tmp_path):
    sam = shutil.copytree(tiny_sam, tmp_path / "sam")
    shutil.copy(sam / "decoder.onnx", sam / "encoder.onnx")
    before = earlier_work(stopped)
    for workdir in (tmp_path / "fresh", stopped):
        with pytest.raises(ValueError, match=r"changed or swapped.*encoder\.onnx with sha256"):
            train(config_of(tiny_cohort, workdir, sam))
    assert earlier_work(stopped) == before
    assert not list((tmp_path / "fresh").glob("checkpoints/*"))


def test_another_export_at_resuming_is_refused(stopped, tiny_cohort, tmp_path, write_double):
    write_double(tmp_path / "other", predicted_iou=0.5)
    before = earlier_work(stopped)
    with pytest.raises(OptionError, match=r"other settings.*sam_sha256"):
        train(config_of(tiny_cohort, stopped, tmp_path / "other"))
    assert earlier_work(stopped) == before


def test_a_cache_of_other_scans_and_other_sams_and_damaged_ones_are_not_used(
    whole, tiny_cohort, tiny_sam, tmp_path, write_double, caplog
):
    cache = shutil.copytree(whole / "sam_cache", tmp_path / "cache")
    one, two, three = sorted(cache.iterdir())
    foreign = EmbeddingCache(tmp_path / "foreign").scan("case1", "f" * 64, 20, (3, 4, 4))
    foreign.write(range(20), np.full((20, 3, 4, 4), 9, np.float16))
    shutil.copy(foreign.path, one)  # another SAM's, or of another scan
    flip_all_embeddings(two)
    cut(three)
    with caplog.at_level(logging.WARNING):
        train(config_of(tiny_cohort, tmp_path / "run", tiny_sam, sam_cache_dir=str(cache)))
    for path in (one, three):
        assert f"encoding it again. Received: {path}" in caplog.text
    assert f"of {two} as it was written; encoding it again" in caplog.text
    assert_same_end(tmp_path / "run", whole)


def flip_all_embeddings(path):
    content = np.frombuffer(path.read_bytes(), np.uint8).copy()
    content[2 * 4096 :] ^= 1
    path.write_bytes(content.tobytes())


@pytest.fixture
def sam_that_fails_on_inverted_scans(tmp_path, write_double):
    """ONNX Runtime really fails in it. A slice of the ball in noise is dark in the mean, its inverse bright."""
    write_double(tmp_path / "sam", fails_above=0.6)
    return tmp_path / "sam"


def test_a_sam_call_that_fails_costs_its_scan_the_weight(data, sam_that_fails_on_inverted_scans, tmp_path, caplog):
    with h5py.File(data / "case3" / "mri_norm2.h5", "r+") as file:
        file["image"][...] = -file["image"][()]
    workdir = tmp_path / "run"
    train(config_of(data, workdir, sam_that_fails_on_inverted_scans))
    sam = json.loads((workdir / "result.json").read_text(encoding="utf-8"))["sam"]
    assert sam["failed_targets"] == caplog.text.count("SAM failed on case3, which has weight 0") > 0
    assert caplog.text.count("SAM failed on") == sam["failed_targets"]
    assert sam["targets"] > 0
    assert sam["prompts_decoded"] > 0
    names = {name for name in final_arrays(workdir) if name.startswith("/sam/packed")}
    assert "/sam/packed/case3" not in names
    assert names


def test_a_sam_that_cannot_run_at_all_is_an_error_at_start(tiny_cohort, tmp_path, write_double):
    write_double(tmp_path / "sam", fails_above=-1.0)
    with pytest.raises(RuntimeError, match=r"ONNX Runtime failed in encoder\.onnx"):
        train(config_of(tiny_cohort, tmp_path / "run", tmp_path / "sam", sam_start_step=4))
    assert not list((tmp_path / "run").glob("checkpoints/*"))


@pytest.mark.parametrize("flag", ["workdir", "sam_cache_dir"])
def test_folders_that_cannot_be_written_are_an_error_at_start(tiny_cohort, tiny_sam, tmp_path, flag):
    # Nobody can make a folder there, root neither.
    config = {"workdir": tmp_path / "run", flag: "/proc/self/run"}
    with pytest.raises(OSError, match=rf"--{flag}.*Received: /proc/self/run"):
        train(config_of(tiny_cohort, config.pop("workdir"), tiny_sam, sam_start_step=4, **config))
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_run_killed_before_its_report_gets_it_by_the_same_command(whole, tiny_cohort, tiny_sam, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
    drawn = (workdir / "overlays" / "sam.json").read_bytes()
    (workdir / "report.html").write_text("of the step before", encoding="utf-8")
    train(config_of(tiny_cohort, workdir, tiny_sam))
    assert f"finished after {STEPS} steps" in (workdir / "report.html").read_text(encoding="utf-8")
    assert (workdir / "overlays" / "sam.json").read_bytes() == drawn


def test_sams_pictures_are_there_before_the_result_is(tiny_cohort, tiny_sam, tmp_path, monkeypatch):
    """What a run killed after its result would not draw again."""
    seen, finish = [], loop._finish

    def watched(training, *args):
        seen.append((tmp_path / "run" / "overlays" / "sam.json").stat().st_size)
        return finish(training, *args)

    monkeypatch.setattr(loop, "_finish", watched)
    train(config_of(tiny_cohort, tmp_path / "run", tiny_sam))
    assert seen == [(tmp_path / "run" / "overlays" / "sam.json").stat().st_size]


def test_a_step_that_does_not_fit_into_memory_says_what_helps(tiny_cohort, tiny_sam, tmp_path, monkeypatch):
    def too_large(self, batch):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor\n[[{{node vnet/conv}}]]")

    monkeypatch.setattr(Training, "take_step", too_large)
    with pytest.raises(RuntimeError, match=r"--micro_batch=1.*Received: OOM when allocating tensor$"):
        train(config_of(tiny_cohort, tmp_path / "run", tiny_sam))
