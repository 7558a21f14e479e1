"""Random operands of one convolution, float and 8-bit, as a training step would have them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from daq_mm import DAQConfig, ops
from daq_mm.ops.layout import channels_last_format

from .shapes import ConvShape

Tensor = torch.Tensor

#: Float types by the name that options and records use.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class Operands:
    """What the ops and PyTorch's convolution are called with, on one device, channels-last.

    Attributes:
        shape: the convolution.
        config: which thresholds and grids the ops use.
        x, w, g: by dtype's name: activation, weight and output gradient of the same values.
        threshold: float32 (Co + 1,), absolute maxima of g: one a channel, then the tensor's.
        q_x, x_qparams, q_w, w_step, q_g: 8-bit operands for the products alone.
        q_w_input, input_step: the weight and step that grad-input uses.
    """

    shape: ConvShape
    config: DAQConfig
    x: dict[str, Tensor]
    w: dict[str, Tensor]
    g: dict[str, Tensor]
    threshold: Tensor
    q_x: Tensor = field(init=False)
    x_qparams: Tensor = field(init=False)
    q_w: Tensor = field(init=False)
    w_step: Tensor = field(init=False)
    q_g: Tensor = field(init=False)
    q_w_input: Tensor = field(init=False)
    input_step: Tensor = field(init=False)

    def __post_init__(self) -> None:
        w, g = self.w["fp32"], self.g["fp32"]
        self.q_x, self.x_qparams = ops.quantize_x(
            self.x["fp32"], allow_unsigned=self.config.unsigned_activations
        )
        self.q_w, self.w_step = ops.quantize_w(w)
        self.q_g = ops.quantize_g(g, self.threshold[:-1])
        if self.folded:
            self.q_w_input, self.input_step = ops.quantize_w_folded(
                w, self.threshold[:-1], groups=self.shape.geometry.groups
            )
        else:
            # The products alone take any 8-bit gradient; which thresholds made it is no matter.
            self.q_w_input, self.input_step = self.q_w, self.w_step

    @property
    def folded(self) -> bool:
        """Whether grad-input has the channels' thresholds folded into the weight."""
        return self.config.grad_input == "folded"

    @property
    def conv_arguments(self) -> dict:
        """Keyword arguments of the ops that describe the geometry."""
        g = self.shape.geometry
        return {
            "stride": g.stride,
            "padding": g.padding,
            "dilation": g.dilation,
            "groups": g.groups,
        }


def make_operands(
    shape: ConvShape,
    *,
    config: DAQConfig,
    dtypes: tuple[str, ...] = tuple(DTYPES),
    device: torch.device | str = "cpu",
) -> Operands:
    """Draw operands: activations after a ReLU where the network has them so, gradients whose
    channels differ in magnitude."""
    geometry = shape.geometry
    layout = channels_last_format(geometry.rank)
    per_channel = (1, -1, *([1] * geometry.rank))

    def draw(size: tuple[int, ...]) -> Tensor:
        return torch.randn(size, device=device).contiguous(memory_format=layout)

    x = draw(geometry.x_size)
    if shape.unsigned:
        x.relu_()
    w = draw(geometry.w_size).div_(math.sqrt(geometry.forward_contraction))
    g = draw(geometry.out_size)
    g.mul_(torch.logspace(-4, -2, geometry.w_size[0], device=device).view(per_channel))
    # float32 is always there: the 8-bit operands are made of it.
    names = tuple(dict.fromkeys(("fp32", *dtypes)))
    by_channel = g.abs().amax((0, *range(2, g.dim())))
    return Operands(
        shape,
        config,
        *({name: t.to(DTYPES[name]) for name in names} for t in (x, w, g)),
        threshold=torch.cat([by_channel, by_channel.amax().view(1)]),
    )
