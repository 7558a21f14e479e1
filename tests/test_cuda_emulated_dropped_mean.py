"""The CUDA sums of 8-bit operands, run thread by thread on the CPU (see emulated.py)."""

import pytest
import torch

import emulated
import test_ops_dropped_mean as dropped

pytestmark = pytest.mark.skipif(bool(emulated.unavailable()), reason=emulated.unavailable())


@pytest.fixture
def kernels():
    with emulated.as_cpu_kernels():
        yield "emulated"


@pytest.mark.parametrize("schedule", [0, 5])
@pytest.mark.parametrize("case", range(1, 40, 3))
def test_byte_sums_are_exact(kernels, case, schedule):
    emulated.load().set_schedule(schedule)
    try:
        dropped.test_byte_sums_are_exact(case, kernels)
    finally:
        emulated.load().set_schedule(0)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_byte_sums_of_fixed_sizes(kernels, dtype):
    for size in ((5000, 24), (3000, 17), (20, 600), (3, 8), (1, 1)):
        launched = emulated.launches_of(
            lambda: dropped.test_byte_sums_of_fixed_sizes(size, dtype, kernels)  # noqa: B023
        )
        # blocks down where there are rows for them, across where there are columns
        for x, y, *_ in launched:
            assert (x > 1) == (size[0] > 2000) and (y > 1) == (size[1] > 256)
        assert len(launched) == 2
    dropped.test_byte_sums_of_fixed_rows_at_an_odd_address(kernels)


def test_byte_sums_refuse_what_they_cannot_add(kernels):
    dropped.test_byte_sums_refuse_what_they_cannot_add()


@pytest.mark.parametrize("case", range(0, 40, 2))
def test_window_sums_are_the_reference_s_bit_for_bit(kernels, case):
    dropped.test_window_sums_are_the_reference_s_bit_for_bit(case, kernels)


@pytest.mark.parametrize("name", dropped.WINDOWS)
def test_window_sums_of_fixed_cases(kernels, name):
    dropped.test_window_sums_of_fixed_cases(name, kernels)


def test_no_images(kernels):
    q_x = torch.zeros(0, 8, 5, 5, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    qparams = torch.tensor([0.5, 128.0])
    got = torch.ops.daq_mm.window_sums(q_x, qparams, [3, 3], [1, 1], [1] * 4, [1, 1])
    assert torch.equal(got, torch.zeros(8, 3, 3, dtype=torch.float64))


def test_window_sums_refuse_wrong_operands(kernels):
    q_x = torch.zeros(2, 8, 5, 5, dtype=torch.uint8)
    last = q_x.contiguous(memory_format=torch.channels_last)
    qparams = torch.tensor([0.5, 128.0])
    geometry = ([3, 3], [1, 1], [1] * 4, [1, 1])
    for error, words, operands in (
        (ValueError, "expected channels-last", (q_x, qparams)),
        (TypeError, "q_x has dtype", (last.char(), qparams)),
        (ValueError, "x_qparams has size", (last, qparams[:1])),
        (TypeError, "x_qparams has dtype", (last, qparams.double())),
    ):
        with pytest.raises(error, match=words):
            torch.ops.daq_mm.window_sums(*operands, *geometry)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_whole_gradient_s_mean_is_kept(kernels, groups):
    dropped.test_the_whole_gradient_s_mean_is_kept(torch.float32, groups, kernels)
