"""The operator library `daq_mm`: where schemas are defined and the compiled kernels are loaded.

An op's schema, its shape function and its reference stand in Python; `daq_mm._C` only adds
kernels for CPU or CUDA under the same names (`TORCH_LIBRARY_IMPL`). PyTorch's dispatcher then
chooses by device, and falls back to the reference where no kernel is registered.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable

import torch

LIBRARY = torch.library.Library("daq_mm", "DEF")


def define(schema: str, reference: Callable, fake: Callable) -> None:
    """Register one op: its schema, the plain PyTorch reference and the shape function.

    Args:
        schema: signature in the dispatcher's notation, without the namespace.
        reference: runs on any device, exact and slow; the truth of the kernels' tests.
        fake: the same signature on meta tensors; returns empty tensors of the right
            shape, dtype and strides.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"daq_mm::{name}", fake, lib=LIBRARY)


def _load_kernels():
    """Import `daq_mm._C` if it was built; a build that exists and fails to load raises."""
    if importlib.util.find_spec("daq_mm._C") is None:
        return None
    return importlib.import_module("daq_mm._C")
