"""The correctness gate: a kernel is timed only if its result equals the reference's bit for bit.

The reference is slow, so big results are compared on parts that a mistake at the borders would
show in: the first and last images, groups and channels. Each part is computed by
`daq_mm.ops.reference` in float64 on the CPU, from the operands that the part depends on.
"""

from __future__ import annotations

import torch

from daq_mm import ops
from daq_mm.ops import reference
from daq_mm.ops.geometry import ConvGeometry

from .operands import DTYPES, Operands

Tensor = torch.Tensor


class WrongResult(RuntimeError):
    """A kernel's result differs from the reference's; it must not be timed."""


def expect_equal(what: str, got: Tensor, expected: Tensor) -> None:
    """Raise WrongResult unless both have the same size, dtype and bits."""
    got = got.cpu()
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise WrongResult(
            f"{what}: got {tuple(got.shape)} {got.dtype}, expected {tuple(expected.shape)} "
            f"{expected.dtype}"
        )
    wrong = got != expected
    if wrong.any():
        where = tuple(wrong.nonzero()[0].tolist())
        raise WrongResult(
            f"{what}: {int(wrong.sum())} of {wrong.numel()} compared values differ from the "
            f"reference, the first at {where} of the compared part: got {got[where].item()}, "
            f"expected {expected[where].item()}"
        )


def _ends(count: int, each: int) -> list[int]:
    """The first and last `each` of `count` indices, each once."""
    return sorted({*range(min(each, count)), *range(max(0, count - each), count)})


class Parts:
    """Which images, groups and channels are compared, and the reference's values for them."""

    def __init__(self, geometry: ConvGeometry) -> None:
        self.geometry = geometry
        self.images = _ends(geometry.x_size[0], 1)
        self.co = geometry.w_size[0] // geometry.groups
        self.ci = geometry.w_size[1]
        # Depthwise groups are cheap, and there are many.
        self.groups = _ends(geometry.groups, 4 if self.co == 1 else 1)

    def _tail(self) -> tuple:
        g = self.geometry
        return list(g.stride), list(g.padding), list(g.dilation), 1

    def _group(self, group: int, each: int) -> tuple[list[int], list[int], list[int], list[int]]:
        """All output and input channels of a group, and the compared ones of both."""
        out = [group * self.co + i for i in range(self.co)]
        inner = [group * self.ci + i for i in range(self.ci)]
        return out, inner, [out[i] for i in _ends(self.co, each)], _ends(self.ci, each)

    def forward(
        self, what: str, y: Tensor, q_x: Tensor, x_qparams: Tensor, q_w: Tensor, w_step: Tensor
    ) -> None:
        """Compare Y with the reference on 8-bit operands."""
        x, w = q_x[self.images].cpu(), q_w.cpu()
        for group in self.groups:
            _, inner, rows, _ = self._group(group, 4)
            expected = reference.forward(
                x[:, inner], x_qparams.cpu(), w[rows], w_step.cpu(), None, *self._tail(), y.dtype
            )
            expect_equal(f"{what}, group {group}", y[self.images][:, rows], expected)

    def grad_input(self, what: str, dx: Tensor, q_g: Tensor, q_w: Tensor, step: Tensor) -> None:
        """Compare dX with the reference; q_g holds the compared images alone."""
        g, w, step = q_g.cpu(), q_w.cpu(), step.cpu()
        for group in self.groups:
            out, inner, _, compared = self._group(group, 4)
            channels = [inner[i] for i in compared]
            expected = reference.grad_input(
                g[:, out],
                w[out][:, compared],
                step if step.numel() == 1 else step[channels],
                [len(self.images), len(channels), *self.geometry.x_size[2:]],
                *self._tail(),
                dx.dtype,
            )
            expect_equal(f"{what}, group {group}", dx[self.images][:, channels], expected)

    def grad_weight(self, what: str, dw: Tensor, q_x: Tensor, x_qparams: Tensor, q_g_of) -> None:
        """Compare dW with the reference; q_g_of(rows) gives 8-bit gradients and their steps."""
        kernel = list(self.geometry.w_size[2:])
        for group in self.groups:
            _, inner, rows, compared = self._group(group, 2)
            q_g, g_step = q_g_of(rows)
            expected = reference.grad_weight(
                q_x[:, [inner[i] for i in compared]].cpu(),
                x_qparams.cpu(),
                q_g.cpu(),
                g_step.cpu(),
                kernel,
                *self._tail(),
                dw.dtype,
            )
            expect_equal(f"{what}, group {group}", dw[rows][:, compared], expected)


def check_products(operands: Operands, dtypes: tuple[str, ...]) -> None:
    """The three products alone: bare int32 sums, then each float type that will be timed.

    Raises:
        WrongResult: a value that differs.
    """
    o, parts = operands, Parts(operands.shape.geometry)
    arguments = o.conv_arguments
    g_step = reference.step_of(o.threshold[:-1], 127)
    for dtype in (torch.int32, *(DTYPES[name] for name in dtypes)):
        y = ops.forward(o.q_x, o.x_qparams, o.q_w, o.w_step, None, **arguments, out_dtype=dtype)
        parts.forward(f"forward to {dtype}", y, o.q_x, o.x_qparams, o.q_w, o.w_step)
        dx = ops.grad_input(
            o.q_g, o.q_w_input, o.input_step, o.q_x.shape, **arguments, out_dtype=dtype
        )
        parts.grad_input(
            f"grad_input to {dtype}", dx, o.q_g[parts.images], o.q_w_input, o.input_step
        )
    for dtype in (torch.int32, torch.float32):
        dw = ops.grad_weight(
            o.q_x,
            o.x_qparams,
            o.q_g,
            g_step,
            o.shape.geometry.w_size[2:],
            **arguments,
            out_dtype=dtype,
        )
        parts.grad_weight(
            f"grad_weight to {dtype}",
            dw,
            o.q_x,
            o.x_qparams,
            lambda rows: (o.q_g[:, rows], g_step[rows]),
        )


def check_quantizers(operands: Operands, dtypes: tuple[str, ...]) -> None:
    """quantize_x, quantize_g and update_thresholds on each source type.

    Raises:
        WrongResult: a value that differs.
    """
    images = Parts(operands.shape.geometry).images
    for name in dtypes:
        x, g = operands.x[name], operands.g[name]
        q_x, x_qparams = ops.quantize_x(x, allow_unsigned=operands.config.unsigned_activations)
        _check_quantized_x(f"quantize_x of {name}", operands, x, q_x, x_qparams)
        q_g = ops.quantize_g(g, operands.threshold[:-1])
        expected = reference.quantize_g(g[images].cpu(), operands.threshold[:-1].cpu(), None)
        expect_equal(f"quantize_g of {name}", q_g[images], expected)
        _check_thresholds(f"update_thresholds of {name}", operands, g)


def _check_quantized_x(what: str, operands: Operands, x: Tensor, q_x: Tensor, qparams) -> None:
    # The images with the extremes make the part's threshold the whole tensor's.
    by_image = x.flatten(1)
    extremes = [by_image.amax(1).argmax().item(), by_image.amin(1).argmin().item()]
    images = sorted({*Parts(operands.shape.geometry).images, *extremes})
    expected, expected_qparams = reference.quantize_x(
        x[images].cpu(), operands.config.unsigned_activations
    )
    expect_equal(f"{what}, step and zero point", qparams, expected_qparams)
    expect_equal(what, q_x[images], expected)


def _check_thresholds(what: str, operands: Operands, g: Tensor) -> None:
    config = operands.config
    mcs = config.gradient_quantizer == "mcs"
    decay, gain = 1.0 - config.mcs_k * config.mcs_a, config.mcs_a
    # Half the maximum as the previous threshold, so that the recursion gives something else.
    previous = operands.threshold * 0.5
    channels = _ends(g.shape[1], 4)

    def run(update, g: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
        tail = torch.zeros_like(threshold)
        iteration = torch.zeros(1, dtype=torch.int64, device=g.device)
        recursion = (decay, gain, config.cap_at_maximum)
        state = (threshold.clone(), tail, iteration)
        return update(g, *state, mcs, *recursion, config.mcs_lambda, 1), tail

    used, tail = (t.cpu() for t in run(torch.ops.daq_mm.update_thresholds, g, previous))
    part = previous.cpu()[[*channels, -1]]
    expected, expected_tail = run(reference.update_thresholds, g[:, channels].cpu(), part)
    expect_equal(what, used[channels], expected[:-1])
    off = (tail[channels] - expected_tail[:-1]).abs().max().item()
    # A value within a rounding of sigma may fall on either side of it.
    allowed = 4 * g.shape[1] / g.numel()
    if mcs and off > allowed:
        raise WrongResult(f"{what}: tail probability is off by {off:.2g}, allowed {allowed:.2g}")
    # The tensor's own entry, from the tail probability that the kernel found for it.
    maximum = g.abs().amax().float().cpu()
    clips = mcs and tail[-1] <= config.mcs_lambda
    expect_equal(
        f"{what}, the tensor's",
        used[-1],
        previous.cpu()[-1] * decay + maximum * gain if clips else maximum,
    )


def check_layer(operands: Operands, dtypes: tuple[str, ...]) -> None:
    """The fused ops conv_forward and conv_backward, for each source type.

    Raises:
        WrongResult: a value that differs.
    """
    for name in dtypes:
        _check_conv_forward(f"conv_forward of {name}", operands, name)
        _check_conv_backward(f"conv_backward of {name}", operands, name)


def _check_conv_forward(what: str, o: Operands, name: str) -> None:
    unsigned = o.config.unsigned_activations
    y, q_x, x_qparams = ops.conv_forward(
        o.x[name],
        o.w["fp32"],
        None,
        **o.conv_arguments,
        allow_unsigned=unsigned,
        out_dtype=DTYPES[name],
    )
    _check_quantized_x(what, o, o.x[name], q_x, x_qparams)
    q_w, w_step = reference.quantize_w(o.w["fp32"])
    Parts(o.shape.geometry).forward(what, y, q_x, x_qparams, q_w, w_step)


def _check_conv_backward(what: str, o: Operands, name: str) -> None:
    parts, g, w = Parts(o.shape.geometry), o.g[name], o.w["fp32"]
    by_channel, by_tensor = o.threshold[:-1], o.threshold[-1:]
    vectorized = o.config.grad_weight == "channel"
    dx, dw, _ = ops.conv_backward(
        g,
        o.q_x,
        o.x_qparams,
        w,
        o.threshold,
        None,
        **o.conv_arguments,
        folded=o.folded,
        channel_grad_weight=vectorized,
        output_mask=[not o.shape.first, True, False],
        x_dtype=DTYPES[name],
    )
    if not o.shape.first:
        if o.folded:
            used = by_channel
            q_w, step = reference.quantize_w_folded(w, by_channel, o.shape.geometry.groups)
        else:
            used = by_tensor
            q_w, w_step = reference.quantize_w(w)
            step = reference.step_of(by_tensor, 127) * w_step
        q_g = reference.quantize_g(g[parts.images].cpu(), used.cpu(), None)
        parts.grad_input(f"{what}, grad-input", dx, q_g, q_w, step)
    thresholds = (by_channel if vectorized else by_tensor).expand(w.shape[0]).cpu()

    def rows_of_gradient(rows: list[int]) -> tuple[Tensor, Tensor]:
        used = thresholds[rows]
        return reference.quantize_g(g[:, rows].cpu(), used, None), reference.step_of(used, 127)

    parts.grad_weight(f"{what}, grad-weight", dw, o.q_x, o.x_qparams, rows_of_gradient)
