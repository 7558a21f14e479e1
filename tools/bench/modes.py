"""Ways to train that bench_train compares. A new one is a new row of `MODES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from daq_mm import DAQConfig, convert_model


@dataclass(frozen=True)
class Mode:
    """One way to train.

    Attributes:
        name: what --modes calls it.
        words: one phrase for tables and records.
        autocast: float type of autocast, None for float32 throughout.
        compiled: whether torch.compile gets the network.
        convert: changes the network in place and returns a report whose `converted` and
            `skipped` list layers; None leaves it as it is.
    """

    name: str
    words: str
    autocast: torch.dtype | None = None
    compiled: bool = False
    convert: Callable[[nn.Module, DAQConfig], object] | None = None


def _convert_unfused(module: nn.Module, config: DAQConfig) -> object:
    """INT8 convolutions with everything between them as the model has it."""
    return convert_model(module, replace(config, fuse=False))


def _convert_but_depthwise(module: nn.Module, config: DAQConfig) -> object:
    """The data flow with depthwise convolutions left in floating point."""
    return convert_model(module, replace(config, convert_depthwise=False))


_BF16 = torch.bfloat16

MODES: dict[str, Mode] = {
    mode.name: mode
    for mode in (
        Mode("fp32", "float32, eager"),
        Mode("fp32-compile", "float32, torch.compile", compiled=True),
        Mode("bf16", "bfloat16 autocast, eager", _BF16),
        Mode("bf16-compile", "bfloat16 autocast, torch.compile", _BF16, compiled=True),
        Mode("int8", "INT8 convolutions, float32 between them, eager", convert=_convert_unfused),
        Mode(
            "int8-compile",
            "INT8 convolutions, float32 between them, torch.compile",
            compiled=True,
            convert=_convert_unfused,
        ),
        Mode(
            "int8-bf16",
            "INT8 convolutions, bfloat16 autocast between them, eager",
            _BF16,
            convert=_convert_unfused,
        ),
        Mode(
            "int8-bf16-compile",
            "INT8 convolutions, bfloat16 autocast between them, torch.compile",
            _BF16,
            compiled=True,
            convert=_convert_unfused,
        ),
        Mode(
            "int8-fused",
            "INT8 data flow: convolutions and glue fused, bfloat16 autocast, eager",
            _BF16,
            convert=convert_model,
        ),
        Mode(
            "int8-fused-but-depthwise",
            "INT8 data flow, depthwise convolutions in bfloat16, bfloat16 autocast, eager",
            _BF16,
            convert=_convert_but_depthwise,
        ),
        Mode(
            "int8-fused-fp32",
            "INT8 data flow: convolutions and glue fused, float32 between them, eager",
            convert=convert_model,
        ),
    )
}

DEFAULT_MODES = (
    *("fp32", "fp32-compile", "bf16", "bf16-compile"),
    *("int8", "int8-bf16", "int8-fused"),
)


def choose(text: str) -> list[Mode]:
    """Modes by names joined by commas, or 'all'.

    Raises:
        ValueError: an unknown name.
    """
    names = list(MODES) if text == "all" else text.split(",")
    for name in names:
        if name not in MODES:
            raise ValueError(f"modes: {name!r} is unknown; allowed: all, {', '.join(MODES)}")
    return [MODES[name] for name in dict.fromkeys(names)]
