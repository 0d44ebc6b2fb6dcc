"""Who is labelled, who is not, who is kept out."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from semisam_tf.data.splits import Split, make_split, read_cases

CASES = ["c", "a", "e", "b", "d"]


def test_lists_skip_blanks_comments_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "train.list"
    path.write_bytes("\ufeffb\r\n\n# note\n  a  \n\t\nsite 1/c#2\n".encode())
    assert read_cases(path) == ["b", "a", "site 1/c#2"]


def test_lists_with_a_name_twice_or_no_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.list"
    path.write_text("a\nb\na\nb\nc\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"train\.list.*a, b"):
        read_cases(path)
    path.write_text("# nothing\n", encoding="utf-8")
    with pytest.raises(ValueError, match="at least one case"):
        read_cases(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_cases(tmp_path / "nowhere.list")


def test_the_first_n_are_labelled_and_the_rest_is_not() -> None:
    assert make_split(CASES, 2) == Split(("c", "a"), ("e", "b", "d"))
    assert make_split(CASES, 5) == Split(("c", "a", "e", "b", "d"), ())


def test_labelled_names_keep_their_order() -> None:
    assert make_split(CASES, ["d", "a"]) == Split(("d", "a"), ("c", "e", "b"))


def test_excluded_cases_are_in_neither_part() -> None:
    assert make_split(CASES, 1, ["d", "e"]) == Split(("c",), ("a", "b"))


def test_excluded_names_outside_the_list_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert make_split(CASES, 1, ["zzz", "d"]) == Split(("c",), ("a", "e", "b"))
    assert "zzz" in caplog.text
    assert " d" not in caplog.text


@pytest.mark.parametrize("labelled", [2, ["e", "a"]])
def test_an_excluded_labelled_case_is_an_error_not_a_shift(labelled: int | list[str]) -> None:
    with pytest.raises(ValueError, match=r"excluded and labelled: a\."):
        make_split(CASES, labelled, ["a"])


@pytest.mark.parametrize("labelled", [0, -1, 6])
def test_impossible_counts_are_refused(labelled: int) -> None:
    with pytest.raises(ValueError, match=f"labelled <= 5.*labelled={labelled}"):
        make_split(CASES, labelled)


@pytest.mark.parametrize(("labelled", "message"), [(["a", "x"], "x"), ([], "at least one"), (["a", "a"], "once")])
def test_impossible_names_are_refused(labelled: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_split(CASES, labelled)


def test_a_repeated_case_is_refused() -> None:
    with pytest.raises(ValueError, match="once in the case list"):
        make_split(["a", "b", "a"], 1)
