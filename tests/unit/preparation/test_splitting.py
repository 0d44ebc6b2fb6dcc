"""Which cases are labelled, unlabelled and kept for scoring."""

import pytest

from semisam_tf.options import OptionError
from semisam_tf.preparation.splitting import read_wish, split_cases

MASKED, UNMASKED = [f"m{i}" for i in range(6)], ["u0", "u1"]


def split(labeled=None, scoring=None, masked=MASKED, **kwargs):
    return split_cases(masked, UNMASKED, labeled=labeled, scoring=scoring, **kwargs)


def test_without_wishes_every_mask_is_used():
    splits = split()
    assert sorted(splits.labelled) == MASKED
    assert splits.unlabelled == ("u0", "u1")
    assert splits.scoring == ()


def test_numbers_draw_and_the_rest_is_unlabelled():
    splits = split(2, 3)
    assert (len(splits.labelled), len(splits.scoring)) == (2, 3)
    assert sorted((*splits.labelled, *splits.unlabelled, *splits.scoring)) == MASKED + UNMASKED
    assert {splits.of(case) for case in splits.labelled} == {"labelled"}
    assert split(2, 3) == splits
    assert any(split(2, 3, seed=seed) != splits for seed in range(1, 5))


def test_a_case_more_moves_few_others():
    many = [f"c{i}" for i in range(40)]
    before, after = split(masked=many, scoring=10), split(masked=[*many, "new"], scoring=10)
    assert len(set(before.scoring) - set(after.scoring)) <= 1


def test_lists():
    splits = split(("m5", "m0"), ("m3",))
    assert splits.labelled == ("m5", "m0")
    assert splits.scoring == ("m3",)
    assert splits.unlabelled == ("m1", "m2", "m4", "u0", "u1")
    # A number does not draw what a list has promised.
    for seed in range(8):
        assert not {"m5", "m0"} & set(split(("m5", "m0"), 4, seed=seed).scoring)


def test_what_the_layout_keeps_is_not_trained_on():
    splits = split(scoring_by_layout=["m1", "m4"])
    assert splits.scoring == ("m1", "m4")
    assert not {"m1", "m4"} & {*splits.labelled, *splits.unlabelled}


@pytest.mark.parametrize(
    ("labeled", "scoring", "message"),
    [
        (7, None, "--labeled: expected at most 6"),
        (4, 3, "--labeled: expected at most 3"),
        (None, 7, "--scoring: expected at most 6"),
        (("u0",), None, r"without a mask \['u0'\]"),
        (None, ("x",), r"unknown \['x'\]"),
        (("m1", "m2"), ("m2",), "no case in both"),
    ],
)
def test_wishes_that_cannot_be(labeled, scoring, message):
    with pytest.raises(OptionError, match=message):
        split(labeled, scoring)


def test_a_refused_case_may_be_listed():
    assert split(("m1", "bad"), refused=["bad"]).labelled == ("m1",)


def test_wishes_as_text(tmp_path):
    path = tmp_path / "cases.list"
    path.write_text("a\nb\n", encoding="utf-8")
    assert read_wish("", "--labeled") is None
    assert read_wish("3", "--labeled") == 3
    assert read_wish(str(path), "--labeled") == ("a", "b")
    with pytest.raises(OptionError, match="--labeled: expected a number of cases or a file"):
        read_wish("nothing.list", "--labeled")
    for name in ("../a", "/etc/a"):
        path.write_text(name, encoding="utf-8")
        with pytest.raises(ValueError, match=r"without '\.\.' and not absolute"):
            read_wish(str(path), "--labeled")
