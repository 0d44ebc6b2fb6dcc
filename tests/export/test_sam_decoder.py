"""SAM's decoder as exported, of full depth on images of 128 pixels, beside the published modules. Random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export import sam_2d
from export.checkpoints import freeze
from export.family import Arrays
from export.graphs import _write_graph
from export.sam_decoder import POINT_CODES, decoder_inputs, exportable_decoder
from export.sam_published import box_cases, prompt_cases, published_decoder, published_prompts
from export.sam_vit import build
from semisam_tf.sam.runtime import open_session

SIDE = 128
EMBEDDING, MASK = (256, 8, 8), (32, 32)
OUTPUTS = {"logits": ("n", *MASK), "predicted_iou": ("n",)}
CASES = prompt_cases((SIDE, SIDE), MASK)


class Decoder:
    """A published decoder and its exported form, each from arrays to arrays."""

    def __init__(self, net: Any, prompts: str, example: Arrays, folder: Path) -> None:
        inputs = decoder_inputs(EMBEDDING, MASK, prompts)
        module = exportable_decoder(net.prompt_encoder, net.mask_decoder, prompts)
        _write_graph(module, inputs, OUTPUTS, example, folder / "decoder.onnx", 17)
        self.session, self.net, self.roles = open_session(folder / "decoder.onnx"), net, list(inputs)

    def exported(self, arrays: Arrays) -> Arrays:
        feeds = {role: np.ascontiguousarray(arrays[role], np.float32) for role in self.roles}
        return dict(zip(OUTPUTS, self.session.run(list(OUTPUTS), feeds), strict=True))

    def published(self, arrays: Arrays) -> Arrays:
        return published_decoder(self.net.prompt_encoder, self.net.mask_decoder, arrays)


@pytest.fixture(scope="module")
def net() -> Any:
    return freeze(build("vit_b", depth=1, image_size=SIDE, random_seed=0))


@pytest.fixture(scope="module")
def points(net: Any, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    example = {**CASES["1 point"](np.random.default_rng(0), 2), "embeddings": embeddings(2)}
    return Decoder(net, "points", example, tmp_path_factory.mktemp("points"))


def embeddings(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, *EMBEDDING), np.float32)


def close(got: Arrays, expected: Arrays) -> None:
    for role in OUTPUTS:
        assert got[role].shape == expected[role].shape
        np.testing.assert_allclose(got[role], expected[role], rtol=0, atol=1e-5 * np.abs(expected[role]).max())


@pytest.mark.parametrize(("prompts", "images"), [(1, 1), (3, 3), (3, 1)])
@pytest.mark.parametrize("case", CASES)
def test_points_equal_the_published_decoder(points: Decoder, case: str, prompts: int, images: int) -> None:
    arrays = {**CASES[case](np.random.default_rng(2), prompts), "embeddings": embeddings(images)}
    close(points.exported(arrays), points.published(arrays))


@pytest.mark.parametrize("case", ["3 points", "box, every other mask"])
def test_one_embedding_for_all_is_the_embedding_repeated(points: Decoder, case: str) -> None:
    arrays = CASES[case](np.random.default_rng(3), 3)
    shared = points.exported({**arrays, "embeddings": embeddings(1)})
    close(shared, points.exported({**arrays, "embeddings": np.repeat(embeddings(1), 3, axis=0)}))


@pytest.mark.parametrize(("prompts", "images"), [(1, 1), (3, 3), (3, 1)])
def test_boxes_alone_equal_the_published_decoder(
    net: Any, tmp_path: Path, prompts: int, images: int, points: Decoder
) -> None:
    make = box_cases((SIDE, SIDE))["box"]
    example = {**make(np.random.default_rng(0), 2), "embeddings": embeddings(2)}
    decoder = Decoder(net, "boxes", example, tmp_path)
    arrays = {**make(np.random.default_rng(4), prompts), "embeddings": embeddings(images)}
    got = decoder.exported(arrays)
    close(got, decoder.published(arrays))
    as_points = {
        "points": arrays["boxes"].reshape(-1, 2, 2),
        "point_labels": np.tile(np.float32([POINT_CODES["box_first"], POINT_CODES["box_last"]]), (prompts, 1)),
        "masks": np.zeros((prompts, *MASK)),
        "has_masks": np.zeros(prompts),
    }
    close(points.exported({**as_points, "embeddings": arrays["embeddings"]}), got)


def test_clicks_padded_to_one_length_are_what_the_published_encoder_makes_of_padding(points: Decoder) -> None:
    arrays = {**CASES["7 points"](np.random.default_rng(5), 2), "embeddings": embeddings(2)}
    arrays["point_labels"][1, 3:] = POINT_CODES["padding"]
    close(points.exported(arrays), points.published(arrays))


def test_mask_that_is_not_to_be_used_may_hold_anything(points: Decoder) -> None:
    arrays = {**CASES["box, every other mask"](np.random.default_rng(6), 2), "embeddings": embeddings(1)}
    expected = points.exported(arrays)
    arrays["masks"][1] = np.nan
    close(points.exported(arrays), expected)


@pytest.mark.parametrize("change", ["corners", "label", "half a pixel", "has_masks"])
def test_every_part_of_a_prompt_counts(points: Decoder, change: str) -> None:
    arrays = {**CASES["box and 2 points"](np.random.default_rng(7), 1), "embeddings": embeddings(1)}
    before = points.exported(arrays)["logits"]
    if change == "corners":
        arrays["points"][:, -2:] = arrays["points"][:, :-3:-1].copy()
    elif change == "label":
        arrays["point_labels"][:, 0] = 1 - arrays["point_labels"][:, 0]
    elif change == "half a pixel":
        arrays["points"] += 0.5
    else:
        arrays["has_masks"][:] = 1
    after = points.exported(arrays)["logits"]
    assert np.abs(after - before).max() > 1e-3 * np.abs(before).max()
    close(points.exported(arrays), points.published(arrays))


def test_coordinates_are_columns_before_rows(points: Decoder) -> None:
    # Worked by hand: the published encoding of (x, y) in a picture is that of its column, then of its row.
    encode = points.net.prompt_encoder.pe_layer
    matrix = encode.positional_encoding_gaussian_matrix
    angle = 2 * np.pi * (2 * (torch.tensor([100.5, 20.5]) / SIDE) - 1) @ matrix
    position = torch.cat([angle.sin(), angle.cos()])
    code = torch.tensor([[float(POINT_CODES["foreground"])]])
    module = exportable_decoder(points.net.prompt_encoder, points.net.mask_decoder)
    got = module.sparse(torch.tensor([[[100.0, 20.0]]]), code)[0, 0]
    torch.testing.assert_close(got, position + points.net.prompt_encoder.point_embeddings[1].weight[0])


def test_random_weights_leave_no_number_as_initialised(net: Any) -> None:
    for name, parameter in net.named_parameters():
        assert parameter.numel() == 1 or parameter.std() > 1e-3, name


def test_what_cannot_be_meant_is_refused(net: Any) -> None:
    with pytest.raises(ValueError, match="prompts='scribbles'"):
        exportable_decoder(net.prompt_encoder, net.mask_decoder, "scribbles")
    item = {key: array[0] for key, array in CASES["3 points"](np.random.default_rng(0), 1).items()}
    item["point_labels"][-1] = POINT_CODES["foreground"]
    with pytest.raises(ValueError, match="padding point or a box"):
        published_prompts(item)


def test_facts_say_what_the_decoder_takes() -> None:
    facts = sam_2d.sizes(SIDE)
    assert facts["embedding_shape"] == EMBEDDING
    assert facts["mask_size"] == facts["logits_size"] == MASK
    assert list(decoder_inputs(EMBEDDING, MASK)) == ["embeddings", "points", "point_labels", "masks", "has_masks"]
