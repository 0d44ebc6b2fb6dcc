"""The PyTorch V-Net that ours is timed beside is the same network: size, golden logits, arithmetic."""

from __future__ import annotations

import importlib
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
    shapes = []
    net.dropout.register_forward_hook(lambda _, inputs, output: shapes.append(tuple(output.shape)))
    net(x)
    assert shapes == [(2, 32, 1, 1, 1), (2, 2, 16, 16, 16)]  # the bottleneck, and before the output
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


@pytest.fixture
def speed_torch(repo_root, monkeypatch):
    monkeypatch.syspath_prepend(str(repo_root / "benchmarks"))
    return importlib.import_module("speed_torch")


TINY = {"batch": 4, "labelled": 2, "size": (16, 16, 16), "filters": 1, "normalisation": "batch", "dropout": 0.5}


@pytest.mark.parametrize(
    ("method", "settings", "batches"),
    [
        ("supervised", {"labelled": 4}, [4]),
        # Student, teacher, and four times a doubled batch.
        ("mean_teacher", {}, [4, 4, 8, 8, 8, 8]),
        ("mean_teacher", {"thrown_away": False, "channels_last": True}, [4, 4]),
        ("uncertainty_aware_mean_teacher", {}, [4, 2, 4, 4, 4, 4]),
    ],
)
def test_passes_of_a_published_step(speed_torch, monkeypatch, method, settings, batches):
    seen, forward = [], speed_torch.VNet.forward

    def counted(net, images):
        seen.append((net, len(images), torch.is_grad_enabled()))
        return forward(net, images)

    monkeypatch.setattr(speed_torch.VNet, "forward", counted)
    step = speed_torch.train_step(method, **(TINY | settings))["step"]
    step()
    assert [batch for _, batch, _ in seen] == batches
    # The gradient goes through the student's pass alone, and the teacher is another network.
    assert [graded for *_, graded in seen] == [True] + [False] * (len(batches) - 1)
    student = seen[0][0]
    assert all((net is student) == (index == 0) for index, (net, *_) in enumerate(seen))
    after_one_step = student.out_conv.weight.detach().clone()
    step()
    assert not torch.equal(student.out_conv.weight, after_one_step)
    with pytest.raises(ValueError, match="Expected method of"):
        speed_torch.train_step("magic", **TINY)


def test_the_teacher_follows_the_student(speed_torch, monkeypatch):
    made, init = [], speed_torch.VNet.__init__
    monkeypatch.setattr(speed_torch.VNet, "__init__", lambda net, **a: (init(net, **a), made.append(net))[0])
    step = speed_torch.train_step("mean_teacher", **TINY)["step"]
    before = made[1].out_conv.weight.detach().clone()
    step()
    expected = 0.99 * before + 0.01 * made[0].out_conv.weight.detach()
    torch.testing.assert_close(made[1].out_conv.weight.detach(), expected)
    assert not torch.equal(made[1].out_conv.weight, before)


def test_the_supervised_loss_has_the_golden_value(speed_torch, golden):
    values = golden("losses")
    logits, label = (torch.from_numpy(values[name].copy()) for name in ("student_logits", "label"))
    expected = float(values["cross_entropy"] + values["dice_loss"])
    assert float(speed_torch._supervised(logits, label.long())) == pytest.approx(expected, rel=1e-5)


def test_the_uncertainty_is_the_entropy_of_the_mean_of_eight(speed_torch):
    """A stand-in that is sure of class 1 in three passes of four, whatever it sees: the mean is 1/4, 3/4."""
    passes = iter([1, 1, 1, 0])

    def teacher(images):
        assert len(images) == 6
        logits = torch.zeros(6, 2, *images.shape[2:])
        logits[:, next(passes)] = 100.0
        return logits

    found = speed_torch._uncertainty(teacher, torch.zeros(3, 1, 2, 2, 2))
    assert found.shape == (3, 1, 2, 2, 2)
    expected = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_a_forward_pass_and_a_matrix_product(speed_torch):
    forward = {name: value for name, value in TINY.items() if name != "labelled"}
    tasks = speed_torch.forward(**forward, channels_last=True)
    tasks["step"]()
    assert tasks["matmul"]().shape == (2048, 2048)


def test_sam_is_clicked_at_until_its_mask_is_right(speed_torch):
    """A stand-in whose mask is right from the answer number `right_after` on."""
    truth = torch.zeros(8, 8, 8, dtype=torch.bool)
    truth[2:6, 2:6, 2:6] = True

    class Sam:
        def __init__(self, right_after):
            self.right_after, self.prompts, self.encoded = right_after, [], 0

        def image_encoder(self, image):
            self.encoded += 1
            return image

        @property
        def prompt_encoder(self):
            return self

        def get_dense_pe(self):
            return None

        def __call__(self, points, boxes, masks):
            (coordinates, labels), (x, y, z) = points, points[0][0, 0].long().tolist()
            assert coordinates.shape == (1, 1, 3)
            assert labels.tolist() == [[float(truth[x, y, z])]]
            self.prompts.append(masks)
            return None, None

        def mask_decoder(self, **_):
            right = len(self.prompts) >= self.right_after
            return (truth if right else ~truth).float()[None, None] - 0.5, None

    for right_after, clicks in ((3, 3), (99, 10)):
        sam = Sam(right_after)
        mask = speed_torch._ask(sam, torch.zeros(1, 1, 8, 8, 8), truth)
        assert (sam.encoded, len(sam.prompts)) == (1, clicks)
        # Each click but the first has the mask so far.
        assert [prompt is None for prompt in sam.prompts] == [True] + [False] * (clicks - 1)
        assert torch.equal(mask, truth) == (right_after <= 10)
