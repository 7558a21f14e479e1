"""Time left: from the seconds of finished runs, those of the same cell first."""

from __future__ import annotations

import heapq
import statistics

from .cells import Run


class History:
    """Seconds of finished runs."""

    def __init__(self) -> None:
        self.finished: list[tuple[Run, float]] = []

    def add(self, run: Run, seconds: float) -> None:
        """Remember how long a run took."""
        self.finished.append((run, seconds))

    def expected(self, run: Run) -> float | None:
        """Median over the runs of the same cell, else config, else of all; None if none ended."""
        for same in (
            lambda other: other.cell == run.cell,
            lambda other: other.config == run.config,
            lambda other: True,
        ):
            seconds = [taken for other, taken in self.finished if same(other)]
            if seconds:
                return statistics.median(seconds)
        return None


def seconds_left(running: list[float], waiting: list[float], slots: int) -> float:
    """When the last run ends, if each waiting one goes to the slot that is free first.

    Args:
        running: seconds left of each run that was started.
        waiting: seconds of each run that was not, in their order.
        slots: runs at a time.
    """
    free = [max(0.0, seconds) for seconds in running]
    free += [0.0] * (slots - len(free))
    heapq.heapify(free)
    for seconds in waiting:
        heapq.heapreplace(free, free[0] + seconds)
    return max(free, default=0.0)


def in_words(seconds: float) -> str:
    """'about 12 min', as exact as an estimate deserves."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"
