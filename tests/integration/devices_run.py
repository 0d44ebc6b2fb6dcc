"""The same steps on one device and on two, in a process of its own: TensorFlow divides the processor once.

    python tests/integration/devices_run.py OUTPUT.json

For each case: the largest relative difference of a loss term, the largest difference of a weight after the last step,
how far weights moved at most, and how often the shared step was traced.
"""

import dataclasses
import json
import sys

import keras
import numpy as np
import tensorflow as tf

from semisam_tf.config import PRESETS, Config
from semisam_tf.distribution.devices import devices_of
from semisam_tf.models.dropout import SeededDropout
from semisam_tf.training.optimizers import build_discriminator_optimizer, build_optimizer
from semisam_tf.training.state import Training
from semisam_tf.training.step import Schedule

STEPS = 3
SIZE = (32, 32, 16)
CONFIG = dataclasses.replace(
    Config(**PRESETS["cpu"]),
    filters=2, dropout=0.0, patch_size=SIZE, uncertainty_passes=2, lr_schedule="constant", consistency_ramp_steps=0,
    # A network of this size on noise is chaotic at larger rates: rounding grows a thousandfold in three steps.
    learning_rate=1e-3, ema_decay=0.5, sam_loss="cross_entropy", sam_weight=1.0,
)  # fmt: skip
# All but the adversary, which drops channels whatever the settings say.
CASES = {
    "mean teacher": {"optimizer": "sgd"},
    "batch norm": {"optimizer": "sgd", "normalisation": "batch"},
    "with SAM": {"optimizer": "adamw", "sam_mode": "offline"},
    "uncertainty": {"optimizer": "sgd", "method": "uncertainty_aware_mean_teacher"},
    "two students": {"optimizer": "sgd", "method": "cross_pseudo_supervision"},
    "micro batch": {"optimizer": "sgd", "micro_batch": 1},
}


def batch(step: int) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Images, labels and SAM's target. The halves have very unlike amounts of organ: Dice is no mean of theirs."""
    rng = np.random.default_rng(step)
    images = rng.normal(size=(4, *SIZE, 1)).astype(np.float32)
    labels = (images[:2, ..., 0] > np.array([-1.0, 2.0]).reshape(2, 1, 1, 1)).astype(np.uint8)
    organ = rng.uniform(size=(2, *SIZE)) * np.array([1.0, 0.1]).reshape(2, 1, 1, 1)
    probs = np.stack([1 - organ, organ], axis=-1).astype(np.float32)
    return images, labels, (probs, rng.uniform(size=organ.shape).astype(np.float32))


def run(config: Config) -> dict[str, np.ndarray]:
    """Loss terms of every step, the weights before and after, and the number of traces."""
    keras.utils.set_random_seed(0)
    found = devices_of(config)
    with found.strategy.scope():
        # Targets are handed to the step itself: none are read.
        training = Training.build(dataclasses.replace(config, sam_mode="off"), 1, [], [], [], replicas=found.replicas)
        step = training.train_step
        step.with_sam = config.sam_mode != "off"
        weights = {
            f"{name}/{number}": variable
            for name, network in training.networks().items()
            for number, variable in enumerate(network.variables)
            if variable.dtype.startswith("float")
        }
        results = {f"before/{name}": variable.numpy() for name, variable in weights.items()}
        for t in range(STEPS):
            images, labels, sam = batch(t)
            terms = step(Schedule.at(config, t), images, labels, *(sam if step.with_sam else ()))
            results |= {f"term/{t}/{name}": term.numpy() for name, term in terms.items()}
        results |= {f"after/{name}": variable.numpy() for name, variable in weights.items()}
    return results | {"traces": np.array(step.traces)}


def momenta(strategy: tf.distribute.Strategy) -> dict[str, float]:
    """The first moment, by optimiser, after a step on a gradient of 1 that every replica hands in, averaged already."""
    with strategy.scope():
        weight = keras.Variable([0.0])
        optimizers = {
            "sgd": build_optimizer(dataclasses.replace(CONFIG, optimizer="sgd", weight_decay=0.0)),
            "adamw": build_optimizer(dataclasses.replace(CONFIG, optimizer="adamw")),
            "discriminator": build_discriminator_optimizer(CONFIG),
        }
        for optimizer in optimizers.values():
            optimizer.build([weight])

    @tf.function
    def step() -> None:
        for optimizer in optimizers.values():
            optimizer.apply_gradients([(tf.identity([1.0]), weight)])

    strategy.run(step)
    # Adam's second moment is a "velocity", too.
    kinds = {"sgd": "velocity", "adamw": "momentum", "discriminator": "momentum"}
    found = {}
    for name, optimizer in optimizers.items():
        (moment,) = [variable for variable in optimizer.variables if variable.path.endswith(kinds[name])]
        found[name] = float(moment.numpy()[0])
    return found


def dropped(strategy: tf.distribute.Strategy, whole_channels: bool) -> list[list[float]]:
    """What each replica keeps of 64 ones."""
    with strategy.scope():
        layer = SeededDropout(0.5, seed=3, whole_channels=whole_channels, name=f"dropout_{whole_channels}")
    ones = tf.ones([1, 1, 1, 1, 64])
    run = tf.function(lambda: strategy.run(lambda: layer(ones, training=True)))
    return [value.numpy().ravel().tolist() for value in strategy.experimental_local_results(run())]


def main() -> None:
    """Compares all cases."""
    tf.config.experimental.enable_op_determinism()
    strategy = devices_of(dataclasses.replace(CONFIG, devices=2)).strategy
    found = {
        "momenta": momenta(strategy),
        "dropped": {kind: dropped(strategy, kind == "channels") for kind in ("channels", "values")},
    }
    for name, changes in CASES.items():
        config = dataclasses.replace(CONFIG, **changes)
        shared = run(dataclasses.replace(config, devices=2))
        alone = run(config)
        kinds = {kind: [key for key in alone if key.startswith(kind)] for kind in ("term", "after")}
        found[name] = {
            "terms": max(float(abs(shared[k] - alone[k]) / abs(alone[k])) for k in kinds["term"]),
            "weights": max(float(np.abs(shared[k] - alone[k]).max()) for k in kinds["after"]),
            "moved": max(float(np.abs(alone[k] - alone[k.replace("after", "before")]).max()) for k in kinds["after"]),
            "traces": int(shared["traces"]),
        }
    with open(sys.argv[1], "w", encoding="utf-8") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
