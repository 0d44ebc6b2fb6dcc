"""What a check found, one line each: `ok`, `warn` or `fail`, and the fix. Imports nothing but the standard library."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from typing import TextIO

OK, WARN, FAIL = "ok", "warn", "fail"
_RED, _YELLOW, _GREEN, _PLAIN = "\033[31m", "\033[33m", "\033[32m", "\033[0m"
_COLOURS = {OK: _GREEN, WARN: _YELLOW, FAIL: _RED}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of a report.

    Attributes:
        status: OK, WARN or FAIL.
        subject: What was looked at, a word or two.
        found: What there is.
        fix: What to do about it; empty where there is nothing to do.
        alarm: The whole line is shown in red, whatever its status.
    """

    status: str
    subject: str
    found: str
    fix: str = ""
    alarm: bool = False

    def line(self, colour: bool = False) -> str:
        """The finding as one line, without its end."""
        # Other programs' messages may have several lines and colours of their own.
        text = " ".join(f"{self.found}{f' -> {self.fix}' if self.fix else ''}".split())
        text = "".join(character for character in text if character.isprintable())
        status = f"{self.status:<4}"
        if not colour:
            return f"{status}  {self.subject:<13} {text}"
        if self.alarm:
            return f"{_RED}{status}  {self.subject:<13} {text}{_PLAIN}"
        return f"{_COLOURS[self.status]}{status}{_PLAIN}  {self.subject:<13} {text}"


def failed(findings: Iterable[Finding]) -> bool:
    """Whether any finding is a failure."""
    return any(finding.status == FAIL for finding in findings)


def wants_colour(stream: TextIO) -> bool:
    """Whether `stream` is a terminal, and its user has not said NO_COLOR (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def red(text: str, colour: bool) -> str:
    """`text` in red, where colours are wanted."""
    return f"{_RED}{text}{_PLAIN}" if colour else text
