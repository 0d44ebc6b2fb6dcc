"""Does labelling the scan that `semisam_tf.rank` names first help more than labelling one at random?

    python benchmarks/rank_choice.py --data_dir=../shared/la            # run what is missing, then print the table
    python benchmarks/rank_choice.py --print_only

For each seed a network learns from the first scan of train.list, ranks the others, and one network each learns from
that scan and a second one: the first choice, or a scan drawn at random. All are trained as the table's supervised rows
and scored on the development set. Each ends in one JSON below benchmarks/results/rank_choice.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
from pathlib import Path

from absl import app, flags
from la_table import REPO, SCORING, Row, command, train
from machine import describe, keep

RESULTS = REPO / "benchmarks" / "results" / "rank_choice"
FIRST = "first_choice"

_RANK_SEEDS = flags.DEFINE_list(
    "rank_seeds", ["0", "1", "2"], "Seeds, of the network that ranks and of those after it."
)
_DRAWS = flags.DEFINE_integer("draws", 3, "Random scans a seed.")
_SAM = flags.DEFINE_string("sam_dir", "models/sam_lite_medsam", "SAM export whose disagreement counts; empty: none.")


def ranked(seed: str, data_dir: str, runs: Path) -> list[str]:
    """The unlabelled scans in the order in which they should be labelled."""
    row = Row("supervised", "1", seed)
    train(row, data_dir, runs)
    output = runs / row.name / f"rank_{Path(_SAM.value).name or 'without_sam'}"
    if not (output / "rank.json").is_file():
        command(
            ["-m", "semisam_tf.rank", f"--workdir={runs / row.name}", f"--output={output}", f"--sam_dir={_SAM.value}",
             "--sam_slice_step=4", f"--sam_cache_dir={runs}/sam_cache"]
        )  # fmt: skip
    return [entry["case_id"] for entry in json.loads((output / "rank.json").read_text(encoding="utf-8"))["scans"]]


def random_choices(order: list[str], seed: str, draws: int) -> list[str]:
    """Different scans, drawn from all but the first choice; the same ones for the same seed."""
    return random.Random(int(seed)).sample(sorted(order[1:]), draws)


def run(name: str, seed: str, case_id: str, rank: int, data_dir: str, runs: Path) -> None:
    """Trains with `case_id` as the second labelled scan, scores, and writes the JSON."""
    first = (Path(data_dir) / "train.list").read_text(encoding="utf-8").split()[0]
    workdir = runs / name
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "labelled.list").write_text(f"{first}\n{case_id}\n", encoding="utf-8")
    command(
        ["-m", "semisam_tf.train", "--flagfile=configs/la_table.flags", "--method=supervised", f"--seed={seed}",
         f"--labeled={workdir / 'labelled.list'}", f"--exclude_cases={SCORING}", f"--data_dir={data_dir}",
         f"--workdir={workdir}"]
    )  # fmt: skip
    command(["-m", "semisam_tf.evaluate", f"--workdir={workdir}", f"--data_dir={data_dir}", f"--cases={SCORING}"])
    metrics = json.loads((workdir / "metrics.json").read_text(encoding="utf-8"))
    result = {
        "name": name,
        "seed": int(seed),
        "labelled": [first, case_id],
        "rank": rank,
        "mean": metrics["mean"],
        "std": metrics["std"],
        "dice": {case["case_id"]: round(case["dice"], 4) for case in metrics["cases"]},
        "git_commit": json.loads((workdir / "run.json").read_text(encoding="utf-8"))["git_commit"],
        "machine": describe(),
    }
    keep(RESULTS / f"{name}.json", result)


def table() -> str:
    """Markdown table by seed: Dice with the first choice, with random ones, and the difference."""
    lines = ["| seed | first choice: Dice % | random: Dice %, each | first choice better by |", "|---|---|---|---|"]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    gains = []
    for seed in sorted({result["seed"] for result in results}):
        by_choice: dict[bool, list[float]] = {True: [], False: []}
        for result in results:
            if result["seed"] == seed:
                by_choice[result["name"].startswith(FIRST)].append(100 * result["mean"]["dice"])
        if not all(by_choice.values()):
            continue
        gains.append(by_choice[True][0] - statistics.mean(by_choice[False]))
        draws = ", ".join(f"{dice:.1f}" for dice in by_choice[False])
        drawn = f"{statistics.mean(by_choice[False]):.1f} ({draws})"
        lines.append(f"| {seed} | {by_choice[True][0]:.1f} | {drawn} | {gains[-1]:+.1f} |")
    if len(gains) > 1:
        lines.append(f"| all | | | {statistics.mean(gains):+.1f} ({min(gains):+.1f} to {max(gains):+.1f}) |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Runs what is missing and prints the table."""
    if argv[1:]:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}.")
    values = flags.FLAGS
    if not values.print_only:
        if not values.data_dir:
            raise app.UsageError("--data_dir is needed: the folder of the LA scans.")
        for seed in _RANK_SEEDS.value:
            order = ranked(seed, values.data_dir, Path(values.runs))
            chosen = {f"{FIRST}_seed{seed}": order[0]}
            for number, case_id in enumerate(random_choices(order, seed, _DRAWS.value), start=1):
                chosen[f"random_{number}_seed{seed}"] = case_id
            for name, case_id in chosen.items():
                path = RESULTS / f"{name}.json"
                if not path.is_file():
                    run(name, seed, case_id, order.index(case_id) + 1, values.data_dir, Path(values.runs))
                elif json.loads(path.read_text(encoding="utf-8"))["labelled"][1] != case_id:
                    raise app.UsageError(f"{path} is of another scan: the order was another. Remove it to go on.")
    sys.stdout.write(table() + "\n")


if __name__ == "__main__":
    app.run(main)
