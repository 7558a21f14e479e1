"""Products with glue in their epilogues, next to the same work in two ops, for bench_glue.

forward     conv_forward_stats without and with statistics
grad-input  grad_input, then norm_act_reduce of what it returns; grad_input_reduce
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from daq_mm import ops
from daq_mm.ops.glue import RELU
from daq_mm.ops.layout import channels_last_format

Tensor = torch.Tensor

#: Convolutions of ResNet-50's bottlenecks: input and output channels, kernel, side, and whether a
#: second gradient, that of the shortcut, meets grad-input.
BOTTLENECKS = tuple(
    (*channels, kernel, side, joined)
    for width, side in ((64, 56), (128, 28), (256, 14), (512, 7))
    for channels, kernel, joined in (
        ((4 * width, width), 1, True),
        ((width, width), 3, False),
        ((width, 4 * width), 1, False),
    )
)


def describe(ci: int, co: int, kernel: int, side: int, joined: bool) -> str:
    """For tables: 256->64 1x1 at 56."""
    return f"{ci}->{co} {kernel}x{kernel} at {side}" + (", g2" if joined else "")


def variants(
    shape: tuple[int, int, int, int, bool],
    *,
    batch: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> dict[str, Callable[[], object]]:
    """What to time for a convolution as `BOTTLENECKS` has it: the work by name.

    Raises:
        AssertionError: an op with an epilogue differs from the two ops.
    """
    with torch.device(device):  # every tensor below is made there
        return _variants(batch, dtype, *shape)


def _variants(
    batch: int, dtype: torch.dtype, ci: int, co: int, kernel: int, side: int, joined: bool
) -> dict[str, Callable[[], object]]:
    last = channels_last_format(2)
    x_size = (batch, ci, side, side)
    geometry = dict(stride=(1, 1), padding=(kernel // 2,) * 4, dilation=(1, 1), groups=1)
    q_x = torch.randint(256, x_size, dtype=torch.uint8).contiguous(memory_format=last)
    q_g = torch.randint(-127, 128, (batch, co, side, side), dtype=torch.int8)
    q_g = q_g.contiguous(memory_format=last)
    x_qparams = torch.tensor([0.01, 0.0])
    w = torch.randn(co, ci, kernel, kernel) * 0.05
    q_w, step = ops.quantize_w_folded(w, torch.rand(co) * 0.01 + 1e-3, groups=1)
    y = torch.randn(x_size).to(dtype).contiguous(memory_format=last)
    g2 = torch.randn(x_size).to(dtype).contiguous(memory_format=last) if joined else None
    mean, invstd = torch.zeros(ci), torch.ones(ci)
    settings = dict(act=RELU, want_out=False, want_q=False, allow_unsigned=True, want_codes=True)
    affine = (torch.ones(ci), torch.zeros(ci), mean, invstd)
    *_, codes, grid, mask = ops.norm_act_forward(y, ops.stats_of(y), *affine, None, **settings)

    def forward(stats: bool) -> object:
        return ops.conv_forward_stats(
            q_x, x_qparams, w, None, **geometry, out_dtype=dtype, stats=stats
        )

    def grad_input() -> Tensor:
        return ops.grad_input(q_g, q_w, step, x_size, **geometry, out_dtype=dtype)

    def two_ops() -> tuple[Tensor, Tensor]:
        return ops.norm_act_reduce(
            grad_input(), g2, mask, codes, grid, mean, invstd, want_gz=joined
        )

    def epilogue() -> tuple[Tensor, Tensor]:
        return ops.grad_input_reduce(
            *(q_g, q_w, step, x_size),
            **geometry,
            out_dtype=dtype,
            **dict(g2=g2, mask=mask, y=codes, grid=grid, mean=mean, invstd=invstd),
        )

    _expect_equal(epilogue(), two_ops(), gradients=joined)
    return {
        "forward": lambda: forward(False),
        "forward, statistics": lambda: forward(True),
        "grad_input": grad_input,
        "grad_input, norm_act_reduce": two_ops,
        "grad_input_reduce": epilogue,
    }


def _expect_equal(
    got: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], *, gradients: bool
) -> None:
    """Raise AssertionError unless sums agree to 1e-5 and gradients, if wanted, have equal bits."""
    if gradients:
        torch.testing.assert_close(got[0], expected[0], rtol=0, atol=0)
    most = float(expected[1].abs().max())
    torch.testing.assert_close(got[1], expected[1], rtol=0, atol=1e-5 * most)
