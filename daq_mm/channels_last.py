"""Laying a whole network out channels-last, as the kernels compute."""

from __future__ import annotations

import sys

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from .ops.layout import channels_last_format

Tensor = torch.Tensor

#: Where mmcv's compiled operators are. They read memory as if every tensor were contiguous, and
#: few of them check: RoIAlign gives wrong features of a channels-last map without a word.
_OPERATORS = "mmcv.ops."
#: Those of its files whose functions take no feature maps, or leave them to PyTorch.
_HARMLESS = {"mmcv.ops.nms", "mmcv.ops.focal_loss", "mmcv.ops.point_sample", "mmcv.ops.bbox"}


def to_channels_last(model: nn.Module) -> None:
    """Lay the weights of 2D and 3D convolutions out channels-last, in place.

    A convolution whose weight lies so returns its result so, whatever its input's layout: from the
    first one on, no layer need turn tensors. Parameters stay the objects that an optimizer holds.
    `nn.Module.to` with a memory format does it for 2D or for 3D weights, not for a model that has
    both, and leaves it to the user to know what does not go with it: here modules of mmcv.ops keep
    their weights, and get contiguous tensors by a hook. A module that calls `view` on a feature
    map, where `reshape` would serve both layouts, may refuse it when it runs.

    Raises:
        ValueError: a module calls functions of mmcv.ops on feature maps, where no hook can go.
    """
    kept: set[nn.Module] = set()
    for name, module in model.named_modules():
        if _is_operator(type(module)):
            kept.update(module.modules())
            if _contiguous_arguments not in module._forward_pre_hooks.values():
                module.register_forward_pre_hook(_contiguous_arguments)
        elif functions := _operators_called(type(module)):
            raise ValueError(
                f"channels_last does not go with the model's {name or type(module).__name__}: it "
                f"calls mmcv's {', '.join(functions)}, which need contiguous tensors; leave "
                "channels_last out"
            )
    for module in model.modules():
        if isinstance(module, _ConvNd) and module.weight.dim() in (4, 5) and module not in kept:
            layout = channels_last_format(module.weight.dim() - 2)
            module.weight.data = module.weight.data.contiguous(memory_format=layout)


def _contiguous_arguments(module: nn.Module, args: tuple) -> tuple:
    return tuple(x.contiguous() if isinstance(x, Tensor) else x for x in args)


def _is_operator(kind: type) -> bool:
    return any(base.__module__.startswith(_OPERATORS) for base in kind.__mro__)


def _operators_called(kind: type) -> list[str]:
    """Names by which the files of a class and its bases know functions of mmcv.ops."""
    found = set()
    for base in kind.__mro__:
        names = vars(sys.modules[base.__module__]) if base.__module__ in sys.modules else {}
        for name, value in names.items():
            # Most are the `apply` of an autograd function, a method of its class.
            origin = getattr(value, "__self__", value)
            origin = getattr(origin, "__module__", None) or ""
            is_function = callable(value) and not isinstance(value, type)
            if is_function and origin.startswith(_OPERATORS) and origin not in _HARMLESS:
                found.add(name)
    return sorted(found)
