"""Which files make a case, in every layout that is recognised. Nothing is opened, so most files are empty here."""

import json

import pytest

from semisam_tf.preparation.layouts import find_sources


def make(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def summary(found, root):
    """case_id -> image names and label name, relative to `root`."""

    def relative(path):
        return None if path is None else path.relative_to(root).as_posix()

    return {s.case_id: ([relative(path) for path in s.images], relative(s.label)) for s in found.sources}


NNUNET_JSON = {
    "channel_names": {"0": "T1", "1": "FLAIR"},
    "labels": {"background": 0, "core": 1, "ring": 2},
    "file_ending": ".nii.gz",
}


def test_nnunet_channels_in_order_and_cases_without_mask(tmp_path):
    make(
        tmp_path, "imagesTr/b_0001.nii.gz", "imagesTr/b_0000.nii.gz", "imagesTr/a_0000.nii.gz",
        "imagesTr/a_0001.nii.gz", "labelsTr/a.nii.gz",
    )  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(NNUNET_JSON), encoding="utf-8")
    found = find_sources(str(tmp_path))
    assert found.layout == "nnU-Net"
    assert summary(found, tmp_path) == {
        "a": (["imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz"], "labelsTr/a.nii.gz"),
        "b": (["imagesTr/b_0000.nii.gz", "imagesTr/b_0001.nii.gz"], None),
    }
    assert found.dataset.channel_names == ("T1", "FLAIR")
    assert found.dataset.label_names == ((0, "background"), (1, "core"), (2, "ring"))


def test_a_missing_channel_is_a_problem_of_its_case(tmp_path):
    make(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "imagesTr/b_0000.nii.gz")
    found = find_sources(str(tmp_path))
    assert list(summary(found, tmp_path)) == ["a"]
    (problem,) = found.problems
    assert problem.case_id == "b"
    assert "imagesTr/b_0000.nii.gz; there is none ending in _0001" in problem.reason


def test_scoring_cases_are_those_of_images_ts_with_labels_ts(tmp_path):
    make(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTs/z_0000.nii.gz", "imagesTs/y_0000.nii.gz", "labelsTs/z.nii.gz")
    found = find_sources(str(tmp_path))
    assert {s.case_id: s.is_scoring for s in found.sources} == {"a": False, "z": True}
    assert [p.case_id for p in found.problems] == ["y"]


def test_images_ts_without_masks_is_left_out_aloud(tmp_path):
    make(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTs/z_0000.nii.gz")
    found = find_sources(str(tmp_path))
    assert list(summary(found, tmp_path)) == ["a"]
    assert "imagesTs is left out" in found.notes[0]
    both = find_sources(f"{tmp_path}/imagesTr,{tmp_path}/imagesTs")
    assert list(summary(both, tmp_path)) == ["a", "z"]


def test_decathlon_names_that_are_not_channels(tmp_path):
    make(tmp_path, "imagesTr/la_003.nii.gz", "imagesTr/._la_003.nii.gz", "labelsTr/la_003.nii.gz")
    (tmp_path / "dataset.json").write_text(
        json.dumps({"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "left atrium"},
                    "training": [{"image": "./imagesTr/la_003.nii.gz", "label": "./labelsTr/la_003.nii.gz"},
                                 {"image": "./imagesTr/la_004.nii.gz", "label": "./labelsTr/la_004.nii.gz"}]})
    , encoding="utf-8")  # fmt: skip
    found = find_sources(str(tmp_path))
    assert found.layout == "Medical Segmentation Decathlon"
    assert summary(found, tmp_path) == {"la_003": (["imagesTr/la_003.nii.gz"], "labelsTr/la_003.nii.gz")}
    assert found.dataset.label_names == ((0, "background"), (1, "left atrium"))
    assert "lists 1 scans that are not there: la_004" in found.notes[0]


def test_four_digits_are_no_channels_where_no_case_has_the_first(tmp_path):
    make(tmp_path, "imagesTr/la_0003.nii.gz", "imagesTr/la_0004.nii.gz")
    found = find_sources(str(tmp_path))
    assert found.layout == "Medical Segmentation Decathlon"
    assert list(summary(found, tmp_path)) == ["la_0003", "la_0004"]


@pytest.mark.parametrize(
    ("names", "images", "labels", "channels", "expected"),
    [
        (["x/lgemri.nrrd", "x/laendo.nrrd", "x/lawall.nrrd", "y/lgemri.nrrd"], "", "", (),
         {"x": (["x/lgemri.nrrd"], "x/laendo.nrrd"), "y": (["y/lgemri.nrrd"], None)}),
        (["x/image.mha", "x/label.nii.gz", "notes/a.txt"], "", "", (), {"x": (["x/image.mha"], "x/label.nii.gz")}),
        (["images/x.nii.gz", "images/y.nii", "labels/y.nrrd"], "", "", (),
         {"x": (["images/x.nii.gz"], None), "y": (["images/y.nii"], "labels/y.nrrd")}),
        (["s/x_ct.nii.gz", "s/y_ct.nii.gz", "s/y_seg.nii.gz"], "s/*_ct.nii.gz", "s/*_seg.nii.gz", (),
         {"x_ct": (["s/x_ct.nii.gz"], None), "y_ct": (["s/y_ct.nii.gz"], "s/y_seg.nii.gz")}),
        (["s/x.nii.gz", "s/y.nii.gz", "s/y_seg.nii.gz"], "s", "s/*_seg.nii.gz", (),
         {"x": (["s/x.nii.gz"], None), "y": (["s/y.nii.gz"], "s/y_seg.nii.gz")}),
        (["x/ct.nii.gz", "x/organ.nii.gz", "y/ct.nii.gz"], "*/ct.nii.gz", "*/organ.nii.gz", (),
         {"x": (["x/ct.nii.gz"], "x/organ.nii.gz"), "y": (["y/ct.nii.gz"], None)}),
        (["B1/B1_t1.nii.gz", "B1/B1_t1ce.nii.gz", "B1/B1_seg.nii.gz"], "", "*/*_seg.nii.gz", ("_t1ce", "_t1"),
         {"B1": (["B1/B1_t1ce.nii.gz", "B1/B1_t1.nii.gz"], "B1/B1_seg.nii.gz")}),
        (["x/t1.nii", "x/t2.nii", "x/label.nii"], "", "", ("t1", "t2"),
         {"x": (["x/t1.nii", "x/t2.nii"], "x/label.nii")}),
        (["scan_0000.nii", "scan_0001.nii"], "", "", (),
         {"scan_0000": (["scan_0000.nii"], None), "scan_0001": (["scan_0001.nii"], None)}),
        (["p1/s1/mr.nii", "p1/s2/mr.nii", "p2/s1/mr.nii"], "**/mr.nii", "", (),
         {"p1_s1": (["p1/s1/mr.nii"], None), "p1_s2": (["p1/s2/mr.nii"], None), "p2_s1": (["p2/s1/mr.nii"], None)}),
        (["i/a.nii", "l/a.nii", "l/b.nii"], "i", "l", (), {"a": (["i/a.nii"], "l/a.nii")}),
    ],
    ids=["atrial challenge", "case folders", "images and labels", "two patterns", "one folder", "names of folders",
         "case folders with channels", "files called after channels", "numbers are no channels", "deep", "two folders"],
)  # fmt: skip
def test_layouts(tmp_path, names, images, labels, channels, expected):
    make(tmp_path, *names)
    found = find_sources(str(tmp_path / images), str(tmp_path / labels) if labels else "", channels)
    assert summary(found, tmp_path) == expected
    assert found.problems == []


def test_two_files_that_claim_to_be_one_case(tmp_path):
    found = find_sources(str(make(tmp_path, "x.nii.gz", "x.nrrd", "y.nrrd")))
    assert list(summary(found, tmp_path)) == ["y"]
    assert str(tmp_path / "x.nii.gz") in found.problems[0].reason
    assert str(tmp_path / "x.nrrd") in found.problems[0].reason


def test_a_folder_of_two_scans_asks_for_channels(tmp_path):
    found = find_sources(str(make(tmp_path, "x/t1.nii", "x/t2.nii")))
    assert "--channels" in found.problems[0].reason


def test_masks_of_other_names(tmp_path):
    make(tmp_path, "i/a.nii", "l/b.nii")
    with pytest.raises(ValueError, match=r"l/b.nii.*scans called a"):
        find_sources(str(tmp_path / "i"), str(tmp_path / "l"))
    with pytest.raises(FileNotFoundError, match="Expected masks at"):
        find_sources(str(tmp_path / "i"), str(tmp_path / "nothing"))


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="Received: nothing of that name or pattern"):
        find_sources(str(tmp_path / "*.nii"))
    with pytest.raises(FileNotFoundError, match="Received: none of them"):
        find_sources(str(make(tmp_path, "readme.txt")))


def test_symbolic_links_are_followed(tmp_path):
    make(tmp_path / "elsewhere", "scan.nii", "x/image.nii", "x/label.nii")
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.nii").symlink_to(tmp_path / "elsewhere" / "scan.nii")
    (data / "linked").symlink_to(tmp_path / "elsewhere" / "x")
    assert summary(find_sources(str(data)), data) == {
        "a": (["a.nii"], None),
        "linked": (["linked/image.nii"], "linked/label.nii"),
    }
    # A link to a folder above ends the search, not the program.
    (data / "empty").mkdir()
    (data / "empty" / "loop").symlink_to(data)
    assert "empty" in find_sources(str(data)).notes[0]


def test_a_name_that_leads_out_is_refused(tmp_path):
    found = find_sources(str(make(tmp_path, "c:x.nii", "good.nii")))
    assert list(summary(found, tmp_path)) == ["good"]
    assert "without '..' and not absolute" in found.problems[0].reason


@pytest.mark.parametrize("listed", ["../secret.nii.gz", "/etc/scan.nii.gz", "imagesTr/../../a.nii"])
def test_dataset_json_that_leads_out_is_refused(tmp_path, listed):
    make(tmp_path, "imagesTr/a.nii")
    (tmp_path / "dataset.json").write_text(
        json.dumps({"training": [{"image": listed, "label": "x"}]}), encoding="utf-8"
    )
    with pytest.raises(ValueError, match=r"dataset.json inside its own folder"):
        find_sources(str(tmp_path))


@pytest.mark.parametrize("text", ["{", "[]", '{"labels": 3}', '{"channel_names": {"x": "T1"}}', '{"training": [{}]}'])
def test_a_damaged_dataset_json_is_named(tmp_path, text):
    make(tmp_path, "imagesTr/a.nii")
    (tmp_path / "dataset.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"dataset\.json as nnU-Net"):
        find_sources(str(tmp_path))


def test_regions_and_ignore_of_nnunet_2(tmp_path):
    make(tmp_path, "imagesTr/a_0000.nii")
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    (tmp_path / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "CT"}, "labels": labels}), encoding="utf-8"
    )
    dataset = find_sources(str(tmp_path)).dataset
    assert dataset.label_names == ((0, "background"), (2, "core"), (3, "ignore"))
    assert dataset.ignore_value == 3
