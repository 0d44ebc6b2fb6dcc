"""No label is opened without a line on record, and a record that was touched shows it."""

import json
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from semisam_tf.data import label_access
from semisam_tf.data.label_access import LEDGER_FILE, LabelLedger, outside_runs, read_ledger
from semisam_tf.data.volumes import CaseFiles, Volume, find_case, has_label, load_volume, save_volume_pair


@pytest.fixture
def ledger(tmp_path):
    return LabelLedger(tmp_path, "run1")


@pytest.fixture
def data(tmp_path):
    """`h5` and `pair` with label, `bare` without."""
    folder, label = tmp_path / "data", np.zeros((4, 5, 6), np.uint8)
    label[1:3] = 1
    for name in ("h5", "bare"):
        (folder / name).mkdir(parents=True)
        with h5py.File(folder / name / "mri_norm2.h5", "w") as file:
            file["image"] = np.ones((4, 5, 6), np.float32)
            if name == "h5":
                file["label"] = label
    scan = Volume("pair", np.ones((4, 5, 6, 1), np.float32), label, (1, 1, 1), np.eye(4))
    save_volume_pair(folder / "pair" / "image.nrrd", folder / "pair" / "label.nrrd", scan)
    return folder


def lines_of(folder):
    return (folder / LEDGER_FILE).read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("case", ["h5", "pair"])
def test_a_label_is_not_opened_without_a_purpose(data, case):
    for purpose in (True, None, "training"):
        with pytest.raises(ValueError, match=r"LabelLedger\(workdir, run_id\)\.access\(purpose\)"):
            load_volume(find_case(data, case), with_label=purpose, default_spacing_mm=(1, 1, 1))


@pytest.mark.parametrize(("case", "file"), [("h5", "mri_norm2.h5"), ("pair", "label.nrrd")])
def test_opening_a_label_is_recorded_and_opening_an_image_is_not(data, tmp_path, ledger, case, file):
    files = find_case(data, case)
    assert load_volume(files, with_label=False, default_spacing_mm=(1, 1, 1)).label is None
    assert read_ledger(tmp_path) is None
    assert load_volume(files, with_label=ledger.access("scoring"), default_spacing_mm=(1, 1, 1)).label.sum() == 60
    (opening,) = read_ledger(tmp_path).openings
    assert (opening.n, opening.case_id, opening.purpose, opening.run_id) == (1, case, "scoring", "run1")
    assert opening.file == str(data / case / file)
    assert opening.time.endswith("+00:00")
    assert opening.command


@pytest.mark.parametrize("case", ["h5", "pair"])
def test_the_line_comes_before_the_label_is_opened(data, tmp_path, ledger, case):
    if case == "h5":
        with h5py.File(data / case / "mri_norm2.h5", "r+") as file:
            file["label"][:] = 0
            del file["label"]
            file["label"] = np.zeros((2, 2, 2), np.uint8)
    else:
        (data / case / "label.nrrd").write_bytes(b"broken")
    with pytest.raises((ValueError, RuntimeError)):
        load_volume(find_case(data, case), with_label=ledger.access("training"), default_spacing_mm=(1, 1, 1))
    assert [o.case_id for o in read_ledger(tmp_path).openings] == [case]


@pytest.mark.parametrize("case", ["h5", "pair"])
def test_where_the_line_cannot_be_written_the_label_stays_closed(data, tmp_path, ledger, case, monkeypatch):
    (tmp_path / LEDGER_FILE).mkdir()
    monkeypatch.setattr("semisam_tf.data.volumes._checked_label", lambda *_: pytest.fail("the label was opened"))
    with pytest.raises(IsADirectoryError):
        load_volume(find_case(data, case), with_label=ledger.access("training"), default_spacing_mm=(1, 1, 1))


def test_a_label_that_is_not_there_is_no_opening(data, tmp_path, ledger):
    with pytest.raises(ValueError, match="dataset 'label'"):
        load_volume(find_case(data, "bare"), with_label=ledger.access("training"), default_spacing_mm=(1, 1, 1))
    assert read_ledger(tmp_path) is None


def test_labels_of_no_run_are_not_recorded(data, tmp_path):
    files = find_case(data, "pair")
    assert load_volume(files, with_label=outside_runs("test")).label is not None
    assert not list(tmp_path.rglob(LEDGER_FILE))


def test_has_label_looks_at_names_only(data, monkeypatch):
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda *_: pytest.fail("a dataset was read"))
    assert [has_label(find_case(data, case)) for case in ("h5", "bare", "pair")] == [True, False, True]
    assert not has_label(CaseFiles("x", data / "pair" / "image.nrrd", None, "flat"))
    (data / "bare" / "mri_norm2.h5").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"mri_norm2\.h5 is truncated"):
        has_label(find_case(data, "bare"))


def test_an_unknown_purpose_is_refused(ledger):
    with pytest.raises(ValueError, match=r"Expected a purpose of training, .*'peeking'"):
        ledger.access("peeking")


def test_a_resumed_run_appends_and_the_mark_counts(tmp_path, ledger):
    assert ledger.mark() == {"run_id": "run1", "entries": 0, "sha256": "0" * 64}
    ledger.append("a", Path("a.h5"), "training")
    first = ledger.mark()
    LabelLedger(tmp_path, "run1").append("b", Path("b.h5"), "training")
    reading = read_ledger(tmp_path)
    assert [o.case_id for o in reading.openings] == ["a", "b"]
    assert reading.faults == ()
    assert reading.fault_of(first, "run.json") == reading.fault_of(ledger.mark(), "run.json") == ""
    assert first["sha256"] == json.loads(lines_of(tmp_path)[0])["sha256"]


def append_many(folder: str, name: str) -> None:
    ledger = LabelLedger(folder, "run1")
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda i: ledger.append(f"{name}{i}", Path("x"), "training"), range(6)))


def test_threads_and_processes_write_one_chain(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=append_many, args=(str(tmp_path), name)) for name in "pq"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    reading = read_ledger(tmp_path)
    assert reading.faults == ()
    assert sorted(o.case_id for o in reading.openings) == sorted(f"{name}{i}" for name in "pq" for i in range(6))


def test_a_line_that_a_killed_process_left_is_no_fault_and_is_cut_off(tmp_path, ledger):
    ledger.append("a", Path("a"), "training")
    with (tmp_path / LEDGER_FILE).open("a", encoding="utf-8") as file:
        file.write('{"n": 2, "case')
    assert (len(read_ledger(tmp_path).openings), read_ledger(tmp_path).faults) == (1, ())
    assert ledger.mark()["entries"] == 1
    ledger.append("b", Path("b"), "training")
    reading = read_ledger(tmp_path)
    assert ([o.case_id for o in reading.openings], reading.faults) == (["a", "b"], ())


def tampered(lines, how):
    if how == "changed":
        return [lines[0], lines[1].replace('"case_id": "b"', '"case_id": "z"'), lines[2]]
    if how == "left out":
        return [lines[0], lines[2]]
    if how == "swapped":
        return [lines[1], lines[0], lines[2]]
    if how == "garbage":
        return [lines[0], "[]", lines[2]]
    entry = json.loads(lines[1]) | {"case_id": "z"}  # "forged": with a fitting sha256 of its own
    entry.pop("sha256")
    return [lines[0], json.dumps(entry | {"sha256": label_access._digest(entry)}), lines[2]]


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        ("changed", "line 2 was changed"),
        ("left out", "line 2 does not follow"),
        ("swapped", "line 1 does not follow"),
        ("garbage", "line 2 cannot be read"),
        ("forged", "line 3 does not follow"),
    ],
)
def test_a_touched_record_shows(tmp_path, ledger, how, fault):
    for case in "abc":
        ledger.append(case, Path(case), "training")
    assert read_ledger(tmp_path).faults == ()
    (tmp_path / LEDGER_FILE).write_text("\n".join(tampered(lines_of(tmp_path), how)) + "\n", encoding="utf-8")
    assert any(fault in found for found in read_ledger(tmp_path).faults)


def test_a_cut_record_does_not_fit_the_mark(tmp_path, ledger):
    for case in "abc":
        ledger.append(case, Path(case), "training")
    mark = ledger.mark()
    (tmp_path / LEDGER_FILE).write_text("\n".join(lines_of(tmp_path)[:2]) + "\n", encoding="utf-8")
    reading = read_ledger(tmp_path)
    assert reading.faults == ()
    assert reading.fault_of(mark, "run.json") == "run.json knows of 3 openings, the record has 2"
    ledger.append("d", Path("d"), "training")
    assert read_ledger(tmp_path).fault_of(mark, "run.json") == "line 3 is not the one that run.json knows of"


def test_nothing_is_added_to_what_is_no_record(tmp_path, ledger):
    (tmp_path / LEDGER_FILE).write_text("hello\n", encoding="utf-8")
    with pytest.raises(ValueError, match="Expected a record of opened labels"):
        ledger.append("a", Path("a"), "training")
