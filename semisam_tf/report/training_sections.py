"""The parts of the report on a run itself: labels, losses, ramps, SAM, settings."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

from semisam_tf.config import Config
from semisam_tf.report.charts import Series, line_chart
from semisam_tf.report.figures import count, duration, share, short
from semisam_tf.report.history import Entry
from semisam_tf.report.markup import Html, cell, details, element, heading, joined, table
from semisam_tf.report.run_files import RunFiles

_TERM_NOTES = {
    "cross_entropy": "labelled items",
    "dice": "labelled items",
    "consistency": "student against teacher",
    "sam": "student against SAM, or targets on file, unlabelled items",
    "total": "weighted sum that is descended",
}
_MAX_TABLE_ROWS = 40
# Purposes of opening a label that teach the run nothing.
_JUDGING = ("scoring", "data_check", "timing")
_NO_HISTORY = "No history: training writes its first entry after --log_every steps, and older versions kept none."


def label_budget(files: RunFiles) -> Html:
    """Which cases had a label, how many had none, and which are scored."""
    labelled, unlabelled = files.run.get("labelled", []), files.run.get("unlabelled", [])
    total = len(labelled) + len(unlabelled)
    parts: list[Html | None] = []
    if unlabelled:
        width = max(100 * len(labelled) / total, 1.0)
        bar = element("div", element("i", style=f"width:{width:.2f}%"), class_="budget", role="img",
                      aria_label=f"{len(labelled)} of {total} training scans are labelled")  # fmt: skip
        sentence = f"{len(labelled)} of {count(total, 'training scan')} labelled ({share(len(labelled) / total)}); "
        others = f"the other {len(unlabelled)} were loaded without their label"
        if files.run.get("oracle_prompts"):
            others += ", which prompted SAM all the same (--oracle_prompts)"
        parts += [bar, element("p", f"{sentence}{others}.")]
    else:
        sentence = f"{count(len(labelled), 'labelled scan')}. Nothing in this run learns from unlabelled scans."
        parts.append(element("p", sentence))
    parts.append(element("p", element("b", "Labelled: "), _names(labelled)))
    if more := [case for case in files.run.get("targets_learned_from") or [] if case not in labelled]:
        warning = "Targets were made by a run that learned from more labels, which count as this run's: "
        parts.append(element("p", element("span", warning, class_="warning"), _names(more)))
    if unlabelled:
        parts.append(details(f"Unlabelled: {count(len(unlabelled), 'scan')}", element("p", _names(unlabelled))))
    if files.metrics is not None:
        parts.append(_scored(files.metrics))
    parts.append(_openings(files))
    if files.config.get("exclude_cases"):
        source = element("code", files.config["exclude_cases"])
        parts.append(element("p", "Kept out of training: the cases in ", source, "."))
    return joined(parts)


def _openings(files: RunFiles) -> Html | None:
    """The record of opened labels, by purpose."""
    if not files.openings:
        return None
    rows = []
    for purpose, cases in files.openings.items():
        strangers = [case for case in cases if case not in files.run.get("labelled", [])]
        learning = purpose not in _JUDGING
        names = [_names(list(cases))]
        if learning and strangers:
            names.append(element("small", " not all of them labelled", class_="warning"))
        cells = [cell(str(len(cases)), class_="number"), cell(str(sum(cases.values())), class_="number"), cell(names)]
        rows.append([heading(purpose.replace("_", " "), "row"), *cells])
    head = [heading("Opened for"), heading("scans", class_="number"), heading("openings", class_="number"),
            heading("which")]  # fmt: skip
    shown = table("Labels opened, as recorded; semisam_tf.audit checks the record", head, rows)
    return details("Which labels were opened, and for what", shown)


def _scored(metrics: dict[str, Any]) -> Html:
    cases, known = count(len(metrics["cases"]), "case"), metrics.get("trained_on", [])
    if not known:
        return element("p", f"Scored: {cases}, none of them seen in training.")
    warning = f"Scored: {cases}, {len(known)} of them seen in training, which is no score on unseen scans: "
    return element("p", element("span", warning, class_="warning"), _names(known))


def _names(names: Sequence[str]) -> Html:
    return element("span", [[element("code", name), " "] for name in names], class_="names")


def loss_curves(files: RunFiles) -> Html:
    """A chart for each loss term."""
    if not files.history:
        return element("p", _NO_HISTORY)
    names = _in_order(files.history, "terms")
    charts = [
        _chart(files, name, _TERM_NOTES.get(name, ""), "loss", _picked(files.history, "terms", name)) for name in names
    ]
    return element("div", charts, class_="charts")


def ramps(files: RunFiles) -> Html:
    """A chart for everything that changes by schedule; what stays the same is said in words."""
    if not files.history:
        return element("p", _NO_HISTORY)
    series = {f"{name} weight": _picked(files.history, "weights", name) for name in _in_order(files.history, "weights")}
    notes = {
        "sam weight": f"0 before step {files.config['sam_start_step']}",
        "consistency weight": f"ramps up over {files.config['consistency_ramp_steps']} steps",
        "learning rate": f"schedule: {files.config['lr_schedule']}",
        "EMA decay": "how much of itself the teacher keeps in a step",
        "entropy threshold": "nats",
    }
    scalars = {"learning_rate": "learning rate", "ema_decay": "EMA decay"}
    if files.config["method"] == "uncertainty_aware_mean_teacher":
        scalars["entropy_threshold"] = "entropy threshold"
    series |= {title: [entry.get(name) for entry in files.history] for name, title in scalars.items()}
    charts, constant = [], []
    for title, values in series.items():
        if len(set(values)) > 1:
            charts.append(_chart(files, title, notes.get(title, ""), "ramp", values))
        elif values[0] is not None:
            constant.append(f"{title} {short(values[0])}")
    words = element("p", f"Constant so far: {', '.join(constant)}.") if constant else None
    return joined([element("div", charts, class_="charts") if charts else None, words])


def sam_trust(files: RunFiles) -> Html:
    """How much SAM taught, over time and in all."""
    if files.config["sam_mode"] == "off":
        return element("p", "This run was trained without SAM.")
    entries = [entry for entry in files.history if "sam" in entry]
    if not entries:
        return element("p", _NO_HISTORY)
    shares, weights = _taught(entries)
    # Of targets on file SAM was asked before.
    calls = [None if files.config["sam_mode"] == "offline" else entry["sam"]["sam_calls"] for entry in entries]
    steps, start = [entry["step"] for entry in entries], files.config["sam_start_step"]
    last = entries[-1]["sam"]
    if not any(value is not None for value in shares):
        return element("p", f"Nothing is taught yet: SAM, or targets on file, start at step {start}.")
    texts = (("voxels taught", "share of the unlabelled items' voxels"), ("mean weight", "of the voxels taught"),
             ("SAM calls", "encoder and decoder, so far"))  # fmt: skip
    on_file = files.config["sam_mode"] == "offline"
    marks = [(start, "targets start" if on_file else "SAM starts")] if start else []
    charts = [
        line_chart(Series(title, note, "sam", steps, values), files.config["max_steps"], marks)
        for (title, note), values in zip(texts, (shares, weights, calls), strict=True)
        if any(value is not None for value in values)
    ]
    teacher = "targets on file" if on_file else "SAM" if files.config["sam_dir"] else "the run's own predictions"
    words = (
        f"From step {start} on {teacher} taught {share(last['taught_share'])} of the "
        f"unlabelled voxels, with a mean weight of {last['mean_weight']:.3f}. "
    )
    if not on_file:
        words += (
            f"{count(int(last['targets']), 'target')} from {int(last['sam_calls'])} calls: "
            f"{int(last['slices_encoded'])} slices or windows encoded, {int(last['prompts_decoded'])} prompts decoded, "
            f"{duration(last['duration_s'])}. "
        )
    if last.get("sam_share"):
        words += (
            f"SAM has a part in {share(last['sam_share'])} of a scan on average, there with a mean weight of "
            f"{last['sam_weight']:.3f}."
        )
    elif on_file and "sam_share" in last:
        words += "SAM has no part in them."
    return joined([element("p", words), element("div", charts, class_="charts")])


def _taught(entries: Sequence[Entry]) -> tuple[list[float | None], list[float | None]]:
    """Share of voxels taught and their mean weight since the entry before; None where SAM had nothing to say."""
    shares: list[float | None] = []
    weights: list[float | None] = []
    before = {"voxels": 0, "voxels_taught": 0, "weight_sum": 0.0}
    for entry in entries:
        new = {name: entry["sam"][name] - before[name] for name in before}
        shares.append(new["voxels_taught"] / new["voxels"] if new["voxels"] else None)
        weights.append(new["weight_sum"] / new["voxels_taught"] if new["voxels_taught"] else None)
        before = {name: entry["sam"][name] for name in before}
    return shares, weights


def history_table(files: RunFiles) -> Html | None:
    """The curves as a table, for those who would rather read them."""
    entries = files.history
    if not entries:
        return None
    every = -(-len(entries) // _MAX_TABLE_ROWS)
    shown = [entry for i, entry in enumerate(entries) if (i + 1) % every == 0 or i == len(entries) - 1]
    terms, weights = _in_order(entries, "terms"), _in_order(entries, "weights")
    head = ["step", *terms, *(f"{name} weight" for name in weights), "learning rate", "EMA decay", "time"]
    rows = []
    for entry in shown:
        values = [entry["terms"].get(name) for name in terms] + [entry["weights"].get(name) for name in weights]
        values += [entry.get("learning_rate"), entry.get("ema_decay")]
        cells = [cell("–" if v is None else short(v), class_="number") for v in values]  # noqa: RUF001
        rows.append([heading(str(entry["step"]), "row"), *cells, cell(duration(entry["duration_s"]), class_="number")])
    head = [heading(title, class_="number" if i else None) for i, title in enumerate(head)]
    caption = "Loss terms and ramps" if every == 1 else f"Loss terms and ramps, every {every} entries"
    return details("The curves as a table", table(caption, head, rows))


def settings(files: RunFiles) -> Html:
    """Command, versions, and every setting; first those that are not the default."""
    fields = {field.name: field for field in dataclasses.fields(Config)}
    defaults = Config().to_dict()
    changed = {name: value for name, value in files.run["config"].items() if value != defaults.get(name)}

    def row(name: str, value: Any) -> list[Html]:
        meaning = fields[name].metadata["help"] if name in fields else "not known to this version"
        title = [element("code", name), element("span", meaning, class_="note")]
        return [heading(title, "row"), cell(_shown(value), class_="value")]

    head = ["Setting", "Value"]
    sessions = [files.run, *files.run.get("resumed", [])]
    parts = [_coarse(files), element("h3", "Commands")]
    parts += [_session(number, session) for number, session in enumerate(sessions)]
    if files.metrics and "command" in files.metrics:
        parts.append(_command("Evaluation", files.metrics["command"]))
    parts.append(element("h3", "Settings"))
    parts.append(table("Settings that differ from the defaults", head, [row(*item) for item in changed.items()]))
    everything = table("Every setting", head, [row(*item) for item in files.run["config"].items()])
    parts.append(details(f"All {len(files.run['config'])} settings", everything))
    parts.append(element("h3", "Versions"))
    versions = {"semisam-tf": files.run.get("semisam_tf"), "git commit": files.run.get("git_commit") or "no checkout"}
    versions |= {"python": files.run.get("python"), **files.run.get("versions", {})}
    versions |= _sam_files(files.run.get("sam_sha256"))
    rows = [
        [heading(name, "row"), cell(element("code", _shown(value)), class_="value")] for name, value in versions.items()
    ]
    parts.append(table("Versions of the first start", ["Of", "Version"], rows))
    return joined(parts)


def _coarse(files: RunFiles) -> Html | None:
    """What the first stage of a coarse-to-fine run did."""
    found = (files.result or {}).get("coarse")
    if found is None:
        return None
    whole = found["taken_whole"]
    sentence = (
        f"Coarse to fine: a first network of {count(found['steps'], 'step')} ({duration(found['duration_s'])}) found "
        f"the organs; the training scans were cut to {share(found['mean_region_share'])} of their voxels, "
        f"{count(len(whole), 'scan')} taken whole because a class was not found. "
    )
    return element("p", sentence, _names(whole))


def _sam_files(sha256: dict[str, str] | list[dict[str, str]] | None) -> dict[str, str]:
    """Digests of the files of a SAM export, or of several."""
    exports = [sha256] if isinstance(sha256, dict) else sha256 or []
    numbers = [f" {number}" for number in range(1, len(exports) + 1)] if len(exports) > 1 else [""]
    return {
        f"SAM{number} {name}, sha256": digest
        for number, export in zip(numbers, exports, strict=False)
        for name, digest in export.items()
    }


def _session(number: int, session: dict[str, Any]) -> Html:
    title = "Training" if number == 0 else f"Resumed, {number}"
    commit = session.get("git_commit")
    return _command(f"{title}{f' (commit {commit[:12]})' if commit and number else ''}", session["command"])


def _command(title: str, argv: Sequence[str]) -> Html:
    return joined([element("p", title), element("pre", element("code", command_line(argv)))])


def command_line(argv: Sequence[str]) -> str:
    """What was typed: Python puts a module's file where `-m` and its name stood."""
    path = PurePath(argv[0]) if argv else PurePath()
    if path.parent.name == "semisam_tf" and path.suffix == ".py":
        return f"python -m semisam_tf.{path.stem} {shlex.join(argv[1:])}".strip()
    return shlex.join(argv)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(_shown(part) for part in value) or "empty"
    return "empty" if value in ("", None) else str(value)


def _in_order(entries: Sequence[Entry], group: str) -> list[str]:
    """Names in a group of the entries, by first appearance."""
    return list(dict.fromkeys(name for entry in entries for name in entry[group]))


def _picked(entries: Sequence[Entry], group: str, name: str) -> list[float | None]:
    return [entry[group].get(name) for entry in entries]


def _chart(files: RunFiles, title: str, note: str, kind: str, values: Sequence[float | None]) -> Html:
    steps = [entry["step"] for entry in files.history]
    return line_chart(Series(title, note, kind, steps, values), files.config["max_steps"])
