"""The decoder that Meta's own script writes, adopted, against the native export of the same weights.

Random weights; encoder of one block on 256 pixels, decoder at full size but for its 16x16 tokens.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from export import sam_vit
from export.adopt import adopt
from export.graphs import write_graphs
from export.record import described, sha256_of
from export.stand_ins import standing_in, torchvision_names
from semisam_tf.sam.decoder_inputs import Prompts
from semisam_tf.sam.session import SamSession

SIZES = {"depth": 1, "image_size": 256}


def write_as_meta_does(path: Path, single_mask: bool) -> None:
    """Reference: segment-anything's scripts/export_onnx_model.py."""
    with standing_in(torchvision_names()):
        from segment_anything.utils.onnx import SamOnnxModel
    model = SamOnnxModel(sam_vit.build("vit_b", random_seed=0, **SIZES).eval(), return_single_mask=single_mask)
    arrays = {
        "image_embeddings": torch.randn(1, 256, 16, 16),
        "point_coords": torch.randint(0, 256, (1, 5, 2)).float(),
        "point_labels": torch.randint(0, 4, (1, 5)).float(),
        "mask_input": torch.randn(1, 1, 64, 64),
        "has_mask_input": torch.ones(1),
        "orig_im_size": torch.tensor([1500.0, 2250.0]),
    }
    with warnings.catch_warnings():
        # Of the exporter, which is not what is tested here.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, tuple(arrays.values()), str(path), dynamo=False, opset_version=17, input_names=list(arrays),
            output_names=["masks", "iou_predictions", "low_res_masks"],
            dynamic_axes={"point_coords": {1: "num_points"}, "point_labels": {1: "num_points"}},
        )  # fmt: skip


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of `sam_vit_b`, without its comparison with torch (test_sam_vit.py has that)."""
    folder = tmp_path_factory.mktemp("native")
    family = sam_vit.load(random_seed=0, variant="vit_b", **SIZES)
    write_graphs(family, folder)
    values = {**described(family, 17), "sha256": sha256_of(folder)}
    (folder / "manifest.json").write_text(json.dumps(values), encoding="utf-8")
    return folder


def prompts(size: np.ndarray, mask_size: tuple[int, ...]) -> dict[str, Prompts]:
    rng = np.random.default_rng(0)
    points = (rng.random((3, 3, 2)) * size).astype(np.float32)
    labels = np.array([[1, 0, 1], [1, 1, 1], [0, 1, 0]])
    boxes = np.stack([points.min(axis=1), points.max(axis=1)], axis=1)
    masks = 4 * rng.standard_normal((3, *mask_size)).astype(np.float32)
    return {
        "points": Prompts(points=points, point_labels=labels),
        "boxes": Prompts(boxes=boxes),
        "boxes and points": Prompts(points=points, point_labels=labels, boxes=boxes),
        "points and masks": Prompts(points=points, point_labels=labels, masks=masks),
    }


@pytest.mark.parametrize("single_mask", [False, True])
def test_metas_decoder_adopted_answers_as_the_native_one(native: Path, tmp_path: Path, single_mask: bool) -> None:
    write_as_meta_does(tmp_path / "meta.onnx", single_mask)
    values = adopt(native / "encoder.onnx", tmp_path / "meta.onnx", tmp_path / "sam")
    assert values["decoder_outputs"]["logits"]["shape"] == [1, 1 if single_mask else 4, 64, 64]
    ours, metas = SamSession(native), SamSession(tmp_path / "sam")
    assert (ours.manifest.scaling, ours.manifest.input_size) == (metas.manifest.scaling, metas.manifest.input_size)
    picture = np.random.default_rng(1).random((1, 256, 200), np.float32)
    embedding = ours.encode(picture)
    np.testing.assert_array_equal(embedding, metas.encode(picture))
    for name, prompt in prompts(np.array([256, 200]), (64, 64)).items():
        if single_mask and prompt.points is None:
            # With two points or fewer Meta's script picks one of the other masks.
            continue
        a, b = ours.decode(embedding, prompt), metas.decode(embedding, prompt)
        scale = np.abs(a.logits).max()
        np.testing.assert_allclose(b.logits, a.logits, atol=1e-4 * scale, rtol=0, err_msg=name)
        np.testing.assert_allclose(b.predicted_iou, a.predicted_iou, atol=1e-4, rtol=1e-4, err_msg=name)
        assert 0 < np.count_nonzero(a.logits > 0) < a.logits.size
        np.testing.assert_array_equal(a.logits > 0.01 * scale, b.logits > 0.01 * scale, err_msg=name)
    assert metas.counts()["decoder_calls"] == 3 * (3 if single_mask else 4)
