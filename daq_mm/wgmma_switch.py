"""Hopper's own way to multiply, wgmma, on or off for a process.

On GPUs of compute capability 9.0 the three products run by wgmma. `DAQ_MM_WGMMA=0` in the
environment makes them run by mma.sync, as on all other GPUs, with the same results: to compare
the two, or to go on where one of them fails.
"""

from __future__ import annotations

import os

import torch

from . import ops

#: The environment's variable.
VARIABLE = "DAQ_MM_WGMMA"


def is_off() -> bool:
    """Whether the environment switches wgmma off.

    Raises:
        ValueError: a value that is not allowed.
    """
    value = os.environ.get(VARIABLE, "1")
    if value not in ("0", "1"):
        raise ValueError(f"{VARIABLE}={value!r} is not allowed: 0 or 1")
    return value == "0"


def set_from_environment() -> None:
    """Do as the environment says; the package calls it when it is imported.

    Nothing initializes CUDA here. Without CUDA kernels the value is checked and has no effect.

    Raises:
        ValueError: a value that is not allowed.
    """
    if is_off() and ops.kernels_built("cuda")[0]:
        torch.ops.daq_mm.use_wgmma(False)
