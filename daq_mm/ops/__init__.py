"""The integer ops: one documented function each, dispatched by device (see `reference`)."""

from . import conv, quantize, thresholds  # noqa: F401  (defines the schemas)
from .backend import (
    allow_reference,
    backend_of,
    check_served,
    cpu_capability,
    kernels_built,
    set_cpu_capability,
)
from .conv import conv_backward, conv_forward, forward, grad_input, grad_weight
from .geometry import MAX_INT32_CONTRACTION, MAX_INT32_CONTRACTION_UNSIGNED, ConvGeometry
from .quantize import quantize_g, quantize_w, quantize_w_folded, quantize_x
from .thresholds import update_thresholds

__all__ = [
    "MAX_INT32_CONTRACTION",
    "MAX_INT32_CONTRACTION_UNSIGNED",
    "ConvGeometry",
    "allow_reference",
    "backend_of",
    "check_served",
    "conv_backward",
    "conv_forward",
    "cpu_capability",
    "forward",
    "grad_input",
    "grad_weight",
    "kernels_built",
    "quantize_g",
    "quantize_w",
    "quantize_w_folded",
    "quantize_x",
    "set_cpu_capability",
    "update_thresholds",
]
