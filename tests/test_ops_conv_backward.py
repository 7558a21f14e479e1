"""conv_backward, the fused backward pass: the kernels against the reference."""

import itertools
import random

import pytest
import torch

from daq_mm import ops
from daq_mm.ops import reference
from daq_mm.ops.layout import channels_last_format, is_channels_last
from devices import host_values_only, needs_kernels
from tolerances import FLOAT32_ROUNDINGS

pytestmark = needs_kernels

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def arrange(x: torch.Tensor, layout: str) -> torch.Tensor:
    if layout == "channels_last":
        return x.contiguous(memory_format=channels_last_format(x.dim() - 2))
    if layout == "strided":
        return torch.stack([x, x + 1], -1)[..., 0]
    return x.contiguous()


def inputs(
    x_size=(2, 24, 9, 8),
    w_size=(20, 24, 3, 3),
    stride=1,
    padding=1,
    dilation=1,
    groups=1,
    g_dtype=torch.float32,
    w_dtype=torch.float32,
    g_layout="channels_last",
    w_layout="channels_last",
    signed=True,
    x_dtype=torch.float32,
    folded=True,
    channel_grad_weight=True,
    output_mask=(True, True, True),
    seed=None,
):
    """Arguments of conv_backward, by name."""
    rank = len(x_size) - 2

    def spread(value, length):
        return [value] * length if isinstance(value, int) else list(value)

    geometry = dict(
        stride=spread(stride, rank),
        padding=spread(padding, 2 * rank),
        dilation=spread(dilation, rank),
        groups=groups,
    )
    out_size = ops.ConvGeometry.make(x_size, w_size, **geometry).out_size
    x = torch.randn(x_size)
    q_x, x_qparams = reference.quantize_x(x if signed else x.abs(), True)
    g = arrange((torch.randn(out_size) * 1e-2).to(g_dtype), g_layout)
    threshold = reference.absolute_maximum(g, (0, *range(2, g.dim()))) * 0.8
    return dict(
        g=g,
        q_x=q_x,
        x_qparams=x_qparams,
        w=arrange((torch.randn(w_size) * 0.1).to(w_dtype), w_layout),
        threshold=torch.cat([threshold, threshold.amax().view(1)]),
        seed=seed,
        **geometry,
        folded=folded,
        channel_grad_weight=channel_grad_weight,
        output_mask=list(output_mask),
        x_dtype=x_dtype,
    )


def check(arguments):
    got = ops.conv_backward(**arguments)
    expected = reference.conv_backward(**arguments)
    for name, a, b in zip(("dx", "dw"), got, expected):
        assert a.dtype == b.dtype, name
        assert is_channels_last(a) == is_channels_last(b), name
        torch.testing.assert_close(
            a, b, rtol=0, atol=0, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}"
        )
    a, b = got[2], expected[2]
    assert a.dtype == b.dtype
    # The reference adds in float32: one rounding a value, of sums below the sum of magnitudes.
    g = arguments["g"].float()
    most = g.abs().sum() / g.shape[1] * 4 if g.numel() else torch.zeros(())
    torch.testing.assert_close(a, b, rtol=0, atol=float(most) * FLOAT32_ROUNDINGS + 1e-30)


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("channel_grad_weight", [True, False])
@pytest.mark.parametrize("seed", [None, torch.tensor([77])])
def test_modes(backend, folded, channel_grad_weight, seed):
    for signed in (True, False):
        check(
            inputs(folded=folded, channel_grad_weight=channel_grad_weight, seed=seed, signed=signed)
        )


@pytest.mark.parametrize("output_mask", list(itertools.product([True, False], repeat=3)))
def test_output_mask(backend, output_mask):
    arguments = inputs(output_mask=output_mask)
    check(arguments)
    for wanted, result in zip(output_mask, ops.conv_backward(**arguments)):
        assert wanted == (result.numel() > 0)


@pytest.mark.parametrize("g_layout", ["channels_last", "contiguous", "strided"])
@pytest.mark.parametrize("w_layout", ["channels_last", "contiguous", "strided"])
def test_memory_formats(backend, g_layout, w_layout):
    check(inputs(g_layout=g_layout, w_layout=w_layout))


@pytest.mark.parametrize("g_dtype", FLOATS)
@pytest.mark.parametrize("w_dtype", FLOATS)
@pytest.mark.parametrize("x_dtype", FLOATS)
def test_dtypes(backend, g_dtype, w_dtype, x_dtype):
    check(inputs(g_dtype=g_dtype, w_dtype=w_dtype, x_dtype=x_dtype))


GEOMETRIES = {
    "1x1": dict(w_size=(20, 24, 1, 1), padding=0),
    "strided": dict(stride=2),
    "dilated": dict(dilation=2, padding=2),
    "asymmetric": dict(padding=(0, 1, 2, 0)),
    "grouped": dict(w_size=(20, 6, 3, 3), groups=4),
    "depthwise": dict(w_size=(24, 1, 3, 3), groups=24),
    "stem": dict(x_size=(2, 3, 19, 18), w_size=(16, 3, 7, 7), stride=2, padding=3),
    "3d": dict(x_size=(2, 12, 4, 6, 5), w_size=(10, 12, 3, 3, 3)),
    "empty batch": dict(x_size=(0, 24, 9, 8)),
}


@pytest.mark.parametrize("w_layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometries(backend, name, w_layout):
    for folded in (True, False):
        check(inputs(**GEOMETRIES[name], folded=folded, w_layout=w_layout))


@pytest.mark.parametrize("seed", range(10))
def test_random_geometries(backend, seed):
    rng = random.Random(seed)
    rank = rng.choice([2, 3])
    groups = rng.choice([1, 1, 2, 5])
    ci, co = groups * rng.choice([1, 3, 20]), groups * rng.choice([1, 4, 17])
    kernel = [rng.randint(1, 3) for _ in range(rank)]
    check(
        inputs(
            x_size=(rng.randint(1, 3), ci, *[rng.randint(3, 7) for _ in range(rank)]),
            w_size=(co, ci // groups, *kernel),
            stride=[rng.randint(1, 2) for _ in range(rank)],
            padding=[rng.randint(0, 2) for _ in range(2 * rank)],
            groups=groups,
            folded=rng.random() < 0.5,
            channel_grad_weight=rng.random() < 0.5,
            g_dtype=rng.choice(FLOATS),
            g_layout=rng.choice(["channels_last", "contiguous"]),
            seed=rng.choice([None, torch.tensor([9])]),
        )
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("folded", [True, False])
def test_non_finite_thresholds_reach_the_results(backend, folded, value):
    arguments = inputs(folded=folded)
    arguments["threshold"][2] = value
    arguments["threshold"][-1] = value
    check(arguments)
    dx, dw, _ = ops.conv_backward(**arguments)
    assert not dx.isfinite().any() and not dw[2].isfinite().any()
    assert dw[3].isfinite().all()


def test_zero_gradient(backend):
    arguments = inputs()
    arguments["g"].zero_()
    arguments["threshold"].zero_()
    check(arguments)
    for result in ops.conv_backward(**arguments):
        assert (result == 0).all()


def test_threads_do_not_change_the_result(backend):
    before = torch.get_num_threads()
    arguments = inputs(x_size=(4, 40, 20, 20), w_size=(48, 40, 3, 3))
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(ops.conv_backward(**arguments))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    "error, words, changes",
    [
        (TypeError, "g has dtype", dict(g=torch.zeros(2, 20, 9, 8).double())),
        (ValueError, "g has size", dict(g=torch.zeros(2, 20, 9, 9))),
        (TypeError, "q_x has dtype", dict(q_x=torch.zeros(2, 24, 9, 8))),
        (TypeError, "x_qparams has dtype", dict(x_qparams=torch.zeros(2).double())),
        (ValueError, "x_qparams has size", dict(x_qparams=torch.zeros(1))),
        pytest.param(
            ValueError,
            "zero point",
            dict(x_qparams=torch.tensor([1.0, 0.5])),
            marks=host_values_only,
        ),
        (TypeError, "w has dtype", dict(w=torch.zeros(20, 24, 3, 3).int())),
        (TypeError, "threshold has dtype", dict(threshold=torch.zeros(21).double())),
        (ValueError, "threshold has size", dict(threshold=torch.zeros(20))),
        (TypeError, "seed has dtype", dict(seed=torch.zeros(1))),
        (TypeError, "x_dtype is", dict(x_dtype=torch.float64)),
        (ValueError, "channels", dict(groups=2)),
    ],
)
def test_wrong_arguments(backend, error, words, changes):
    with pytest.raises(error, match=words):
        ops.conv_backward(**{**inputs(), **changes})
