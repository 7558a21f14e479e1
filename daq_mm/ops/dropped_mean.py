"""What quantization takes from a gradient on average, and what that is worth in grad-weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ._library import define
from .geometry import ConvGeometry
from .reference import signed_levels, step_of

Tensor = torch.Tensor

#: int32 holds the sum of so many values of 0 to 255 or -128 to 127, whatever they are.
MOST_INT32_ROWS = (2**31 - 1) // 255

define(
    "byte_sums(Tensor q) -> Tensor",
    lambda q: q.sum(0, dtype=torch.int32),
    lambda q: q.new_empty(q.shape[1], dtype=torch.int32),
)


def byte_sums(q: Tensor) -> Tensor:
    """The exact sum of each column of a matrix of bytes.

    Args:
        q: int8 or uint8 (R, M), contiguous; M at least 1.

    Returns:
        int32 (M,), or int64 where R is above `MOST_INT32_ROWS`.
    """
    if q.shape[0] > MOST_INT32_ROWS:
        return q.sum(0, dtype=torch.int64)
    return torch.ops.daq_mm.byte_sums(q)


def window_sums(
    q_x: Tensor,
    x_qparams: Tensor,
    kernel: Sequence[int],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """The sum of the x that each tap of a kernel meets: grad-weight of a gradient of ones.

    Args:
        q_x: uint8 (N, Ci, *spatial), channels-last, and x_qparams: as for `conv_backward`.
        kernel: size of the kernel, one entry a spatial axis; padding: all begins, then all ends.

    Returns:
        float64 (Ci, *kernel): exact sums of codes, less the zero point, times the step.
    """
    return torch.ops.daq_mm.window_sums(q_x, x_qparams, kernel, stride, padding, dilation)


def _reference_window_sums(q_x, x_qparams, kernel, stride, padding, dilation) -> Tensor:
    """Samples first; then, axis by axis, a product with the matrix of which tap meets what."""
    w_size = (1, q_x.shape[1], *kernel)
    geometry = ConvGeometry.make(q_x.shape, w_size, stride, padding, dilation, 1)
    sums = q_x.movedim(1, -1).sum(0, dtype=torch.int64).double()
    met = sums.new_ones(())
    done = 1  # taps of the axes before
    for axis, size in enumerate(geometry.x_size[2:]):
        meets = _meetings(geometry, axis, q_x.device)
        sums = meets @ sums.view(done, size, -1)
        met = (met.unsqueeze(-1) * meets.sum(1)).flatten()
        done *= kernel[axis]
    step, zero_point = x_qparams.double()
    sums = (sums.view(done, -1) - zero_point * (q_x.shape[0] * met.unsqueeze(1))) * step
    # reshape() alone may leave the strides of the transposition.
    return sums.t().reshape(-1, *kernel).contiguous()


def _meetings(geometry: ConvGeometry, axis: int, device: torch.device) -> Tensor:
    """float64 (kernel, size) of one spatial axis: 1 where a tap meets a place of x, else 0."""
    tap = torch.arange(geometry.w_size[2 + axis], device=device) * geometry.dilation[axis]
    place = torch.arange(geometry.x_size[2 + axis], device=device)
    offset = place + geometry.pad_begin[axis] - tap.unsqueeze(1)
    stride, out = geometry.stride[axis], geometry.out_spatial[axis]
    return ((offset >= 0) & (offset % stride == 0) & (offset < out * stride)).double()


define(
    "window_sums(Tensor q_x, Tensor x_qparams, int[] kernel, int[] stride, int[] padding, "
    "int[] dilation) -> Tensor",
    _reference_window_sums,
    lambda q_x, x_qparams, kernel, *_: x_qparams.new_empty(
        (q_x.shape[1], *kernel), dtype=torch.float64
    ),
)


def add_dropped_mean_(
    dw: Tensor,
    g_sum: Tensor,
    q_g: Tensor,
    threshold: Tensor,
    q_x: Tensor,
    x_qparams: Tensor,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    bits: int = 8,
) -> Tensor:
    """Adds to dw what grad-weight loses by the mean, channel by channel, of g - ghat.

    Batch norm makes each channel's gradient sum to zero. Rounding to nearest does not keep that,
    because the many small values of a peaked channel fall to zero on one side more than on the
    other, and an activation after a ReLU has a large mean, by which the difference is multiplied:
    in a network's first layers, with their many positions, that is most of the error. A constant
    gradient m gives m times the sums of x over the kernel's windows. Not in the paper.

    Args:
        dw: float (Co, Ci / groups, *kernel), grad-weight of q_g; changed in place.
        g_sum: float (Co,), the sum of the gradient over samples and positions, added up in float64
            (or known otherwise), because the terms nearly cancel.
        q_g: int8 (N, Co, *out) channels-last, the quantized gradient, and threshold: float32, (Co,)
            or (1,).
        q_x, x_qparams: as for `conv_backward`.
        bits: of the gradient's grid.

    Returns:
        dw.
    """
    co, kernel = dw.shape[0], dw.shape[2:]
    positions = q_g.numel() // co
    if positions == 0:
        return dw
    step = step_of(threshold, signed_levels(bits)).double()
    kept = byte_sums(q_g.movedim(1, -1).flatten(0, -2)).double() * step
    mean = ((g_sum.double() - kept) / positions).float()
    sums = window_sums(
        q_x, x_qparams, kernel, stride=stride, padding=padding, dilation=dilation
    ).float()
    total = dw if dw.dtype == torch.float32 else dw.float()
    total.unflatten(0, (groups, -1)).addcmul_(
        mean.view(groups, -1, *([1] * (dw.dim() - 1))), sums.unflatten(0, (groups, 1, -1))
    )
    return dw if total is dw else dw.copy_(total)
