"""C3D (Tran et al., ICCV 2015) with fewer channels: mmaction's has a fixed width."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from torch import nn


class NarrowC3D(BaseModule):
    """C3D's eight 3x3x3 convolutions and five poolings, with batch norm, for small clips.

    Args:
        base_channels: of the first convolution; 64 is the published width.
        temporal_strides: of the five poolings, which halve the picture each; as published for
            clips of 16 frames.
    """

    #: (factor on base_channels, convolutions) of each stage.
    stages = ((1, 1), (2, 1), (4, 2), (8, 2), (8, 2))

    def __init__(
        self,
        base_channels: int = 16,
        temporal_strides: Sequence[int] = (1, 2, 2, 2, 2),
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        if init_cfg is None:
            init_cfg = dict(type="Kaiming", layer="Conv3d")
        super().__init__(init_cfg=init_cfg)
        if len(temporal_strides) != len(self.stages):
            raise ValueError(f"temporal_strides={temporal_strides} must have five entries")
        layers: list[nn.Module] = []
        inside = 3
        for (factor, convolutions), time in zip(self.stages, temporal_strides):
            width = base_channels * factor
            for _ in range(convolutions):
                layers.append(nn.Conv3d(inside, width, 3, padding=1, bias=False))
                layers += [nn.BatchNorm3d(width), nn.ReLU(inplace=True)]
                inside = width
            layers.append(nn.MaxPool3d((time, 2, 2), ceil_mode=True))
        self.layers = nn.Sequential(*layers)
        self.out_channels = inside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 3, T, H, W) to (N, 8 base_channels, t, h, w)."""
        return self.layers(x)
