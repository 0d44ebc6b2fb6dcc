"""The tables of benchmarks/speed.py, made of its results alone."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sam_steps import costs, mean_step_s

# Row -> its JSON.
Results = Mapping[str, dict[str, Any]]

# A row during which other programs kept more cores busy on average has a star.
QUIET_CORES = 0.1
# Operations that take less of the time are not in the tables.
_LEAST_SHARE = 0.01
# Layer -> group of V-Net's convolutions; the numbers are channels.
_GROUPS = {
    "block_one": "full resolution, from 1 channel to {0}",
    "block_nine": "full resolution, {0} to {0}",
    "out_conv": "full resolution, {0} to the classes",
    **dict.fromkeys(("block_two", "block_eight"), "half, {1} to {1}"),
    **dict.fromkeys(("block_three", "block_seven"), "quarter, {2} to {2}"),
    **dict.fromkeys(("block_four", "block_six", "block_five"), "below, {3} and {4}"),
    **{f"block_{name}_dw": "down, stride 2" for name in ("one", "two", "three", "four")},
    **{f"block_{name}_up": "up, stride 2" for name in ("five", "six", "seven", "eight")},
}
# Visits of a scan for each target, of the `cpu` preset.
VISITS = 50
WHO = {
    "ours": "ours",
    "torch": "PyTorch, as published",
    "torch_channels_last": "PyTorch, channels last",
    "torch_no_waste": "PyTorch, without the passes thrown away",
    "torch_no_waste_channels_last": "PyTorch, without them, channels last",
    "micro_batch_1": "ours, `--micro_batch=1`",
    "devices_2": "ours, `--devices=2`",
    "devices_4": "ours, `--devices=4`",
}


def seconds(result: dict[str, Any], who: str) -> list[float]:
    """Seconds of every repetition: of all its tasks together but for the matrix product."""
    tasks = [s for task, s in result["contestants"][who]["seconds"].items() if task != "matmul"]
    return [sum(parts) for parts in zip(*tasks, strict=True)]


def ratio(result: dict[str, Any], who: str, to: str) -> float | None:
    """Median seconds of one contestant as a multiple of another's; None where one was left out."""
    if not {who, to} <= result["contestants"].keys():
        return None
    return statistics.median(seconds(result, who)) / statistics.median(seconds(result, to))


def share_of_peak(result: dict[str, Any], who: str) -> float:
    """Arithmetic a second of a forward pass, as a share of that of the fastest matrix product in the same process."""
    fastest_s = min(result["contestants"][who]["seconds"]["matmul"])
    return gflop_per_s(result, who) / (2 * 2048**3 / 1e9 / fastest_s)


def gflop_per_s(result: dict[str, Any], who: str) -> float:
    """Convolutions' arithmetic of a forward pass over its median seconds."""
    return result["gflop"] / statistics.median(seconds(result, who))


def memory_ratio(result: dict[str, Any], who: str, to: str) -> float | None:
    """Peak memory of one process as a multiple of another's; None where one was left out."""
    if not {who, to} <= result["contestants"].keys():
        return None
    return result["contestants"][who]["peak_rss_bytes"] / result["contestants"][to]["peak_rss_bytes"]


def passes_ratio(result: dict[str, Any]) -> float:
    """UA-MT's eight passes as a multiple of one."""
    timed = result["contestants"]["ours"]["seconds"]
    return statistics.median(timed["eight"]) / statistics.median(timed["one"])


def cached_ratio(result: dict[str, Any]) -> float | None:
    """The mean step with cached targets, one every `VISITS` visits of a scan, as a multiple of one without SAM.

    None where the mode was skipped.
    """
    if not result["modes"]["cached"]["step_s"]:
        return None
    return mean_step_s(result["modes"]["cached"], VISITS) / statistics.median(result["modes"]["off"]["step_s"])


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a row was to reach.

    Attributes:
        text: In words.
        row: Row that says.
        value: From the row's JSON; None where it does not say.
        aim: Largest value that meets it, or smallest; None: said for comparison.
        at_most: Which of the two.
        form: How values are written.
    """

    text: str
    row: str
    value: Callable[[dict[str, Any]], float | None]
    aim: float | None
    at_most: bool = True
    form: str = ".2f"

    def line(self, results: Results) -> str:
        """A line of the table."""
        aim = "-"
        if self.aim is not None:
            aim = f"{'at most' if self.at_most else 'at least'} {self.aim:{self.form}}"
        value = self.value(results[self.row]) if self.row in results else None
        if value is None:
            return f"| {self.text} | {aim} | - | not measured |"
        return f"| {self.text} | {aim} | {value:{self.form}} | {self._verdict(value, results[self.row])} |"

    def _verdict(self, value: float, result: dict[str, Any]) -> str:
        if _star(result):
            return "not measured on a quiet machine"
        if self.aim is None:
            return ""
        return "met" if (value <= self.aim if self.at_most else value >= self.aim) else "**missed**"


GOALS = (
    Goal(
        "training step, 2 x 112x112x80, to PyTorch's as published",
        "train_2x112x112x80", lambda r: ratio(r, "ours", "torch"), 0.55,
    ),
    Goal(
        "training step, 2 x 112x112x80, to PyTorch's with channels last",
        "train_2x112x112x80", lambda r: ratio(r, "ours", "torch_channels_last"), 0.8,
    ),
    Goal(
        "mean teacher's step, 4 x 112x112x80, to PyTorch's as published",
        "mean_teacher", lambda r: ratio(r, "ours", "torch"), 0.25,
    ),
    Goal(
        "the same, to PyTorch's without the passes thrown away and with channels last",
        "mean_teacher", lambda r: ratio(r, "ours", "torch_no_waste_channels_last"), None,
    ),
    Goal(
        "its peak memory, to PyTorch's as published",
        "mean_teacher", lambda r: memory_ratio(r, "ours", "torch"), 0.8,
    ),
    Goal(
        "the same, to PyTorch's without the passes thrown away",
        "mean_teacher", lambda r: memory_ratio(r, "ours", "torch_no_waste"), None,
    ),
    *(
        Goal(
            f"forward pass, {shape}, of the speed of matrix products",
            f"forward_{shape}", lambda r: share_of_peak(r, "ours"), 0.65, at_most=False, form=".0%",
        )
        for shape in ("2x112x112x80", "4x112x112x80", "4x128x128x128", "cpu")
    ),
    Goal("UA-MT's eight teacher passes, to one forward pass", "ua_mt_passes", passes_ratio, 8.2),
    Goal(
        "iteration of SemiSAM, 4 x 128^3, times as fast as published",
        "semisam", lambda r: ratio(r, "torch", "ours"), 6, at_most=False, form=".1f",
    ),
    Goal("wait for data, cpu preset, of the time", "data_cpu", lambda r: r["wait_share"], 0.03, form=".1%"),
    Goal("wait for data, 112x112x80, of the time", "data_published", lambda r: r["wait_share"], 0.03, form=".1%"),
    Goal("mean step with SAM cached, to one without SAM", "sam_modes", cached_ratio, 1.15),
)  # fmt: skip


def tables(results: Results) -> str:
    """Markdown tables, an empty line between them: goals, beside PyTorch, SAM's modes, the rest."""
    goals = ["| | goal | measured | |", "|---|---|---|---|", *(goal.line(results) for goal in GOALS)]
    beside = [
        "| row | | s, median (range) | ours takes, of it | GFLOP/s | of matrix products' | peak memory, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        beside += [_beside(name, result, who) for who in result.get("contestants", {})]
    modes = ["| sam_mode | s a step, median (range) | steps | of the step without SAM |", "|---|---|---|---|"]
    modes += _modes(results["sam_modes"]) if "sam_modes" in results else []
    rest = ["| | |", "|---|---|", *_rest(results)]
    layers = ["| convolutions | of the arithmetic | of the time | GFLOP/s |", "|---|---|---|---|"]
    layers += _layers(results["operations_forward_cpu"]) if "operations_forward_cpu" in results else []
    passes = ["| operation | eight passes, s | one pass, s |", "|---|---|---|"]
    passes += _kinds(results["operations_ua_mt_passes"]) if "operations_ua_mt_passes" in results else []
    phases = ["| phase | resident after it, GB | the most in it, GB |", "|---|---|---|"]
    phases += _phases(results["memory"]) if "memory" in results else []
    parts = (goals, beside, modes, rest, layers, passes, phases)
    return "\n\n".join("\n".join(lines) for lines in parts)


def _phases(result: dict[str, Any]) -> list[str]:
    return [
        f"| {phase} | {found['rss_bytes'] / 1e9:.2f} | {found['peak_rss_bytes'] / 1e9:.2f} |"
        for phase, found in result["phases"].items()
    ]


def _layers(result: dict[str, Any]) -> list[str]:
    """A forward pass's convolutions by how many channels they make, then all that is none."""
    found, filters = result["tasks"]["step"], result["arguments"]["filters"]
    total_s = sum(found["kinds"].values())
    groups: dict[str, list[str]] = {}
    for name in found["convolutions"]:
        groups.setdefault(_GROUPS[name.split(".")[0]].format(*(filters * n for n in (1, 2, 4, 8, 16))), []).append(name)
    lines = []
    for group, names in groups.items():
        gflop, seconds = (sum(source[name] for name in names) for source in (result["gflop"], found["convolutions"]))
        shares = f"{gflop / sum(result['gflop'].values()):.0%} | {seconds / total_s:.0%}"
        lines.append(f"| {group}{_star(result)} | {shares} | {gflop / seconds:.0f} |")
    rest = {kind: s for kind, s in found["kinds"].items() if "Conv3D" not in kind and s > _LEAST_SHARE * total_s}
    return lines + [f"| no convolution: {kind} | - | {s / total_s:.0%} | - |" for kind, s in rest.items()]


def _kinds(result: dict[str, Any]) -> list[str]:
    """Seconds of each kind of operation in UA-MT's eight passes and in one."""
    eight, one = (result["tasks"][task]["kinds"] for task in ("eight", "one"))
    least_s = _LEAST_SHARE * sum(eight.values())
    lines = [
        f"| {kind}{_star(result)} | {s:.2f} | {one.get(kind, 0):.2f} |" for kind, s in eight.items() if s > least_s
    ]
    clock = [f"{result['tasks'][task]['seconds']:.2f}" for task in ("eight", "one")]
    return [*lines, f"| by the clock, with nobody looking{_star(result)} | {clock[0]} | {clock[1]} |"]


def _beside(name: str, result: dict[str, Any], who: str) -> str:
    cells = [name + _star(result), WHO[who], _spread(seconds(result, who)), "-", "-", "-"]
    if who != "ours":
        cells[3] = f"{ratio(result, 'ours', who):.2f}"
    if "gflop" in result:
        cells[4:] = [f"{gflop_per_s(result, who):.0f}", f"{share_of_peak(result, who):.0%}"]
    cells.append(f"{result['contestants'][who]['peak_rss_bytes'] / 1e9:.2f}")
    return "| " + " | ".join(cells) + " |"


def _modes(result: dict[str, Any]) -> list[str]:
    lines, off = [], statistics.median(result["modes"]["off"]["step_s"])
    for name, found in result["modes"].items():
        mode = name + _star(result)
        if not found["step_s"]:
            lines.append(f"| {mode} | skipped: over {result['arguments']['limit_s']:.0f} s to warm up | 0 | - |")
            continue
        times, steps = f"{statistics.median(found['step_s']) / off:.2f}", len(found["step_s"])
        if name == "cached":
            # Targets are made far more often than in a run, so that some are timed.
            cutting, target = costs(found)
            times = f"{cached_ratio(result):.2f} at a target every {VISITS} visits"
            lines.append(f"| {mode} | {cutting:.2f} without a target, {target:.2f} for each | {steps} | {times} |")
            continue
        lines.append(f"| {mode} | {_spread(found['step_s'])} | {steps} | {times} |")
    return lines


def _rest(results: Results) -> list[str]:
    lines = []
    for row, text in (("data_cpu", "cpu preset"), ("data_published", "112x112x80")):
        if row in results:
            found = results[row]
            lines += [
                f"| batches a second, {text}, nothing beside ({found['scans']}){_star(found)} | "
                f"{found['batches_per_s']:.2f} |",
                f"| wait for data, {text}, of {found['steps']} steps of {found['step_s']:.2f} s{_star(found)} | "
                f"{found['wait_share']:.1%} |",
                f"| the same step on a batch that is ready, s{_star(found)} | {found['ready_step_s']:.2f} |",
            ]
    if "start_up" in results:
        found = results["start_up"]
        traced = [
            first - following for first, following in zip(found["first_step_s"], found["next_step_s"], strict=True)
        ]
        lines += [
            f"| `train --help`, s{_star(found)} | {_spread(found['help_s'])} |",
            f"| from the start of the process to the end of the first step, cpu preset, s{_star(found)} | "
            f"{_spread(found['to_first_step_s'])} |",
            f"| of it tracing: the first step less a later one, s{_star(found)} | {_spread(traced)} |",
        ]
    if "sustained" in results:
        found = results["sustained"]
        rates = ", ".join(f"{rate:.2f}" for rate in found["steps_per_s"])
        memory = ", ".join(f"{n / 1e9:.2f}" for n in found["rss_bytes"])
        lines += [
            f"| steps a second, cpu preset ({found['scans']}), minute by minute{_star(found)} | {rates} |",
            f"| memory at the end of each minute, GB{_star(found)} | {memory} |",
        ]
    return lines


def _star(result: dict[str, Any]) -> str:
    return "*" if result["other_cores"] > QUIET_CORES else ""


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
