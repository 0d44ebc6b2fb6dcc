"""docs/tutorial.md, command by command, as a stranger would paste it: fewer steps, and a small SAM for a real one."""

import json
import os
import re
import subprocess
import sys

import pytest

# Written in the tutorial -> what the test runs.
SHORTER = {
    ".venv/bin/python": sys.executable,
    "--max_steps=300": "--max_steps=4",
    "--sam_start_step=150": "--sam_start_step=2",
    "--patch_size=64,64,32": "--patch_size=32,32,16",
    "--preset=cpu": "--preset=cpu --filters=2",
}


@pytest.mark.slow
def test_every_command_of_the_tutorial_runs(repo_root, tmp_path, write_double):
    write_double(tmp_path / "models" / "sam_lite_medsam")
    page = (repo_root / "docs" / "tutorial.md").read_text(encoding="utf-8")
    commands = [line.strip() for line in page.splitlines() if line.startswith("    ")]
    assert len(commands) > 12
    environment = os.environ | {"PYTHONPATH": str(repo_root)}
    for command in commands:
        if "export.sam" in command:
            continue  # torch's: tests/export
        for written, run in SHORTER.items():
            command = re.sub(rf"(?<!\S){re.escape(written)}(?!\S)", run, command)
        done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    assert len(list((tmp_path / "my_masks").glob("*.nii.gz"))) == 12
    assert (tmp_path / "models" / "my_organ" / "1" / "saved_model.pb").is_file()
    metrics = json.loads((tmp_path / "runs" / "my_run" / "metrics.json").read_text(encoding="utf-8"))
    assert len(metrics["cases"]) == 4
    assert json.loads((tmp_path / "runs" / "my_run" / "rank" / "rank.json").read_text(encoding="utf-8"))["scans"]
    assert (tmp_path / "runs" / "my_run" / "sam_selftest.png").is_file()
    assert list((tmp_path / "my_targets").glob("*_trust.nii.gz"))
