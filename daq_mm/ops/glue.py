"""Ops for what stands between integer convolutions: batch norm, residual, activation, and the
8-bit operands of the next product, fused so that each tensor is read and written once.

A *unit* is convolution -> [batch norm] -> [residual add] -> [activation]. Forward:
`conv_forward_stats`, `batch_norm_statistics`, `norm_act_forward`. Backward: `norm_act_reduce`
gives the sums of which the caller makes batch norm's three coefficients a channel, then
`norm_backward_thresholds` (where the discriminator is known not to be due: `norm_backward_maxima`
and `thresholds_from_maxima`) and `norm_backward_quantize`; or `norm_backward_apply` where a float
gradient is wanted. `grad_input_reduce` is grad-input of the
next unit's convolution with `norm_act_reduce` of this unit in its epilogue.

Float tensors have the float dtype D of the activations: float32, bfloat16 or float16. All
tensors (N, C, *spatial) are dense channels-last. Float32 operations are rounded one by one. NaN
and Inf spread as in PyTorch; they never become zeros. Wrong dtypes raise TypeError, wrong sizes
and layouts ValueError.

Terms:
  stats   float64 (4, C): sum, sum of squares, minimum, maximum of a tensor's channels
  codes   y on 8 bits for the backward pass, uint8, on a grid of its own for each channel; grid is
          float32 (2, C) = (low, step): y_hat = low + code * step
  mask    uint8 (N, *spatial, ceil(C / 8)): bit c % 8 of byte c // 8 says that the activation
          passes the gradient of channel c
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import reference_glue
from ._library import define
from .conv import _GEOMETRY, _empty
from .geometry import ConvGeometry
from .layout import channels_last_format

Tensor = torch.Tensor

#: Activations as the ops know them.
NONE, RELU, RELU6 = 0, 1, 2


def _like(x: Tensor, dtype: torch.dtype) -> Tensor:
    return _empty(x.shape, dtype, x, channels_last_format(x.dim() - 2))


def _fake_conv_forward_stats(
    q_x, x_qparams, w, bias, stride, padding, dilation, groups, out_dtype, stats
) -> tuple[Tensor, Tensor]:
    geometry = ConvGeometry.make(q_x.shape, w.shape, stride, padding, dilation, groups)
    y = _empty(geometry.out_size, out_dtype, q_x, channels_last_format(geometry.rank))
    size = (4, w.shape[0]) if stats else (0,)
    return y, q_x.new_empty(size, dtype=torch.float64)


def _fake_norm_act_forward(
    y,
    stats,
    weight,
    bias,
    mean,
    invstd,
    residual,
    act,
    want_out,
    want_q,
    allow_unsigned,
    want_codes,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    channels = y.shape[1]
    mask_size = (y.shape[0], *y.shape[2:], (channels + 7) // 8) if act else (0,)
    return (
        _like(y, y.dtype) if want_out else y.new_empty(0),
        _like(y, torch.uint8) if want_q else y.new_empty(0, dtype=torch.uint8),
        y.new_empty(2, dtype=torch.float32),
        _like(y, torch.uint8) if want_codes else y.new_empty(0, dtype=torch.uint8),
        y.new_empty((2, channels) if want_codes else (0,), dtype=torch.float32),
        y.new_empty(mask_size, dtype=torch.uint8),
    )


def _fake_batch_norm_statistics(stats, *_) -> tuple[Tensor, Tensor]:
    channels = stats.shape[1]
    return (
        stats.new_empty(channels, dtype=torch.float32),
        stats.new_empty(channels, dtype=torch.float32),
    )


def _fake_norm_act_reduce(g, g2, mask, y, grid, mean, invstd, want_gz) -> tuple[Tensor, Tensor]:
    gz = _like(g, g.dtype) if want_gz else g.new_empty(0)
    return gz, g.new_empty((2, g.shape[1]), dtype=torch.float64)


def _grad_input_reduce(
    q_g,
    q_w,
    step,
    x_size,
    stride,
    padding,
    dilation,
    groups,
    out_dtype,
    g2,
    mask,
    y,
    grid,
    mean,
    invstd,
) -> tuple[Tensor, Tensor]:
    """By the two ops that it joins, for backends without a kernel of its own."""
    g = torch.ops.daq_mm.grad_input(
        q_g, q_w, step, x_size, stride, padding, dilation, groups, out_dtype
    )
    return torch.ops.daq_mm.norm_act_reduce(g, g2, mask, y, grid, mean, invstd, True)


def _fake_grad_input_reduce(
    q_g, q_w, step, x_size, stride, padding, dilation, groups, out_dtype, *_
) -> tuple[Tensor, Tensor]:
    ConvGeometry.make(x_size, q_w.shape, stride, padding, dilation, groups)
    gz = _empty(x_size, out_dtype, q_g, channels_last_format(len(x_size) - 2))
    return gz, q_g.new_empty((2, x_size[1]), dtype=torch.float64)


def _norm_backward_thresholds(g, mask, y, grid, coefficients, *state_and_rules) -> Tensor:
    """By the two ops that it joins, for backends without a kernel of its own."""
    dy = torch.ops.daq_mm.norm_backward_apply(g, mask, y, grid, coefficients)
    return torch.ops.daq_mm.update_thresholds(dy, *state_and_rules)


define(
    f"conv_forward_stats(Tensor q_x, Tensor x_qparams, Tensor w, Tensor? bias, {_GEOMETRY}, "
    "ScalarType out_dtype, bool stats) -> (Tensor, Tensor)",
    reference_glue.conv_forward_stats,
    _fake_conv_forward_stats,
)
define(
    "stats_of(Tensor y) -> Tensor",
    reference_glue.stats_of,
    lambda y: y.new_empty((4, y.shape[1]), dtype=torch.float64),
)
define(
    "batch_norm_statistics(Tensor stats, float count, Tensor(a!)? running_mean, "
    "Tensor(b!)? running_var, float momentum, float eps) -> (Tensor, Tensor)",
    reference_glue.batch_norm_statistics,
    _fake_batch_norm_statistics,
)
define(
    "norm_act_forward(Tensor y, Tensor stats, Tensor? weight, Tensor? bias, Tensor? mean, "
    "Tensor? invstd, Tensor? residual, int act, bool want_out, bool want_q, "
    "bool allow_unsigned, bool want_codes) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference_glue.norm_act_forward,
    _fake_norm_act_forward,
)
define(
    "norm_act_reduce(Tensor g, Tensor? g2, Tensor? mask, Tensor? y, Tensor? grid, Tensor? mean, "
    "Tensor? invstd, bool want_gz) -> (Tensor, Tensor)",
    reference_glue.norm_act_reduce,
    _fake_norm_act_reduce,
)
define(
    f"grad_input_reduce(Tensor q_g, Tensor q_w, Tensor step, SymInt[] x_size, {_GEOMETRY}, "
    "ScalarType out_dtype, Tensor? g2, Tensor? mask, Tensor? y, Tensor? grid, Tensor? mean, "
    "Tensor? invstd) -> (Tensor, Tensor)",
    _grad_input_reduce,
    _fake_grad_input_reduce,
)
_BACKWARD = "Tensor g, Tensor? mask, Tensor? y, Tensor? grid, Tensor coefficients"
define(
    f"norm_backward_apply({_BACKWARD}) -> Tensor",
    reference_glue.norm_backward_apply,
    lambda g, *_: _like(g, g.dtype),
)
define(
    f"norm_backward_maxima({_BACKWARD}) -> Tensor",
    reference_glue.norm_backward_maxima,
    lambda g, *_: g.new_empty(g.shape[1] + 1, dtype=torch.float32),
)
define(
    f"norm_backward_quantize({_BACKWARD}, Tensor threshold, Tensor? seed) -> Tensor",
    reference_glue.norm_backward_quantize,
    lambda g, *_: _like(g, torch.int8),
)
define(
    f"norm_backward_thresholds({_BACKWARD}, Tensor(a!) threshold, Tensor(b!) tail_probability, "
    "Tensor(c!) iteration, bool mcs, float decay, float gain, bool cap, float gaussian_above, "
    "int interval) -> Tensor",
    _norm_backward_thresholds,
    lambda g, mask, y, grid, coefficients, threshold, *_: torch.empty_like(threshold),
)
define(
    "norm_backward_coefficients(Tensor sums, float count, Tensor? weight, Tensor mean, "
    "Tensor invstd) -> Tensor",
    reference_glue.norm_backward_coefficients,
    lambda sums, *_: sums.new_empty((3, sums.shape[1]), dtype=torch.float32),
)
define(
    "quantize_x_with(Tensor x, Tensor qparams) -> Tensor",
    reference_glue.quantize_x_with,
    lambda x, qparams: _like(x, torch.uint8),
)
define(
    "thresholds_from_maxima(Tensor maximum, Tensor(a!) threshold, Tensor tail_probability, "
    "Tensor(b!) iteration, bool mcs, float decay, float gain, bool cap, float gaussian_above) "
    "-> Tensor",
    reference_glue.thresholds_from_maxima,
    lambda maximum, *_: torch.empty_like(maximum),
)


def conv_forward_stats(
    q_x: Tensor,
    x_qparams: Tensor,
    w: Tensor,
    bias: Tensor | None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    out_dtype: torch.dtype,
    stats: bool,
) -> tuple[Tensor, Tensor]:
    """`conv_forward` of an input that is 8-bit already, and its output's statistics.

    Args:
        q_x: uint8 (N, Ci, *spatial), channels-last. x_qparams: float32 (2,) = (step, zero point).
        w: (Co, Ci / groups, *kernel), float; quantized here with one threshold.
        bias: (Co,) of a float dtype, or None.
        stride, padding, dilation, groups: as in `daq_mm.ops.conv`.
        out_dtype: float32, bfloat16 or float16.
        stats: whether statistics are wanted; they cost no further pass over y.

    Returns:
        y: (N, Co, *out) in out_dtype, channels-last.
        stats: of y as stored, float64 (4, Co); or an empty tensor (0,).
    """
    return torch.ops.daq_mm.conv_forward_stats(
        q_x, x_qparams, w, bias, stride, padding, dilation, groups, out_dtype, stats
    )


def stats_of(y: Tensor) -> Tensor:
    """Statistics of any activation, by a pass over it.

    Args:
        y: (N, C, *spatial), float32, bfloat16 or float16, of any layout.

    Returns:
        float64 (4, C): sum, sum of squares, minimum, maximum; zeros if y is empty. Sums are
        exact to about 1e-6 of the sum of magnitudes. A NaN in a channel makes all four NaN.
    """
    return torch.ops.daq_mm.stats_of(y)


def batch_norm_statistics(
    stats: Tensor,
    count: float | Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    *,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation of a batch, and the running averages moved on.

    As `torch.nn.BatchNorm2d` in training mode: the batch is normalized by its biased variance,
    the running variance averages the unbiased one. Computed in float64.

    Args:
        stats: float64 (4, C); of several processes: sums added up.
        count: values a channel, N * positions, of all processes. Where it was added up on a
            device, float64 (), which nothing reads on the host: then the reference computes this.
        running_mean, running_var: float (C,), updated in place, or None.
        momentum: weight of this batch in the running averages.
        eps: added to the variance.

    Returns:
        mean, invstd: float32 (C,).

    Raises:
        ValueError: count is a number, and 1 or less.
    """
    arguments = (stats, count, running_mean, running_var, momentum, eps)
    if isinstance(count, Tensor):
        return reference_glue.batch_norm_statistics(*arguments)
    return torch.ops.daq_mm.batch_norm_statistics(*arguments)


def norm_act_forward(
    y: Tensor,
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    invstd: Tensor | None,
    residual: Tensor | None,
    *,
    act: int,
    want_out: bool,
    want_q: bool,
    allow_unsigned: bool,
    want_codes: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Batch norm, residual add, activation and quantization of a convolution's output.

    In float32: scale = invstd * weight, shift = bias - mean * scale,
    v = y * scale + shift [+ residual]; v is rounded to D, out = act(v).
    Without a residual, out's extremes follow from y's (each step is monotone), so that one pass
    quantizes; with one, a first pass finds them.

    Args:
        y: (N, C, *spatial) in D, channels-last.
        stats: of y, float64 (4, C); its extremes are read for `want_codes` and without residual.
        weight, bias: batch norm's, (C,) of a float dtype, or None for 1 and 0.
        mean, invstd: float32 (C,), of the batch or of the running averages; both None for no
            norm, then weight and bias must be None too.
        residual: like y, or None.
        act: `NONE`, `RELU` or `RELU6`.
        want_out, want_q, want_codes: which results to write.
        allow_unsigned: as for `quantize_x`.

    Returns:
        out: in D, channels-last.
        q, qparams: `quantize_x(out, allow_unsigned)`; qparams also if q is not wanted. If a
            channel's scale or shift is not finite qparams' step is not either.
        codes: uint8, like y: round_half_even(clamp((y - low) * inv, 0, 255)) with
            inv = 255 / (maximum - minimum) in float32, 0 where that is not finite.
        grid: float32 (2, C): low = minimum, step = (maximum - minimum) / 255.
        mask: bits of not (v <= 0), for ReLU6 also not (v >= 6); empty without activation.
        What is not wanted is an empty tensor (0,).
    """
    return torch.ops.daq_mm.norm_act_forward(
        y,
        stats,
        weight,
        bias,
        mean,
        invstd,
        residual,
        act,
        want_out,
        want_q,
        allow_unsigned,
        want_codes,
    )


def norm_act_reduce(
    g: Tensor,
    g2: Tensor | None,
    mask: Tensor | None,
    y: Tensor | None,
    grid: Tensor | None,
    mean: Tensor | None,
    invstd: Tensor | None,
    *,
    want_gz: bool,
) -> tuple[Tensor, Tensor]:
    """Gradient before the activation, and the two sums of batch norm's backward pass.

    gz = g [+ g2, added in float32, rounded to D] where the mask's bit is set, else 0;
    sums of gz and of gz * x_hat, x_hat = (y_hat - mean) * invstd in float32.

    Args:
        g: gradient of the unit's output, (N, C, *spatial) in D, channels-last.
        g2: a second gradient of the same tensor, or None.
        mask: from `norm_act_forward`; None passes all.
        y: codes (uint8) with their grid, or the convolution's output in D with grid None; channels-
            last. May be None if mean is.
        grid: float32 (2, C) or None.
        mean, invstd: float32 (C,); both None for no norm, which leaves the second sum 0.
        want_gz: whether to write gz.

    Returns:
        gz: in D, channels-last, or empty (0,); sums: float64 (2, C), exact to about 1e-6 of the
        sum of magnitudes.
    """
    return torch.ops.daq_mm.norm_act_reduce(g, g2, mask, y, grid, mean, invstd, want_gz)


def grad_input_reduce(
    q_g: Tensor,
    q_w: Tensor,
    step: Tensor,
    x_size: Sequence[int],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    out_dtype: torch.dtype,
    g2: Tensor | None,
    mask: Tensor | None,
    y: Tensor | None,
    grid: Tensor | None,
    mean: Tensor | None,
    invstd: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`norm_act_reduce` (with want_gz) of what `grad_input` returns, without reading it again.

    The CPU's kernel masks and sums each block of grad-input while it is in the caches, CUDA's each
    tile while it is in registers. Where they cannot (the CPU with a stride; CUDA with splits of the
    contraction, depthwise, or a group's channels that are no multiple of 16 bytes) they run
    `norm_act_reduce` after it; any other backend runs the two ops. Results are the same but for the
    order of the sums.

    Args:
        q_g, q_w, step, x_size, stride, padding, dilation, groups: as for `grad_input`.
        out_dtype: float32, bfloat16 or float16.
        g2, mask, y, grid, mean, invstd: as for `norm_act_reduce`; g2 in out_dtype.

    Returns:
        gz: x_size in out_dtype, channels-last; sums: float64 (2, Ci).
    """
    return torch.ops.daq_mm.grad_input_reduce(
        *(q_g, q_w, step, x_size, stride, padding, dilation, groups, out_dtype),
        *(g2, mask, y, grid, mean, invstd),
    )


def norm_backward_coefficients(
    sums: Tensor, count: float | Tensor, weight: Tensor | None, mean: Tensor, invstd: Tensor
) -> Tensor:
    """(a, b, c) of batch norm's gradient dy = a gz + b y + c.

    With s = weight * invstd, m1 and m2 the means of gz and of gz x_hat, x_hat = (y - mean) invstd:
    dy = s (gz - m1 - x_hat m2) (Ioffe and Szegedy 2015, section 3). Computed in float64.

    Args:
        sums: float64 (2, C), from `norm_act_reduce`; of several processes: added up.
        count: values a channel, N * positions, of all processes; a number, or float64 ().
        weight: batch norm's, (C,) of a float dtype, or None for 1.
        mean, invstd: float32 (C,), of the batch.

    Returns:
        float32 (3, C).
    """
    if isinstance(count, Tensor):
        sums, count = sums / count, 1.0  # all that the count does
    return torch.ops.daq_mm.norm_backward_coefficients(sums, count, weight, mean, invstd)


def quantize_x_with(x: Tensor, qparams: Tensor) -> Tensor:
    """Quantize an activation on a grid that is known, in one pass.

    Args:
        x: (N, C, *spatial), float32, bfloat16 or float16, of any layout.
        qparams: float32 (2,) = (step, zero point) of `norm_act_forward` for this x.

    Returns:
        uint8, x's shape, channels-last: round_half_even(x * inv) + zero point, inv = levels /
        (step * levels) in float32, 255 levels for zero point 0 and 127 for 128; 0 where inv is not
        finite.
    """
    return torch.ops.daq_mm.quantize_x_with(x, qparams)


def norm_backward_apply(
    g: Tensor, mask: Tensor | None, y: Tensor | None, grid: Tensor | None, coefficients: Tensor
) -> Tensor:
    """dy = a * gz + b * y_hat + c in float32, rounded once to D: batch norm's backward pass.

    Args:
        g, mask: gz is g where the mask's bit is set, else 0; mask None for a g that is gz.
        y, grid: as for `norm_act_reduce`; y None leaves out b's term (no norm, or one of running
            statistics).
        coefficients: float32 (3, C) = (a, b, c).

    Returns:
        (N, C, *spatial) in D, channels-last.
    """
    return torch.ops.daq_mm.norm_backward_apply(g, mask, y, grid, coefficients)


def norm_backward_maxima(
    g: Tensor, mask: Tensor | None, y: Tensor | None, grid: Tensor | None, coefficients: Tensor
) -> Tensor:
    """Absolute maxima of what `norm_backward_apply` returns for the same arguments.

    Returns:
        float32 (C + 1,): of each channel and then of all; NaN where there is one.
    """
    return torch.ops.daq_mm.norm_backward_maxima(g, mask, y, grid, coefficients)


def norm_backward_thresholds(
    g: Tensor,
    mask: Tensor | None,
    y: Tensor | None,
    grid: Tensor | None,
    coefficients: Tensor,
    *,
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
    """`update_thresholds` of what `norm_backward_apply` returns for the same arguments.

    CUDA's kernels never write that, and ask the layer's counter on the device whether the
    discriminator is due. Any other backend runs the two ops.

    Args:
        threshold, tail_probability, iteration: the state, updated in place; and mcs, decay, gain,
            cap, gaussian_above, interval: as for `update_thresholds`.

    Returns:
        float32 (C + 1,), the thresholds to quantize with.
    """
    return torch.ops.daq_mm.norm_backward_thresholds(
        *(g, mask, y, grid, coefficients, threshold, tail_probability, iteration),
        *(mcs, decay, gain, cap, gaussian_above, interval),
    )


def norm_backward_quantize(
    g: Tensor,
    mask: Tensor | None,
    y: Tensor | None,
    grid: Tensor | None,
    coefficients: Tensor,
    *,
    threshold: Tensor,
    seed: Tensor | None,
) -> Tensor:
    """`quantize_g` of what `norm_backward_apply` returns for the same arguments.

    Args:
        threshold: float32 (C,) or (1,). seed: as for `quantize_g`.

    Returns:
        int8 (N, C, *spatial), channels-last.
    """
    return torch.ops.daq_mm.norm_backward_quantize(g, mask, y, grid, coefficients, threshold, seed)


def thresholds_from_maxima(
    maximum: Tensor,
    threshold: Tensor,
    tail_probability: Tensor,
    iteration: Tensor,
    *,
    mcs: bool,
    decay: float,
    gain: float,
    cap: bool,
    gaussian_above: float,
) -> Tensor:
    """`update_thresholds` of a gradient that only its maxima are known of.

    Args:
        maximum: float32 (C + 1,), from `norm_backward_maxima`.
        threshold, tail_probability, iteration: the layer's state, updated in place (the tail
            probabilities are read only). The caller sees to it that the discriminator is not due:
            iteration is no multiple of its interval, or mcs is off.
        mcs, decay, gain, cap, gaussian_above: as for `update_thresholds`.

    Returns:
        float32 (C + 1,), the thresholds to quantize with.
    """
    return torch.ops.daq_mm.thresholds_from_maxima(
        maximum, threshold, tail_probability, iteration, mcs, decay, gain, cap, gaussian_above
    )
