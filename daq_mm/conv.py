"""Convolution layers whose three products run in INT8, and their autograd function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from . import observe, ops
from .config import DAQConfig
from .ops.geometry import ConvGeometry
from .ops.layout import is_channels_last, weight_format
from .ops.reference import signed_levels, step_of
from .quantizers import build_quantizer
from .twin import share_twin, twin_of

Tensor = torch.Tensor

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass
class Operand:
    """A convolution's 8-bit input, as its autograd function found it.

    Attributes:
        q: uint8 (N, Ci, *spatial), channels-last. qparams: float32 (2,) = (step, zero point).
    """

    q: Tensor | None = None
    qparams: Tensor | None = None


class _Int8Convolution(torch.autograd.Function):
    """Forward, grad-input and grad-weight of one layer, each one integer op.

    Saved for the backward pass: the 8-bit activation, its two quantization parameters and the
    weight (the Parameter itself). No float copy of the activation is kept, except with
    grad_weight='float', which keeps it instead of the 8-bit one.
    """

    @staticmethod
    def forward(ctx, x, w, bias, layer, geometry, out_dtype, q_x, x_qparams, found):
        if q_x is None:
            y, q_x, x_qparams = _forward_op(layer.config)(
                x,
                w,
                bias,
                **geometry,
                allow_unsigned=layer.config.unsigned_activations,
                out_dtype=out_dtype,
            )
        else:
            y, _ = ops.conv_forward_stats(
                q_x, x_qparams, w, bias, **geometry, out_dtype=out_dtype, stats=False
            )
        if found is not None:
            found.q, found.qparams = q_x, x_qparams
        float_x = None
        if ctx.needs_input_grad[1] and layer.config.grad_weight == "float":
            float_x = x.to(out_dtype)
        if not ctx.needs_input_grad[1] or float_x is not None:
            # grad-input needs only x's size: keep a view of one byte instead of the activation.
            q_x = q_x.new_empty(()).expand(q_x.shape)
        ctx.save_for_backward(q_x, x_qparams, w, float_x)
        ctx.layer = layer
        ctx.geometry = geometry
        ctx.x_dtype = x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        q_x, x_qparams, w, float_x = ctx.saved_tensors
        config, quantizer = ctx.layer.config, ctx.layer.gradient_quantizer
        seed = quantizer.seed()
        threshold = quantizer.update(g)
        if ctx.layer.observer is not None:
            observe_gradient(ctx.layer.observer, g, threshold, config)
        mask = list(ctx.needs_input_grad[:3])
        keeps_mean = config.keep_gradient_mean and mask[1]
        dx, dw, db = _backward_op(config)(
            g,
            q_x,
            x_qparams,
            w,
            threshold,
            seed,
            **ctx.geometry,
            output_mask=[mask[0], mask[1] and float_x is None, mask[2] or keeps_mean],
            x_dtype=ctx.x_dtype,
        )
        if keeps_mean:
            used = threshold[:-1] if config.grad_weight == "channel" else threshold[-1:]
            q_g = ops.quantize_g(g, used, seed=seed, bits=config.gradient_bits)
            operands, bits = (q_g, used, q_x, x_qparams), config.gradient_bits
            ops.add_dropped_mean_(dw, db, *operands, **ctx.geometry, bits=bits)
        if float_x is not None:
            dw = ops.float_grad_weight(float_x, g, w, **ctx.geometry)
        scale = quantizer.update_scale()
        if scale is not None:
            dw, db = (dw * scale).to(w.dtype), db * scale
        return (
            dx if mask[0] else None,
            dw if mask[1] else None,
            db.to(ctx.bias_dtype) if mask[2] else None,
            *([None] * 6),
        )


def _forward_op(config: DAQConfig) -> Callable:
    """What computes a layer's forward pass: the fused kernels' op where it serves the settings."""
    if config.activation_bits == config.weight_bits == 8:
        return ops.conv_forward
    return partial(ops.composed_forward, x_bits=config.activation_bits, w_bits=config.weight_bits)


def _backward_op(config: DAQConfig) -> Callable:
    """What computes a layer's backward pass: the fused kernels' op where it serves the settings."""
    by_sample = "sample" in (config.grad_input, config.grad_weight)
    if config.weight_bits == config.gradient_bits == 8 and not by_sample:
        return partial(
            ops.conv_backward,
            folded=config.grad_input == "folded",
            channel_grad_weight=config.grad_weight == "channel",
        )
    return partial(
        ops.composed_backward,
        grad_input=config.grad_input,
        grad_weight=config.grad_weight,
        w_bits=config.weight_bits,
        g_bits=config.gradient_bits,
        g_zero=config.gradient_zero,
    )


def int8_products(
    quantize: Callable[[Tensor], Tensor],
    threshold: Tensor,
    q_x: Tensor,
    x_qparams: Tensor,
    w: Tensor,
    g_sum: Tensor,
    *,
    config: DAQConfig,
    geometry: dict[str, Any],
    output_mask: Sequence[bool],
    x_dtype: torch.dtype,
    grad_input: Callable[..., Tensor] = ops.grad_input,
) -> tuple[Tensor | None, Tensor | None]:
    """grad-input and grad-weight of a gradient that is quantized elsewhere.

    Args:
        quantize: makes the gradient int8 (N, Co, *out) for thresholds float32 (Co,) or (1,).
        threshold: float32 (Co + 1,), one a channel and then the tensor's.
        q_x, x_qparams: the 8-bit activation, as for `ops.grad_weight`.
        w: (Co, Ci / groups, *kernel), the float weight.
        g_sum: float (Co,), the gradient's sum over samples and positions.
        output_mask: which of (dx, dw) to compute; the other is None.
        x_dtype: dtype of dx.
        grad_input: computes dx from the arguments of `ops.grad_input`.

    Returns:
        dx: q_x's size, channels-last; dw: w's size, dtype and memory format.
    """
    by_channel, by_tensor = threshold[:-1], threshold[-1:]
    folded, channels = config.grad_input == "folded", config.grad_weight == "channel"
    dx = dw = q_g = None
    if output_mask[0]:
        q_g = quantize(by_channel if folded else by_tensor)
        if folded:
            # The CUDA kernel writes contiguous weights, which would be copied to keep a format.
            groups, keep = geometry["groups"], not w.is_cuda
            q_w, step = ops.quantize_w_folded(w, by_channel, groups=groups, keep_format=keep)
        else:
            q_w, w_step = ops.quantize_w(w)
            step = step_of(by_tensor, 127) * w_step
        dx = grad_input(q_g, q_w, step, q_x.shape, **geometry, out_dtype=x_dtype)
    if output_mask[1]:
        g_threshold = by_channel if channels else by_tensor
        if q_g is None or folded != channels:
            q_g = quantize(g_threshold)
        step = step_of(g_threshold, 127).expand(w.shape[0]).contiguous()
        operands = (q_x, x_qparams, q_g, step, w.shape[2:])
        results = dict(out_dtype=w.dtype, channels_last=is_channels_last(w))
        dw = ops.grad_weight(*operands, **geometry, **results)
        if config.keep_gradient_mean:
            ops.add_dropped_mean_(dw, g_sum, q_g, g_threshold, q_x, x_qparams, **geometry)
        dw = dw.contiguous(memory_format=weight_format(w))
    return dx, dw


def observe_operands(
    observer: observe.Observer,
    x: Tensor,
    w: Tensor,
    q_x: Tensor,
    x_qparams: Tensor,
    config: DAQConfig,
) -> None:
    """Record the noise of x (N, Ci, *spatial) and w on their grids."""
    observer.record("x", x, (q_x.float() - x_qparams[1]) * x_qparams[0])
    q_w, step = ops.quantize_w(w, bits=config.weight_bits)
    observer.record("w", w, q_w.float() * step)


def observe_gradient(
    observer: observe.Observer, g: Tensor, threshold: Tensor, config: DAQConfig
) -> None:
    """Record noise and clipping of g (N, Co, *out) by the thresholds that grad-weight uses."""
    bits = config.gradient_bits
    if config.grad_weight == "sample":
        limit, zero = ops.sample_thresholds(g), config.gradient_zero
        g_hat = ops.dequantize_by_sample(*ops.quantize_by_sample(g, None, bits, zero), zero)
    else:  # with grad_weight="float", grad-input's
        used = threshold[:-1] if config.grad_weight == "channel" else threshold[-1:]
        limit = used.view(-1, *([1] * (g.dim() - 2)))
        g_hat = ops.quantize_g(g, used, bits=bits).float() * (limit / signed_levels(bits))
    observer.record("g", g, g_hat)
    observer.record_clipping(g, limit)


class _Int8Mixin:
    """What DAQConv1d, 2d and 3d share; `convert_model` gives it to a plain layer in place."""

    config: DAQConfig

    def _become_int8(
        self, config: DAQConfig, plain_class: type[nn.Module], layer_seed: int = 0
    ) -> None:
        """Add the INT8 state to a layer that has its Parameters already."""
        if self.weight.dtype not in _FLOATS and not self.weight.is_meta:
            raise TypeError(
                f"{type(self).__name__} has weights of dtype {self.weight.dtype}; "
                "allowed: float32, bfloat16, float16"
            )
        self.config = config
        self.plain_class = plain_class
        self.gradient_quantizer = build_quantizer(self.out_channels, config, layer_seed)
        self.gradient_quantizer.to(self.weight.device)
        self.observer: observe.Observer | None = None
        # Training iterations done, as `daq_mm.convert.set_iteration` told; None: nobody did.
        self.training_iteration: int | None = None

    def in_warmup(self) -> bool:
        """Whether the layer still computes in floating point (`DAQConfig.warmup_iters`).

        Raises:
            RuntimeError: a warm-up is asked for, and nobody counts the iterations.
        """
        if not self.training or self.config.warmup_iters == 0:
            return False
        if self.training_iteration is None:
            raise RuntimeError(
                f"warmup_iters={self.config.warmup_iters} needs the number of the training "
                "iteration: train with DAQHook, or call "
                "daq_mm.convert.set_iteration(model, i) before each iteration"
            )
        return self.training_iteration < self.config.warmup_iters

    def forward(self, x: Tensor) -> Tensor:
        """Y of x (N, Ci, *spatial) or unbatched (Ci, *spatial); dtype as nn.Conv's.

        Args:
            x: float32, bfloat16 or float16. Under autocast, the result has autocast's dtype.

        Raises:
            TypeError: another dtype. ValueError: sizes or devices that do not fit.
            RuntimeError: x on CUDA, and this build has no CUDA kernels.
        """
        if self.in_warmup():
            return super().forward(x)
        self._check_input(x)
        rank = len(self.kernel_size)
        if x.dim() == rank + 1:
            return self._int8_forward(x.unsqueeze(0)).squeeze(0)
        return self._int8_forward(x)

    def _check_input(self, x: Tensor) -> None:
        if x.dtype not in _FLOATS:
            raise TypeError(
                f"{type(self).__name__} got x of dtype {x.dtype}; "
                "allowed: float32, bfloat16, float16"
            )
        if x.device != self.weight.device:
            raise ValueError(
                f"{type(self).__name__} got x on {x.device}, but its weight is on "
                f"{self.weight.device}; move both to one device"
            )
        ops.check_served(x)
        rank = len(self.kernel_size)
        if x.dim() not in (rank + 1, rank + 2) or x.shape[-rank - 1] != self.in_channels:
            raise ValueError(
                f"{type(self).__name__} got x of size {tuple(x.shape)}; expected "
                f"(N, {self.in_channels}, {', '.join(['*'] * rank)}) or the same without N"
            )

    def out_dtype(self, x: Tensor) -> torch.dtype:
        """dtype of the result for x: autocast's if it is on, else x's."""
        if torch.is_autocast_enabled(x.device.type):
            return torch.get_autocast_dtype(x.device.type)
        return x.dtype

    def geometry(self) -> dict[str, Any]:
        """Geometry arguments of the ops, for a 2D or 3D layer whose input is padded by zeros."""
        return {
            "stride": self.stride,
            "padding": self._padding_begins_and_ends(),
            "dilation": self.dilation,
            "groups": self.groups,
        }

    def out_size(self, x: Tensor) -> tuple[int, ...]:
        """(N, Co, *out) for x (N, Ci, *spatial), of a 2D or 3D layer padded by zeros."""
        return ConvGeometry.make(x.shape, self.weight.shape, **self.geometry()).out_size

    def _int8_forward(self, x: Tensor) -> Tensor:
        out_dtype = self.out_dtype(x)
        geometry = self.geometry()
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            geometry["padding"] = (0,) * (2 * len(self.kernel_size))
        w = self.weight
        if len(self.kernel_size) == 1:
            # The ops are 2D and 3D: a 1D convolution is a 2D one of height 1.
            begin, end = geometry["padding"]
            geometry |= {
                "stride": (1, *self.stride),
                "dilation": (1, *self.dilation),
                "padding": (0, begin, 0, end),
            }
            x, w = x.unsqueeze(2), w.unsqueeze(2)
        allow_unsigned, shares = self.config.unsigned_activations, self.config.suits_units()
        twin = twin_of(x, allow_unsigned=allow_unsigned, reader=self) if shares else None
        source, (q_x, x_qparams) = x, (None, None)
        if twin is not None:
            source, (q_x, x_qparams) = twin.source(x), twin.quantized(x)
        found = None if torch.compiler.is_compiling() else Operand()
        y = _Int8Convolution.apply(
            source, w, self.bias, self, geometry, out_dtype, q_x, x_qparams, found
        )
        if found is not None:
            if twin is None and shares:
                share_twin(x, found.q, found.qparams, allow_unsigned=allow_unsigned, maker=self)
            if self.observer is not None and not (twin is not None and twin.is_only_value):
                observe_operands(self.observer, x, w, found.q, found.qparams, self.config)
        if twin is not None and not (is_channels_last(x) or is_channels_last(w)):
            y = y.contiguous()
        return y.squeeze(2) if len(self.kernel_size) == 1 else y

    def _padding_begins_and_ends(self) -> tuple[int, ...]:
        if isinstance(self.padding, str):
            # nn.Conv keeps (begin, end) pairs of the last axis first.
            pairs = self._reversed_padding_repeated_twice
            return (*pairs[-2::-2], *pairs[::-2])
        return (*self.padding, *self.padding)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, int8=({self.config.summary()})"


class DAQConv1d(_Int8Mixin, nn.Conv1d):
    """nn.Conv1d in INT8: its arguments, plus `config` (DAQConfig, dict, recipe name or None)."""

    def __init__(self, *args, config: DAQConfig | dict | str | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._become_int8(DAQConfig.make(config), nn.Conv1d)


class DAQConv2d(_Int8Mixin, nn.Conv2d):
    """nn.Conv2d in INT8: its arguments, plus `config` (DAQConfig, dict, recipe name or None)."""

    def __init__(self, *args, config: DAQConfig | dict | str | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._become_int8(DAQConfig.make(config), nn.Conv2d)


class DAQConv3d(_Int8Mixin, nn.Conv3d):
    """nn.Conv3d in INT8: its arguments, plus `config` (DAQConfig, dict, recipe name or None)."""

    def __init__(self, *args, config: DAQConfig | dict | str | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._become_int8(DAQConfig.make(config), nn.Conv3d)


#: The INT8 class of each plain class.
INT8_CLASSES = {nn.Conv1d: DAQConv1d, nn.Conv2d: DAQConv2d, nn.Conv3d: DAQConv3d}
