"""Errors of the two backward products with each way to quantize the gradient, on real tensors."""

from __future__ import annotations

import math

import torch

from daq_mm import ops
from daq_mm.ops import reference

Tensor = torch.Tensor

#: Variants by product; the first is the paper's or the plain one, the second the vectorized one.
VARIANTS = {"grad_input": ("global", "folded"), "grad_weight": ("tensor", "channel")}


def decibels(exact: Tensor, approximate: Tensor) -> float | None:
    """Signal-to-noise ratio of an approximation in dB; None without signal or noise."""
    signal = float(exact.double().square().sum())
    noise = float((exact.double() - approximate.double()).square().sum())
    return 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None


def product_errors(x: Tensor, w: Tensor, g: Tensor, geometry: dict) -> dict[str, dict[str, float]]:
    """Signal-to-noise ratios in dB of grad-input and grad-weight, with no clipping.

    grad-input is compared with the float product of g and w; grad-weight with the float product
    of g and the 8-bit activation, so that only the gradient's quantization counts.

    Args:
        x: (N, Ci, *spatial), w: (Co, Ci / groups, *kernel), g: (N, Co, *out), float32.
        geometry: stride, padding (begins and ends), dilation, groups.
    """
    q_x, x_qparams = ops.quantize_x(x, allow_unsigned=False)
    x_hat = (q_x.float() - x_qparams[1]) * x_qparams[0]
    maxima = reference.absolute_maximum(g, (0, *range(2, g.dim())))
    threshold = torch.cat([maxima, maxima.amax().view(1)])
    exact_w = ops.float_grad_weight(x_hat.double(), g.double(), w.double(), **geometry)
    exact_x = _float_grad_input(x, w, g, geometry)
    result: dict[str, dict[str, float]] = {"grad_input": {}, "grad_weight": {}}
    for vectorized in (False, True):
        dx, dw, _ = ops.conv_backward(
            *(g, q_x, x_qparams, w, threshold, None),
            **geometry,
            folded=vectorized,
            channel_grad_weight=vectorized,
            output_mask=[True, True, False],
            x_dtype=torch.float32,
        )
        for product, exact, ours in (("grad_input", exact_x, dx), ("grad_weight", exact_w, dw)):
            result[product][VARIANTS[product][vectorized]] = decibels(exact, ours)
    return result


def _float_grad_input(x: Tensor, w: Tensor, g: Tensor, geometry: dict) -> Tensor:
    """dX = G *T W in float64, by autograd."""
    rank = x.dim() - 2
    pads = geometry["padding"]
    x = x.double().requires_grad_()
    begin_end = [n for axis in reversed(range(rank)) for n in (pads[axis], pads[rank + axis])]
    conv = torch.nn.functional.conv2d if rank == 2 else torch.nn.functional.conv3d
    with torch.enable_grad():
        y = conv(
            torch.nn.functional.pad(x, begin_end),
            w.double(),
            None,
            geometry["stride"],
            0,
            geometry["dilation"],
            geometry["groups"],
        )
        return torch.autograd.grad(y, x, g.double())[0]
