"""bfloat16 mixed precision as an optimizer wrapper that works on CPU and CUDA alike.

mmengine's AmpOptimWrapper refuses to run without an accelerator and always scales the loss.
bfloat16 has the exponent range of float32, so no loss scaling is needed, and autocast exists on
every device: this wrapper adds the autocast and nothing else.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner.amp import autocast
from torch import nn


@OPTIM_WRAPPERS.register_module()
class BF16OptimWrapper(OptimWrapper):
    """OptimWrapper whose `optim_context` runs the training forward under bfloat16 autocast.

    Weights, gradients and optimizer state stay float32. Validation is not affected, as with
    mmengine's own AMP. Takes the arguments of OptimWrapper.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast for the device that mmengine trains on."""
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield
