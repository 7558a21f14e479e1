"""grad-weight from 8-bit operands: the kernels against the reference, bit for bit."""

import functools
import random

import pytest
import torch

from conv_cases import DEPTHWISE, FLOATS, channels_last, geometry_of
from daq_mm import ops
from daq_mm.ops import reference
from daq_mm.ops.layout import channels_last_format
from devices import host_values_only, needs_kernels

pytestmark = needs_kernels


def operands(x_size, kernel, co, signed=True, **options):
    """Random 8-bit operands of a case of conv_cases, and the op's keyword arguments."""
    geometry, args = geometry_of(x_size, kernel, co, **options)
    kernel = list(geometry.w_size[2:])
    low, zero_point = (1, 128) if signed else (0, 0)
    q_x = channels_last(torch.randint(low, 256, x_size, dtype=torch.uint8))
    q_g = channels_last(torch.randint(-128, 128, geometry.out_size, dtype=torch.int8))
    x_qparams = torch.tensor([0.0173, zero_point], dtype=torch.float32)
    g_step = torch.rand(co) * 1e-3
    return (q_x, x_qparams, q_g, g_step, kernel), args


def check(call, out_dtype=torch.float32):
    tensors, args = call
    got = ops.grad_weight(*tensors, **args, out_dtype=out_dtype)
    expected = reference.grad_weight(*tensors, **args, out_dtype=out_dtype)
    assert got.dtype == out_dtype
    assert got.is_contiguous()
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    last = ops.grad_weight(*tensors, **args, out_dtype=out_dtype, channels_last=True)
    assert last.is_contiguous(memory_format=channels_last_format(last.dim() - 2))
    assert torch.equal(last, got)


FIXED = {
    "1x1": dict(x_size=(2, 64, 9, 7), kernel=1, co=32),
    "1x1 odd channels": dict(x_size=(3, 37, 5, 6), kernel=1, co=19),
    "1x1 strided": dict(x_size=(2, 40, 9, 8), kernel=1, co=72, stride=2),
    "3x3": dict(x_size=(2, 64, 14, 14), kernel=3, co=64, padding=1),
    "3x3 strided": dict(x_size=(2, 96, 15, 13), kernel=3, co=24, stride=2, padding=1),
    "3x3 dilated": dict(x_size=(2, 33, 11, 12), kernel=3, co=9, padding=2, dilation=2),
    "asymmetric padding": dict(x_size=(2, 32, 8, 9), kernel=3, co=8, padding=(0, 2, 1, 0)),
    "padding wider than x": dict(x_size=(1, 32, 2, 1), kernel=(3, 5), co=8, padding=(3, 4, 3, 4)),
    "stem": dict(x_size=(2, 3, 32, 30), kernel=7, co=64, stride=2, padding=3),
    "few channels dilated": dict(x_size=(2, 5, 12, 13), kernel=3, co=10, padding=2, dilation=2),
    "grouped": dict(x_size=(2, 64, 9, 9), kernel=3, co=96, padding=1, groups=4),
    "grouped wide": dict(x_size=(2, 80, 7, 7), kernel=3, co=80, padding=1, groups=2),
    "grouped 1x1": dict(x_size=(2, 24, 7, 7), kernel=1, co=12, groups=4),
    "grouped, four a group": dict(x_size=(2, 128, 9, 7), kernel=3, co=128, padding=1, groups=32),
    "grouped, more outputs": dict(x_size=(2, 48, 7, 7), kernel=3, co=120, padding=1, groups=12),
    "grouped, prime": dict(x_size=(2, 35, 7, 7), kernel=(3, 1), co=21, groups=7),
    "depthwise": dict(x_size=(2, 70, 13, 12), kernel=3, co=70, padding=1, groups=70),
    "depthwise strided": dict(
        x_size=(2, 16, 13, 12), kernel=5, co=16, stride=2, padding=2, groups=16
    ),
    "depthwise multiplier": dict(x_size=(2, 8, 9, 9), kernel=3, co=24, padding=1, groups=8),
    "one pixel": dict(x_size=(1, 1, 1, 1), kernel=1, co=1),
    "one pixel 3x3": dict(x_size=(1, 40, 1, 1), kernel=3, co=3, padding=1),
    "3d": dict(x_size=(2, 34, 4, 6, 5), kernel=3, co=12, padding=1),
    "3d stem": dict(
        x_size=(1, 3, 6, 14, 13), kernel=(3, 7, 7), co=16, stride=(1, 2, 2), padding=(1, 3, 3) * 2
    ),
    "3d temporal": dict(x_size=(2, 48, 6, 5, 4), kernel=(3, 1, 1), co=32, padding=(1, 0, 0) * 2),
    "3d depthwise": dict(x_size=(2, 20, 5, 6, 6), kernel=3, co=20, padding=1, groups=20),
    **DEPTHWISE,
}


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("signed", [True, False])
def test_equals_reference(backend, name, signed):
    call = operands(**FIXED[name], signed=signed)
    check(call)
    check(call, torch.int32)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    "case",
    [
        dict(x_size=(2, 64, 40, 41), kernel=1, co=32),  # threads share the positions
        dict(x_size=(2, 64, 14, 12), kernel=1, co=200),  # or the output channels
        dict(x_size=(2, 160, 29, 30), kernel=1, co=20),
        dict(x_size=(2, 160, 29, 30), kernel=3, co=24, padding=1),
    ],
    ids=["positions", "channels", "rest of a panel", "3x3"],
)
def test_ways_to_share_the_work(backend, case, threads, one_thread):
    torch.set_num_threads(threads)
    for signed in (True, False):
        check(operands(**case, signed=signed))
        check(operands(**case, signed=signed), torch.bfloat16)


def random_geometry(rng: random.Random) -> dict:
    """A small convolution of any kind: rank, kernel, stride, padding, dilation, groups."""
    rank = rng.choice([2, 2, 3])
    most = 9 if rank == 2 else 5
    groups = rng.choice([1, 1, 1, 2, 3, 8])
    ci, co = groups * rng.choice([1, 2, 3, 16, 33, 40]), groups * rng.choice([1, 3, 8, 20, 70])
    kernel = [rng.randint(1, 3) for _ in range(rank)]
    dilation = [rng.randint(1, 2) for _ in range(rank)]
    padding = [rng.randint(0, 3) for _ in range(2 * rank)]
    size = []
    for axis in range(rank):
        least = dilation[axis] * (kernel[axis] - 1) + 1 - padding[axis] - padding[rank + axis]
        size.append(max(least, rng.randint(1, most)))
    return dict(
        x_size=(rng.randint(1, 3), ci, *size),
        kernel=kernel,
        co=co,
        stride=[rng.randint(1, 3) for _ in range(rank)],
        padding=padding,
        dilation=dilation,
        groups=groups,
        signed=rng.random() < 0.5,
    )


@pytest.mark.parametrize("seed", range(60))
def test_random_geometries(backend, seed):
    check(operands(**random_geometry(random.Random(seed))))


@pytest.mark.parametrize("out_dtype", FLOATS)
def test_float_results(backend, out_dtype):
    check(operands((2, 40, 9, 9), 3, 20, padding=1), out_dtype)
    check(operands((2, 3, 9, 9), 3, 20, padding=1), out_dtype)


# Contractions longer than int32 holds in the worst case, through each kind of kernel.
LONG = {
    "1x1": dict(x_size=(1, 33, 200, 670), kernel=1, co=9),
    "3x3": dict(x_size=(1, 32, 366, 366), kernel=(3, 1), co=8, padding=(1, 0, 1, 0)),
    "few channels": dict(x_size=(2, 1, 300, 300), kernel=2, co=4, padding=1),
    "depthwise": dict(x_size=(2, 2, 300, 300), kernel=2, co=2, padding=1, groups=2),
}


@functools.cache
def long_call(name: str, x_value: int, g_value: int):
    """Constant operands of a long contraction, and the reference's float32 and int32 results."""
    tensors, args = operands(**LONG[name])
    tensors[0].fill_(x_value)
    tensors[2].fill_(g_value)
    tensors[1][1] = 128 if x_value == 1 else 0
    expected = [
        reference.grad_weight(*tensors, **args, out_dtype=dtype)
        for dtype in (torch.float32, torch.int32)
    ]
    return tensors, args, expected


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("x_value, g_value", [(255, 127), (255, -127), (1, -127)])
def test_long_contraction_of_extreme_values(backend, name, x_value, g_value):
    tensors, args, expected = long_call(name, x_value, g_value)
    assert tensors[2].numel() // tensors[2].shape[1] > ops.MAX_INT32_CONTRACTION
    for result in expected:
        got = ops.grad_weight(*tensors, **args, out_dtype=result.dtype)
        assert torch.equal(got, result)


def test_zero_point_other_than_128(backend):
    tensors, args = operands((2, 40, 6, 5), 3, 9, padding=1)
    tensors[1][1] = 77
    check((tensors, args))


def test_threads_do_not_change_the_result(backend):
    calls = [
        operands((4, 64, 28, 28), 3, 64, padding=1),
        operands((2, 256, 7, 7), 1, 512),
        operands((2, 3, 40, 40), 7, 16, stride=2, padding=3),
        operands((2, 64, 20, 20), 3, 64, padding=1, groups=64),
        operands((2, 64, 12, 12), 3, 64, padding=1, groups=4),
    ]
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 16):
            torch.set_num_threads(threads)
            results.append([ops.grad_weight(*t, **a, out_dtype=torch.float32) for t, a in calls])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert torch.equal(a, b)


def test_empty_batch_gives_zeros(backend):
    check(operands((0, 8, 5, 5), 3, 4, padding=1))


def test_non_finite_step_reaches_the_result(backend):
    tensors, args = operands((2, 8, 5, 5), 1, 3)
    tensors[3][1] = float("nan")
    tensors[3][2] = float("inf")
    got = ops.grad_weight(*tensors, **args, out_dtype=torch.float32)
    expected = reference.grad_weight(*tensors, **args, out_dtype=torch.float32)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    assert got[1].isnan().all()


def test_other_layouts_are_accepted(backend):
    tensors, args = operands((2, 40, 6, 5), 3, 9, padding=1)
    q_x, x_qparams, q_g, g_step, kernel = tensors
    expected = reference.grad_weight(*tensors, **args, out_dtype=torch.float32)
    strided = torch.stack([q_x, q_x], -1)[..., 0]
    got = ops.grad_weight(
        strided, x_qparams, q_g.contiguous(), g_step, kernel, **args, out_dtype=torch.float32
    )
    assert torch.equal(got, expected)


def _call_with(**changes):
    (q_x, x_qparams, q_g, g_step, kernel), args = operands((2, 8, 5, 5), 3, 4, padding=1)
    values = dict(
        q_x=q_x,
        x_qparams=x_qparams,
        q_g=q_g,
        g_step=g_step,
        kernel_size=kernel,
        out_dtype=torch.float32,
        **args,
    )
    values.update(changes)
    return ops.grad_weight(**values)


@pytest.mark.parametrize(
    "error, words, changes",
    [
        (TypeError, "q_x has dtype", dict(q_x=torch.zeros(2, 8, 5, 5, dtype=torch.int8))),
        (TypeError, "q_g has dtype", dict(q_g=torch.zeros(2, 4, 5, 5, dtype=torch.uint8))),
        (TypeError, "g_step has dtype", dict(g_step=torch.zeros(4, dtype=torch.float64))),
        (TypeError, "x_qparams has dtype", dict(x_qparams=torch.zeros(2, dtype=torch.float64))),
        (TypeError, "out_dtype is", dict(out_dtype=torch.float64)),
        (ValueError, "q_g has size", dict(q_g=torch.zeros(2, 4, 4, 5, dtype=torch.int8))),
        (ValueError, "g_step has size", dict(g_step=torch.zeros(5))),
        (ValueError, "x_qparams has size", dict(x_qparams=torch.zeros(3))),
        pytest.param(
            ValueError,
            "zero point",
            dict(x_qparams=torch.tensor([1.0, 256.0])),
            marks=host_values_only,
        ),
        (ValueError, "q_x has 3 axes", dict(q_x=torch.zeros(8, 5, 5, dtype=torch.uint8))),
        (ValueError, "padding", dict(padding=[1, 1])),
        (ValueError, "groups", dict(groups=3)),
    ],
)
def test_wrong_arguments(backend, error, words, changes):
    with pytest.raises(error, match=words):
        _call_with(**changes)
