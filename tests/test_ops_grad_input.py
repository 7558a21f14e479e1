"""grad_input: the kernels against the reference, bit for bit."""

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
from devices import needs_kernels

pytestmark = [needs_kernels, pytest.mark.usefixtures("one_thread")]


def operands(case, folded=True):
    """Random 8-bit operands of a case in the op's order, and its keyword arguments."""
    geometry, args = geometry_of(**case)
    q_g = channels_last(torch.randint(-128, 128, geometry.out_size, dtype=torch.int8))
    q_w = torch.randint(-128, 128, geometry.w_size, dtype=torch.int8)
    step = torch.rand(geometry.x_size[1] if folded else 1) * 1e-3
    return [q_g, q_w, step, list(geometry.x_size)], args


def check(tensors, args, out_dtype=torch.float32):
    expected = reference.grad_input(*tensors, **args, out_dtype=out_dtype)
    leave_garbage(expected.numel())
    got = ops.grad_input(*tensors, **args, out_dtype=out_dtype)
    assert is_channels_last(got)
    assert_same_bits(got, expected)


@pytest.mark.parametrize("name", FIXED)
def test_fixed_geometries(name, backend):
    for folded in (True, False):
        check(*operands(FIXED[name], folded))


@pytest.mark.parametrize("block", range(6))
def test_random_geometries(block, backend):
    for seed in range(10 * block, 10 * block + 10):
        torch.manual_seed(seed)
        check(*operands(random_case(seed), seed % 2 == 0), (*FLOATS, torch.int32)[seed % 4])


@pytest.mark.parametrize("out_dtype", (*FLOATS, torch.int32))
@pytest.mark.parametrize("name", ("3x3 strided", "depthwise", "grouped, odd channels", "1x1"))
def test_output_dtypes(name, out_dtype, backend):
    check(*operands(FIXED[name]), out_dtype)


@pytest.mark.parametrize("name", ("1x1 odd channels", "3x3 strided", "depthwise"))
@pytest.mark.parametrize("g_value", (127, -128))
@pytest.mark.parametrize("w_value", (127, -128))
def test_largest_values(name, g_value, w_value, backend):
    tensors, args = operands(FIXED[name])
    tensors[0].fill_(g_value)
    tensors[1].fill_(w_value)
    check(tensors, args)


@pytest.mark.parametrize(
    "case",
    (
        dict(x_size=(2, 3, 1, 2), kernel=1, co=66_400),
        dict(x_size=(1, 18, 2, 2), kernel=2, co=17_003, padding=1),
        dict(x_size=(1, 2, 1, 1), kernel=1, co=140_001),
    ),
    ids=("1x1", "2x2", "beyond int32"),
)
def test_long_contractions_are_exact(case, backend):
    for g_value, w_value in ((127, 127), (-128, -128), (127, -128)):
        tensors, args = operands(case)
        tensors[0].fill_(g_value)
        tensors[1].fill_(w_value)
        for out_dtype in (*FLOATS, torch.int32):
            check(tensors, args, out_dtype)


@pytest.mark.parametrize("out_dtype", FLOATS)
def test_extreme_steps(out_dtype, backend):
    values = [0.0, 1e-45, 1e-39, 1e-38, 1e-30, 1.0, 1e30, float("inf"), float("nan")]
    for name in ("3x3", "1x1 strided"):  # the second has positions that no tap meets
        tensors, args = operands(FIXED[name])
        channels = tensors[2].numel()
        tensors[2] = torch.tensor(values).repeat(channels // len(values) + 1)[:channels]
        check(tensors, args, out_dtype)


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize(
    "case",
    (
        dict(x_size=(2, 64, 57, 45), kernel=1, co=16, stride=2),
        dict(x_size=(3, 8, 41, 40), kernel=1, co=5, stride=(3, 1), padding=1),
        dict(x_size=(2, 130, 9, 7), kernel=1, co=8, stride=2),  # too few pixels for the threads
        dict(x_size=(2, 8, 40, 42), kernel=(2, 3), co=8, stride=(3, 3)),
        dict(x_size=(1, 32, 9, 22, 23), kernel=1, co=8, stride=2),
    ),
    ids=("2", "3 and 1", "few", "many taps", "3d"),
)
def test_positions_that_no_tap_meets(case, threads, backend):
    torch.set_num_threads(threads)
    for out_dtype in (torch.float32, torch.bfloat16, torch.int32):
        check(*operands(case), out_dtype)
    tensors, args = operands(case)
    tensors[2][0] *= -1  # there zeros are negative
    check(tensors, args)


@pytest.mark.parametrize("co", (64, 256))
def test_whole_tiles(co, backend):
    check(*operands(dict(x_size=(2, co, 26, 25), kernel=1, co=40)), torch.bfloat16)
    check(*operands(dict(x_size=(1, co, 26, 25), kernel=3, co=24, padding=1)), torch.bfloat16)


@pytest.mark.parametrize("name", ("3x3 strided", "depthwise", "1x1 odd channels"))
def test_threads_do_not_matter(name, backend):
    tensors, args = operands(FIXED[name])
    results = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        results.append(ops.grad_input(*tensors, **args, out_dtype=torch.float32))
    for result in results[1:]:
        assert torch.equal(result, results[0])


@pytest.mark.parametrize("name", ["3x3", "1x1"])
def test_weights_in_either_order(backend, name):
    (q_g, q_w, *rest), args = operands(FIXED[name])
    got = ops.grad_input(q_g, channels_last(q_w), *rest, **args, out_dtype=torch.float32)
    expected = ops.grad_input(q_g, q_w, *rest, **args, out_dtype=torch.float32)
    assert torch.equal(got, expected)


def bad(index, change):
    def apply(tensors):
        tensors[index] = change(tensors[index])

    return apply


@pytest.mark.parametrize(
    "change, error, message",
    (
        (bad(0, lambda t: t.to(torch.uint8)), TypeError, "q_g has dtype"),
        (bad(0, lambda t: t.contiguous()), ValueError, "q_g .* expected channels-last"),
        (bad(0, lambda t: t[:, :, 1:]), ValueError, "q_g has size"),
        (bad(1, lambda t: t.float()), TypeError, "q_w has dtype"),
        (bad(1, lambda t: t.mT), ValueError, "q_w .* expected contiguous or channels-last"),
        (bad(2, lambda t: t.double()), TypeError, "step has dtype"),
        (bad(2, lambda t: t[1:]), ValueError, "step has size"),
        (bad(3, lambda t: [2, 63, 14, 14]), ValueError, "x has 63 channels"),
        (bad(3, lambda t: [2, 64, 14]), ValueError, "x has 3 axes"),
    ),
)
def test_wrong_arguments_are_named(backend, change, error, message):
    tensors, args = operands(FIXED["3x3"])
    change(tensors)
    with pytest.raises(error, match=message):
        ops.grad_input(*tensors, **args, out_dtype=torch.float32)


def test_wrong_output_dtype(backend):
    tensors, args = operands(FIXED["3x3"])
    with pytest.raises(TypeError, match="out_dtype"):
        ops.grad_input(*tensors, **args, out_dtype=torch.float64)
