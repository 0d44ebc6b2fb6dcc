"""Programs that are timed take turns, each in a process of its own: TensorFlow and torch never meet in one."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from typing import Any

# Also the threads of every library: each makes as many as there are cores that its process may use.
CORES = int(os.environ.get("SPEED_CORES") or 2)

Tasks = Mapping[str, Callable[[], Any]]


@dataclasses.dataclass(frozen=True)
class Contestant:
    """What one process does.

    Attributes:
        module: Module of this folder. It is imported in the process alone.
        function: Function of it that returns tasks by name. None of them needs another to have been done.
        arguments: Its arguments.
        repetitions: How often all tasks are done in a turn.
        warm_up: All tasks are done once before the first turn.
    """

    module: str
    function: str
    arguments: Mapping[str, Any]
    repetitions: int = 1
    warm_up: bool = True


# Of a contestant's process.
_tasks: dict[str, Callable[[], Any]] = {}


def take_turns(contestants: Mapping[str, Contestant], turns: int, stay: bool = True) -> dict[str, dict[str, Any]]:
    """Has the contestants do their tasks, one contestant after the other, `turns` times; one computes at a time.

    Args:
        contestants: By name.
        turns: Turns of each.
        stay: Processes stay from turn to turn. Otherwise each turn has a process of its own, which warms up again:
            for contestants that do not fit into memory together.

    Returns:
        Contestant -> "seconds": task -> seconds of every repetition, all turns in order; "peak_rss_bytes": the most
        memory that its process had, libraries and warming up included.
    """
    rounds: list[dict[str, dict[str, list[float]]]] = []
    peaks = dict.fromkeys(contestants, 0)
    with contextlib.ExitStack() as stack:
        processes = {name: _ready(stack, contestant) for name, contestant in contestants.items() if stay}
        for _ in range(turns):
            rounds.append({})
            for name, contestant in contestants.items():
                with contextlib.ExitStack() as turn:
                    process = processes[name] if stay else _ready(turn, contestant)
                    rounds[-1][name] = process.submit(_repeat, contestant.repetitions).result()
                    peaks[name] = max(peaks[name], process.submit(_peak_rss_bytes).result())
    return {
        name: {
            "seconds": {task: [s for done in rounds for s in done[name][task]] for task in rounds[0][name]},
            "peak_rss_bytes": peaks[name],
        }
        for name in contestants
    }


def _ready(stack: contextlib.ExitStack, contestant: Contestant) -> ProcessPoolExecutor:
    process = stack.enter_context(_process())
    process.submit(_prepare, contestant).result()
    return process


def alone(module: str, function: str, **arguments: Any) -> Any:
    """What a function of a module of this folder returns, called in a process of its own."""
    with _process() as process:
        return process.submit(_call, module, function, arguments).result()


def _process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def _call(module: str, function: str, arguments: Mapping[str, Any]) -> Any:
    # Before the libraries are imported and count cores.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    return getattr(importlib.import_module(module), function)(**arguments)


def _prepare(contestant: Contestant) -> None:
    _tasks.update(_call(contestant.module, contestant.function, contestant.arguments))
    if contestant.warm_up:
        _repeat(1)


def _repeat(repetitions: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in _tasks}
    for _ in range(repetitions):
        for name, task in _tasks.items():
            began_s = time.perf_counter()
            task()
            seconds[name].append(round(time.perf_counter() - began_s, 5))
    return seconds


def _peak_rss_bytes() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB
