"""A cohort that trains in seconds."""

import subprocess
import sys

import numpy as np
import pytest

from semisam_tf.data.volumes import Volume, save_volume_h5


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory):
    """Folder in UA-MT's layout: five scans of about 20 voxels a side, a bright ball in noise; train.list, test.list."""
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(7)
    names = [f"case{i}" for i in range(5)]
    for name in names:
        size = tuple(int(n) for n in rng.integers(18, 24, 3))
        centre, radius = np.array(size) / 2 + rng.uniform(-2, 2, 3), rng.uniform(5, 7)
        grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
        label = (np.linalg.norm(grid - centre, axis=-1) < radius).astype(np.uint8)
        image = 3.0 * label + rng.normal(0, 0.5, size)
        affine = np.diag([-0.8, -0.8, 1.5, 1.0])
        volume = Volume(name, image[..., None].astype(np.float32), label, (0.8, 0.8, 1.5), affine)
        save_volume_h5(folder / name / "mri_norm2.h5", volume)
    (folder / "train.list").write_text("\n".join(names[:4]) + "\n", encoding="utf-8")
    (folder / "test.list").write_text(names[4] + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_sam(tmp_path_factory, write_double):
    """An export of the SAM double."""
    folder = tmp_path_factory.mktemp("sam") / "double"
    write_double(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_run(tiny_cohort, tmp_path_factory):
    """Folder of a finished run that finds the ball: two filters, Dice above 0.9. Its scans are stored as LPS."""
    workdir = tmp_path_factory.mktemp("runs") / "ball"
    words = [
        f"--data_dir={tiny_cohort}", f"--workdir={workdir}", "--labeled=3", "--method=supervised", "--batch_size=2",
        "--labeled_per_batch=2", "--filters=2", "--normalisation=instance", "--patch_size=16,16,16", "--max_steps=60",
        "--optimizer=adamw", "--learning_rate=0.02", "--eval_model=student", "--augment=paper",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "semisam_tf.train", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture(scope="session")
def tiny_volume_sam(tmp_path_factory, write_double):
    """An export of the double of a model of volumes."""
    folder = tmp_path_factory.mktemp("sam") / "volume"
    write_double(folder, prompt="sam", dims=3)
    return folder
