"""From scan file to mask file with a trained run, through every type of file and orientation."""

import csv
import dataclasses
import json
import shutil
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import SimpleITK as sitk

from semisam_tf import evaluate
from semisam_tf.data.itk import read_image, write_image
from semisam_tf.data.label_access import outside_runs
from semisam_tf.data.orientation import axis_order
from semisam_tf.data.volumes import Volume, find_case, load_volume, save_volume_h5
from semisam_tf.inference.predictor import load_predictor
from semisam_tf.options import OptionError
from semisam_tf.predict import PredictConfig, main, predict
from semisam_tf.sam.manifest import load_manifest
from semisam_tf.sam.target import dice
from semisam_tf.training import sam_setup

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


@pytest.fixture(scope="module")
def scan(tiny_cohort):
    """The case that was not trained on, in whole numbers that every type of file can hold."""
    volume = load_volume(find_case(tiny_cohort, "case4"), with_label=outside_runs("test"))
    image = np.round(volume.image * 200).astype(np.int16)
    return Volume("case4", image, volume.label, volume.spacing_mm, volume.affine + np.eye(4, k=3) * 13)


@pytest.fixture(scope="module")
def expected(tiny_run, scan):
    """The prediction of the scan as it is."""
    predictor, _ = load_predictor(tiny_run)
    return predictor.predict(Volume("x", scan.image.astype(np.float32), None, scan.spacing_mm, scan.affine))


def store(scan, code, path):
    """Writes the scan in the axis order `code`, turned by SimpleITK, as the type of file that `path` ends in."""
    lps = path.with_name("lps.nii.gz")
    write_image(lps, scan.image[..., 0], scan.spacing_mm, scan.affine)
    image = sitk.DICOMOrient(sitk.ReadImage(str(lps)), code)
    lps.unlink()
    if path.suffix == ".h5":
        sitk.WriteImage(image, str(path.with_suffix(".nii")))
        array, spacing_mm, affine, *_ = read_image(path.with_suffix(".nii"), None)
        save_volume_h5(path, Volume("x", array, None, spacing_mm, affine))
        path.with_suffix(".nii").unlink()
    elif not path.suffix:
        store_series(image, path)
    else:
        sitk.WriteImage(image, str(path))
    return path


def store_series(image, folder):
    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = np.reshape(image.GetDirection(), (3, 3))
    for n in range(image.GetSize()[2]):
        slice_image = image[:, :, n : n + 1]
        position = image.TransformIndexToPhysicalPoint((0, 0, n))
        for key, value in {
            "0020|000d": "1.2.1", "0020|000e": "1.2.2", "0008|0018": f"1.2.3.{n}", "0020|0013": str(n),
            "0020|0032": "\\".join(f"{p:.6f}" for p in position),
            "0020|0037": "\\".join(f"{d:.6f}" for d in direction[:, :2].T.ravel()),
        }.items():  # fmt: skip
            slice_image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{500 - n}"))
        writer.SetImageIO("GDCMImageIO")
        writer.Execute(slice_image)


def read_lps(path, dataset="label"):
    """A map turned to LPS by SimpleITK: values [X, Y, Z] and origin (mm, LPS)."""
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            write_image(path.with_suffix(".nii"), file[dataset][()], file.attrs["spacing_mm"], file.attrs["affine"])
        path = path.with_suffix(".nii")
    image = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), image.GetOrigin()


@pytest.mark.parametrize(
    ("code", "name", "mask_name"),
    [
        ("LPS", "scan.nii.gz", "scan.nii.gz"),
        ("RAS", "scan.nii", "scan.nii"),
        ("SAR", "scan.nrrd", "scan.nrrd"),
        ("PIL", "scan.mha", "scan.mha"),
        ("IRP", "scan.mhd", "scan.mha"),
        ("ALS", "scan.h5", "scan.h5"),
        ("LPS", "axial", "axial.nii.gz"),
        ("LIP", "coronal", "coronal.nii.gz"),
        ("PIR", "sagittal_from_the_left", "sagittal_from_the_left.nii.gz"),
    ],
)
def test_one_scan_in_any_file_and_orientation_has_one_mask(tiny_run, scan, expected, tmp_path, code, name, mask_name):
    path = store(scan, code, tmp_path / name)
    output = tmp_path / "out"
    report = predict(PredictConfig(str(tiny_run), str(path), str(output), probabilities=True))
    assert report["failures"] == []
    mask, origin = read_lps(output / mask_name)
    np.testing.assert_array_equal(mask, expected.mask)
    np.testing.assert_allclose(origin, np.array([-1, -1, 1]) * scan.affine[:3, 3], atol=1e-4)
    assert 0.5 < 2 * (mask & scan.label).sum() / (mask.sum() + scan.label.sum())
    suffix = mask_name[mask_name.index(".") :]
    probs, _ = read_lps(output / mask_name.replace(suffix, f"_probs{suffix}"), "probs")
    assert probs.dtype == np.float32
    np.testing.assert_allclose(probs, expected.probs[..., 1], atol=1e-5)
    voxel_ml = 0.8 * 0.8 * 1.5 / 1000
    assert report["scans"][0]["volume_ml"]["1"] == pytest.approx(np.count_nonzero(mask) * voxel_ml, abs=1e-5)
    if suffix != ".h5" and path.is_file():
        # The very header of the scan, not only the same place in the world.
        np.testing.assert_allclose(
            read_image(output / mask_name, None).affine, read_image(path, None).affine, atol=1e-5
        )


def test_evaluate_scores_the_mask_that_predict_writes(tiny_run, tiny_cohort, tmp_path):
    predictor, _ = load_predictor(tiny_run)
    mask = predictor.mask(load_volume(find_case(tiny_cohort, "case4"), with_label=outside_runs("test")))
    predict(PredictConfig(str(tiny_run), str(tiny_cohort / "case4"), str(tmp_path)))
    with h5py.File(tmp_path / "case4.h5") as file:
        np.testing.assert_array_equal(file["label"][()], mask)


def test_a_folder_run_goes_on_after_bad_files(tiny_run, tiny_cohort, scan, tmp_path):
    folder, output = tmp_path / "scans", tmp_path / "out"
    folder.mkdir()
    store(scan, "RAS", folder / "good.nii.gz")
    (folder / "cut.nii.gz").write_bytes((folder / "good.nii.gz").read_bytes()[:2000])
    (folder / "nothing.nrrd").write_bytes(b"")
    (folder / "damaged.h5").write_bytes(b"\x89HDF")
    vector = sitk.JoinSeries([sitk.ReadImage(str(folder / "good.nii.gz"))] * 2)
    sitk.WriteImage(vector, str(folder / "two_channels.nii"))
    shutil.copytree(tiny_cohort / "case3", folder / "unseen")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "semisam_tf.predict", f"--model={tiny_run}", f"--input={folder}", f"--output={output}",
         "--preview", "--fast", "--device=cpu"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "error: 4 of 6 scans failed:" in done.stderr
    closing = done.stderr[done.stderr.index("error: 4 of 6") :]
    for name in ("cut.nii.gz", "nothing.nrrd", "damaged.h5", "two_channels.nii"):
        assert f"  {folder / name}: " in closing
    assert "expected 1 image channels, as in training. Received: 2" in closing
    names = {"good.nii.gz", "good.png", "unseen.h5", "unseen.png", "summary.json"}
    assert {path.name for path in output.iterdir()} == names
    assert (output / "good.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    assert [entry["scan"] for entry in summary["scans"]] == ["good", "unseen"]
    assert summary["overlap"] == 0.25
    assert summary["orientation"] == "LPS"
    assert sum(entry["duration_s"] for entry in summary["scans"]) < time.monotonic() - began
    for entry in summary["scans"]:
        assert f"{entry['scan']}: {entry['volume_ml']['1']:.2f} ml" in done.stdout


def test_a_run_without_orientation_takes_file_order_and_says_so(tiny_run, scan, expected, tmp_path, caplog):
    old = tmp_path / "old_run"
    shutil.copytree(tiny_run, old)
    record = json.loads((old / "run.json").read_text(encoding="utf-8"))
    assert record.pop("orientation") == "LPS"
    (old / "run.json").write_text(json.dumps(record), encoding="utf-8")
    turned = store(scan, "PSR", tmp_path / "scan.nii.gz")
    with caplog.at_level("WARNING"):
        report = predict(
            PredictConfig(str(old), str(turned), str(tmp_path / "m.nii.gz"), summary=str(tmp_path / "s.csv"))
        )
    assert report["orientation"] is None
    assert "in the order of their files' axes" in caplog.text
    mask, _ = read_lps(tmp_path / "m.nii.gz")
    assert mask.shape == expected.mask.shape
    assert np.any(mask != expected.mask)
    with (tmp_path / "s.csv").open(newline="") as file:
        assert [row["scan"] for row in csv.DictReader(file)] == ["scan"]


def test_another_spacing_is_brought_to_that_of_training_and_back(tiny_run, scan, tmp_path):
    """A run told to work at 0.8 x 0.8 x 1.5 mm sees a scan twice as fine along x as before."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    record["config"]["training_spacing_mm"] = [0.8, 0.8, 1.5]
    (run / "run.json").write_text(json.dumps(record), encoding="utf-8")
    fine = np.repeat(scan.image[..., 0], 2, axis=0)
    label = np.repeat(scan.label, 2, axis=0)
    write_image(tmp_path / "fine.nrrd", fine, (0.4, 0.8, 1.5), scan.affine @ np.diag([0.5, 1, 1, 1]))
    predict(PredictConfig(str(run), str(tmp_path / "fine.nrrd"), str(tmp_path / "mask.nrrd"), tta=True))
    stored = read_image(tmp_path / "mask.nrrd", None)
    mask = stored.array[..., 0]
    assert mask.shape == label.shape
    np.testing.assert_allclose(stored.spacing_mm, (0.4, 0.8, 1.5), atol=1e-6)
    assert 2 * (mask & label).sum() / (mask.sum() + label.sum()) > 0.9


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--input=x", "--output=y"], 2, "--model is needed"),
        (["--model={run}", "--input={scan}", "--output=y", "--fast", "--overlap=0.1"], 2, "--fast is --overlap=0.25"),
        (["--model={run}", "--input={scan}", "--output=y", "--whole_scan", "--fast"], 2, "no windows to overlap"),
        (["--model={run}", "--input={scan}", "--output=y", "--whole_scan"], 1, "--normalisation=instance, whose"),
        (["--model={run}", "--input={scan}", "--output=y", "--overlap=1"], 2, "from 0 to below 1"),
        (["--model={run}", "--input={scan}", "--output=y", "--summary=s.txt"], 2, "ending in .json or .csv"),
        (["--model={run}", "--input={tmp}/none", "--output=y"], 1, "does not exist"),
        (["--model={tmp}", "--input={scan}", "--output=y"], 1, "Expected a training run"),
        (["--model={run}", "--input={scan}", "--output={tmp}/mask.png"], 1, "ends in one of"),
        (["--model={run}", "--input={scan}", "--output={scan}"], 1, "Expected another place than the scans'"),
        (["--model={run}", "--input={scan}", "--output={tmp}/o", "--device=gpu:7"], 1, "try --device=cpu"),
        (["--model={run}", "--input={scan}", "--output={tmp}/o", "--device=tpu"], 1, "auto, cpu, gpu or gpu:N"),
    ],
)
def test_errors_name_the_fix_and_write_nothing(tiny_run, scan, tmp_path, capsys, words, code, message):
    path = store(scan, "RAS", tmp_path / "scan.nii.gz")
    before = path.read_bytes()
    assert main([word.format(run=tiny_run, scan=path, tmp=tmp_path) for word in words]) == code
    assert message in capsys.readouterr().err
    assert [entry.name for entry in tmp_path.iterdir()] == ["scan.nii.gz"]
    assert path.read_bytes() == before


def test_flags_are_checked_from_python_too():
    with pytest.raises(OptionError, match="--output is needed"):
        predict(PredictConfig("run", "scan"))


@pytest.mark.parametrize("sam", ["tiny_sam", "tiny_volume_sam"])
def test_sams_answer_to_a_scored_case_lies_on_its_organ(tiny_run, tiny_cohort, tmp_path, request, sam, monkeypatch):
    predictor, _ = load_predictor(tiny_run)
    folder = request.getfixturevalue(sam)
    predictor.config = dataclasses.replace(
        predictor.config, sam_mode="cached", sam_dir=str(folder), sam_min_area_vox=1, workdir=str(tmp_path)
    )
    record = {"sam_sha256": [dict(load_manifest(folder).sha256)]}
    monkeypatch.setattr(sam_setup, "read_run", lambda workdir: record)
    scan = load_volume(find_case(tiny_cohort, "case4"), with_label=outside_runs("a test"))
    # Turned on file: SAM sees it as the network does, and the answer is turned back.
    turned = axis_order("LPS", "PSL").apply_to(scan)
    for volume in (scan, turned):
        masks = evaluate._sam_masks(tmp_path, predictor, ["case4"], lambda _, volume=volume: volume)
        assert dice(masks["case4"] > 0, volume.label > 0) > 0.6
    assert list(tmp_path.iterdir()) == []
    record["sam_sha256"] = [{"encoder.onnx": "of another"}]
    assert evaluate._sam_masks(tmp_path, predictor, ["case4"], lambda _: scan) == {}
    predictor.config = dataclasses.replace(predictor.config, sam_dir=str(tmp_path / "gone"))
    assert evaluate._sam_masks(tmp_path, predictor, ["case4"], lambda _: scan) == {}


def test_a_sam_that_breaks_costs_the_picture_alone(tiny_run, tiny_sam, tmp_path, monkeypatch, caplog):
    class OnnxRuntimeFail(Exception):
        """As ONNX Runtime's own: of no base that anybody would name."""

    def broken(config):
        raise OnnxRuntimeFail("opset 99")

    monkeypatch.setattr(sam_setup, "sam_of_run", lambda workdir, config: True)
    monkeypatch.setattr(sam_setup, "sam_sessions", broken)
    predictor, _ = load_predictor(tiny_run)
    assert evaluate._sam_masks(tmp_path, predictor, ["case4"], lambda _: None) == {}
    assert "drawn without SAM. OnnxRuntimeFail: opset 99" in caplog.text
