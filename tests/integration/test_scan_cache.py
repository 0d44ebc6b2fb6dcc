"""Runs whose scans lie on disk end with the arrays of runs that keep them in memory."""

import dataclasses

import h5py
import numpy as np
import pytest

from semisam_tf.config import Config
from semisam_tf.data.preprocess import Preprocessing
from semisam_tf.options import OptionError
from semisam_tf.training.loop import train_once
from semisam_tf.training.rounds import train

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def config_of(data_dir, workdir, **changes):
    """Interpolated crops, another scan's intensities, and SAM on whole scans."""
    config = Config(
        data_dir=str(data_dir), workdir=str(workdir), filters=2, patch_size=(16, 16, 16), max_steps=3,
        checkpoint_every=2, augment_on="elastic,style", normalisation="instance", learning_rate=0.05, seed=1,
        sam_min_area_vox=1,
    )  # fmt: skip
    return dataclasses.replace(config, **changes)


def arrays(workdir):
    """What the last checkpoint holds: networks, optimiser and SAM's targets."""
    (path,) = (workdir / "checkpoints").glob("step_00000003.h5")
    with h5py.File(path) as file:
        return {f"{g.name}/{item.attrs['name']}": item[()] for g in file.values() for item in g.values()}


def assert_same(received, expected):
    assert received.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(received[name], array, err_msg=name)


@pytest.mark.parametrize("kind", ["cached", pytest.param("coarse_to_fine", marks=pytest.mark.slow)])
def test_a_run_from_disk_ends_with_the_arrays_of_one_from_memory(kind, tiny_cohort, tiny_sam, tmp_path, monkeypatch):
    changes = {"sam_mode": "cached", "sam_dir": str(tiny_sam)}
    if kind == "coarse_to_fine":
        changes = {"coarse_to_fine": True, "coarse_steps": 2, "coarse_patch_size": (16, 16, 16)}
        changes |= {"coarse_spacing_mm": (2.0, 2.0, 2.0)}
    train_once(config_of(tiny_cohort, tmp_path / "memory", **changes))
    expected = arrays(tmp_path / "memory")
    assert any("sam" in name for name in expected) == (kind == "cached")
    on_disk = {"scan_cache_dir": str(tmp_path / "scans"), **changes}
    train_once(config_of(tiny_cohort, tmp_path / "disk", **on_disk))
    assert_same(arrays(tmp_path / "disk"), expected)
    kept = sorted(path.name for path in (tmp_path / "scans").iterdir())
    # Of a coarse-to-fine run once for each stage.
    assert len(kept) == (8 if kind == "coarse_to_fine" else 4)
    # A second run makes none of them again.
    monkeypatch.setattr(Preprocessing, "training_image", None)
    if kind == "cached":
        train_once(config_of(tiny_cohort, tmp_path / "second", **on_disk))
        assert_same(arrays(tmp_path / "second"), expected)
        assert sorted(path.name for path in (tmp_path / "scans").iterdir()) == kept


def test_a_run_goes_on_with_its_scans_elsewhere_but_not_with_others(tiny_cohort, tmp_path, monkeypatch):
    config = config_of(tiny_cohort, tmp_path / "whole")
    train_once(config)
    # Stopped after the checkpoint of step 2.
    config = dataclasses.replace(config, workdir=str(tmp_path / "run"), scan_cache_dir=str(tmp_path / "scans"))

    class StoppedError(RuntimeError):
        pass

    def stop(*_):
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr("semisam_tf.training.loop._finish", stop)
        with pytest.raises(StoppedError):
            train_once(config)
    (tmp_path / "run" / "checkpoints" / "step_00000003.h5").unlink()
    other = tmp_path / "other"
    for case in ("case0", "case1", "case2", "case3"):
        (other / case).mkdir(parents=True)
        (other / case / "mri_norm2.h5").write_bytes((tiny_cohort / case / "mri_norm2.h5").read_bytes())
    (other / "train.list").write_text((tiny_cohort / "train.list").read_text(encoding="utf-8"), encoding="utf-8")
    with h5py.File(other / "case2" / "mri_norm2.h5", "r+") as file:
        file["image"][0, 0, 0] += 1
    with pytest.raises(OptionError, match="other scans under the same names: case2"):
        train_once(dataclasses.replace(config, data_dir=str(other)))
    train_once(dataclasses.replace(config, scan_cache_dir=str(tmp_path / "elsewhere")))
    assert_same(arrays(tmp_path / "run"), arrays(tmp_path / "whole"))


def test_targets_between_rounds_are_made_of_the_scans_on_disk(tiny_cohort, tmp_path, monkeypatch):
    changes = {"method": "supervised", "sam_mode": "offline", "sam_fusion": "mean", "rounds": 2, "round_steps": 2}
    train(config_of(tiny_cohort, tmp_path / "memory", **changes))
    made, image_of = [], Preprocessing.training_image
    monkeypatch.setattr(
        Preprocessing, "training_image", lambda self, volume: made.append(volume.case_id) or image_of(self, volume)
    )
    train(config_of(tiny_cohort, tmp_path / "disk", scan_cache_dir=str(tmp_path / "scans"), **changes))
    # Once each; before the first round one scan is tried in memory.
    assert sorted(made) == ["case0", "case1", "case1", "case2", "case3"]
    assert_same(arrays(tmp_path / "disk"), arrays(tmp_path / "memory"))
