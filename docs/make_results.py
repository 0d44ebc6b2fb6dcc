"""Writes the tables of docs/results.md from the committed results: python docs/make_results.py.

A table stands between `<!-- name -->` and `<!-- end -->`; its text is what the benchmark prints of the results that are
there. A test holds that the page is what this writes.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
PAGE = REPO / "docs" / "results.md"
# Name in the page -> script, and which of the parts it prints, separated by empty lines; all where there is no number.
TABLES: dict[str, tuple[str, int | None]] = {
    "rows": ("la_table", 0),
    "gains": ("la_table", 1),
    "errors": ("errors", None),
    "choice": ("model_choice", None),
    "targets": ("sam_targets", None),
}


def printed(script: str) -> str:
    """What a benchmark prints of the results that are there."""
    command = [sys.executable, str(REPO / "benchmarks" / f"{script}.py"), "--print_only"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip("\n")


def filled(page: str) -> str:
    """The page with its tables made anew."""
    texts = {script: printed(script) for script in {script for script, _ in TABLES.values()}}
    for name, (script, part) in TABLES.items():
        text = texts[script] if part is None else texts[script].split("\n\n")[part]
        page, found = re.subn(
            rf"(<!-- {name} -->\n).*?(\n<!-- end -->)", lambda m, text=text: m[1] + text + m[2], page, flags=re.DOTALL
        )
        if found != 1:
            raise ValueError(f"Expected one <!-- {name} --> with an <!-- end --> in {PAGE}. Received: {found}.")
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
