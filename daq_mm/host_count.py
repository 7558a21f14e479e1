"""A count that lives on a device, known to the host without waiting for the device each time."""

from __future__ import annotations

import torch

Tensor = torch.Tensor


class HostCount:
    """What an int64 (1,) tensor holds, read from a GPU once and counted along from then on.

    Reading a number from a GPU waits for all that was queued there. It is read again where the
    tensor was replaced, or changed by a PyTorch op, as by loading a checkpoint: its version tells.

    Replays of a CUDA graph count on the device alone, so that the host knows nothing any more once
    a graph was captured.
    """

    def __init__(self) -> None:
        self._tensor: Tensor | None = None
        self._version = -1
        self._count = 0
        self._captured = False

    def read(self, tensor: Tensor) -> int | None:
        """The count; None in a CUDA graph, after one was captured, and of a tensor without data."""
        if _is_on_host(tensor):
            return int(tensor)
        self._captured = self._captured or _is_capturing(tensor)
        if self._captured:
            return None
        if not self.is_current(tensor):
            if tensor.is_meta:
                return None
            self._remember(tensor, int(tensor))
        return self._count

    def is_current(self, tensor: Tensor) -> bool:
        """Whether the host knows the count; never while torch.compile traces."""
        if torch.compiler.is_compiling() or self._tensor is not tensor:
            return False
        return self._version == tensor._version

    def add_one(self, tensor: Tensor) -> None:
        """After an op that added 1 to a tensor whose count was current before it."""
        self._remember(tensor, self._count + 1)

    def _remember(self, tensor: Tensor, count: int) -> None:
        self._tensor, self._version, self._count = tensor, tensor._version, count

    def __reduce__(self) -> tuple:
        """Copies and pickles know nothing, as their tensor is another one."""
        return type(self), ()


def _is_on_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _is_capturing(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
