"""What TensorFlow's own profiler saw: operations, how often, how long, and what arithmetic their convolutions did."""

from __future__ import annotations

import collections
import dataclasses
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# "name:Kind#shape=(float[4,64,64,48,8];float[3,3,3,8,8]),..."; names of layers hold slashes.
_OPERATION = re.compile(r"^(?P<name>[\w./-]+):(?P<kind>\w+)(?:#(?P<about>.*))?$")
_SHAPES = re.compile(r"\w+\[([\d,]*)\]")
# Their time is that of the operations inside them.
_AROUND = {"PartitionedCall", "StatefulPartitionedCall", "If", "StatelessIf", "While", "StatelessWhile"}


@dataclasses.dataclass
class Spent:
    """Operations of a kind on inputs of the same shapes: how often they ran, and the seconds of all together."""

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    count: int = 0
    seconds: float = 0.0


def traced(work: Callable[[], Any], repetitions: int) -> list[Spent]:
    """Operations of a compiled function, those that took longest first.

    Operations that ran at the same time count each for itself, so that the sum may pass the clock's.

    Args:
        work: Has been called before, so that nothing is traced or compiled now.
        repetitions: Calls.
    """
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    # 3: with the shapes of the inputs.
    options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=3, python_tracer_level=0)
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder, options):
            for _ in range(repetitions):
                work()
        (path,) = Path(folder).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
    found: dict[tuple[str, tuple[tuple[int, ...], ...]], Spent] = {}
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                said = _OPERATION.match(plane.event_metadata[event.metadata_id].name)
                if said is None or said["kind"] in _AROUND:
                    continue
                shapes = tuple(
                    tuple(int(n) for n in sides.split(",") if n) for sides in _SHAPES.findall(said["about"] or "")
                )
                spent = found.setdefault((said["kind"], shapes), Spent(said["kind"], shapes))
                spent.count += 1
                spent.seconds += event.duration_ps / 1e12
    return sorted(found.values(), key=lambda spent: -spent.seconds)


def by_kind(operations: list[Spent]) -> dict[str, float]:
    """Seconds of each kind of operation, most first."""
    seconds: collections.Counter[str] = collections.Counter()
    for spent in operations:
        seconds[spent.kind] += spent.seconds
    return dict(seconds.most_common())
