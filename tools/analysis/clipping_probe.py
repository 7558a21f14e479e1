"""ClippingProbe: what lambda, k and A do to the error of the backward products, on real gradients.

Each setting has its own thresholds of each layer, moved on by the package's own rule with every
gradient of a training, as if the layer were trained by it; the training itself does not change, so
all settings see the same gradients. At the chosen iterations both products of each layer are
computed with each setting's thresholds and compared with float ones.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from torch import nn

from daq_mm import ops
from daq_mm.config import DAQConfig
from daq_mm.ops import reference

from .probe import ProbeDone
from .products import float_grad_input

Tensor = torch.Tensor

#: Fields of DAQConfig and the values that are tried, one field at a time.
VALUES: dict[str, tuple[float, ...]] = {
    "mcs_lambda": (0.0, 0.2, 0.25, 0.3, 0.35, 0.4),
    "mcs_k": (0.8, 0.9, 1.0, 1.1, 1.2),
    "mcs_a": (0.2, 0.4, 0.6, 0.8, 1.0),
}
PRODUCTS = ("grad_input", "grad_weight")


def settings(recipe: str) -> list[tuple[str, float, DAQConfig]]:
    """(field, value, config) of every setting; the recipe's own values stand in each field."""
    return [
        (field, value, DAQConfig.from_recipe(recipe, **{field: value}))
        for field, values in VALUES.items()
        for value in values
    ]


@dataclasses.dataclass
class Power:
    """Signal and noise of one product, summed over the gradients of an iteration."""

    signal: float = 0.0
    noise: float = 0.0

    def decibels(self) -> float | None:
        """Their ratio in dB; None without signal or noise."""
        if self.signal <= 0 or self.noise <= 0:
            return None
        return 10 * math.log10(self.signal / self.noise)


@dataclasses.dataclass
class _Sums:
    """What one setting made of a layer in one iteration."""

    grad_input: Power = dataclasses.field(default_factory=Power)
    dw: Tensor | float = 0.0
    exact_dw: Tensor | float = 0.0

    def decibels(self) -> dict[str, float | None]:
        """The ratios by product."""
        noise = (self.dw - self.exact_dw).square().sum()
        weight = Power(float(self.exact_dw.square().sum()), float(noise))
        return {"grad_input": self.grad_input.decibels(), "grad_weight": weight.decibels()}


class LayerThresholds:
    """The thresholds of one layer by each setting, and what the settings share.

    Args:
        channels: Co.
        configs: of the settings; quantizer 'mcs', one discriminator_interval.

    Attributes:
        state: float32 (settings, Co + 1).
    """

    def __init__(self, channels: int, configs: Sequence[DAQConfig]) -> None:
        self.interval = configs[0].discriminator_interval
        self.state = torch.zeros(len(configs), channels + 1)
        self.tail_probability = torch.ones(channels + 1)
        self.seen = torch.zeros(1, dtype=torch.int64)
        columns = [(1.0 - c.mcs_k * c.mcs_a, c.mcs_a, c.mcs_lambda) for c in configs]
        self.decay, self.gain, self.limit = torch.tensor(columns).split(1, dim=1)
        self.capped = torch.tensor([c.cap_at_maximum for c in configs])

    def update(self, g: Tensor) -> Tensor:
        """Thresholds (settings, Co + 1) for the gradient g (N, Co, *out); moves the states on."""
        maxima = reference.absolute_maximum(g, (0, *range(2, g.dim())))
        maxima = torch.cat([maxima, maxima.amax().view(1)])
        if int(self.seen) % self.interval == 0:
            self.tail_probability = reference._tail_probability(g)
        used = torch.empty_like(self.state)
        for cap in (False, True):  # the package's rule, for all settings at once
            rows = self.capped == cap
            state = self.state[rows]
            used[rows] = reference.move_thresholds(
                *(maxima, state, self.tail_probability, torch.zeros(1, dtype=torch.int64), True),
                *(self.decay[rows], self.gain[rows], cap, self.limit[rows]),
            )
            self.state[rows] = state
        self.seen += 1
        return used


class ClippingProbe(Hook):
    """Follow all settings through a run, measure at some iterations and end it after the last.

    Args:
        iterations: to measure at, from 0.
        recipes: whose way to compute the products (INT8 recipes with the quantizer 'mcs').

    Attributes:
        records: one dict an iteration, layer, recipe and setting, with the ratios in dB. A layer
            that is used several times in an iteration has the gradients of all uses in one ratio:
            of the sum for grad-weight, as an optimizer sees it.

    The network's first convolution is left out, as the recipes leave it in floating point.
    """

    priority = "LOWEST"

    def __init__(self, iterations: Sequence[int], recipes: Sequence[str]) -> None:
        self.iterations = sorted(iterations)
        self.tried = [(recipe, *setting) for recipe in recipes for setting in settings(recipe)]
        self.records: list[dict[str, Any]] = []

    def before_train(self, runner) -> None:
        """Watch every convolution but the first."""
        convolutions = (nn.Conv2d, nn.Conv3d)
        layers = [
            (name, module)
            for name, module in runner.model.named_modules()
            if isinstance(module, convolutions) and module.weight.requires_grad
        ]
        configs = [config for *_, config in self.tried]
        self.layers = dict(layers[1:])
        self.thresholds = {
            name: LayerThresholds(module.out_channels, configs)
            for name, module in self.layers.items()
        }
        for name, module in self.layers.items():
            module.register_forward_hook(self._watcher(name))

    def _watcher(self, name: str):
        def forward_hook(module, inputs, output):
            if output.requires_grad:
                x = inputs[0].detach() if self._looking else None
                output.register_hook(lambda g: self._see(name, module, x, g.detach().float()))

        return forward_hook

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Nothing is summed yet."""
        self._looking = runner.iter in self.iterations
        self._sums: dict[str, list[_Sums]] = {}

    def _see(self, name: str, module: nn.Module, x: Tensor | None, g: Tensor) -> None:
        with torch.no_grad():
            found = self.thresholds[name].update(g)
            if x is not None and isinstance(module.padding, tuple):
                self._measure(name, module, x.float(), g, found)

    def _measure(self, name, module, x: Tensor, g: Tensor, found: Tensor) -> None:
        """Add one use of a layer to the sums of its iteration."""
        w = module.weight.detach().float()
        geometry = {
            "stride": module.stride,
            "padding": (*module.padding, *module.padding),
            "dilation": module.dilation,
            "groups": module.groups,
        }
        q_x, x_qparams = ops.quantize_x(x, allow_unsigned=False)
        x_hat = (q_x.double() - x_qparams[1]) * x_qparams[0]
        exact_w = ops.float_grad_weight(x_hat, g.double(), w.double(), **geometry)
        exact_x = float_grad_input(x, w, g, geometry)
        sums = self._sums.setdefault(name, [_Sums() for _ in self.tried])
        for total, (*_, config), threshold in zip(sums, self.tried, found):
            dx, dw, _ = ops.conv_backward(
                *(g, q_x, x_qparams, w, threshold, None),
                **geometry,
                folded=config.grad_input == "folded",
                channel_grad_weight=config.grad_weight == "channel",
                output_mask=[True, True, False],
                x_dtype=torch.float32,
            )
            total.grad_input.signal += float(exact_x.square().sum())
            total.grad_input.noise += float((dx.double() - exact_x).square().sum())
            total.dw = total.dw + dw.double()
            total.exact_dw = total.exact_dw + exact_w

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Make records of the sums."""
        for name, sums in self._sums.items():
            for total, (recipe, field, value, _) in zip(sums, self.tried):
                record = {"iteration": runner.iter, "layer": name, "recipe": recipe}
                record |= {"field": field, "value": value}
                self.records.append({**record, **total.decibels()})
        if runner.iter >= self.iterations[-1]:
            raise ProbeDone
