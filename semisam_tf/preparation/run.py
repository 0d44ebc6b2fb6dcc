"""Prepares a data folder: finds the cases, inspects them, brings them to one grid, and writes lists and summary."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
from absl import logging

from semisam_tf import __version__
from semisam_tf.atomic import sweep, write_json, write_lines
from semisam_tf.data.volumes import H5_NAME, checked_case_name
from semisam_tf.preparation.checks import channel_problems, duplicate_problems, label_problems
from semisam_tf.preparation.classes import ClassMap, decide_classes, parse_label_map
from semisam_tf.preparation.layouts import find_sources
from semisam_tf.preparation.reading import CaseFacts, ReadingOptions, plain
from semisam_tf.preparation.regridding import Target
from semisam_tf.preparation.settings import PrepareConfig, channel_endings, check, given_spacing, worker_count
from semisam_tf.preparation.sources import Found, Problem, Source
from semisam_tf.preparation.splitting import Splits, read_wish, split_cases
from semisam_tf.preparation.tasks import THUMBNAIL, Failure, Inspection, Writing, Written, inspect, write
from semisam_tf.preparation.thumbnails import Thumbnail, save_sheets
from semisam_tf.preparation.workers import Workers
from semisam_tf.shards import Shard, locked_for, parse_shard

RECORD_FILE = "prepare.json"
FLAG_FILE = "train.flags"
# Folder of what shards have found of the cases, until the last call.
NOTES = ".inspected"
LISTS = {"train.list": ("labelled", "unlabelled"), "labelled.list": ("labelled",), "unlabelled.list": ("unlabelled",),
         "test.list": ("scoring",)}  # fmt: skip


@dataclass
class _Cohort:
    """What is known so far. `facts` holds the cases that are good so far; the others are in `problems`."""

    config: PrepareConfig
    found: Found
    output: Path
    options: ReadingOptions
    workers: Workers
    shard: Shard | None = None
    facts: dict[Source, CaseFacts] = field(default_factory=dict)
    seen: dict[str, CaseFacts] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def drop(self, problems: list[Problem]) -> None:
        """Takes cases out."""
        self.problems += problems
        bad = {problem.case_id for problem in problems}
        self.facts = {source: facts for source, facts in self.facts.items() if source.case_id not in bad}

    def own(self) -> list[Source]:
        """The cases that this process writes, good or not."""
        return self.found.sources if self.shard is None else self.shard.share(self.found.sources)

    def note(self, case_id: str) -> Path | None:
        """Where shards tell each other what a case is; None without shards."""
        folder = self.output / NOTES
        return folder / f"{checked_case_name(case_id)}.json" if self.shard is not None or folder.is_dir() else None

    def path(self, case_id: str) -> Path:
        """A case's HDF5 file."""
        return self.output / checked_case_name(case_id) / H5_NAME


def prepare(config: PrepareConfig) -> dict[str, Any]:
    """Prepares the data folder.

    Returns:
        The contents of prepare.json: "cases" has an entry for each case, "problem" is None in those that are good.
        Of a shard only its own "cases"; it writes neither lists nor summary.

    Raises:
        OptionError: Flags that are wrong, or that the data need.
        FileNotFoundError, ValueError: No scans, no good ones, a bad one with --strict, or an output folder that holds
            something else.
        RuntimeError: Another process prepares this folder; a process was killed.
    """
    check(config)
    if config.label_map.strip():
        parse_label_map(config.label_map)
    wishes = {name: read_wish(getattr(config, name), f"--{name}") for name in ("labeled", "scoring")}
    found = find_sources(config.images, config.labels, channel_endings(config))
    logging.info("%s: %d cases, %d with a mask.", found.layout, len(found.sources) + len(found.problems),
                 sum(source.label is not None for source in found.sources))  # fmt: skip
    output, shard = Path(config.output), parse_shard(config.shard)
    _refuse_foreign(output)
    with locked_for(output, "--output", shard), Workers(worker_count(config)) as workers:
        options = _reading_options(config, found)
        cohort = _Cohort(config, found, output, options, workers, shard, problems=list(found.problems))
        _inspect_all(cohort)
        classes = _judge(cohort)
        split = _splitter(cohort, wishes)
        split()  # before hours of work: wishes that cannot be met
        target = _target(cohort, classes)
        # First: were this run killed, the record must not vouch for what is not there.
        write_json(output / RECORD_FILE, {"semisam_tf": __version__, "finished": False})
        written = _write_all(cohort, target)
        if shard is not None:
            return {"cases": _own_cases(cohort, written)}
        _remove_refused(cohort)
        report = _report(cohort, classes, target, written, split())
        _write_lists(output, report)
        save_sheets(output, _thumbnails(cohort, report))
        write_json(output / RECORD_FILE, report)
        if (output / NOTES).is_dir():
            shutil.rmtree(output / NOTES)
    return report


def _reading_options(config: PrepareConfig, found: Found) -> ReadingOptions:
    """How many channels a file may hold: as the flag says, else as dataset.json says where files are not split."""
    names = found.dataset.channel_names if found.dataset else ()
    split_in_files = any(len(source.images) > 1 for source in found.sources)
    of_file = 0 if config.fourth_axis == "channels" else 1 if split_in_files or not names else len(names)
    return ReadingOptions(config.default_spacing_mm, of_file)


def _refuse_foreign(output: Path) -> None:
    """A folder with anything in it but a data folder of ours is somebody's data."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"Expected a folder for --output. Received: {output}, a file.")
    entries = [path.name for path in output.iterdir() if not path.name.startswith(".")] if output.is_dir() else []
    if entries and RECORD_FILE not in entries:
        raise ValueError(
            f"Expected an empty folder, or one that this command wrote, for --output. Received: {output}, which holds "
            f"other files ({', '.join(sorted(entries)[:3])}); choose another folder."
        )


def _inspect_all(cohort: _Cohort) -> None:
    """What all cases are: the spacing, classes and split of each hang on the others, so that shards must know them too.

    What one shard has read it notes down for the others: those that run at the same time read each case about once.
    """
    sources, shard = cohort.found.sources, cohort.shard
    for folder in {cohort.path(source.case_id).parent for source in cohort.own()}:
        sweep(folder)
    if shard is None:
        sweep(cohort.output)
    in_turn = sources if shard is None else shard.own_first(sources)
    tasks = [Inspection(s, cohort.options, cohort.path(s.case_id), cohort.note(s.case_id)) for s in in_turn]
    answers = cohort.workers.each(inspect, tasks, _progress("Read", [s.case_id for s in in_turn]))
    answer_of = dict(zip(in_turn, answers, strict=True))
    for source in sources:
        answer = answer_of[source]
        if isinstance(answer, Failure):
            cohort.problems.append(Problem(source.case_id, source.images, source.label, answer.reason))
        else:
            cohort.facts[source] = cohort.seen[source.case_id] = answer


def _judge(cohort: _Cohort) -> ClassMap:
    """The classes; cases that do not fit the others are dropped."""
    config, dataset = cohort.config, cohort.found.dataset
    values_of = {str(s.label): facts.label_vox for s, facts in cohort.facts.items() if facts.label_vox is not None}
    classes = decide_classes(config.label_map, dataset, values_of)
    cohort.drop(
        label_problems(
            cohort.facts,
            classes,
            allow_empty_masks=config.allow_empty_masks,
            ignore_value=dataset.ignore_value if dataset else None,
        )
    )
    cohort.drop(channel_problems(cohort.facts))
    cohort.drop(duplicate_problems(cohort.facts))
    # Masks that are bad one and all mean a wrong flag; without one of them there is nothing to learn.
    no_mask_left = any(s.label for s in cohort.found.sources) and not any(s.label for s in cohort.facts)
    if cohort.problems and (config.strict or not cohort.facts or no_mask_left):
        reasons = "\n".join(f"  {problem.case_id}: {problem.reason}" for problem in cohort.problems)
        raise ValueError(f"{len(cohort.problems)} cases cannot be used, and nothing was prepared:\n{reasons}")
    return classes


def _splitter(cohort: _Cohort, wishes: dict[str, Any]) -> Callable[[], Splits]:
    """The split of the cases that are good when it is called."""

    def split() -> Splits:
        return split_cases(
            [source.case_id for source in cohort.facts if source.label is not None],
            [source.case_id for source in cohort.facts if source.label is None],
            **wishes,
            scoring_by_layout=[source.case_id for source in cohort.facts if source.is_scoring],
            refused=[problem.case_id for problem in cohort.problems],
            seed=cohort.config.seed,
        )

    return split


def _target(cohort: _Cohort, classes: ClassMap) -> Target:
    config = cohort.config
    spacing_mm: tuple[float, ...] | None = given_spacing(config)
    if config.spacing_mm == "median":
        columns = zip(*(facts.spacing_in(config.orientation) for facts in cohort.facts.values()), strict=True)
        # As a person would write it down: headers keep float32, 0.625000024.
        spacing_mm = tuple(float(f"{statistics.median(column):.5g}") for column in columns)
        logging.info("Median spacing: %s mm.", "x".join(map(str, spacing_mm)))
    return Target(config.orientation, spacing_mm, config.crop, config.crop_margin_mm, classes.pairs,
                  keep_integers=config.image_dtype == "auto")  # fmt: skip


def _write_all(cohort: _Cohort, target: Target) -> dict[str, Written]:
    """Writes the good cases, of a shard its own; those that cannot be written after all are dropped."""
    own = set(cohort.own())
    tasks = [
        Writing(source, cohort.options, cohort.path(source.case_id), facts, target)
        for source, facts in cohort.facts.items()
        if source in own
    ]
    names = [task.source.case_id for task in tasks]
    answers = cohort.workers.each(write, tasks, _progress("Prepared", names))
    cohort.drop(
        [
            Problem(task.source.case_id, task.source.images, task.source.label, answer.reason)
            for task, answer in zip(tasks, answers, strict=True)
            if isinstance(answer, Failure)
        ]
    )
    return {name: answer for name, answer in zip(names, answers, strict=True) if isinstance(answer, Written)}


def _progress(verb: str, names: list[str]) -> Callable[[int, Any], None]:
    done = 0

    def on_done(number: int, answer: Any) -> None:
        nonlocal done
        done += 1
        failed = f" failed: {answer.reason}" if isinstance(answer, Failure) else ""
        logging.log(logging.WARNING if failed else logging.INFO, "%s %d/%d  %s%s", verb, done, len(names),
                    names[number], failed)  # fmt: skip

    return on_done


def _remove_refused(cohort: _Cohort) -> None:
    """A case that cannot be used any more leaves no file of an earlier run; notes what other runs left."""
    for problem in cohort.problems:
        try:
            path = cohort.path(problem.case_id)
        except ValueError:
            continue  # a name that leads out of the folder never had a file
        path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # there is none, or somebody has put something into it
            path.parent.rmdir()
    kept = {cohort.path(source.case_id) for source in cohort.facts}
    others = sorted(set(cohort.output.glob(f"*/{H5_NAME}")) - kept)
    if others:
        cohort.found.notes.append(
            f"{len(others)} cases of earlier runs are not among these scans and in no list: {others[0].parent}, ..."
        )


def _own_cases(cohort: _Cohort, written: dict[str, Written]) -> list[dict[str, Any]]:
    """A shard's cases as prepare.json has them, but for the split, which only the whole has."""
    problems = {problem.case_id: problem for problem in cohort.problems}
    entries = []
    for source in cohort.own():
        if source.case_id in problems:
            problem = problems[source.case_id]
            entries.append(_entry(problem, cohort, "skipped") | {"problem": problem.reason})
        else:
            answer = written[source.case_id]
            entries.append(_entry(source, cohort, _status(answer), made=answer.result))
    return entries


def _status(answer: Written) -> str:
    return "written" if answer.is_new else "unchanged"


def _report(
    cohort: _Cohort, classes: ClassMap, target: Target, written: dict[str, Written], splits: Splits
) -> dict[str, Any]:
    """The contents of prepare.json."""
    cases = []
    for source in cohort.facts:
        answer = written[source.case_id]
        cases.append(_entry(source, cohort, _status(answer), splits.of(source.case_id), answer.result))
    cases += [_entry(problem, cohort, "skipped") | {"problem": problem.reason} for problem in cohort.problems]
    return {
        "semisam_tf": __version__,
        "finished": True,
        "settings": dataclasses.asdict(cohort.config),
        "layout": cohort.found.layout,
        "target": target.to_dict(),
        "n_classes": classes.n_classes,
        "class_names": {str(k): name for k, name in classes.names},
        "channels": next(iter(cohort.facts.values())).channels,
        "splits": {name: list(getattr(splits, name)) for name in ("labelled", "unlabelled", "scoring")},
        "cases": sorted(cases, key=lambda case: case["case_id"]),
        "notes": cohort.found.notes,
    }


def _entry(
    case: Source | Problem, cohort: _Cohort, status: str, split: str | None = None, made: dict[str, Any] | None = None
) -> dict[str, Any]:
    facts = cohort.seen.get(case.case_id)
    return {
        "case_id": case.case_id,
        "status": status,
        "split": split,
        "images": [str(path) for path in case.images],
        "label": str(case.label) if case.label else None,
        "source": plain(facts) if facts else None,
        "prepared": made,
        "problem": None,
    }


def _write_lists(output: Path, report: dict[str, Any]) -> None:
    """The lists of cases, and a flagfile with what training has to know of the folder."""
    splits = report["splits"]
    for name, parts in LISTS.items():
        write_lines(output / name, [case for part in parts for case in splits[part]])
    flags = [f"--data_dir={output.absolute()}", f"--n_classes={report['n_classes']}"]
    if splits["labelled"]:
        flags.append(f"--labeled={len(splits['labelled'])}")
    if report["target"]["spacing_mm"]:
        # The scans have it already; without it, `predict` would not know what to resample other scans to.
        flags.append(f"--training_spacing_mm={','.join(map(str, report['target']['spacing_mm']))}")
    write_lines(output / FLAG_FILE, flags)


def _thumbnails(cohort: _Cohort, report: dict[str, Any]) -> list[Thumbnail]:
    thumbnails = []
    for case in report["cases"]:
        if case["prepared"] is not None:
            with h5py.File(cohort.path(case["case_id"]), "r") as file:
                thumbnails.append(Thumbnail(f"{case['case_id']} ({case['split']})", file[THUMBNAIL][()]))
    return thumbnails
