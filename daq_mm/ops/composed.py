"""A layer's passes put together from separate ops, for settings that the fused kernels lack.

They serve grids of fewer than 8 bits and gradients with one threshold a sample, with or without a
grid point at zero. The quantizers are the reference's, in plain PyTorch; the integer products are
the device's kernels, for which a narrow grid is just small numbers in 8-bit storage. So they are
exact, and slower than the kernels that quantize, multiply and dequantize at once.

Without zero (DoReFa-Net, Zhou et al. 2016, arXiv 1606.06160, equation 12) the 2**bits points of a
sample's grid lie at (q + 1/2) step for q from -2**(bits - 1), step = 2 max|g| / (2**bits - 1): the
outermost are the extremes, and a gradient of zero becomes half a step of random sign. A product
with q + 1/2 is one with q and half of one with ones; both are integer products.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import reference
from ._library import define
from .conv import _GEOMETRY, _fake_conv_backward, _fake_conv_forward
from .layout import channels_last_format, result_format, weight_format

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
    g_zero: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `composed_backward`."""
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
        q_g, g_step = quantize_by_sample(g, seed, g_bits, g_zero)
        offset = 0.0 if g_zero else 0.5
        if output_mask[0] and by_sample[0]:
            operands = (q_g, g_step, offset, w, w_bits)
            dx = _grad_input_by_sample(*operands, q_x.shape, geometry, x_dtype)
            dx = reference._in_format(dx, result_format(g, w))
        if output_mask[1] and by_sample[1]:
            dw = _grad_weight_by_sample(q_x, x_qparams, q_g, g_step, offset, w, geometry)
    return dx, dw, db


def quantize_by_sample(
    g: Tensor, seed: Tensor | None, bits: int = 8, zero: bool = True
) -> tuple[Tensor, Tensor]:
    """Quantize a gradient with one threshold a sample, its absolute maximum.

    Args:
        g: (N, Co, *out), float32, bfloat16 or float16.
        seed, bits: as for `quantize_g`.
        zero: whether the grid has a point at zero; see the head of this file.

    Returns:
        q_g: int8, g's shape, channels-last, in -127..127 or, without zero, -128..127 (of 8 bits);
        step: float32 (N,). g is about q_g * step, or (q_g + 1/2) * step.
    """
    s = sample_thresholds(g)
    if zero:
        levels = reference.signed_levels(bits)
        return reference.quantize_g(g, s, seed, bits), reference.step_of(s, levels).flatten()
    top = reference.unsigned_levels(bits)
    # As the paper writes it: g / (2 max) + 1/2 lies in 0..1 and is rounded on 2**bits points.
    scaled = (g.detach().float() * reference.inverse_step(2 * s, top)).add_(top / 2)
    scaled.nan_to_num_(nan=0.0).clamp_(0, top)
    if seed is None:
        code = scaled.round_()
    else:
        code = scaled.add_(reference.uniform_from_index(g.shape, seed)).floor_().clamp_max_(top)
    q_g = code.sub_(2 ** (bits - 1)).to(torch.int8)
    return reference._to_channels_last(q_g), reference.step_of(2 * s, top).flatten()


def dequantize_by_sample(q_g: Tensor, step: Tensor, zero: bool = True) -> Tensor:
    """The float32 values that `quantize_by_sample`'s results stand for."""
    return (q_g.float() + (0.0 if zero else 0.5)) * step.view(-1, *([1] * (q_g.dim() - 1)))


def sample_thresholds(g: Tensor) -> Tensor:
    """The absolute maximum of each sample of g (N, Co, *out), float32 (N, 1, *1)."""
    s = reference.absolute_maximum(g, tuple(range(1, g.dim())))
    return s.view(-1, *([1] * (g.dim() - 1)))


def _grad_input_by_sample(q_g, g_step, offset, w, w_bits, x_size, geometry, x_dtype) -> Tensor:
    """A sample's step factors out of its grad-input: one integer product, then N factors.

    `offset` is added to q_g; its product is the same for each sample.
    """
    q_w, w_step = reference.quantize_w(w, w_bits)
    dx = torch.ops.daq_mm.grad_input(q_g, q_w, w_step, x_size, *geometry, torch.float32)
    if offset and x_size[0]:
        ones, one_size = _ones(q_g[:1], w.shape[0]), (1, *x_size[1:])
        sums = torch.ops.daq_mm.grad_input(ones, q_w, w_step, one_size, *geometry, torch.float32)
        dx = dx + offset * sums
    return (dx * g_step.view(-1, *([1] * (dx.dim() - 1)))).to(x_dtype)


def _grad_weight_by_sample(q_x, x_qparams, q_g, g_step, offset, w, geometry) -> Tensor:
    """grad-weight sums over samples, so each has an integer product of its own.

    They are added in float64, because what `offset` adds to q_g may nearly cancel the rest.
    """
    kernel, groups = list(w.shape[2:]), geometry[-1]
    unit = x_qparams.new_ones(q_g.shape[1])
    ones = _ones(q_g[:1], groups)
    total = torch.zeros(w.shape, dtype=torch.float64, device=w.device)
    every = total.new_zeros((groups, 1, *w.shape[1:]))  # of a gradient of ones

    def product(n: int, q: Tensor) -> Tensor:
        operands = (q_x[n : n + 1], x_qparams, q, unit[: q.shape[1]], kernel, *geometry)
        return torch.ops.daq_mm.grad_weight(*operands, torch.float32)

    for n, step in enumerate(g_step.double()):
        total.addcmul_(product(n, q_g[n : n + 1]), step)
        if offset:
            every[:, 0].addcmul_(product(n, ones), step)
    if offset:
        total.view(groups, -1, *w.shape[1:]).add_(every, alpha=offset)
    return total.to(w.dtype).contiguous(memory_format=weight_format(w))


def _ones(q_g: Tensor, channels: int) -> Tensor:
    """An 8-bit gradient of ones (1, channels, *out), channels-last."""
    ones = q_g.new_ones((1, channels, *q_g.shape[2:]))
    return ones.contiguous(memory_format=channels_last_format(q_g.dim() - 2))


def _fake_composed_backward(*arguments) -> tuple[Tensor, Tensor, Tensor]:
    *head, _, _, output_mask, x_dtype, _, _, _ = arguments
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
    "ScalarType x_dtype, int w_bits, int g_bits, bool g_zero) -> (Tensor, Tensor, Tensor)",
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
    g_zero: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """`conv_backward` for more kinds of thresholds and other grids; see there for the rest.

    Args:
        grad_input: thresholds of the gradient: 'folded' (the channels'), 'global' (the tensor's)
            or 'sample' (each sample's absolute maximum, which factors out of the product).
        grad_weight: 'channel', 'tensor' or 'sample' (one integer product a sample).
        w_bits, g_bits: of the grids, 2 to 8.
        g_zero: whether a sample's grid has a point at zero; others always have.
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
        g_zero,
    )
