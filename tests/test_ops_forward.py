"""forward and conv_forward: the kernels against the reference, bit for bit."""

import pytest
import torch

from conv_cases import (
    FIXED,
    FLOATS,
    assert_same_bits,
    channels_last,
    geometry_of,
    is_channels_last,
    leave_garbage,
    random_case,
)
from daq_mm import ops
from daq_mm.ops import reference
from devices import host_values_only, needs_kernels

pytestmark = [needs_kernels, pytest.mark.usefixtures("one_thread")]


def operands(case, zero_point=128, bias=True):
    """Random 8-bit operands of a case in the op's order, and its keyword arguments."""
    geometry, args = geometry_of(**case)
    q_x = channels_last(torch.randint(0, 256, geometry.x_size, dtype=torch.uint8))
    q_w = torch.randint(-128, 128, geometry.w_size, dtype=torch.int8)
    x_qparams = torch.tensor([0.0173, zero_point], dtype=torch.float32)
    w_step = torch.tensor([0.0091])
    return [q_x, x_qparams, q_w, w_step, torch.randn(case["co"]) if bias else None], args


def check(tensors, args, out_dtype=torch.float32):
    expected = reference.forward(*tensors, **args, out_dtype=out_dtype)
    leave_garbage(expected.numel())
    got = ops.forward(*tensors, **args, out_dtype=out_dtype)
    assert is_channels_last(got)
    assert_same_bits(got, expected)


@pytest.mark.parametrize("name", FIXED)
def test_fixed_geometries(name, backend):
    for zero_point, bias in ((128, True), (0, False)):
        check(*operands(FIXED[name], zero_point, bias))


@pytest.mark.parametrize("block", range(6))
def test_random_geometries(block, backend):
    for seed in range(10 * block, 10 * block + 10):
        torch.manual_seed(seed)
        tensors, args = operands(random_case(seed), (0, 128, 77)[seed % 3], seed % 2 == 0)
        check(tensors, args, (*FLOATS, torch.int32)[seed % 4])


@pytest.mark.parametrize("co", (32, 64, 80, 256))
def test_whole_tiles(co, backend):
    for bias in (True, False):
        check(*operands(dict(x_size=(2, 20, 26, 25), kernel=1, co=co), bias=bias), torch.bfloat16)


@pytest.mark.parametrize("out_dtype", (*FLOATS, torch.int32))
@pytest.mark.parametrize("name", ("3x3", "stem", "depthwise", "grouped, odd channels", "1x1"))
def test_output_dtypes(name, out_dtype, backend):
    check(*operands(FIXED[name]), out_dtype)
    check(*operands(FIXED[name], bias=False), out_dtype)


@pytest.mark.parametrize("name", ("1x1 odd channels", "3x3", "depthwise"))
@pytest.mark.parametrize("x_value, w_value", ((255, 127), (255, -128), (0, 127), (0, -128)))
def test_largest_values(name, x_value, w_value, backend):
    tensors, args = operands(FIXED[name])
    tensors[0].fill_(x_value)
    tensors[2].fill_(w_value)
    check(tensors, args)


@pytest.mark.parametrize("zero_point", (0, 128))
@pytest.mark.parametrize(
    "case",
    (
        dict(x_size=(2, 66_400, 1, 2), kernel=1, co=3),
        dict(x_size=(1, 17_003, 2, 2), kernel=2, co=18),
        dict(x_size=(1, 140_001, 1, 1), kernel=1, co=2),
    ),
    ids=("1x1", "2x2", "beyond the bare sum's int32"),
)
def test_long_contractions_are_exact(case, zero_point, backend):
    for w_value in (127, -128):
        tensors, args = operands(case, zero_point)
        tensors[0].fill_(255)
        tensors[2].fill_(w_value)
        for out_dtype in (*FLOATS, torch.int32):
            check(tensors, args, out_dtype)


@pytest.mark.parametrize("step", (0.0, 1e-38, 1e-30, 1e30, float("inf"), float("nan")))
@pytest.mark.parametrize("out_dtype", FLOATS)
def test_extreme_steps(step, out_dtype, backend):
    for bias in (None, torch.full((64,), 1e-39), torch.full((64,), float("inf")), torch.zeros(64)):
        tensors, args = operands(FIXED["3x3"], bias=False)
        tensors[1][0] = step
        tensors[3][0] = 1.0
        tensors[4] = bias
        check(tensors, args, out_dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_bias_dtypes_and_strides(dtype, backend):
    tensors, args = operands(FIXED["1x1"])
    tensors[4] = torch.randn(2 * 96).to(dtype)[::2]
    check(tensors, args)


@pytest.mark.parametrize("name", ("3x3", "depthwise", "stem", "1x1 odd channels"))
def test_threads_do_not_matter(name, backend):
    tensors, args = operands(FIXED[name])
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(ops.forward(*tensors, **args, out_dtype=torch.float32))
    for result in results[1:]:
        assert torch.equal(result, results[0])


def bad(index, change):
    def apply(tensors):
        tensors[index] = change(tensors[index])

    return apply


@pytest.mark.parametrize(
    "change, error, message",
    (
        (bad(0, lambda t: t.to(torch.int8)), TypeError, "q_x has dtype"),
        (bad(0, lambda t: t.contiguous()), ValueError, "q_x .* expected channels-last"),
        (bad(0, lambda t: t[0]), ValueError, "x has 3 axes"),
        (bad(1, lambda t: t.double()), TypeError, "x_qparams has dtype"),
        (bad(1, lambda t: t[:1]), ValueError, "x_qparams has size"),
        pytest.param(
            bad(1, lambda t: torch.tensor([1.0, 256.0])),
            ValueError,
            "zero point",
            marks=host_values_only,
        ),
        pytest.param(
            bad(1, lambda t: torch.tensor([1.0, 0.5])),
            ValueError,
            "zero point",
            marks=host_values_only,
        ),
        (bad(2, lambda t: t.float()), TypeError, "q_w has dtype"),
        (bad(2, channels_last), ValueError, "q_w .* expected contiguous"),
        (bad(2, lambda t: t[:, 1:]), ValueError, "x has 64 channels"),
        (bad(3, lambda t: t.expand(2).contiguous()), ValueError, "w_step has size"),
        (bad(4, lambda t: t[1:]), ValueError, "bias has size"),
        (bad(4, lambda t: t.to(torch.int32)), TypeError, "bias has dtype"),
    ),
)
def test_wrong_arguments_are_named(backend, change, error, message):
    tensors, args = operands(FIXED["3x3"])
    change(tensors)
    with pytest.raises(error, match=message):
        ops.forward(*tensors, **args, out_dtype=torch.float32)


def test_wrong_output_dtype(backend):
    tensors, args = operands(FIXED["3x3"])
    with pytest.raises(TypeError, match="out_dtype"):
        ops.forward(*tensors, **args, out_dtype=torch.float64)


def check_conv_forward(x, w, bias, args, allow_unsigned, out_dtype):
    args = {**args, "allow_unsigned": allow_unsigned, "out_dtype": out_dtype}
    expected = reference.conv_forward(x, w, bias, **args)
    leave_garbage(expected[0].numel())
    got = ops.conv_forward(x, w, bias, **args)
    for a, b in zip(got, expected):
        assert_same_bits(a, b)
    assert is_channels_last(got[1])
    if got[0].numel():  # the strides of nothing mean nothing
        assert got[0].is_contiguous() == expected[0].is_contiguous()
        assert is_channels_last(got[0]) == is_channels_last(expected[0])


def layouts(t):
    """The tensor channels-last, contiguous, and as a view with gaps."""
    wide = torch.stack([t, t], dim=-1)
    return channels_last(t), t.contiguous(), wide[..., 0]


@pytest.mark.parametrize("name", ("3x3 strided", "stem", "depthwise", "3d", "1x1 odd channels"))
@pytest.mark.parametrize("dtype", FLOATS)
def test_conv_forward(name, dtype, backend):
    geometry, args = geometry_of(**FIXED[name])
    w = (torch.randn(geometry.w_size) * 0.1).to(dtype)
    bias = torch.randn(geometry.w_size[0])
    for positive in (False, True):
        x = torch.randn(geometry.x_size)
        x = (x.relu() if positive else x).to(dtype)
        for x_layout in layouts(x):
            check_conv_forward(x_layout, w, bias, args, True, dtype)
        check_conv_forward(x, channels_last(w), None, args, False, torch.float32)


def test_conv_forward_large_contiguous(backend):
    geometry, args = geometry_of(x_size=(3, 64, 23, 21), kernel=3, co=150, padding=1)
    x, w = torch.randn(geometry.x_size), torch.randn(geometry.w_size)
    for out_dtype in FLOATS:
        check_conv_forward(x, w, None, args, True, out_dtype)


@pytest.mark.parametrize("name", ("no images", "3x3"))
def test_conv_forward_of_zeros(name, backend):
    geometry, args = geometry_of(**FIXED[name])
    check_conv_forward(
        torch.zeros(geometry.x_size), torch.randn(geometry.w_size), None, args, True, torch.float32
    )


def test_conv_forward_wrong_arguments(backend):
    geometry, args = geometry_of(**FIXED["3x3"])
    x, w = torch.randn(geometry.x_size), torch.randn(geometry.w_size)
    args.update(allow_unsigned=True, out_dtype=torch.float32)
    with pytest.raises(TypeError, match="x has dtype"):
        ops.conv_forward(x.double(), w, None, **args)
    with pytest.raises(TypeError, match="w has dtype"):
        ops.conv_forward(x, w.int(), None, **args)
    with pytest.raises(TypeError, match="out_dtype"):
        ops.conv_forward(x, w, None, **{**args, "out_dtype": torch.int32})
