"""ResNet for CIFAR's pictures of 32 pixels (He et al., CVPR 2016, section 4.2)."""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from torch import nn
from torch.nn import functional as F


class CIFARResNet(BaseModule):
    """6n + 2 layers: a 3x3 stem and three stages of n blocks, with 16, 32 and 64 channels.

    Shortcuts have no parameters: where a stage begins, every other pixel is taken and the missing
    channels are zeros ("option A").

    Args:
        depth: 20, 32, 44, 56 or any other 6n + 2.
        base_channels: width of the first stage.
    """

    def __init__(
        self, depth: int = 20, base_channels: int = 16, init_cfg: dict | list[dict] | None = None
    ) -> None:
        if init_cfg is None:
            init_cfg = dict(type="Kaiming", layer="Conv2d")
        super().__init__(init_cfg=init_cfg)
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth={depth} must be 6n + 2, such as 20 or 56")
        self.conv1 = nn.Conv2d(3, base_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(base_channels)
        self.relu = nn.ReLU(inplace=True)
        blocks, channels = [], base_channels
        for stage in range(3):
            for block in range((depth - 2) // 6):
                width = base_channels * 2**stage
                blocks.append(BasicBlock(channels, width, stride=2 if stage and not block else 1))
                channels = width
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, 4 base_channels, H / 4, W / 4)."""
        return self.blocks(self.relu(self.bn1(self.conv1(x))))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.stride, self.added = stride, channels - in_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) to (N, channels, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride > 1 or self.added:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        return self.relu(out + x)
