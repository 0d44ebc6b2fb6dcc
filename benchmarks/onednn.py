"""A training step with and without oneDNN, each in a process of its own, taking turns: python benchmarks/onednn.py."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

from absl import app, flags
from machine import describe, keep

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "benchmarks" / "results" / "onednn"

_TURNS = flags.DEFINE_integer("turns", 3, "Turns of both.")

# Forward and backward of the `cpu` preset's network on its batch; the fastest of a few steps, after tracing.
STEP = """
import sys, time
import semisam_tf, tensorflow as tf
from semisam_tf.models.registry import build_network
net = build_network("vnet", input_channels=1, n_classes=2, filters=8, normalisation="instance", dropout=0.1, seed=0)
images = tf.random.stateless_normal((4, 64, 64, 48, 1), (0, 0))
labels = tf.cast(tf.random.stateless_uniform((4, 64, 64, 48), (0, 1)) > 0.9, tf.int32)

@tf.function
def step():
    with tf.GradientTape() as tape:
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, net(images, training=True))
    return tape.gradient(loss, net.trainable_variables)

step()
seconds = []
for _ in range(5):
    began_s = time.perf_counter()
    step()
    seconds.append(time.perf_counter() - began_s)
sys.stdout.write(str(min(seconds)))
"""


def step_s(onednn: str) -> float:
    """Seconds of a step in a fresh process."""
    environment = os.environ | {"TF_ENABLE_ONEDNN_OPTS": onednn, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-c", STEP], env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def main(argv: list[str]) -> None:
    """Measures, writes the JSON and prints the line."""
    if argv[1:]:
        raise app.UsageError(f"Expected flags only. Received: {argv[1:]}.")
    without, with_it = zip(*[(step_s("0"), step_s("1")) for _ in range(_TURNS.value)], strict=True)
    ratios = [slow / fast for slow, fast in zip(without, with_it, strict=True)]
    flags_of_cpu = [
        word for word in Path("/proc/cpuinfo").read_text(encoding="utf-8").split() if word.startswith("avx")
    ]
    result = {
        "without_s": without,
        "with_s": with_it,
        "ratio": {"median": statistics.median(ratios), "range": [min(ratios), max(ratios)]},
        "cpu_has": sorted(set(flags_of_cpu)),
        "machine": describe(("keras", "tensorflow-cpu")),
    }
    keep(RESULTS / "step.json", result)
    sys.stdout.write(
        f"without oneDNN {statistics.median(without):.2f} s a step, with it {statistics.median(with_it):.2f} s: "
        f"{statistics.median(ratios):.1f} times as fast ({min(ratios):.1f} to {max(ratios):.1f})\n"
    )


if __name__ == "__main__":
    app.run(main)
