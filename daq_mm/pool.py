"""Max pooling that keeps little for its backward pass, for blocks that run by a plan.

nn.MaxPool2d keeps its input and int64 indices: behind a network's first convolution that is more
than any of its blocks keeps. What the backward pass needs is the indices alone, and those of one
picture fit into 16 or 32 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from .ops.layout import is_channels_last

Tensor = torch.Tensor


class _MaxPool2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, settings):
        y, indices = torch.ops.aten.max_pool2d_with_indices(x, *settings)
        narrow = torch.int16 if x.shape[2] * x.shape[3] <= 2**15 else torch.int32
        ctx.save_for_backward(indices.to(narrow))
        ctx.settings, ctx.size = settings, x.shape
        ctx.last = is_channels_last(x)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (indices,) = ctx.saved_tensors
        layout = torch.channels_last if ctx.last else torch.contiguous_format
        # Only its size, dtype and layout are read.
        x = torch.empty(ctx.size, dtype=g.dtype, device=g.device, memory_format=layout)
        dx = torch.ops.aten.max_pool2d_with_indices_backward(
            g, x, *ctx.settings, indices.to(torch.int64)
        )
        return dx, None


def pools_compactly(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether `compact_max_pool` computes what this call of the module would."""
    return (
        type(module) is nn.MaxPool2d
        and not module.return_indices
        and len(args) == 1
        and not kwargs
        and isinstance(args[0], Tensor)
        and args[0].dim() == 4
        and args[0].shape[2] * args[0].shape[3] < 2**31
        and args[0].requires_grad
        and torch.is_grad_enabled()
        and not (module._forward_hooks or module._forward_pre_hooks)
        and not (module._backward_hooks or module._backward_pre_hooks)
    )


def compact_max_pool(module: nn.MaxPool2d, x: Tensor) -> Tensor:
    """module(x), bit for bit, and its gradient; between the two only narrow indices are kept.

    Args:
        module: of any kernel, stride, padding, dilation and ceil_mode, without return_indices.
        x: (N, C, H, W), float; `pools_compactly` tells whether a call may come here.
    """
    pairs = (module.kernel_size, module.stride, module.padding, module.dilation)
    settings = [[v, v] if isinstance(v, int) else list(v) for v in pairs]
    return _MaxPool2d.apply(x, (*settings, module.ceil_mode))
