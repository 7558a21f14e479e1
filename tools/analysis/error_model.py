"""The weighted error E(s) that the paper's clipping minimises, and its minimum by numbers.

    E(s) = 2 * integral over |g - ghat| e^(alpha g) p(g) dg from 0 to |g|max

for a symmetric density p and the threshold s (Zhao et al., AAAI 2021, section 3.3). Three ways to
say how large |g - ghat| is below the threshold:
  'half'    half a step, s / (2 * 127): the paper's, a bound
  'quarter' a quarter of a step: the mean of a rounding error that is uniform within a step
  'exact'   what rounding to nearest does to each value
Everything is in units of |g|max, so alpha stands for alpha |g|max and thresholds lie in (0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.integrate import cumulative_trapezoid
from scipy.special import ndtr

LEVELS = 127
ROUNDINGS = ("half", "quarter", "exact")


@dataclass(frozen=True)
class TruncatedNormal:
    """The normal law cut off at |g|max = `spread` standard deviations.

    A channel of N values has its maximum near sqrt(2 ln N) of them: 4.3 for 10,000.
    """

    spread: float

    def density(self, g: np.ndarray) -> np.ndarray:
        """p(g) for g in [0, 1]; the integral over [-1, 1] is 1."""
        inside = 2 * ndtr(self.spread) - 1
        bell = np.exp(-0.5 * (self.spread * g) ** 2) / np.sqrt(2 * np.pi)
        return self.spread * bell / inside

    breaks = ()


@dataclass(frozen=True)
class InvertedT:
    """The paper's sharp peak with a long tail: density a on (0, width), b on (width, 1).

    `tail` is the share of values beyond the peak, so b = tail / (2 (1 - width)).
    """

    width: float
    tail: float

    @property
    def a(self) -> float:
        """Density of the peak."""
        return (1 - self.tail) / (2 * self.width)

    @property
    def b(self) -> float:
        """Density of the tail."""
        return self.tail / (2 * (1 - self.width))

    def density(self, g: np.ndarray) -> np.ndarray:
        """p(g) for g in [0, 1]; the integral over [-1, 1] is 1."""
        return np.where(g <= self.width, self.a, self.b)

    @property
    def breaks(self) -> tuple[float, ...]:
        """Where the density jumps."""
        return (self.width,)


Law = TruncatedNormal | InvertedT


class WeightedError:
    """E(s) of one law and one alpha at any threshold.

    Args:
        law: a density on [0, 1].
        alpha: of the weight e^(alpha g), in units of 1 / |g|max, at least 0.
        rounding: one of `ROUNDINGS`.
        points: of the grid of integration.

    Values of E are relative to e^alpha, so that they stay finite.
    """

    def __init__(self, law: Law, alpha: float, rounding: str = "half", points: int = 40_001):
        if rounding not in ROUNDINGS:
            raise ValueError(f"rounding={rounding!r} is unknown; allowed: {', '.join(ROUNDINGS)}")
        if alpha < 0:
            raise ValueError(f"alpha={alpha} must be at least 0")
        self.rounding = rounding
        # Both sides of a jump are grid points, so that no interval straddles it.
        jumps = [b + side * 1e-12 for b in law.breaks for side in (0, 1)]
        self.g = np.unique(np.concatenate([np.linspace(0, 1, points), jumps]))
        self.weight = np.exp(alpha * (self.g - 1)) * law.density(self.g)
        self.mass = cumulative_trapezoid(self.weight, self.g, initial=0)
        self.moment = cumulative_trapezoid(self.weight * self.g, self.g, initial=0)

    def __call__(self, s: np.ndarray | float) -> np.ndarray:
        """E at thresholds s in (0, 1]."""
        s = np.atleast_1d(np.asarray(s, dtype=np.float64))
        if self.rounding == "exact":
            return np.array([self._exact(value) for value in s])
        mass, moment = (np.interp(s, self.g, v) for v in (self.mass, self.moment))
        beyond = (self.moment[-1] - moment) - s * (self.mass[-1] - mass)
        fraction = 0.5 if self.rounding == "half" else 0.25
        return 2 * (fraction * s / LEVELS * mass + beyond)

    def _exact(self, s: float) -> float:
        step = s / LEVELS
        rounded = np.minimum(np.round(self.g / step), LEVELS) * step
        return 2 * float(np.trapezoid(np.abs(self.g - rounded) * self.weight, self.g))

    def minimum(self, candidates: int = 400) -> tuple[float, float]:
        """(threshold, E) at the smallest E in (0, 1]; refined around the best of a grid."""
        low, high = 0.0, 1.0
        best = (1.0, float(self(1.0)[0]))
        rounds = 1 if self.rounding == "exact" else 4  # exact E is rough below the grid's width
        for _ in range(rounds):
            s = np.linspace(low, high, candidates + 1)[1:]
            values = self(s)
            index = int(values.argmin())
            if values[index] < best[1]:
                best = (float(s[index]), float(values[index]))
            width = (high - low) / candidates
            low, high = max(0.0, best[0] - width), min(1.0, best[0] + width)
        return best

    def regret(self, s: np.ndarray | float) -> np.ndarray:
        """E(s) over the smallest E, minus 1: what a threshold loses, as a share."""
        return self(s) / self.minimum()[1] - 1


def closed_form(law: Law, k: float = 1.0) -> float:
    """The paper's threshold over |g|max for a steady |g|max: 1 for Gaussian, 1 / k else."""
    return 1.0 if isinstance(law, TruncatedNormal) else 1.0 / k


def recursion(maxima: np.ndarray, k: float, a: float, cap: bool = False) -> np.ndarray:
    """s_t = (1 - k a) s_(t-1) + a max_t, started at the first maximum as the package does.

    With `cap`, s_t never exceeds max_t (`DAQConfig.cap_at_maximum`).
    """
    s = np.empty_like(maxima)
    s[0] = maxima[0]
    for t in range(1, len(maxima)):
        s[t] = (1 - k * a) * s[t - 1] + a * maxima[t]
        if cap:
            s[t] = min(s[t], maxima[t])
    return s


def recursion_regret(
    law: Law,
    alpha: float,
    maxima: np.ndarray,
    k: float,
    a: float,
    *,
    cap: bool = False,
    rounding: str = "half",
) -> float:
    """Mean regret of the recursion's thresholds while |g|max moves and the law's shape stays.

    Thresholds above the maximum clip nothing and coarsen the grid, in proportion to s.
    """
    error = WeightedError(law, alpha, rounding)
    ratio = recursion(maxima, k, a, cap) / maxima
    at_maximum = float(error(1.0)[0])
    values = np.where(ratio >= 1, at_maximum * ratio, error(np.clip(ratio, 1e-6, 1)))
    return float(values.mean() / error.minimum()[1] - 1)
