"""Which scans are labelled, which are not, and which are kept out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from absl import logging

from semisam_tf.config import Config
from semisam_tf.options import OptionError


@dataclass(frozen=True)
class Split:
    """Case names for training: `labelled` in the order given, `unlabelled` in the order of the list."""

    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]


def read_cases(path: str | os.PathLike[str]) -> list[str]:
    """Reads a case list: one name per line; blank lines and lines that start with # are ignored.

    Raises:
        FileNotFoundError: No such file.
        ValueError: No names, or a name twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"Expected a case list, one name per line. Received: {path}, which does not exist.")
    lines = (line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
    cases = [line for line in lines if line and not line.startswith("#")]
    if not cases:
        raise ValueError(f"Expected at least one case name in {path}, one per line. Received: an empty list.")
    _refuse_duplicates(cases, str(path))
    return cases


def make_split(cases: Sequence[str], labelled: int | Sequence[str], excluded: Sequence[str] = ()) -> Split:
    """Splits a case list into labelled and unlabelled scans.

    Args:
        cases: All cases, in the list's order.
        labelled: N for the first N of `cases` as given (the field's convention), or the names themselves.
        excluded: Names kept out of training wholly. Names that are not in the list are logged as a warning, since
            the same file may serve several lists.

    Raises:
        ValueError: N is not in 1..len(cases); a labelled name is not in the list, is named twice, or is excluded.
            The first N are NOT shifted around an excluded case: "4 labelled" must mean the same scans in every run.
    """
    cases = list(cases)
    _refuse_duplicates(cases, "the case list")
    if isinstance(labelled, int):
        if not 1 <= labelled <= len(cases):
            raise ValueError(
                f"Expected 1 <= labelled <= {len(cases)}, the number of listed cases; change --labeled. "
                f"Received: labelled={labelled}."
            )
        chosen = cases[:labelled]
    else:
        chosen = list(labelled)
        _refuse_duplicates(chosen, "the labelled cases")
        missing = [case for case in chosen if case not in set(cases)]
        if missing or not chosen:
            raise ValueError(
                "Expected at least one labelled case, all of them in the case list. "
                f"Received: {chosen}; not in the list: {missing}."
            )
    unknown = sorted(set(excluded) - set(cases))
    if unknown:
        logging.warning("Excluded cases that are not in the case list (nothing to exclude): %s", ", ".join(unknown))
    both = [case for case in chosen if case in set(excluded)]
    if both:
        raise ValueError(
            "Expected labelled cases that are not excluded. Received: excluded and labelled: "
            f"{', '.join(both)}. Label fewer cases, or take these out of --exclude_cases."
        )
    dropped = set(chosen) | set(excluded)
    return Split(tuple(chosen), tuple(case for case in cases if case not in dropped))


def split_of(config: Config) -> Split:
    """Which cases are labelled and which are not, from the lists and flags. Opens no scan."""
    train_list = Path(config.train_list or Path(config.data_dir) / "train.list")
    if not train_list.is_file():
        raise OptionError(
            f"Expected the training cases in {train_list}, one name a line. Write it, or set --train_list."
        )
    excluded = read_cases(config.exclude_cases) if config.exclude_cases else []
    labelled = int(config.labeled) if config.labeled.isdigit() else read_cases(config.labeled)
    return make_split(read_cases(train_list), labelled, excluded)


def _refuse_duplicates(cases: Sequence[str], where: str) -> None:
    repeated = sorted({case for case in cases if cases.count(case) > 1})
    if repeated:
        raise ValueError(f"Expected each case once in {where}. Received more than once: {', '.join(repeated)}.")
