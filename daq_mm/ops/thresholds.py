"""The op that updates a layer's gradient thresholds: maxima, discriminator, clipping."""

from __future__ import annotations

import torch

from . import reference
from ._library import define

Tensor = torch.Tensor

define(
    "update_thresholds(Tensor g, Tensor(a!) threshold, Tensor(b!) tail_probability, "
    "Tensor(c!) iteration, bool mcs, float decay, float gain, bool cap, float gaussian_above, "
    "int interval) -> Tensor",
    reference.update_thresholds,
    lambda g, threshold, *_: torch.empty_like(threshold),
)


def update_thresholds(
    g: Tensor,
    threshold: Tensor,
    tail_probability: Tensor,
    iteration: Tensor,
    *,
    mcs: bool,
    decay: float,
    gain: float,
    cap: bool,
    gaussian_above: float,
    interval: int,
) -> Tensor:
    """Thresholds for one output gradient, and the layer's state moved on by one.

    Each state vector has an entry for each output channel and a last one for the whole tensor.
    Without `mcs` every threshold is the absolute maximum. With it (paper, section 3.3):
    a Gaussian entry takes the absolute maximum, an inverted-T entry
    `decay * previous + gain * maximum`; an entry whose previous threshold is 0 (the first
    gradient, or nothing but zeros so far) takes the maximum, so that it is not clipped.
    Every `interval`-th gradient the share of values beyond one standard deviation is measured
    again. An entry whose maximum is NaN or Inf returns it and leaves its state as it was. An
    empty gradient changes nothing.

    Args:
        g: (N, Co, *out), float32, bfloat16 or float16.
        threshold: float32 (Co + 1,), updated in place.
        tail_probability: float32 (Co + 1,), P(|g| > sigma), updated in place; sigma is the
            population standard deviation; 1 for an entry with nothing but zeros.
        iteration: int64 (1,), gradients seen, updated in place.
        decay: 1 - k A of the recursion. gain: A of the recursion.
        cap: whether the recursion's threshold is cut down to the maximum; above it, a threshold
            only coarsens the grid. Not in the paper.
        gaussian_above: lambda of the discriminator.
        interval: gradients between two measurements of the tail probability, at least 1.

    Returns:
        float32 (Co + 1,), the thresholds to quantize g with.
    """
    return torch.ops.daq_mm.update_thresholds(
        g, threshold, tail_probability, iteration, mcs, decay, gain, cap, gaussian_above, interval
    )
