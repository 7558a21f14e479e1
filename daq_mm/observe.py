"""What the hook logs of a layer's quantization: clipped share and signal-to-noise ratios."""

from __future__ import annotations

import math

import torch

Tensor = torch.Tensor


class Observer:
    """Sums of signal and noise power over the tensors that a layer quantizes in one iteration.

    `x`, `w` and `g` stand for activation, weight and output gradient.
    """

    def __init__(self) -> None:
        self.signal = dict.fromkeys("xwg", 0.0)
        self.noise = dict.fromkeys("xwg", 0.0)
        self.clipped = 0
        self.gradient_values = 0

    @torch.no_grad()
    def record(self, role: str, exact: Tensor, dequantized: Tensor) -> None:
        """Add one tensor and its 8-bit approximation, both of the same shape."""
        self.signal[role] += _power(exact)
        self.noise[role] += _power(exact.float() - dequantized.float())

    @torch.no_grad()
    def record_clipping(self, g: Tensor, threshold: Tensor) -> None:
        """Count the values of g (N, Co, *out) beyond thresholds that broadcast to it."""
        self.clipped += int((g.abs() > threshold).sum())
        self.gradient_values += g.numel()


def _power(values: Tensor) -> float:
    """The sum of squares in float64, without a copy of the values in float64."""
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def merge(observers: list[Observer]) -> dict[str, float]:
    """Means over layers for the log: SNR in dB of x, w and g, and the clipped share.

    A ratio is left out where no layer has seen a nonzero signal and noise.
    """
    result = {}
    for role in "xwg":
        ratios = [
            10 * math.log10(o.signal[role] / o.noise[role])
            for o in observers
            if o.signal[role] > 0 and o.noise[role] > 0
        ]
        if ratios:
            result[f"snr_{role}_db"] = sum(ratios) / len(ratios)
    values = sum(o.gradient_values for o in observers)
    if values:
        result["clipped_share"] = sum(o.clipped for o in observers) / values
    return result
