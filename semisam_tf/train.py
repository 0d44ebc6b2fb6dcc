"""Trains a segmentation network: `python -m semisam_tf.train --flagfile=configs/NAME.flags`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from semisam_tf.config import PRESETS, Config
from semisam_tf.options import run_command


def train_command(config: Config) -> int:
    """Runs training; heavy imports wait until the flags are known to be good."""
    from semisam_tf.config import validate
    from semisam_tf.flavour import require_onnxruntime, require_tensorflow

    validate(config)
    require_tensorflow()
    require_onnxruntime()
    from semisam_tf.training.rounds import train

    train(config)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(Config, "semisam_tf.train", sys.argv[1:] if argv is None else argv, train_command, PRESETS)


if __name__ == "__main__":
    sys.exit(main())
