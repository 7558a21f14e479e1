"""Ops that turn float tensors into 8-bit ones: activations, weights, gradients.

All results lie channels-last in memory (weights: contiguous). `threshold` s is the largest
magnitude that the grid holds, `step` the distance of two grid points.
"""

from __future__ import annotations

import torch

from . import reference
from ._library import define
from .layout import channels_last_format, weight_format

Tensor = torch.Tensor

define(
    "quantize_x(Tensor x, bool allow_unsigned) -> (Tensor, Tensor)",
    reference.quantize_x,
    lambda x, allow_unsigned: (_empty_like(x, torch.uint8), x.new_empty(2, dtype=torch.float32)),
)
define(
    "quantize_w(Tensor w) -> (Tensor, Tensor)",
    reference.quantize_w,
    lambda w: (
        w.new_empty(w.shape, dtype=torch.int8),
        w.new_empty(1, dtype=torch.float32),
    ),
)
define(
    "quantize_w_folded(Tensor w, Tensor g_threshold, int groups, bool keep_format=False) "
    "-> (Tensor, Tensor)",
    reference.quantize_w_folded,
    lambda w, g_threshold, groups, keep_format=False: (
        w.new_empty(w.shape, dtype=torch.int8).contiguous(
            memory_format=weight_format(w) if keep_format else torch.contiguous_format
        ),
        w.new_empty(w.shape[1] * groups, dtype=torch.float32),
    ),
)
define(
    "quantize_g(Tensor g, Tensor threshold, Tensor? seed) -> Tensor",
    reference.quantize_g,
    lambda g, threshold, seed: _empty_like(g, torch.int8),
)


def _empty_like(x: Tensor, dtype: torch.dtype) -> Tensor:
    memory_format = channels_last_format(x.dim() - 2)
    return torch.empty(x.shape, dtype=dtype, device=x.device).contiguous(
        memory_format=memory_format
    )


def quantize_x(x: Tensor, *, allow_unsigned: bool) -> tuple[Tensor, Tensor]:
    """Quantize an activation with one threshold, its absolute maximum (paper, section 3.1).

    Args:
        x: (N, C, *spatial), 2 or 3 spatial axes, float32, bfloat16 or float16.
        allow_unsigned: if x has no negative value, use the unsigned grid 0..255, which has
            twice the resolution; otherwise the signed grid -127..127.

    Returns:
        q_x: uint8, x's shape, channels-last; the signed grid is stored with zero point 128.
        x_qparams: float32 (2,) = (step, zero point); x is about (q_x - zero point) * step.
            A NaN or Inf in x makes the step non-finite.
    """
    return torch.ops.daq_mm.quantize_x(x, allow_unsigned)


def quantize_w(w: Tensor, *, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Quantize a weight with one threshold, its absolute maximum (paper, section 3.1).

    Args:
        w: (Co, Ci / groups, *kernel), float32, bfloat16 or float16.
        bits: of the grid; kernels serve 8, the reference 2 to 8.

    Returns:
        q_w: int8 in -127..127, w's shape, contiguous; w_step: float32 (1,).
    """
    return torch.ops.daq_mm.quantize_w(w) if bits == 8 else reference.quantize_w(w, bits)


def quantize_w_folded(
    w: Tensor, g_threshold: Tensor, *, groups: int, keep_format: bool = False
) -> tuple[Tensor, Tensor]:
    """Quantize the weight of grad-input with the gradient's thresholds folded into it.

    grad-input sums over output channels, dX_i = sum_c s_c/127 q_c W_ci; so row c of w is
    multiplied by c's gradient step first, and the product is quantized with one threshold for
    each input channel i, which factors out of the sum again. Not in the paper.

    Args:
        w: (Co, Ci / groups, *kernel), float32, bfloat16 or float16.
        g_threshold: float32 (Co,), thresholds of the output gradient's channels.
        groups: the convolution's groups.
        keep_format: q_w in w's memory format, which spares the CPU a transposition.

    Returns:
        q_w: int8, w's shape, contiguous or in w's format; step: float32 (Ci,), by which an
        integer sum for input channel i is multiplied to give dX_i.
    """
    return torch.ops.daq_mm.quantize_w_folded(w, g_threshold, groups, keep_format)


def quantize_g(
    g: Tensor, threshold: Tensor, *, seed: Tensor | None = None, bits: int = 8
) -> Tensor:
    """Quantize an output gradient, clipping at the threshold (paper, section 3.2).

    Args:
        g: (N, Co, *out), float32, bfloat16 or float16.
        threshold: float32, (Co,) for one a channel or (1,) for one a tensor. A threshold of 0
            or a non-finite one gives zeros here; the latter's step is non-finite too, so what
            is computed from it is not silently zero. With axes to broadcast to g, e.g. (N, 1, *1)
            for one a sample, the reference serves it.
        seed: int64 (1,) for stochastic rounding, a function of (seed, position) alone; None
            rounds to nearest, ties to even.
        bits: of the grid; kernels serve 8, the reference 2 to 8.

    Returns:
        int8 in -127..127, g's shape, channels-last.
    """
    if bits == 8 and threshold.dim() == 1:
        return torch.ops.daq_mm.quantize_g(g, threshold, seed)
    return reference.quantize_g(g, threshold, seed, bits)
