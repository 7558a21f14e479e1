"""The sums that put the gradient's mean back: exact, whatever the shape and the instruction set."""

import random

import pytest
import torch

from daq_mm import ops
from daq_mm.ops import dropped_mean
from daq_mm.ops.geometry import ConvGeometry
from daq_mm.ops.layout import channels_last_format
from devices import DEVICE, needs_kernels


@pytest.mark.parametrize("case", range(40))
def test_byte_sums_are_exact(case, backend):
    rng = random.Random(case)
    dtype, (least, most) = rng.choice([(torch.int8, (-128, 127)), (torch.uint8, (0, 255))])
    low = rng.choice((least, most))  # any values, or all of them at the end
    rows, width = rng.choice(
        [(rng.randint(1, 700), rng.randint(1, 70)), (rng.randint(1, 9), rng.randint(900, 5000))]
    )
    if case % 8 == 0:  # cut along the rows
        rows, width = rng.randint(9000, 20000), rng.choice((1, 16, 24))
    q = torch.randint(low, most + 1, (rows, width), dtype=dtype, device=DEVICE)
    sums = dropped_mean.byte_sums(q)
    assert sums.dtype == torch.int32
    assert torch.equal(sums.long(), q.long().sum(0))


def test_byte_sums_of_more_rows_than_int32_holds(monkeypatch):
    monkeypatch.setattr(dropped_mean, "MOST_INT32_ROWS", 9)
    q = torch.full((10, 3), -128, dtype=torch.int8, device=DEVICE)
    sums = dropped_mean.byte_sums(q)
    assert sums.dtype == torch.int64 and sums.tolist() == [-1280] * 3


def test_int32_holds_the_largest_sum():
    most = dropped_mean.MOST_INT32_ROWS
    assert 255 * most <= 2**31 - 1 < 255 * (most + 1)


@needs_kernels
def test_byte_sums_refuse_what_they_cannot_add():
    with pytest.raises(TypeError, match="q has dtype"):
        torch.ops.daq_mm.byte_sums(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="expected a contiguous matrix"):
        torch.ops.daq_mm.byte_sums(torch.zeros(3, 4, dtype=torch.int8).t())
    with pytest.raises(ValueError, match="expected a contiguous matrix"):
        torch.ops.daq_mm.byte_sums(torch.zeros(3, dtype=torch.int8))
    empty = torch.ops.daq_mm.byte_sums(torch.zeros(0, 4, dtype=torch.uint8))
    assert empty.tolist() == [0] * 4


@pytest.mark.parametrize("size", [(5000, 24), (3000, 17), (20, 600), (3, 8), (1, 1)])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_byte_sums_of_fixed_sizes(size, dtype, backend):
    """Vectors and single bytes, one block and several, along the rows and across."""
    info = torch.iinfo(dtype)
    for least in (info.min, info.max):
        q = torch.randint(least, info.max + 1, size, dtype=dtype)
        assert torch.equal(dropped_mean.byte_sums(q).long(), q.long().sum(0))


def test_byte_sums_of_fixed_rows_at_an_odd_address(backend):
    q = torch.randint(-128, 128, (16 * 40 + 1,), dtype=torch.int8)[1:].view(40, 16)
    assert torch.equal(dropped_mean.byte_sums(q).long(), q.long().sum(0))


def window_case(case: int) -> tuple[tuple, dict]:
    """Operands and geometry of a random convolution, for `window_sums`."""
    rng = random.Random(case)
    rank = rng.choice((2, 3))
    kernel = [rng.choice((1, 1, 2, 3, 5)) for _ in range(rank)]
    geometry = dict(
        stride=[rng.randint(1, 3) for _ in range(rank)],
        padding=[rng.randint(0, 2) for _ in range(2 * rank)],
        dilation=[rng.randint(1, 2) for _ in range(rank)],
    )
    spatial = [rng.randint(9, 12) for _ in range(rank)]
    channels = rng.choice((rng.randint(1, 40), 500))  # 500: lines of more than one block
    size = (rng.choice((1, 2, 3, 20)), channels, *spatial)
    q_x = torch.randint(rng.choice((0, 255)), 256, size, dtype=torch.uint8, device=DEVICE)
    q_x = q_x.contiguous(memory_format=channels_last_format(rank))
    x_qparams = torch.tensor([0.3, rng.choice((0.0, 128.0))], device=DEVICE)
    return (q_x, x_qparams, kernel), geometry


@pytest.mark.parametrize("case", range(40))
def test_window_sums_are_the_reference_s_bit_for_bit(case, backend):
    operands, geometry = window_case(case)
    sums = dropped_mean.window_sums(*operands, **geometry)
    expected = dropped_mean._reference_window_sums(*operands, *geometry.values())
    assert sums.shape == expected.shape and sums.is_contiguous()
    assert torch.equal(sums, expected)


#: Sizes of x, kernel, stride, padding, dilation.
WINDOWS = {
    "more heights than a block's piece": (
        (2, 8, 150, 3),
        [3, 1],
        [1, 1],
        [1, 0] * 2,
        [1, 1],
    ),
    "a wide line": ((1, 40, 4, 60), [3, 3], [2, 2], [1, 1] * 2, [1, 1]),
    "taps far outside": ((2, 3, 4, 4), [3, 3], [1, 1], [7, 7] * 2, [7, 7]),
    "many images": ((90, 16, 3, 3), [3, 3], [1, 1], [1, 1] * 2, [1, 1]),
    "more images than blocks": ((1000, 8, 1, 1), [3, 1], [1, 1], [1, 0] * 2, [1, 1]),
    "depth": ((2, 8, 6, 5, 4), [3, 2, 3], [2, 1, 1], [1, 0, 1] * 2, [1, 2, 1]),
    "a stride that skips": ((2, 8, 9, 9), [1, 1], [4, 3], [0, 0] * 2, [1, 1]),
}


@pytest.mark.parametrize("name", WINDOWS)
def test_window_sums_of_fixed_cases(name, backend):
    size, *geometry = WINDOWS[name]
    q_x = torch.randint(0, 256, size, dtype=torch.uint8)
    q_x = q_x.contiguous(memory_format=channels_last_format(len(size) - 2))
    for zero_point in (0.0, 128.0):
        qparams = torch.tensor([0.01, zero_point])
        got = torch.ops.daq_mm.window_sums(q_x, qparams, *geometry)
        expected = dropped_mean._reference_window_sums(q_x, qparams, *geometry)
        assert torch.equal(got, expected) and got.is_contiguous()


@pytest.mark.parametrize("case", range(20))
def test_window_sums_are_grad_weight_of_ones(case, backend):
    """A gradient of ones, through the product kernel: the same sums, but for their rounding."""
    (q_x, x_qparams, kernel), geometry = window_case(case)
    w_size = (1, q_x.shape[1], *kernel)
    out = ConvGeometry.make(q_x.shape, w_size, *geometry.values(), 1).out_spatial
    ones = torch.ones((q_x.shape[0], 1, *out), dtype=torch.int8, device=DEVICE)
    ones = ones.contiguous(memory_format=channels_last_format(len(kernel)))
    one = torch.ones(1, device=DEVICE)
    options = dict(groups=1, out_dtype=torch.float32)
    expected = ops.grad_weight(q_x, x_qparams, ones, one, kernel, **geometry, **options)
    sums = dropped_mean.window_sums(q_x, x_qparams, kernel, **geometry)
    torch.testing.assert_close(sums.float(), expected[0])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_gradient_s_mean_is_kept(dtype, groups, backend):
    """A gradient too small for its grid is dropped: what is added is what its mean gives."""
    x = torch.rand(3, 8, 9, 9, device=DEVICE)
    q_x, x_qparams = ops.quantize_x(x, allow_unsigned=True)
    g = 0.3 + 0.1 * torch.rand(3, 6, 5, 5, device=DEVICE)
    threshold = torch.full((6,), 127.0, device=DEVICE)
    q_g = ops.quantize_g(g, threshold)
    assert not q_g.any()
    geometry = dict(stride=[2, 2], padding=[1, 1, 1, 1], dilation=[1, 1], groups=groups)
    dw = torch.zeros(6, 8 // groups, 3, 3, dtype=dtype, device=DEVICE)
    dw = dw.contiguous(memory_format=torch.channels_last)
    result = ops.add_dropped_mean_(dw, g.sum((0, 2, 3)), q_g, threshold, q_x, x_qparams, **geometry)
    assert result is dw and dw.is_contiguous(memory_format=torch.channels_last)
    mean = g.mean((0, 2, 3), keepdim=True).expand_as(g)
    grid_x = (q_x.double() - x_qparams[1]) * x_qparams[0]
    expected = torch.nn.grad.conv2d_weight(  # in float64, which no GPU computes by TF32
        grid_x, dw.shape, mean.double().contiguous(), stride=2, padding=1, groups=groups
    )
    torch.testing.assert_close(
        dw, expected.to(dtype), rtol=1e-5 if dtype.itemsize == 4 else 1e-2, atol=0
    )
