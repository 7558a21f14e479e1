"""What quantization takes from a gradient on average, and what that is worth in grad-weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .conv import grad_weight
from .geometry import ConvGeometry
from .layout import channels_last_format
from .reference import signed_levels

Tensor = torch.Tensor

#: int32 holds the sum of so many values of -127 to 127, whatever they are.
MOST_INT32_POSITIONS = (2**31 - 1) // 127


def dropped_mean_grad_weight(
    g_sum: Tensor,
    q_g: Tensor,
    threshold: Tensor,
    q_x: Tensor,
    x_qparams: Tensor,
    w: Tensor,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    bits: int = 8,
) -> Tensor:
    """grad-weight of the mean, channel by channel, of g - ghat: added to it, the mean is kept.

    Batch norm makes each channel's gradient sum to zero. Rounding to nearest does not keep that,
    because the many small values of a peaked channel fall to zero on one side more than on the
    other, and an activation after a ReLU has a large mean, by which the difference is multiplied:
    in a network's first layers, with their many positions, that is most of the error. A constant
    gradient m gives m times the sums of x over the kernel's windows, one integer product with a
    gradient of ones for each group. Not in the paper.

    Args:
        g_sum: float (Co,), the sum of the gradient over samples and positions; in float64, or
            known otherwise, because the terms nearly cancel.
        q_g: int8 (N, Co, *out), the quantized gradient, and threshold: float32, (Co,) or (1,).
        q_x, x_qparams, w: as for `conv_backward`.
        bits: of the gradient's grid.

    Returns:
        float32 of w's size, zeros for an empty batch.
    """
    geometry = ConvGeometry.make(q_x.shape, w.shape, stride, padding, dilation, groups)
    positions = geometry.grad_weight_contraction
    if positions == 0:
        return torch.zeros_like(w, dtype=torch.float32)
    kept = _channel_sums(q_g).double() * (threshold / signed_levels(bits)).double()
    mean = ((g_sum.double() - kept) / positions).float()
    size = (q_g.shape[0], groups, *q_g.shape[2:])
    ones = torch.ones(size, dtype=torch.int8, device=q_g.device)
    ones = ones.contiguous(memory_format=channels_last_format(geometry.rank))
    sums = grad_weight(
        q_x,
        x_qparams,
        ones,
        x_qparams.new_ones(groups),
        list(w.shape[2:]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        out_dtype=torch.float32,
    )
    sums = sums.repeat_interleave(w.shape[0] // groups, dim=0)
    return mean.view(-1, *([1] * (w.dim() - 1))) * sums


def _channel_sums(q_g: Tensor) -> Tensor:
    """Sum of each channel of int8 (N, Co, *out), exact: int32 or int64 (Co,).

    As grad-weight of one input channel of ones, because PyTorch sums bytes 2 to 25 times slower.
    """
    rank, channels = q_g.dim() - 2, q_g.shape[1]
    if q_g.numel() // channels > MOST_INT32_POSITIONS:
        return q_g.sum((0, *range(2, q_g.dim())), dtype=torch.int64)
    ones = torch.ones((q_g.shape[0], 1, *q_g.shape[2:]), dtype=torch.uint8, device=q_g.device)
    one = torch.ones(channels, device=q_g.device)
    x_qparams = torch.stack([torch.ones_like(one[0]), torch.zeros_like(one[0])])
    sums = grad_weight(
        ones.contiguous(memory_format=channels_last_format(rank)),
        x_qparams,
        q_g,
        one,
        [1] * rank,
        stride=[1] * rank,
        padding=[0] * 2 * rank,
        dilation=[1] * rank,
        groups=1,
        out_dtype=torch.int32,
    )
    return sums.view(channels)
