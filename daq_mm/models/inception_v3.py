"""InceptionV3 (Szegedy et al., CVPR 2016), without the auxiliary classifier."""

from __future__ import annotations

import torch
from mmengine.model import BaseModule
from torch import nn


class InceptionV3(BaseModule):
    """Stem, three 35x35 blocks, four 17x17 blocks with 1x7 and 7x1 kernels, two 8x8 blocks.

    Args:
        width: factor on the channels of every convolution.
        stem_strides: strides of the first convolution and of the stem's two poolings. (2, 2, 2)
            is the published network, which needs 75 pixels; with (1, 2, 2) it takes
            56, with (1, 1, 2) 28.

    The result has `out_channels` = 2048 times `width` channels.
    """

    def __init__(
        self,
        width: float = 1.0,
        stem_strides: tuple[int, int, int] = (2, 2, 2),
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if init_cfg is None:
            init_cfg = dict(type="Kaiming", layer="Conv2d")
        super().__init__(init_cfg=init_cfg)

        def n(channels: int) -> int:
            return max(8, round(channels * width))

        first, pool1, pool2 = stem_strides
        self.stem = nn.Sequential(
            ConvNormReLU(3, n(32), 3, stride=first),
            ConvNormReLU(n(32), n(32), 3),
            ConvNormReLU(n(32), n(64), 3, padding=1),
            nn.MaxPool2d(3, pool1),
            ConvNormReLU(n(64), n(80), 1),
            ConvNormReLU(n(80), n(192), 3),
            nn.MaxPool2d(3, pool2),
        )
        channels = n(192)
        blocks: list[nn.Module] = []
        for pooled in (32, 64, 64):
            blocks.append(block_a(channels, n, pooled))
            channels = blocks[-1].out_channels
        blocks.append(reduction_a(channels, n))
        channels = blocks[-1].out_channels
        for inner in (128, 160, 160, 192):
            blocks.append(block_b(channels, n, inner))
            channels = blocks[-1].out_channels
        blocks.append(reduction_b(channels, n))
        channels = blocks[-1].out_channels
        for _ in range(2):
            blocks.append(block_c(channels, n))
            channels = blocks[-1].out_channels
        self.blocks = nn.Sequential(*blocks)
        self.out_channels = channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) to (N, out_channels, h, w); h = w = 8 for 299 pixels."""
        return self.blocks(self.stem(x))


class ConvNormReLU(nn.Sequential):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, in_channels: int, channels: int, kernel, stride: int = 1, padding=0) -> None:
        super().__init__(
            nn.Conv2d(in_channels, channels, kernel, stride, padding, bias=False),
            nn.BatchNorm2d(channels, eps=1e-3),
            nn.ReLU(inplace=True),
        )
        self.out_channels = channels


class Branches(nn.ModuleList):
    """Parallel paths whose results are joined along the channels."""

    def __init__(self, *paths: nn.Module, out_channels: int) -> None:
        super().__init__(paths)
        self.out_channels = out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([path(x) for path in self], 1)


def _path(in_channels: int, *layers: tuple) -> nn.Sequential:
    """Convolutions one after another; each layer is (channels, kernel, stride, padding)."""
    modules = []
    for channels, kernel, stride, padding in layers:
        modules.append(ConvNormReLU(in_channels, channels, kernel, stride, padding))
        in_channels = channels
    return nn.Sequential(*modules)


def _pooled(in_channels: int, channels: int) -> nn.Sequential:
    """3x3 average pooling of stride 1 and a 1x1 convolution."""
    return nn.Sequential(nn.AvgPool2d(3, 1, 1), ConvNormReLU(in_channels, channels, 1))


def block_a(inside: int, n, pooled: int) -> Branches:
    """The 35x35 block: 1x1, 5x5, two 3x3, pooling."""
    return Branches(
        _path(inside, (n(64), 1, 1, 0)),
        _path(inside, (n(48), 1, 1, 0), (n(64), 5, 1, 2)),
        _path(inside, (n(64), 1, 1, 0), (n(96), 3, 1, 1), (n(96), 3, 1, 1)),
        _pooled(inside, n(pooled)),
        out_channels=2 * n(64) + n(96) + n(pooled),
    )


def reduction_a(inside: int, n) -> Branches:
    """35x35 to 17x17."""
    return Branches(
        _path(inside, (n(384), 3, 2, 0)),
        _path(inside, (n(64), 1, 1, 0), (n(96), 3, 1, 1), (n(96), 3, 2, 0)),
        nn.MaxPool2d(3, 2),
        out_channels=n(384) + n(96) + inside,
    )


def block_b(inside: int, n, inner: int) -> Branches:
    """The 17x17 block: 7x7 kernels factored into 1x7 and 7x1."""
    row, column = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
    c, out = n(inner), n(192)
    return Branches(
        _path(inside, (out, 1, 1, 0)),
        _path(inside, (c, 1, 1, 0), (c, *row), (out, *column)),
        _path(inside, (c, 1, 1, 0), (c, *column), (c, *row), (c, *column), (out, *row)),
        _pooled(inside, out),
        out_channels=4 * out,
    )


def reduction_b(inside: int, n) -> Branches:
    """17x17 to 8x8."""
    c = n(192)
    return Branches(
        _path(inside, (c, 1, 1, 0), (n(320), 3, 2, 0)),
        _path(inside, (c, 1, 1, 0), (c, (1, 7), 1, (0, 3)), (c, (7, 1), 1, (3, 0)), (c, 3, 2, 0)),
        nn.MaxPool2d(3, 2),
        out_channels=n(320) + c + inside,
    )


def block_c(inside: int, n) -> Branches:
    """The 8x8 block, whose 3x3 kernels are split into 1x3 beside 3x1."""
    c = n(384)

    def split() -> Branches:
        return Branches(
            ConvNormReLU(c, c, (1, 3), padding=(0, 1)),
            ConvNormReLU(c, c, (3, 1), padding=(1, 0)),
            out_channels=2 * c,
        )

    return Branches(
        _path(inside, (n(320), 1, 1, 0)),
        nn.Sequential(ConvNormReLU(inside, c, 1), split()),
        nn.Sequential(_path(inside, (n(448), 1, 1, 0), (c, 3, 1, 1)), split()),
        _pooled(inside, n(192)),
        out_channels=n(320) + 4 * c + n(192),
    )
