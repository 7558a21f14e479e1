"""Ops of the three integer products, each alone and fused with quantization.

`forward`, `grad_input` and `grad_weight` take 8-bit operands and are what the tests compare
bit for bit. `conv_forward` and `conv_backward` are what a layer calls: one op each way, with
quantization, product and dequantization inside. Sums are exact whatever their length: a
contraction beyond `MAX_INT32_CONTRACTION` is split by the kernels.

Geometry arguments: `stride`, `dilation` one int a spatial axis; `padding` the begins of all
axes and then the ends (see `daq_mm.ops.geometry`). Wrong sizes raise ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import reference
from ._library import define
from .geometry import ConvGeometry
from .layout import channels_last_format, result_format, weight_format

Tensor = torch.Tensor
_GEOMETRY = "int[] stride, int[] padding, int[] dilation, int groups"


def _empty(size, dtype: torch.dtype, like: Tensor, memory_format: torch.memory_format) -> Tensor:
    return torch.empty(size, dtype=dtype, device=like.device).contiguous(
        memory_format=memory_format
    )


def _fake_forward(q_x, x_qparams, q_w, w_step, bias, stride, padding, dilation, groups, out_dtype):
    geometry = ConvGeometry.make(q_x.shape, q_w.shape, stride, padding, dilation, groups)
    return _empty(geometry.out_size, out_dtype, q_x, channels_last_format(geometry.rank))


def _fake_grad_input(
    q_g, q_w, step, x_size, stride, padding, dilation, groups, out_dtype
) -> Tensor:
    ConvGeometry.make(x_size, q_w.shape, stride, padding, dilation, groups)
    return _empty(x_size, out_dtype, q_g, channels_last_format(len(x_size) - 2))


def _fake_grad_weight(
    q_x,
    x_qparams,
    q_g,
    g_step,
    kernel_size,
    stride,
    padding,
    dilation,
    groups,
    out_dtype,
    channels_last=False,
) -> Tensor:
    w_size = (q_g.shape[1], q_x.shape[1] // groups, *kernel_size)
    ConvGeometry.make(q_x.shape, w_size, stride, padding, dilation, groups)
    memory_format = channels_last_format(len(kernel_size))
    return _empty(
        w_size, out_dtype, q_x, memory_format if channels_last else torch.contiguous_format
    )


def _fake_conv_forward(
    x, w, bias, stride, padding, dilation, groups, allow_unsigned, out_dtype
) -> tuple[Tensor, Tensor, Tensor]:
    geometry = ConvGeometry.make(x.shape, w.shape, stride, padding, dilation, groups)
    y = _empty(geometry.out_size, out_dtype, x, result_format(x, w))
    q_x = _empty(x.shape, torch.uint8, x, channels_last_format(geometry.rank))
    return y, q_x, x.new_empty(2, dtype=torch.float32)


def _fake_conv_backward(
    g,
    q_x,
    x_qparams,
    w,
    threshold,
    seed,
    stride,
    padding,
    dilation,
    groups,
    folded,
    channel_grad_weight,
    output_mask,
    x_dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        _empty(q_x.shape, x_dtype, g, result_format(g, w)) if output_mask[0] else g.new_empty(0),
        _empty(w.shape, w.dtype, g, weight_format(w)) if output_mask[1] else g.new_empty(0),
        g.new_empty(g.shape[1], dtype=torch.float32) if output_mask[2] else g.new_empty(0),
    )


define(
    "forward(Tensor q_x, Tensor x_qparams, Tensor q_w, Tensor w_step, Tensor? bias, "
    f"{_GEOMETRY}, ScalarType out_dtype) -> Tensor",
    reference.forward,
    _fake_forward,
)
define(
    f"grad_input(Tensor q_g, Tensor q_w, Tensor step, SymInt[] x_size, {_GEOMETRY}, "
    "ScalarType out_dtype) -> Tensor",
    reference.grad_input,
    _fake_grad_input,
)
define(
    "grad_weight(Tensor q_x, Tensor x_qparams, Tensor q_g, Tensor g_step, int[] kernel_size, "
    f"{_GEOMETRY}, ScalarType out_dtype, bool channels_last=False) -> Tensor",
    reference.grad_weight,
    _fake_grad_weight,
)
define(
    f"conv_forward(Tensor x, Tensor w, Tensor? bias, {_GEOMETRY}, bool allow_unsigned, "
    "ScalarType out_dtype) -> (Tensor, Tensor, Tensor)",
    reference.conv_forward,
    _fake_conv_forward,
)
define(
    "conv_backward(Tensor g, Tensor q_x, Tensor x_qparams, Tensor w, Tensor threshold, "
    f"Tensor? seed, {_GEOMETRY}, bool folded, bool channel_grad_weight, bool[3] output_mask, "
    "ScalarType x_dtype) -> (Tensor, Tensor, Tensor)",
    reference.conv_backward,
    _fake_conv_backward,
)


def forward(
    q_x: Tensor,
    x_qparams: Tensor,
    q_w: Tensor,
    w_step: Tensor,
    bias: Tensor | None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """Y = X * W from 8-bit operands: float32(integer sum) * (x step * w step) + bias.

    Args:
        q_x: uint8 (N, Ci, *spatial), channels-last. Padding counts as the zero point.
        x_qparams: float32 (2,) = (step, zero point).
        q_w: int8 (Co, Ci / groups, *kernel), contiguous. w_step: float32 (1,).
        bias: (Co,) of a float dtype, or None.
        out_dtype: float32, bfloat16, float16; or int32 for the bare integer sums (modulo
            2**32, without bias), for tests.

    Returns:
        (N, Co, *out) in out_dtype, channels-last.
    """
    return torch.ops.daq_mm.forward(
        q_x, x_qparams, q_w, w_step, bias, stride, padding, dilation, groups, out_dtype
    )


def grad_input(
    q_g: Tensor,
    q_w: Tensor,
    step: Tensor,
    x_size: Sequence[int],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """dX = G *T W from 8-bit operands: float32(integer sum) * step.

    Args:
        q_g: int8 (N, Co, *out), channels-last.
        q_w: int8 (Co, Ci / groups, *kernel), contiguous or channels-last.
        step: float32, (Ci,) for folded weights or (1,).
        x_size: (N, Ci, *spatial).
        out_dtype: as for `forward`.

    Returns:
        x_size in out_dtype, channels-last.
    """
    return torch.ops.daq_mm.grad_input(
        q_g, q_w, step, x_size, stride, padding, dilation, groups, out_dtype
    )


def grad_weight(
    q_x: Tensor,
    x_qparams: Tensor,
    q_g: Tensor,
    g_step: Tensor,
    kernel_size: Sequence[int],
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    out_dtype: torch.dtype,
    channels_last: bool = False,
) -> Tensor:
    """dW = X (star) G from 8-bit operands: float32(integer sum) * (x step * g step of row c).

    Args:
        q_x: uint8 (N, Ci, *spatial), channels-last. x_qparams: as for `forward`.
        q_g: int8 (N, Co, *out), channels-last. g_step: float32 (Co,).
        kernel_size: one int a spatial axis.
        out_dtype: as for `forward`.
        channels_last: memory format of the result; contiguous otherwise.

    Returns:
        (Co, Ci / groups, *kernel) in out_dtype.
    """
    operands = (q_x, x_qparams, q_g, g_step, kernel_size, stride, padding, dilation, groups)
    return torch.ops.daq_mm.grad_weight(*operands, out_dtype, channels_last)


def conv_forward(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    allow_unsigned: bool,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize x and w, multiply, dequantize: a layer's forward pass in one op.

    Args:
        x: (N, Ci, *spatial) and w: (Co, Ci / groups, *kernel), each float32, bfloat16 or
            float16, of any dense or strided layout.
        bias: (Co,) of a float dtype, or None.
        allow_unsigned: as for `quantize_x`.
        out_dtype: float32, bfloat16 or float16.

    Returns:
        y: (N, Co, *out) in out_dtype, channels-last if x or w is, else contiguous.
        q_x: uint8, channels-last, and x_qparams: float32 (2,), to keep for the backward pass.
    """
    return torch.ops.daq_mm.conv_forward(
        x, w, bias, stride, padding, dilation, groups, allow_unsigned, out_dtype
    )


def conv_backward(
    g: Tensor,
    q_x: Tensor,
    x_qparams: Tensor,
    w: Tensor,
    threshold: Tensor,
    seed: Tensor | None,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    folded: bool,
    channel_grad_weight: bool,
    output_mask: Sequence[bool],
    x_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize g, compute both integer products, dequantize: a layer's backward pass in one op.

    Args:
        g: (N, Co, *out), float32, bfloat16 or float16, of any layout.
        q_x, x_qparams: from `conv_forward`.
        w: (Co, Ci / groups, *kernel), the float weight.
        threshold: float32 (Co + 1,), from `update_thresholds`: one a channel, then the tensor's.
        seed: as for `quantize_g`.
        folded: grad-input with the channels' thresholds folded into w; otherwise it uses the
            tensor's threshold (the paper).
        channel_grad_weight: grad-weight with the channels' thresholds (Gradient Vectorized
            Quantization; paper, section 3.2); otherwise with the tensor's.
        output_mask: which of (dx, dw, db) to compute; the others are empty tensors.
        x_dtype: dtype of dx.

    Returns:
        dx: q_x's shape in x_dtype, channels-last if g or w is, else contiguous;
        dw: w's shape, dtype and memory format; db: float32 (Co,), the exact sum of g.
    """
    return torch.ops.daq_mm.conv_backward(
        g,
        q_x,
        x_qparams,
        w,
        threshold,
        seed,
        stride,
        padding,
        dilation,
        groups,
        folded,
        channel_grad_weight,
        output_mask,
        x_dtype,
    )
