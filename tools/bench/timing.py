"""Timing: candidates take turns within one run, and are told by medians with their spread.

A machine slows down and stalls for reasons of its own. Taking turns lets such a phase hit all
candidates alike, and the median forgets the single stall; so ratios are quoted within one run.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch

#: Least seconds of a sample (of several calls, if one is shorter), so that the clock does not
#: matter.
SHORTEST_SAMPLE = 200e-6

#: Seconds a call, and at most, that a GPU waits before a sample of several calls begins, in which
#: the host queues them: ops are timed, not the time that Python needs to call them.
_HEAD_START, _LONGEST_HEAD_START = 30e-6, 5e-3
#: Of a GPU's clock, about, a second; torch's own wait counts them.
_CYCLES = 1.7e9


@dataclass(frozen=True)
class Summary:
    """Seconds a call: median, quartiles, extremes, and how many samples they are from."""

    median_s: float
    q25_s: float
    q75_s: float
    min_s: float
    max_s: float
    samples: int

    @classmethod
    def of(cls, seconds: list[float]) -> Summary:
        """Summarize at least one sample."""
        if not seconds:
            raise ValueError("a summary needs at least one sample")
        quartiles = statistics.quantiles(seconds, method="inclusive") if len(seconds) > 1 else []
        q25, _, q75 = quartiles or [seconds[0]] * 3
        return cls(statistics.median(seconds), q25, q75, min(seconds), max(seconds), len(seconds))

    def fields(self) -> dict[str, float]:
        """The summary as record fields."""
        return asdict(self)


def device_of(name: str) -> torch.device:
    """The device of an option --device.

    Raises:
        ValueError: neither a CPU nor a CUDA device that is there.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ValueError(f"device={name!r} is unknown; allowed: cpu, cuda, cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={name!r}: torch sees no CUDA device here; use cpu")
    return device


class Clock:
    """Seconds of a piece of work on a device: wall time on a CPU, event time on CUDA."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.cuda = torch.device(device).type == "cuda"

    def seconds(self, work: Callable[[], object], *, head_start: float = 0.0) -> float:
        """Run `work` once and wait for the device.

        head_start: seconds that a GPU waits first, while the host queues work already. Without it
            the host's time counts wherever it takes longer than the device, as it does for a user.
        """
        if not self.cuda:
            begin = time.perf_counter()
            work()
            return time.perf_counter() - begin
        begin_event = torch.cuda.Event(enable_timing=True)
        end_event = torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        if head_start > 0:
            torch.cuda._sleep(int(head_start * _CYCLES))
        begin_event.record()
        work()
        end_event.record()
        torch.cuda.synchronize()
        return begin_event.elapsed_time(end_event) / 1e3


def take_turns(
    candidates: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    min_time: float,
    clock: Clock,
) -> dict[str, Summary]:
    """Time candidates in turns: `repeats` rounds, in each of which every candidate has one sample.

    Each is called twice first, to warm up and to choose how many calls make a sample.

    Args:
        candidates: work by name; the order within a round is theirs.
        repeats: rounds, at least 1.
        min_time: seconds that the samples of one candidate last together, at least.
        clock: of the device.

    Returns:
        summaries by name, in seconds a call.
    """
    if repeats < 1 or min_time < 0:
        raise ValueError(f"repeats={repeats} must be at least 1, min_time={min_time} at least 0")
    sample_time = max(SHORTEST_SAMPLE, min_time / repeats)
    calls = {}
    for name, work in candidates.items():
        clock.seconds(work)
        calls[name] = max(1, math.ceil(sample_time / max(clock.seconds(work), 1e-9)))
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, work in candidates.items():
            head_start = min(_HEAD_START * calls[name], _LONGEST_HEAD_START)
            seconds = clock.seconds(_repeated(work, calls[name]), head_start=head_start)
            samples[name].append(seconds / calls[name])
    return {name: Summary.of(values) for name, values in samples.items()}


def _repeated(work: Callable[[], object], calls: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(calls):
            work()

    return run
