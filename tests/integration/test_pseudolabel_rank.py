"""The commands around unlabelled scans, as a user gives them."""

import dataclasses
import json
import shutil

import h5py
import numpy as np
import pytest
import SimpleITK as sitk

from semisam_tf import pseudolabel, rank
from semisam_tf.config import Config
from semisam_tf.data.label_access import outside_runs
from semisam_tf.data.orientation import axis_code, axis_order
from semisam_tf.data.volumes import find_case, load_volume, save_volume_h5
from semisam_tf.inference.predictor import Predictor
from semisam_tf.sam.ensemble import SamEnsemble
from semisam_tf.sam.session import SamCallError
from semisam_tf.training.rounds import train
from semisam_tf.training.selftest import SELFTEST_FILE

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def test_pseudolabels_lie_on_their_scan_and_teach(tiny_run, tiny_cohort, tiny_sam, tmp_path):
    (tmp_path / "cases").write_text("case1\ncase2\n", encoding="utf-8")
    words = [f"--workdir={tiny_run}", f"--cases={tmp_path / 'cases'}", f"--output={tmp_path / 'targets'}"]
    assert pseudolabel.main([*words, f"--sam_dir={tiny_sam}", "--sam_margin_vox=0,1"]) == 0
    scan = load_volume(find_case(tiny_cohort, "case1"), with_label=outside_runs("a test"))
    image = sitk.ReadImage(str(tmp_path / "targets" / "case1.nii.gz"))
    mask = sitk.GetArrayFromImage(image).T
    overlap = 2 * (mask * scan.label).sum() / (mask.sum() + scan.label.sum())
    assert overlap > 0.8
    assert image.GetSpacing() == pytest.approx(scan.spacing_mm)
    trust = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "targets" / "case1_trust.nii.gz"))).T
    assert 0 <= trust.min() < 0.5 < trust[mask > 0].mean() <= 1
    with h5py.File(tmp_path / "targets" / "case2.h5") as file:
        assert 0 < json.loads(file.attrs["scores"])["agreement"] <= 1

    (tmp_path / "all").write_text("case0\ncase1\ncase2\n", encoding="utf-8")
    settings = {
        "data_dir": str(tiny_cohort), "workdir": str(tmp_path / "run"), "train_list": str(tmp_path / "all"),
        "filters": 2, "patch_size": (16, 16, 16), "max_steps": 2, "sam_mode": "offline", "method": "supervised",
        "targets_dir": str(tmp_path / "targets"),
    }  # fmt: skip
    result = train(Config(**settings))
    assert result["sam"]["taught_share"] > 0.5
    assert result["sam"]["sam_calls"] == 0
    # Of the scans' voxels those in whose targets SAM has a part: not all, or a target without SAM would look like one.
    scores = []
    for case in ("case1", "case2"):
        with h5py.File(tmp_path / "targets" / f"{case}.h5") as file:
            scores.append(json.loads(file.attrs["scores"]))
    assert result["sam"]["sam_share"] == pytest.approx(np.mean([said["weighted_share"] for said in scores]))
    assert 0 < result["sam"]["sam_share"] < 1
    assert result["sam"]["sam_weight"] == pytest.approx(np.mean([said["mean_weight"] for said in scores]))


def test_a_runs_own_self_test_is_left_as_it_is(tiny_run, tiny_sam, tmp_path):
    """Targets and ranks ask SAM in other ways than the run did."""
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    record = json.loads((workdir / "run.json").read_text(encoding="utf-8"))
    record["config"] |= {"sam_selftest": True, "workdir": str(workdir)}
    (workdir / "run.json").write_text(json.dumps(record), encoding="utf-8")
    (workdir / SELFTEST_FILE).write_text("{}", encoding="utf-8")
    words = [f"--workdir={workdir}", f"--sam_dir={tiny_sam}"]
    assert rank.main([*words, "--pictures=0"]) == 0
    targets = tmp_path / "targets"
    asked = [*words, f"--output={targets}", "--nonifti", "--sam_margin_vox=0,1", "--sam_trust=selftest"]
    assert pseudolabel.main(asked) == 0
    assert (workdir / SELFTEST_FILE).read_text(encoding="utf-8") == "{}"
    assert "crossing" in json.loads((targets / SELFTEST_FILE).read_text(encoding="utf-8"))


def test_a_scan_in_which_nothing_is_found_comes_first(tiny_run, tiny_sam, tmp_path, monkeypatch, caplog):
    """The networks agree on it wholly, and are sure."""

    def blind(self, image, on_window=None):
        probs = np.zeros((*image.shape[:3], 2), np.float32)
        found = 0 if blind.calls // 2 == 1 else 0.7  # student and teacher, scan after scan: the second is missed
        probs[4:9, 4:9, 4:9, 1] = found
        probs[..., 0] = 1 - probs[..., 1]
        blind.calls += 1
        return probs

    blind.calls = 0
    monkeypatch.setattr(Predictor, "probs", blind)
    (tmp_path / "cases").write_text("case1\ncase2\ncase3\n", encoding="utf-8")
    words = [f"--workdir={tiny_run}", f"--cases={tmp_path / 'cases'}", f"--output={tmp_path / 'rank'}", "--pictures=0"]
    assert rank.main([*words, f"--sam_dir={tiny_sam}"]) == 0
    scans = json.loads((tmp_path / "rank" / "rank.json").read_text(encoding="utf-8"))["scans"]
    assert scans[0]["case_id"] == "case2"
    assert scans[0] == {
        "case_id": "case2", "score": scans[0]["score"], "student_teacher": None, "uncertainty": None,
        "sam_teacher": None,
    }  # fmt: skip
    assert all(scan["sam_teacher"] is not None for scan in scans[1:])


def test_a_scan_on_which_sam_fails_is_ranked_without_it(tiny_run, tiny_sam, tmp_path, monkeypatch):
    def broken(self, image, probs, key=None, **about):
        if key == "case2":
            raise SamCallError("no memory")
        return target(self, image, probs, key=key, **about)

    target = SamEnsemble.target
    monkeypatch.setattr(SamEnsemble, "target", broken)
    (tmp_path / "cases").write_text("case1\ncase2\ncase3\n", encoding="utf-8")
    words = [f"--workdir={tiny_run}", f"--cases={tmp_path / 'cases'}", f"--output={tmp_path / 'rank'}", "--pictures=0"]
    assert rank.main([*words, f"--sam_dir={tiny_sam}"]) == 0
    scans = json.loads((tmp_path / "rank" / "rank.json").read_text(encoding="utf-8"))["scans"]
    asked = {scan["case_id"]: scan["sam_teacher"] for scan in scans}
    assert asked.pop("case2") is None
    assert all(0 <= value <= 1 for value in asked.values())


@pytest.mark.parametrize("command", [pseudolabel, rank])
def test_scans_of_another_orientation_are_refused(tiny_run, tiny_cohort, tmp_path, capsys, command):
    """The network would see them lying otherwise than those that it was trained on."""
    workdir, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(tiny_run, workdir)
    shutil.copytree(tiny_cohort, data)
    record = json.loads((workdir / "run.json").read_text(encoding="utf-8"))
    (workdir / "run.json").write_text(json.dumps(record | {"orientation": "RAS"}), encoding="utf-8")
    scan = load_volume(find_case(data, "case3"), with_label=False)
    turned = axis_order(axis_code(scan.affine), "LPS").apply_to(scan)
    save_volume_h5(data / "case3" / "mri_norm2.h5", dataclasses.replace(turned, has_orientation=True))
    (tmp_path / "cases").write_text("case3\n", encoding="utf-8")
    words = [f"--workdir={workdir}", f"--cases={tmp_path / 'cases'}", f"--output={tmp_path / 'output'}"]
    assert command.main([*words, f"--data_dir={data}"]) != 0
    error = capsys.readouterr().err
    assert "'case3': expected a scan of orientation RAS, as in training. Received: LPS" in error
    assert not list((tmp_path / "output").glob("*.h5"))


def test_targets_made_otherwise_are_not_mixed_in(tiny_run, tiny_sam, tmp_path, capsys):
    words = [f"--workdir={tiny_run}", f"--output={tmp_path / 'targets'}", f"--sam_dir={tiny_sam}", "--nonifti"]
    assert pseudolabel.main([*words, "--sam_margin_vox=0,1"]) == 0
    made = (tmp_path / "targets" / "case3.h5").read_bytes()
    (tmp_path / "cases").write_text("case3\ncase4\n", encoding="utf-8")
    words.append(f"--cases={tmp_path / 'cases'}")
    assert pseudolabel.main([*words, "--sam_margin_vox=2"]) == 2
    assert "--sam_margin_vox: [0, 1] there, [2] now" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "targets").glob("*.h5")] == ["case3.h5"]
    assert pseudolabel.main([*words, "--sam_margin_vox=0,1"]) == 0
    assert (tmp_path / "targets" / "case3.h5").read_bytes() == made
    assert (tmp_path / "targets" / "case4.h5").is_file()


def test_shards_make_what_one_call_makes(tiny_run, tiny_sam, tmp_path, capsys):
    (tmp_path / "cases").write_text("case1\ncase2\ncase3\n", encoding="utf-8")
    common = [f"--workdir={tiny_run}", f"--cases={tmp_path / 'cases'}", f"--sam_dir={tiny_sam}", "--sam_margin_vox=0,1"]
    assert pseudolabel.main([*common, f"--output={tmp_path / 'alone'}"]) == 0
    shared = tmp_path / "shared"
    words = [*common, f"--output={shared}"]
    assert pseudolabel.main([*words, "--shard=0/2"]) == 2
    assert "--shard: expected i/n" in capsys.readouterr().err
    assert pseudolabel.main([*words, "--shard=2/2"]) == 0
    assert sorted(path.name for path in shared.glob("*.h5")) == ["case2.h5"]
    # A shard with other settings is refused as a call with other settings is.
    assert pseudolabel.main([*words, "--shard=1/2", "--sam_fusion=sam"]) == 2
    # As another shard has it that is writing.
    (shared / ".partial.0.case2.h5").touch()
    assert pseudolabel.main([*words, "--shard=1/2"]) == 0
    assert (shared / ".partial.0.case2.h5").exists()
    (shared / "case3.nii.gz").unlink()
    corrected = sitk.ReadImage(str(shared / "case1.nii.gz"))
    sitk.WriteImage(corrected * 0, str(shared / "case1.nii.gz"))
    there = {path: path.stat().st_mtime_ns for path in shared.glob("case*")}
    assert pseudolabel.main(words) == 0
    assert not (shared / ".partial.0.case2.h5").exists()
    # Only what was missing is new: a mask that was corrected stays.
    after = {path: path.stat().st_mtime_ns for path in shared.glob("case*")}
    assert {path.name for path in after if there.get(path) != after[path]} == {"case3.nii.gz"}
    assert not sitk.GetArrayFromImage(sitk.ReadImage(str(shared / "case1.nii.gz"))).any()
    # Nor does it go with its trust.
    (shared / "case1_trust.nii.gz").unlink()
    assert pseudolabel.main(words) == 0
    assert not sitk.GetArrayFromImage(sitk.ReadImage(str(shared / "case1.nii.gz"))).any()
    (shared / "case1.nii.gz").unlink()
    assert pseudolabel.main(words) == 0
    names = [path.name for path in sorted((tmp_path / "alone").iterdir()) if path.is_file() and path.name[0] != "."]
    assert "making.json" in names
    assert len(names) == 1 + 3 * 3
    for name in names:
        assert (shared / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name


def test_targets_of_unknown_making_are_not_added_to(tiny_run, tmp_path, capsys):
    (tmp_path / "case1.h5").write_bytes(b"by hand")
    assert pseudolabel.main([f"--workdir={tiny_run}", f"--output={tmp_path}", "--nonifti"]) == 2
    assert "is not on record" in capsys.readouterr().err


@pytest.mark.parametrize("command", [pseudolabel, rank])
def test_sam_runs_where_the_flags_of_the_command_say(tiny_run, tiny_sam, tmp_path, capsys, command):
    words = [f"--workdir={tiny_run}", f"--output={tmp_path / 'out'}", f"--sam_dir={tiny_sam}"]
    assert command.main([*words, "--sam_providers=ROCMExecutionProvider"]) == 1
    assert "Expected ONNX Runtime to run encoder.onnx on ROCMExecutionProvider" in capsys.readouterr().err


def test_a_supervised_runs_unlabelled_cases_get_targets_without_being_named(tiny_run, tmp_path):
    assert pseudolabel.main([f"--workdir={tiny_run}", f"--output={tmp_path}", "--nonifti"]) == 0
    assert [path.name for path in tmp_path.glob("*.h5")] == ["case3.h5"]


def test_rank_writes_an_order_and_pictures(tiny_run, tiny_sam, tmp_path, capsys):
    (tmp_path / "cases").write_text("case3\ncase4\n", encoding="utf-8")
    words = [f"--workdir={tiny_run}", f"--cases={tmp_path / 'cases'}", f"--output={tmp_path / 'rank'}"]
    assert rank.main([*words, f"--sam_dir={tiny_sam}", "--pictures=1"]) == 0
    written = json.loads((tmp_path / "rank" / "rank.json").read_text(encoding="utf-8"))
    assert sorted(entry["case_id"] for entry in written["scans"]) == ["case3", "case4"]
    first, second = written["scans"]
    assert first["score"] >= second["score"]
    assert set(first) == {"case_id", "score", "student_teacher", "sam_teacher", "uncertainty"}
    assert capsys.readouterr().out.splitlines()[0].split()[:2] == ["1", first["case_id"]]
    assert [path.name for path in (tmp_path / "rank").glob("*.png")] == [f"001_{first['case_id']}.png"]
    assert np.isfinite([entry["score"] for entry in written["scans"]]).all()
