"""The parts of the report on an evaluation: scores of the cases, their spread, and what they look like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from semisam_tf.report.charts import strip_chart
from semisam_tf.report.figures import METRIC_NAMES, count, is_distance, metric_name, score, share
from semisam_tf.report.markup import Html, cell, details, element, heading, joined, table
from semisam_tf.report.run_files import RunFiles

_SAM_PANEL = "SAM's is its answer, about the whole scan, to the prediction that was scored; empty where that is."
_NO_SAM_PANEL = "SAM has no panel here: evaluate was told not to ask it, or did not find the run's export, and says so."
_NO_TARGETS = {
    "online": "SAM sees crops in this mode (online) and keeps no target of a scan; TensorBoard has the crops.",
    "offline": "Targets are files in this mode (offline), made before it, by an earlier round or by pseudolabel.",
}
_NOT_SCORED = "Not scored yet: "
_EVALUATE = "python -m semisam_tf.evaluate --workdir=… --data_dir=… --cases=…"
# As outlines are drawn and as panels are named; the style sheet has a colour for each.
_PANELS = {"truth": "Truth", "student": "Student", "teacher": "Teacher", "oracle": "Label (oracle)", "sam": "SAM"}

# Label and (case, value or None) of each row of a chart.
_Rows = list[tuple[str, list[tuple[str, float | None]]]]


def scores_table(files: RunFiles) -> Html:
    """Every case with every metric; with more than two classes also the Dice of each class."""
    metrics = files.metrics
    if metrics is None:
        return element("p", _NOT_SCORED, element("code", _EVALUATE))
    names, classes = list(metrics["mean"]), list(metrics.get("classes", {}))
    columns = [(metric_name(name), is_distance(name)) for name in names]
    columns += [(f"Dice, class {k}", False) for k in classes]
    head = [heading(_sort_button("Case", worst_is_high=False), aria_sort="none", data_kind="text")]
    head += [
        heading(_sort_button(title, high), aria_sort="none", data_kind="number", class_="number")
        for title, high in columns
    ]
    rows = []
    for case in metrics["cases"]:
        values = [(name, case[name]) for name in names] + [("dice", case["classes"][k]["dice"]) for k in classes]
        trained = case["case_id"] in metrics.get("trained_on", [])
        name = [case["case_id"], element("small", " trained on", class_="warning") if trained else None]
        rows.append([heading(name, "row", data_value=case["case_id"]), *(_score_cell(*value) for value in values)])
    foot = [_foot(metrics, kind, names, classes) for kind in ("mean", "std")]
    caption = f"Scores of {count(len(rows), 'case')}, {metrics.get('model', 'model not recorded')}"
    return joined([table(caption, head, rows, foot, class_="sortable"), _remarks(metrics)])


def _foot(metrics: dict[str, Any], kind: str, names: Sequence[str], classes: Sequence[str]) -> list[Html]:
    by_class = [("dice", metrics["classes"][k][kind]["dice"]) for k in classes]
    values = [(name, metrics[kind][name]) for name in names] + by_class
    title = {"mean": "Mean", "std": "Std. dev."}[kind]
    return [heading(title, "row"), *(_score_cell(*value) for value in values)]


def _sort_button(title: str, worst_is_high: bool) -> Html:
    # The first press puts the worst on top: that is what one looks for.
    return element("button", title, type="button", data_first="descending" if worst_is_high else "ascending")


def _score_cell(metric: str, value: float | None) -> Html:
    if value is None:
        return cell(score(metric, None), class_="number", data_value="", title="does not exist: a mask is empty")
    return cell(score(metric, value), class_="number", data_value=repr(value))


def _remarks(metrics: dict[str, Any]) -> Html:
    words = ["Dice and Jaccard in [0, 1], distances in millimetres, all on the scans' own grid."]
    if metrics.get("n_empty"):
        words.append(
            f"Empty predictions: {metrics['n_empty']}, with Dice 0 and no distance; the means leave those out."
        )
    if metrics.get("classes"):
        words.append("A case's scores are means over its classes.")
    return element("p", " ".join(words), class_="note")


def class_table(files: RunFiles) -> Html | None:
    """Mean and standard deviation by class, where there are several."""
    if files.metrics is None or not files.metrics.get("classes"):
        return None
    names = list(files.metrics["mean"])
    rows = []
    for k, entry in files.metrics["classes"].items():
        shown = [f"{score(n, entry['mean'][n])} ± {score(n, entry['std'][n])}" for n in names]
        cells = [cell(text, class_="number") for text in shown]
        rows.append([heading(f"Class {k}", "row"), *cells, cell(str(entry["n_empty"]), class_="number")])
    head = [heading("Class"), *(heading(title, class_="number") for title in (*map(metric_name, names), "Empty"))]
    return table("Mean ± standard deviation by class", head, rows)


def spread(files: RunFiles) -> Html | None:
    """A strip of points for each metric; classes in rows of their own."""
    if files.metrics is None:
        return None
    charts, missing = [], []
    cases, classes = files.metrics["cases"], list(files.metrics.get("classes", {}))
    for name in files.metrics["mean"]:
        rows: _Rows = [("all", [(case["case_id"], case[name]) for case in cases])]
        rows += [(f"class {k}", [(case["case_id"], case["classes"][k][name]) for case in cases]) for k in classes]
        known = [(label, [(case_id, v) for case_id, v in points if v is not None]) for label, points in rows]
        if any(points for _, points in known):
            charts.append(strip_chart(name, known))
        else:
            missing.append(METRIC_NAMES.get(name, name))
    note = element("p", f"No case has a value of {', '.join(missing)}.") if missing else None
    return joined([element("div", charts, class_="charts"), note])


def scored_cases(files: RunFiles) -> Html | None:
    """Best, median and worst case: image, truth, student, teacher, and SAM where it had the case."""
    if files.metrics is None:
        return None
    if not files.scored:
        return element("p", "No pictures belong to these scores. ", element("code", _EVALUATE), " draws them.")
    blocks = []
    for number, case in enumerate(files.scored):
        # The Dice is that of the whole scan, so one row says it.
        first, *others = [
            _panels(cut, f"s{number}-{i}", case["dice"] if i == 0 else {}) for i, cut in enumerate(case["cuts"])
        ]
        title = element("h3", f"{case['rank'].capitalize()}: ", element("span", case["case_id"], class_="case"))
        blocks.append(element("article", title, first, details("Other cuts", *others) if others else None))
    with_sam = any("sam" in cut["outlines"] for case in files.scored for cut in case["cuts"])
    legend = [_legend("truth", "prediction", "sam") if with_sam else _legend("truth", "prediction")]
    if files.config["sam_mode"] != "off" and (with_sam or files.config["sam_dir"]):
        words = _SAM_PANEL if with_sam else _NO_SAM_PANEL
        legend.append(element("p", words, class_="note"))
    return joined([legend, blocks])


def sam_targets(files: RunFiles) -> Html | None:
    """Unlabelled scans with the prediction that prompted SAM and SAM's answer."""
    if files.config["sam_mode"] == "off":
        return None
    if not files.sam:
        return element("p", _NO_TARGETS.get(files.config["sam_mode"], "No target of a whole scan yet."))
    blocks = []
    for number, case in enumerate(files.sam):
        cut = case["cuts"][0]
        if files.run.get("oracle_prompts"):
            # Whatever the settings say: no network prompted SAM.
            outlines = {"oracle": cut["outlines"][case["prompted_by"]], "sam": cut["outlines"]["sam"]}
            cut = cut | {"outlines": outlines}
        scores = case["scores"]
        facts = (
            f"Target of step {case['step']}: {scores['prompts']:.0f} prompts in {scores['slices_prompted']:.0f} slices "
            f"or windows, Dice {scores['agreement']:.3f} with what prompted it. In this cut: "
            f"{share(case['taught_share'])} of the voxels taught, mean weight {case['mean_weight']:.3f}."
        )
        title = element("h3", element("span", case["case_id"], class_="case"))
        panels = _panels(cut, f"t{number}", {})
        blocks.append(element("article", title, element("p", facts, class_="note"), panels))
    return joined([_legend("prediction", "sam"), blocks])


def _legend(*kinds: str) -> Html:
    words = {"truth": "truth", "prediction": "prediction", "sam": "SAM"}
    keys = [element("span", element("i", class_=f"key {kind}"), words[kind]) for kind in kinds]
    return element("p", keys, class_="legend")


def _panels(cut: dict[str, Any], image_id: str, dice: dict[str, float]) -> Html:
    """One cut as a row of panels: the image alone, then one for each outline; truth is drawn into the others too."""
    data = f"data:image/png;base64,{cut['png']}"
    frame = {"width": cut["width_mm"], "height": cut["height_mm"]}
    image = element("image", href=data, id=image_id, preserveAspectRatio="none", **frame)
    panels = [_panel("Image", image, cut, f"{cut['name']}")]
    for who in (who for who in _PANELS if who in cut["outlines"]):
        lines = [element("use", href=f"#{image_id}")]
        if who != "truth" and "truth" in cut["outlines"]:
            lines.append(element("path", d=cut["outlines"]["truth"], class_="outline truth thin"))
        kind = who if who in ("truth", "sam") else "prediction"
        lines.append(element("path", d=cut["outlines"][who], class_=f"outline {kind}"))
        note = "nothing in this cut" if not cut["outlines"][who] else f"Dice {dice[who]:.4f}" if who in dice else ""
        panels.append(_panel(_PANELS[who], joined(lines), cut, note))
    return element("div", panels, class_="panels")


def _panel(title: str, drawing: Html, cut: dict[str, Any], note: str) -> Html:
    label = f"{title}, {cut['name']}{f', {note}' if note and note != cut['name'] else ''}"
    svg = element("svg", drawing, viewBox=f"0 0 {cut['width_mm']} {cut['height_mm']}", role="img", aria_label=label)
    caption = element("figcaption", element("strong", title), element("span", note, class_="note") if note else None)
    return element("figure", caption, svg, class_="panel")
