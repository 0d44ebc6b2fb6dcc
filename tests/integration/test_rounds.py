"""Rounds of self-training: targets of one teach the next, with SAM and without, and no label of theirs is read."""

import dataclasses
import json
import shutil

import h5py
import numpy as np
import pytest

from semisam_tf.config import Config, validate
from semisam_tf.data.label_access import read_ledger
from semisam_tf.findings import FAIL
from semisam_tf.inference.label_audit import audit_run
from semisam_tf.inference.predictor import Predictor
from semisam_tf.inference.run_folder import read_run
from semisam_tf.options import OptionError
from semisam_tf.sam.ensemble import SamEnsemble
from semisam_tf.sam.session import SamCallError
from semisam_tf.training import rounds
from semisam_tf.training.loop import train_once
from semisam_tf.training.pseudolabels import require_same_making
from semisam_tf.training.rounds import earlier_round, make_targets, train

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def config_of(cohort, workdir, sam_dir, **changes):
    settings = {
        "data_dir": str(cohort), "workdir": str(workdir), "labeled": "1", "filters": 2, "patch_size": (16, 16, 16),
        "normalisation": "instance", "dropout": 0.0, "optimizer": "adamw", "learning_rate": 0.05, "max_steps": 3,
        "log_every": 1, "checkpoint_every": 3, "sam_dir": str(sam_dir or ""), "sam_min_area_vox": 1,
        "method": "supervised", "sam_mode": "offline", "rounds": 2, "round_steps": 2, "sam_fusion": "mean",
        "sam_margin_vox": (0, 1), "sam_trust": "iou,agreement", "sam_loss": "cross_entropy", "ema_decay": 0.0,
    }  # fmt: skip
    return Config(**{**settings, **changes})


def targets_of(workdir, number=1):
    found = {}
    for path in sorted((workdir / "rounds" / str(number) / "targets").glob("*.h5")):
        with h5py.File(path) as file:
            found[path.stem] = file["probs"][()], file["weight"][()]
    return found


def test_targets_of_the_first_round_teach_the_second(tiny_cohort, tiny_sam, tmp_path):
    with_sam, alone = tmp_path / "sam", tmp_path / "alone"
    result = train(config_of(tiny_cohort, with_sam, tiny_sam))
    train(config_of(tiny_cohort, alone, None))
    assert result["sam"]["taught_share"] > 0.5
    # SAM is trusted by its own words here, so the targets opened no label.
    purposes = {opening.purpose for opening in read_ledger(with_sam / "rounds" / "1").openings}
    assert purposes == {"training"}
    assert read_run(with_sam / "rounds" / "1")["config"].max_steps == 2
    # Of the unlabelled three scans; the same first round, other targets where SAM has its say.
    assert sorted(targets_of(with_sam)) == sorted(targets_of(alone)) == ["case1", "case2", "case3"]
    assert any((targets_of(with_sam)[case][0] != targets_of(alone)[case][0]).any() for case in targets_of(alone))
    with h5py.File(with_sam / "student.weights.h5") as a, h5py.File(alone / "student.weights.h5") as b:
        names = []
        a.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) and item.size else None)
        assert any((a[name][()] != b[name][()]).any() for name in names)


@pytest.mark.parametrize("one_piece", [True, False])
def test_a_false_island_is_not_taught_where_organs_are_in_one_piece(tiny_cohort, tmp_path, monkeypatch, one_piece):
    def with_an_island(self, image):
        probs = np.zeros((*image.shape[:3], 2), np.float32)
        probs[4:10, 4:10, 4:10, 1] = probs[12:14, 12:14, 12:14, 1] = 0.9
        probs[..., 0] = 1 - probs[..., 1]
        return probs

    monkeypatch.setattr(Predictor, "probs", with_an_island)
    train(config_of(tiny_cohort, tmp_path / "run", None, largest_component=one_piece))
    for probs, _ in targets_of(tmp_path / "run").values():
        assert (probs[6:8, 6:8, 6:8, 0] > 200).all()
        assert (probs[12:14, 12:14, 12:14, 0] > 50).any() != one_piece


def test_labels_of_unlabelled_scans_reach_no_target(tiny_cohort, tiny_sam, tmp_path):
    """Other labels in the files of the unlabelled scans, and the targets are the same to the bit."""
    changed = tmp_path / "cohort"
    shutil.copytree(tiny_cohort, changed)
    for number in (1, 2, 3):
        with h5py.File(changed / f"case{number}" / "mri_norm2.h5", "r+") as file:
            file["label"][...] = 1 - file["label"][()]
    train(config_of(tiny_cohort, tmp_path / "a", tiny_sam))
    train(config_of(changed, tmp_path / "b", tiny_sam))
    for case, arrays in targets_of(tmp_path / "a").items():
        for array, other in zip(arrays, targets_of(tmp_path / "b")[case], strict=True):
            np.testing.assert_array_equal(array, other)


def test_a_missing_target_is_made_again_and_a_finished_run_is_left_alone(tiny_cohort, tiny_sam, tmp_path):
    config = config_of(tiny_cohort, tmp_path / "run", tiny_sam)
    train(config)
    before = targets_of(tmp_path / "run")
    (tmp_path / "run" / "rounds" / "1" / "targets" / "case2.h5").unlink()
    train(config)
    np.testing.assert_array_equal(targets_of(tmp_path / "run")["case2"][0], before["case2"][0])


def test_targets_say_whose_labels_they_rest_on(tiny_cohort, tmp_path, caplog):
    """A run with one label on targets of a run with two: the second label is in it, and on record."""
    train(config_of(tiny_cohort, tmp_path / "two", None, labeled="2"))
    targets = tmp_path / "two" / "rounds" / "1" / "targets"
    run = read_run(tmp_path / "two")
    assert run["targets_learned_from"] == run["labelled"] == ["case0", "case1"]
    for name, cases in (("train.list", "case0\ncase2\ncase3\n"), ("labelled.list", "case0\n")):
        (tmp_path / name).write_text(cases, encoding="utf-8")
    one = config_of(
        tiny_cohort, tmp_path / "one", None, rounds=1, round_steps=0, targets_dir=str(targets),
        train_list=str(tmp_path / "train.list"), labeled=str(tmp_path / "labelled.list"),
    )  # fmt: skip
    train(one)
    assert "rest on the labels of 1 scans that this run does not call labelled: case1" in caplog.text
    assert read_run(tmp_path / "one")["targets_learned_from"] == ["case0", "case1"]
    findings = audit_run(tmp_path / "one").findings
    assert [f.found for f in findings if f.status == FAIL] == [
        "the targets rest on the labels of case1, which run.json does not call labelled"
    ]


@pytest.mark.parametrize("most", [2, 10])
def test_a_sam_that_never_answers_stops_the_run_and_no_target_without_it_stays(
    tiny_cohort, tiny_sam, tmp_path, monkeypatch, most
):
    """After some failures in a row, and where there are fewer scans than that, after the last of them."""
    answers = SamEnsemble.target

    def broken(self, *args, **kwargs):
        raise SamCallError("out of memory")

    monkeypatch.setattr(SamEnsemble, "target", broken)
    monkeypatch.setattr(rounds, "MOST_FAILURES", most)
    config = config_of(tiny_cohort, tmp_path / "run", tiny_sam)
    with pytest.raises(RuntimeError, match=f"{min(most, 3)} failures in a row, the last for case.: out of memory"):
        train(config)
    assert targets_of(tmp_path / "run") == {}
    monkeypatch.setattr(SamEnsemble, "target", answers)
    train(config)
    assert sorted(targets_of(tmp_path / "run")) == ["case1", "case2", "case3"]


def test_one_call_of_sam_that_fails_is_a_target_without_it(tiny_cohort, tiny_sam, tmp_path, monkeypatch, caplog):
    answers = SamEnsemble.target

    def broken_once(self, image, probs, *, key, **kwargs):
        if key == "case2":
            raise SamCallError("out of memory")
        return answers(self, image, probs, key=key, **kwargs)

    monkeypatch.setattr(SamEnsemble, "target", broken_once)
    train(config_of(tiny_cohort, tmp_path / "run", tiny_sam))
    assert "SAM failed on case2; its target is made without SAM" in caplog.text
    assert sorted(targets_of(tmp_path / "run")) == ["case1", "case2", "case3"]


def test_targets_of_an_older_version_are_gone_on_with(tiny_cohort, tmp_path):
    """Their folder does not say whose labels they rest on; the run that made them does."""
    config = config_of(tiny_cohort, tmp_path / "run", None)
    train(config)
    making = tmp_path / "run" / "rounds" / "1" / "targets" / "making.json"
    without = json.loads(making.read_text(encoding="utf-8"))
    assert without.pop("learned_from") == ["case0"]
    making.write_text(json.dumps(without), encoding="utf-8")
    train(config)
    assert json.loads(making.read_text(encoding="utf-8"))["learned_from"] == ["case0"]


def test_oracle_prompts_come_along_with_the_targets(tiny_cohort, tiny_sam, tmp_path):
    """The labels that prompted SAM are in the network, so in its targets, so in what learns from them."""
    oracle = config_of(
        tiny_cohort, tmp_path / "oracle", tiny_sam, sam_mode="cached", rounds=1, round_steps=0, method="mean_teacher",
        oracle_prompts=True, sam_fusion="sam",
    )  # fmt: skip
    train(oracle)
    folder = tmp_path / "targets"
    make_targets(oracle, tmp_path / "oracle", folder, ["case1", "case2", "case3"], labelled=["case0"])
    train(config_of(tiny_cohort, tmp_path / "run", None, rounds=1, round_steps=0, targets_dir=str(folder)))
    assert audit_run(tmp_path / "run").learned_from == ("case0", "case1", "case2", "case3")


def test_a_scan_that_vanishes_between_rounds_costs_nothing_but_time(tiny_cohort, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny_cohort, data)
    config = config_of(data, tmp_path / "run", None)
    train_once(earlier_round(config, 1, ""))
    (data / "case2").rename(tmp_path / "gone")
    weights = (tmp_path / "run" / "rounds" / "1" / "teacher.weights.h5").read_bytes()
    with pytest.raises(FileNotFoundError, match="case2"):
        train(config)
    assert (tmp_path / "run" / "rounds" / "1" / "teacher.weights.h5").read_bytes() == weights
    (tmp_path / "gone").rename(data / "case2")
    train(config)
    train(config_of(data, tmp_path / "undisturbed", None))
    expected = targets_of(tmp_path / "undisturbed")
    for case, arrays in targets_of(tmp_path / "run").items():
        for array, other in zip(arrays, expected[case], strict=True):
            np.testing.assert_array_equal(array, other)


def test_a_sam_that_is_not_there_is_said_before_the_first_round(tiny_cohort, tmp_path):
    with pytest.raises(FileNotFoundError, match="no_such_sam"):
        train(config_of(tiny_cohort, tmp_path / "run", tmp_path / "no_such_sam"))
    assert not (tmp_path / "run").exists()


def test_what_later_rounds_would_refuse_is_said_before_the_first(tiny_cohort, tiny_sam, tmp_path):
    config = config_of(tiny_cohort, tmp_path / "run", tiny_sam)
    for changes, message in (
        ({"labeled": "4"}, "No case is unlabelled"),
        ({"sam_channel": 1}, "less than the scans' 1 channels"),
    ):
        with pytest.raises(OptionError, match=message):
            train(dataclasses.replace(config, **changes))
    cases = tmp_path / "train.list"
    cases.write_text("case0\ncase1\ngone\n", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="gone"):
        train(dataclasses.replace(config, train_list=str(cases)))
    assert not (tmp_path / "run").exists()
    # The folder of a run of another kind: its settings count before the first of three rounds.
    train(dataclasses.replace(config, sam_mode="off", rounds=1, max_steps=1))
    with pytest.raises(OptionError, match="--rounds=2"):
        train(config)
    assert not (tmp_path / "run" / "rounds").exists()


def test_targets_made_before_a_setting_was_are_gone_on_with(tiny_cohort, tiny_sam, tmp_path):
    config = config_of(tiny_cohort, tmp_path / "run", tiny_sam)
    done = train(config)
    (path,) = (tmp_path / "run" / "rounds").glob("*/targets/making.json")
    making = json.loads(path.read_text(encoding="utf-8"))
    del making["--sam_point_choice"]
    path.write_text(json.dumps(making), encoding="utf-8")
    assert train(config) == done
    with pytest.raises(OptionError, match=r"--sam_point_choice: 'innermost' there, 'surest' now"):
        require_same_making(path.parent, making | {"--sam_point_choice": "surest"})


def test_a_finished_run_is_not_taken_for_one_without_sam(tiny_cohort, tiny_sam, tmp_path):
    config = config_of(tiny_cohort, tmp_path / "run", tiny_sam)
    train(config)
    with pytest.raises(OptionError, match="were made otherwise"):
        train(dataclasses.replace(config, sam_dir=""))


def test_settings_that_cannot_be():
    good = Config(data_dir="d", workdir="w", sam_mode="offline", rounds=2, sam_fusion="mean")
    validate(good)
    for changes, message in (
        ({"rounds": 1}, "needs --targets_dir"),
        ({"sam_mode": "off"}, "go with --sam_mode=offline"),
        ({"sam_fusion": "sam"}, "--sam_fusion=mean to learn from the predictions alone"),
    ):
        with pytest.raises(OptionError, match=message):
            validate(dataclasses.replace(good, **changes))
