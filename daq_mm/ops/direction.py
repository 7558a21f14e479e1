"""The op that finds one threshold a layer by the direction of the quantized gradient.

Direction-sensitive gradient clipping of UI8 (Zhu et al., "Towards Unified INT8 Training for
Convolutional Neural Network", CVPR 2020, arXiv 1912.12607): the threshold s minimises the cosine
distance d_c(s) = 1 - cos(g, ghat(s)). It is plain PyTorch on every device: it runs once in so many
gradients.
"""

from __future__ import annotations

import torch

from ._library import define
from .reference import absolute_maximum, inverse_step, signed_levels

Tensor = torch.Tensor

#: Search: candidates a round, and rounds; each looks between the neighbours of the last one's
#: best. The third round's grid is (2 / 13) ** 2 / 12 of the maximum wide, below a step of 8 bits.
CANDIDATES = 12
ROUNDS = 3


def _update_direction_threshold(
    g: Tensor, threshold: Tensor, deviation: Tensor, iteration: Tensor, interval: int, bits: int
) -> Tensor:
    """See `update_direction_threshold`."""
    if g.numel() == 0:
        return threshold.clone()
    maximum = absolute_maximum(g)
    if not bool(torch.isfinite(maximum)):
        iteration.add_(1)
        return maximum.expand_as(threshold).clone()
    due = int(iteration) % interval == 0 or not bool(threshold.any())
    if due and bool(maximum > 0):
        s, d_c = find_threshold(g, bits)
        threshold.fill_(s)
        deviation.fill_(d_c)
    iteration.add_(1)
    return threshold.clone()


def find_threshold(g: Tensor, bits: int = 8) -> tuple[float, float]:
    """The threshold in (0, max|g|] with the smallest cosine distance, and that distance.

    Found on a grid that is refined around its best point. The distance is not convex in s (the
    grid of the quantizer moves under the values), so this is the minimum up to the grid.
    """
    maximum = float(absolute_maximum(g))
    low, high = 0.0, 1.0
    best = (1.0, cosine_distance(g, maximum, bits))
    for _ in range(ROUNDS):
        width = (high - low) / CANDIDATES
        for i in range(1, CANDIDATES + 1):
            fraction = low + i * width
            d_c = cosine_distance(g, fraction * maximum, bits)
            if d_c < best[1]:
                best = (fraction, d_c)
        low, high = max(0.0, best[0] - width), min(1.0, best[0] + width)
    return best[0] * maximum, best[1]


def cosine_distance(g: Tensor, s: float, bits: int = 8) -> float:
    """d_c = 1 - cos(g, ghat) for the threshold s, rounded to nearest; 1 where ghat is zero.

    Products in float32, sums in float64: d_c of 8 bits is near 1e-4, far above the error of that.
    """
    levels = signed_levels(bits)
    values = g.detach().float()
    threshold = torch.tensor(s, dtype=torch.float32, device=g.device)
    q = torch.round((values * inverse_step(threshold, levels)).clamp(-levels, levels))
    dot = float((values * q).sum(dtype=torch.float64))
    norms = float(values.square().sum(dtype=torch.float64) * q.square().sum(dtype=torch.float64))
    return max(0.0, 1.0 - dot / norms**0.5) if norms > 0 else 1.0


define(
    "update_direction_threshold(Tensor g, Tensor(a!) threshold, Tensor(b!) deviation, "
    "Tensor(c!) iteration, int interval, int bits) -> Tensor",
    _update_direction_threshold,
    lambda g, threshold, *_: torch.empty_like(threshold),
)


def update_direction_threshold(
    g: Tensor,
    threshold: Tensor,
    deviation: Tensor,
    iteration: Tensor,
    *,
    interval: int,
    bits: int,
) -> Tensor:
    """UI8's threshold for one output gradient, and the layer's state moved on by one.

    The search runs at every `interval`-th gradient, and at the first one that is not zero; in
    between the threshold stays. A gradient with NaN or Inf returns it as the threshold and leaves
    threshold and deviation as they were. An empty gradient changes nothing.

    Args:
        g: (N, Co, *out), float32, bfloat16 or float16.
        threshold: float32 (Co + 1,), updated in place; all entries are the one threshold.
        deviation: float32 (1,), the cosine distance at the last search, updated in place.
        iteration: int64 (1,), gradients seen, updated in place.
        interval: gradients between two searches, at least 1.
        bits: of the gradient's grid.

    Returns:
        float32 (Co + 1,), the thresholds to quantize g with.
    """
    return torch.ops.daq_mm.update_direction_threshold(
        g, threshold, deviation, iteration, interval, bits
    )
