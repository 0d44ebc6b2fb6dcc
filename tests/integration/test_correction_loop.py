"""A target drawn on the grid of the scan that was prepared, corrected, is prepared again as that scan's label."""

import numpy as np
import pytest
import SimpleITK as sitk

from semisam_tf import prepare, pseudolabel
from semisam_tf.config import Config
from semisam_tf.data.label_access import outside_runs
from semisam_tf.data.volumes import find_case, load_volume
from semisam_tf.inference.predictor import Predictor
from semisam_tf.sam.target import dice
from semisam_tf.training.rounds import train

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SIZE, SPACING = (24, 20, 16), (1.0, 1.0, 2.0)


def write_scan(folder, case, labelled):
    """A bright block off every middle, in a scan that lies on its side and mirrored; `Volume` axes are its file's."""
    bright = np.zeros(SIZE, np.float32)
    bright[3:13, 11:18, 2:9] = 100
    noise = np.random.default_rng(len(case)).normal(0, 5, SIZE).astype(np.float32)
    for name, array in [("images", bright + noise), *([("labels", (bright > 0).astype(np.uint8))] if labelled else [])]:
        image = sitk.GetImageFromArray(array.T)
        image.SetSpacing(SPACING)
        image.SetOrigin((10.0, -30.0, 5.0))
        image.SetDirection((0.0, -1.0, 0.0, 0.0, 0.0, 1.0, -1.0, 0.0, 0.0))
        (folder / name).mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(folder / name / f"{case}.nii.gz"))
    return bright > 0


def bright_is_organ(self, image, on_window=None):
    # z-scored: half as bright as the block is 1.8.
    foreground = np.clip((image[..., 0] - 1.8) / 4 + 0.5, 0, 1)
    return np.stack([1 - foreground, foreground], axis=-1).astype(np.float32)


def test_a_mask_on_the_sources_grid_is_prepared_again(tmp_path, monkeypatch, capsys):
    raw, data, targets = tmp_path / "raw", tmp_path / "data", tmp_path / "targets"
    block = [write_scan(raw, case, labelled=case == "a") for case in ("a", "bb")][1]
    words = ["--spacing_mm=2,2,2", "--crop=foreground"]
    assert prepare.main([f"--images={raw}", f"--output={data}", *words]) == 0
    settings = {
        "data_dir": str(data), "workdir": str(tmp_path / "run"), "labeled": "1", "filters": 2, "patch_size": (16,) * 3,
        "max_steps": 1, "method": "supervised", "batch_size": 1, "labeled_per_batch": 1,
    }  # fmt: skip
    train(Config(**settings))
    monkeypatch.setattr(Predictor, "probs", bright_is_organ)
    asked = [f"--workdir={tmp_path / 'run'}", f"--output={targets}", "--nifti_grid=source", "--sam_smoothing_vox=0"]
    assert pseudolabel.main(asked) == 0

    drawn = sitk.ReadImage(str(targets / "bb.nii.gz"))
    scan = sitk.ReadImage(str(raw / "images" / "bb.nii.gz"))
    for geometry in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
        assert getattr(drawn, geometry)() == pytest.approx(getattr(scan, geometry)()), geometry
    mask = sitk.GetArrayFromImage(drawn).T > 0
    assert dice(mask, block) > 0.9
    trust = sitk.GetArrayFromImage(sitk.ReadImage(str(targets / "bb_trust.nii.gz"))).T
    assert trust.shape == mask.shape

    # As docs/tutorial.md has it: corrected, here by nobody, it is a label like any other.
    sitk.WriteImage(drawn, str(raw / "labels" / "bb.nii.gz"))
    assert prepare.main([f"--images={raw}", f"--output={tmp_path / 'again'}", *words]) == 0
    case = find_case(tmp_path / "again", "bb")
    again = load_volume(case, with_label=outside_runs("a test"))
    # Of a block of four voxels across: one voxel off would be below 0.8.
    assert dice(again.label > 0, again.image[..., 0] > 50) > 0.85

    # Where the scan is gone, nothing is drawn somewhere else in its place.
    (raw / "images" / "bb.nii.gz").rename(raw / "gone.nii.gz")
    (targets / "bb.nii.gz").unlink()
    assert pseudolabel.main(asked) != 0
    assert f"was made of at {raw / 'images' / 'bb.nii.gz'}. Received: nothing is there" in capsys.readouterr().err
    assert not (targets / "bb.nii.gz").exists()
