"""Folders of runs as training and evaluate leave them, without either having run."""

from __future__ import annotations

import dataclasses
import hashlib
import html.parser
import json
import math
from pathlib import Path

import numpy as np
import pytest

from semisam_tf.config import Config
from semisam_tf.report.pictures import cut_through

METRICS = ("dice", "jaccard", "hd95_mm", "asd_mm", "assd_mm")
VOID = {"meta", "br", "hr", "col"}


@dataclasses.dataclass
class Node:
    """An element of a parsed page."""

    name: str
    attributes: dict[str, str | None]
    children: list[Node | str] = dataclasses.field(default_factory=list)

    def all(self, name: str = "", **attributes: str) -> list[Node]:
        """Descendants of that name with those attributes, in order."""
        found = []
        for child in self.children:
            if isinstance(child, Node):
                wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
                fits = wanted.items() <= child.attributes.items()
                found += [child] if fits and name in ("", child.name) else []
                found += child.all(name, **attributes)
        return found

    def one(self, name: str = "", **attributes: str) -> Node:
        """The only such descendant."""
        found = self.all(name, **attributes)
        if len(found) != 1:
            raise LookupError(f"{len(found)} of {name} {attributes}")
        return found[0]

    @property
    def text(self) -> str:
        """All text within."""
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class _Parser(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("", {})
        self.open = [self.root]

    def handle_starttag(self, tag, attrs):
        node = Node(tag, dict(attrs))
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag):
        if self.open[-1].name != tag:
            raise ValueError(f"</{tag}> within <{self.open[-1].name}>")
        self.open.pop()

    def handle_data(self, data):
        self.open[-1].children.append(data)


def parse_page(page: str) -> Node:
    """A page as a tree; elements that overlap or stay open are errors."""
    parser = _Parser()
    parser.feed(page)
    parser.close()
    if len(parser.open) != 1:
        raise ValueError(f"left open: {[node.name for node in parser.open[1:]]}")
    return parser.root


def write(path: Path, values) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values, allow_nan=False), encoding="utf-8")


def history_of(config: Config, steps: int) -> list[dict]:
    """An entry every 20 steps with all that training writes."""
    entries = []
    for step in range(20, steps + 1, 20):
        terms = {"cross_entropy": 0.7 * math.exp(-step / 90) + 0.04, "dice": 0.6 * math.exp(-step / 120) + 0.05}
        entry = {
            "step": step, "terms": terms, "weights": {"cross_entropy": 1.0, "dice": 1.0}, "learning_rate": 2e-3 / step,
            "ema_decay": min(1 - 1 / step, 0.99), "entropy_threshold": 0.5, "duration_s": 0.4 * step,
            "data_wait_s": 0.1,
        }  # fmt: skip
        if config.method != "supervised":
            entry["terms"]["consistency"] = 0.004 * (1 - math.exp(-step / 50))
            entry["weights"]["consistency"] = min(1.0, step / 150)
        if config.sam_mode != "off":
            taught = max(0, step - config.sam_start_step)
            entry["terms"]["sam"], entry["weights"]["sam"] = (0.03, 0.5) if taught else (0.0, 0.0)
            entry["sam"] = {
                "targets": taught // 2, "slices_encoded": taught, "prompts_decoded": 3 * taught,
                "duration_s": 0.1 * taught, "sam_calls": 4 * taught,
                "taught_share": 0.25 if taught else 0.0, "mean_weight": 0.8 if taught else 0.0,
                "voxels": 1000 * taught, "voxels_taught": 250 * taught, "weight_sum": 200.0 * taught,
            }  # fmt: skip
        entry["terms"]["total"] = sum(entry["weights"][name] * value for name, value in entry["terms"].items())
        entries.append(entry)
    return entries


def metrics_of(case_ids: list[str], n_classes: int = 2, empty: tuple[str, ...] = ()) -> dict:
    """metrics.json of made-up scores; cases in `empty` have no distances."""
    rng = np.random.default_rng(0)

    def scores(case_id: str) -> dict:
        if case_id in empty:
            return {"dice": 0.0, "jaccard": 0.0, "hd95_mm": None, "asd_mm": None, "assd_mm": None}
        dice = float(rng.uniform(0.6, 0.95))
        distances = {name: float(rng.uniform(1, 9)) for name in METRICS[2:]}
        return {"dice": dice, "jaccard": dice / (2 - dice), **distances}

    def summary(entries: list[dict]) -> dict:
        known = {name: [e[name] for e in entries if e[name] is not None] for name in METRICS}
        return {
            "mean": {name: float(np.mean(v)) if v else None for name, v in known.items()},
            "std": {name: float(np.std(v)) if v else None for name, v in known.items()},
        }

    classes = [str(k) for k in range(1, n_classes)]
    cases = []
    for case_id in case_ids:
        by_class = {k: scores(case_id) for k in classes}
        if n_classes == 2:
            cases.append({"case_id": case_id, **by_class["1"]})
        else:
            means = summary(list(by_class.values()))["mean"]
            cases.append({"case_id": case_id, **means, "classes": by_class})
    metrics = {"cases": cases, **summary(cases), "n_empty": len(empty) * len(classes), "model": "teacher"}
    if n_classes > 2:
        metrics["classes"] = {k: {**summary([c["classes"][k] for c in cases]), "n_empty": len(empty)} for k in classes}
    return metrics | {"trained_on": [], "sam": None, "command": ["/x/semisam_tf/evaluate.py", "--workdir=runs/a b"]}


def overlay_of(case_id: str, outlines: tuple[str, ...], axes: tuple[int, ...]) -> dict:
    """What `evaluate` writes of a case; the masks of a ball in noise, each a little smaller than the one before."""
    grid = np.stack(np.meshgrid(*map(np.arange, (24, 20, 10)), indexing="ij"), axis=-1)
    away = np.linalg.norm((grid - (12, 10, 5)) * (1, 1, 2), axis=-1)
    masks = {name: (away < 8 - i).astype(np.uint8) for i, name in enumerate(outlines)}
    image = np.random.default_rng(1).normal(size=away.shape) + 3 * (away < 7)
    centre = (12, 10, 5)
    cuts = [cut_through(image, masks, (1.5, 1.5, 3.0), axis, centre[axis], f"cut {axis}") for axis in axes]
    return {"case_id": case_id, "cuts": cuts}


@pytest.fixture
def parse():
    """(markup) -> its root `Node`."""
    return parse_page


@pytest.fixture
def make_run(tmp_path):
    """(settings, cases, ...) -> folder of a run."""

    def make(
        changes: dict | None = None, cases: list[str] | None = None, *, steps: int = 300, finished: bool = True,
        labelled: tuple[str, ...] = ("s01",), unlabelled: tuple[str, ...] = ("s02", "s03", "s04"), n_classes: int = 2,
        empty: tuple[str, ...] = (), pictures: bool = True, name: str = "run",
    ) -> Path:  # fmt: skip
        workdir = tmp_path / name
        workdir.mkdir()
        defaults = Config(data_dir="d", workdir=str(workdir), method="mean_teacher", max_steps=300, n_classes=n_classes)
        config = dataclasses.replace(defaults, **(changes or {}))
        session = {"command": ["/x/semisam_tf/train.py", "--flagfile=a b.flags"], "git_commit": "c0ffee" * 6}
        session |= {"semisam_tf": "0.1", "python": "3.11.7", "versions": {"keras": "3.15.1"}}
        run = {"config": config.to_dict(), "channels": 1, "orientation": None, "sam_sha256": None, "resumed": []}
        write(workdir / "run.json", run | {"labelled": labelled, "unlabelled": unlabelled} | session)
        entries = history_of(config, steps)
        (workdir / "history.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
        if finished:
            sam = entries[-1].get("sam")
            write(workdir / "result.json", {"steps": steps, "duration_s": 120.0, "model": "teacher", "sam": sam})
        if cases:
            metrics = metrics_of(cases, n_classes, empty)
            write(workdir / "metrics.json", metrics)
            ranks = dict(zip(("best", "median", "worst"), cases, strict=False))
            drawn = [
                {**overlay_of(case_id, ("truth", "student", "teacher"), (2, 1, 0)), "rank": rank,
                 "dice": {"student": 0.5, "teacher": 0.75}}
                for rank, case_id in ranks.items()
            ]  # fmt: skip
            sha256 = hashlib.sha256((workdir / "metrics.json").read_bytes()).hexdigest()
            if pictures:
                write(workdir / "overlays" / "scored.json", {"metrics_sha256": sha256, "cases": drawn})
        if config.sam_mode == "cached" and pictures:
            scores = {"prompts": 7, "slices_prompted": 5, "agreement": 0.8}
            facts = {"prompted_by": "teacher", "scores": scores, "taught_share": 1.0, "mean_weight": 0.9, "step": 280}
            drawn = [{**overlay_of(case_id, ("teacher", "sam"), (2,)), **facts} for case_id in unlabelled]
            write(workdir / "overlays" / "sam.json", {"cases": drawn})
        return workdir

    return make


@pytest.fixture
def report_of():
    """(workdir) -> its report.html, written anew and parsed."""
    from semisam_tf.report.page import write_report

    def read(workdir: Path) -> Node:
        return parse_page(write_report(workdir).read_text(encoding="utf-8"))

    return read
