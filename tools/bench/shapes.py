"""Convolution shapes to benchmark: one record a distinct shape, with its multiplicity.

The sets are traced from the real networks (`bench.networks`), by hooks on their convolutions, so
that multiplicities and the signs of activations are those of the networks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from daq_mm.ops import ConvGeometry


@dataclass(frozen=True)
class ConvShape:
    """A convolution as a network uses it.

    Attributes:
        geometry: its sizes; the batch is x_size[0].
        name: the first layer that has it.
        count: how many layers of the network have it.
        unsigned: whether its input never has negative values (after a ReLU).
        first: whether it reads the network's input: no grad-input, and left in floating point
            by `convert_model` unless told otherwise.
    """

    geometry: ConvGeometry
    name: str
    count: int = 1
    unsigned: bool = True
    first: bool = False

    @property
    def macs(self) -> int:
        """Multiply-adds of any of the three products."""
        return math.prod(self.geometry.out_size) * self.geometry.forward_contraction

    @property
    def key(self) -> tuple:
        """What makes two layers the same shape."""
        return (self.geometry, self.unsigned, self.first)

    def with_batch(self, batch: int) -> ConvShape:
        """The same layer for another batch size."""
        geometry = replace(self.geometry, x_size=(batch, *self.geometry.x_size[1:]))
        return replace(self, geometry=geometry)

    def fields(self) -> dict[str, Any]:
        """The shape as record fields."""
        return {
            "layer": self.name,
            "count": self.count,
            "unsigned": self.unsigned,
            "first": self.first,
            **{name: _listed(value) for name, value in asdict(self.geometry).items()},
            "macs": self.macs,
        }

    def __str__(self) -> str:
        g = self.geometry
        kernel = "x".join(map(str, g.w_size[2:]))
        words = f"{_times(g.x_size)} -> {g.w_size[0]}, {kernel}"
        if max(g.stride) > 1:
            words += f" /{_same(g.stride)}"
        if max(g.dilation) > 1:
            words += f" dil {_same(g.dilation)}"
        return words + (f" groups {g.groups}" if g.groups > 1 else "")


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _times(values: tuple[int, ...]) -> str:
    return "x".join(map(str, values))


def _same(values: tuple[int, ...]) -> str:
    """One number where all axes agree."""
    return str(values[0]) if len(set(values)) == 1 else _times(values)


def trace(model: nn.Module, run: Callable[[], object], *, batch: int) -> list[ConvShape]:
    """Distinct shapes of the convolutions that `run` calls, in order of first use.

    Args:
        model: the network whose nn.Conv2d and nn.Conv3d are watched.
        run: one forward pass, with real values, at whatever batch size is cheap.
        batch: batch size of the result. The traced one must divide every layer's first axis
            alike, as it does where frames are not folded into the batch.

    Raises:
        ValueError: a padding mode other than zeros, or no convolution at all.
    """
    found: dict[tuple, ConvShape] = {}

    def hook(name: str) -> Callable:
        def record(module, inputs):
            shape = _shape_of(name, module, inputs[0]).with_batch(batch)
            seen = found.get(shape.key)
            found[shape.key] = shape if seen is None else replace(seen, count=seen.count + 1)

        return record

    handles = [
        module.register_forward_pre_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Conv3d))
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise ValueError("the network has no convolution that was called")
    return list(found.values())


def _shape_of(name: str, module: nn.Module, x: torch.Tensor) -> ConvShape:
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise ValueError(
            f"{name}: padding_mode={module.padding_mode!r}, padding={module.padding!r}; "
            "only zeros by numbers can be traced"
        )
    geometry = ConvGeometry.make(
        x.shape,
        module.weight.shape,
        module.stride,
        (*module.padding, *module.padding),
        module.dilation,
        module.groups,
    )
    unsigned = bool((x.detach() >= 0).all())
    return ConvShape(geometry, name, unsigned=unsigned, first=not x.requires_grad)


_PATTERN = re.compile(
    r"(?P<x>\d+(?:x\d+){3,4}),(?P<w>\d+(?:x\d+){2,3})(?P<options>(?:,(?:[spdg]\d+|signed))*)"
)


def parse_shape(text: str) -> ConvShape:
    """A shape in words: 'NxCixHxW,CoxKHxKW[,sSTRIDE][,pPADDING][,dDILATION][,gGROUPS][,signed]'.

    3D has a D before H and a KD before KH. Padding is half the kernel by default.

    Raises:
        ValueError: words that do not read so, or sizes that do not fit.
    """
    match = _PATTERN.fullmatch(text.replace(" ", ""))
    if match is None:
        raise ValueError(
            f"shape {text!r} does not read as NxCixHxW,CoxKHxKW[,sS][,pP][,dD][,gG][,signed], "
            "for example 16x64x56x56,64x3x3,s1,p1"
        )
    x_size = tuple(map(int, match["x"].split("x")))
    w = tuple(map(int, match["w"].split("x")))
    rank = len(w) - 1
    words = [word for word in match["options"].split(",") if word]
    options = {word[0]: int(word[1:]) for word in words if word != "signed"}
    groups = options.get("g", 1)
    begin = tuple(options.get("p", kernel // 2) for kernel in w[1:])
    geometry = ConvGeometry.make(
        x_size,
        (w[0], x_size[1] // max(groups, 1), *w[1:]),
        (options.get("s", 1),) * rank,
        begin * 2,
        (options.get("d", 1),) * rank,
        groups,
    )
    return ConvShape(geometry, "given", unsigned="signed" not in words)
