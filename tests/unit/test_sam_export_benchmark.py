"""The table of the SAM export is made of the result files alone."""

import json

import pytest


@pytest.fixture
def sam_export(load_benchmark):
    return load_benchmark("sam_export")


def result(row, mask_dice=None):
    return {
        "row": row, "weights": "random weights, seed 0", "megabytes": 26.4, "encode_peak_mib": 83,
        "max_errors": {"encoder.onnx": {"relative": 4.2e-6}, "decoder.onnx": {"relative": 1e-6}},
        "scan_check": {"worst_mask_dice": 1.0}, "precision": {"mask_dice": mask_dice},
        "encode_s": {"torch": [2.0, 3.0, 9.0], "onnx": [1.0, 1.0, 3.0]}, "decode_prompts": 16, "decode_gflop": 40.0,
        "encode_gflop": 200.0, "gemm_gflop_per_s": 400.0,
        "decode_s": {"torch_calls": [0.8, 0.8, 0.8], "calls": [0.3, 0.3, 0.3], "one_call": [0.2, 0.2, 0.1]},
    }  # fmt: skip


def test_ratios_are_medians_over_turns_and_rows_in_order(sam_export, tmp_path):
    for row, mask_dice in (("sam_med3d", None), ("lite_medsam-int8", 0.98765)):
        (tmp_path / f"{row}.json").write_text(json.dumps(result(row, mask_dice)), encoding="utf-8")
    int8, volume = sam_export.table().splitlines()[2:]
    assert int8.startswith(
        "| lite_medsam-int8 | random weights | 4e-06, 1e-06 | 0.9877 to fp32 | 3.00 s, 1.00 s, 0.50 s |"
    )
    assert volume.split(" | ")[3:7] == ["1.00000", "3.00 s, 1.00 s, 0.50 s", "3.0 (2.0 to 3.0)", "83 MiB"]
    # 40 GFLOP at 400 GFLOP/s take 0.1 s, 200 half a second.
    assert volume.split(" | ")[7:9] == ["0.80 s, 0.30 s, 0.20 s, 0.10 s", "4.0 (4.0 to 8.0), 1.5 (1.5 to 3.0)"]
