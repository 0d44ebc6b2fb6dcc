"""README and docs/: commands, their flags and links exist, and the reference of flags is up to date."""

from __future__ import annotations

import functools
import re
import runpy
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent
PAGES = sorted([REPO / "README.md", REPO / "BUILD.md", *(REPO / "docs").glob("*.md")])
_COMMAND = re.compile(r"python -m ((?:semisam_tf|export)[\w.]*)((?:\s+(?:--?[\w-]+(?:=\S*)?|[^\s`|;&)]+))*)")


@functools.cache
def make_flags():
    return runpy.run_path(str(REPO / "docs" / "make_flags.py"))


@functools.cache
def flags_of(command: str) -> frozenset[str]:
    """Flags that a command's --help lists."""
    return frozenset(re.findall(r"^\s+--(?:\[no\])?([\w-]+)", make_flags()["help_of"](command), re.MULTILINE))


def commands_in(text: str) -> list[tuple[str, list[str]]]:
    """(module, names of its flags) of every command in a page; a backslash joins lines."""
    joined = re.sub(r"\\\n\s*", "", text)
    found = []
    for line in joined.splitlines():
        for match in _COMMAND.finditer(line):
            flags = re.findall(r"(?:^|\s)--(?:no)?([\w-]+)", match.group(2).split("#")[0])
            found.append((match.group(1).rstrip("."), flags))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_and_its_flags_exist(page):
    unknown = []
    for module, flags in commands_in(page.read_text(encoding="utf-8")):
        if module not in make_flags()["COMMANDS"]:
            # Not for people: what runs in a process of its own.
            if not (REPO / (module.replace(".", "/") + ".py")).is_file():
                unknown.append(module)
            continue
        known = flags_of(module)
        for name in flags:
            if name not in known | {"help", "flagfile", ""} and f"no{name}" not in known:
                unknown.append(f"{module} --{name}")
    assert not unknown


def test_the_scan_finds_commands_and_would_find_a_wrong_flag():
    text = "    python -m semisam_tf.train --preset=cpu \\\n        --colour=red   # --comment\n"
    assert commands_in(text) == [("semisam_tf.train", ["preset", "colour"])]
    assert "preset" in flags_of("semisam_tf.train")
    assert "colour" not in flags_of("semisam_tf.train")
    assert sum(len(commands_in(page.read_text(encoding="utf-8"))) for page in PAGES) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_of_a_benchmark_exists(page):
    text = re.sub(r"\\\n\s*", "", page.read_text(encoding="utf-8"))
    unknown = []
    for script, words in re.findall(r"python (benchmarks/\w+\.py)((?:\s+--[\w-]+(?:=[^\s`]*)?)*)", text):
        source = (REPO / script).read_text(encoding="utf-8")
        # One may take another's flags over.
        for other in (REPO / "benchmarks").glob("*.py"):
            if re.search(rf"^(import|from) {other.stem}\b", source, re.MULTILINE):
                source += other.read_text(encoding="utf-8")
        for name in re.findall(r"--(?:no)?([\w-]+)", words):
            if not re.search(rf'DEFINE_\w+\(\s*"(no)?{name}"', source):
                unknown.append(f"{script} --{name}")
    assert not unknown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_page_of_docs_is_reachable_from_the_readme():
    seen, waiting = set(), [REPO / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
            waiting.append((page.parent / target).resolve())
    assert [page.name for page in (REPO / "docs").glob("*.md") if page not in seen] == []


def test_the_reference_of_flags_is_what_the_commands_say():
    assert (REPO / "docs" / "flags.md").read_text(encoding="utf-8") == make_flags()["reference"](), "run `make flags`"


@pytest.mark.parametrize("page", ["results.md", "speed.md"])
def test_the_tables_of_results_are_what_the_benchmarks_print(page):
    make_results = runpy.run_path(str(REPO / "docs" / "make_results.py"))
    assert page in make_results["TABLES"]
    assert make_results["read"](page) == make_results["filled"](page), "run docs/make_results.py"
