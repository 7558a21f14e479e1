"""Memory of training: the peak of a process of its own, and bytes kept for the backward pass."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from daq_mm.fuse import is_fused

from .training import Trainer

#: Iterations before the peak is taken, so that compilation and first allocations are over.
_WARM_UP = 2
_MEASURED = 2


def peak(make_trainer: Callable[[], Trainer], device: torch.device) -> dict[str, int]:
    """Peak memory of training, in a process that has done nothing else.

    Args:
        make_trainer: builds network, batch and optimizer.
        device: that they are on.

    Returns:
        in bytes: 'baseline' before anything was built, 'idle' between two iterations (weights,
        optimizer state, batch), 'peak' within an iteration; 'peak_over_baseline'; and
        'iteration', the peak over idle: activations, gradients, workspaces. On a CPU these are
        resident sizes, on CUDA what the caching allocator has handed out.

    Raises:
        RuntimeError: a CPU whose system does not tell resident sizes (not Linux).
    """
    meter = _CudaMeter() if device.type == "cuda" else _ProcessMeter()
    baseline = meter.now()
    trainer = make_trainer()
    for _ in range(_WARM_UP):
        trainer.step()
    trainer.release_gradients()
    idle = meter.now()
    meter.reset_peak()
    for _ in range(_MEASURED):
        trainer.step()
    highest = meter.peak()
    return {
        "baseline": baseline,
        "idle": idle,
        "peak": highest,
        "peak_over_baseline": highest - baseline,
        "iteration": highest - idle,
    }


class _ProcessMeter:
    """Resident size of this process, from /proc."""

    def now(self) -> int:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed does not count
        return self._read("VmRSS")

    def reset_peak(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        return self._read("VmHWM")

    @staticmethod
    def _read(field: str) -> int:
        status = Path("/proc/self/status")
        if not status.is_file():
            raise RuntimeError("peak memory on a CPU needs Linux: there is no /proc/self/status")
        for line in status.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
        raise RuntimeError(f"/proc/self/status has no {field}")


class _CudaMeter:
    """What PyTorch's caching allocator has handed out on the current device."""

    def now(self) -> int:
        gc.collect()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()


def saved_for_backward(trainer: Trainer) -> dict[str, int | None]:
    """Bytes of tensors that one forward pass keeps for the backward pass; not for compiled modes.

    Parameters do not count; memory that several layers keep counts once in each sum.

    Returns:
        'convolutions': what convolution layers keep; 'int8_layers': the same without a first
        convolution, which reads the network's input and stays in floating point in every mode, so
        that both sides of a ratio are the layers that INT8 replaces; 'all': what the whole network
        keeps. The first two are None where convolutions run inside fused units: what is theirs
        cannot be told apart there.
    """
    own = {p.untyped_storage().data_ptr() for p in trainer.module.parameters()}
    kept: dict[str, dict[int, int]] = {"convolutions": {}, "int8_layers": {}, "all": {}}
    inside: list[tuple[str, ...]] = []

    def enter(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        first = not inputs[0].requires_grad
        inside.append(("convolutions",) if first else ("convolutions", "int8_layers"))

    def leave(*_) -> None:
        inside.pop()

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            for name in ("all", *(inside[-1] if inside else ())):
                kept[name][storage.data_ptr()] = storage.nbytes()
        return t

    layers = [m for m in trainer.module.modules() if isinstance(m, nn.modules.conv._ConvNd)]
    fused = any(is_fused(m) for m in trainer.module.modules())
    if fused:
        layers = []  # hooks on layers would make fused units step aside
    handles = [layer.register_forward_pre_hook(enter) for layer in layers]
    handles += [layer.register_forward_hook(leave) for layer in layers]
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = trainer.loss()  # keeps the graph, so that no storage is used twice
    finally:
        for handle in handles:
            handle.remove()
    del loss
    sums: dict[str, int | None] = {name: sum(sizes.values()) for name, sizes in kept.items()}
    if fused:
        sums["convolutions"] = sums["int8_layers"] = None
    return sums
