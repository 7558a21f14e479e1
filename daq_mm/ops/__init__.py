"""The integer ops: one documented function each, dispatched by device (see `reference`)."""

from . import conv, glue, quantize, thresholds  # noqa: F401  (defines the schemas)
from .backend import (
    allow_reference,
    backend_of,
    check_served,
    cpu_capability,
    kernels_built,
    set_cpu_capability,
)
from .composed import (
    composed_backward,
    composed_forward,
    dequantize_by_sample,
    quantize_by_sample,
    sample_thresholds,
)
from .conv import conv_backward, conv_forward, forward, grad_input, grad_weight
from .direction import update_direction_threshold
from .dropped_mean import add_dropped_mean_, byte_sums, window_sums
from .float_grad_weight import float_grad_weight
from .geometry import MAX_INT32_CONTRACTION, MAX_INT32_CONTRACTION_UNSIGNED, ConvGeometry
from .glue import (
    batch_norm_statistics,
    conv_forward_stats,
    grad_input_reduce,
    norm_act_forward,
    norm_act_reduce,
    norm_backward_apply,
    norm_backward_coefficients,
    norm_backward_maxima,
    norm_backward_quantize,
    norm_backward_thresholds,
    quantize_x_with,
    stats_of,
    thresholds_from_maxima,
)
from .quantize import quantize_g, quantize_w, quantize_w_folded, quantize_x
from .thresholds import update_thresholds

__all__ = [
    "MAX_INT32_CONTRACTION",
    "MAX_INT32_CONTRACTION_UNSIGNED",
    "ConvGeometry",
    "add_dropped_mean_",
    "allow_reference",
    "backend_of",
    "batch_norm_statistics",
    "byte_sums",
    "check_served",
    "composed_backward",
    "composed_forward",
    "conv_backward",
    "conv_forward",
    "conv_forward_stats",
    "cpu_capability",
    "dequantize_by_sample",
    "float_grad_weight",
    "forward",
    "grad_input",
    "grad_input_reduce",
    "grad_weight",
    "kernels_built",
    "norm_act_forward",
    "norm_act_reduce",
    "norm_backward_apply",
    "norm_backward_coefficients",
    "norm_backward_maxima",
    "norm_backward_quantize",
    "norm_backward_thresholds",
    "quantize_by_sample",
    "quantize_g",
    "quantize_w",
    "quantize_w_folded",
    "quantize_x",
    "quantize_x_with",
    "sample_thresholds",
    "set_cpu_capability",
    "stats_of",
    "thresholds_from_maxima",
    "update_direction_threshold",
    "update_thresholds",
    "window_sums",
]
