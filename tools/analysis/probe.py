"""GradientProbe: a hook that looks at the output gradients of a run's convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from torch import nn

from daq_mm.ops import reference

from . import families
from .products import product_errors

Tensor = torch.Tensor

#: Weights e^(alpha |g| / max|g|) for which the best clipping is looked for.
ALPHAS = (0.0, 1.0, 2.0, 4.0)
#: Channels (or samples), evenly spread, and values of each, drawn at random with a fixed seed, of
#: which distances and the best clipping are computed.
ROWS, VALUES = 48, 4096
#: Bins of the drawn densities, in standard deviations of each channel (or sample); they widen
#: outwards, where values are rare.
_HALF = np.concatenate([[0.0], np.geomspace(0.05, 12.0, 26)])
BINS = np.concatenate([-_HALF[:0:-1], _HALF])
#: Channels (or samples) that are drawn, evenly spread over the order of tail probabilities.
DRAWN = 10
#: Iterations over which the fluctuation of channels' maxima is told.
WINDOW = 100


class ProbeDone(Exception):
    """The last iteration to look at is over."""


class GradientProbe(Hook):
    """Statistics of every convolution's gradient at some iterations; ends the run after the last.

    A layer that is used several times in an iteration (a detector's head, shared by the levels of
    a pyramid) counts with its largest gradient.

    Args:
        iterations: training iterations to look at, counted from 0.
        drawn: names or shell-style patterns of the layers whose densities are kept for a figure,
            and whose maxima are followed over the last iterations.

    Attributes:
        records: one dict an iteration and layer.
    """

    priority = "LOWEST"

    def __init__(self, iterations: Sequence[int], drawn: Sequence[str]) -> None:
        self.iterations = sorted(iterations)
        self.drawn = tuple(drawn)
        self.records: list[dict[str, Any]] = []
        self._maxima: dict[str, list[Tensor]] = {}
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}

    def before_train(self, runner) -> None:
        """Watch every convolution; what is kept depends on the iteration."""
        model = runner.model
        self.layers = {n: m for n, m in model.named_modules() if _is_conv(m)}
        names = list(self.layers)
        for pattern in self.drawn:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(f"--layers {pattern!r} matches none of: {', '.join(names)}")
        self.chosen = [n for n in names if any(fnmatchcase(n, p) for p in self.drawn)]
        if not self.drawn:
            self.chosen = [names[i] for i in np.linspace(1, len(names) - 1, 4).astype(int)]
        for name, module in self.layers.items():
            module.register_forward_hook(self._watcher(name))

    def _watcher(self, name: str):
        def forward_hook(module, inputs, output):
            if output.requires_grad and (self._looking or name in self.chosen):
                x = inputs[0].detach()
                output.register_hook(lambda g: self._keep(name, x, g))

        return forward_hook

    def _keep(self, name: str, x: Tensor, g: Tensor) -> None:
        if name not in self._seen or g.numel() > self._seen[name][1].numel():
            self._seen[name] = (x, g.detach())

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Forget the last iteration's tensors."""
        self._looking = runner.iter in self.iterations
        self._seen.clear()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Compute the statistics, outside of autograd."""
        for name in self.chosen:
            if name in self._seen:
                g = self._seen[name][1]
                maxima = g.abs().amax((0, *range(2, g.dim())))
                self._maxima.setdefault(name, []).append(maxima)
                del self._maxima[name][:-WINDOW]
        if self._looking:
            with torch.no_grad():
                for name, module in self.layers.items():
                    if name in self._seen:
                        record = self._look(name, module, *self._seen[name])
                        self.records.append({"iteration": runner.iter, "layer": name, **record})
        self._seen.clear()
        if runner.iter >= self.iterations[-1]:
            raise ProbeDone

    def _look(self, name: str, module: nn.Module, x: Tensor, g: Tensor) -> dict[str, Any]:
        g = g.float()
        record: dict[str, Any] = {"size": list(g.shape)}
        for kind, view in (("channels", g), ("samples", g.transpose(0, 1))):
            rows = view.transpose(0, 1).reshape(view.shape[1], -1)
            some = _spread(rows, ROWS, VALUES)
            record[kind] = {
                "tail_probability": reference._tail_probability(view)[:-1].numpy(),
                "maximum": rows.abs().amax(1).numpy(),
                "probed": _indices(len(rows), ROWS),
                "ks_normal": families.ks_normal(some),
                "ks_inverted_t": families.ks_inverted_t(some),
                "ks_own_normal": families.ks_own_normal(some),
                "ks_laplace": families.ks_laplace(some),
            }
            if kind == "channels":
                record[kind]["best_clipping"] = families.best_clipping(some, ALPHAS)
            if name in self.chosen:
                order = np.argsort(record[kind]["tail_probability"])
                shown = order[_indices(len(order), DRAWN)]
                record[kind]["drawn"] = shown
                record[kind]["densities"] = [_density(row) for row in rows.numpy()[shown]]
        if name in self.chosen:
            record["fluctuation"] = fluctuation(torch.stack(self._maxima[name]).numpy())
        if isinstance(module.padding, tuple) and module.padding_mode == "zeros":
            geometry = {
                "stride": module.stride,
                "padding": (*module.padding, *module.padding),
                "dilation": module.dilation,
                "groups": module.groups,
            }
            weight = module.weight.detach().float()
            record["snr_db"] = product_errors(x.float(), weight, g, geometry)
        return record


def fluctuation(maxima: np.ndarray) -> dict[str, float] | None:
    """How the maxima (iterations, channels) move: medians over the channels that never are zero.

    `log_std` is the standard deviation of the logarithm, `lag1` its autocorrelation from one
    iteration to the next; None with fewer than 10 iterations.
    """
    logs = np.log(maxima[:, (maxima > 0).all(0)].astype(np.float64))
    if len(logs) < 10 or logs.shape[1] == 0:
        return None
    centred = logs - logs.mean(0)
    power = np.maximum((centred**2).mean(0), np.finfo(np.float64).tiny)
    lag1 = (centred[1:] * centred[:-1]).mean(0) / power
    return {
        "iterations": len(logs),
        "log_std": float(np.median(np.sqrt(power))),
        "lag1": float(np.median(lag1)),
    }


def _is_conv(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv2d, nn.Conv3d)) and module.weight.requires_grad


def _indices(length: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, length - 1, min(length, most)).astype(int))


def _spread(rows: Tensor, most_rows: int, most_values: int) -> np.ndarray:
    """Some rows of `rows` (channels, n), evenly spread, and some values of each, float64.

    Values are drawn at random: an even spacing could fall in step with the picture's rows.
    """
    some = rows[torch.from_numpy(_indices(rows.shape[0], most_rows))]
    order = torch.randperm(rows.shape[1], generator=torch.Generator().manual_seed(0))
    return some[:, order[:most_values]].double().numpy()


def _density(row: np.ndarray) -> np.ndarray:
    """Density of one channel's values in units of its own standard deviation."""
    scale = row.std()
    counts = np.histogram(row / (scale if scale > 0 else 1), BINS)[0]
    return counts / (len(row) * np.diff(BINS))
