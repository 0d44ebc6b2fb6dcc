"""SAM with a ViT encoder: two blocks (windows, then global) on 512 pixels beside the published model. Random weights.

32 x 32 tokens in windows of 14: padded to 42 x 42; their 1024 global queries go in two chunks. Full depth: slow tests.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from export import verify
from export.checkpoints import freeze
from export.graphs import write_graphs
from export.record import described
from export.sam import export
from export.sam_vit import VARIANTS, build, load, source_sha256
from export.sam_vit_encoder import _relative, exportable_encoder
from export.stand_ins import standing_in, torchvision_names
from semisam_tf.sam.runtime import open_session

SMALL: dict[str, Any] = {"depth": 2, "image_size": 512}


@pytest.fixture(scope="module")
def comparisons(tmp_path_factory: pytest.TempPathFactory) -> list[verify.Comparison]:
    folder = tmp_path_factory.mktemp("vit_b")
    family = load(random_seed=0, **SMALL)
    write_graphs(family, folder)
    return verify.compare(family, folder)


def test_export_of_two_blocks_equals_the_published_model(comparisons: list[verify.Comparison]) -> None:
    assert verify.passes(comparisons), verify.table(comparisons)
    assert {(c.graph, c.batch) for c in comparisons} == {
        (f"{part}coder.onnx", n) for part in ("en", "de") for n in (1, 3)
    }
    assert max(c.relative for c in comparisons) < 1e-5


@pytest.mark.parametrize("image_size", [224, 240])
def test_windows_that_fill_the_tokens_or_not(image_size: int) -> None:
    # 14 x 14 tokens are one whole window; 15 x 15 are four, three of them nearly all padding.
    net = freeze(build("vit_b", depth=2, image_size=image_size, random_seed=1).image_encoder)
    images = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = net(images), exportable_encoder(net)(images)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_relative_positions_run_from_query_to_key() -> None:
    # Three tokens, positions -2..2 of width 1: query 0 sees keys at 0, -1, -2; query 2 at 2, 1, 0.
    table = _relative(torch.arange(-2.0, 3).reshape(5, 1), 3, 0.5)[:, 0]
    assert table.tolist() == [[0, -2, -4], [2, 0, -2], [4, 2, 0]]
    with pytest.raises(ValueError, match=r"7 relative positions for 4 tokens.*5"):
        _relative(torch.zeros(5, 1), 4, 1.0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_names_and_shapes_are_those_of_the_published_models(variant: str) -> None:
    with standing_in(torchvision_names()):
        from segment_anything import sam_model_registry
    with torch.device("meta"):
        published = sam_model_registry["vit_b" if variant == "medsam" else variant]()
        net = build(variant)
    shapes = [{name: tensor.shape for name, tensor in n.state_dict().items()} for n in (net, published)]
    assert shapes[0] == shapes[1]
    globals_ = [[block.window_size for block in n.image_encoder.blocks] for n in (net, published)]
    assert globals_[0] == globals_[1]


def test_facts_are_those_of_sam_and_of_medsam() -> None:
    small = {"random_seed": 0, "depth": 1, "image_size": 64}
    sam, medsam = (described(load(variant=variant, **small), 17) for variant in ("vit_b", "medsam"))
    assert (sam["family"], medsam["family"]) == ("sam_vit_b", "medsam")
    np.testing.assert_allclose(sam["scaling"]["mean"], (0.485, 0.456, 0.406), atol=1e-3)
    np.testing.assert_allclose(sam["scaling"]["std"], (0.229, 0.224, 0.225), atol=1e-3)
    assert (medsam["scaling"]["mean"], medsam["scaling"]["std"]) == ([0] * 3, [1] * 3)
    assert sam["prompts"] == {"box": True, "point": True, "mask": True}
    assert medsam["prompts"] == {"box": True, "point": False, "mask": False}
    assert set(medsam["prompt_notes"]) == {"point", "mask"}


def test_checkpoint_is_read_by_name(tmp_path: Path) -> None:
    small: dict[str, Any] = {"depth": 1, "image_size": 64}
    path = tmp_path / "sam_vit_b.pth"
    net = freeze(build("vit_b", random_seed=3, **small))
    torch.save(net.state_dict(), path)
    family = load(str(path), **small)
    assert (family.source_name, family.source_sha256) == ("sam_vit_b.pth", source_sha256(str(path)))
    images = {"images": family.images(np.random.default_rng(0), ("structured",))}
    got = family.published_encoder(images)["embeddings"]
    with torch.no_grad():
        np.testing.assert_array_equal(got, net.image_encoder(torch.from_numpy(images["images"])).numpy())
    with pytest.raises(ValueError, match=r"weights of sam_vit_b, .*missing: image_encoder\.blocks\.1\."):
        load(str(path), depth=2, image_size=64)


def test_no_checkpoint_says_where_they_are() -> None:
    with pytest.raises(FileNotFoundError, match=r"sam_vit_h has no packaged weights: sam_vit_h_4b8939\.pth"):
        load(variant="vit_h")
    with pytest.raises(FileNotFoundError, match=r"medsam_vit_b\.pth"):
        source_sha256(variant="medsam")


def test_works_where_torchvision_is_broken(repo_root: Path, broken_packages: dict[str, str]) -> None:
    code = "from export.sam_vit import build; build('vit_b', depth=1, image_size=64)"
    subprocess.run([sys.executable, "-c", code], cwd=repo_root, env=broken_packages, check=True)


@pytest.mark.slow
def test_export_of_vit_b_at_full_depth(tmp_path: Path) -> None:
    manifest = export("sam_vit_b", tmp_path / "sam", random_seed=0)
    assert max(error["relative"] for error in manifest["max_errors"].values()) < 1e-4
    assert open_session(tmp_path / "sam" / "encoder.onnx").get_inputs()[0].shape == ["n", 3, 1024, 1024]


@pytest.mark.slow
def test_export_of_vit_h_at_full_depth_has_its_weights_beside_it(tmp_path: Path) -> None:
    # On 64 pixels: all 2.5 GB of weights, more than one protobuf file may hold, and little to compute.
    family = load(random_seed=0, variant="vit_h", image_size=64)
    write_graphs(family, tmp_path)
    assert (tmp_path / "encoder.onnx.data").stat().st_size > 2**31
    comparisons = verify.compare(family, tmp_path)
    assert verify.passes(comparisons), verify.table(comparisons)


@pytest.mark.slow
def test_largest_tensor_of_the_graph_is_a_chunk_of_scores(tmp_path: Path) -> None:
    # 12 heads of 4096 x 4096 scores would be 805 MB.
    family = load(random_seed=0, depth=2)
    write_graphs(family, tmp_path)
    graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "encoder.onnx")).graph
    sizes = [[d.dim_value or 1 for d in value.type.tensor_type.shape.dim] for value in graph.value_info]
    assert max(int(np.prod(size)) for size in sizes) <= 4096 * 3072
