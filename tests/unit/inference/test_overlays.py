"""What is drawn of scans: the right cases, everybody's mask on its place, in the view that the file allows."""

import dataclasses

import numpy as np
import pytest

from semisam_tf.data.volumes import Volume
from semisam_tf.inference.evaluation import evaluate_cases
from semisam_tf.inference.overlays import mean_dice, sam_overlay, scored_overlays
from semisam_tf.sam.target import SamTarget

SIZE = (24, 20, 12)


def box(x, y, z):
    mask = np.zeros(SIZE, np.uint8)
    mask[x, y, z] = 1
    return mask


TRUTH = box(slice(4, 12), slice(6, 14), slice(3, 9))
STUDENT = box(slice(4, 8), slice(6, 14), slice(3, 9))


def volume(case_id="a", has_orientation=False, affine=None):
    image = TRUTH[..., None].astype(np.float32)
    affine = np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine
    return Volume(case_id, image, TRUTH, (1.0, 1.0, 2.0), affine, has_orientation)


def width_of(path):
    x = [float(pair.split(",")[0].lstrip("M")) for pair in path.replace("Z", "").split()]
    return max(x) - min(x)


def test_cuts_and_outlines_of_a_case():
    report = {"cases": [{"case_id": "a", "dice": 1.0}]}
    predictions = {"teacher": {"a": TRUTH}, "student": {"a": STUDENT}, "sam": {"other": TRUTH}}
    (overlay,) = scored_overlays(report, volume, predictions, 2)
    assert (overlay["case_id"], overlay["rank"]) == ("a", "only")
    # The middle of the truth: x 7.5, y 9.5, z 5.5, to the even voxel.
    assert [cut["name"] for cut in overlay["cuts"]] == ["xy, z = 6", "xz, y = 10", "yz, x = 8"]
    assert overlay["dice"] == {"teacher": 1.0, "student": pytest.approx(2 / 3)}
    outlines = overlay["cuts"][0]["outlines"]
    assert outlines.keys() == {"truth", "teacher", "student"}
    assert (width_of(outlines["truth"]), width_of(outlines["student"])) == (8.0, 4.0)
    # The student's half ends before the cut across x.
    assert overlay["cuts"][2]["outlines"]["student"] == ""


def test_sams_mask_is_drawn_but_has_no_dice():
    report = {"cases": [{"case_id": "a", "dice": 1.0}]}
    (overlay,) = scored_overlays(report, volume, {"teacher": {"a": TRUTH}, "sam": {"a": STUDENT}}, 2)
    assert overlay["dice"].keys() == {"teacher"}
    assert overlay["cuts"][0]["outlines"]["sam"]


def test_a_file_that_says_how_it_lies_is_shown_as_radiologists_look():
    stored = volume(has_orientation=True, affine=UP_RIGHT_FRONT)
    report = {"cases": [{"case_id": "a", "dice": 1.0}]}
    (overlay,) = scored_overlays(report, lambda _: stored, {"student": {"a": STUDENT}}, 2)
    first = overlay["cuts"][0]
    assert first["name"] == "axial, slice = 8"
    # Across is the file's second axis (1 mm, 8 voxels of the mask), up its third (2 mm, 6 voxels).
    assert width_of(first["outlines"]["truth"]) == 8.0
    assert first["outlines"]["student"] == ""  # it ends before slice 8 of the file's first axis
    assert (first["width_mm"], first["height_mm"]) == (20.0, 24.0)


def test_dice_of_the_drawn_cases_is_that_of_the_metrics():
    rng = np.random.default_rng(0)
    label, mask = (rng.integers(0, 3, (8, 8, 8)).astype(np.uint8) for _ in range(2))
    case = Volume("a", np.zeros((8, 8, 8, 1), np.float32), label, (1.0, 1.0, 1.0), np.eye(4))
    report = evaluate_cases(lambda _: mask, lambda _: case, ["a"], 3)
    assert mean_dice(mask, label, 3) == pytest.approx(report["cases"][0]["dice"], rel=1e-12)


def sam_target(marked, weight):
    probs = np.eye(2, dtype=np.float32)[marked.astype(int)]
    return SamTarget(probs, weight.astype(np.float32), {"prompts": 1.0}, probs)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_sams_slice_is_the_one_with_most_marked_and_taught_voxels(axis):
    marked, weight = np.zeros(SIZE, np.uint8), np.zeros(SIZE)
    view = (slice(None),) * axis
    marked[(*view, 4)], weight[(*view, 4)] = 1, 0.0  # marked wholly, but not taught
    marked[3:9, 3:9, 3:9] = 1
    weight[(*view, 5)], weight[(*view, 6)] = 0.25, 0.75
    marked[(*view, 5)] = 0
    overlay = sam_overlay(
        dataclasses.replace(volume(), label=None), STUDENT, sam_target(marked, weight),
        prompted_by="student", axis=axis, channel=0,
    )  # fmt: skip
    (cut,) = overlay["cuts"]
    assert cut["name"] == f"{('yz, x', 'xz, y', 'xy, z')[axis]} = 6"
    assert cut["outlines"].keys() == {"student", "sam"}
    assert (overlay["taught_share"], overlay["mean_weight"]) == (1.0, 0.75)
    assert width_of(cut["outlines"]["sam"]) == 6.0


DOWNWARDS = np.diag([1.0, 1.0, -2.0, 1.0])  # the third axis runs downwards and is reversed to be looked at
UP_RIGHT_FRONT = np.array([[0, 1.0, 0, 0], [0, 0, 2.0, 0], [1.0, 0, 0, 0], [0, 0, 0, 1]])  # it becomes the second


@pytest.mark.parametrize(
    ("affine", "name"), [(DOWNWARDS, f"axial, slice = {SIZE[2] - 1 - 2}"), (UP_RIGHT_FRONT, "coronal, slice = 2")]
)
def test_sams_slice_of_a_turned_scan_is_the_same_slice(affine, name):
    scan = dataclasses.replace(volume(has_orientation=True, affine=affine), label=None)
    marked, weight = np.zeros(SIZE, np.uint8), np.ones(SIZE)
    marked[3:9, 3:9, 2] = 1
    overlay = sam_overlay(scan, TRUTH, sam_target(marked, weight), prompted_by="teacher", axis=2, channel=0)
    (cut,) = overlay["cuts"]
    assert cut["name"] == name
    assert width_of(cut["outlines"]["sam"]) == 6.0
    assert cut["outlines"]["teacher"] == ""  # it begins in slice 3


def test_where_sam_said_nothing_the_prediction_is_shown():
    nothing = sam_target(np.zeros(SIZE, np.uint8), np.zeros(SIZE))
    overlay = sam_overlay(volume(), STUDENT, nothing, prompted_by="teacher", axis=2, channel=0)
    assert overlay["cuts"][0]["name"] == "xy, z = 3"
    assert (overlay["taught_share"], overlay["mean_weight"]) == (0.0, 0.0)
    assert overlay["cuts"][0]["outlines"]["sam"] == ""
