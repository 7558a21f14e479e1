"""Memory formats: 8-bit tensors are channels-last; float results follow their input."""

from __future__ import annotations

import torch

Tensor = torch.Tensor


def channels_last_format(rank: int) -> torch.memory_format:
    """The channels-last memory format for `rank` spatial axes (2 or 3)."""
    return torch.channels_last if rank == 2 else torch.channels_last_3d


def is_channels_last(x: Tensor) -> bool:
    """Whether x (N, C, *spatial) is dense channels-last and not plain contiguous as well."""
    return (
        x.is_contiguous(memory_format=channels_last_format(x.dim() - 2)) and not x.is_contiguous()
    )


def result_format(x: Tensor, w: Tensor) -> torch.memory_format:
    """Memory format of a convolution's float result: PyTorch's rule, x's or w's channels-last."""
    if is_channels_last(x) or is_channels_last(w):
        return channels_last_format(x.dim() - 2)
    return torch.contiguous_format


def weight_format(w: Tensor) -> torch.memory_format:
    """Memory format of w's gradient: w's own, so that accumulating it needs no copy."""
    return channels_last_format(w.dim() - 2) if is_channels_last(w) else torch.contiguous_format
