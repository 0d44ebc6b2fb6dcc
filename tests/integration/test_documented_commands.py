"""Every command of README and docs/, as a stranger would paste it: fewer steps, and a small SAM for a real one.

`make test` holds that each command is either run here or named below with the place where it is run, or the reason why
it is not. `make test` runs the tutorial's, `make test-slow` the others.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

REPO = Path(__file__).resolve().parent.parent.parent
# In the order in which a reader meets them: README trains the run that the how-to pages go on with.
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((REPO / "docs").glob("*.md"))), "BUILD.md"]
# Written by the commands themselves, and the same as their --help.
PAGES.remove("docs/flags.md")

_PYTHON = ".venv/bin/python"
_STARTS = ("python", "pip ", "make ", "docker ", "curl ", "mkdir ", "for ", "{ printf", "SEMISAM_", "--images=")
# Beginning of a command -> where it is run, or why it is not.
ELSEWHERE = {
    f"{_PYTHON} -m export.sam": "tests/export, in a process with torch",
    f"{_PYTHON} -m semisam_tf.serving.client": "test_serving.py, against the stand-in server",
    f"{_PYTHON} -m semisam_tf.train --flagfile=configs/la_table.flags": "la_table.py, on scans that are not here",
    f"{_PYTHON} -m semisam_tf.train --flagfile=configs/la_paper.flags --devices": "not at all, for want of GPUs",
    f"{_PYTHON} -m semisam_tf.train --flagfile=configs/la_paper.flags --data_dir": "not at all, for want of a GPU",
    f"{_PYTHON} -m semisam_tf.pseudolabel --workdir=RUN --output=DIR --sam_dir": "not at all, for want of a GPU",
    f"{_PYTHON} docs/make_results.py": "test_docs.py: what it would write is what is there",
    f"{_PYTHON} benchmarks/": "by hand, for the figures: hours; test_docs.py holds that their flags exist",
    "{ printf": "test_serving.py: the curl of docs/serving.md against the stand-in server",
    "docker ": "not at all: no image of TensorFlow Serving is to be had here",
    "make quickstart": ".ci/run",
    "make PYTHON=": ".ci/run, which looks for one",
    "make test": ".ci/run",
    "make clean": "by hand: it renews constraints.txt",
    "SEMISAM_GOLDEN=": "with values of somebody's own; tests/parity reads the variable",
    "python3.11 -m venv": "make install, in its own words",
    ".venv/bin/pip ": "make install, in its own words; the GPU's not at all, for want of one",
}
# What the pages call by a name of the reader's own.
_PLACEHOLDERS = {
    "--images=SCANS": "--images=my_scans", "DATA": "my_data", "--workdir=RUN": "--workdir=runs/mine",
    "--workdir=DIR": "--workdir=runs/mine", "--output=DIR": "--output=out", "configs/NAME.flags ...": "my.flags",
}  # fmt: skip
# Added to a command, where of two values the last counts.
_SHORT_RUN = (
    "--max_steps=4 --coarse_steps=2 --filters=2 --patch_size=32,32,16 --sam_start_step=2 --copy_paste_start_step=0 "
    "--training_spacing_mm=8,8,10"
)
_ADDED = {
    "semisam_tf.prepare": "--labeled=3 --scoring=2",
    "semisam_tf.train": _SHORT_RUN,
    "semisam_tf.data.simulate": "--subjects=6",
    "semisam_tf.serving.save": "--overlap=0.25",
    "semisam_tf.pseudolabel": "--sam_slice_step=8",
}


def commands_of(page: str) -> list[str]:
    """What a page tells its reader to run, in order: lines of its blocks, and commands with flags in its text."""
    text = re.sub(r"\\\n\s*", "", (REPO / page).read_text(encoding="utf-8"))
    # The curl of docs/serving.md is a line of three.
    text = re.sub(r"\|\n\s+", "| ", text)
    found = []
    for line in text.splitlines():
        if line.startswith("    "):
            command = re.sub(r"\s#\s.*", "", line).strip()
            if command.removeprefix(".venv/bin/").startswith(_STARTS):
                found.append(command)
            continue
        for quoted in re.findall(r"`((?:\.venv/bin/)?(?:python|make) [^`]+)`", line):
            # `python -m semisam_tf.train` alone is the name of a command.
            if "=" in quoted and quoted.removeprefix(".venv/bin/") not in "".join(found):
                found.append(quoted if quoted.startswith((".venv", "make")) else f".venv/bin/{quoted}")
    return found


def elsewhere(command: str) -> str:
    """Where else a command is run, or the reason why it is not; empty: here."""
    return next((place for start, place in ELSEWHERE.items() if command.startswith(start)), "")


def as_run(command: str, number: int) -> str:
    """A command with a reader's own names filled in, and shortened; `number` tells one page's commands apart."""
    if command.startswith("--images="):
        return f"{sys.executable} -m semisam_tf.prepare --output=prepared_{number} {command}"
    for name, value in _PLACEHOLDERS.items():
        command = re.sub(rf"(?<=[=\s]){re.escape(name)}(?=[\s/]|$)", value, command)
    module = re.search(r"-m (\S+)", command)
    added = _ADDED.get(module.group(1), "") if module else ""
    if module and module.group(1) == "semisam_tf.doctor" and "--flagfile" in command:
        added = _SHORT_RUN
    return f"{command.replace(_PYTHON, sys.executable)} {added}"


def test_each_command_is_run_here_or_has_a_place():
    here = [command for page in PAGES for command in commands_of(page) if not elsewhere(command)]
    shell = [command for command in here if not command.startswith((f"{_PYTHON} -m semisam_tf.", "--images="))]
    assert all(command.startswith(("mkdir ", "for ")) for command in shell), shell
    assert len(here) > 30
    every = [command for page in PAGES for command in commands_of(page)]
    unused = [start for start in ELSEWHERE if not any(command.startswith(start) for command in every)]
    assert unused == [], "nothing in the pages begins so"


def write_named_scans(folder: Path) -> None:
    """Scans under the names that docs/prepare.md takes its patterns for: each with its own voxels."""
    rng = np.random.default_rng(5)
    label = np.zeros((24, 24, 12), np.uint8)
    label[6:18, 6:18, 3:9] = 1
    masks = ("scans/a_seg", "scans/b_seg", "scans/a/organ", "scans/b/organ", "BraTS/a/a_seg", "BraTS/b/b_seg")
    images = [mask.replace("_seg", "_ct").replace("organ", "ct") for mask in masks[:4]]
    images += [f"BraTS/{case}/{case}{channel}" for case in "ab" for channel in ("_t1", "_t1ce", "_t2", "_flair")]
    for name in images:
        write_image(folder / f"{name}.nii.gz", (label + rng.normal(0, 0.2, label.shape)).astype(np.float32))
    for name in masks:
        write_image(folder / f"{name}.nii.gz", label)


def write_image(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array.T), str(path))


def test_the_scan_sees_blocks_text_and_placeholders(monkeypatch, tmp_path):
    lines = [
        "`python -m semisam_tf.report --workdir=DIR`", "", "    make x  # why", '    {"step": 1}',
        "    .venv/bin/python -m a \\", "        --b",
    ]  # fmt: skip
    (tmp_path / "page.md").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setitem(globals(), "REPO", tmp_path)
    assert commands_of("page.md") == [
        ".venv/bin/python -m semisam_tf.report --workdir=DIR", "make x", ".venv/bin/python -m a --b"
    ]  # fmt: skip
    assert "--cases=my_data/test.list" in as_run(".venv/bin/python -m e --cases=DATA/test.list", 0)
    assert as_run("--images=BraTS", 7).startswith(
        f"{sys.executable} -m semisam_tf.prepare --output=prepared_7 --images"
    )


@pytest.fixture(scope="module")
def desk(repo_root, tmp_path_factory, write_double):
    """A reader's folder: the clone's configs, a small SAM, scans of a simulated cohort as a folder of files."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "configs").symlink_to(repo_root / "configs")
    write_double(folder / "models" / "sam_lite_medsam")
    run_in(folder, f"{sys.executable} -m semisam_tf.data.simulate --output=my_cohort --subjects=6")
    for kind in ("image", "label"):
        (folder / "my_scans" / f"{kind}s").mkdir(parents=True)
        for case in sorted((folder / "my_cohort").glob("subject_*")):
            shutil.copy(case / f"{kind}.nii.gz", folder / "my_scans" / f"{kind}s" / f"{case.name}.nii.gz")
    shutil.copy(folder / "my_scans" / "images" / "subject_06.nii.gz", folder / "scan.nii.gz")
    write_named_scans(folder)
    run_in(folder, as_run(f"{_PYTHON} -m semisam_tf.prepare --images=SCANS --output=DATA", 0))
    flags = ["--flagfile=my_data/train.flags", "--preset=cpu", "--workdir=runs/of_the_flagfile"]
    (folder / "my.flags").write_text("\n".join(flags) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def trained_desk(desk, tmp_path_factory):
    """The same when README has been followed as far as training."""
    folder = tmp_path_factory.mktemp("trained") / "desk"
    shutil.copytree(desk, folder, symlinks=True)
    (train,) = (command for command in commands_of("README.md") if "semisam_tf.train" in command)
    run_in(folder, as_run(train, 0))
    return folder


def run_in(folder: Path, command: str) -> str:
    """Runs a line of bash, which has to end well, and returns what it printed."""
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# Page -> patterns of what lies there when its commands have been run.
LEFT = {
    "README.md": [
        "runs/mine/metrics.json", "runs/mine/report.html", "mask.nii.gz", "mask.png",
        "models/left_atrium/1/saved_model.pb",
    ],
    "docs/audit.md": [],
    "docs/coarse_to_fine.md": ["runs/coarse_to_fine/coarse.weights.h5", "runs/coarse_to_fine/metrics.json"],
    "docs/doctor.md": [],
    "docs/gpu.md": [],
    "docs/multiclass.md": ["runs/multiclass/metrics.json", "models/organs/1/saved_model.pb", "out/cohort.json"],
    "docs/prepare.md": ["runs/mine/metrics.json", "prepared_3/cases.png", "prepared_5/cases.png"],
    "docs/report.md": ["runs/mine/report.html"],
    "docs/sam.md": ["runs/mine/rank/rank.json"],
    "docs/scale.md": [
        "scans_in_grid/*.scan", "my_targets/making.json", "my_targets/*_trust.nii.gz", "my_data/prepare.json",
    ],
    "docs/serving.md": ["models/left_atrium/1/saved_model.pb"],
    "docs/tutorial.md": [
        "runs/my_run/sam_selftest.png", "runs/my_run/metrics.json", "runs/my_run/rank/rank.json",
        "my_targets/*_trust.nii.gz", "my_masks/subject_01.nii.gz", "models/my_organ/1/saved_model.pb",
    ],
}  # fmt: skip


def test_each_page_with_commands_is_run():
    assert sorted(LEFT) == sorted(p for p in PAGES if any(not elsewhere(command) for command in commands_of(p)))


# The tutorial in every landing, the others where there is time.
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=() if page == "docs/tutorial.md" else pytest.mark.slow) for page in LEFT]
)
def test_every_command_of_a_page_runs(page, request, tmp_path):
    commands = [command for command in commands_of(page) if not elsewhere(command)]
    trains = any("semisam_tf.train" in command for command in commands)
    folder = tmp_path / "desk"
    shutil.copytree(request.getfixturevalue("desk" if trains else "trained_desk"), folder, symlinks=True)
    there = {path: path.stat().st_mtime_ns for pattern in LEFT[page] for path in folder.glob(pattern)}
    for number, command in enumerate(commands):
        run_in(folder, as_run(command, number))
    left = {pattern: {path: path.stat().st_mtime_ns for path in folder.glob(pattern)} for pattern in LEFT[page]}
    assert [pattern for pattern, files in left.items() if not files.items() - there.items()] == []
    for metrics in folder.glob("runs/*/metrics.json"):
        scores = json.loads(metrics.read_text(encoding="utf-8"))
        assert scores["cases"]
        assert scores["trained_on"] == []
