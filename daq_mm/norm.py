"""Batch norm as the fused unit sees it: statistics of a call, running averages, ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from . import ops

Tensor = torch.Tensor

#: Classes that normalise as nn.BatchNorm does; by name, because mmengine is not required.
_EQUIVALENT_CLASSES = {"mmengine.model.utils._BatchNormXd"}


def is_batch_norm(module: nn.Module) -> bool:
    """Whether the module is exactly a batch norm that the fused unit computes alike."""
    cls = type(module)
    if cls in (nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm):
        return True
    return f"{cls.__module__}.{cls.__qualname__}" in _EQUIVALENT_CLASSES


@dataclass
class NormState:
    """One call's view of a batch norm.

    Attributes:
        module: the norm.
        use_batch: whether this call normalises by the batch's statistics.
        update: whether it moves the running averages.
        momentum: of the running averages in this call.
        group: ranks that share statistics, or None for this process alone.
        count: values a channel that the statistics are of; known after the forward pass. Of
            several ranks it is float64 () and stays on the device.
    """

    module: nn.Module
    use_batch: bool
    update: bool
    momentum: float
    group: torch.distributed.ProcessGroup | None
    count: float | Tensor = 0.0

    @property
    def beta_dtype(self) -> torch.dtype:
        return self.module.bias.dtype

    def forward_statistics(self, stats: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and inverse standard deviation, float32 (C,), to normalise y (N, C, *out) with.

        Args:
            stats: float64 (4, C) of y: sum, sum of squares, minimum, maximum.
        """
        norm = self.module
        if not self.use_batch:
            invstd = torch.rsqrt(norm.running_var.detach().float() + norm.eps)
            # A copy: the backward pass needs the mean of now.
            return norm.running_mean.detach().float().clone(), invstd
        self.count = y.numel() / y.shape[1]
        if self.group is not None:
            totals = torch.cat([stats[:2].flatten(), stats.new_full((1,), self.count)])
            torch.distributed.all_reduce(totals, group=self.group)
            # Reading it would wait for the device in each layer, and no CUDA graph could hold that.
            # It is above 1: each rank has a value.
            self.count = totals[-1]
            stats = torch.cat([totals[:-1].view(2, -1), stats[2:]])
        elif self.count <= 1:
            raise ValueError(
                f"Expected more than 1 value per channel when training, got input size {y.shape}"
            )
        return ops.batch_norm_statistics(
            stats,
            self.count,
            norm.running_mean if self.update else None,
            norm.running_var if self.update else None,
            momentum=self.momentum,
            eps=norm.eps,
        )


def norm_state(norm: nn.Module) -> NormState:
    """State for the next call; counts it, as nn.BatchNorm's forward does."""
    update = norm.training and norm.track_running_stats
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if update and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # cumulative average; waits for the device, as PyTorch's does
            momentum = 1.0 / float(norm.num_batches_tracked)
    group = None
    if isinstance(norm, nn.SyncBatchNorm) and norm.training and _world_size(norm) > 1:
        group = norm.process_group or torch.distributed.group.WORLD
    return NormState(
        module=norm,
        use_batch=norm.training or norm.running_mean is None,
        update=update and norm.running_mean is not None,
        momentum=momentum,
        group=group,
    )


def _world_size(norm: nn.SyncBatchNorm) -> int:
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 1
    return torch.distributed.get_world_size(norm.process_group)


def backward_coefficients(
    state: NormState | None,
    sums: Tensor,
    gamma: Tensor | None,
    mean: Tensor | None,
    invstd: Tensor | None,
) -> Tensor:
    """(a, b, c), float32 (3, C), of the norm's gradient dy = a gz + b y + c.

    For a norm by running statistics dy = gamma / sigma gz, for none dy = gz.

    Args:
        state: of the call, None for no norm.
        sums: float64 (2, C): sums of gz and of gz xhat over this process's batch.
        gamma: the norm's weight (C,), None for 1. mean, invstd: float32 (C,).
    """
    if state is not None and state.use_batch:
        if state.group is not None:
            sums = sums.clone()
            torch.distributed.all_reduce(sums, group=state.group)
        return ops.norm_backward_coefficients(sums, state.count, gamma, mean, invstd)
    coefficients = torch.zeros(3, sums.shape[1], device=sums.device)
    if state is None:
        coefficients[0] = 1
    else:
        coefficients[0] = invstd if gamma is None else invstd * gamma.detach().float()
    return coefficients
