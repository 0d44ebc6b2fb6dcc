"""Writes the tables of docs/ from the committed results: python docs/make_results.py.

A table stands between `<!-- name -->` and `<!-- end -->`; its text is what the benchmark prints of the results that are
there. A test holds that the pages are what this writes.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
# Page of docs/ -> name in it -> script, and which of the parts it prints, separated by empty lines; all where there is
# no number.
TABLES: dict[str, dict[str, tuple[str, int | None]]] = {
    "results.md": {
        "rows": ("la_table", 0),
        "gains": ("la_table", 1),
        "errors": ("errors", None),
        "choice": ("model_choice", None),
        "targets": ("sam_targets", None),
    },
    "speed.md": {
        "speed": ("speed", 0),
        "speed_rows": ("speed", 1),
        "speed_sam": ("speed", 2),
        "speed_rest": ("speed", 3),
        "speed_layers": ("speed", 4),
        "speed_passes": ("speed", 5),
        "speed_memory": ("speed", 6),
    },
    "scale.md": {"many_scans": ("many_scans", None)},
    "gpu.md": {"precision": ("precision", None)},
}


def printed(script: str) -> str:
    """What a benchmark prints of the results that are there."""
    command = [sys.executable, str(REPO / "benchmarks" / f"{script}.py"), "--print_only"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip("\n")


def read(page: str) -> str:
    """A page of docs/ as it is."""
    return (REPO / "docs" / page).read_text(encoding="utf-8")


def filled(page: str) -> str:
    """A page of docs/ with its tables made anew."""
    content = read(page)
    texts = {script: printed(script) for script in {script for script, _ in TABLES[page].values()}}
    for name, (script, part) in TABLES[page].items():
        text = texts[script] if part is None else texts[script].split("\n\n")[part]
        content, found = re.subn(
            rf"(<!-- {name} -->\n).*?(\n<!-- end -->)",
            lambda m, text=text: m[1] + text + m[2],
            content,
            flags=re.DOTALL,
        )
        if found != 1:
            raise ValueError(f"Expected one <!-- {name} --> with an <!-- end --> in docs/{page}. Received: {found}.")
    return content


if __name__ == "__main__":
    for name in TABLES:
        (REPO / "docs" / name).write_text(filled(name), encoding="utf-8")
