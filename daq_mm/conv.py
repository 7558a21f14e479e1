"""Convolution layers whose three products run in INT8, and their autograd function."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from . import observe, ops
from .config import DAQConfig
from .quantizers import build_quantizer

Tensor = torch.Tensor

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class _Int8Convolution(torch.autograd.Function):
    """Forward, grad-input and grad-weight of one layer, each one integer op.

    Saved for the backward pass: the 8-bit activation, its two quantization parameters and the
    weight (the Parameter itself). No float copy of the activation is kept.
    """

    @staticmethod
    def forward(ctx, x, w, bias, layer, stride, padding, dilation, groups, out_dtype):
        y, q_x, x_qparams = ops.conv_forward(
            x,
            w,
            bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            allow_unsigned=layer.config.unsigned_activations,
            out_dtype=out_dtype,
        )
        if layer.observer is not None:
            _observe_forward(layer.observer, x, w, q_x, x_qparams)
        if not ctx.needs_input_grad[1]:
            # grad-input needs only x's size: keep a view of one byte instead of the activation.
            q_x = q_x.new_empty(()).expand(q_x.shape)
        ctx.save_for_backward(q_x, x_qparams, w)
        ctx.layer = layer
        ctx.geometry = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
        }
        ctx.x_dtype = x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        q_x, x_qparams, w = ctx.saved_tensors
        config, quantizer = ctx.layer.config, ctx.layer.gradient_quantizer
        seed = quantizer.seed()
        threshold = quantizer.update(g)
        if ctx.layer.observer is not None:
            _observe_backward(ctx.layer.observer, g, threshold, config)
        mask = list(ctx.needs_input_grad[:3])
        dx, dw, db = ops.conv_backward(
            g,
            q_x,
            x_qparams,
            w,
            threshold,
            seed,
            **ctx.geometry,
            folded=config.grad_input == "folded",
            channel_grad_weight=config.grad_weight == "channel",
            output_mask=mask,
            x_dtype=ctx.x_dtype,
        )
        return (
            dx if mask[0] else None,
            dw if mask[1] else None,
            db.to(ctx.bias_dtype) if mask[2] else None,
            *([None] * 6),
        )


def _observe_forward(observer, x, w, q_x, x_qparams) -> None:
    observer.record("x", x, (q_x.float() - x_qparams[1]) * x_qparams[0])
    q_w, step = ops.quantize_w(w)
    observer.record("w", w, q_w.float() * step)


def _observe_backward(observer, g, threshold, config) -> None:
    # The signal-to-noise ratio of the thresholds that grad-weight uses.
    used = threshold[:-1] if config.grad_weight == "channel" else threshold[-1:]
    step = (used / 127).view(1, -1, *([1] * (g.dim() - 2)))
    observer.record("g", g, ops.quantize_g(g, used).float() * step)
    observer.record_clipping(g, used)


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

    def _int8_forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            out_dtype = torch.get_autocast_dtype(x.device.type)
        else:
            out_dtype = x.dtype
        if self.padding_mode != "zeros":
            x = F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode)
            padding = (0,) * (2 * len(self.kernel_size))
        else:
            padding = self._padding_begins_and_ends()
        stride, dilation, w = self.stride, self.dilation, self.weight
        if len(self.kernel_size) == 1:
            # The ops are 2D and 3D: a 1D convolution is a 2D one of height 1.
            begin, end = padding
            stride, dilation, padding = (1, *stride), (1, *dilation), (0, begin, 0, end)
            x, w = x.unsqueeze(2), w.unsqueeze(2)
        y = _Int8Convolution.apply(
            x, w, self.bias, self, stride, padding, dilation, self.groups, out_dtype
        )
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
