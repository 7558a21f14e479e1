"""The truth: every op in plain PyTorch, on any device, exact and slow.

Integer products are computed in float64, which holds every sum of 8-bit products exactly while
it stays below 2**53, without cuDNN (`_exact_products`), and are rounded to float32 once. The
kernels in `csrc/` must give the same bits. Equation and section numbers refer to Zhao et al.,
"Distribution Adaptive INT8 Quantization for Training CNNs", AAAI 2021 (arXiv 2102.04782).

Conventions shared with the kernels, all in float32:
  step of a threshold s over `levels` grid points   step = s / levels
  inverse step   inv = levels / s, and 0 where s is 0, not finite, or so small that inv overflows
  quantized value   q = round_half_even(clamp(v * inv, lo, hi))
A NaN or Inf makes the threshold, hence the step, hence every result of its tensor (or channel)
non-finite: it is never turned into zeros.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
import torch.nn.functional as F

from .geometry import ConvGeometry
from .layout import channels_last_format, result_format, weight_format

Tensor = torch.Tensor

#: The stored value of zero for signed activations; unsigned ones have 0.
SIGNED_ZERO_POINT = 128

#: Positions that `uniform_from_index` hashes at once on a CPU: 512 KiB of int64.
_HASHED_AT_ONCE = 1 << 16


def signed_levels(bits: int) -> int:
    """Grid points on each side of zero: 127 for 8 bits, 7 for 4."""
    return 2 ** (bits - 1) - 1


def unsigned_levels(bits: int) -> int:
    """Grid points above zero: 255 for 8 bits, 15 for 4."""
    return 2**bits - 1


def step_of(threshold: Tensor, levels: int) -> Tensor:
    """threshold / levels in float32, rounded once on every device.

    Divided by a tensor: by a number, PyTorch on CUDA multiplies with the reciprocal.
    """
    return threshold / torch.full_like(threshold, levels)


def inverse_step(threshold: Tensor, levels: int) -> Tensor:
    """levels / threshold in float32, 0 where that is not a finite number."""
    inverse = torch.full_like(threshold, levels) / threshold
    usable = torch.isfinite(inverse) & torch.isfinite(threshold)
    return torch.where(usable, inverse, torch.zeros_like(inverse))


def _per_channel(values: Tensor, rank: int) -> Tensor:
    """Reshape (C,) or (1,) to broadcast over (N, C, *spatial)."""
    return values.view(1, -1, *([1] * rank))


def _to_channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=channels_last_format(x.dim() - 2))


def _in_format(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    """x with the strides of that format, also where an empty x would pass for any."""
    if x.numel():
        return x.contiguous(memory_format=memory_format)
    return torch.empty_like(x, memory_format=memory_format)


def absolute_maximum(x: Tensor, dim: tuple[int, ...] | None = None) -> Tensor:
    """Absolute maximum in float32 over `dim` (all axes by default), 0 if there are no values."""
    magnitude = x.detach().float().abs()
    if dim is None:
        return magnitude.amax() if x.numel() else magnitude.new_zeros(())
    if x.numel():
        return magnitude.amax(dim)
    return magnitude.sum(dim)


def quantize_x(x: Tensor, allow_unsigned: bool, bits: int = 8) -> tuple[Tensor, Tensor]:
    """See `daq_mm.ops.quantize.quantize_x`."""
    below, above = signed_levels(bits), unsigned_levels(bits)
    values = x.detach().float()
    low = values.amin() if x.numel() else values.new_zeros(())
    high = values.amax() if x.numel() else values.new_zeros(())
    unsigned = (low >= 0) if allow_unsigned else torch.zeros_like(low, dtype=torch.bool)
    threshold = torch.maximum(low.abs(), high.abs())
    levels = torch.where(unsigned, float(above), float(below))
    zero_point = torch.where(unsigned, 0.0, float(SIGNED_ZERO_POINT))
    inverse = torch.where(unsigned, inverse_step(threshold, above), inverse_step(threshold, below))
    scaled = torch.nan_to_num(values * inverse, nan=0.0)
    q = torch.round(torch.minimum(torch.maximum(scaled, -levels), levels)) + zero_point
    return _to_channels_last(q.to(torch.uint8)), torch.stack([threshold / levels, zero_point])


def quantize_w(w: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """See `daq_mm.ops.quantize.quantize_w`."""
    levels = signed_levels(bits)
    values = w.detach().float()
    threshold = absolute_maximum(values)
    scaled = torch.nan_to_num(values * inverse_step(threshold, levels), nan=0.0)
    q = torch.round(scaled.clamp(-levels, levels)).to(torch.int8)
    return q.contiguous(), step_of(threshold, levels).view(1)


def quantize_w_folded(
    w: Tensor,
    g_threshold: Tensor,
    groups: int,
    keep_format: bool = False,
    *,
    w_bits: int = 8,
    g_bits: int = 8,
) -> tuple[Tensor, Tensor]:
    """See `daq_mm.ops.quantize.quantize_w_folded`."""
    levels = signed_levels(w_bits)
    g_step = step_of(g_threshold.float(), signed_levels(g_bits))
    folded = w.detach().float() * g_step.view(-1, *([1] * (w.dim() - 1)))
    # (groups, Co / groups, Ci / groups, *kernel): an input channel's threshold spans its group.
    grouped = folded.reshape(groups, w.shape[0] // groups, w.shape[1], -1)
    threshold = absolute_maximum(grouped, (1, 3))
    inverse = inverse_step(threshold, levels)[:, None, :, None]
    scaled = torch.nan_to_num(grouped * inverse, nan=0.0)
    q = torch.round(scaled.clamp(-levels, levels)).to(torch.int8)
    memory_format = weight_format(w) if keep_format else torch.contiguous_format
    q = q.reshape(w.shape).contiguous(memory_format=memory_format)
    return q, step_of(threshold, levels).reshape(-1)


def uniform_from_index(shape: torch.Size, seed: Tensor) -> Tensor:
    """Uniform numbers in [0, 1), a function of (seed, position) alone, float32 of 24 bits.

    The position of a value counts in channels-last order, from 0. The hash is the 32-bit
    finalizer of MurmurHash3 over (low word of position * golden ratio + high word + seed).

    Args:
        shape: (N, C, *spatial).
        seed: int64 (1,); its low 32 bits are used.
    """
    n, c, *spatial = shape
    count = n * c * torch.Size(spatial).numel()
    uniform = torch.empty(count, dtype=torch.float32, device=seed.device)
    # On a CPU a part at a time, so that the hash's int64 temporaries stay in the cache.
    part = _HASHED_AT_ONCE if seed.device.type == "cpu" else max(count, 1)
    for begin in range(0, count, part):
        out = uniform[begin : begin + part]
        index = torch.arange(begin, begin + out.numel(), device=seed.device)
        torch.mul(_hash32(index, seed).bitwise_right_shift_(8), 2.0**-24, out=out)
    return uniform.view(n, *spatial, c).movedim(-1, 1)


def _hash32(index: Tensor, seed: Tensor) -> Tensor:
    """The hash of `uniform_from_index`, 32 bits in int64, of positions int64 (n,)."""
    mask = 0xFFFFFFFF
    h = (index >> 32).mul_(0x85EBCA77).add_(seed & mask)
    h.add_((index & mask).mul_(0x9E3779B1)).bitwise_and_(mask)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h.bitwise_xor_(h >> shift).mul_(factor).bitwise_and_(mask)
    return h.bitwise_xor_(h >> 16)


def quantize_g(g: Tensor, threshold: Tensor, seed: Tensor | None, bits: int = 8) -> Tensor:
    """See `daq_mm.ops.quantize.quantize_g`; a threshold may also have axes to broadcast to g."""
    levels = signed_levels(bits)
    inverse = inverse_step(threshold.float(), levels)
    if threshold.dim() == 1:
        inverse = _per_channel(inverse, g.dim() - 2)
    scaled = (g.detach().float() * inverse).nan_to_num_(nan=0.0).clamp_(-levels, levels)
    if seed is None:
        q = scaled.round_()
    else:
        q = scaled.add_(uniform_from_index(g.shape, seed)).floor_().clamp_(-levels, levels)
    return _to_channels_last(q.to(torch.int8))


def _padded_x(q_x: Tensor, x_qparams: Tensor, geometry: ConvGeometry) -> Tensor:
    """q_x minus its zero point in float64, padded by zeros on both sides of each axis."""
    centred = q_x.double() - x_qparams[1].double()
    pads = []
    for begin, end in zip(reversed(geometry.pad_begin), reversed(geometry.pad_end)):
        pads += [begin, end]
    return F.pad(centred, pads)


def _exact_products(x: Tensor) -> contextlib.AbstractContextManager:
    """While it is open, float64 convolutions of integers sum these very integers.

    cuDNN may choose an FFT or Winograd's algorithm, which sum other numbers than the operands'
    products. PyTorch's own CUDA convolutions are matrix products, or plain sums (depthwise).
    """
    return torch.backends.cudnn.flags(enabled=False) if x.is_cuda else contextlib.nullcontext()


def _int32(acc: Tensor) -> Tensor:
    """Integer sums in float64 as int32, modulo 2**32."""
    return acc.round().to(torch.int64).to(torch.int32)


def _backward_products(
    g: Tensor, x: Tensor, w: Tensor, geometry: ConvGeometry, mask: list[bool]
) -> tuple[Tensor, Tensor]:
    """grad-input of the padded x and grad-weight in the operands' dtype, exact on integers."""
    with _exact_products(g):
        grad_x, grad_w, _ = torch.ops.aten.convolution_backward(
            g.contiguous(),
            x.contiguous(),
            w.contiguous(),
            None,
            list(geometry.stride),
            [0] * geometry.rank,
            list(geometry.dilation),
            False,
            [0] * geometry.rank,
            geometry.groups,
            [*mask, False],
        )
    return grad_x, grad_w


def forward(
    q_x: Tensor,
    x_qparams: Tensor,
    q_w: Tensor,
    w_step: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """See `daq_mm.ops.conv.forward`."""
    geometry = ConvGeometry.make(q_x.shape, q_w.shape, stride, padding, dilation, groups)
    if q_x.shape[0] == 0:
        y = q_x.new_zeros(geometry.out_size, dtype=out_dtype)
        return _to_channels_last(y)
    x = _padded_x(q_x, x_qparams, geometry)
    conv = F.conv2d if geometry.rank == 2 else F.conv3d
    with _exact_products(x):
        acc = conv(x, q_w.double(), None, stride, 0, dilation, groups)
    if out_dtype == torch.int32:
        return _to_channels_last(_int32(acc))
    y = acc.float() * (x_qparams[0] * w_step)
    if bias is not None:
        y = y + _per_channel(bias.detach().float(), geometry.rank)
    return _to_channels_last(y.to(out_dtype))


def grad_input(
    q_g: Tensor,
    q_w: Tensor,
    step: Tensor,
    x_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """See `daq_mm.ops.conv.grad_input`."""
    geometry = ConvGeometry.make(x_size, q_w.shape, stride, padding, dilation, groups)
    if x_size[0] == 0:
        return _to_channels_last(q_g.new_zeros(x_size, dtype=out_dtype))
    padded = [
        size + begin + end
        for size, begin, end in zip(x_size[2:], geometry.pad_begin, geometry.pad_end)
    ]
    x = q_g.new_empty((x_size[0], x_size[1], *padded), dtype=torch.float64)
    acc, _ = _backward_products(q_g.double(), x, q_w.double(), geometry, [True, False])
    for axis, (begin, size) in enumerate(zip(geometry.pad_begin, x_size[2:]), start=2):
        acc = acc.narrow(axis, begin, size)
    if out_dtype == torch.int32:
        return _to_channels_last(_int32(acc))
    dx = acc.float() * _per_channel(step.float(), geometry.rank)
    return _to_channels_last(dx.to(out_dtype))


def grad_weight(
    q_x: Tensor,
    x_qparams: Tensor,
    q_g: Tensor,
    g_step: Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    out_dtype: torch.dtype,
    channels_last: bool = False,
) -> Tensor:
    """See `daq_mm.ops.conv.grad_weight`."""
    w_size = (q_g.shape[1], q_x.shape[1] // groups, *kernel_size)
    geometry = ConvGeometry.make(q_x.shape, w_size, stride, padding, dilation, groups)
    to_format = _to_channels_last if channels_last else torch.Tensor.contiguous
    if geometry.grad_weight_contraction == 0:
        return to_format(q_x.new_zeros(w_size, dtype=out_dtype))
    x = _padded_x(q_x, x_qparams, geometry)
    w = q_x.new_empty(w_size, dtype=torch.float64)
    _, acc = _backward_products(q_g.double(), x, w, geometry, [False, True])
    if out_dtype == torch.int32:
        return to_format(_int32(acc))
    step = (x_qparams[0] * g_step).view(-1, *([1] * (len(w_size) - 1)))
    return to_format((acc.float() * step).to(out_dtype))


def _tail_probability(g: Tensor) -> Tensor:
    """P(|g| > sigma) for each channel and then for the whole tensor, float32 (C + 1,).

    sigma is the population standard deviation. A channel of zeros gets 1: nothing is known of
    it, so it must not be clipped.
    """
    channels = g.detach().double().transpose(0, 1).reshape(g.shape[1], -1)
    tails = []
    for values in (channels, channels.reshape(1, -1)):
        sigma = values.std(dim=1, correction=0, keepdim=True)
        tail = (values.abs() > sigma).double().mean(dim=1)
        tails.append(torch.where(values.abs().amax(dim=1) == 0, torch.ones_like(tail), tail))
    return torch.cat(tails).float()


def update_thresholds(
    g: Tensor,
    threshold: Tensor,
    tail_probability: Tensor,
    iteration: Tensor,
    mcs: bool,
    decay: float,
    gain: float,
    cap: bool,
    gaussian_above: float,
    interval: int,
) -> Tensor:
    """See `daq_mm.ops.thresholds.update_thresholds`."""
    if g.numel() == 0:
        return threshold.clone()
    maximum = absolute_maximum(g, (0, *range(2, g.dim())))
    maximum = torch.cat([maximum, maximum.amax().view(1)])
    if mcs:
        evaluate = (iteration % interval == 0) & torch.isfinite(maximum)
        measured = torch.nan_to_num(_tail_probability(g), nan=1.0)
        tail_probability.copy_(torch.where(evaluate, measured, tail_probability))
    return move_thresholds(
        maximum, threshold, tail_probability, iteration, mcs, decay, gain, cap, gaussian_above
    )


def move_thresholds(
    maximum: Tensor,
    threshold: Tensor,
    tail_probability: Tensor,
    iteration: Tensor,
    mcs: bool,
    decay: float,
    gain: float,
    cap: bool,
    gaussian_above: float,
) -> Tensor:
    """The rules of `update_thresholds` once maxima (C + 1,) and tail probabilities are known."""
    used = maximum.clone()
    if mcs:
        recursion = threshold * decay + maximum * gain
        if cap:
            recursion = torch.minimum(recursion, maximum)
        keeps_maximum = (tail_probability > gaussian_above) | (threshold == 0)
        used = torch.where(keeps_maximum | ~torch.isfinite(maximum), maximum, recursion)
    iteration.add_(1)
    threshold.copy_(torch.where(torch.isfinite(used), used, threshold))
    return used


def conv_forward(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    allow_unsigned: bool,
    out_dtype: torch.dtype,
    *,
    x_bits: int = 8,
    w_bits: int = 8,
    product: Callable = forward,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `daq_mm.ops.conv.conv_forward`; `product` is what computes the integer product."""
    q_x, x_qparams = quantize_x(x, allow_unsigned, x_bits)
    q_w, w_step = quantize_w(w, w_bits)
    y = product(q_x, x_qparams, q_w, w_step, bias, stride, padding, dilation, groups, out_dtype)
    return _in_format(y, result_format(x, w)), q_x, x_qparams


def conv_backward(
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
    folded: bool,
    channel_grad_weight: bool,
    output_mask: list[bool],
    x_dtype: torch.dtype,
    *,
    w_bits: int = 8,
    g_bits: int = 8,
    products: tuple[Callable, Callable] = (grad_input, grad_weight),
) -> tuple[Tensor, Tensor, Tensor]:
    """See `daq_mm.ops.conv.conv_backward`; `products` compute grad-input and grad-weight."""
    input_product, weight_product = products
    g_levels = signed_levels(g_bits)
    by_channel, by_tensor = threshold[:-1], threshold[-1:]
    dx, dw, db = g.new_empty(0), g.new_empty(0), g.new_empty(0)
    if output_mask[0]:
        if folded:
            q_g = quantize_g(g, by_channel, seed, g_bits)
            q_w, step = quantize_w_folded(w, by_channel, groups, w_bits=w_bits, g_bits=g_bits)
        else:
            q_g = quantize_g(g, by_tensor, seed, g_bits)
            q_w, w_step = quantize_w(w, w_bits)
            step = step_of(by_tensor, g_levels) * w_step
        dx = input_product(q_g, q_w, step, q_x.shape, stride, padding, dilation, groups, x_dtype)
        dx = _in_format(dx, result_format(g, w))
    if output_mask[1]:
        g_threshold = by_channel if channel_grad_weight else by_tensor
        q_g = quantize_g(g, g_threshold, seed, g_bits)
        dw = weight_product(
            q_x,
            x_qparams,
            q_g,
            step_of(g_threshold, g_levels).expand(w.shape[0]),
            list(w.shape[2:]),
            stride,
            padding,
            dilation,
            groups,
            w.dtype,
        ).contiguous(memory_format=weight_format(w))
    if output_mask[2]:
        db = g.detach().sum((0, *range(2, g.dim())), dtype=torch.float64).float()
    return dx, dw, db
