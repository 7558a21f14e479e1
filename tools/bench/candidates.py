"""What is timed for one convolution: the ops of daq_mm on each backend, and PyTorch's own.

| op | what one call does |
| --- | --- |
| forward, grad_input, grad_weight | the integer product alone, 8-bit operands ready |
| conv_forward | quantize x and w, multiply, dequantize: a layer's whole forward pass |
| conv_grad_input, conv_grad_weight | quantize g (and w), one product: thresholds are known |
| conv_backward | update the thresholds, quantize, both products: a layer's whole backward pass |
| quantize_x, quantize_g | float to 8 bits |
| update_thresholds | the gradient's maxima and the clipping recursion |
| update_thresholds_measured | the same in an iteration that runs the discriminator |

PyTorch's convolution is timed with operands of the dtype ready: no cast of a weight is charged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from daq_mm import ops

from . import machine
from .operands import DTYPES, Operands

PRODUCTS = ("forward", "grad_input", "grad_weight")
LAYER_OPS = ("conv_forward", "conv_grad_input", "conv_grad_weight", "conv_backward")
QUANTIZERS = ("quantize_x", "quantize_g", "update_thresholds", "update_thresholds_measured")
OPS = (*PRODUCTS, *LAYER_OPS, *QUANTIZERS)

#: Which of PyTorch's products an op is compared with.
BASELINE = {
    "forward": "forward",
    "grad_input": "grad_input",
    "grad_weight": "grad_weight",
    "conv_forward": "forward",
    "conv_grad_input": "grad_input",
    "conv_grad_weight": "grad_weight",
    "conv_backward": "backward",
}


@dataclass(frozen=True)
class Candidate:
    """One thing to time.

    Attributes:
        op: of `OPS`, or PyTorch's 'forward', 'grad_input', 'grad_weight', 'backward'.
        backend: as `daq_mm.ops.backend_of` names it, or 'torch'.
        dtype: of float operands and results, 'fp32' or 'bf16'.
        run: one call.
        products: convolution products in it, 0, 1 or 2.
        bytes: each operand and each result moved once; what an op reads twice counts once.
    """

    op: str
    backend: str
    dtype: str
    run: Callable[[], object]
    products: int
    bytes: int

    @property
    def name(self) -> str:
        """Unique among the candidates of a shape."""
        return f"{self.op} {self.backend} {self.dtype}"


@dataclass(frozen=True)
class _Sizes:
    """Numbers of values."""

    x: int
    w: int
    y: int

    @classmethod
    def of(cls, operands: Operands) -> _Sizes:
        g = operands.shape.geometry
        return cls(math.prod(g.x_size), math.prod(g.w_size), math.prod(g.out_size))


def torch_candidates(operands: Operands, dtype: str, wanted: set[str]) -> list[Candidate]:
    """PyTorch's convolution and its backward in one dtype, those products that are wanted."""
    x, w, g = (t[dtype] for t in (operands.x, operands.w, operands.g))
    sizes, item = _Sizes.of(operands), DTYPES[dtype].itemsize
    a = operands.conv_arguments
    begin, first = a["padding"][: x.dim() - 2], operands.shape.first
    conv = F.conv2d if x.dim() == 4 else F.conv3d

    def forward() -> object:
        return conv(x, w, None, a["stride"], begin, a["dilation"], a["groups"])

    def backward(mask: list[bool]) -> Callable[[], object]:
        return lambda: torch.ops.aten.convolution_backward(
            g, x, w, None, a["stride"], begin, a["dilation"], False, [0] * len(begin),
            a["groups"], mask,
        )  # fmt: skip

    one_pass = (sizes.x + sizes.w + sizes.y) * item
    table = {
        "forward": (forward, 1, one_pass),
        "grad_input": (backward([True, False, False]), 1, one_pass),
        "grad_weight": (backward([False, True, False]), 1, one_pass),
        "backward": (
            backward([not first, True, False]),
            1 if first else 2,
            one_pass + (0 if first else (sizes.x + sizes.w) * item),
        ),
    }
    if first:
        del table["grad_input"]
    return [
        Candidate(op, "torch", dtype, run, products, size)
        for op, (run, products, size) in table.items()
        if op in wanted
    ]


def daq_candidates(operands: Operands, dtype: str, capability: str | None) -> list[Candidate]:
    """Every op of daq_mm for one float type, on the CPU capability given (None: as it is)."""
    with machine.cpu_capability(capability):
        backend = ops.backend_of(operands.q_x)
    table = {**_products(operands, dtype), **_layer_ops(operands, dtype),
             **_quantizers(operands, dtype)}  # fmt: skip
    if operands.shape.first:
        table = {op: row for op, row in table.items() if "grad_input" not in op}
    if dtype != "fp32":
        table.pop("grad_weight")  # a weight's gradient has the weight's type, float32
    return [
        Candidate(op, backend, dtype, machine.forced(capability, run), products, size)
        for op, (run, products, size) in table.items()
    ]


def _products(o: Operands, dtype: str) -> dict[str, tuple]:
    n, item, out = _Sizes.of(o), DTYPES[dtype].itemsize, DTYPES[dtype]
    arguments, kernel = o.conv_arguments, o.shape.geometry.w_size[2:]
    g_step = o.threshold[:-1] / 127
    return {
        "forward": (
            lambda: ops.forward(
                o.q_x, o.x_qparams, o.q_w, o.w_step, None, **arguments, out_dtype=out
            ),
            1,
            n.x + n.w + n.y * item,
        ),
        "grad_input": (
            lambda: ops.grad_input(
                o.q_g, o.q_w_input, o.input_step, o.q_x.shape, **arguments, out_dtype=out
            ),
            1,
            n.y + n.w + n.x * item,
        ),
        "grad_weight": (
            lambda: ops.grad_weight(
                o.q_x, o.x_qparams, o.q_g, g_step, kernel, **arguments, out_dtype=torch.float32
            ),
            1,
            n.x + n.y + n.w * 4,
        ),
    }


def _layer_ops(o: Operands, dtype: str) -> dict[str, tuple]:
    n, item, out = _Sizes.of(o), DTYPES[dtype].itemsize, DTYPES[dtype]
    x, w, g, config = o.x[dtype], o.w["fp32"], o.g[dtype], o.config
    update = _updater(o, g, interval=config.discriminator_interval)

    def backward(mask: list[bool], threshold: torch.Tensor) -> object:
        return ops.conv_backward(
            g,
            o.q_x,
            o.x_qparams,
            w,
            threshold,
            None,
            **o.conv_arguments,
            folded=o.folded,
            channel_grad_weight=config.grad_weight == "channel",
            output_mask=mask,
            x_dtype=out,
        )

    both = [not o.shape.first, True, False]
    grad_weight_bytes = n.y * item + n.x + n.w * 4
    dx_bytes = n.x * item + n.w * 4
    return {
        "conv_forward": (
            lambda: ops.conv_forward(
                x,
                w,
                None,
                **o.conv_arguments,
                allow_unsigned=config.unsigned_activations,
                out_dtype=out,
            ),
            1,
            n.x * item + n.w * 4 + n.x + n.y * item,
        ),
        "conv_grad_input": (
            lambda: backward([True, False, False], o.threshold),
            1,
            n.y * item + dx_bytes,
        ),
        "conv_grad_weight": (
            lambda: backward([False, True, False], o.threshold),
            1,
            grad_weight_bytes,
        ),
        "conv_backward": (
            lambda: backward(both, update()),
            sum(both),
            grad_weight_bytes + (dx_bytes if both[0] else 0),
        ),
    }


def _quantizers(o: Operands, dtype: str) -> dict[str, tuple]:
    n, item = _Sizes.of(o), DTYPES[dtype].itemsize
    x, g, unsigned = o.x[dtype], o.g[dtype], o.config.unsigned_activations
    threshold = o.threshold[:-1]
    never = 2**62  # the state counts from 1, so that no timed call runs the discriminator
    return {
        "quantize_x": (lambda: ops.quantize_x(x, allow_unsigned=unsigned), 0, n.x * (item + 1)),
        "quantize_g": (lambda: ops.quantize_g(g, threshold), 0, n.y * (item + 1)),
        "update_thresholds": (_updater(o, g, interval=never), 0, n.y * item),
        "update_thresholds_measured": (_updater(o, g, interval=1), 0, n.y * item),
    }


def _updater(o: Operands, g: torch.Tensor, *, interval: int) -> Callable[[], torch.Tensor]:
    config, threshold = o.config, o.threshold.clone()
    tail = torch.zeros_like(threshold)
    iteration = torch.ones(1, dtype=torch.int64, device=g.device)
    return lambda: ops.update_thresholds(
        g,
        threshold,
        tail,
        iteration,
        mcs=config.gradient_quantizer == "mcs",
        decay=1.0 - config.mcs_k * config.mcs_a,
        gain=config.mcs_a,
        cap=config.cap_at_maximum,
        gaussian_above=config.mcs_lambda,
        interval=interval,
    )
