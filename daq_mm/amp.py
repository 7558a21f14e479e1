"""bfloat16 mixed precision as an optimizer wrapper that works on CPU and CUDA alike.

mmengine's AmpOptimWrapper refuses to run without an accelerator and always scales the loss.
bfloat16 has the exponent range of float32, so no loss scaling is needed, and autocast exists on
every device: this wrapper adds the autocast and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner.amp import autocast
from torch import nn


@OPTIM_WRAPPERS.register_module()
class BF16OptimWrapper(OptimWrapper):
    """OptimWrapper whose `optim_context` runs the training forward under bfloat16 autocast.

    Weights, gradients and optimizer state stay float32. Validation is not affected, as with
    mmengine's own AMP.

    Args:
        float32_outputs: shell-style patterns of module names whose output goes back to float32.
            The default is the logits of mmaction's heads: they compute the training accuracy
            with numpy, which has no bfloat16.
        kwargs: arguments of OptimWrapper.
    """

    def __init__(self, *, float32_outputs: Sequence[str] = ("*fc_cls",), **kwargs) -> None:
        super().__init__(**kwargs)
        if isinstance(float32_outputs, str):
            raise TypeError(f"float32_outputs must be a list of patterns, got {float32_outputs!r}")
        self.float32_outputs = tuple(float32_outputs)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast for the device that mmengine trains on."""
        handles = [
            module.register_forward_hook(_to_float32)
            for name, module in model.named_modules()
            if any(fnmatchcase(name, pattern) for pattern in self.float32_outputs)
        ]
        try:
            with super().optim_context(model), autocast(dtype=torch.bfloat16):
                yield
        finally:
            for handle in handles:
                handle.remove()


def _to_float32(module: nn.Module, inputs: tuple, output: object) -> object:
    return output.float() if isinstance(output, torch.Tensor) else output
