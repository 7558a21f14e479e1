"""bfloat16 mixed precision as an optimizer wrapper that works on CPU and CUDA alike.

mmengine's AmpOptimWrapper refuses to run without an accelerator and always scales the loss.
bfloat16 has the exponent range of float32, so no loss scaling is needed, and autocast exists on
every device: this wrapper adds the autocast, and float32 for the modules that need it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner.amp import autocast
from torch import nn


@OPTIM_WRAPPERS.register_module()
class BF16OptimWrapper(OptimWrapper):
    """OptimWrapper whose `optim_context` runs the training forward under bfloat16 autocast.

    Weights, gradients and optimizer state stay float32. Validation is not affected, as with
    mmengine's own AMP. Where PyTorch's bfloat16 is wrong on CPU (`depth_is_short`), a Conv3d
    runs in float32.

    Args:
        float32_modules: shell-style patterns of the names of modules that run in float32. The
            default is the last layer of mmaction's heads: they compute the training accuracy of
            its output with numpy, which has no bfloat16.
        kwargs: arguments of OptimWrapper.
    """

    def __init__(self, *, float32_modules: Sequence[str] = ("*fc_cls",), **kwargs) -> None:
        super().__init__(**kwargs)
        if isinstance(float32_modules, str):
            raise TypeError(f"float32_modules must be a list of patterns, got {float32_modules!r}")
        self.float32_modules = tuple(float32_modules)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast for the device that mmengine trains on."""
        self._exempt(model)
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield

    def _exempt(self, model: nn.Module) -> None:
        """Give modules that need float32 a forward that turns autocast off; once a module."""
        for name, module in model.named_modules():
            if getattr(module.forward, "func", None) is _forward:
                continue
            if any(fnmatchcase(name, pattern) for pattern in self.float32_modules):
                module.forward = partial(_forward, module.forward, _always)
            elif isinstance(module, nn.Conv3d) and module.weight.device.type == "cpu":
                module.forward = partial(_forward, module.forward, partial(depth_is_short, module))


def depth_is_short(conv: nn.Conv3d, x: torch.Tensor) -> bool:
    """Whether the depth of `x` (N, Ci, depth, height, width) is below that of the kernel, not 1.

    There, PyTorch 2.13 on CPU leaves part of the bfloat16 grad-weight unwritten: seen for all
    channel counts, with kernel depth 3 and depth 2, and with kernel depth 5 and depths 2 to 4.
    """
    return 1 < x.shape[2] < conv.dilation[0] * (conv.kernel_size[0] - 1) + 1


def _always(*inputs: Any) -> bool:
    return True


def _forward(plain: Callable, needs_float32: Callable[..., bool], *inputs: Any) -> Any:
    """`plain(*inputs)`, without autocast and with float32 inputs where that is needed."""
    device = next((x.device.type for x in inputs if isinstance(x, torch.Tensor)), None)
    if device is None or not torch.is_autocast_enabled(device) or not needs_float32(*inputs):
        return plain(*inputs)
    with torch.autocast(device, enabled=False):
        return plain(*(x.float() if isinstance(x, torch.Tensor) else x for x in inputs))
