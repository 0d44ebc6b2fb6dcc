"""The V-Net of `semisam_tf.models.vnet` in plain PyTorch, to time ours beside: for a process without TensorFlow.

Written from our own network. A test gives it the golden weights and finds the golden logits.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_NORMS = {
    "batch": nn.BatchNorm3d,
    # Ours is affine, PyTorch's default is not.
    "instance": lambda channels: nn.InstanceNorm3d(channels, affine=True),
}
# Name -> convolution of so many channels to so many.
_CONVOLUTIONS = {
    "same": lambda before, after: nn.Conv3d(before, after, 3, padding=1),
    "down": lambda before, after: nn.Conv3d(before, after, 2, stride=2),
    "up": lambda before, after: nn.ConvTranspose3d(before, after, 2, stride=2),
}


class Stage(nn.Module):
    """`n_convolutions` times convolution, normalisation, ReLU: [B, before, X, Y, Z] -> [B, after, X', Y', Z']."""

    def __init__(self, before: int, after: int, normalisation: str, n_convolutions: int = 1, kind: str = "same"):
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(n_convolutions):
            layers.append(_CONVOLUTIONS[kind](after if index else before, after))
            layers += [_NORMS[normalisation](after), nn.ReLU(inplace=True)]
        self.conv = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


class VNet(nn.Module):
    """Float32 [B, channels, X, Y, Z] -> logits float32 [B, n_classes, X, Y, Z]; X, Y, Z are multiples of 16 voxels.

    Args:
        normalisation: "batch" or "instance".
        dropout: Share of whole channels dropped at the bottleneck and before the output, in training mode.
    """

    def __init__(
        self, channels: int = 1, n_classes: int = 2, filters: int = 16, normalisation: str = "batch", dropout=0.5
    ):
        super().__init__()
        if normalisation not in _NORMS:
            raise ValueError(f"Expected normalisation of {sorted(_NORMS)}. Received: {normalisation!r}.")
        f, norm = filters, normalisation
        self.block_one = Stage(channels, f, norm, 1)
        self.block_one_dw = Stage(f, 2 * f, norm, kind="down")
        self.block_two = Stage(2 * f, 2 * f, norm, 2)
        self.block_two_dw = Stage(2 * f, 4 * f, norm, kind="down")
        self.block_three = Stage(4 * f, 4 * f, norm, 3)
        self.block_three_dw = Stage(4 * f, 8 * f, norm, kind="down")
        self.block_four = Stage(8 * f, 8 * f, norm, 3)
        self.block_four_dw = Stage(8 * f, 16 * f, norm, kind="down")
        self.block_five = Stage(16 * f, 16 * f, norm, 3)
        self.block_five_up = Stage(16 * f, 8 * f, norm, kind="up")
        self.block_six = Stage(8 * f, 8 * f, norm, 3)
        self.block_six_up = Stage(8 * f, 4 * f, norm, kind="up")
        self.block_seven = Stage(4 * f, 4 * f, norm, 3)
        self.block_seven_up = Stage(4 * f, 2 * f, norm, kind="up")
        self.block_eight = Stage(2 * f, 2 * f, norm, 2)
        self.block_eight_up = Stage(2 * f, f, norm, kind="up")
        self.block_nine = Stage(f, f, norm, 1)
        self.out_conv = nn.Conv3d(f, n_classes, 1)
        self.dropout = nn.Dropout3d(dropout)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x1 = self.block_one(image)
        x2 = self.block_two(self.block_one_dw(x1))
        x3 = self.block_three(self.block_two_dw(x2))
        x4 = self.block_four(self.block_three_dw(x3))
        x5 = self.dropout(self.block_five(self.block_four_dw(x4)))
        x6 = self.block_six(self.block_five_up(x5) + x4)
        x7 = self.block_seven(self.block_six_up(x6) + x3)
        x8 = self.block_eight(self.block_seven_up(x7) + x2)
        x9 = self.block_nine(self.block_eight_up(x8) + x1)
        return self.out_conv(self.dropout(x9))


def forward_gflop(batch: int, size: tuple[int, ...], filters: int) -> float:
    """Arithmetic of one forward pass in 1e9 operations, convolutions only: a product and a sum are two.

    Counted on shapes alone; nothing is computed.
    """
    return sum(forward_gflop_by_layer(batch, size, filters).values())


def forward_gflop_by_layer(batch: int, size: tuple[int, ...], filters: int) -> dict[str, float]:
    """`forward_gflop` of each convolution, by the published name of its layer."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.inference_mode():
        net = VNet(1, 2, filters).eval()
        net(torch.empty(batch, 1, *size))
    layers = {f"VNet.{name}": name for name, module in net.named_modules() if not [*module.children()]}
    counts = counter.get_flop_counts()
    return {layers[name]: sum(counts[name].values()) / 1e9 for name in layers if name in counts}
