"""The PyTorch V-Net that ours is timed beside is the same network: size, golden logits, arithmetic."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch


@pytest.fixture(scope="module")
def torch_vnet(repo_root):
    spec = importlib.util.spec_from_file_location("torch_vnet", repo_root / "benchmarks" / "torch_vnet.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def golden_net(torch_vnet, values, dropout):
    net = torch_vnet.VNet(filters=values["w/block_one.conv.0.weight"].shape[0], dropout=dropout)
    # A copy: the fixture's arrays are read-only.
    net.load_state_dict(
        {k.removeprefix("w/"): torch.from_numpy(a.copy()) for k, a in values.items() if k.startswith("w/")}
    )
    return net


def worst(ours, golden):
    return float(np.abs(ours.detach().numpy() - golden).max() / np.abs(golden).max())


def test_it_has_the_published_number_of_parameters(torch_vnet):
    assert sum(parameter.numel() for parameter in torch_vnet.VNet().parameters()) == 9_448_866


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_it_computes_the_golden_logits(torch_vnet, golden, memory_format):
    values = golden("vnet")
    x = torch.from_numpy(values["x"].copy()).to(memory_format=memory_format)
    net = golden_net(torch_vnet, values, dropout=0.5).to(memory_format=memory_format)
    assert worst(net.eval()(x), values["eval_logits"]) < 1e-5
    net = golden_net(torch_vnet, values, dropout=0.0).to(memory_format=memory_format)
    # The tolerance of tests/parity/test_vnet.py, whose comment has the reason.
    assert worst(net.train()(x), values["train_logits_no_dropout"]) < 1e-4


def test_dropout_drops_whole_channels_in_training_only(torch_vnet):
    torch.manual_seed(0)
    net = torch_vnet.VNet(filters=2, dropout=0.5)
    x = torch.randn(2, 1, 16, 16, 16)
    net.train()
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_instance_norm_is_affine_and_others_are_refused(torch_vnet):
    net = torch_vnet.VNet(filters=2, normalisation="instance")
    assert net.block_one.conv[1].weight.shape == (2,)
    with pytest.raises(ValueError, match="Expected normalisation of"):
        torch_vnet.VNet(normalisation="group")


def test_the_arithmetic_of_a_tiny_network_by_hand(torch_vnet):
    """1 filter, 16^3 voxels: levels of 4096, 512, 64, 8, 1 voxels with 1, 2, 4, 8, 16 channels."""
    voxels, channels = [4096, 512, 64, 8, 1], [1, 2, 4, 8, 16]
    # Convolutions of 3^3 that keep size and channels, down and up again: 1, 2, 3, 3, 3 and 1, 2, 3, 3.
    same = [1 + 1, 2 + 2, 3 + 3, 3 + 3, 3]
    products = sum(27 * c * c * n * v for c, n, v in zip(channels, same, voxels, strict=True))
    # 2^3 down: to each voxel of the lower level; 2^3 up: from each voxel of the lower level.
    products += sum(2 * 8 * c * (2 * c) * v for c, v in zip(channels[:-1], voxels[1:], strict=True))
    products += 2 * 1 * 4096  # 1^3, to two classes
    assert torch_vnet.forward_gflop(1, (16, 16, 16), filters=1) == pytest.approx(2 * products / 1e9, rel=1e-12)
    assert torch_vnet.forward_gflop(3, (16, 16, 16), filters=1) == pytest.approx(6 * products / 1e9, rel=1e-12)
