"""The commands as a user types them, in processes of their own."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from semisam_tf.data.volumes import Volume, save_volume_h5

FAST = [
    "--labeled=1",
    "--filters=2",
    "--normalisation=instance",
    "--patch_size=16,16,16",
    "--max_steps=3",
    "--log_every=1",
]


def run(module, *words):
    return subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def trained(tiny_cohort, tiny_sam, tmp_path_factory):
    """A finished run with SAM, and what the command printed."""
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    done = run(
        "semisam_tf.train", f"--data_dir={tiny_cohort}", f"--workdir={workdir}", *FAST, "--sam_mode=cached",
        f"--sam_dir={tiny_sam}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return workdir, done.stderr


def test_train_leaves_what_readme_lists(trained):
    workdir, log = trained
    names = {path.name for path in workdir.iterdir()}
    expected = {"run.json", "checkpoints", "tensorboard", "student.weights.h5", "teacher.weights.h5", "result.json"}
    assert expected | {"history.jsonl", "report.html"} <= names
    assert not [name for name in names if "partial" in name]
    record, result = (json.loads((workdir / name).read_text(encoding="utf-8")) for name in ("run.json", "result.json"))
    assert record["labelled"] == ["case0"]
    assert record["unlabelled"] == ["case1", "case2", "case3"]
    assert record["config"]["patch_size"] == [16, 16, 16]
    assert record["versions"]["keras"]
    assert result["steps"] == 3
    assert 0 <= result["data_wait_share"] < 1
    assert "step 3/3" in log
    assert "steps/s" in log
    assert "left" in log


def test_the_same_command_again_does_nothing(trained, tiny_cohort, tiny_sam):
    workdir, _ = trained
    before = (workdir / "student.weights.h5").stat().st_mtime_ns
    words = [f"--data_dir={tiny_cohort}", f"--workdir={workdir}", *FAST, "--sam_mode=cached", f"--sam_dir={tiny_sam}"]
    done = run("semisam_tf.train", *words)
    assert done.returncode == 0, done.stderr
    assert "is finished" in done.stderr
    assert (workdir / "student.weights.h5").stat().st_mtime_ns == before


def test_other_settings_in_the_same_workdir_are_refused(trained, tiny_cohort):
    done = run("semisam_tf.train", f"--data_dir={tiny_cohort}", f"--workdir={trained[0]}", *FAST, "--seed=5")
    assert done.returncode == 2
    assert "--seed=5 (was 0)" in done.stderr


def test_evaluate_needs_no_list_and_no_sam(trained, tiny_cohort, tmp_path):
    workdir, _ = trained
    data = tmp_path / "data"
    data.mkdir()
    (data / "case4").symlink_to(tiny_cohort / "case4")
    cases = tmp_path / "cases.txt"
    cases.write_text("case4\n", encoding="utf-8")
    output, masks = tmp_path / "out" / "metrics.json", tmp_path / "masks"
    done = run(
        "semisam_tf.evaluate", f"--workdir={workdir}", f"--data_dir={data}", f"--cases={cases}", f"--output={output}",
        f"--save_masks={masks}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text(encoding="utf-8"))
    assert set(report) >= {"cases", "mean", "std", "n_empty", "model"}
    assert [case["case_id"] for case in report["cases"]] == ["case4"]
    assert set(report["cases"][0]) == {"case_id", "dice", "jaccard", "hd95_mm", "asd_mm", "assd_mm"}
    assert report["mean"]["dice"] == report["cases"][0]["dice"]
    assert report["model"] == "teacher"
    assert (masks / "case4.nii.gz").is_file()
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "SAM calls" in done.stdout


def test_evaluate_refreshes_the_report_of_the_run(trained, tiny_cohort, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained[0], workdir)
    before = (workdir / "report.html").read_text(encoding="utf-8")
    assert "Not scored yet" in before
    words = [f"--workdir={workdir}", f"--data_dir={tiny_cohort}"]
    # Elsewhere: the report still shows metrics.json of the run, of which there is none.
    done = run("semisam_tf.evaluate", *words, f"--cases={tiny_cohort}/test.list", f"--output={tmp_path}/other.json")
    assert done.returncode == 0, done.stderr
    assert "Report:" not in done.stdout
    assert (workdir / "report.html").read_text(encoding="utf-8") == before
    done = run("semisam_tf.evaluate", *words, f"--cases={tiny_cohort}/test.list")
    assert done.returncode == 0, done.stderr
    assert f"Report: {workdir / 'report.html'}" in done.stdout
    page, metrics = ((workdir / name).read_text(encoding="utf-8") for name in ("report.html", "metrics.json"))
    assert f'data-value="{json.loads(metrics)["cases"][0]["dice"]!r}"' in page
    overlay = json.loads((workdir / "overlays" / "scored.json").read_text(encoding="utf-8"))["cases"][0]
    assert overlay["dice"]["teacher"] == json.loads(metrics)["mean"]["dice"]
    assert overlay["cuts"][0]["outlines"].keys() == {"truth", "teacher", "student", "sam"}
    assert "Only: " in page
    assert "is its answer, about the whole scan" in page
    assert "semisam_tf.evaluate --workdir=" in page
    again = run("semisam_tf.report", f"--workdir={workdir}")
    assert again.stdout == f"Report: {workdir / 'report.html'}\n"


def test_evaluate_fails_below_its_floor(trained, tiny_cohort, tmp_path):
    words = [f"--workdir={trained[0]}", f"--data_dir={tiny_cohort}", f"--cases={tiny_cohort}/test.list"]
    done = run("semisam_tf.evaluate", *words, f"--output={tmp_path}/m.json", "--min_dice=1.0")
    assert done.returncode == 1
    assert "below --min_dice=1.0" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--workdir=w"], 2, "--data_dir is needed"),
        (["--data_dir={data}", "--workdir={tmp}/w", "--sam_mode=cached", "--sam_dir=no"], 1, "python -m export.sam"),
        (["--data_dir={tmp}", "--workdir={tmp}/w"], 2, "train.list"),
        (["--data_dir={data}", "--workdir={tmp}/w", "--labeled=9"], 1, "9"),
        (["--data_dir={data}", "--workdir={tmp}/w", "--labeled=4"], 2, "No case is unlabelled"),
        (["--data_dir={data}", "--workdir={tmp}/w", "--exclude_cases={tmp}/none"], 1, "none"),
        (["--data_dir={data}", "--workdir={tmp}/w", "--lerning_rate=1"], 2, "Did you mean: learning_rate"),
        (
            ["--data_dir={data}", "--workdir={tmp}/w", "--sam_mode=cached", "--sam_dir={sam}", "--sam_prompts=point"],
            1, "Received: point: this double takes no point",
        ),
        (
            ["--data_dir={data}", "--workdir={tmp}/w", "--sam_mode=online", "--sam_dir={sam}",
             "--sam_providers=CUDAExecutionProvider"], 1, "--sam_allow_cpu",
        ),
    ],
)  # fmt: skip
def test_errors_come_before_training_and_name_the_fix(tiny_cohort, tiny_sam, tmp_path, words, code, message):
    filled = [word.format(data=tiny_cohort, tmp=tmp_path, sam=tiny_sam) for word in words]
    done = run("semisam_tf.train", *filled, *[word for word in FAST if word.split("=")[0] not in " ".join(filled)])
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "w" / "checkpoints").exists()


def test_quickstart_makes_its_cohort_and_names_the_export_command(repo_root, tmp_path):
    words = [f"--data_dir={tmp_path}/data", f"--workdir={tmp_path}/run", f"--sam_dir={tmp_path}/absent"]
    done = subprocess.run(
        [sys.executable, "-m", "semisam_tf.train", "--flagfile=configs/quickstart.flags", *words],
        capture_output=True, text=True, check=False, cwd=repo_root,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"python -m export.sam --family=lite_medsam --output={tmp_path}/absent" in done.stderr
    assert len((tmp_path / "data" / "train.list").read_text(encoding="utf-8").split()) == 8
    assert len((tmp_path / "data" / "test.list").read_text(encoding="utf-8").split()) == 4


def test_three_classes_and_two_channels_end_to_end(tiny_sam, tmp_path):
    """Two balls, each bright in a channel of its own; trained with SAM targets per class, scored per class."""
    rng = np.random.default_rng(3)
    names = ["a", "b", "c"]
    for name in names:
        grid = np.stack(np.meshgrid(*[np.arange(20)] * 3, indexing="ij"), axis=-1)
        label = np.zeros((20, 20, 20), np.uint8)
        label[np.linalg.norm(grid - [6, 10, 10], axis=-1) < 4] = 1
        label[np.linalg.norm(grid - [14, 10, 10], axis=-1) < 4] = 2
        image = np.stack([label == 1, label == 2], axis=-1) * 3.0 + rng.normal(0, 0.3, (20, 20, 20, 2))
        volume = Volume(name, image.astype(np.float32), label, (1.0, 1.0, 2.0), np.diag([1.0, 1, 2, 1]))
        save_volume_h5(tmp_path / name / "mri_norm2.h5", volume)
    (tmp_path / "train.list").write_text("a\nb\n", encoding="utf-8")
    (tmp_path / "test.list").write_text("c\n", encoding="utf-8")
    common = [f"--data_dir={tmp_path}", f"--workdir={tmp_path}/run"]
    done = run(
        "semisam_tf.train", *common, *FAST, "--n_classes=3", "--max_steps=40", "--optimizer=adamw",
        "--learning_rate=0.02", "--lr_schedule=constant", "--sam_mode=cached", f"--sam_dir={tiny_sam}",
        "--sam_start_step=30", "--dropout=0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert (record["channels"], record["labelled"], record["unlabelled"]) == (2, ["a"], ["b"])
    assert json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["sam"]["prompts_decoded"] > 0
    done = run("semisam_tf.evaluate", *common, f"--cases={tmp_path}/test.list", "--model=student")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert set(report["classes"]) == {"1", "2"}
    dice = [report["classes"][k]["mean"]["dice"] for k in "12"]
    assert report["mean"]["dice"] == pytest.approx(sum(dice) / 2)
    # Two balls of different channels are told apart; swapped classes or channels would score 0.
    assert min(dice) > 0.5
