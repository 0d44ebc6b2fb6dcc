"""What a page says, read out of its HTML: it is what the files of the run say, and it needs nothing but itself."""

import json
import re
import shutil

import pytest

from semisam_tf.report.__main__ import main
from semisam_tf.report.page import write_report
from semisam_tf.report.training_sections import command_line

SAM = {"sam_mode": "cached", "sam_start_step": 150, "consistency_ramp_steps": 150, "sam_dir": "models/x"}
CASES = [f"case{i}" for i in range(9)]
HOSTILE = '<script>alert("1")</script>&amp;\'"'


def metrics_of(workdir):
    return json.loads((workdir / "metrics.json").read_text(encoding="utf-8"))


def rows_of(page):
    """Case -> values of its row, as stored for sorting."""
    rows = page.one("table", class_="sortable").one("tbody").all("tr")
    return {row.one("th").attributes["data-value"]: [c.attributes["data-value"] for c in row.all("td")] for row in rows}


def titles_of(page, kind):
    return [figure.one("strong").text for figure in page.all("figure", class_=f"chart {kind}")]


def test_every_case_has_its_row_with_the_values_of_metrics_json(make_run, report_of):
    workdir = make_run(SAM, CASES, empty=("case3",))
    page, metrics = report_of(workdir), metrics_of(workdir)
    rows, names = rows_of(page), ("dice", "jaccard", "hd95_mm", "asd_mm", "assd_mm")
    assert list(rows) == CASES
    for case in metrics["cases"]:
        assert [float(v) if v else None for v in rows[case["case_id"]]] == [case[name] for name in names]
    foot = page.one("tfoot").all("tr")
    for row, kind in zip(foot, ("mean", "std"), strict=True):
        assert [float(c.attributes["data-value"]) for c in row.all("td")] == [metrics[kind][name] for name in names]
    heads = page.one("table", class_="sortable").one("thead").all("th")
    assert [head.text for head in heads] == ["Case", "Dice", "Jaccard", "95HD [mm]", "ASD [mm]", "ASSD [mm]"]
    assert all(head.attributes["aria-sort"] == "none" and head.one("button") for head in heads)
    # The first press shows the worst: low Dice, large distances.
    first = [head.one("button").attributes["data-first"] for head in heads]
    assert first == ["ascending", "ascending", "ascending", "descending", "descending", "descending"]


def test_the_spread_has_a_point_for_each_value(make_run, report_of):
    page = report_of(make_run(SAM, CASES, empty=("case3",)))
    points = {f.one("strong").text: len(f.all("circle")) for f in page.all("figure", class_="chart score")}
    assert points == {"Dice": 9, "Jaccard": 9, "95HD [mm]": 8, "ASD [mm]": 8, "ASSD [mm]": 8}


def test_three_classes(make_run, report_of):
    workdir = make_run({}, CASES[:6], n_classes=3)
    page, metrics = report_of(workdir), metrics_of(workdir)
    for case in metrics["cases"]:
        by_class = [case["classes"][k]["dice"] for k in "12"]
        assert [float(v) for v in rows_of(page)[case["case_id"]]][5:] == by_class
    charts = page.all("figure", class_="chart score")
    assert [len(chart.all("circle")) for chart in charts] == [18] * 5
    assert len(charts[0].all("rect", class_="box")) == 3
    table = next(t for t in page.all("table") if "by class" in t.one("caption").text)
    assert [row.one("th").text for row in table.one("tbody").all("tr")] == ["Class 1", "Class 2"]
    assert f"{metrics['classes']['2']['mean']['dice']:.4f}" in table.text


def test_one_case_whose_distances_do_not_exist(make_run, report_of):
    page = report_of(make_run({}, ["only"], empty=("only",)))
    assert rows_of(page) == {"only": ["0.0", "0.0", "", "", ""]}
    assert titles_of(page, "score") == ["Dice", "Jaccard"]
    assert "No case has a value of 95HD, ASD, ASSD." in page.text
    assert "NaN" not in page.text
    assert "None" not in page.one("main").text


def test_a_curve_for_each_term_and_ramp_with_the_values_of_the_history(make_run, report_of):
    workdir = make_run(SAM, CASES)
    page = report_of(workdir)
    assert titles_of(page, "loss") == ["cross_entropy", "dice", "consistency", "sam", "total"]
    assert titles_of(page, "ramp") == ["consistency weight", "sam weight", "learning rate", "EMA decay"]
    assert "Constant so far: cross_entropy weight 1, dice weight 1." in page.text
    entries = [json.loads(line) for line in (workdir / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    wanted = {
        "dice": [e["terms"]["dice"] for e in entries],
        "sam weight": [e["weights"]["sam"] for e in entries],
        "learning rate": [e["learning_rate"] for e in entries],
        "EMA decay": [e["ema_decay"] for e in entries],
    }
    for figure in page.all("figure"):
        values = wanted.pop(figure.one("strong").text, None)
        if values is not None:
            svg = figure.one("svg")
            assert [int(v) for v in svg.attributes["data-steps"].split(",")] == [e["step"] for e in entries]
            shown = [float(v) for v in svg.attributes["data-values"].split(",")]
            assert shown == pytest.approx(values, rel=1e-3)
    assert wanted == {}


def test_sam_over_time_is_that_of_each_interval(make_run, report_of):
    workdir = make_run(SAM, CASES)
    lines = [json.loads(line) for line in (workdir / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    sam = lines[-1]["sam"]
    # In the last 20 steps: 20000 voxels, 15000 of them taught with weight 0.5. The totals alone would hide it.
    sam |= {"voxels_taught": sam["voxels_taught"] + 10000, "weight_sum": sam["weight_sum"] + 3500.0}
    (workdir / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    figures = {f.one("strong").text: f.one("svg") for f in report_of(workdir).all("figure", class_="chart sam")}
    assert list(figures) == ["voxels taught", "mean weight", "SAM calls"]
    # Steps before SAM starts are no point, not a zero.
    assert figures["voxels taught"].attributes["data-steps"].split(",")[0] == "160"
    shown = {name: [float(v) for v in svg.attributes["data-values"].split(",")] for name, svg in figures.items()}
    assert shown["voxels taught"] == [0.25] * 7 + [0.75]
    assert shown["mean weight"] == [0.8] * 7 + [0.5]
    assert shown["SAM calls"][-1] == sam["sam_calls"] == 600
    assert "SAM starts" in figures["voxels taught"].text


def test_the_label_budget(make_run, report_of):
    workdir = make_run(SAM, CASES, labelled=("s01",), unlabelled=tuple(f"u{i:02d}" for i in range(7)))
    section = report_of(workdir).one("section", aria_labelledby="labels")
    assert "1 of 8 training scans labelled (12.5 %)" in section.text
    assert [code.text for code in section.all("code")] == ["s01", *(f"u{i:02d}" for i in range(7))]
    assert "Scored: 9 cases, none of them seen in training." in section.text
    metrics = metrics_of(workdir) | {"trained_on": ["case1"]}
    (workdir / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    page = report_of(workdir)
    assert "Scored: 9 cases, 1 of them seen in training" in page.text
    rows = page.one("table", class_="sortable").one("tbody").all("tr")
    assert [row.one("th").text for row in rows][:3] == ["case0", "case1 trained on", "case2"]


def openings(workdir, *opened):
    """A record of opened labels: (run, purpose, case) of each."""
    lines = [json.dumps({"run_id": run, "purpose": purpose, "case_id": case}) for run, purpose, case in opened]
    (workdir / "label_access.jsonl").write_text("\n".join([*lines, "cut off"]), encoding="utf-8")
    run = json.loads((workdir / "run.json").read_text(encoding="utf-8"))
    (workdir / "run.json").write_text(json.dumps(run | {"label_ledger": {"run_id": "r"}}), encoding="utf-8")


def test_the_labels_that_were_opened_are_shown_and_one_of_an_unlabelled_scan_stands_out(make_run, report_of):
    workdir = make_run()
    openings(
        workdir, ("r", "training", "s01"), ("r", "training", "s01"), ("r", "scoring", "t01"),
        ("another run", "crops", "s01"), ("doctor", "data_check", "s01"),
    )  # fmt: skip
    earlier = workdir / "rounds" / "1"
    earlier.mkdir(parents=True)
    (earlier / "run.json").write_text('{"label_ledger": {"run_id": "first"}}', encoding="utf-8")
    line = b'{"run_id": "first", "purpose": "self_test", "case_id": "s01"}'
    (earlier / "label_access.jsonl").write_bytes(line + b"\n\xff\n")
    other = workdir / "workers" / "1"
    other.mkdir(parents=True)
    line = '{"run_id": "an earlier start", "purpose": "crops", "case_id": "s01"}\n'
    (other / "label_access.jsonl").write_text(line, encoding="utf-8")
    labels = report_of(workdir).one("section", aria_labelledby="labels")
    rows = [[node.text for node in row.children] for row in labels.all("tr")[1:]]
    assert rows == [
        ["self test", "1", "1", "s01 "], ["training", "1", "2", "s01 "], ["scoring", "1", "1", "t01 "],
        ["data check", "1", "1", "s01 "], ["crops", "1", "1", "s01 "],
    ]  # fmt: skip
    openings(workdir, ("r", "training", "s01"), ("r", "training", "s02"))
    labels = report_of(workdir).one("section", aria_labelledby="labels")
    (training,) = (row.text for row in labels.all("tr")[1:] if row.text.startswith("training"))
    assert "not all of them labelled" in training


def test_the_coarse_stage_is_told(make_run, report_of):
    workdir = make_run({"coarse_to_fine": True})
    result = json.loads((workdir / "result.json").read_text(encoding="utf-8"))
    coarse = {"steps": 150, "duration_s": 60.0, "mean_region_share": 0.053, "taken_whole": ["s03"]}
    (workdir / "result.json").write_text(json.dumps(result | {"coarse": coarse}), encoding="utf-8")
    text = report_of(workdir).one("section", aria_labelledby="settings").text
    assert "a first network of 150 steps" in text
    assert "cut to 5.3 % of their voxels, 1 scan taken whole because a class was not found. s03" in text


def test_panels_of_the_scored_cases(make_run, report_of):
    workdir = make_run(SAM, CASES)
    section = report_of(workdir).one("section", aria_labelledby="cases")
    articles = section.all("article")
    assert [article.one("h3").text for article in articles] == ["Best: case0", "Median: case1", "Worst: case2"]
    for article in articles:
        panels = article.all("figure", class_="panel")
        assert [p.one("strong").text for p in panels] == ["Image", "Truth", "Student", "Teacher"] * 3
        assert ["Dice 0.5000" in p.text for p in panels] == [False, False, True] + [False] * 9
        # Each cut's image is in the page once; the other panels refer to it.
        images = article.all("image")
        assert len(images) == 3
        assert {use.attributes["href"] for use in article.all("use")} == {f"#{i.attributes['id']}" for i in images}
        truth, student = panels[1].one("path"), panels[2].all("path")
        assert student[0].attributes["d"] == truth.attributes["d"]
        assert student[1].attributes["d"] != truth.attributes["d"]
    assert "SAM has no panel here" in section.text


def test_pictures_of_another_evaluation_are_not_shown(make_run, report_of):
    workdir = make_run({}, CASES)
    assert report_of(workdir).all("image")
    (workdir / "metrics.json").write_text(
        (workdir / "metrics.json").read_text(encoding="utf-8") + "\n", encoding="utf-8"
    )
    page = report_of(workdir)
    assert page.all("image") == []
    assert "No pictures belong to these scores" in page.text


def test_sams_targets(make_run, report_of):
    page = report_of(make_run(SAM, CASES))
    articles = page.one("section", aria_labelledby="sam").all("article")
    assert [article.one("h3").text for article in articles] == ["s02", "s03", "s04"]
    assert [f.one("strong").text for f in articles[0].all("figure")] == ["Image", "Teacher", "SAM"]
    assert "Target of step 280: 7 prompts in 5 slices or windows" in articles[0].text
    online = report_of(make_run(SAM | {"sam_mode": "online"}, CASES, name="online"))
    assert "keeps no target of a scan" in online.text
    offline = report_of(make_run(SAM | {"sam_mode": "offline"}, CASES, name="offline"))
    assert "made before it" in offline.text


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"sam_share": 0.582, "sam_weight": 0.97}, "SAM has a part in 58.2"),
        ({"sam_share": 0.0, "sam_weight": 0.0}, "SAM has no part in them"),
    ],
)
def test_targets_on_file_are_not_called_sams(make_run, report_of, part, words):
    workdir = make_run(SAM | {"sam_mode": "offline"}, CASES)
    history = [json.loads(line) for line in (workdir / "history.jsonl").read_text(encoding="utf-8").splitlines()]
    for entry in history:
        if "sam" in entry:
            entry["sam"] |= part
    (workdir / "history.jsonl").write_text("\n".join(json.dumps(entry) for entry in history) + "\n", encoding="utf-8")
    page = report_of(workdir)
    assert "taught by targets on file" in page.one("header").text
    assert "taught by SAM" not in page.text
    section = page.one("section", aria_labelledby="sam").text
    assert words in section
    assert "calls" not in section


def change_run(workdir, **changes):
    run = json.loads((workdir / "run.json").read_text(encoding="utf-8"))
    (workdir / "run.json").write_text(json.dumps(run | changes), encoding="utf-8")


def test_oracle_prompts_are_said_and_no_network_is_blamed_for_them(make_run, report_of):
    workdir = make_run(SAM, CASES)
    assert "Oracle" not in report_of(workdir).text
    change_run(workdir, oracle_prompts=True)
    page = report_of(workdir)
    assert "SAM saw the labels of the unlabelled scans" in page.one("header").text
    article = page.one("section", aria_labelledby="sam").all("article")[0]
    assert [f.one("strong").text for f in article.all("figure")] == ["Image", "Label (oracle)", "SAM"]


@pytest.mark.parametrize(
    ("sha256", "names"),
    [
        (None, []),
        ({"encoder.onnx": "a1"}, ["SAM encoder.onnx, sha256"]),
        ([{"encoder.onnx": "a1"}], ["SAM encoder.onnx, sha256"]),
        (
            [{"encoder.onnx": "a1"}, {"encoder.onnx": "b2"}],
            ["SAM 1 encoder.onnx, sha256", "SAM 2 encoder.onnx, sha256"],
        ),
    ],
)
def test_the_files_of_one_or_several_sams(make_run, report_of, sha256, names):
    workdir = make_run(SAM)
    change_run(workdir, sam_sha256=sha256)
    versions = report_of(workdir).one("section", aria_labelledby="settings").all("tbody")[-1]
    rows = {row.one("th").text: row.one("td").text for row in versions.all("tr")}
    assert [name for name in rows if name.startswith("SAM")] == names
    assert [rows[name] for name in names] == ["a1", "b2"][: len(names)]


def test_without_sam_without_scores_and_unfinished(make_run, report_of):
    page = report_of(make_run({"method": "supervised"}, steps=120, finished=False, unlabelled=()))
    assert "not finished: step 120 of 300 (40.0 %)" in page.text
    assert "trained without SAM" in page.text
    assert "Nothing in this run learns from unlabelled scans" in page.text
    assert "Not scored yet" in page.text
    assert [h.text for h in page.all("h2")] == ["Labels", "Scores", "Loss terms", "Ramps", "SAM", "How it was made"]


def test_a_run_without_history_and_one_that_has_just_begun(make_run, report_of):
    workdir = make_run(SAM, CASES)
    (workdir / "history.jsonl").unlink()
    assert report_of(workdir).text.count("No history") == 3
    for name in ("result.json", "metrics.json"):
        (workdir / name).unlink()
    shutil.rmtree(workdir / "overlays")
    assert "not finished: step 0 of 300" in report_of(workdir).text


def test_names_from_outside_are_text(make_run):
    page = write_report(make_run(SAM, [HOSTILE, "b", "c"], labelled=(HOSTILE,), name="a<b>&'\"")).read_text(
        encoding="utf-8"
    )
    assert "<script>alert" not in page
    assert page.count("<script") == 1
    assert "onerror" not in page


def test_hostile_names_are_shown_as_they_are(make_run, report_of):
    page = report_of(make_run(SAM, [HOSTILE, "b", "c"], labelled=(HOSTILE,), name="a<b>&'"))
    assert page.one("h1").text == "a<b>&'"
    assert HOSTILE in rows_of(page)
    assert page.one("section", aria_labelledby="labels").all("code")[0].text == HOSTILE
    assert page.one("section", aria_labelledby="cases").all("h3")[0].text == f"Best: {HOSTILE}"


def test_the_page_needs_nothing_but_itself(make_run):
    page = write_report(make_run(SAM, CASES)).read_text(encoding="utf-8")
    assert "http:" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https:" not in page
    assert not re.search(r"@import|url\(|<link|<iframe|<base", page)
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', page)
    assert sources
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in sources)
    assert len(page.encode()) < 200_000


def test_ids_are_unique_and_references_lead_somewhere(make_run, report_of):
    page = report_of(make_run(SAM, CASES))
    ids = [node.attributes["id"] for node in page.all() if "id" in node.attributes]
    assert len(ids) == len(set(ids))
    for node in page.all():
        target = node.attributes.get("href") or ""
        assert not target.startswith("#") or target[1:] in ids
    assert all(node.attributes.get("aria-label") for node in page.all("svg"))
    assert all(th.attributes["scope"] in ("row", "col") for th in page.all("th"))


def test_settings_versions_and_commands(make_run, report_of):
    section = report_of(make_run(SAM, CASES)).one("section", aria_labelledby="settings")
    commands = [pre.text for pre in section.all("pre")]
    assert commands == ["python -m semisam_tf.train '--flagfile=a b.flags'",
                        "python -m semisam_tf.evaluate '--workdir=runs/a b'"]  # fmt: skip
    changed, everything, versions = section.all("tbody")
    shown = {row.one("th").one("code").text: row.one("td").text for row in changed.all("tr")}
    assert shown.items() >= {"sam_mode": "cached", "sam_start_step": "150", "max_steps": "300"}.items()
    assert "seed" not in shown
    assert "patch_size" in everything.text
    assert "112,112,80" in everything.text
    assert "3.15.1" in versions.text
    assert "c0ffee" in versions.text


def test_a_setting_that_this_version_does_not_know_is_shown(make_run, report_of):
    workdir = make_run({}, CASES)
    config = json.loads((workdir / "run.json").read_text(encoding="utf-8"))["config"]
    change_run(workdir, config=config | {"from_the_future": [1, 2]})
    assert "from_the_future" in report_of(workdir).text


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["/a/semisam_tf/train.py", "--x=1 2"], "python -m semisam_tf.train '--x=1 2'"),
        (["/usr/bin/pytest", "-q"], "/usr/bin/pytest -q"),
        ([], ""),
    ],
)
def test_a_command_is_shown_as_it_was_typed(argv, shown):
    assert command_line(argv) == shown


def test_the_command_writes_it_anew_and_names_what_is_missing(make_run, tmp_path, capsys):
    workdir = make_run({}, CASES)
    assert main([f"--workdir={workdir}"]) == 0
    assert capsys.readouterr().out == f"Report: {workdir / 'report.html'}\n"
    assert (workdir / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert main([f"--workdir={tmp_path}"]) == 1
    assert "run.json is missing" in capsys.readouterr().err
    (workdir / "metrics.json").write_text("{", encoding="utf-8")
    assert main([f"--workdir={workdir}"]) == 1
    assert str(workdir / "metrics.json") in capsys.readouterr().err
    assert main([]) == 2


def test_cached_targets_without_a_sam_are_not_called_sams(make_run, report_of):
    page = report_of(make_run(SAM | {"sam_dir": ""}, CASES))
    assert "taught by its own predictions (cached)" in page.one("header").text
    assert "on the run's own predictions taught" in page.one("section", aria_labelledby="sam").text
    with_sam = report_of(make_run(SAM | {"sam_dir": "models/sam"}, CASES, name="with"))
    assert "taught by SAM (cached)" in with_sam.one("header").text
