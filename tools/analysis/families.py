"""How near a channel's values are to each of the paper's two families, as KS distances.

The Kolmogorov-Smirnov distance of values to a law is the largest difference of the two cumulative
distributions. Each family gets its best member: the normal law of mean 0 with the best standard
deviation, and the piecewise-uniform law (`InvertedT`) with the best width of the peak, whose share
of values is counted.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

#: Standard deviations tried, relative to the values' own: the peak of a long-tailed law is
#: narrower than its standard deviation says.
_SIGMAS = np.geomspace(0.15, 1.2, 25)
#: Shares of the values that the peak may hold.
_PEAKS = np.linspace(0.02, 0.98, 49)


def ks_distance(ordered: np.ndarray, law: np.ndarray) -> np.ndarray:
    """Largest distance of the empirical distribution of `ordered` (..., n) from the law at them.

    Args:
        ordered: values in increasing order along the last axis.
        law: the law's cumulative distribution at those values, of the same shape.
    """
    n = ordered.shape[-1]
    upper = np.arange(1, n + 1) / n - law
    lower = law - np.arange(n) / n
    return np.maximum(upper, lower).max(-1)


def ks_normal(values: np.ndarray) -> np.ndarray:
    """KS distance of each row of `values` (rows, n) to the nearest normal law of mean 0."""
    ordered = np.sort(values, axis=-1)
    scale = ordered.std(-1, keepdims=True)
    scale = np.where(scale > 0, scale, 1)
    return np.min([ks_distance(ordered, ndtr(ordered / (scale * s))) for s in _SIGMAS], axis=0)


def ks_own_normal(values: np.ndarray) -> np.ndarray:
    """KS distance of each row to the normal law of mean 0 and of the row's own deviation."""
    ordered = np.sort(values, axis=-1)
    scale = ordered.std(-1, keepdims=True)
    return ks_distance(ordered, ndtr(ordered / np.where(scale > 0, scale, 1)))


def ks_laplace(values: np.ndarray) -> np.ndarray:
    """KS distance of each row to the nearest Laplace law of mean 0: neither of the families."""
    ordered = np.sort(values, axis=-1)
    scale = np.abs(ordered).mean(-1, keepdims=True)
    size = ordered / np.where(scale > 0, scale, 1)
    laws = (0.5 + 0.5 * np.sign(size) * -np.expm1(-np.abs(size) / s) for s in _SIGMAS)
    return np.min([ks_distance(ordered, law) for law in laws], axis=0)


def ks_inverted_t(values: np.ndarray) -> np.ndarray:
    """KS distance of each row of `values` (rows, n) to the nearest inverted-T law.

    The law reaches to the row's absolute maximum; a peak of half-width w has density a and holds
    the share of values in (-w, w), the rest is uniform.
    """
    ordered = np.sort(values, axis=-1)
    magnitude = np.sort(np.abs(values), axis=-1)
    maximum = np.maximum(magnitude[:, -1:], np.finfo(np.float64).tiny)
    n = values.shape[-1]
    distances = []
    for peak in _PEAKS:
        width = magnitude[:, [int(peak * (n - 1))]]
        width = np.clip(width, maximum * 1e-9, maximum * (1 - 1e-9))
        distances.append(ks_distance(ordered, inverted_t_cdf(ordered, width, maximum, peak)))
    return np.min(distances, axis=0)


def inverted_t_cdf(
    g: np.ndarray, width: np.ndarray, maximum: np.ndarray, peak: float
) -> np.ndarray:
    """Cumulative distribution of the symmetric piecewise-uniform law at g."""
    size = np.abs(g)
    inside = peak * np.minimum(size, width) / width
    beyond = (1 - peak) * np.clip(size - width, 0, None) / (maximum - width)
    return 0.5 + 0.5 * np.sign(g) * np.clip(inside + beyond, 0, 1)


def best_clipping(
    values: np.ndarray, alphas: tuple[float, ...], candidates: int = 50
) -> np.ndarray:
    """s / max|g| of the smallest weighted error on real values, (rows, alphas).

    The error is sum e^(alpha |g| / max|g|) |g - ghat(s)| with rounding to nearest on 127 levels:
    the paper's E(s) of the empirical law, without its approximations. Of equal errors the largest
    threshold counts, so a row of zeros gives 1.
    """
    magnitude = np.abs(values)
    maximum = magnitude.max(-1, keepdims=True)
    magnitude = magnitude / np.where(maximum > 0, maximum, 1)
    ratios = np.linspace(1, 0, candidates + 1)[:-1]
    weights = np.stack([np.exp(alpha * (magnitude - 1)) for alpha in alphas])
    errors = []
    for s in ratios:
        step = s / 127
        off = np.abs(magnitude - np.minimum(np.round(magnitude / step), 127) * step)
        errors.append((weights * off).sum(-1))
    return ratios[np.argmin(errors, axis=0)].T
