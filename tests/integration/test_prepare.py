"""From a folder of scans to a data folder, to training and to scores; resuming, bad files, and a killed run."""

import json
import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
import SimpleITK as sitk

from semisam_tf import evaluate, prepare, train
from semisam_tf.data.itk import write_image
from semisam_tf.data.label_access import outside_runs
from semisam_tf.data.volumes import find_case, load_volume
from semisam_tf.preparation import tasks
from semisam_tf.preparation.reading import source_sha256
from semisam_tf.preparation.sources import Source

# Keras' own, when it saves weights.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
SIZE = (26, 24, 20)
AFFINE = np.array([[1.0, 0, 0, -30], [0, 1.0, 0, -200], [0, 0, 1.5, 700], [0, 0, 0, 1]])


def ball(seed, size=SIZE):
    """A bright ball off the middle in noise: image int16 [X, Y, Z], mask."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1) * [1, 1, 1.5]
    mask = np.linalg.norm(grid - [9, 14, 12] - rng.uniform(-1, 1, 3), axis=-1) < rng.uniform(5, 6)
    return (300 * mask + rng.normal(0, 40, size)).astype(np.int16), mask.astype(np.uint8)


def store(path, array, code="RAS", spacing_mm=None):
    """Writes [X, Y, Z] with AFFINE, turned to `code` and resampled to `spacing_mm` by SimpleITK."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, array, (1.0, 1.0, 1.5), AFFINE)
    image = sitk.ReadImage(str(path))
    if spacing_mm:
        size = [round(n * s / t) for n, s, t in zip(image.GetSize(), image.GetSpacing(), spacing_mm, strict=True)]
        how = sitk.sitkNearestNeighbor if array.dtype == np.uint8 else sitk.sitkLinear
        image = sitk.Resample(image, size, sitk.Transform(), how, image.GetOrigin(), spacing_mm, image.GetDirection())
    sitk.WriteImage(sitk.DICOMOrient(image, code), str(path))
    return path


def files(folder, n=4, n_masks=3):
    """scans/c<i>.nii.gz and masks/c<i>.nii.gz in mixed orientations and spacings."""
    grids = [("RAS", None), ("LPS", (1.2, 1.0, 1.5)), ("PIR", (1.0, 1.3, 1.2)), ("SAL", None), ("LPI", None)]
    for i in range(n):
        image, mask = ball(i)
        code, spacing_mm = grids[i % len(grids)]
        store(folder / "scans" / f"c{i}.nii.gz", image, code, spacing_mm)
        if i < n_masks:
            store(folder / "masks" / f"c{i}.nii.gz", mask, code, spacing_mm)
    return [f"--images={folder}/scans", f"--labels={folder}/masks"]


def run(*words):
    return prepare.main([*words, "--workers=1"])


def record(output):
    return json.loads((output / "prepare.json").read_text(encoding="utf-8"))


def statuses(output):
    return {case["case_id"]: case["status"] for case in record(output)["cases"]}


def digest(output, case_id):
    with h5py.File(output / case_id / "mri_norm2.h5") as file:
        return {name: file[name][()].tobytes() for name in file}


def trained_dice(output, workdir, steps=40):
    """Trains with the flagfile that was written and scores test.list."""
    words = [
        f"--flagfile={output}/train.flags", f"--workdir={workdir}", "--method=supervised", "--batch_size=2",
        "--labeled_per_batch=2", "--filters=2", "--normalisation=instance", "--patch_size=16,16,16",
        f"--max_steps={steps}", "--optimizer=adamw", "--learning_rate=0.02", "--eval_model=student", "--augment=paper",
    ]  # fmt: skip
    assert train.main(words) == 0
    metrics = workdir / "metrics.json"
    words = [f"--workdir={workdir}", f"--data_dir={output}", f"--cases={output}/test.list", f"--output={metrics}"]
    assert evaluate.main(words) == 0
    return json.loads(metrics.read_text(encoding="utf-8"))


def test_mixed_orientations_and_spacings_train_and_score(tmp_path, capsys):
    output = tmp_path / "data"
    assert run(*files(tmp_path), f"--output={output}", "--scoring=1") == 0
    printed = capsys.readouterr().out
    assert "PIR" in printed
    assert "2 labelled, 1 unlabelled, 1 scoring" in printed
    assert {path.name for path in output.iterdir()} >= {
        "c0", "train.list", "labelled.list", "unlabelled.list", "test.list", "train.flags", "prepare.json", "cases.png",
    }  # fmt: skip
    made = record(output)
    assert made["target"]["spacing_mm"] == [1.0, 1.0, 1.5]
    assert (output / "train.list").read_text(encoding="utf-8").split() == made["splits"]["labelled"] + ["c3"]
    # The first of them labelled, which is what train's --labeled=N means.
    assert f"--labeled={len(made['splits']['labelled'])}" in (output / "train.flags").read_text(encoding="utf-8")
    for i in range(3):
        volume = load_volume(find_case(output, f"c{i}"), with_label=outside_runs("a test"))
        assert volume.spacing_mm == (1.0, 1.0, 1.5)
        # The ball's middle in the world, from its mask as it was made.
        x, y, z = (AFFINE[:3, :3] @ np.argwhere(ball(i)[1]).mean(axis=0) + AFFINE[:3, 3]).tolist()
        found = volume.affine[:3, :3] @ np.argwhere(volume.label).mean(axis=0) + volume.affine[:3, 3]
        np.testing.assert_allclose(found, (x, y, z), atol=0.4)
    report = trained_dice(output, tmp_path / "run")
    assert [case["case_id"] for case in report["cases"]] == made["splits"]["scoring"]
    assert report["mean"]["dice"] > 0.8
    assert json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))["orientation"] == "RAS"


def test_nnunet_with_two_channels(tmp_path):
    for i in range(3):
        image, mask = ball(i)
        store(
            tmp_path / "imagesTr" / f"b_{i}_0000.nii.gz", np.random.default_rng(i).normal(0, 9, SIZE).astype(np.int16)
        )
        store(tmp_path / "imagesTr" / f"b_{i}_0001.nii.gz", image)
        store(tmp_path / "labelsTr" / f"b_{i}.nii.gz", mask)
    labels = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "ball": 1}}
    (tmp_path / "dataset.json").write_text(json.dumps(labels), encoding="utf-8")
    output = tmp_path / "data"
    assert run(f"--images={tmp_path}", f"--output={output}", "--scoring=1") == 0
    made = record(output)
    assert (made["channels"], made["class_names"]) == (2, {"1": "ball"})
    volume = load_volume(find_case(output, "b_0"), with_label=outside_runs("a test"))
    inside = volume.image[volume.label == 1].mean(axis=0)
    assert inside[1] > 250 > 20 > inside[0]
    assert trained_dice(output, tmp_path / "run")["mean"]["dice"] > 0.8


def store_channels(path, arrays):
    """Several [X, Y, Z] along a fourth axis of one NIfTI file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(np.stack([array.T for array in arrays]), isVector=False)
    sitk.WriteImage(image, str(path))


@pytest.mark.parametrize("named_by", ["dataset.json", "--fourth_axis"])
def test_modalities_along_a_fourth_axis(tmp_path, named_by):
    """As the Medical Segmentation Decathlon has them, and as the flag says where no dataset.json does."""
    folder = tmp_path / ("imagesTr" if named_by == "dataset.json" else "images")
    for i in range(2):
        image, _ = ball(i)
        noise = np.random.default_rng(i).normal(0, 9, SIZE).astype(np.int16)
        store_channels(folder / f"b_{i}.nii.gz", [noise, image])
    words = []
    if named_by == "dataset.json":
        modalities = {"modality": {"0": "FLAIR", "1": "T1w"}, "labels": {"0": "background", "1": "ball"}}
        (tmp_path / "dataset.json").write_text(json.dumps(modalities), encoding="utf-8")
    else:
        assert run(f"--images={tmp_path}", f"--output={tmp_path / 'refused'}") != 0
        words = ["--fourth_axis=channels"]
    output = tmp_path / "data"
    assert run(f"--images={tmp_path}", f"--output={output}", *words) == 0
    assert record(output)["channels"] == 2
    volume = load_volume(find_case(output, "b_0"), with_label=False)
    inside = volume.image[np.isclose(volume.image[..., 1], volume.image[..., 1].max())]
    assert inside[0, 1] > 250 > 50 > abs(volume.image[..., 0]).max()


def test_a_case_is_compressed_and_knows_its_source(tmp_path):
    output = tmp_path / "data"
    assert run(*files(tmp_path, n=1, n_masks=1), f"--output={output}") == 0
    scan, mask = tmp_path / "scans" / "c0.nii.gz", tmp_path / "masks" / "c0.nii.gz"
    with h5py.File(output / "c0" / "mri_norm2.h5") as file:
        assert {file[name].compression for name in ("image", "label")} == {"gzip"}
        assert str(scan) in file.attrs["source"]
        assert file.attrs["source_sha256"] == source_sha256(Source("c0", (scan,), mask))


def test_atrial_challenge_with_masks_of_0_and_255(tmp_path):
    for i, name in enumerate(["AX", "BX", "CX"]):
        image, mask = ball(i)
        store(tmp_path / "set" / name / "lgemri.nrrd", np.clip(image // 4 + 60, 0, 255).astype(np.uint8))
        store(tmp_path / "set" / name / "laendo.nrrd", mask * np.uint8(255))
        store(tmp_path / "set" / name / "lawall.nrrd", mask)
    output = tmp_path / "data"
    assert run(f"--images={tmp_path}/set", f"--output={output}", "--scoring=1", "--labeled=1") == 0
    made = record(output)
    assert made["n_classes"] == 2
    assert [len(made["splits"][name]) for name in ("labelled", "unlabelled", "scoring")] == [1, 1, 1]
    with h5py.File(output / "AX" / "mri_norm2.h5") as file:
        assert file["image"].dtype == np.uint8  # exact: nothing had to be resampled
        assert set(np.unique(file["label"])) == {0, 1}
        assert json.loads(file.attrs["source"])[0] == f"{tmp_path}/set/AX/lgemri.nrrd"
        # The mask lies on its organ, which is bright.
        inside = file["image"][()][file["label"][()] > 0]
        assert inside.min() > 100 > np.median(file["image"])
    # A young network learns little from one scan: that it trains and is scored is all that is asked.
    report = trained_dice(output, tmp_path / "run", steps=2)
    assert [case["case_id"] for case in report["cases"]] == record(output)["splits"]["scoring"]


def test_dicom_series_with_nifti_masks(tmp_path):
    image, mask = ball(0)
    folder = tmp_path / "scans" / "patient" / "study"
    folder.mkdir(parents=True)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    stored = sitk.ReadImage(str(store(tmp_path / "x.nii", image, "LPS")))
    for n in range(stored.GetDepth()):
        piece = stored[:, :, n : n + 1]
        position = stored.TransformIndexToPhysicalPoint((0, 0, n))
        for key, value in {
            "0020|000e": "1.2.2", "0008|0018": f"1.2.3.{n}", "0020|0013": str(n),
            "0020|0032": "\\".join(map(str, position)), "0020|0037": "1\\0\\0\\0\\1\\0",
        }.items():  # fmt: skip
            piece.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{99 - n}.dcm"))
        writer.Execute(piece)
    store(tmp_path / "masks" / "patient.nii.gz", mask, "LPS")
    output = tmp_path / "data"
    assert run(f"--images={tmp_path}/scans", f"--labels={tmp_path}/masks", f"--output={output}") == 0
    volume = load_volume(find_case(output, "patient"), with_label=outside_runs("a test"))
    np.testing.assert_array_equal(volume.image[..., 0], image)
    np.testing.assert_array_equal(volume.label, mask)
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-6)
    assert statuses(output) == {"patient": "written"}
    run(f"--images={tmp_path}/scans", f"--labels={tmp_path}/masks", f"--output={output}")
    assert statuses(output) == {"patient": "unchanged"}


def test_a_second_run_does_what_has_changed(tmp_path):
    words, output = files(tmp_path), tmp_path / "data"
    again = [*words, f"--output={output}", "--spacing_mm=1,1,1.5"]
    assert run(*again) == 0
    assert set(statuses(output).values()) == {"written"}
    before = {name: digest(output, name) for name in ("c0", "c1")}
    assert run(*again) == 0
    assert set(statuses(output).values()) == {"unchanged"}
    # Another mask for c0, a mask for c3, another image in c1.
    store(tmp_path / "masks" / "c0.nii.gz", np.roll(ball(0)[1], 2, axis=0))
    store(tmp_path / "masks" / "c3.nii.gz", ball(3)[1], "SAL")
    assert run(*again) == 0
    assert statuses(output) == {"c0": "written", "c1": "unchanged", "c2": "unchanged", "c3": "written"}
    after = {name: digest(output, name) for name in ("c0", "c1")}
    assert after["c0"]["image"] == before["c0"]["image"]
    assert after["c0"]["label"] != before["c0"]["label"]
    assert after["c1"] == before["c1"]
    assert run(*words, f"--output={output}", "--spacing_mm=1,1,1.5", "--crop=body") == 0
    assert set(statuses(output).values()) == {"written"}
    # A case that cannot be used any more leaves no file, one that is not there any more is named.
    (tmp_path / "scans" / "c2.nii.gz").write_bytes(b"nothing")
    (tmp_path / "scans" / "c1.nii.gz").unlink()
    assert run(*words, f"--output={output}", "--spacing_mm=1,1,1.5", "--crop=body") == 1
    assert statuses(output) == {"c0": "unchanged", "c2": "skipped", "c3": "unchanged"}
    assert not (output / "c2" / "mri_norm2.h5").exists()
    assert "cases of earlier runs" in " ".join(record(output)["notes"])
    assert (output / "train.list").read_text(encoding="utf-8").split() == record(output)["splits"]["labelled"]


def test_the_label_moves_neither_image_nor_crop(tmp_path):
    image, mask = ball(0)
    store(tmp_path / "scans" / "a.nii.gz", image, "PIR")
    made = []
    for number, of_run in enumerate((mask, np.roll(mask, 4, axis=1), None)):
        output = tmp_path / f"data{number}"
        words = [f"--images={tmp_path}/scans", f"--output={output}", "--crop=body", "--spacing_mm=1.1,1.2,1.3"]
        if of_run is not None:
            store(tmp_path / f"masks{number}" / "a.nii.gz", of_run, "PIR")
            words.append(f"--labels={tmp_path}/masks{number}")
        assert run(*words) == 0
        with h5py.File(output / "a" / "mri_norm2.h5") as file:
            made.append((file["image"][()].tobytes(), file.attrs["affine"].tobytes()))
        made[-1] += (str(record(output)["cases"][0]["prepared"]["crop_vox"]),)
    assert made[0] == made[1] == made[2]


def test_bad_cases_are_left_out_and_named(tmp_path, capsys):
    words, output = files(tmp_path, n=5, n_masks=3), tmp_path / "data"
    store(tmp_path / "masks" / "c1.nii.gz", np.zeros(SIZE, np.uint8), "LPS", (1.2, 1.0, 1.5))
    (tmp_path / "scans" / "copy_of_c3.nii.gz").write_bytes((tmp_path / "scans" / "c3.nii.gz").read_bytes())
    store(tmp_path / "scans" / "flat.nii.gz", ball(9)[0][:, :, :1])
    strict = [*words, f"--output={output}", "--strict"]
    assert run(*strict) == 1
    error = capsys.readouterr().err
    for name in ("masks/c1.nii.gz", "copy_of_c3.nii.gz", "flat.nii.gz"):
        assert name in error
    assert [path.name for path in output.iterdir()] == [".lock"]
    assert run(*words, f"--output={output}") == 1
    error = capsys.readouterr().err
    assert "error: 3 of 7 cases were left out" in error
    assert "copy_of_c3.nii.gz, whose voxels are those of" in error
    assert [name for name, status in statuses(output).items() if status == "written"] == ["c0", "c2", "c3", "c4"]
    assert run(*words, f"--output={output}", "--allow_empty_masks") == 1
    assert statuses(output)["c1"] == "written"


def test_processes_give_the_same_files(tmp_path):
    words = files(tmp_path, n=3)
    assert run(*words, f"--output={tmp_path}/one") == 0
    assert prepare.main([*words, f"--output={tmp_path}/two", "--workers=2"]) == 0
    for name in ("c0", "c1", "c2"):
        assert digest(tmp_path / "one", name) == digest(tmp_path / "two", name)
    lists = [(tmp_path / name / "train.list").read_text(encoding="utf-8") for name in ("one", "two")]
    assert lists[0] == lists[1]


def test_a_killed_run_leaves_whole_files_and_is_made_up_for(tmp_path):
    words, output = (
        [*files(tmp_path, n=12, n_masks=2), f"--output={tmp_path}/data", "--spacing_mm=0.4"],
        tmp_path / "data",
    )
    words[-1] = "--spacing_mm=0.4,0.4,0.4"
    process = subprocess.Popen(
        [sys.executable, "-m", "semisam_tf.prepare", *words, "--workers=1"], stderr=subprocess.DEVNULL
    )
    while not list(output.glob("*/mri_norm2.h5")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    whole = sorted(path.parent.name for path in output.glob("*/mri_norm2.h5"))
    assert 0 < len(whole) < 12
    assert not record(output)["finished"]
    for name in whole:
        load_volume(find_case(output, name), with_label=False)
    (output / whole[0] / ".partial.1.mri_norm2.h5").touch()
    assert run(*words) == 0
    assert {name for name, status in statuses(output).items() if status == "unchanged"} == set(whole)
    assert not list(output.rglob("*.partial.*"))


def folder_of(output):
    """Every file of a data folder that is not hidden, by its name in it."""
    paths = (path for path in sorted(output.rglob("*")) if path.is_file())
    names = {path.relative_to(output): path.read_bytes() for path in paths}
    return {str(name): content for name, content in names.items() if not any(p.startswith(".") for p in name.parts)}


def assert_same_folders(shared, alone):
    """All of the same bytes but what names the folder, and which cases the last call found there already."""
    received, expected = folder_of(shared), folder_of(alone)
    assert received.keys() == expected.keys()
    summaries = [json.loads(files.pop("prepare.json")) for files in (received, expected)]
    for summary, output in zip(summaries, (shared, alone), strict=True):
        assert summary["settings"].pop("output") == str(output)
        for case in summary["cases"]:
            assert case.pop("status") in ("written", "unchanged", "skipped")
    assert summaries[0] == summaries[1]
    assert received.pop("train.flags").replace(b"shared", b"alone") == expected.pop("train.flags")
    for name, content in expected.items():
        assert received[name] == content, name


@pytest.mark.parametrize("order", ["12", "21"])
def test_shards_and_a_last_call_make_what_one_run_makes(tmp_path, capsys, order):
    words = [*files(tmp_path, n=6, n_masks=4), "--labeled=2", "--scoring=1"]
    (tmp_path / "scans" / "c5.nii.gz").write_bytes(b"nothing")
    assert run(*words, f"--output={tmp_path}/alone") == 1
    shared = tmp_path / "shared"
    words.append(f"--output={shared}")
    capsys.readouterr()
    codes = {number: run(*words, f"--shard={number}/2") for number in order}
    # The bad scan is the second shard's.
    assert codes == {"1": 0, "2": 1}
    printed = capsys.readouterr()
    assert "Shard 1/2: 3 written\n" in printed.out
    assert "Shard 2/2: 1 skipped, 2 written\n" in printed.out
    assert printed.err.count("c5: ") == 1
    made = {path: path.stat().st_mtime_ns for path in shared.glob("*/mri_norm2.h5")}
    assert len(made) == 5
    assert record(shared) == {"semisam_tf": record(tmp_path / "alone")["semisam_tf"], "finished": False}
    assert not list(shared.glob("*.list"))
    assert run(*words) == 1
    assert set(statuses(shared).values()) == {"unchanged", "skipped"}
    assert {path: path.stat().st_mtime_ns for path in shared.glob("*/mri_norm2.h5")} == made
    assert_same_folders(shared, tmp_path / "alone")
    assert not (shared / ".inspected").exists()


def test_a_shard_takes_over_what_the_others_have_read(tmp_path, monkeypatch):
    words = [*files(tmp_path, n=5, n_masks=3), f"--output={tmp_path}/shared"]
    read = []
    facts = tasks.case_facts
    monkeypatch.setattr(tasks, "case_facts", lambda source, *rest: read.append(source.case_id) or facts(source, *rest))
    assert run(*words, "--shard=2/3") == 0
    # Alone it has to read all, its own first.
    assert read == ["c1", "c4", "c2", "c0", "c3"]
    assert run(*words, "--shard=1/3") == 0
    assert run(*words, "--shard=3/3") == 0
    assert len(read) == 5
    # What has changed since is read again, and a note that is damaged.
    store(tmp_path / "scans" / "c2.nii.gz", ball(20)[0], "PIR", (1.0, 1.3, 1.2))
    (tmp_path / "shared" / ".inspected" / "c0.json").write_text("{", encoding="utf-8")
    (tmp_path / "shared" / "c0" / "mri_norm2.h5").unlink()
    assert run(*words) == 0
    assert read[5:] == ["c0", "c2"]
    assert {name for name, status in statuses(tmp_path / "shared").items() if status == "written"} == {"c0", "c2"}


def test_a_killed_shard_leaves_whole_files_and_is_made_up_for(tmp_path):
    words = [*files(tmp_path, n=12, n_masks=2), "--spacing_mm=0.4,0.4,0.4"]
    shared = tmp_path / "shared"
    command = [sys.executable, "-m", "semisam_tf.prepare", *words, f"--output={shared}", "--workers=1"]
    first, second = (subprocess.Popen([*command, f"--shard={i}/2"], stderr=subprocess.DEVNULL) for i in (1, 2))
    of_second = sorted(f"c{i}" for i in range(12))[1::2]
    while not any((shared / name / "mri_norm2.h5").exists() for name in of_second):
        assert second.poll() is None
        time.sleep(0.01)
    os.kill(second.pid, signal.SIGKILL)
    second.wait()
    assert first.wait() == 0
    whole = sorted(path.parent.name for path in shared.glob("*/mri_norm2.h5"))
    assert {*whole} - {*of_second} == {f"c{i}" for i in range(12)} - {*of_second}
    assert 0 < len({*whole} & {*of_second}) < 6
    for name in whole:
        load_volume(find_case(shared, name), with_label=False)
    assert run(*words, f"--output={shared}") == 0
    assert run(*words, f"--output={tmp_path}/alone") == 0
    assert_same_folders(shared, tmp_path / "alone")
    assert not list(shared.rglob("*.partial.*"))


def test_a_shard_leaves_alone_what_another_is_writing(tmp_path):
    words, shared = [*files(tmp_path, n=2), f"--output={tmp_path}/shared"], tmp_path / "shared"
    assert run(*words, "--shard=1/2") == 0
    own, of_other = shared / "c0" / ".partial.0.mri_norm2.h5", shared / "c1" / ".partial.0.mri_norm2.h5"
    of_any = shared / ".partial.0.prepare.json"
    of_other.parent.mkdir()
    for path in (own, of_other, of_any):
        path.touch()
    assert run(*words, "--shard=1/2") == 0
    assert [path.exists() for path in (own, of_other, of_any)] == [False, True, True]
    assert run(*words) == 0
    assert not list(shared.rglob("*.partial.*"))


@pytest.mark.parametrize("shard", ["0/4", "5/4", "a/b"])
def test_a_shard_that_cannot_be_is_refused(tmp_path, capsys, shard):
    assert run(*files(tmp_path, n=1), f"--output={tmp_path}/data", f"--shard={shard}") == 2
    assert "--shard: expected i/n" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_somebody_elses_folder_is_left_alone(tmp_path, capsys):
    words = files(tmp_path, n=2)
    assert run(*words, f"--output={tmp_path}") == 1
    assert "which holds other files (masks, scans)" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["masks", "scans"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labeled=9"], "--labeled: expected at most 3"),
        (["--label_map=2:1"], "Expected only the values [0, 2]"),
        (["--spacing_mm=1"], "--spacing_mm"),
        (["--scoring=absent.list"], "--scoring: expected a number"),
    ],
)
def test_flags_that_do_not_fit_the_data(tmp_path, capsys, words, message):
    assert run(*files(tmp_path), f"--output={tmp_path}/data", *words) > 0
    assert message in capsys.readouterr().err
    assert not list((tmp_path / "data").glob("*/mri_norm2.h5"))
