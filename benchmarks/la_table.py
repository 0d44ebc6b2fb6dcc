"""The left-atrium table: methods, N labelled scans, the last 20 of train.list for scoring.

    python benchmarks/la_table.py --data_dir=../shared/la            # run what is missing, many hours, then print it
    python benchmarks/la_table.py --data_dir=../shared/la --methods=supervised_1200_steps --labeled=60 --seeds=0
    python benchmarks/la_table.py --print_only                       # the table from the committed results

Each run is two commands (train, evaluate) in processes of their own and ends in one small JSON below
benchmarks/results/la_table, so an interrupted table goes on where it stopped. The 20 scoring scans are a DEVELOPMENT
set: settings were chosen on them across runs; within a run their images and labels are excluded.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags
from machine import describe, keep
from scipy import stats

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "benchmarks" / "results" / "la_table"
sys.path.insert(0, str(REPO))
SCORING = "configs/la_dev.list"

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the LA scans.")
_LABELED = flags.DEFINE_list("labeled", None, "Numbers of labelled scans; 1 and 4 (configs: 1, 2, 4) if empty.")
_SEEDS = flags.DEFINE_list("seeds", None, "Seeds; if empty 0, and of the rows to be compared at one label 0, 1, 2.")
_METHODS = flags.DEFINE_list("methods", None, "Rows to run; all if empty.")
_RUNS = flags.DEFINE_string("runs", "runs/la_table", "Folder for workdirs and SAM's embeddings.")
_PRINT_ONLY = flags.DEFINE_boolean("print_only", False, "Run nothing.")

# The default when the first rows were scored, kept so that all of them are; a flagfile's row is scored as users will.
_SCORED_BY = ("--overlap=0.5", "--blend=gaussian")


@dataclass(frozen=True)
class Method:
    """One method of the table.

    Attributes:
        flags: Words of `train`.
        teacher: Method whose run, of the same labels and seed, makes the targets for the unlabelled scans; none: "".
        targets: Words of `pseudolabel` that make them.
    """

    flags: tuple[str, ...]
    teacher: str = ""
    targets: tuple[str, ...] = ()


_FRAMEWORKS = {
    "supervised": ("--method=supervised",),
    "mean_teacher": ("--method=mean_teacher",),
    "ua_mt": ("--method=uncertainty_aware_mean_teacher",),
}
# Further frameworks. Copy-paste begins with labelled mixtures alone, as its paper trains first.
_FURTHER = {
    "bcp": ("--method=bidirectional_copy_paste", "--copy_paste_start_step=250"),
    "bcp_early": ("--method=bidirectional_copy_paste", "--copy_paste_start_step=100"),
    "cps": ("--method=cross_pseudo_supervision",),
    "dan": ("--method=deep_adversarial_network",),
}
# One change each from `supervised`: what the preset for CPUs does otherwise than the paper, and what it might do.
_ABLATIONS = {
    "supervised_min_max": ("--lower_percentile=0", "--upper_percentile=100"),
    "supervised_paper_augmentation": ("--augment=paper",),
    "supervised_batch_norm": ("--normalisation=batch",),
    "supervised_sgd": ("--optimizer=sgd", "--learning_rate=0.01", "--weight_decay=1e-4"),
    "supervised_elastic": ("--augment_on=elastic",),
    "supervised_style": ("--augment_on=style",),
    "supervised_1200_steps": ("--max_steps=1200",),
}
# The teacher forgets the first students sooner; SAM is asked three or four times about each scan.
_RECENT = (*_FRAMEWORKS["mean_teacher"], "--ema_warmup=8")
_OFTEN = (
    "--sam_mode=cached", "--sam_start_step=200", "--sam_refresh_visits=2", "--sam_fusion=mean",
    "--sam_smoothing_vox=0.7", "--sam_margin_vox=0,2,4", "--sam_trust=agreement", "--sam_slice_step=4",
)  # fmt: skip
_CACHED = ("--sam_mode=cached", "--sam_start_step=200")
_OFFLINE = ("--sam_mode=offline", "--sam_loss=cross_entropy", "--sam_weight=1")
_SAM_TARGETS = ("--sam_dir=models/sam_lite_medsam", "--sam_slice_step=4")
METHODS = {
    **{name: Method(flags) for name, flags in _FRAMEWORKS.items()},
    **{name: Method(flags) for name, flags in _FURTHER.items()},
    **{name: Method((*_FRAMEWORKS["supervised"], *change)) for name, change in _ABLATIONS.items()},
    **{f"{name}_sam": Method((*_FRAMEWORKS[name], *_CACHED)) for name in ("mean_teacher", "ua_mt")},
    **{
        f"{name}_sam_fused": Method((*_FRAMEWORKS[name], *_CACHED, "--sam_fusion=mean"))
        for name in ("mean_teacher", "ua_mt")
    },
    "mean_teacher_recent": Method(_RECENT),
    "mean_teacher_recent_own": Method((*_RECENT, *_OFTEN, "--sam_dir=")),
    "mean_teacher_recent_sam": Method((*_RECENT, *_OFTEN)),
    **{f"{name}_own_targets": Method((*flags, *_OFFLINE), teacher=name) for name, flags in _FRAMEWORKS.items()},
    **{
        f"{name}_sam_targets": Method((*flags, *_OFFLINE), teacher=name, targets=_SAM_TARGETS)
        for name, flags in _FRAMEWORKS.items()
    },
}
# Row -> the same with SAM, or with another change.
_PAIRS = [
    *(("supervised", name) for name in _FURTHER),
    *(("supervised", name) for name in _ABLATIONS),
    *((name, f"{name}_{how}") for name in ("mean_teacher", "ua_mt") for how in ("sam", "sam_fused")),
    ("mean_teacher", "mean_teacher_recent"),
    *(("mean_teacher_recent", f"mean_teacher_recent_{whose}") for whose in ("own", "sam")),
    ("mean_teacher_recent_own", "mean_teacher_recent_sam"),
    *((f"{name}_own_targets", f"{name}_sam_targets") for name in _FRAMEWORKS),
    *((name, f"{name}_{whose}_targets") for name in _FRAMEWORKS for whose in ("own", "sam")),
    ("config_without_sam", "config"),
    ("config", "config_longer_rounds"),
    ("config_ua_mt", "config"),
    ("config", "config_one_place"),
]
# Rows that are a flagfile of their own, configs/la_N.flags, as it is and without SAM: longer than the others' budget.
CONFIGS = {
    "config": (),
    "config_without_sam": ("--sam_dir=",),
    "config_longer_rounds": ("--round_steps=600", "--max_steps=1200"),
    "config_1500_steps": ("--max_steps=1500",),
    "config_one_place": ("--labeled_per_batch=1",),
    "config_ua_mt": (
        "--sam_mode=off",
        "--rounds=1",
        "--method=uncertainty_aware_mean_teacher",
        "--labeled_per_batch=2",
        "--max_steps=2000",
    ),
}
_TAUGHT = ("taught_share", "mean_weight")
# Where SAM teaches in the flagfile, and so something is to be left out.
_DEFAULT_LABELED = {
    **{name: ["1"] for name in _ABLATIONS},
    "supervised_1200_steps": ["60"],
    "config": ["1", "2", "4"],
    "config_without_sam": ["1", "4"],
    "config_longer_rounds": ["1"],
    "config_1500_steps": ["4"],
    "config_one_place": ["4"],
    "config_ua_mt": ["2"],
}

_COMPARED = ("supervised", "supervised_own_targets", "supervised_sam_targets")


@dataclass(frozen=True)
class Row:
    """One run of the table."""

    method: str
    labeled: str
    seed: str

    @property
    def name(self) -> str:
        """Name of its workdir and result."""
        return f"{self.method}_n{self.labeled}_seed{self.seed}"

    def train_command(self) -> list[str]:
        """Words after the interpreter, as shown in the table; --data_dir and folders are added by `run`."""
        common = [f"--exclude_cases={SCORING}", f"--labeled={self.labeled}", f"--seed={self.seed}"]
        if self.method in CONFIGS:
            flagfile = f"--flagfile=configs/la_{self.labeled}.flags"
            return ["-m", "semisam_tf.train", flagfile, *common, *CONFIGS[self.method]]
        method = METHODS[self.method]
        if method.teacher:
            # A lone labelled scan needs no more than one place in the batch.
            common.append(f"--labeled_per_batch={min(2, int(self.labeled))}")
        return ["-m", "semisam_tf.train", "--flagfile=configs/la_table.flags", *common, *method.flags]


def command(words: list[str]) -> float:
    """Runs a Python command of the repo and returns its seconds."""
    began_s = time.monotonic()
    subprocess.run(["nice", "-n", "5", sys.executable, *words], cwd=REPO, check=True)
    return round(time.monotonic() - began_s, 1)


def train(row: Row, data_dir: str, runs: Path) -> dict[str, float]:
    """Trains a row, after its teacher where it has one, and returns the seconds of each part; what is done is kept."""
    workdir = runs / row.name
    words = [
        *row.train_command(),
        f"--data_dir={data_dir}",
        f"--workdir={workdir}",
        f"--sam_cache_dir={runs}/sam_cache",
    ]
    seconds = {}
    if row.method in METHODS and (method := METHODS[row.method]).teacher:
        teacher = replace(row, method=method.teacher)
        train(teacher, data_dir, runs)
        # Rows share it, so that the clock may have run for another one.
        ended = json.loads((runs / teacher.name / "result.json").read_text(encoding="utf-8"))
        seconds["teacher"] = round(ended["duration_s"], 1)
        targets = targets_of(row, runs)
        seconds["targets"] = command(
            ["-m", "semisam_tf.pseudolabel", f"--workdir={runs / teacher.name}", f"--output={targets}", "--nonifti",
             f"--sam_cache_dir={runs}/sam_cache", *method.targets]
        )  # fmt: skip
        words.append(f"--targets_dir={targets}")
    return seconds | {"train": command(words)}


def targets_of(row: Row, runs: Path) -> Path:
    """Folder of the targets that a row learned, in its last round, if it learned any from files."""
    workdir = runs / row.name
    return max(workdir.glob("rounds/*/targets"), key=lambda path: int(path.parent.name), default=workdir / "targets")


def target_scores(workdir: Path, targets: Path, data_dir: str) -> dict[str, float] | None:
    """What the targets were worth, by labels that no run has seen: their mean Dice, and SAM's part in those on file.

    Args:
        workdir: The run's.
        targets: Folder of the targets on file, if the run had any.
        data_dir: Folder of the scans.

    Returns:
        None of a run that kept no target. Cached targets are those of the run's end.
    """
    from semisam_tf.data.label_access import outside_runs
    from semisam_tf.data.preprocess import preprocessing_of
    from semisam_tf.data.volumes import find_case, load_volume
    from semisam_tf.inference.run_folder import read_run
    from semisam_tf.sam.target import dice
    from semisam_tf.training import checkpoint
    from semisam_tf.training.pseudolabels import read_target, target_scores
    from semisam_tf.training.targets import Target, mask_of, opened

    config = read_run(workdir)["config"]
    kept: dict[str, Any] = {}
    if config.sam_mode == "cached" and (last := checkpoint.load_latest(workdir / "checkpoints", sets_aside=False)):
        kept = {name.removeprefix("packed/"): content for name, content in last[1].get("sam", {}).items()}
    found: dict[str, list[float]] = {}
    for case_id in sorted(kept) or sorted(path.stem for path in targets.glob("[!.]*.h5")):
        scan = load_volume(
            find_case(data_dir, case_id), with_label=outside_runs("a benchmark"),
            default_spacing_mm=config.default_spacing_mm,
        )  # fmt: skip
        grid = preprocessing_of(config).to_training_grid(scan, config.n_classes)
        with opened(kept[case_id]) if kept else contextlib.nullcontext() as content:
            target = Target(*(array[()] for array in content)) if kept else read_target(targets, grid, config.n_classes)
        said = {} if kept else target_scores(targets, case_id)
        said = {name: said[name] for name in ("agreement", "weighted_share", "mean_weight") if name in said}
        for name, value in {"dice": dice(mask_of(target.probs) > 0, grid.label > 0), **said}.items():
            found.setdefault(name, []).append(value)
    if not found:
        return None
    return {name: round(statistics.mean(values), 4) for name, values in found.items()} | {"scans": len(found["dice"])}


def run(row: Row, data_dir: str, runs: Path) -> None:
    """Trains and scores one row and writes its JSON."""
    workdir = runs / row.name
    # Of a command that goes on with what another has begun the clock says too little.
    resumed = workdir.is_dir()
    seconds = train(row, data_dir, runs)
    score = [
        "-m", "semisam_tf.evaluate", f"--workdir={workdir}", f"--data_dir={data_dir}", f"--cases={SCORING}",
        *(_SCORED_BY if row.method in METHODS else ()),
    ]  # fmt: skip
    seconds["evaluate"] = command(score)
    metrics = json.loads((workdir / "metrics.json").read_text(encoding="utf-8"))
    record = json.loads((workdir / "run.json").read_text(encoding="utf-8"))
    result = {
        "method": row.method,
        "labeled": int(row.labeled),
        "seed": int(row.seed),
        "command": "python " + " ".join(row.train_command()),
        "mean": metrics["mean"],
        "std": metrics["std"],
        "n_empty": metrics["n_empty"],
        "dice": {case["case_id"]: round(case["dice"], 4) for case in metrics["cases"]},
        "model": metrics["model"],
        "training": json.loads((workdir / "result.json").read_text(encoding="utf-8")),
        "targets": target_scores(workdir, targets_of(row, runs), data_dir),
        "wall_s": seconds,
        "resumed": resumed,
        "git_commit": record["git_commit"],
        "versions": record["versions"],
        "machine": describe(),
    }
    keep(RESULTS / f"{row.name}.json", result)


def table() -> str:
    """Markdown table of all results present: mean and spread over scans, range over seeds where there are more."""
    lines = [
        "| labelled | method | seeds | Dice % | Jaccard % | 95HD mm | ASD mm | SAM's part | min (SAM) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    order = [*METHODS, *CONFIGS]
    results.sort(key=lambda r: (r["labeled"], order.index(r["method"]), r["seed"]))
    for (labeled, method), group in itertools.groupby(results, key=lambda r: (r["labeled"], r["method"])):
        lines.append(_line(labeled, method, list(group)))
    return "\n".join(lines)


def gains() -> str:
    """Markdown table of what SAM or another change adds, paired: the same scans, the same seeds.

    From `own_targets` to `sam_targets` only SAM's part in the targets differs; from a framework to either, the second
    network and its steps do. Seeds are starred where the two rows were trained at different commits.

    A scan's difference is the mean over the seeds that both rows have; the interval is Student's over the scans. It
    says how sure the mean over such scans is for these seeds; other seeds differ by more, see the range of the means.
    """
    dice, commits = {}, {}
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        key = result["method"], result["labeled"], result["seed"]
        dice[key], commits[key] = result["dice"], (result.get("git_commit") or "").removesuffix("+changes")
    lines = [
        "| labelled | row | changed to | seeds | points gained | 95 % interval, scans | by seed | scans better |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for labeled in sorted({labeled for _, labeled, _ in dice}):
        for before, after in _PAIRS:
            seeds = sorted(s for m, n, s in dice if (m, n) == (after, labeled) and (before, labeled, s) in dice)
            if not seeds:
                continue
            pairs = [(dice[before, labeled, seed], dice[after, labeled, seed]) for seed in seeds]
            by_seed = np.array([[100 * (new[case] - old[case]) for case in sorted(old)] for old, new in pairs])
            by_scan = by_seed.mean(axis=0)
            low, high = stats.t.interval(0.95, len(by_scan) - 1, by_scan.mean(), stats.sem(by_scan))
            figures = [
                f"{by_scan.mean():+.1f}",
                f"{low:+.1f} to {high:+.1f}",
                ", ".join(f"{gain:+.1f}" for gain in by_seed.mean(axis=1)),
                f"{(by_scan > 0).sum()} of {len(by_scan)}",
            ]
            apart = any(commits[before, labeled, seed] != commits[after, labeled, seed] for seed in seeds)
            cells = [str(labeled), before, after, f"{len(seeds)}{'*' if apart else ''}", *figures]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _line(labeled: int, method: str, runs: list[dict]) -> str:
    def shown(name: str, scale: float = 1.0) -> str:
        means = [scale * run["mean"][name] for run in runs if run["mean"][name] is not None]
        spreads = [scale * run["std"][name] for run in runs if run["std"][name] is not None]
        if not means:
            return "-"
        between = f" ({min(means):.1f} to {max(means):.1f})" if len(runs) > 1 else ""
        return f"{statistics.mean(means):.1f} +- {statistics.mean(spreads):.1f}{between}"

    minutes = f"{statistics.mean(run['training']['duration_s'] for run in runs) / 60:.1f}"
    taught = []
    # Without SAM, and of cached ones, the targets have no other scores than their Dice.
    targets = runs[0].get("targets") or {}
    said = {name: statistics.mean(run["targets"][name] for run in runs) for name in targets}
    if said:
        taught.append(f"targets' Dice {100 * said['dice']:.1f}")
    if runs[0]["training"]["sam"] and runs[0]["training"]["sam"]["sam_calls"]:
        # Older runs do not say what SAM's part was: it is all that was taught, for none averaged SAM with a prediction.
        share, weight = ("sam_share", "sam_weight") if "sam_share" in runs[0]["training"]["sam"] else _TAUGHT
        calls, share, weight, sam_s = (
            statistics.mean(run["training"]["sam"][name] for run in runs)
            for name in ("sam_calls", share, weight, "duration_s")
        )
        taught.append(f"{calls:.0f} calls, {share:.1%}, {weight:.2f}")
        minutes += f" ({sam_s / 60:.1f})"
    elif said:
        # All that it takes, where training alone is not all.
        parts = [sum(s for name, s in run["wall_s"].items() if name != "evaluate") for run in runs]
        minutes = f"{'more than ' if any(run.get('resumed') for run in runs) else ''}{statistics.mean(parts) / 60:.1f}"
        if "mean_weight" in said:
            taught.append(f"SAM on {said['weighted_share']:.1%}, {said['mean_weight']:.2f}")
    shown_method = method
    if method in CONFIGS:
        shown_method = " ".join([f"configs/la_{labeled}.flags", *CONFIGS[method]])
    figures = [shown("dice", 100), shown("jaccard", 100), shown("hd95_mm"), shown("asd_mm")]
    cells = [str(labeled), shown_method, str(len(runs)), *figures, ", ".join(taught) or "-", minutes]
    return "| " + " | ".join(cells) + " |"


def rows_to_run(methods: list[str] | None, labeled: list[str] | None, seeds: list[str] | None) -> list[Row]:
    """The rows that the flags name, and by default all: a first seed of each before the second of any."""
    rows = []
    for method in methods or [*METHODS, *CONFIGS]:
        for n in labeled or _DEFAULT_LABELED.get(method, ["1", "4"]):
            several = method in _COMPARED and n == "1"
            rows += [Row(method, n, seed) for seed in seeds or (["0", "1", "2"] if several else ["0"])]
    return sorted(rows, key=lambda row: int(row.seed))


def main(argv: list[str]) -> None:
    """Runs what is missing and prints the table."""
    failed: list[str] = []
    if argv[1:]:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}.")
    if not _PRINT_ONLY.value:
        if not _DATA_DIR.value:
            raise app.UsageError("--data_dir is needed: the folder of the LA scans.")
        for row in rows_to_run(_METHODS.value, _LABELED.value, _SEEDS.value):
            if (RESULTS / f"{row.name}.json").is_file():
                continue
            try:
                run(row, _DATA_DIR.value, Path(_RUNS.value))
            except subprocess.CalledProcessError as error:
                failed.append(f"{row.name}: {error}")
    sys.stdout.write(f"{table()}\n\n{gains()}\n")
    if failed:
        sys.exit("Rows that failed; the same command tries them again:\n" + "\n".join(failed))


if __name__ == "__main__":
    app.run(main)
