"""Which class a value of a mask is."""

import numpy as np
import pytest

from semisam_tf.options import OptionError
from semisam_tf.preparation.checks import channel_problems, duplicate_problems, label_problems
from semisam_tf.preparation.classes import ClassMap, decide_classes
from semisam_tf.preparation.dataset_json import DatasetFacts
from semisam_tf.preparation.reading import CaseFacts
from semisam_tf.preparation.sources import Source


def decide(*values, label_map="", dataset=None):
    return decide_classes(label_map, dataset, {f"m{i}.nii": [str(v) for v in of] for i, of in enumerate(values)})


@pytest.mark.parametrize(
    ("values", "pairs", "n_classes"),
    [
        ([[0, 255], [0]], ((0, 0), (255, 1)), 2),
        ([[0, 1]], ((0, 0), (1, 1)), 2),
        ([[0, 1], [0, 2], [0, 3]], ((0, 0), (1, 1), (2, 2), (3, 3)), 4),
        ([[0]], ((0, 0),), 2),
        ([], ((0, 0),), 2),
    ],
)
def test_values_that_speak_for_themselves(values, pairs, n_classes):
    classes = decide(*values)
    assert classes.pairs == pairs
    assert classes.n_classes == n_classes


@pytest.mark.parametrize("values", [[[0, 1], [0, 255]], [[0, 1, 3]], [[0, 2, 3]], [[-1, 0]]])
def test_values_that_could_mean_anything_ask_for_the_flag(values):
    with pytest.raises(OptionError, match=rf"{values[-1][-1] or -1} in m{len(values) - 1}.nii.*--label_map"):
        decide(*values)


def test_the_flag_decides():
    classes = decide([0, 205], [420, 600, -3], label_map="205:1, 420:2,600:0,-3:1")
    assert classes.pairs == ((-3, 1), (0, 0), (205, 1), (420, 2), (600, 0))
    assert classes.n_classes == 3
    assert classes.unknown(["0", "205", "7", "-3"]) == [7]
    assert classes.class_vox({"0": 9, "-3": 2, "205": 5, "600": 4}) == {1: 7, 2: 0}
    values = np.array([[[0, 205, 420], [600, -3, 0]]], np.int16)
    np.testing.assert_array_equal(classes.apply(values), [[[0, 1, 2], [0, 1, 0]]])
    assert classes.apply(values).dtype == np.uint8


@pytest.mark.parametrize("text", ["1", "a:1", "1:1,1:2", "1:2", "1:0", "1:1,2:3", "1:300"])
def test_a_flag_that_cannot_be(text):
    with pytest.raises(OptionError, match="--label_map"):
        decide([0, 1], label_map=text)


def test_dataset_json_names_classes_that_few_masks_show():
    dataset = DatasetFacts(label_names=((0, "background"), (1, "core"), (2, "ring")))
    classes = decide([0, 2], dataset=dataset)
    assert classes.pairs == ((0, 0), (1, 1), (2, 2))
    assert classes.names == ((1, "core"), (2, "ring"))


def facts(label_vox, content="a", channels=1):
    return CaseFacts((2, 2, 2), (1, 1, 1), "RAS", channels, label_vox, "", content)


def test_masks_that_do_not_fit_the_classes():
    dataset = DatasetFacts(label_names=((0, "background"), (1, "core"), (2, "ignore")), ignore_value=2)
    classes = decide([0, 1, 2], dataset=dataset)
    cases = {
        Source("a", ("a.nii",), "good.nii"): facts({"0": 7, "1": 1}),
        Source("b", ("b.nii",), "ignored.nii"): facts({"0": 6, "1": 1, "2": 1}),
        Source("c", ("c.nii",), "empty.nii"): facts({"0": 8}),
        Source("d", ("d.nii",)): facts(None),
    }
    problems = label_problems(cases, classes, allow_empty_masks=False, ignore_value=2)
    assert [problem.case_id for problem in problems] == ["b", "c"]
    assert "only the values [0, 1] in the mask ignored.nii. Received: [2]; the ignore label" in problems[0].reason
    assert "foreground in the mask empty.nii" in problems[1].reason
    allowed = label_problems(cases, classes, allow_empty_masks=True, ignore_value=2)
    assert [problem.case_id for problem in allowed] == ["b"]


def test_a_mask_whose_only_value_is_mapped_to_background_is_empty():
    classes = ClassMap(((0, 0), (1, 1), (9, 0)))
    cases = {Source("a", ("a.nii",), "m.nii"): facts({"0": 1, "9": 7})}
    assert len(label_problems(cases, classes, allow_empty_masks=False, ignore_value=None)) == 1


def test_of_duplicates_the_one_with_a_mask_stays():
    cases = {
        Source("a", ("a.nii",)): facts(None, "same"),
        Source("b", ("b.nii",), "b_mask.nii"): facts({"1": 1}, "same"),
        Source("c", ("c.nii",)): facts(None, "other"),
        Source("d", ("d.nii",), "d_mask.nii"): facts({"1": 1}, "same"),
    }
    problems = duplicate_problems(cases)
    assert [problem.case_id for problem in problems] == ["d", "a"]
    assert "Received: a.nii, whose voxels are those of b.nii" in problems[1].reason


def test_the_usual_number_of_channels_stays():
    cases = {Source(name, (f"{name}.nii",)): facts(None, name, n) for name, n in (("a", 2), ("b", 1), ("c", 2))}
    (problem,) = channel_problems(cases)
    assert problem.reason == "Expected 2 channel(s) in b.nii, as in most scans. Received: 1."
    assert channel_problems({}) == []
