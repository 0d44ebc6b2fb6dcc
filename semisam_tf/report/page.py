"""`report.html` of a run: one file that opens offline, made of what lies in the run's folder."""

from __future__ import annotations

import datetime
import os
from importlib.resources import files as resources
from pathlib import Path

from semisam_tf import __version__
from semisam_tf.atomic import replacing
from semisam_tf.report import score_sections, training_sections
from semisam_tf.report.figures import count, duration, score, share
from semisam_tf.report.markup import Html, element, joined
from semisam_tf.report.run_files import RunFiles, read_run_files
from semisam_tf.workdir import REPORT_FILE

_ORACLE = "Oracle prompts: SAM saw the labels of the unlabelled scans. This is no semi-supervised result."


def write_report(workdir: str | os.PathLike[str]) -> Path:
    """Writes `<workdir>/report.html` anew, whole or not at all; returns its path.

    Raises:
        FileNotFoundError: No run there.
        ValueError: A file of the run is damaged; names it.
    """
    path = Path(workdir) / REPORT_FILE
    now = datetime.datetime.now(datetime.UTC)
    page = render(read_run_files(workdir), now)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def render(files: RunFiles, now: datetime.datetime) -> str:
    """The page of a run; `now` is when it says it was written."""
    sections = [section for section in _sections(files) if any(section[2])]
    links = [element("a", title, href=f"#{anchor}") for title, anchor, _ in sections]
    bodies = [
        element("section", element("h2", title, id=anchor), *parts, aria_labelledby=anchor)
        for title, anchor, parts in sections
    ]
    written = f"Written {now:%Y-%m-%d %H:%M:%S} UTC by semisam-tf {__version__}. "
    again = ["Made anew by ", element("code", f"python -m semisam_tf.report --workdir={files.name}"), "."]
    body = [
        element("header", _head(files), element("nav", links, aria_label="Sections")),
        element("main", _tiles(files), bodies),
        element("footer", element("p", written, again)),
        element("script", Html(_resource("page.js"))),
    ]
    head = [
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", f"{files.name}: training report"),
        element("style", Html(_resource("page.css"))),
    ]
    page = element("html", element("head", head), element("body", body), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def _sections(files: RunFiles) -> list[tuple[str, str, list[Html | None]]]:
    """Title, anchor and parts of each; one without any part is left out of the page."""
    scores = [score_sections.scores_table(files), score_sections.class_table(files), score_sections.spread(files)]
    return [
        ("Labels", "labels", [training_sections.label_budget(files)]),
        ("Scores", "scores", scores),
        ("Scored cases", "cases", [score_sections.scored_cases(files)]),
        ("Loss terms", "losses", [training_sections.loss_curves(files)]),
        ("Ramps", "ramps", [training_sections.ramps(files), training_sections.history_table(files)]),
        ("SAM", "sam", [training_sections.sam_trust(files), score_sections.sam_targets(files)]),
        ("How it was made", "settings", [training_sections.settings(files)]),
    ]


def _head(files: RunFiles) -> Html:
    last = files.config["max_steps"]
    if files.result is not None:
        status, kind = f"finished after {count(files.step, 'step')}", "done"
    else:
        status, kind = f"not finished: step {files.step} of {last} ({share(files.step / last)})", "going"
    method = files.config["method"].replace("_", " ")
    mode = files.config["sam_mode"]
    teachers = {"off": "without SAM", "offline": "taught by targets on file"}
    # Cached goes without a SAM as well.
    teacher = "SAM" if files.config["sam_dir"] else "its own predictions"
    sam = teachers.get(mode, f"taught by {teacher} ({mode})")
    words = f"{method}, {sam}, {files.config['network']}, {files.config['n_classes']} classes, background included"
    return joined(
        [
            element("p", "Training report", class_="kicker"),
            element("h1", files.name),
            element("p", element("span", status, class_=f"status {kind}"), " ", words),
            element("p", element("b", _ORACLE), class_="warning") if files.run.get("oracle_prompts") else None,
        ]
    )


def _tiles(files: RunFiles) -> Html:
    """The four numbers that one looks for first."""
    labelled, unlabelled = len(files.run.get("labelled", [])), len(files.run.get("unlabelled", []))
    tiles = [
        _dice_tile(files),
        _tile("Labels", str(labelled), f"labelled, {unlabelled} unlabelled"),
        _tile("Steps", str(files.step), _time(files)),
        _sam_tile(files),
    ]
    return element("div", tiles, class_="tiles")


def _dice_tile(files: RunFiles) -> Html:
    if files.metrics is None:
        return _tile("Mean Dice", "–", "not scored yet")  # noqa: RUF001
    mean, std = files.metrics["mean"]["dice"], files.metrics["std"]["dice"]
    cases = count(len(files.metrics["cases"]), "case")
    return _tile("Mean Dice", score("dice", mean), f"± {score('dice', std)}, {cases}, {files.metrics.get('model', '')}")


def _time(files: RunFiles) -> str:
    of = f"of {files.config['max_steps']}"
    if files.result is not None:
        return f"{of}, {duration(files.result['duration_s'])}"
    return f"{of}, {duration(files.history[-1]['duration_s'])}" if files.history else of


def _sam_tile(files: RunFiles) -> Html:
    mode = files.config["sam_mode"]
    if mode == "off":
        return _tile("SAM", "off", "trained without it")
    summaries = [entry["sam"] for entry in files.history if "sam" in entry]
    summary = (files.result or {}).get("sam") or (summaries[-1] if summaries else None)
    if summary is None:
        return _tile("SAM", "–", "nothing recorded yet")  # noqa: RUF001
    note = f"of unlabelled voxels taught, mean weight {summary['mean_weight']:.3f}"
    if "sam_share" in summary:
        note += f"; SAM has a part in {share(summary['sam_share'])} of a scan"
    return _tile("Targets on file" if mode == "offline" else "SAM", share(summary["taught_share"]), note)


def _tile(title: str, figure: str, note: str) -> Html:
    parts = [element("dt", title), element("dd", figure, class_="figure"), element("dd", note)]
    return element("dl", parts, class_="tile")


def _resource(name: str) -> str:
    return (resources("semisam_tf.report") / name).read_text(encoding="utf-8")
