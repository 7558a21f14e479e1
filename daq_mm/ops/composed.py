"""A layer's passes put together from separate ops, for settings that the fused kernels lack.

They serve grids of fewer than 8 bits and gradients with one threshold a sample. The quantizers are
the reference's, in plain PyTorch; the integer products are the device's kernels, for which a
narrow grid is just small numbers in 8-bit storage. So they are exact, and slower than the kernels
that quantize, multiply and dequantize at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import reference
from ._library import define
from .conv import _GEOMETRY, _fake_conv_backward, _fake_conv_forward
from .layout import result_format, weight_format

Tensor = torch.Tensor


def _composed_forward(*arguments) -> tuple[Tensor, Tensor, Tensor]:
    """See `daq_mm.ops.conv.conv_forward`; x_bits and w_bits come last."""
    *common, x_bits, w_bits = arguments
    return reference.conv_forward(
        *common, x_bits=x_bits, w_bits=w_bits, product=torch.ops.daq_mm.forward
    )


def _composed_backward(
    g: Tensor,
    q_x: Tensor,
    x_qparams: Tensor,
    w: Tensor,
    threshold: Tensor,
    seed: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    grad_input: str,
    grad_weight: str,
    output_mask: list[bool],
    x_dtype: torch.dtype,
    w_bits: int,
    g_bits: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `daq_mm.ops.conv.conv_backward`."""
    geometry = (stride, padding, dilation, groups)
    by_sample = (grad_input == "sample", grad_weight == "sample")
    whole = [output_mask[0] and not by_sample[0], output_mask[1] and not by_sample[1]]
    dx, dw, db = reference.conv_backward(
        *(g, q_x, x_qparams, w, threshold, seed, *geometry),
        grad_input == "folded",
        grad_weight == "channel",
        [*whole, output_mask[2]],
        x_dtype,
        w_bits=w_bits,
        g_bits=g_bits,
        products=(torch.ops.daq_mm.grad_input, torch.ops.daq_mm.grad_weight),
    )
    if (output_mask[0] and by_sample[0]) or (output_mask[1] and by_sample[1]):
        s = sample_thresholds(g)
        q_g = reference.quantize_g(g, s, seed, g_bits)
        g_step = s.flatten() / reference.signed_levels(g_bits)
        if output_mask[0] and by_sample[0]:
            dx = _grad_input_by_sample(q_g, g_step, w, w_bits, q_x.shape, geometry, x_dtype)
            dx = reference._in_format(dx, result_format(g, w))
        if output_mask[1] and by_sample[1]:
            dw = _grad_weight_by_sample(q_x, x_qparams, q_g, g_step, w, geometry)
    return dx, dw, db


def sample_thresholds(g: Tensor) -> Tensor:
    """The absolute maximum of each sample of g (N, Co, *out), float32 (N, 1, *1)."""
    s = reference.absolute_maximum(g, tuple(range(1, g.dim())))
    return s.view(-1, *([1] * (g.dim() - 1)))


def _grad_input_by_sample(q_g, g_step, w, w_bits, x_size, geometry, x_dtype) -> Tensor:
    """A sample's step factors out of its grad-input: one integer product, then N factors."""
    q_w, w_step = reference.quantize_w(w, w_bits)
    dx = torch.ops.daq_mm.grad_input(q_g, q_w, w_step, x_size, *geometry, torch.float32)
    return (dx * g_step.view(-1, *([1] * (dx.dim() - 1)))).to(x_dtype)


def _grad_weight_by_sample(q_x, x_qparams, q_g, g_step, w, geometry) -> Tensor:
    """grad-weight sums over samples, so each has an integer product of its own, added in float32.

    A float32 sum of N terms, in the order of the samples.
    """
    total = torch.zeros(w.shape, dtype=torch.float32, device=w.device)
    for n in range(q_x.shape[0]):
        total += torch.ops.daq_mm.grad_weight(
            *(q_x[n : n + 1], x_qparams, q_g[n : n + 1], g_step[n].expand(w.shape[0])),
            *(list(w.shape[2:]), *geometry, torch.float32),
        )
    return total.to(w.dtype).contiguous(memory_format=weight_format(w))


def _fake_composed_backward(*arguments) -> tuple[Tensor, Tensor, Tensor]:
    *head, _, _, output_mask, x_dtype, _, _ = arguments
    return _fake_conv_backward(*head, False, False, output_mask, x_dtype)


define(
    f"composed_forward(Tensor x, Tensor w, Tensor? bias, {_GEOMETRY}, bool allow_unsigned, "
    "ScalarType out_dtype, int x_bits, int w_bits) -> (Tensor, Tensor, Tensor)",
    _composed_forward,
    lambda *arguments: _fake_conv_forward(*arguments[:-2]),
)
define(
    "composed_backward(Tensor g, Tensor q_x, Tensor x_qparams, Tensor w, Tensor threshold, "
    f"Tensor? seed, {_GEOMETRY}, str grad_input, str grad_weight, bool[3] output_mask, "
    "ScalarType x_dtype, int w_bits, int g_bits) -> (Tensor, Tensor, Tensor)",
    _composed_backward,
    _fake_composed_backward,
)


def composed_forward(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    allow_unsigned: bool,
    out_dtype: torch.dtype,
    x_bits: int,
    w_bits: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`conv_forward` on grids of `x_bits` and `w_bits` (2 to 8); see there for the rest."""
    return torch.ops.daq_mm.composed_forward(
        x, w, bias, stride, padding, dilation, groups, allow_unsigned, out_dtype, x_bits, w_bits
    )


def composed_backward(
    g: Tensor,
    q_x: Tensor,
    x_qparams: Tensor,
    w: Tensor,
    threshold: Tensor,
    seed: Tensor | None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    grad_input: str,
    grad_weight: str,
    output_mask: Sequence[bool],
    x_dtype: torch.dtype,
    w_bits: int,
    g_bits: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """`conv_backward` for more kinds of thresholds and other grids; see there for the rest.

    Args:
        grad_input: thresholds of the gradient: 'folded' (the channels'), 'global' (the tensor's)
            or 'sample' (each sample's absolute maximum, which factors out of the product).
        grad_weight: 'channel', 'tensor' or 'sample' (one integer product a sample, added in
            float32).
        w_bits, g_bits: of the grids, 2 to 8.
    """
    return torch.ops.daq_mm.composed_backward(
        g,
        q_x,
        x_qparams,
        w,
        threshold,
        seed,
        stride,
        padding,
        dilation,
        groups,
        grad_input,
        grad_weight,
        output_mask,
        x_dtype,
        w_bits,
        g_bits,
    )
