"""The machine's limits, measured in the same run, and the choice of CPU instruction set."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch

from daq_mm import ops

from .timing import Clock, take_turns


def capabilities(choice: str, device: torch.device) -> list[str | None]:
    """CPU instruction sets to benchmark; [None] leaves what there is.

    Args:
        choice: 'best', 'all', or names joined by commas, as `daq_mm._C.cpu_capabilities()` has
            them.
        device: where the ops run; capabilities are of the CPU only.

    Raises:
        ValueError: a name that this build or processor lacks.
    """
    if choice == "best":
        return [None]
    if device.type != "cpu":
        raise ValueError(f"backends={choice!r}: on {device.type} the only choice is 'best'")
    built, reason = ops.kernels_built("cpu")
    if not built:
        raise ValueError(f"backends={choice!r}: the only choice is 'best', because {reason}")
    from daq_mm import _C

    allowed = list(_C.cpu_capabilities())
    names = allowed if choice == "all" else choice.split(",")
    for name in names:
        if name not in allowed:
            raise ValueError(
                f"backends={choice!r}: {name!r} is not available; "
                f"allowed: best, all, {', '.join(allowed)}"
            )
    return list(names)


_forced: str | None = None


def _force(name: str | None) -> None:
    """Set the capability unless it is in force; cheap enough to be inside a timed call."""
    global _forced
    if name != _forced:
        ops.set_cpu_capability(name)
        _forced = name


def forced(name: str | None, work: Callable[[], object]) -> Callable[[], object]:
    """The work under a CPU capability; the next work is under its own."""

    def run() -> object:
        _force(name)
        return work()

    return run


@contextlib.contextmanager
def cpu_capability(name: str | None) -> Iterator[None]:
    """The block under a CPU capability, None for the best."""
    before = _forced
    _force(name)
    try:
        yield
    finally:
        _force(before)


def peak_gops(device: torch.device) -> float | None:
    """Highest INT8 rate in Gop/s (a multiply-add is two), None where it cannot be measured.

    CPU: register-only, with the capability in force. CUDA: torch._int_mm on 8192 x 8192, which
    is what a library reaches.
    """
    if device.type == "cuda":
        n = 8192
        a, b = (torch.randint(-127, 128, (n, n), dtype=torch.int8, device=device) for _ in "ab")
        seconds = _best(lambda: torch._int_mm(a, b.t()), device)
        return 2 * n**3 / seconds / 1e9
    if not ops.kernels_built("cpu")[0]:
        return None
    from daq_mm import _C

    return _C.cpu_peak_gops(0.1) if hasattr(_C, "cpu_peak_gops") else None


def copy_bandwidth(device: torch.device) -> float:
    """GB/s of a copy between two tensors beyond every cache, bytes read plus bytes written."""
    mib = 1024 if device.type == "cuda" else 256
    source = torch.zeros(mib * 2**20, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * source.numel() / _best(lambda: target.copy_(source), device) / 1e9


def _best(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of several calls: a limit is not lowered by a stall."""
    return take_turns({"": work}, repeats=7, min_time=0.2, clock=Clock(device))[""].min_s
