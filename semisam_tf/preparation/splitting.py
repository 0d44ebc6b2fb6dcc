"""Which cases are labelled, unlabelled and kept for scoring."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from semisam_tf.data.splits import read_cases
from semisam_tf.data.volumes import checked_case_name
from semisam_tf.options import OptionError


@dataclass(frozen=True)
class Splits:
    """Names of cases. A case that has a mask but is not among the labelled ones is trained on without it."""

    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    scoring: tuple[str, ...]

    def of(self, case_id: str) -> str:
        """Name of the split that a case is in."""
        return next(name for name in ("labelled", "unlabelled", "scoring") if case_id in getattr(self, name))


def read_wish(text: str, flag: str) -> int | tuple[str, ...] | None:
    """A number of cases, or the names in a file; None for an empty flag.

    Raises:
        OptionError: Neither a number nor a file.
        ValueError: A name in the file leads out of the data folder; the file is empty or names a case twice.
    """
    if not text.strip():
        return None
    if text.strip().isdigit():
        return int(text)
    if not Path(text).is_file():
        raise OptionError(f"{flag}: expected a number of cases or a file of case names. Received: {text!r}.")
    names = read_cases(text)
    for name in names:
        checked_case_name(name)
    return tuple(names)


def split_cases(
    masked: Sequence[str],
    unmasked: Sequence[str],
    *,
    labeled: int | tuple[str, ...] | None,
    scoring: int | tuple[str, ...] | None,
    scoring_by_layout: Sequence[str] = (),
    refused: Sequence[str] = (),
    seed: int = 0,
) -> Splits:
    """Splits the prepared cases.

    Numbers draw at random: every case has a rank that depends on its name and the seed only, so that adding cases
    moves few of the others.

    Args:
        masked, unmasked: Cases with and without a mask.
        labeled, scoring: How many of the cases with a mask, or which. None: all that are left; those of the layout.
        scoring_by_layout: What the layout keeps for scoring: never trained on, unless `scoring` says so.
        refused: Cases that could not be prepared; a list may name them.

    Raises:
        OptionError: More cases than there are, unknown names, names without a mask, or a case in both lists.
    """
    ranked = sorted(masked, key=lambda case: hashlib.sha256(f"{seed}:{case}".encode()).digest())
    lists = _Lists(set(masked), set(unmasked), set(refused))
    if scoring is None:
        scored = [case for case in masked if case in set(scoring_by_layout)]
    elif isinstance(scoring, tuple):
        scored = lists.usable(scoring, "--scoring")
    else:
        promised = set(labeled) if isinstance(labeled, tuple) else set()
        scored = sorted(_first(scoring, [case for case in ranked if case not in promised], "--scoring"))
    kept = set(scored)
    left = [case for case in ranked if case not in kept]
    if labeled is None:
        chosen = left
    elif isinstance(labeled, tuple):
        chosen = lists.usable(labeled, "--labeled")
    else:
        chosen = _first(labeled, left, "--labeled")
    both = sorted(kept.intersection(chosen))
    if both:
        raise OptionError(f"Expected no case in both --labeled and --scoring. Received: {', '.join(both)}.")
    rest = sorted({*left, *unmasked} - set(chosen))
    return Splits(tuple(chosen), tuple(rest), tuple(scored))


@dataclass(frozen=True)
class _Lists:
    """What the names of a list may be."""

    masked: set[str]
    unmasked: set[str]
    refused: set[str]

    def usable(self, names: tuple[str, ...], flag: str) -> list[str]:
        """The names of a list that can be used; refused cases, which are reported anyway, are left out."""
        without = [name for name in names if name in self.unmasked]
        unknown = [name for name in names if name not in self.masked | self.unmasked | self.refused]
        if without or unknown:
            raise OptionError(
                f"{flag}: expected names of cases with a mask. Received: without a mask {without}, unknown {unknown}."
            )
        return [name for name in names if name in self.masked]


def _first(n: int, cases: list[str], flag: str) -> list[str]:
    if n > len(cases):
        raise OptionError(f"{flag}: expected at most {len(cases)}, the cases with a mask that are left. Received: {n}.")
    return cases[:n]
