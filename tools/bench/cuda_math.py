"""One setting of PyTorch's CUDA libraries for all that is compared, and words that say which.

float32 means float32: by default cuDNN rounds the operands of float32 convolutions to TF32, which
has 10 bits of mantissa. And cuDNN measures its algorithms and takes the fastest, where by default
it takes what a heuristic says: the baselines are as fast as their library can make them.
"""

from __future__ import annotations

from typing import Any

import torch


def configure(device: torch.device) -> dict[str, Any] | None:
    """Set this process; call it before the first convolution.

    Returns:
        the settings as PyTorch has them now, for the record; None on a CPU, where nothing is set.
    """
    if device.type != "cuda":
        return None
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    return {
        "matmul_allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_version": torch.backends.cudnn.version(),
    }
