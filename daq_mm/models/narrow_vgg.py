"""VGG-16 with fewer channels, as a classifier's and as SSD's backbone: mmcv's has a fixed width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import nn


class NarrowVGG(BaseModule):
    """VGG-16 with batch norm: feature maps of the fourth stage and of the end.

    Args:
        base_channels: of the first stage; 64 is the published width.
        dilation: None ends with the fifth stage. A number ends as SSD does, with two convolutions
            in place of VGG's linear layers, the first of them 3x3 with this dilation; SSD has 6,
            for maps of 19 pixels.

    The maps have strides 8 and 16, and 8 and 8 (in SSD 16) times `base_channels`.
    """

    #: (factor on base_channels, convolutions) of each stage; a pooling lies between two.
    stages = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))

    def __init__(
        self,
        base_channels: int = 32,
        dilation: int | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if init_cfg is None:
            init_cfg = dict(type="Kaiming", layer="Conv2d")
        super().__init__(init_cfg=init_cfg)
        layers: list[nn.Module] = []
        inside = 3
        for number, (factor, convolutions) in enumerate(self.stages):
            if number:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
            for _ in range(convolutions):
                layers += _conv(inside, base_channels * factor, 3, padding=1)
                inside = base_channels * factor
            if number == 3:
                self.features = nn.Sequential(*layers)
                layers = []
        if dilation is not None:
            layers.append(nn.MaxPool2d(3, stride=1, padding=1))
            layers += _conv(inside, 2 * inside, 3, padding=dilation, dilation=dilation)
            layers += _conv(2 * inside, 2 * inside, 1)
        self.last = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        """(N, 3, H, W) to maps of H / 8 and of H / 16 rows."""
        fine = self.features(x)
        return fine, self.last(fine)


def _conv(inside: int, channels: int, kernel: int, **geometry: int) -> list[nn.Module]:
    """Convolution, batch norm, ReLU."""
    conv = nn.Conv2d(inside, channels, kernel, bias=False, **geometry)
    return [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
