"""Errors of the two backward products with each way to quantize the gradient, on real tensors."""

from __future__ import annotations

import math

import torch

from daq_mm import ops
from daq_mm.ops import reference

Tensor = torch.Tensor

#: Variants by product: one threshold for the tensor, one a channel, and further ones.
#: 'stochastic' is 'channel' with stochastic rounding; 'centred' is 'channel' with the sum of what
#: rounding dropped, channel by channel, put back as a constant gradient.
VARIANTS = {
    "grad_input": ("global", "folded"),
    "grad_weight": ("tensor", "channel", "stochastic", "centred"),
}


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
    exact_x = float_grad_input(x, w, g, geometry)

    def backward(vectorized: bool, seed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        dx, dw, _ = ops.conv_backward(
            *(g, q_x, x_qparams, w, threshold, seed),
            **geometry,
            folded=vectorized,
            channel_grad_weight=vectorized,
            output_mask=[True, True, False],
            x_dtype=torch.float32,
        )
        return dx, dw

    (dx, dw), (dx_folded, dw_channel) = backward(False), backward(True)
    dw_stochastic = backward(True, torch.zeros(1, dtype=torch.int64))[1]
    dw_centred = dw_channel + dropped_mean(x_hat, w, g, maxima, geometry)
    inputs, weights = (dx, dx_folded), (dw, dw_channel, dw_stochastic, dw_centred)
    return {
        product: {v: decibels(exact, ours) for v, ours in zip(VARIANTS[product], results)}
        for product, exact, results in (
            ("grad_input", exact_x, inputs),
            ("grad_weight", exact_w, weights),
        )
    }


def dropped_mean(x_hat: Tensor, w: Tensor, g: Tensor, threshold: Tensor, geometry: dict) -> Tensor:
    """grad-weight of the mean, channel by channel, of what rounding took from g.

    Batch norm makes a channel's gradient sum to zero; rounding to nearest does not keep that, and
    an activation after a ReLU has a large mean, by which the difference is multiplied.

    Args:
        x_hat, w, g: as for `product_errors`. threshold: float32 (Co,).
    """
    groups, axes = geometry["groups"], (0, *range(2, g.dim()))
    step = (threshold / 127).view(1, -1, *([1] * (g.dim() - 2)))
    dropped = (g - ops.quantize_g(g, threshold).float() * step).mean(axes)
    ones = torch.ones_like(g[:, :groups])
    sums = ops.float_grad_weight(x_hat, ones, w[:groups], **geometry)
    sums = sums.repeat_interleave(w.shape[0] // groups, dim=0)
    return dropped.view(-1, *([1] * (w.dim() - 1))) * sums


def float_grad_input(x: Tensor, w: Tensor, g: Tensor, geometry: dict) -> Tensor:
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
