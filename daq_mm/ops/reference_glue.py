"""The truth of the fused glue ops of `daq_mm.ops.glue`, in plain PyTorch, on any device.

Every float32 operation is rounded on its own, so kernels give the same bits wherever a result does
not depend on the order of a long sum; long sums are in float64. Rounding to the float dtype D of
the activations commutes with ReLU and ReLU6, whose bounds 0 and 6 every D holds.
"""

from __future__ import annotations

import torch

from . import reference
from .reference import _per_channel, _to_channels_last

Tensor = torch.Tensor


def _values(x: Tensor) -> tuple[int, ...]:
    """All axes of x but the channels'."""
    return (0, *range(2, x.dim()))


def stats_of(y: Tensor) -> Tensor:
    """See `daq_mm.ops.glue.stats_of`."""
    if y.numel() == 0:
        return y.new_zeros((4, y.shape[1]), dtype=torch.float64)
    values = y.detach().double()
    over = _values(y)
    return torch.stack(
        [values.sum(over), (values * values).sum(over), values.amin(over), values.amax(over)]
    )


def conv_forward_stats(
    q_x: Tensor,
    x_qparams: Tensor,
    w: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    out_dtype: torch.dtype,
    stats: bool,
) -> tuple[Tensor, Tensor]:
    """See `daq_mm.ops.glue.conv_forward_stats`."""
    q_w, w_step = reference.quantize_w(w)
    y = reference.forward(
        q_x, x_qparams, q_w, w_step, bias, stride, padding, dilation, groups, out_dtype
    )
    return y, stats_of(y) if stats else y.new_empty(0, dtype=torch.float64)


def _grid(stats: Tensor) -> Tensor:
    """(low, step) of each channel's 256 grid points from its minimum and maximum, (2, C)."""
    low, high = stats[2].float(), stats[3].float()
    return torch.stack([low, reference.step_of(high - low, 255)])


def _codes(y: Tensor, stats: Tensor) -> Tensor:
    """y on its channels' grids, uint8."""
    low, high = stats[2].float(), stats[3].float()
    inverse = torch.full_like(low, 255.0) / (high - low)
    inverse = torch.where(torch.isfinite(inverse), inverse, torch.zeros_like(inverse))
    rank = y.dim() - 2
    scaled = (y.float() - _per_channel(low, rank)) * _per_channel(inverse, rank)
    return torch.round(torch.nan_to_num(scaled, nan=0.0).clamp(0, 255)).to(torch.uint8)


def _y_hat(y: Tensor, grid: Tensor | None) -> Tensor:
    """y in float32, from its codes where it has a grid."""
    if grid is None:
        return y.float()
    rank = y.dim() - 2
    return _per_channel(grid[0], rank) + y.float() * _per_channel(grid[1], rank)


def pack_mask(passes: Tensor) -> Tensor:
    """Bits of bool (N, C, *spatial) as uint8 (N, *spatial, ceil(C / 8)), channel c in bit c % 8."""
    bits = passes.movedim(1, -1).to(torch.uint8)
    bits = torch.nn.functional.pad(bits, (0, -bits.shape[-1] % 8))
    bits = bits.reshape(*bits.shape[:-1], -1, 8)
    weights = torch.tensor([1 << b for b in range(8)], dtype=torch.uint8, device=bits.device)
    return (bits * weights).sum(-1, dtype=torch.uint8)


def unpack_mask(mask: Tensor, channels: int) -> Tensor:
    """The inverse of `pack_mask`: bool (N, C, *spatial)."""
    shifts = torch.arange(8, dtype=torch.uint8, device=mask.device)
    bits = (mask[..., None] >> shifts) & 1
    return bits.flatten(-2)[..., :channels].movedim(-1, 1).bool()


def norm_act_forward(
    y: Tensor,
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    invstd: Tensor | None,
    residual: Tensor | None,
    act: int,
    want_out: bool,
    want_q: bool,
    allow_unsigned: bool,
    want_codes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `daq_mm.ops.glue.norm_act_forward`."""
    y = y.detach()
    rank = y.dim() - 2
    v = y.float()
    if mean is not None:
        scale = invstd if weight is None else invstd * weight.detach().float()
        shift = torch.zeros_like(mean) if bias is None else bias.detach().float()
        shift = shift - mean * scale
        v = v * _per_channel(scale, rank) + _per_channel(shift, rank)
    if residual is not None:
        v = v + residual.detach().float()
    v = v.to(y.dtype)
    out = v
    mask = y.new_empty(0, dtype=torch.uint8)
    if act:
        out = torch.where(out <= 0, 0, out)
        passes = ~(v <= 0)
        if act == 2:
            out = torch.where(out >= 6, 6, out)
            passes &= ~(v >= 6)
        mask = pack_mask(passes)
    q, qparams = reference.quantize_x(out, allow_unsigned)
    if not want_q:
        q = y.new_empty(0, dtype=torch.uint8)
    codes, grid = y.new_empty(0, dtype=torch.uint8), y.new_empty(0, dtype=torch.float32)
    if want_codes:
        codes, grid = _to_channels_last(_codes(y, stats)), _grid(stats)
    out = _to_channels_last(out.clone()) if want_out else y.new_empty(0)
    return out, q, qparams, codes, grid, mask


def batch_norm_statistics(
    stats: Tensor,
    count: float | Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """See `daq_mm.ops.glue.batch_norm_statistics`."""
    if not isinstance(count, Tensor) and not count > 1:
        raise ValueError(f"count={count} must be above 1: a variance needs two values a channel")
    mean = stats[0] / count
    var = (stats[1] / count - mean * mean).clamp(min=0)
    if running_mean is not None:
        running_mean.copy_(running_mean.double() * (1 - momentum) + mean * momentum)
    if running_var is not None:
        unbiased = var * (count / (count - 1))
        running_var.copy_(running_var.double() * (1 - momentum) + unbiased * momentum)
    invstd = 1 / torch.sqrt(var + eps)
    # Squares beyond float32 must not end as zeros.
    return mean.float(), torch.where(torch.isinf(var), torch.nan, invstd).float()


def _gz(g: Tensor, mask: Tensor | None) -> Tensor:
    """g where the activation passes it on, else 0."""
    if mask is None:
        return g
    return torch.where(unpack_mask(mask, g.shape[1]), g, torch.zeros_like(g))


def norm_act_reduce(
    g: Tensor,
    g2: Tensor | None,
    mask: Tensor | None,
    y: Tensor | None,
    grid: Tensor | None,
    mean: Tensor | None,
    invstd: Tensor | None,
    want_gz: bool,
) -> tuple[Tensor, Tensor]:
    """See `daq_mm.ops.glue.norm_act_reduce`."""
    if g2 is not None:
        g = (g.float() + g2.float()).to(g.dtype)
    gz = _gz(g, mask)
    over, rank = _values(g), g.dim() - 2
    sums = g.new_zeros((2, g.shape[1]), dtype=torch.float64)
    sums[0] = gz.double().sum(over)
    if mean is not None:
        x_hat = (_y_hat(y, grid) - _per_channel(mean, rank)) * _per_channel(invstd, rank)
        sums[1] = (gz.float() * x_hat).double().sum(over)
    return _to_channels_last(gz.clone()) if want_gz else g.new_empty(0), sums


def norm_backward_coefficients(
    sums: Tensor, count: float, weight: Tensor | None, mean: Tensor, invstd: Tensor
) -> Tensor:
    """See `daq_mm.ops.glue.norm_backward_coefficients`."""
    invstd = invstd.double()
    scale = invstd if weight is None else invstd * weight.detach().double()
    m1, m2 = (sums / count).unbind()
    b = -(scale * invstd * m2)
    return torch.stack([scale, b, -(scale * m1) - b * mean.double()]).float()


def quantize_x_with(x: Tensor, qparams: Tensor) -> Tensor:
    """See `daq_mm.ops.glue.quantize_x_with`."""
    step, zero_point = qparams.unbind()
    levels = torch.where(zero_point == 0, 255.0, 127.0)
    inverse = levels / (step * levels)
    inverse = torch.where(torch.isfinite(inverse) & torch.isfinite(step), inverse, 0.0)
    scaled = torch.nan_to_num(x.detach().float() * inverse, nan=0.0)
    q = torch.round(torch.minimum(torch.maximum(scaled, -levels), levels)) + zero_point
    return _to_channels_last(q.to(torch.uint8))


def norm_backward_apply(
    g: Tensor, mask: Tensor | None, y: Tensor | None, grid: Tensor | None, coefficients: Tensor
) -> Tensor:
    """See `daq_mm.ops.glue.norm_backward_apply`."""
    a, b, c = (_per_channel(row, g.dim() - 2) for row in coefficients)
    dy = a * _gz(g, mask).float()
    if y is not None:
        dy = dy + b * _y_hat(y, grid)
    return _to_channels_last((dy + c).to(g.dtype))


def norm_backward_maxima(
    g: Tensor, mask: Tensor | None, y: Tensor | None, grid: Tensor | None, coefficients: Tensor
) -> Tensor:
    """See `daq_mm.ops.glue.norm_backward_maxima`."""
    dy = norm_backward_apply(g, mask, y, grid, coefficients)
    maximum = reference.absolute_maximum(dy, _values(dy))
    return torch.cat([maximum, maximum.amax().view(1)])


def norm_backward_quantize(
    g: Tensor,
    mask: Tensor | None,
    y: Tensor | None,
    grid: Tensor | None,
    coefficients: Tensor,
    threshold: Tensor,
    seed: Tensor | None,
) -> Tensor:
    """See `daq_mm.ops.glue.norm_backward_quantize`."""
    dy = norm_backward_apply(g, mask, y, grid, coefficients)
    return reference.quantize_g(dy, threshold, seed)


def norm_backward_thresholds(
    g: Tensor,
    mask: Tensor | None,
    y: Tensor | None,
    grid: Tensor | None,
    coefficients: Tensor,
    *state_and_rules: Tensor | bool | float | int,
) -> Tensor:
    """See `daq_mm.ops.glue.norm_backward_thresholds`."""
    dy = norm_backward_apply(g, mask, y, grid, coefficients)
    return reference.update_thresholds(dy, *state_and_rules)


def thresholds_from_maxima(
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
    """See `daq_mm.ops.glue.thresholds_from_maxima`."""
    return reference.move_thresholds(
        maximum, threshold, tail_probability, iteration, mcs, decay, gain, cap, gaussian_above
    )
