"""Metrics against MedPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from semisam_tf.inference.metrics import case_metrics


def test_every_golden_pair(golden: Callable[[str], dict[str, np.ndarray]]):
    values = golden("metrics")
    pairs = sorted(key.removesuffix("/gt") for key in values if key.endswith("/gt"))
    assert pairs
    for pair in pairs:
        scores = case_metrics(values[f"{pair}/pred"], values[f"{pair}/gt"], values[f"{pair}/spacing"], n_classes=2)
        ours = [scores[name] for name in ("dice", "jaccard", "hd95_mm", "asd_mm")]
        assert ours == pytest.approx(values[f"{pair}/dice_jaccard_hd95_asd"].tolist(), abs=1e-6), pair
