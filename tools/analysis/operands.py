"""Quantization of one operand at a time, to see which of them a gradient's error comes from.

Values are put on the library's 8-bit grids and computed with in floating point, so that everything
else stays exact. Gradients have thresholds at the current absolute maximum of each channel: no
clipping, no memory.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

import daq_mm
from daq_mm import ops
from daq_mm.ops import reference

Tensor = torch.Tensor

#: What each part quantizes: of the forward pass (x, w) and of the two backward products (the
#: gradient in grad-input, in grad-weight). x and w are used quantized wherever they are used.
#: "w folded" is w times the steps of x's channels, on a grid for each output channel, as the method
#: folds the gradient's steps into grad-input's weight.
PARTS: dict[str, frozenset[str]] = {
    "x": frozenset({"x"}),
    "w": frozenset({"w"}),
    "w_by_channel": frozenset({"w by channel"}),
    "forward": frozenset({"x", "w"}),
    "forward_by_channel": frozenset({"x", "w by channel"}),
    "x_by_channel": frozenset({"x by channel"}),
    "forward_folded": frozenset({"x by channel", "w folded"}),
    "grad_input": frozenset({"grad-input"}),
    "grad_weight": frozenset({"grad-weight"}),
    "all": frozenset({"x", "w", "grad-input", "grad-weight"}),
}
#: 'x_at_0.8' is x on the grid of 0.8 times its absolute maximum: what is beyond is clipped.
CLIPPED = "x_at_"


def quantize_part(model: nn.Module, part: str, in_place: bool = False) -> nn.Module:
    """A copy of the model, or itself, in which one part of `PARTS` is quantized, in convolutions
    that `daq_mm.convert_model` would convert. 'x_at_0.8' is x, clipped at 0.8 of its maximum.

    Raises:
        ValueError: an unknown part, or nothing to convert.
    """
    quantized, share = part, 1.0
    if part.startswith(CLIPPED):
        quantized, share = "x", _share(part)
    if quantized not in PARTS:
        raise ValueError(
            f"only:{part} is unknown; allowed: {', '.join(PARTS)}, {CLIPPED}0.8 and the like"
        )
    names = [name for name, _ in daq_mm.convert_model(copy.deepcopy(model)).converted]
    if not names:
        raise ValueError("the model has no convolution to quantize")
    if not in_place:
        model = copy.deepcopy(model)
    for name in names:
        layer = model.get_submodule(name)
        layer.forward = _quantized_forward(layer, PARTS[quantized], share)
    return model


def _share(part: str) -> float:
    """0.8 of 'x_at_0.8'; ValueError unless it is above 0 and at most 1."""
    try:
        share = float(part.removeprefix(CLIPPED))
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ValueError(f"only:{part} needs a number above 0 and at most 1 behind {CLIPPED}")
    return share


def on_grid(values: Tensor, share: float = 1.0) -> Tensor:
    """An activation on its grid, unsigned where it has no negative value: q_x * step.

    Args:
        share: of the absolute maximum, which the grid ends at; values beyond are clipped.
    """
    if share < 1:
        most = share * values.abs().amax()
        values = values.clamp(-most, most)
    q, (step, zero_point) = ops.quantize_x(values, allow_unsigned=True)
    return (q.float() - zero_point) * step


def on_grid_by_channel(values: Tensor) -> tuple[Tensor, Tensor]:
    """An activation with a grid for each channel, unsigned where the tensor has no negative value.

    Returns:
        the values on the grids; their steps, float32 (C,), 1 where a channel has only zeros.
    """
    threshold = reference.absolute_maximum(values, (0, *range(2, values.dim())))
    levels = reference.unsigned_levels(8) if values.amin() >= 0 else reference.signed_levels(8)
    step = threshold / levels
    step = torch.where(step > 0, step, torch.ones_like(step))
    by_channel = step.view(1, -1, *[1] * (values.dim() - 2))
    return torch.round(values / by_channel) * by_channel, step


def folded_weight_on_grid(w: Tensor, x_step: Tensor, groups: int) -> Tensor:
    """w (Co, Ci / groups, *) on grids of w times x's steps, one for each output channel."""
    rows = x_step.view(groups, 1, -1).expand(-1, w.shape[0] // groups, -1).reshape(w.shape[:2])
    rows = rows.view(*w.shape[:2], *[1] * (w.dim() - 2))
    return weight_on_grid(w * rows, by_channel=True) / rows


def weight_on_grid(w: Tensor, by_channel: bool = False) -> Tensor:
    """A weight on the grid of its absolute maximum, or on one for each output channel."""
    if not by_channel:
        q, step = ops.quantize_w(w)
        return q.float() * step
    return gradient_on_grid(w.transpose(0, 1)).transpose(0, 1)


def gradient_on_grid(g: Tensor) -> Tensor:
    """(N, C, *) on the grid of each channel's absolute maximum, rounded to nearest."""
    threshold = reference.absolute_maximum(g, (0, *range(2, g.dim())))
    q = reference.quantize_g(g, threshold, None)
    step = reference.step_of(threshold, reference.signed_levels(8))
    return q.float() * step.view(1, -1, *[1] * (g.dim() - 2))


class _Convolution(torch.autograd.Function):
    """A convolution of quantized operands; both backward products get their own gradient."""

    @staticmethod
    def forward(ctx, x, w, bias, layer, part, share) -> Tensor:
        if "x" in part:
            x = on_grid(x, share)
        if "x by channel" in part:
            x, x_step = on_grid_by_channel(x)
        if "w folded" in part:
            w = folded_weight_on_grid(w, x_step, layer.groups)
        if "w" in part or "w by channel" in part:
            w = weight_on_grid(w, by_channel="w by channel" in part)
        ctx.save_for_backward(x, w)
        ctx.layer, ctx.part, ctx.has_bias = layer, part, bias is not None
        return layer._conv_forward(x, w, bias)

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        quantized = gradient_on_grid(g)
        for_x = quantized if "grad-input" in ctx.part else g
        for_w = quantized if "grad-weight" in ctx.part else g
        dx = _products(ctx.layer, for_x, x, w, (ctx.needs_input_grad[0], False))[0]
        dw = _products(ctx.layer, for_w, x, w, (False, True))[1]
        db = g.sum((0, *range(2, g.dim()))) if ctx.has_bias else None
        return dx, dw, db, None, None, None


def _products(layer, g: Tensor, x: Tensor, w: Tensor, wanted: tuple[bool, bool]):
    geometry = (layer.stride, layer.padding, layer.dilation)
    return torch.ops.aten.convolution_backward(
        g, x, w, None, *geometry, False, [0] * len(layer.stride), layer.groups, [*wanted, False]
    )


def _quantized_forward(
    layer: nn.Module, part: frozenset[str], share: float
) -> Callable[[Tensor], Tensor]:
    if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        raise ValueError(f"{layer} pads in a way that only: has no backward products for")
    return lambda x: _Convolution.apply(x, layer.weight, layer.bias, layer, part, share)
