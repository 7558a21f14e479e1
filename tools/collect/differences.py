"""Differences paired by seed: Student's interval, and the verdict of two one-sided tests."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence

from scipy import stats

#: Half a point: what the tables call equivalent lies within this margin of FP32.
MARGIN = 0.5

CONFIDENCE = 0.95

#: Two pairs can agree by chance to any digit, and an interval of theirs means no more than that.
LEAST_PAIRS = 3

VERDICTS = ("equivalent", "better", "worse", "not shown")


@dataclasses.dataclass(frozen=True)
class Difference:
    """Differences of n pairs of runs, in points.

    Attributes:
        mean, std: of the differences; std is the sample's, NaN for one pair.
        low, high: the 95% confidence interval of the mean, NaN for one pair.
        verdict: see `compare`.
    """

    n: int
    mean: float
    std: float
    low: float
    high: float
    verdict: str


def compare(differences: Sequence[float], margin: float = MARGIN) -> Difference | None:
    """What paired differences show; None without any.

    'equivalent': two one-sided t-tests at 5% each refuse that the mean lies below -margin and
    that it lies above +margin, which is to say that its 90% interval lies within the margin.
    Otherwise 'worse' or 'better' if the 95% interval lies on one side of zero, and 'not shown'
    if it does not: too much spread, or fewer than `LEAST_PAIRS` runs.
    """
    n = len(differences)
    if n == 0:
        return None
    mean = statistics.fmean(differences)
    if n == 1:
        return Difference(1, mean, math.nan, math.nan, math.nan, "not shown")
    std = statistics.stdev(differences)
    error = std / math.sqrt(n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    one_sided = float(stats.t.ppf(CONFIDENCE, n - 1)) * error
    low, high = mean - half, mean + half
    if n < LEAST_PAIRS:
        verdict = "not shown"
    elif -margin < mean - one_sided and mean + one_sided < margin:
        verdict = "equivalent"
    elif high < 0:
        verdict = "worse"
    elif low > 0:
        verdict = "better"
    else:
        verdict = "not shown"
    return Difference(n, mean, std, low, high, verdict)
