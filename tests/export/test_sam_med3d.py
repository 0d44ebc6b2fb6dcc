"""SAM-Med3D: the closed form of its padded windows, and both graphs in ONNX Runtime against the published modules.

The encoder has 3 of its 12 blocks here (two windowed, one global); all 12 in the slow tests. Every parameter is random:
as published many start at 0 or 1, where a mistake would not show.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import export.sam
from export import sam_med3d, verify
from export.family import Family
from export.graphs import write_graphs
from export.sam_med3d import architecture, build, load
from export.sam_med3d_decoder import exportable_decoder
from export.window_attention import exportable_attention
from semisam_tf.sam.manifest import load_manifest
from semisam_tf.sam.runtime import open_session

SIDE, HEADS, CHANNELS = 8, 2, 64
REDUCED_DEPTH = 3


def published_block(module: Any, window: int, positions: float = 0.5) -> Any:
    """medim's block over 8^3 tokens with random parameters; `positions` scales its tables."""
    torch.manual_seed(0)
    block = module.Block3D(CHANNELS, HEADS, use_rel_pos=True, window_size=window, input_size=(SIDE,) * 3)
    for name, parameter in block.named_parameters():
        parameter.data = torch.randn(parameter.shape) * (positions if "rel_pos" in name else 0.3)
    return block.eval().requires_grad_(False)


def attention_errors(block: Any, dtype: torch.dtype) -> float:
    """Largest difference of the exportable attention from the published block's, relative to its output's scale."""
    block = block.to(dtype)
    tokens = block.norm1(torch.randn(2, SIDE, SIDE, SIDE, CHANNELS, dtype=dtype))
    # A block without its norm and its MLP is its shortcut and its attention within the window.
    block.norm1, block.norm2 = torch.nn.Identity(), torch.nn.Identity()
    block.mlp.lin2.weight.data.zero_()
    block.mlp.lin2.bias.data.zero_()
    expected = (block(tokens) - tokens).flatten(1, 3)
    attention = exportable_attention(block.attn, block.window_size, SIDE).to(dtype).requires_grad_(False)
    return float((attention(tokens.flatten(1, 3)) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("window", [14, 9, 8, 0])
def test_attention_is_the_published_one(window: int) -> None:
    with architecture() as module:
        block = published_block(module, window)
        assert attention_errors(block, torch.float32) < 1e-5
        assert attention_errors(published_block(module, window), torch.float64) < 1e-12


def test_scores_far_beyond_the_range_of_exp_do_not_overflow() -> None:
    with architecture() as module:
        assert attention_errors(published_block(module, 14, positions=60.0), torch.float32) < 1e-4


@pytest.mark.parametrize("window", [14, 0])
def test_position_terms_keep_the_published_axes_not_those_of_their_names(window: int) -> None:
    with architecture() as module:
        block = published_block(module, window)
        module.add_decomposed_rel_pos = lambda *arguments: natural_positions(module, *arguments)
        assert attention_errors(block, torch.float32) > 0.1


def natural_positions(
    module: Any, attn: Any, q: Any, rel_pos_d: Any, rel_pos_h: Any, rel_pos_w: Any, size: Any, _: Any
) -> Any:
    """`add_decomposed_rel_pos` with each term on the key's axis that it is named after."""
    tables = [module.get_rel_pos(n, n, table) for n, table in zip(size, (rel_pos_d, rel_pos_h, rel_pos_w), strict=True)]
    query = q.reshape(len(q), *size, -1)
    depth = torch.einsum("bdhwc,dkc->bdhwk", query, tables[0])[..., :, None, None]
    height = torch.einsum("bdhwc,hkc->bdhwk", query, tables[1])[..., None, :, None]
    width = torch.einsum("bdhwc,wkc->bdhwk", query, tables[2])[..., None, None, :]
    return (attn.view(len(q), *size, *size) + depth + height + width).view(attn.shape)


def test_window_that_does_not_hold_the_picture_is_an_error() -> None:
    with architecture() as module:
        block = published_block(module, 7)
        with pytest.raises(ValueError, match=r"8 tokens a side.*window=7"):
            exportable_attention(block.attn, 7, SIDE)
        with pytest.raises(ValueError, match=r"rel_pos_d of 27 rows.*13 rows"):
            exportable_attention(block.attn, 14, SIDE)


@pytest.fixture(scope="module")
def family() -> Family:
    return load(random_seed=3, depth=REDUCED_DEPTH)


@pytest.fixture(scope="module")
def exported(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sam_med3d")
    write_graphs(family, folder)
    return folder


@pytest.fixture(scope="module")
def decode(exported: Path) -> Callable[[dict[str, np.ndarray]], list[np.ndarray]]:
    session = open_session(exported / "decoder.onnx")
    return lambda arrays: session.run(["logits", "predicted_iou"], arrays)


def test_graphs_compute_what_is_published(family: Family, exported: Path) -> None:
    comparisons = verify.compare(family, exported)
    assert {(c.graph, c.batch) for c in comparisons} == {
        (graph, n) for graph in ("encoder.onnx", "decoder.onnx") for n in (1, 3)
    }
    assert {c.prompts for c in comparisons} >= {"1 point", "3 points", "7 points", "3 points, mask", "mask"}
    assert max(c.relative for c in comparisons) < 5e-5, verify.table(comparisons)


def test_mask_counts_only_where_it_is_said_to_be(family: Family, decode: Callable) -> None:
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((1, 384, 8, 8, 8)).astype(np.float32)
    prompts = {name: np.repeat(a[:1], 2, axis=0) for name, a in family.prompt_cases["3 points, mask"](rng, 1).items()}
    prompts["has_masks"][1] = 0
    first, second = decode({"embeddings": embeddings, **prompts})[0]
    assert np.abs(first - second).max() > 0.1 * np.abs(first).max()
    prompts["masks"][1] = np.nan
    np.testing.assert_array_equal(decode({"embeddings": embeddings, **prompts})[0][1], second)


def test_prompts_in_one_call_are_the_prompts_alone(family: Family, decode: Callable) -> None:
    rng = np.random.default_rng(1)
    arrays = family.prompt_cases["7 points, mask for one in two"](rng, 16)
    arrays["embeddings"] = rng.standard_normal((1, 384, 8, 8, 8)).astype(np.float32)
    together = decode(arrays)
    for i in (0, 7, 8, 15):
        alone = decode({role: a if role == "embeddings" else a[i : i + 1] for role, a in arrays.items()})
        for whole, part in zip(together, alone, strict=True):
            np.testing.assert_allclose(whole[i], part[0], atol=1e-5 * np.abs(whole).max(), rtol=0)


def test_dense_position_keeps_the_published_order_of_axes() -> None:
    net = build(1, 5)
    position = exportable_decoder(net.prompt_encoder, net.mask_decoder).position.reshape(8, 8, 8, 384)
    # The encoding of the voxel at (0.5, 1.5, 2.5) / 8 stands where the first two axes are exchanged.
    coordinates = torch.tensor([[[0.5, 1.5, 2.5]]]) / 8
    torch.testing.assert_close(position[1, 0, 2], net.prompt_encoder.pe_layer._pe_encoding(coordinates)[0, 0])


def test_points_without_padding_at_the_end_are_not_what_the_decoder_takes(family: Family) -> None:
    arrays = family.prompt_cases["3 points"](np.random.default_rng(0), 1)
    arrays["embeddings"] = np.zeros((1, 384, 8, 8, 8), np.float32)
    arrays["point_labels"][:] = 1
    with pytest.raises(ValueError, match="padding point at the end"):
        family.published_decoder(arrays)


def test_random_weights_leave_no_parameter_as_it_is_published() -> None:
    net, again, other = build(1, 1), build(1, 1), build(1, 2)
    for name, parameter in net.named_parameters():
        assert parameter.std() > 0, name
        assert not torch.equal(parameter, other.get_parameter(name)), name
        assert torch.equal(parameter, again.get_parameter(name)), name


def test_released_form_of_a_checkpoint_is_loaded(tmp_path: Path) -> None:
    net = build(1, 4)
    torch.save({"model_state_dict": net.state_dict(), "epoch": 3}, tmp_path / "turbo.pth")
    family = load(str(tmp_path / "turbo.pth"), depth=1)
    assert family.source_name == "turbo.pth"
    assert family.source_sha256 == sam_med3d.source_sha256(str(tmp_path / "turbo.pth"))
    images = np.random.default_rng(0).standard_normal((1, 1, 128, 128, 128), np.float32)
    embeddings = family.encoder(torch.from_numpy(images)).numpy()
    with torch.no_grad():
        expected = net.image_encoder(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(embeddings, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_checkpoint_of_another_architecture_lists_names(tmp_path: Path) -> None:
    torch.save({"model_state_dict": {"image_encoder.pos": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(
        ValueError, match=r"weights of sam_med3d.*missing: image_encoder.*unexpected: image_encoder.pos"
    ):
        load(str(tmp_path / "other.pth"), depth=1)
    with pytest.raises(FileNotFoundError, match=r"--checkpoint=FILE.*SAM-Med3D"):
        load()


def test_only_the_architecture_of_medim_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    # What `import medim` pulls, broken or absent.
    for name in ("appdirs", "requests", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)
    before = set(sys.modules)
    with architecture() as module:
        assert module.build_sam3D_vit_b_ori
        with pytest.raises(RuntimeError, match="nothing is downloaded"):
            module.build_sam3D_vit_b_ori(pretrained=True, encoder_depth=0, checkpoint_path="https://huggingface.co/x")
    assert not {name for name in set(sys.modules) - before if name.startswith("medim")}


def test_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sam_med3d.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"medim.*semisam-tf\[export\]"):
        load(random_seed=1)


MEMORY = """
import sys, numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 2
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
images = np.zeros((1, 1, 128, 128, 128), np.float32)
def resident(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
session.run(None, {"images": images})
sys.stdout.write(str((resident("VmHWM") - before) / 1024))
"""


@pytest.mark.slow
def test_full_depth_exports_and_encodes_within_a_gibibyte(tmp_path: Path) -> None:
    values = export.sam.export("sam_med3d", tmp_path / "sam", random_seed=1)
    manifest = load_manifest(tmp_path / "sam")
    assert manifest.to_dict() == values
    assert (manifest.dims, manifest.input_size, manifest.logits_size) == (3, (128,) * 3, (32,) * 3)
    assert manifest.prompts == {"box": False, "point": True, "mask": True}
    assert max(error["relative"] for error in manifest.max_errors.values()) < 1e-4
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peak memory is read from Linux's /proc")
    # Of the process at its highest during the first encode, less what it held with the weights loaded.
    command = [sys.executable, "-c", MEMORY, str(tmp_path / "sam" / "encoder.onnx")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(result.stdout) < 1024
