"""The fused glue ops: the CPU kernels against the reference, bit for bit but for long sums."""

import random

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
from daq_mm.ops import reference_glue
from daq_mm.ops.glue import NONE, RELU, RELU6
from tolerances import FLOAT32_CHUNK_SUM, product_sum

SIZES = (
    (2, 64, 7, 9),
    (3, 37, 5, 6),
    (1, 3, 8, 8),
    (2, 1, 4, 5),
    (2, 8, 1, 1),
    (1, 130, 3, 4),
    (2, 24, 3, 4, 5),
    (1, 1, 1, 1),
    (2, 16, 130, 9),
)
WANTED = ("want_out", "want_q", "want_codes")


def floats(size, dtype: torch.dtype, scale: float = 3.0) -> torch.Tensor:
    """Random values, channels of several magnitudes, one of them constant, one of them zero."""
    x = (
        torch.randn(size)
        * scale
        * torch.logspace(-2, 0, size[1]).view(1, -1, *[1] * (len(size) - 2))
    )
    x[:, 1::5] = 0.75
    x[:, 2::7] = 0
    return channels_last(x.to(dtype))


def norm(channels: int):
    """(weight, bias, mean, invstd); some weights are negative, one is zero."""
    weight = torch.randn(channels)
    weight[::6] = 0
    return weight, torch.randn(channels), torch.randn(channels), torch.rand(channels) * 2


def close_sums(
    got: torch.Tensor,
    expected: torch.Tensor,
    magnitudes: torch.Tensor,
    count: int,
    bound: float = FLOAT32_CHUNK_SUM,
) -> None:
    """Equal but for float32 sums of a few values; the same values are not finite.

    `count` values are summed, each of whose products may lose half the smallest float32.
    """
    assert got.dtype == expected.dtype == torch.float64
    assert torch.equal(got.isnan(), expected.isnan())
    finite = expected.isfinite()
    assert torch.equal(got[~finite].nan_to_num(), expected[~finite].nan_to_num())
    error = (got - expected).abs()[finite]
    assert (error <= bound * magnitudes[finite] + count * 2.0**-150).all()


def check_stats(got: torch.Tensor, y: torch.Tensor, bound: float = FLOAT32_CHUNK_SUM) -> None:
    expected = reference_glue.stats_of(y)
    over = (0, *range(2, y.dim()))
    magnitudes = torch.stack([y.double().abs().sum(over), y.double().square().sum(over)])
    close_sums(got[:2], expected[:2], magnitudes, y.numel(), bound)
    torch.testing.assert_close(got[2:], expected[2:], rtol=0, atol=0, equal_nan=True)


def same_results(got, expected) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected):
        assert a.shape == b.shape
        assert_same_bits(a, b)


# ---- statistics ----


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES)
def test_stats_of(backend, size, dtype):
    y = floats(size, dtype)
    check_stats(ops.stats_of(y), y)
    check_stats(ops.stats_of(y.contiguous()), y)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_stats_of_non_finite_values(backend, value):
    y = floats((2, 37, 5, 6), torch.float32)
    y[1, 4, 2, 3] = value
    check_stats(ops.stats_of(y), y)
    y[0, 4, 1, 1] = float("inf")
    check_stats(ops.stats_of(y), y)


def test_stats_of_nothing(backend):
    assert torch.equal(ops.stats_of(torch.zeros(0, 5, 3, 3)), torch.zeros(4, 5).double())


@pytest.mark.parametrize("running", [torch.float32, torch.bfloat16, None])
def test_batch_norm_statistics(backend, running):
    y = floats((4, 37, 5, 6), torch.float32)
    stats = ops.stats_of(y)
    averages = [None, None]
    if running is not None:
        averages = [torch.randn(37).to(running), torch.rand(37).to(running)]
    theirs = [None if a is None else a.clone() for a in averages]
    settings = dict(momentum=0.1, eps=1e-5)
    got = ops.batch_norm_statistics(stats, 120.0, *averages, **settings)
    same_results(got, reference_glue.batch_norm_statistics(stats, 120.0, *theirs, 0.1, 1e-5))
    if running is None:
        return
    same_results(averages, theirs)
    if running == torch.float32:
        layer = torch.nn.BatchNorm2d(37)
        layer(y)
        ours = [torch.zeros(37), torch.ones(37)]
        mean, invstd = ops.batch_norm_statistics(stats, 120.0, *ours, **settings)
        torch.testing.assert_close(ours[0], layer.running_mean)
        torch.testing.assert_close(ours[1], layer.running_var)
        torch.testing.assert_close(mean, y.mean((0, 2, 3)))
        var = y.var((0, 2, 3), correction=0)
        torch.testing.assert_close(invstd, (var + 1e-5).rsqrt(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("values", [2, 120, 2**24 + 1])
def test_a_count_on_the_device(backend, values):
    """Added up over processes; the same bits as of the number."""
    sums, weight = torch.randn(4, 37, dtype=torch.float64) * values, torch.randn(37)
    sums[1] = sums[0].square() / values + values * torch.rand(37)
    vectors = torch.randn(37), torch.rand(37)
    results = []
    for count in (float(values), torch.tensor(float(values), dtype=torch.float64)):
        averages = [torch.zeros(37), torch.ones(37)]
        found = ops.batch_norm_statistics(sums, count, *averages, momentum=0.1, eps=1e-5)
        own = ops.norm_backward_coefficients(sums[:2], count, weight, *vectors)
        results.append([*found, *averages, own])
    assert all(result.isfinite().all() for result in results[0])
    same_results(results[1], results[0])


def test_batch_norm_statistics_never_hide_what_is_not_finite(backend):
    stats = torch.tensor([[1.0, 1, 1], [float("inf"), float("nan"), 2]]).double()
    stats = torch.cat([stats, stats])
    _, invstd = ops.batch_norm_statistics(stats, 4.0, None, None, momentum=0.1, eps=1e-5)
    assert invstd[:2].isnan().all() and invstd[2].isfinite()


# ---- forward ----


def check_forward(y, stats, affine, residual, *, finite_norm=True, **settings) -> None:
    leave_garbage(y.numel())
    got = ops.norm_act_forward(y, stats, *affine, residual, **settings)
    expected = reference_glue.norm_act_forward(y, stats, *affine, residual, *settings.values())
    if not finite_norm and residual is None:
        # qparams then need not be those of out's extremes: the step is not finite.
        got, expected = [*got[:2], *got[3:]], [*expected[:2], *expected[3:]]
        same_results(got, expected)
        return
    same_results(got, expected)
    for t, wanted in zip((got[0], got[1], got[3]), WANTED):
        assert is_channels_last(t) if settings[wanted] else t.shape == (0,)


def settings_of(act: int, **changes) -> dict:
    wanted = dict(act=act, want_out=True, want_q=True, allow_unsigned=True, want_codes=True)
    return {**wanted, **changes}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("act", [NONE, RELU, RELU6])
@pytest.mark.parametrize("size", SIZES)
def test_forward(backend, size, act, dtype):
    y = floats(size, dtype)
    stats = ops.stats_of(y)
    weight, bias, mean, invstd = norm(size[1])
    for affine in (
        (weight, bias, mean, invstd),
        (None, None, mean, invstd),
        (weight.to(dtype), None, mean, invstd),
        (None,) * 4,
    ):
        for residual in (None, floats(size, dtype)):
            check_forward(y, stats, affine, residual, **settings_of(act))
    check_forward(y, stats, affine, None, **settings_of(act, allow_unsigned=False))


@pytest.mark.parametrize("residual", [False, True])
def test_forward_writes_what_is_wanted(backend, residual):
    y = floats((2, 37, 5, 6), torch.bfloat16)
    stats = ops.stats_of(y)
    other = floats((2, 37, 5, 6), torch.bfloat16) if residual else None
    for choice in range(8):
        wanted = {name: bool(choice >> i & 1) for i, name in enumerate(WANTED)}
        settings = settings_of(RELU, **wanted)
        check_forward(y, stats, norm(37), other, **settings)
        if residual and not wanted["want_codes"]:
            check_forward(y, stats[:, :0], norm(37), other, **settings)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("act", [NONE, RELU, RELU6])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38, 1e-40])
def test_forward_of_special_values(backend, value, act, dtype):
    for where in ("y", "residual", "mean"):
        y, residual = floats((2, 37, 5, 6), dtype), floats((2, 37, 5, 6), dtype)
        affine = list(norm(37))
        if where == "y":
            y[1, 4, 2, 3] = value
        elif where == "residual":
            residual[1, 4, 2, 3] = value
        else:
            affine[2][4] = value
        for other in (None, residual):
            finite_norm = where != "mean" or abs(value) < 1
            settings = settings_of(act, want_q=finite_norm)
            check_forward(y, ops.stats_of(y), affine, other, finite_norm=finite_norm, **settings)


@pytest.mark.parametrize("kind", ["weight", "mean"])
def test_forward_of_a_norm_that_is_not_finite_gives_a_step_that_is_not(backend, kind):
    y = floats((2, 37, 5, 6), torch.float32)
    affine = dict(zip(("weight", "bias", "mean", "invstd"), norm(37)))
    affine[kind][4] = float("inf")
    results = ops.norm_act_forward(y, ops.stats_of(y), *affine.values(), None, **settings_of(NONE))
    assert not results[2][0].isfinite()


def test_masks_say_what_autograd_passes(backend):
    y = torch.tensor([-1.0, -0.0, 0.0, 1e-45, 3.0, 6.0, 7.0, float("nan")])
    y = channels_last(y.view(1, 8, 1, 1).repeat(2, 1, 3, 3))
    stats = ops.stats_of(y)
    for act, function in ((RELU, torch.relu), (RELU6, torch.nn.functional.relu6)):
        x = y.clone().requires_grad_()
        out = function(x)
        out.sum().backward()
        got = ops.norm_act_forward(y, stats, *[None] * 5, **settings_of(act, want_q=False))
        passes = reference_glue.unpack_mask(got[5], 8)
        assert torch.equal(passes[:, :-1], x.grad[:, :-1] != 0)
        assert passes[:, -1].all()  # NaN, which PyTorch's ReLU passes and its ReLU6 does not
        torch.testing.assert_close(got[0], out.detach(), equal_nan=True, rtol=0, atol=0)


def test_codes_are_near_y(backend):
    y = floats((2, 37, 5, 6), torch.float32)
    stats = ops.stats_of(y)
    *_, codes, grid, _ = ops.norm_act_forward(y, stats, *[None] * 5, **settings_of(NONE))
    step = grid[1].view(1, -1, 1, 1)
    y_hat = grid[0].view(1, -1, 1, 1) + codes * step
    assert ((y - y_hat).abs() <= step * 0.501 + 1e-7).all()
    assert (codes.amax((0, 2, 3))[stats[2] < stats[3]] == 255).all()


# ---- backward ----


def gradients(size, dtype: torch.dtype, kind: str):
    """(g, g2, mask, y, grid); y as `kind`: 'codes', 'float' or 'none'."""
    g, g2 = floats(size, dtype), floats(size, dtype)
    y, grid = floats(size, dtype), None
    mask = reference_glue.pack_mask(torch.rand(size) > 0.4)
    if kind == "codes":
        y = channels_last(torch.randint(0, 256, size, dtype=torch.uint8))
        grid = torch.stack([torch.randn(size[1]), torch.rand(size[1]) / 50])
    return g, g2, mask, None if kind == "none" else y, grid


def check_reduce(g, g2, mask, y, grid, mean, invstd, want_gz: bool = True) -> None:
    leave_garbage(g.numel())
    args = (g, g2, mask, y, grid, mean, invstd)
    gz, sums = ops.norm_act_reduce(*args, want_gz=want_gz)
    expected_gz, expected = reference_glue.norm_act_reduce(*args, want_gz)
    same_results([gz], [expected_gz])
    full, _ = reference_glue.norm_act_reduce(*args, True)
    over, shape = (0, *range(2, g.dim())), (1, -1, *[1] * (g.dim() - 2))
    magnitudes = torch.zeros_like(sums)
    magnitudes[0] = full.double().abs().sum(over)
    if mean is not None:
        y_hat = reference_glue._y_hat(y, grid)
        x_hat = (y_hat - mean.view(shape)) * invstd.view(shape)
        magnitudes[1] = (full.double() * x_hat).abs().sum(over)
    close_sums(sums, expected, magnitudes, g.numel())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["codes", "float", "none"])
@pytest.mark.parametrize("size", SIZES)
def test_reduce(backend, size, kind, dtype):
    g, g2, mask, y, grid = gradients(size, dtype, kind)
    statistics = [None, None] if kind == "none" else [torch.randn(size[1]), torch.rand(size[1])]
    for second in (None, g2):
        for bits in (None, mask):
            check_reduce(g, second, bits, y, grid, *statistics, want_gz=True)
    check_reduce(g, g2, mask, y, grid, *statistics, want_gz=False)
    check_reduce(g, g2, mask, y, grid, None, None)


THRESHOLDS = (None, torch.tensor([12345]), torch.tensor([-7]))


def check_dy(args, threshold) -> None:
    leave_garbage(args[0].numel())
    same_results([ops.norm_backward_apply(*args)], [reference_glue.norm_backward_apply(*args)])
    same_results([ops.norm_backward_maxima(*args)], [reference_glue.norm_backward_maxima(*args)])
    for s in (threshold, threshold[:1]):
        for seed in THRESHOLDS:
            got = ops.norm_backward_quantize(*args, threshold=s, seed=seed)
            same_results([got], [reference_glue.norm_backward_quantize(*args, s, seed)])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["codes", "float", "none"])
@pytest.mark.parametrize("size", SIZES)
def test_dy(backend, size, kind, dtype):
    g, _, mask, y, grid = gradients(size, dtype, kind)
    for bits in (None, mask):
        check_dy((g, bits, y, grid, torch.randn(3, size[1])), torch.rand(size[1]) * 3)


RULES = dict(mcs=True, decay=0.2, gain=0.8, gaussian_above=0.3)


def check_thresholds(args, *states, **settings) -> None:
    """One step of the op and of the reference: as `update_thresholds` of the gradient."""
    ours, theirs = states
    leave_garbage(args[0].numel())
    got = ops.norm_backward_thresholds(*args, **ours, **settings)
    order = ("mcs", "decay", "gain", "cap", "gaussian_above", "interval")
    expected = reference_glue.norm_backward_thresholds(
        *args, *theirs.values(), *(settings[rule] for rule in order)
    )
    same_results([got, ours["threshold"]], [expected, theirs["threshold"]])
    assert torch.equal(ours["iteration"], theirs["iteration"])
    torch.testing.assert_close(
        ours["tail_probability"], theirs["tail_probability"], rtol=0, atol=1e-6
    )


def threshold_state(channels: int) -> dict[str, torch.Tensor]:
    return dict(
        threshold=torch.zeros(channels + 1),
        tail_probability=torch.ones(channels + 1),
        iteration=torch.zeros(1, dtype=torch.int64),
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", ["codes", "float", "none"])
@pytest.mark.parametrize("size", SIZES)
def test_thresholds_of_dy(backend, size, kind, dtype):
    """The discriminator is due at the first and the third gradient, whose laws differ."""
    g, _, mask, y, grid = gradients(size, dtype, kind)
    ours, theirs = (threshold_state(size[1]) for _ in range(2))
    for step in range(4):
        coefficients = torch.randn(3, size[1])
        g = g * 0.5 if step % 2 else (g.float() ** 3).to(dtype)
        args = (g, mask if step > 1 else None, y, grid, coefficients)
        before = ours["tail_probability"].clone()
        check_thresholds(args, ours, theirs, cap=step == 3, interval=2, **RULES)
        assert step % 2 == 0 or torch.equal(before, ours["tail_probability"])
    check_thresholds(args, ours, theirs, cap=False, interval=1, **{**RULES, "mcs": False})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38, 1e-40])
def test_thresholds_of_a_dy_that_is_not_finite_leave_the_state(backend, value):
    g, _, _, y, grid = gradients((2, 37, 5, 6), torch.float32, "codes")
    ours, theirs = (threshold_state(37) for _ in range(2))
    for step in range(3):
        changed = g.clone()
        if step == 1:
            changed[1, 4, 2, 3] = value
        args = (changed, None, y, grid, torch.ones(3, 37))
        check_thresholds(args, ours, theirs, cap=False, interval=1, **RULES)
    assert ours["threshold"].isfinite().all() and ours["iteration"].item() == 3


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e-40, 3e38, 0.0])
def test_backward_of_special_values(backend, value, dtype):
    for where in ("g", "y", "grid", "coefficients", "threshold"):
        g, g2, mask, y, grid = gradients((2, 37, 5, 6), dtype, "float" if where == "y" else "codes")
        coefficients, threshold = torch.randn(3, 37), torch.rand(37)
        if where in ("g", "y"):
            {"g": g, "y": y}[where][1, 4, 2, 3] = value
        elif where == "grid":
            grid[:, 4] = value
        elif where == "coefficients":
            coefficients[:, 4] = value
        else:
            threshold[[0, 4]] = value
        check_dy((g, None, y, grid, coefficients), threshold)
        check_dy((g, mask, y, grid, coefficients), threshold)
        if value == value and abs(value) < 1e38:  # products that overflow are not compared
            check_reduce(g, g2, mask, y, grid, torch.randn(37), torch.rand(37))


def test_a_masked_gradient_that_is_not_finite_is_gone_and_another_is_not(backend):
    g = channels_last(torch.full((1, 16, 2, 2), float("nan")))
    passes = torch.zeros(1, 16, 2, 2, dtype=torch.bool)
    passes[0, 3] = True
    gz, sums = ops.norm_act_reduce(
        g, None, reference_glue.pack_mask(passes), *[None] * 4, want_gz=True
    )
    assert torch.equal(gz.isnan(), passes) and torch.equal(sums[0].isnan(), passes[0, :, 0, 0])
    assert (sums[1] == 0).all()


def test_zero_gradient(backend):
    g, _, mask, y, grid = gradients((2, 37, 5, 6), torch.bfloat16, "codes")
    g = torch.zeros_like(g)
    check_reduce(g, None, mask, y, grid, torch.randn(37), torch.rand(37))
    args = (g, mask, y, grid, torch.zeros(3, 37))
    check_dy(args, torch.zeros(37))
    assert (ops.norm_backward_maxima(*args) == 0).all()


@pytest.mark.parametrize("mcs", [True, False])
def test_thresholds_from_maxima(backend, mcs):
    settings = dict(mcs=mcs, decay=0.2, gain=0.8, cap=True, gaussian_above=0.3)
    ours = [torch.zeros(25), torch.rand(25), torch.ones(1, dtype=torch.int64)]
    theirs, reference = ([t.clone() for t in ours] for _ in range(2))
    for step in range(4):
        g = floats((2, 24, 5, 6), torch.float32, scale=1 / (1 + step))
        if step == 2:
            g[0, 5, 1, 1] = float("nan")
        maximum = torch.cat([g.abs().amax((0, 2, 3)), g.abs().amax().view(1)])
        got = ops.thresholds_from_maxima(maximum, *ours, **settings)
        same_results([got], [ops.update_thresholds(g, *theirs, **settings, interval=1000)])
        same_results(
            [got],
            [reference_glue.thresholds_from_maxima(maximum, *reference, *settings.values())],
        )
        same_results(ours, theirs)
        same_results(ours, reference)


# ---- the convolution ----


def check_convolution(
    backend: str, case: dict, dtype: torch.dtype, bias: bool = True, signed: bool = True
) -> None:
    geometry, args = geometry_of(**case)
    x = torch.randn(geometry.x_size) if signed else torch.rand(geometry.x_size)
    w = torch.randn(geometry.w_size) * 0.1
    b = torch.randn(geometry.w_size[0]) if bias else None
    q_x, qparams = ops.quantize_x(x, allow_unsigned=True)
    leave_garbage(torch.Size(geometry.out_size).numel() * 4)
    y, stats = ops.conv_forward_stats(q_x, qparams, w, b, **args, out_dtype=dtype, stats=True)
    q_w, w_step = ops.quantize_w(w)
    assert_same_bits(y, ops.forward(q_x, qparams, q_w, w_step, b, **args, out_dtype=dtype))
    assert is_channels_last(y)
    check_stats(stats, y, product_sum(backend))
    plain, nothing = ops.conv_forward_stats(
        q_x, qparams, w, b, **args, out_dtype=dtype, stats=False
    )
    assert_same_bits(plain, y)
    assert nothing.shape == (0,) and nothing.dtype == torch.float64


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", FIXED)
def test_conv_forward_stats(backend, name, dtype):
    check_convolution(backend, FIXED[name], dtype)
    check_convolution(backend, FIXED[name], dtype, bias=False, signed=False)


@pytest.mark.parametrize("seed", range(24))
def test_conv_forward_stats_of_random_convolutions(backend, seed):
    rng = random.Random(seed)
    check_convolution(
        backend, random_case(seed), rng.choice(FLOATS), rng.random() < 0.5, rng.random() < 0.5
    )


def test_conv_forward_stats_of_many_pixels(backend):
    check_convolution(backend, dict(x_size=(3, 8, 47, 61), kernel=1, co=80), torch.bfloat16)
    check_convolution(
        backend, dict(x_size=(2, 16, 64, 63), kernel=3, co=70, padding=1), torch.float32
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("step", [float("nan"), float("inf"), -0.5, 1e-42, 1e38])
def test_conv_forward_stats_of_special_steps(backend, step, dtype):
    q_x = channels_last(torch.randint(0, 256, (2, 16, 5, 6), dtype=torch.uint8))
    w = torch.randn(40, 16, 1, 1)
    args = dict(stride=[1, 1], padding=[0] * 4, dilation=[1, 1], groups=1, out_dtype=dtype)
    qparams = torch.tensor([step, 128.0])
    for bias in (None, torch.full((40,), 1e-40), torch.full((40,), -float("inf"))):
        y, stats = ops.conv_forward_stats(q_x, qparams, w, bias, **args, stats=True)
        if abs(step) == 1e38 and dtype == torch.float32:
            continue  # squares beyond float32
        check_stats(stats, y, product_sum(backend))


# ---- all ----


@pytest.mark.parametrize("seed", range(20))
def test_random_units(backend, seed):
    """Forward and backward of a unit of random size and settings."""
    rng = random.Random(seed)
    spatial = [rng.randint(1, 12) for _ in range(rng.choice([2, 2, 3]))]
    size = (rng.randint(1, 4), rng.choice([1, 2, 7, 15, 16, 17, 31, 48, 64, 65, 129]), *spatial)
    dtype, kind = rng.choice(FLOATS), rng.choice(["codes", "float", "none"])
    y = floats(size, dtype, 10 ** rng.uniform(-3, 2))
    wanted = {name: rng.random() < 0.7 for name in WANTED}
    settings = settings_of(rng.choice([NONE, RELU, RELU6]), **wanted)
    residual = floats(size, dtype) if rng.random() < 0.5 else None
    check_forward(y, ops.stats_of(y), norm(size[1]), residual, **settings)
    g, g2, mask, y, grid = gradients(size, dtype, kind)
    statistics = [None, None] if kind == "none" else [torch.randn(size[1]), torch.rand(size[1])]
    check_reduce(g, g2 if rng.random() < 0.5 else None, mask, y, grid, *statistics)
    check_dy((g, mask, y, grid, torch.randn(3, size[1])), torch.rand(size[1]))


def test_empty_batch(backend):
    empty = channels_last(torch.zeros(0, 5, 3, 3))
    results = ops.norm_act_forward(empty, ops.stats_of(empty), *[None] * 5, **settings_of(RELU))
    assert [t.shape[0] for t in results] == [0, 0, 2, 0, 2, 0]
    _, sums = ops.norm_act_reduce(empty, *[None] * 6, want_gz=True)
    assert (sums == 0).all()
    args = (empty, None, None, None, torch.zeros(3, 5))
    assert ops.norm_backward_apply(*args).shape == empty.shape
    assert (ops.norm_backward_maxima(*args) == 0).all()
    q = ops.norm_backward_quantize(*args, threshold=torch.ones(1), seed=None)
    assert q.shape == empty.shape
    state = threshold_state(5)
    used = ops.norm_backward_thresholds(*args, **state, cap=False, interval=1, **RULES)
    assert (used == 0).all() and state["iteration"].item() == 0


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("allow_unsigned", [True, False])
def test_quantize_on_a_known_grid(backend, dtype, allow_unsigned):
    for layout in (torch.contiguous_format, torch.channels_last):
        x = floats((2, 19, 5, 7), dtype, 3.0).relu().contiguous(memory_format=layout)
        q, qparams = ops.quantize_x(x, allow_unsigned=allow_unsigned)
        got = ops.quantize_x_with(x, qparams)
        assert torch.equal(got, reference_glue.quantize_x_with(x, qparams))
        # The threshold made of the step may be a rounding off: a tie may go the other way.
        assert (got.int() - q.int()).abs().max() <= 1
        assert (got != q).float().mean() < 0.01
    assert (ops.quantize_x_with(x, torch.tensor([0.0, 0.0])) == 0).all()
    assert (ops.quantize_x_with(x, torch.tensor([float("nan"), 128.0])) == 128).all()


@pytest.mark.parametrize("with_weight", [True, False])
def test_coefficients(backend, with_weight):
    sums = torch.randn(2, 21, dtype=torch.float64)
    weight = torch.randn(21) if with_weight else None
    args = (sums, 37.0, weight, torch.randn(21), torch.rand(21))
    got = ops.norm_backward_coefficients(*args)
    torch.testing.assert_close(got, reference_glue.norm_backward_coefficients(*args))
    torch.library.opcheck(torch.ops.daq_mm.norm_backward_coefficients.default, args)


def test_threads_do_not_change_the_result(backend):
    size = (4, 70, 40, 40)
    g, g2, mask, y, grid = gradients(size, torch.bfloat16, "codes")
    statistics = torch.randn(70), torch.rand(70)
    q_x, qparams = ops.quantize_x(g, allow_unsigned=True)
    w = torch.randn(130, 70, 1, 1)
    conv = dict(stride=[1, 1], padding=[0] * 4, dilation=[1, 1], groups=1, stats=True)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            args = (g, mask, y, grid, torch.ones(3, 70))
            results.append(
                [
                    ops.stats_of(g),
                    *ops.norm_act_forward(
                        g, ops.stats_of(g), *norm_of_ones, g2, **settings_of(RELU)
                    ),
                    *ops.norm_act_reduce(g, g2, mask, y, grid, *statistics, want_gz=True),
                    ops.norm_backward_maxima(*args),
                    ops.norm_backward_quantize(
                        *args, threshold=torch.ones(70), seed=torch.tensor([5])
                    ),
                    *ops.conv_forward_stats(
                        q_x, qparams, w, None, **conv, out_dtype=torch.bfloat16
                    ),
                ]
            )
    finally:
        torch.set_num_threads(before)
    same_results(results[1], results[0])
    same_results(results[2], results[0])


norm_of_ones = (torch.ones(70), torch.ones(70), torch.zeros(70), torch.ones(70))


Y = channels_last(torch.randn(2, 4, 3, 5))
STATS = reference_glue.stats_of(Y)
C = torch.ones(4)


def forward_call(y=Y, stats=STATS, weight=C, bias=C, mean=C, invstd=C, residual=None, act=RELU):
    return ops.norm_act_forward(y, stats, weight, bias, mean, invstd, residual, **settings_of(act))


def reduce_call(g=Y, g2=None, mask=None, y=Y, grid=None, mean=C, invstd=C):
    return ops.norm_act_reduce(g, g2, mask, y, grid, mean, invstd, want_gz=True)


def thresholds_call(interval=1, **state):
    args = (Y, None, Y, None, torch.ones(3, 4))
    state = {**threshold_state(4), **state}
    return ops.norm_backward_thresholds(*args, **state, cap=False, interval=interval, **RULES)


def quantize_call(rows=3, threshold=C, seed=None):
    args = (Y, None, Y, None, torch.ones(rows, 4))
    return ops.norm_backward_quantize(*args, threshold=threshold, seed=seed)


@pytest.mark.skipif(not ops.kernels_built("cpu")[0], reason=ops.kernels_built("cpu")[1])
@pytest.mark.parametrize(
    "error, words, call",
    [
        (TypeError, "y has dtype", lambda: forward_call(y=Y.double())),
        (ValueError, "y of size .* expected channels-last", lambda: forward_call(y=Y.contiguous())),
        (ValueError, "stats has size", lambda: forward_call(stats=STATS[:3])),
        (TypeError, "stats has dtype", lambda: forward_call(stats=STATS.float())),
        (ValueError, "weight has size", lambda: forward_call(weight=torch.ones(3))),
        (ValueError, "weight and bias need mean", lambda: forward_call(mean=None, invstd=None)),
        (ValueError, "mean and invstd must both", lambda: forward_call(mean=None)),
        (TypeError, "mean has dtype", lambda: forward_call(mean=C.double())),
        (TypeError, "residual has dtype", lambda: forward_call(residual=Y.half())),
        (ValueError, "residual has size", lambda: forward_call(residual=Y[:1])),
        (ValueError, "act=3; allowed", lambda: forward_call(act=3)),
        (ValueError, "g has 3 axes", lambda: reduce_call(g=Y[0])),
        (TypeError, "g2 has dtype", lambda: reduce_call(g2=Y.half())),
        (ValueError, "mask has size", lambda: reduce_call(mask=torch.zeros(2, 3, 5, 4).byte())),
        (TypeError, "mask has dtype", lambda: reduce_call(mask=torch.zeros(2, 3, 5, 1))),
        (TypeError, "y has dtype", lambda: reduce_call(grid=torch.ones(2, 4))),
        (ValueError, "grid is given but y", lambda: reduce_call(y=None, grid=torch.ones(2, 4))),
        (ValueError, "mean is given but y", lambda: reduce_call(y=None)),
        (ValueError, "coefficients has size", lambda: quantize_call(rows=2)),
        (ValueError, "threshold has size", lambda: quantize_call(threshold=torch.ones(3))),
        (TypeError, "seed has dtype", lambda: quantize_call(seed=torch.ones(1))),
        (ValueError, "interval=0", lambda: thresholds_call(interval=0)),
        (ValueError, "threshold has size", lambda: thresholds_call(threshold=C)),
        (TypeError, "iteration has dtype", lambda: thresholds_call(iteration=torch.zeros(1))),
        (
            ValueError,
            "count=1(.0)? must be above 1",
            lambda: ops.batch_norm_statistics(STATS, 1.0, None, None, momentum=0.1, eps=1e-5),
        ),
        (
            ValueError,
            "running_mean has size",
            lambda: ops.batch_norm_statistics(STATS, 9.0, C[:3], None, momentum=0.1, eps=1e-5),
        ),
    ],
)
def test_wrong_arguments(backend, error, words, call):
    with pytest.raises(error, match=words):
        call()
