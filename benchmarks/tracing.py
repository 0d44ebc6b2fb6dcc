"""What TensorFlow's own profiler saw of a compiled function: its operations and how long they took."""

from __future__ import annotations

import collections
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

# "network/layer/operation:Kind".
_OPERATION = re.compile(r"^(?P<name>[\w./-]+):(?P<kind>\w+)")
# Their time is that of the operations inside them.
_AROUND = {"PartitionedCall", "StatefulPartitionedCall", "If", "StatelessIf", "While", "StatelessWhile"}


class Operation(NamedTuple):
    """A run of an operation."""

    name: str
    kind: str
    seconds: float


def traced(work: Callable[[], Any], repetitions: int) -> list[Operation]:
    """The operations of so many calls of `work`, which has been called before, so that nothing is compiled now.

    Operations that run at the same time count each for itself: their sum may pass the clock's.
    """
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    # 3: operations that take next to no time, too.
    options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=3, python_tracer_level=0)
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder, options):
            for _ in range(repetitions):
                work()
        (path,) = Path(folder).rglob("*.xplane.pb")
        return list(_operations(xplane_pb2.XSpace.FromString(path.read_bytes())))


def _operations(space: Any) -> Iterator[Operation]:
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                said = _OPERATION.match(plane.event_metadata[event.metadata_id].name)
                if said is not None and said["kind"] not in _AROUND:
                    yield Operation(said["name"], said["kind"], event.duration_ps / 1e12)


def seconds_by(key: Callable[[Operation], str], operations: list[Operation], repetitions: int) -> dict[str, float]:
    """Seconds a repetition of the operations with each key, most first; those with an empty key are left out."""
    seconds: collections.Counter[str] = collections.Counter()
    for operation in operations:
        if name := key(operation):
            seconds[name] += operation.seconds / repetitions
    return dict(seconds.most_common())
