"""The published code's label leak, on request: SAM prompted with the ground truth of unlabelled scans.

Reference: `train_LA_semisam_mt.py:239` of SemiSAM 6716784.
Departs: the labels take a way of their own, are recorded as "oracle_prompts", and mark the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from semisam_tf.config import Config
from semisam_tf.data.batches import Batch
from semisam_tf.data.cohort import load_cohort
from semisam_tf.data.label_access import LabelLedger


class OraclePrompts:
    """Labels of unlabelled scans in the place of predictions.

    Args:
        labels: uint8 [X, Y, Z] by case, in the training grid.
        n_classes: Classes with background.
    """

    def __init__(self, labels: dict[str, np.ndarray], n_classes: int) -> None:
        self.labels, self.n_classes = labels, n_classes

    @classmethod
    def load(cls, config: Config, case_ids: Sequence[str], ledger: LabelLedger, **grid: Any) -> OraclePrompts:
        """Reads the labels of unlabelled scans, with a warning; `grid` is what `load_cohort` takes besides.

        Raises:
            FileNotFoundError, ValueError: A scan has no label, or one that cannot be read.
        """
        logging.warning(
            "\n*** --oracle_prompts: SAM IS PROMPTED WITH THE GROUND TRUTH of %d scans that the run calls unlabelled, "
            "as the published code does. ***\n*** This run uses the labels of ALL its scans: none of its figures is "
            "a semi-supervised result. run.json, result.json and metrics.json say so. ***",
            len(case_ids),
        )
        scans = load_cohort(config.data_dir, case_ids, ledger.access("oracle_prompts"), **grid)
        return cls({scan.case_id: scan.label for scan in scans if scan.label is not None}, config.n_classes)

    def scan_probs(self, case_id: str) -> np.ndarray:
        """float32 [X, Y, Z, K], one-hot: what a perfect network would say of a scan."""
        return np.eye(self.n_classes, dtype=np.float32)[self.labels[case_id]]

    def crop_probs(self, batch: Batch) -> np.ndarray:
        """float32 [U, x, y, z, K]: the same of the unlabelled items of a batch, cut and turned with the image."""
        first = len(batch.labels)
        crops = [
            transform.apply(self.labels[case_id], order=0, fill=0)
            for case_id, transform in zip(batch.case_ids[first:], batch.transforms[first:], strict=True)
        ]
        return np.eye(self.n_classes, dtype=np.float32)[np.stack(crops)]
