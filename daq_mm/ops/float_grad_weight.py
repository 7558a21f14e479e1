"""grad-weight in floating point, for recipes that keep this product in high precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .geometry import ConvGeometry
from .layout import weight_format

Tensor = torch.Tensor


def float_grad_weight(
    x: Tensor,
    g: Tensor,
    w: Tensor,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """dW = X (star) G by PyTorch's own convolution, in the dtype of g.

    Args:
        x: (N, Ci, *spatial) of a float dtype. g: (N, Co, *out) of a float dtype.
        w: (Co, Ci / groups, *kernel), for the result's size, dtype and memory format.
        stride, padding, dilation, groups: as for the integer ops.
    """
    geometry = ConvGeometry.make(x.shape, w.shape, stride, padding, dilation, groups)
    if geometry.grad_weight_contraction == 0:
        return torch.zeros_like(w)
    x = x.to(g.dtype)
    pad = list(geometry.pad_begin)
    if geometry.pad_begin != geometry.pad_end:
        # PyTorch's product pads both ends alike.
        ends = zip(reversed(geometry.pad_begin), reversed(geometry.pad_end))
        x, pad = F.pad(x, [n for pair in ends for n in pair]), [0] * geometry.rank
    _, dw, _ = torch.ops.aten.convolution_backward(
        *(g, x, w.to(g.dtype), None, list(stride), pad, list(dilation)),
        *(False, [0] * geometry.rank, groups, [False, True, False]),
    )
    return dw.to(w.dtype).contiguous(memory_format=weight_format(w))
