"""How many processes and devices share a batch, by flags and environment, and whether they can. No TensorFlow."""

from __future__ import annotations

import json
import os

from semisam_tf.config import Config
from semisam_tf.options import OptionError

# What tf.distribute, and every scheduler that starts TensorFlow on several machines, tells a process of the others by.
CLUSTER = "TF_CONFIG"


def cluster_size() -> int:
    """Processes that `TF_CONFIG` names.

    Raises:
        OptionError: It cannot be read, or has other members than workers.
    """
    text = os.environ.get(CLUSTER, "")
    if not text:
        return 1
    try:
        cluster, task = json.loads(text)["cluster"], json.loads(text)["task"]
        if set(cluster) != {"worker"} or task["type"] != "worker" or not 0 <= task["index"] < len(cluster["worker"]):
            raise ValueError("others than workers, or an index that is none of theirs")
    except (ValueError, KeyError, TypeError) as error:
        raise OptionError(
            f'{CLUSTER}: expected {{"cluster": {{"worker": ["HOST:PORT", ...]}}, "task": {{"type": "worker", "index": '
            f"N}}}}. Received: {text} ({error})."
        ) from error
    return len(cluster["worker"])


def require_shares(config: Config) -> None:
    """Raises OptionError where the devices of a run cannot share its work."""
    replicas, labelled = config.devices * cluster_size(), config.labelled_items()
    rules = [
        (
            labelled % replicas or (config.batch_size - labelled) % replicas,
            f"--devices: expected labelled and unlabelled items to be shared evenly by {replicas} devices. Received: "
            f"{labelled} labelled of --batch_size={config.batch_size}; set --labeled_per_batch and --batch_size.",
        ),
        (
            replicas > 1 and config.precision == "float16",
            "--devices: several have not been tried with float16's scaled losses; choose --precision=bfloat16.",
        ),
        (
            replicas > 1 and config.method == "bidirectional_copy_paste",
            "--devices: bidirectional_copy_paste mixes the items of a batch, so one device takes them all.",
        ),
        (
            cluster_size() > 1 and (config.rounds > 1 or config.coarse_to_fine),
            f"--rounds and --coarse_to_fine: expected one process. Received: {cluster_size()} of them in {CLUSTER}. "
            "Rounds go one by one: train, semisam_tf.pseudolabel --shard, train with --targets_dir.",
        ),
    ]
    for broken, message in rules:
        if broken:
            raise OptionError(message)
