"""A fused unit: INT8 convolution, batch norm, residual addition and activation as one function.

    y = conv(x);  v = norm(y) [+ residual];  out = act(v)

Between forward and backward it keeps x in 8 bits (for grad-weight), y in 8 bits (or as it is,
`DAQConfig.saved_output`) and one bit a value of the activation's mask. The backward pass quantizes
the gradient of y in the sweep that computes it; its first sweep, the activation's mask and batch
norm's sums, is done by the last reader of the unit's output, in the epilogue of its grad-input.
Source: Zhao et al., AAAI 2021 (arXiv 2102.04782)
for the quantizers; Ioffe and Szegedy 2015 (arXiv 1502.03167) for batch norm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from . import ops
from .conv import _Int8Mixin, int8_products, observe_gradient, observe_operands
from .norm import NormState, backward_coefficients, norm_state
from .ops.layout import channels_last_format
from .twin import Merged, Readers, Twin, new_carrier, share_twin, source_of, twin_of

Tensor = torch.Tensor

#: Codes of the activations that the ops know.
ACTIVATIONS = {"none": 0, "relu": 1, "relu6": 2}


@dataclass
class _Call:
    """What one call of a unit hands to its autograd function and gets back from it.

    Attributes:
        conv: the INT8 convolution, or None where x is the output of some other layer.
        norm: state of the batch norm for this call, or None.
        act: code of the activation.
        geometry: the convolution's geometry arguments.
        q_x, x_qparams: the convolution's 8-bit input.
        out_dtype: dtype of y, out and their gradients.
        want_out: whether the float output is needed, or only its 8-bit twin.
        keep: whether a backward pass will follow.
        residual: what is added, or None.
        sources: the units (their autograd nodes) whose carriers x and the residual are, or None.
        readers: of this unit's output.
        q, qparams: the twin of the output (q is None if want_out).
    """

    conv: _Int8Mixin | None
    norm: NormState | None
    act: int
    geometry: dict[str, Any]
    q_x: Tensor | None
    x_qparams: Tensor | None
    out_dtype: torch.dtype
    want_out: bool
    allow_unsigned: bool
    saved_output: str
    keep: bool
    residual: Tensor | None
    sources: tuple[Any, Any]
    readers: Readers
    q: Tensor | None = None
    qparams: Tensor | None = None
    exact: Tensor | None = None

    @property
    def observer(self):
        return None if self.conv is None else self.conv.observer


class _Unit(torch.autograd.Function):
    """Outputs: the float activation (None unless wanted) and the carriers of its 8-bit twin.

    `residual` is what connects `call.residual` to the graph: it, or a carrier of its unit.
    """

    @staticmethod
    def forward(ctx, x, w, conv_bias, gamma, beta, residual, call: _Call):
        if call.conv is None:
            y = _channels_last(x)
            stats = ops.stats_of(y)
        else:
            y, stats = ops.conv_forward_stats(
                call.q_x,
                call.x_qparams,
                w,
                conv_bias,
                **call.geometry,
                out_dtype=call.out_dtype,
                stats=True,
            )
        mean = invstd = None
        if call.norm is not None:
            mean, invstd = call.norm.forward_statistics(stats, y)
        # A frozen norm's gradient does not depend on y.
        needs_y = call.keep and call.norm is not None
        needs_y = needs_y and (call.norm.use_batch or ctx.needs_input_grad[3])
        in_codes = needs_y and call.saved_output == "int8"
        want_out = call.want_out or call.observer is not None
        out, q, qparams, codes, grid, mask = ops.norm_act_forward(
            y,
            stats,
            gamma,
            beta,
            mean,
            invstd,
            call.residual,
            act=call.act,
            want_out=want_out,
            want_q=not call.want_out,
            allow_unsigned=call.allow_unsigned,
            want_codes=in_codes,
        )
        if call.keep:
            q_x = call.q_x
            if q_x is not None and not ctx.needs_input_grad[1]:
                # grad-input needs only x's size: keep a view of one byte instead.
                q_x = q_x.new_empty(()).expand(q_x.shape)
            kept_y = (codes if in_codes else y) if needs_y else None
            kept_mask = mask if call.act else None
            ctx.save_for_backward(
                *(q_x, call.x_qparams, w, gamma, kept_y, grid if in_codes else None),
                *(kept_mask, mean, invstd),
            )
        # What is saved is released node by node in the backward pass; what ctx holds is not.
        call.q_x = call.x_qparams = call.residual = None
        ctx.call = call
        ctx.x_dtype = x.dtype
        ctx.bias_dtype = None if conv_bias is None else conv_bias.dtype
        ctx.set_materialize_grads(False)
        call.q, call.qparams = (None if call.want_out else q), qparams
        call.exact = out if call.observer is not None else None
        carriers = (new_carrier(y.shape, call.out_dtype, y.device) for _ in range(2))
        return (out if call.want_out else None), *carriers

    @staticmethod
    @once_differentiable
    def backward(ctx, g_out, *of_carriers):
        call, needs = ctx.call, ctx.needs_input_grad
        gradients = [g for g in of_carriers if g is not None]
        if g_out is None and not gradients:
            return (None,) * 7
        merged = _take_merged(call.readers, gradients)
        saved = ctx.saved_tensors if merged is None else merged.saved
        q_x, x_qparams, w, gamma, y, grid, mask, mean, invstd = saved
        if merged is not None:
            gradients = [merged.gz]
        if g_out is not None:
            gradients.append(g_out)
        del g_out, of_carriers  # large, and not needed any more as soon as they are reduced
        if merged is not None and len(gradients) == 1:
            g, mask, sums = merged.gz, None, merged.sums
        else:
            # The masked gradient is a result where a residual asks for it; else later sweeps mask.
            want_gz = len(gradients) > 1 or (needs[5] and mask is not None)
            statistics = (None, None) if y is None else (mean, invstd)
            g, g2 = _at_most_two(gradients)
            gz, sums = ops.norm_act_reduce(g, g2, mask, y, grid, *statistics, want_gz=want_gz)
            if want_gz:
                g, mask = gz, None
            del gz, g2
        del merged, gradients
        if needs[5]:
            _let_other_reader_merge(call.sources[1], g)
        coefficients = backward_coefficients(call.norm, sums, gamma, mean, invstd)
        glue = (g, mask, y, grid, coefficients)
        dx = dw = None
        if call.conv is None:
            if needs[0]:
                dx = ops.norm_backward_apply(*glue).to(ctx.x_dtype)
        elif needs[0] or needs[1]:
            keeps_mean = call.conv.config.keep_gradient_mean
            dy_sum = _gradient_sum(ctx, sums, coefficients) if keeps_mean else None
            dx, dw = _conv_backward(ctx, glue, q_x, x_qparams, w, dy_sum)
        d_gamma = sums[1].to(gamma.dtype) if needs[3] else None
        d_beta = sums[0].to(call.norm.beta_dtype) if needs[4] else None
        d_bias = _gradient_sum(ctx, sums, coefficients) if needs[2] else None
        scale = None if call.conv is None else call.conv.gradient_quantizer.update_scale()
        if scale is not None:
            dw = dw if dw is None else (dw * scale).to(w.dtype)
            d_bias = d_bias if d_bias is None else d_bias * scale
        d_bias = d_bias if d_bias is None else d_bias.to(ctx.bias_dtype)
        return dx, dw, d_bias, d_gamma, d_beta, (g if needs[5] else None), None


def _conv_backward(ctx, glue, q_x, x_qparams, w, dy_sum) -> tuple[Tensor | None, Tensor | None]:
    """grad-input and grad-weight of the unit's convolution; moves its thresholds on."""
    call = ctx.call
    config, quantizer = call.conv.config, call.conv.gradient_quantizer
    seed = quantizer.seed()
    if call.observer is not None or quantizer.needs_values():
        dy = ops.norm_backward_apply(*glue)
        threshold = quantizer.update(dy)
        if call.observer is not None:
            observe_gradient(call.observer, dy, threshold, config)

        def quantize(s: Tensor) -> Tensor:
            return ops.quantize_g(dy, s, seed=seed)
    else:
        threshold = quantizer.update_from_backward(*glue)

        def quantize(s: Tensor) -> Tensor:
            return ops.norm_backward_quantize(*glue, threshold=s, seed=seed)

    def grad_input(*args, **keywords) -> Tensor:
        return _grad_input(call.sources[0], *args, **keywords)

    return int8_products(
        quantize,
        threshold,
        q_x,
        x_qparams,
        w,
        dy_sum,
        config=config,
        geometry=call.geometry,
        output_mask=ctx.needs_input_grad[:2],
        x_dtype=ctx.x_dtype,
        grad_input=grad_input,
    )


def _grad_input(source: Any, *args, **keywords) -> Tensor:
    """`ops.grad_input`; with the first backward sweep of the unit `source` where this is the last
    of its readers."""
    if source is None:
        return ops.grad_input(*args, **keywords)
    readers = source.call.readers.in_this_pass()
    if readers.count != (1 if readers.waiting is None else 2):
        dx = ops.grad_input(*args, **keywords)
        _let_other_reader_merge(source, dx)
        return dx
    saved = source.saved_tensors
    *_, y, grid, mask, mean, invstd = saved
    gz, sums = ops.grad_input_reduce(
        *args,
        **keywords,
        g2=readers.waiting,
        mask=mask,
        y=y,
        grid=grid,
        mean=None if y is None else mean,
        invstd=None if y is None else invstd,
    )
    readers.merged = Merged(gz, sums, readers.waiting, saved)
    readers.waiting = None
    return gz


def _let_other_reader_merge(source: Any, g: Tensor) -> None:
    """Show g, one reader's gradient of the unit `source`, to the other one if there are two."""
    if source is None:
        return
    readers = source.call.readers.in_this_pass()
    if readers.count == 2 and readers.waiting is None:
        readers.waiting = g


def _take_merged(readers: Readers, gradients: list[Tensor]) -> Merged | None:
    """What a reader did for the unit that got these gradients; None if nothing."""
    readers = readers.in_this_pass()
    merged, readers.merged, readers.waiting = readers.merged, None, None
    if merged is None or merged.is_of(gradients):
        return merged
    raise RuntimeError(
        "a gradient between two fused units was changed or added to on its way, which only a hook "
        "on their autograd nodes can do; set DAQConfig(fuse=False) to use such hooks"
    )


def _at_most_two(gradients: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """One or two tensors, channels-last, of the same sum."""
    gradients = [_channels_last(g) for g in gradients]
    if len(gradients) == 3:
        gradients[1:] = [gradients[1] + gradients[2]]
    return gradients[0], (gradients[1] if len(gradients) == 2 else None)


def _gradient_sum(ctx, sums: Tensor, coefficients: Tensor) -> Tensor:
    """float32 (Co,), the sum of dy over all but channels: the convolution's bias gradient."""
    if ctx.call.norm is not None and ctx.call.norm.use_batch:
        # Batch norm takes the mean off, so a bias before it moves nothing.
        return torch.zeros_like(sums[0])
    return sums[0] * coefficients[0]


def fused_unit(
    x: Tensor,
    conv: _Int8Mixin | None,
    norm: nn.Module | None,
    act: str,
    residual: Tensor | None = None,
    *,
    want_out: bool,
    allow_unsigned: bool,
    saved_output: str,
) -> Tensor:
    """Run one unit; the result carries its 8-bit twin.

    Args:
        x: (N, Ci, *spatial), 2 or 3 spatial axes, N >= 1, float32, bfloat16 or float16; with
            conv None, the norm's input.
        conv: INT8 convolution whose input x is, or None.
        norm: nn.BatchNorm2d, 3d or nn.SyncBatchNorm, or None.
        act: one of `ACTIVATIONS`.
        residual: is added before the activation; the output's size and dtype.
        want_out: False if only INT8 convolutions will read the result: then no float
            activation exists, and the result's values must not be read.
        allow_unsigned: as for `ops.quantize_x`, of the result's twin.
        saved_output: 'int8' or 'float', see `DAQConfig`.

    Returns:
        (N, Co, *out), channels-last, in x's dtype or autocast's.
    """
    geometry, q_x, x_qparams = {}, None, None
    out_dtype, weight, bias = x.dtype, None, None
    if conv is not None:
        out_dtype = conv.out_dtype(x)
        geometry, weight, bias = conv.geometry(), conv.weight, conv.bias
        x, q_x, x_qparams = _quantized_input(x, conv)
    added = residual
    if residual is not None:
        if residual.dtype == out_dtype:
            added = source_of(residual)
        if added is residual:
            added = residual = _channels_last(residual.to(out_dtype))
    call = _Call(
        conv=conv,
        norm=None if norm is None else norm_state(norm),
        act=ACTIVATIONS[act],
        geometry=geometry,
        q_x=q_x,
        x_qparams=x_qparams,
        out_dtype=out_dtype,
        want_out=want_out,
        allow_unsigned=allow_unsigned,
        saved_output=saved_output,
        keep=torch.is_grad_enabled(),
        residual=None if residual is None else _channels_last(residual),
        sources=(_unit_of(x), _unit_of(added)),
        readers=Readers(),
    )
    gamma, beta = (None, None) if norm is None else (norm.weight, norm.bias)
    out, *carriers = _Unit.apply(x, weight, bias, gamma, beta, added, call)
    result = out if want_out else carriers[0]
    q, call.q, exact, call.exact = call.q, None, call.exact, None
    if not (want_out and torch.is_inference_mode_enabled()):
        # Inference tensors count no versions, so a change of `out` would go unnoticed.
        Twin(
            q,
            call.qparams,
            allow_unsigned=allow_unsigned,
            carriers=tuple(carriers),
            readers=call.readers,
            x=out,
            exact=exact,
        ).attach(result)
    return result


def _quantized_input(x: Tensor, conv: _Int8Mixin) -> tuple[Tensor, Tensor, Tensor]:
    """The tensor that stands for x in the autograd graph, and x in 8 bits."""
    allow_unsigned = conv.config.unsigned_activations
    twin = twin_of(x, allow_unsigned=allow_unsigned, reader=conv)
    if twin is None:
        q_x, x_qparams = ops.quantize_x(x.detach(), allow_unsigned=allow_unsigned)
        share_twin(x, q_x, x_qparams, allow_unsigned=allow_unsigned, maker=conv)
        source, exact = x, x
    else:
        q_x, x_qparams = twin.quantized(x)
        source = twin.source(x)
        exact = twin.exact if twin.is_only_value else x
    if conv.observer is not None and exact is not None:
        observe_operands(conv.observer, exact, conv.weight, q_x, x_qparams, conv.config)
    return source, q_x, x_qparams


def _unit_of(source: Tensor | None) -> Any:
    """The autograd node of the unit whose carrier this is, None if it is anything else."""
    node = None if source is None else source.grad_fn
    is_carrier = isinstance(node, _Unit._backward_cls) and not any(source.stride())
    return node if is_carrier else None


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=channels_last_format(x.dim() - 2))
