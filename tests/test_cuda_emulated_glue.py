"""The CUDA glue, run thread by thread on the CPU (see emulated.py): the CPU kernels' own checks.

All of test_ops_glue.py passes so with `pytest --device emulated`; here is what CI has time for.
"""

import pytest
import torch

import emulated
import test_ops_glue as glue
from conv_cases import FLOATS
from daq_mm import ops
from daq_mm.ops import reference_glue

pytestmark = pytest.mark.skipif(bool(emulated.unavailable()), reason=emulated.unavailable())

#: Each size with one of the float types.
SIZED = [(size, FLOATS[i % 3]) for i, size in enumerate(glue.SIZES)]


@pytest.fixture
def kernels():
    with emulated.as_cpu_kernels():
        yield "emulated"
        emulated.load().set_schedule(0)
        emulated.load().set_multiprocessors(4)


@pytest.mark.parametrize("size, dtype", SIZED)
def test_sizes(kernels, size, dtype):
    glue.test_stats_of(kernels, size, dtype)
    for act in (glue.NONE, glue.RELU, glue.RELU6):
        glue.test_forward(kernels, size, act, dtype)
    for kind in ("codes", "float", "none"):
        glue.test_reduce(kernels, size, kind, dtype)
        glue.test_dy(kernels, size, kind, dtype)
        glue.test_thresholds_of_dy(kernels, size, kind, dtype)


@pytest.mark.parametrize("residual", [False, True])
def test_forward_writes_what_is_wanted(kernels, residual):
    glue.test_forward_writes_what_is_wanted(kernels, residual)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38, 1e-40])
def test_special_values(kernels, value, dtype):
    glue.test_forward_of_special_values(kernels, value, glue.RELU6, dtype)
    glue.test_backward_of_special_values(kernels, value, dtype)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38, 1e-40])
def test_thresholds_of_a_dy_that_is_not_finite_leave_the_state(kernels, value):
    glue.test_thresholds_of_a_dy_that_is_not_finite_leave_the_state(kernels, value)


@pytest.mark.parametrize("kind", ["weight", "mean"])
def test_a_norm_that_is_not_finite(kernels, kind):
    glue.test_forward_of_a_norm_that_is_not_finite_gives_a_step_that_is_not(kernels, kind)


@pytest.mark.parametrize(
    "check",
    [
        glue.test_batch_norm_statistics_never_hide_what_is_not_finite,
        glue.test_stats_of_nothing,
        glue.test_masks_say_what_autograd_passes,
        glue.test_zero_gradient,
        glue.test_empty_batch,
    ],
)
def test_the_rest(kernels, check):
    check(kernels)


@pytest.mark.parametrize("running", [torch.float32, torch.bfloat16, None])
def test_batch_norm_statistics(kernels, running):
    glue.test_batch_norm_statistics(kernels, running)


@pytest.mark.parametrize("dtype", [None, *FLOATS])
@pytest.mark.parametrize("channels", [1, 37, 600])
def test_coefficients(kernels, channels, dtype):
    """Bit for bit, weights of any float type and stride; what is not finite spreads alike."""
    weight = None if dtype is None else torch.randn(2 * channels).to(dtype)[::2]
    vectors = [torch.randn(2, channels, dtype=torch.float64), torch.randn(channels)]
    sums, mean, invstd = *vectors, torch.rand(channels)
    for value in (None, 0.0, 1e-40, 3e38, float("inf"), float("nan")):
        for vector in (sums[0], sums[1], mean, invstd):
            if value is not None:
                vector[channels // 2] = value
            args = (sums, 120.0, weight, mean, invstd)
            got = ops.norm_backward_coefficients(*args)
            glue.assert_same_bits(got, reference_glue.norm_backward_coefficients(*args))


@pytest.mark.parametrize("allow_unsigned", [True, False])
@pytest.mark.parametrize("dtype", FLOATS)
def test_quantize_on_a_known_grid(kernels, dtype, allow_unsigned):
    glue.test_quantize_on_a_known_grid(kernels, dtype, allow_unsigned)


@pytest.mark.parametrize("seed", range(10))
def test_random_units(kernels, seed):
    glue.test_random_units(kernels, seed)


@pytest.mark.parametrize("name", ["3x3", "stem", "1x1 odd channels", "depthwise", "no images"])
def test_conv_forward_stats(kernels, name):
    glue.test_conv_forward_stats(kernels, name, torch.bfloat16)


def test_misaligned_memory(kernels):
    """Tensors that begin between two 16-byte boundaries are read value by value."""
    y = torch.randn(2 * 20 * 64 + 1)[1:].view(2, 4, 5, 64).permute(0, 3, 1, 2)
    settings = glue.settings_of(glue.RELU)
    glue.check_forward(y, ops.stats_of(y), glue.norm(64), None, **settings)
    args = (y, None, y, None, torch.randn(3, 64))
    glue.check_dy(args, torch.rand(64))
    states = (glue.threshold_state(64) for _ in range(2))
    glue.check_thresholds(args, *states, cap=False, interval=1, **glue.RULES)


def test_thresholds_by_several_blocks(kernels):
    """Blocks down and across, each with its part of the moments."""
    g, _, mask, y, grid = glue.gradients((2, 264, 40, 30), torch.bfloat16, "codes")
    args = (g, mask, y, grid, torch.randn(3, 264))
    states = [glue.threshold_state(264) for _ in range(2)]
    launched = emulated.launches_of(
        lambda: glue.check_thresholds(args, *states, cap=False, interval=1, **glue.RULES)
    )
    maxima, moments, combine, tails, move = (launch[:3] for launch in launched)
    assert moments == tails and moments[0] > 1 and moments[1] > 1 and move == (1, 1, 1)


def test_order_of_threads_and_processors_do_not_change_the_result(kernels):
    size = (2, 70, 9, 10)
    g, g2, mask, y, grid = glue.gradients(size, torch.bfloat16, "codes")
    statistics = torch.randn(70), torch.rand(70)
    results = []
    for schedule in range(3):
        emulated.load().set_schedule(schedule)
        emulated.load().set_multiprocessors(1 + 7 * schedule)
        args = (g, mask, y, grid, torch.ones(3, 70))
        state = glue.threshold_state(70)
        results.append(
            [
                ops.stats_of(g),
                *ops.norm_act_forward(
                    g, ops.stats_of(g), *glue.norm_of_ones, g2, **glue.settings_of(glue.RELU)
                ),
                *ops.norm_act_reduce(g, g2, mask, y, grid, *statistics, want_gz=True),
                ops.norm_backward_maxima(*args),
                ops.norm_backward_quantize(*args, threshold=torch.ones(70), seed=None),
                ops.norm_backward_thresholds(*args, **state, cap=True, interval=1, **glue.RULES),
                *state.values(),
            ]
        )
    glue.same_results(results[1], results[0])
    glue.same_results(results[2], results[0])
