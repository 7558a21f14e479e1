"""convert_model and revert_model: swap a built model's convolutions for INT8 ones and back.

The swap changes a layer's class in place, so Parameters, optimizer state, hooks and modules
that are used twice stay what they are.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import nn

from .config import DAQConfig
from .conv import INT8_CLASSES, _Int8Mixin
from .fuse import fuse_model, unfuse_model

#: mmcv's wrappers of nn.Conv only mend empty batches on old versions of torch, so they may be
#: swapped like the plain layers. By name, because mmcv is not required.
_EQUIVALENT_CLASSES = {
    "mmcv.cnn.bricks.wrappers.Conv2d": nn.Conv2d,
    "mmcv.cnn.bricks.wrappers.Conv3d": nn.Conv3d,
}


@dataclass
class ConversionReport:
    """What `convert_model` did, as (layer name, words) in the order of registration.

    Attributes:
        converted: layers that this call swapped, with their shape.
        already: layers that were INT8 before, which keep their own config.
        skipped: convolutions left in floating point, with the reason.
        fused: blocks with units that run as one (`daq_mm.fuse`), and these in words.
        unfused: blocks with INT8 convolutions and norms that have no plan, with the reason.
    """

    converted: list[tuple[str, str]] = field(default_factory=list)
    already: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    fused: list[tuple[str, str]] = field(default_factory=list)
    unfused: list[tuple[str, str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [
            f"INT8 convolutions: {len(self.converted)} converted, {len(self.already)} were "
            f"INT8 before, {len(self.skipped)} stay in floating point; {len(self.fused)} blocks "
            "are fused"
        ]
        lines += [f"  converted  {name}: {words}" for name, words in self.converted]
        lines += [f"  kept       {name}: {words}" for name, words in self.already]
        lines += [f"  skipped    {name}: {reason}" for name, reason in self.skipped]
        lines += [f"  fused      {name}: {words}" for name, words in self.fused]
        lines += [f"  not fused  {name}: {reason}" for name, reason in self.unfused]
        return "\n".join(lines)


def convert_model(
    model: nn.Module, config: DAQConfig | dict | str | None = None
) -> ConversionReport:
    """Swap a model's convolutions for INT8 ones, in place, sharing their Parameters.

    Exactly nn.Conv1d, 2d and 3d (and mmcv's equivalents) are swapped; subclasses do something
    else, so they are left and reported. Calling it again changes nothing more.

    Args:
        model: any module; it may be a convolution itself.
        config: DAQConfig, a dict of its fields (with 'recipe'), a recipe's name, or None.

    Returns:
        what was swapped, what was not, and why.

    Raises:
        ValueError: an include or exclude pattern that matches no convolution.
    """
    config = DAQConfig.make(config)
    names = _names_by_module(model)
    _check_patterns(names, config)
    report = ConversionReport()
    for index, (module, aliases) in enumerate(names.items()):
        name = aliases[0]
        shape = f"{tuple(module.weight.shape)}"
        if isinstance(module, _Int8Mixin):
            report.already.append((name, f"{shape}, {module.config.summary()}"))
            continue
        reason = _reason_to_skip(module, aliases, config, first=index == 0)
        if reason:
            report.skipped.append((name, reason))
            continue
        plain_class = type(module)
        module.__class__ = INT8_CLASSES[_base_class(module)]
        module._become_int8(config, plain_class, layer_seed=zlib.crc32(name.encode()) >> 1)
        report.converted.append((name, f"{shape}, {config.summary()}"))
    if config.fuse and config.suits_units():
        report.fused, report.unfused = fuse_model(model, config)
    return report


def revert_model(model: nn.Module) -> list[str]:
    """Turn every INT8 convolution back into the plain layer, in place, weights untouched.

    Returns:
        the names of the layers that were reverted; their thresholds are gone.
    """
    unfuse_model(model)
    names = []
    for name, module in list(model.named_modules()):
        if isinstance(module, _Int8Mixin):
            plain_class = module.plain_class
            for attribute in ("gradient_quantizer", "config", "plain_class"):
                delattr(module, attribute)
            del module.observer, module.training_iteration
            module.__class__ = plain_class
            names.append(name)
    return names


def set_iteration(model: nn.Module, iteration: int) -> None:
    """Tell INT8 layers how many training iterations are done, for `warmup_iters`.

    DAQHook calls it; other training loops that use a warm-up call it before each iteration.
    """
    for layer in int8_layers(model):
        layer.training_iteration = iteration


def int8_layers(model: nn.Module) -> Iterator[_Int8Mixin]:
    """The model's INT8 convolutions, each once."""
    return (module for module in model.modules() if isinstance(module, _Int8Mixin))


def _is_conv(module: nn.Module) -> bool:
    """Whether it is some convolution with a weight, of PyTorch's or of anybody else's."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return True
    return "Conv" in type(module).__name__ and isinstance(
        getattr(module, "weight", None), torch.Tensor
    )


def _base_class(module: nn.Module) -> type[nn.Module] | None:
    """nn.Conv1d, 2d or 3d if the module is exactly that or an equivalent, else None."""
    cls = type(module)
    if cls in INT8_CLASSES:
        return cls
    return _EQUIVALENT_CLASSES.get(f"{cls.__module__}.{cls.__qualname__}")


def _names_by_module(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Every convolution with all its names: a module that is used twice has several."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if _is_conv(module):
            names.setdefault(module, []).append(name)
    return names


def _matches(names: list[str], patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _check_patterns(names: dict[nn.Module, list[str]], config: DAQConfig) -> None:
    known = sorted(name for aliases in names.values() for name in aliases)
    for setting in ("include", "exclude"):
        for pattern in getattr(config, setting):
            if pattern != "*" and not _matches(known, (pattern,)):
                raise ValueError(
                    f"{setting} pattern {pattern!r} matches no convolution; there are: "
                    f"{', '.join(known[:12])}{', ...' if len(known) > 12 else ''}"
                )


def _reason_to_skip(
    module: nn.Module, names: list[str], config: DAQConfig, *, first: bool
) -> str | None:
    if _base_class(module) is None:
        return f"{type(module).__name__} is not exactly nn.Conv1d, nn.Conv2d or nn.Conv3d"
    if not _matches(names, config.include):
        return "matches no include pattern"
    if _matches(names, config.exclude):
        return "matches an exclude pattern"
    if first and not config.convert_first:
        return "the network's first convolution (convert_first=True converts it)"
    if module.groups == module.in_channels > 1 and not config.convert_depthwise:
        return "a depthwise convolution (convert_depthwise=True converts it)"
    if module.weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"weights of dtype {module.weight.dtype}; allowed: float32, bfloat16, float16"
    return None
