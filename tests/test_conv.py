"""DAQConv layers: against float64 on the quantized operands, and as drop-in for nn.Conv."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from daq_mm import DAQConv1d, DAQConv2d, DAQConv3d, ops
from daq_mm.ops import reference
from tolerances import FLOAT32_ROUNDINGS

CASES = [
    (DAQConv2d, dict(in_channels=6, out_channels=8, kernel_size=3, padding=1), (2, 6, 9, 7)),
    (DAQConv2d, dict(in_channels=5, out_channels=7, kernel_size=1, bias=False), (3, 5, 4, 4)),
    (
        DAQConv2d,
        dict(in_channels=8, out_channels=12, kernel_size=3, stride=2, dilation=2, groups=4),
        (2, 8, 11, 12),
    ),
    (
        DAQConv2d,
        dict(in_channels=9, out_channels=9, kernel_size=5, padding=2, groups=9),
        (2, 9, 8, 8),
    ),
    (
        DAQConv2d,
        dict(in_channels=4, out_channels=3, kernel_size=(2, 4), padding="same"),
        (1, 4, 6, 7),
    ),
    (DAQConv2d, dict(in_channels=4, out_channels=3, kernel_size=3, padding="valid"), (1, 4, 6, 7)),
    (
        DAQConv2d,
        dict(in_channels=4, out_channels=6, kernel_size=3, padding=(1, 2), padding_mode="reflect"),
        (2, 4, 6, 7),
    ),
    (
        DAQConv2d,
        dict(in_channels=4, out_channels=6, kernel_size=3, padding=1, padding_mode="circular"),
        (2, 4, 6, 7),
    ),
    (DAQConv3d, dict(in_channels=3, out_channels=5, kernel_size=3, padding=1), (2, 3, 4, 5, 6)),
    (
        DAQConv3d,
        dict(in_channels=4, out_channels=6, kernel_size=(3, 1, 1), stride=(2, 1, 1), groups=2),
        (1, 4, 5, 3, 3),
    ),
    (
        DAQConv3d,
        dict(
            in_channels=4,
            out_channels=6,
            kernel_size=(1, 3, 3),
            padding=(0, 1, 1),
            dilation=(1, 2, 1),
        ),
        (1, 4, 2, 7, 5),
    ),
    (
        DAQConv1d,
        dict(in_channels=6, out_channels=4, kernel_size=3, stride=2, padding=1, groups=2),
        (3, 6, 11),
    ),
    (DAQConv1d, dict(in_channels=6, out_channels=4, kernel_size=4, padding="same"), (3, 6, 11)),
]
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def dequantize(v, threshold, levels=127):
    """Round v onto the grid of `levels` steps up to `threshold`, in float64."""
    step = threshold.double() / levels
    inverse = torch.where(threshold > 0, levels / threshold.float(), 0)
    return torch.round((v.float() * inverse).clamp(-levels, levels)).double() * step


def dorefa(g, bits, noise=0.0):
    """DoReFa-Net's gradient quantizer as its paper writes it (equation 12), in float64.

    `noise` is N(k) in units of a step, uniform in -1/2 to 1/2.
    """
    n = 2**bits - 1
    maximum = g.double().abs().amax(tuple(range(1, g.dim())), keepdim=True)
    inside = (g.double() / (2 * maximum) + 0.5 + noise / n).clamp(0, 1)
    return 2 * maximum * (torch.round(inside * n) / n - 0.5)


def expected(layer, x, g, config, s_tensor=None):
    """Y, dX, dW, db in float64 from operands quantized by plain, independent PyTorch.

    `s_tensor` is the threshold of the whole gradient, its absolute maximum by default.
    """
    x_bits, w_bits, g_bits = config.activation_bits, config.weight_bits, config.gradient_bits
    w_levels, g_levels = 2 ** (w_bits - 1) - 1, 2 ** (g_bits - 1) - 1
    rank = len(layer.kernel_size)
    pads = layer._reversed_padding_repeated_twice
    if layer.padding_mode != "zeros":
        x = F.pad(x, pads, mode=layer.padding_mode)
        pads = [0] * (2 * rank)
    elif layer.padding != "valid" and not isinstance(layer.padding, str):
        pads = [p for axis in reversed(layer.padding) for p in (axis, axis)]
    unsigned = config.unsigned_activations and bool((x >= 0).all())
    x_hat = dequantize(x, x.abs().max(), 2**x_bits - 1 if unsigned else 2 ** (x_bits - 1) - 1)
    w = layer.weight.detach()
    w_hat = dequantize(w, w.abs().max(), w_levels)

    def conv(v, weight):
        return CONV[rank](
            F.pad(v, pads), weight, None, layer.stride, 0, layer.dilation, layer.groups
        )

    y = conv(x_hat, w_hat)
    if layer.bias is not None:
        y = y + layer.bias.detach().double().view(1, -1, *[1] * rank)
    column = (1, -1, *[1] * rank)
    s_channel = g.abs().amax((0, *range(2, g.dim())))
    g_hat = {
        "channel": (g_channel := dequantize(g, s_channel.view(column), g_levels)),
        "tensor": dequantize(g, g.abs().max() if s_tensor is None else s_tensor, g_levels),
        "sample": dequantize(g, g.abs().amax(list(range(1, g.dim())), keepdim=True), g_levels),
    }
    if not config.gradient_zero:
        g_hat["sample"] = dorefa(g, g_bits)
    x_weight, g_weight = x_hat, g_hat.get(config.grad_weight)
    if config.grad_weight == "float":
        x_weight, g_weight = x.double(), g.double()
    xv, wv = x_hat.clone().requires_grad_(), w.double().clone().requires_grad_()
    dw = torch.autograd.grad(conv(x_weight, wv), wv, g_weight)[0]
    if config.grad_input == "folded":
        # Integer gradient times (step * w) quantized per input channel.
        folded = w.float() * (s_channel / g_levels).view(-1, *[1] * (rank + 1))
        grouped = folded.view(layer.groups, -1, *w.shape[1:])
        s_fold = grouped.abs().amax((1, *range(3, grouped.dim())), keepdim=True)
        w_back = dequantize(grouped, s_fold, w_levels).view(w.shape)
        g_back = g_channel / (s_channel.double() / g_levels).view(column).clamp_min(1e-300)
    else:
        w_back = w_hat
        g_back = g_hat["sample" if config.grad_input == "sample" else "tensor"]
    dx = torch.autograd.grad(conv(xv, w_back), xv, g_back)[0]
    return y, dx, dw, g.double().sum((0, *range(2, g.dim())))


def run(layer, x, g):
    x = x.clone().requires_grad_()
    layer.zero_grad()
    y = layer(x)
    y.backward(g)
    return y, x.grad


def close(actual, wanted, what):
    actual = actual.detach()
    scale = wanted.abs().max().clamp_min(1e-30)
    error = float((actual.double() - wanted).abs().max() / scale)
    assert error <= FLOAT32_ROUNDINGS, f"{what}: {error:.2e}"


@pytest.mark.parametrize("recipe", ["paper", "daq", "global", "gvq", "mcs"])
@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("relu", [False, True])
def test_against_float64(backend, case, recipe, relu):
    cls, arguments, size = CASES[case]
    layer = cls(**arguments, config=recipe)
    x = torch.randn(size)
    if relu:
        x = x.relu()
    if layer.padding_mode != "zeros":
        expected_x = x.requires_grad_()  # padding's own gradient is PyTorch's business
        y = layer(expected_x)
        wanted, _, dw, db = expected(layer, x.detach(), g := torch.randn(y.shape), layer.config)
        y.backward(g)
        close(y, wanted, "y"), close(layer.weight.grad, dw, "dw"), close(layer.bias.grad, db, "db")
        return
    g = torch.randn(layer(x).shape) * torch.rand(layer.out_channels).view(
        1, -1, *[1] * (x.dim() - 2)
    )
    wanted = expected(layer, x, g, layer.config)
    y, dx = run(layer, x, g)
    close(y, wanted[0], "y")
    close(dx, wanted[1], "dx")
    close(layer.weight.grad, wanted[2], "dw")
    if layer.bias is not None:
        close(layer.bias.grad, wanted[3], "db")


def narrow(x, w, g, **fields):
    """Settings with grids of these bits."""
    return dict(activation_bits=x, weight_bits=w, gradient_bits=g, **fields)


@pytest.mark.parametrize(
    "config",
    [
        narrow(5, 8, 8),
        narrow(8, 6, 8, recipe="paper"),
        narrow(8, 8, 4),
        narrow(4, 4, 4, recipe="global"),
        narrow(7, 6, 5, recipe="gvq", grad_input="folded"),
        dict(recipe="dorefa", rounding="nearest"),
        narrow(4, 5, 6, recipe="dorefa", rounding="nearest"),
        dict(recipe="dorefa", rounding="nearest", gradient_zero=True),
        dict(recipe="daq", grad_input="sample"),
        dict(recipe="ui8", rounding="nearest", ui8_beta=1.0),
        narrow(8, 8, 5, recipe="ui8", rounding="nearest", ui8_beta=1.0),
        narrow(6, 6, 6, recipe="switchback"),
    ],
    ids=lambda config: " ".join(f"{v}" for v in config.values()),
)
@pytest.mark.parametrize("case", [0, 2, 4, 9, 11])
def test_other_grids_and_recipes_against_float64(backend, case, config):
    cls, arguments, size = CASES[case]
    layer = cls(**arguments, config=config)
    x = torch.randn(size).relu()
    g = torch.randn(layer(x).shape)
    g *= torch.rand(g.shape[:2]).view(*g.shape[:2], *[1] * (x.dim() - 2))
    y, dx = run(layer, x, g)
    s = layer.gradient_quantizer.threshold[-1]
    wanted = expected(layer, x, g, layer.config, s)
    close(y, wanted[0], "y")
    close(dx, wanted[1], "dx")
    if layer.config.grad_weight != "float":
        close(layer.weight.grad, wanted[2], "dw")
    close(layer.bias.grad, wanted[3], "db")


@pytest.mark.parametrize("case", range(len(CASES)))
def test_switchback_grad_weight_is_that_of_the_float_layer(case):
    cls, arguments, size = CASES[case]
    layer = cls(**arguments, config="switchback")
    plain = layer.plain_class(**arguments)
    x = torch.randn(size)
    g = torch.randn(plain(x).shape)
    run(layer, x, g)
    run(plain, x, g)
    # The same float32 product of the same operands; only the order of its sums may differ.
    length = g[:, 0].numel()
    bound = length * 2.0**-24 * (x.abs().max() * g.abs().max() * length)
    assert (layer.weight.grad - plain.weight.grad).abs().max() <= bound
    assert layer.weight.grad.norm() > 0


def test_switchback_keeps_the_float_activation_and_no_other():
    layer = DAQConv2d(16, 16, 3, padding=1, config="switchback")
    saved = []
    x = torch.randn(4, 16, 20, 20, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x)
    activations = [t for t in saved if t.numel() >= x.numel()]
    assert sorted(t.untyped_storage().nbytes() for t in activations) == [1, 4 * x.numel()]
    assert any(t.data_ptr() == x.data_ptr() for t in activations)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("recipe", ["switchback", "dorefa", "ui8"])
def test_other_recipes_under_autocast(recipe, dtype):
    layer = DAQConv2d(8, 16, 3, padding=1, config=recipe)
    exact = nn.Conv2d(8, 16, 3, padding=1)
    exact.load_state_dict({k: v for k, v in layer.state_dict().items() if "quantizer" not in k})
    x, g = torch.randn(2, 8, 6, 6), torch.randn(2, 16, 6, 6)
    run(exact, x, g)
    x.requires_grad_()
    with torch.autocast("cpu", dtype):
        y = layer(x)
    assert y.dtype == dtype
    y.backward(g.to(dtype))
    assert x.grad.dtype == layer.weight.grad.dtype == torch.float32
    assert (layer.weight.grad - exact.weight.grad).norm() < 0.05 * exact.weight.grad.norm()


@pytest.mark.parametrize("recipe", ["switchback", "dorefa", "ui8"])
def test_other_recipes_and_empty_batches(recipe):
    layer = DAQConv2d(6, 8, 3, config=recipe)
    x = torch.randn(0, 6, 7, 7, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == x.shape and not layer.weight.grad.any()
    assert not layer.gradient_quantizer.iteration.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("recipe", ["switchback", "dorefa", "ui8"])
def test_other_recipes_let_nonfinite_values_surface(recipe, bad):
    layer = DAQConv2d(6, 8, 3, config=recipe)
    x, g = torch.randn(2, 6, 5, 5), torch.randn(2, 8, 3, 3)
    run(layer, x, g)
    before = copy.deepcopy(layer.gradient_quantizer.state_dict())
    g[0, 3, 1, 1] = bad
    _, dx = run(layer, x, g)
    assert not dx[0].isfinite().any()
    assert not layer.weight.grad[3].isfinite().any()
    assert dx[1].isfinite().all() == (recipe == "dorefa")  # a threshold a sample
    assert torch.equal(layer.gradient_quantizer.threshold[-1], before["threshold"][-1])


def test_dorefa_is_unbiased_and_scales_each_sample():
    """Its noise of half a step each way and rounding to nearest is stochastic rounding."""
    layer = DAQConv2d(4, 4, 1, bias=False, config="dorefa")
    with torch.no_grad():
        layer.weight.copy_(torch.eye(4).view(4, 4, 1, 1))
    x = torch.randn(2, 4, 8, 8)
    g = torch.randn(2, 4, 8, 8) * torch.tensor([1.0, 1e-3]).view(2, 1, 1, 1)
    total, count = torch.zeros_like(g, dtype=torch.float64), 300
    for _ in range(count):
        total += run(layer, x, g)[1]
    step = 2 * g.abs().amax((1, 2, 3), keepdim=True) / 255
    # A mean of `count` draws with standard deviation at most half a step, at 6 sigma.
    assert ((total / count - g) / step).abs().max() < 6 * 0.5 / count**0.5


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_dorefa_against_the_formula_of_its_paper(bits, rounding):
    """With the same noise, value by value; float32 may take the other side of a tie."""
    g = torch.randn(3, 5, 12, 12) ** 3 * torch.tensor([1.0, 1e-4, 30.0]).view(3, 1, 1, 1)
    g[:, :, ::2] = 0  # as below a ReLU
    g[0, 0, 1, :2] = g[0].abs().amax() * torch.tensor([1.0, -1.0])
    seed = torch.tensor([1234]) if rounding == "stochastic" else None
    noise = 0.0 if seed is None else reference.uniform_from_index(g.shape, seed).double() - 0.5
    q_g, step = ops.quantize_by_sample(g, seed, bits, zero=False)
    assert (int(q_g.min()), int(q_g.max())) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    found = ops.dequantize_by_sample(q_g, step, zero=False)
    # Halves go up here and to the even neighbour there, and a value of zero lies on a half.
    off = (found.double() - dorefa(g, bits, noise)).abs() / step.view(-1, 1, 1, 1)
    if rounding == "nearest":
        assert off[g == 0].max() < 1e-4
    assert ((off < 1e-4) | ((off - 1).abs() < 1e-4)).all()
    assert (off > 0.5).float().mean() < 1e-3
    zeros = (found / step.view(-1, 1, 1, 1))[g == 0]
    assert (zeros.abs() - 0.5).abs().max() < 1e-6
    if rounding == "stochastic":  # a mean of n signs, at 6 sigma
        assert abs(float(zeros.sign().mean())) < 6 / zeros.numel() ** 0.5
        assert float(found.abs().max() / g.abs().max()) == pytest.approx(1, abs=1e-6)


def test_ui8_scales_the_update_of_weight_and_bias_by_the_deviation(backend):
    x, g = torch.randn(2, 6, 7, 7), torch.randn(2, 8, 5, 5)
    g[0, 0, 0, 0] = 40.0  # an outlier: d_c is large at 4 bits
    scaled = DAQConv2d(6, 8, 3, config=narrow(8, 8, 4, recipe="ui8"))
    plain = DAQConv2d(6, 8, 3, config=narrow(8, 8, 4, recipe="ui8", ui8_beta=1.0))
    plain.load_state_dict(scaled.state_dict())
    dx, dx_plain = run(scaled, x, g)[1], run(plain, x, g)[1]
    d_c = float(scaled.gradient_quantizer.deviation)
    factor = max(torch.tensor(-20.0 * d_c).exp().item(), 0.1)
    assert 0.1 <= factor < 0.95 and plain.gradient_quantizer.update_scale() == 1
    assert torch.equal(dx, dx_plain)  # the error that flows on is not scaled
    for name in ("weight", "bias"):
        wanted = getattr(plain, name).grad * factor
        torch.testing.assert_close(getattr(scaled, name).grad, wanted)


@pytest.mark.parametrize("config", ["paper", "global", "daq", narrow(8, 8, 4, recipe="gvq")])
@pytest.mark.parametrize("case", [0, 2, 4, 9, 11])
def test_keeping_the_gradient_s_mean(backend, case, config):
    """dW differs from the plain recipe's by the float64 dW of the mean of g - ghat."""
    cls, arguments, size = CASES[case]
    fields = dict(recipe=config) if isinstance(config, str) else config
    plain = cls(**arguments, config=fields)
    layer = cls(**arguments, config=dict(fields, keep_gradient_mean=True))
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(size).relu()
    g = torch.randn(layer(x).shape) ** 5
    (y, dx), (y_plain, dx_plain) = run(layer, x, g), run(plain, x, g)
    assert torch.equal(y, y_plain) and torch.equal(dx, dx_plain)
    axes = (0, *range(2, g.dim()))
    levels = 2 ** (layer.config.gradient_bits - 1) - 1
    column = (1, -1, *[1] * (x.dim() - 2))
    channelwise = layer.config.grad_weight == "channel"
    s = g.abs().amax(axes) if channelwise else g.abs().max().view(1)
    mean = (g.double() - dequantize(g, s.view(column), levels)).mean(axes).view(column)
    g_mean = mean.expand_as(g)
    # The exact grad-weight of that constant gradient, by the float layer on the quantized x.
    unsigned = layer.config.unsigned_activations
    x_hat = dequantize(x, x.abs().max(), 255 if unsigned else 127)
    exact = layer.plain_class(**arguments).double()
    wanted = torch.autograd.grad(exact(x_hat), exact.weight, g_mean)[0]
    change = layer.weight.grad.double() - plain.weight.grad.double()
    scale = layer.weight.grad.abs().max()
    assert (change - wanted).abs().max() <= 4 * FLOAT32_ROUNDINGS * scale
    assert wanted.abs().max() > 100 * FLOAT32_ROUNDINGS * scale


@pytest.mark.parametrize("case", range(len(CASES)))
def test_near_the_plain_layer(case):
    cls, arguments, size = CASES[case]
    layer = cls(**arguments)
    plain = layer.plain_class(**arguments)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if "quantizer" not in k})
    x, g = torch.randn(size), None
    y = plain(x)
    g = torch.randn(y.shape)
    wanted, wanted_dx = run(plain, x, g)
    y, dx = run(layer, x, g)
    assert y.shape == wanted.shape and y.stride() == wanted.stride()
    for actual, exact in ((y, wanted), (dx, wanted_dx), (layer.weight.grad, plain.weight.grad)):
        assert (actual - exact).norm() < 0.03 * exact.norm()


def test_formats(backend):
    layer = DAQConv2d(8, 16, 3, padding=1)
    x = torch.randn(2, 8, 6, 6)
    g = torch.randn(2, 16, 6, 6)
    results = []
    for x_format in (torch.contiguous_format, torch.channels_last):
        y, dx = run(
            layer, x.contiguous(memory_format=x_format), g.contiguous(memory_format=x_format)
        )
        assert y.is_contiguous(memory_format=x_format) and dx.is_contiguous(memory_format=x_format)
        results.append((y, dx, layer.weight.grad.clone()))
    strided = torch.randn(2, 8, 6, 12)[..., ::2].copy_(x)
    results.append((*run(layer, strided, g), layer.weight.grad.clone()))
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert torch.equal(a, b)
    layer = layer.to(memory_format=torch.channels_last)
    y, _ = run(layer, x, g)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert layer.weight.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_layers(backend, dtype):
    layer = DAQConv2d(8, 16, 3, padding=1).to(dtype)
    x = torch.randn(2, 8, 6, 6, dtype=dtype)
    y, dx = run(layer, x, torch.randn(2, 16, 6, 6, dtype=dtype))
    assert (y.dtype, dx.dtype, layer.weight.grad.dtype, layer.bias.grad.dtype) == (dtype,) * 4
    wide = F.conv2d(x.float(), layer.weight.float(), layer.bias.float(), padding=1)
    assert (y.float() - wide).norm() < 0.03 * wide.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(backend, dtype):
    layer = DAQConv2d(8, 16, 3, padding=1)
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    with torch.autocast("cpu", dtype):
        y = layer(x)
    assert y.dtype == dtype
    y.backward(torch.randn_like(y))
    assert x.grad.dtype == torch.float32 and layer.weight.grad.dtype == torch.float32
    assert torch.equal(y.float(), layer(x).to(dtype).float())


@pytest.mark.skipif(ops.kernels_built("cuda")[0], reason=ops.kernels_built("cuda")[1])
def test_cuda_without_kernels_is_refused(monkeypatch):
    ops.allow_reference(False)  # a hook of another test may have allowed it
    # Fake tensors have a device that need not be there, but cannot be filled.
    monkeypatch.setattr(DAQConv2d, "reset_parameters", lambda self: None)
    with FakeTensorMode():
        layer = DAQConv2d(8, 16, 3, device="cuda")
        x = torch.empty(2, 8, 6, 6, device="cuda")
        with pytest.raises(RuntimeError, match="no INT8 kernels.*DAQ_MM_BUILD.*allow_reference"):
            layer(x)
        ops.allow_reference()
        try:
            ops.check_served(x)
        finally:
            ops.allow_reference(False)


def test_nothing_but_int8_is_saved():
    layer = DAQConv2d(16, 16, 3, padding=1)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(torch.randn(4, 16, 20, 20, requires_grad=True))
    activations = [t for t in saved if t.numel() >= 4 * 16 * 20 * 20]
    assert [t.dtype for t in activations] == [torch.uint8]
    assert any(t is layer.weight or t.data_ptr() == layer.weight.data_ptr() for t in saved)


@pytest.mark.parametrize("frozen", ["x", "weight", "bias", "x weight", "weight bias"])
def test_requires_grad_off(backend, frozen):
    layer = DAQConv2d(6, 8, 3)
    layer.weight.requires_grad_("weight" not in frozen)
    layer.bias.requires_grad_("bias" not in frozen)
    x = torch.randn(2, 6, 7, 7, requires_grad="x" not in frozen)
    reference = copy.deepcopy(layer).requires_grad_()
    layer(x).backward(g := torch.randn(2, 8, 5, 5))
    _, dx = run(reference, x.detach(), g)
    assert x.grad is None if "x" in frozen else torch.equal(x.grad, dx)
    for name in ("weight", "bias"):
        grad = getattr(layer, name).grad
        assert grad is None if name in frozen else torch.equal(grad, getattr(reference, name).grad)


def test_frozen_weight_keeps_no_activation():
    layer = DAQConv2d(16, 16, 3, padding=1).requires_grad_(False)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(torch.randn(4, 16, 20, 20, requires_grad=True))
    assert sum(t.untyped_storage().nbytes() for t in saved) < 4 * 16 * 20 * 20


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(backend, reentrant):
    layer = DAQConv2d(6, 8, 3)
    other = copy.deepcopy(layer)
    x = torch.randn(2, 6, 7, 7)
    g = torch.randn(2, 8, 5, 5)
    y, dx = run(layer, x, g)
    x2 = x.clone().requires_grad_()
    y2 = checkpoint(other, x2, use_reentrant=reentrant)
    y2.backward(g)
    assert torch.equal(y, y2) and torch.equal(dx, x2.grad)
    assert torch.equal(layer.weight.grad, other.weight.grad)
    assert torch.equal(layer.gradient_quantizer.threshold, other.gradient_quantizer.threshold)


def test_unbatched(backend):
    layer = DAQConv2d(6, 8, 3)
    x = torch.randn(6, 7, 7)
    assert torch.equal(layer(x), layer(x[None])[0])


@pytest.mark.parametrize("cls_case", [0, 8, 11])
def test_empty_batch(backend, cls_case):
    cls, arguments, size = CASES[cls_case]
    layer = cls(**arguments)
    x = torch.randn(0, *size[1:], requires_grad=True)
    y = layer(x)
    plain = layer.plain_class(**arguments)(x)
    assert y.shape == plain.shape
    y.sum().backward()
    assert x.grad.shape == x.shape
    assert not layer.weight.grad.any() and not layer.bias.grad.any()
    assert not layer.gradient_quantizer.iteration.any()


def test_zero_input_and_gradient(backend):
    layer = DAQConv2d(6, 8, 3)
    y, dx = run(layer, torch.zeros(1, 6, 5, 5), torch.zeros(1, 8, 3, 3))
    assert torch.equal(y, layer.bias.detach().view(1, -1, 1, 1).expand_as(y))
    assert not dx.any() and not layer.weight.grad.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("recipe", ["paper", "daq"])
def test_nonfinite_surfaces(backend, bad, recipe):
    layer = DAQConv2d(6, 8, 3, config=recipe)
    x = torch.randn(1, 6, 5, 5)
    broken = x.clone()
    broken[0, 2, 1, 1] = bad
    assert not layer(broken).isfinite().any()
    g = torch.randn(1, 8, 3, 3)
    g[0, 3, 1, 1] = bad
    _, dx = run(layer, x, g)
    assert not dx.isfinite().any()
    assert not layer.weight.grad[3].isfinite().any()
    assert layer.weight.grad[[0, 1, 2, 4, 5, 6, 7]].isfinite().all()
    assert layer.gradient_quantizer.threshold.isfinite().all()


def test_stochastic_rounding_is_reproducible_and_unbiased(backend):
    config = dict(recipe="daq", rounding="stochastic", rounding_seed=3)
    first, x = DAQConv2d(4, 4, 1, bias=False, config=config), torch.randn(2, 4, 8, 8)
    second = copy.deepcopy(first)
    g = torch.randn(2, 4, 8, 8)
    assert torch.equal(run(first, x, g)[1], run(second, x, g)[1])
    again = run(first, x, g)[1]
    assert not torch.equal(again, run(second, x, g * 1.0)[1] + 1)
    total, count = torch.zeros_like(g, dtype=torch.float64), 400
    threshold = g.abs().amax((0, 2, 3))
    for seed in range(count):
        q = ops.quantize_g(g, threshold, seed=torch.tensor([seed]))
        total += q * (threshold.double() / 127).view(1, -1, 1, 1)
    step = (threshold / 127).view(1, -1, 1, 1)
    # A mean of `count` draws with standard deviation at most half a step, at 6 sigma.
    assert ((total / count - g) / step).abs().max() < 6 * 0.5 / count**0.5


def test_eval_and_no_grad_are_int8_too(backend):
    layer = DAQConv2d(6, 8, 3).eval()
    x = torch.randn(1, 6, 5, 5)
    with torch.no_grad():
        y = layer(x)
    assert torch.equal(y, layer(x)) and not y.requires_grad
    assert not torch.equal(y, F.conv2d(x, layer.weight, layer.bias))


def test_double_backward_is_refused():
    layer = DAQConv2d(3, 3, 1)
    x = torch.randn(1, 3, 2, 2, requires_grad=True)
    dx = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (
            torch.ones(1, 6, 5, 5, dtype=torch.int64),
            TypeError,
            "x of dtype torch.int64; allowed: float32",
        ),
        (
            torch.ones(1, 6, 5, 5, dtype=torch.float64),
            TypeError,
            "allowed: float32, bfloat16, float16",
        ),
        (torch.ones(1, 7, 5, 5), ValueError, "x of size (1, 7, 5, 5); expected (N, 6, *, *)"),
        (torch.ones(6, 5), ValueError, "x of size (6, 5); expected (N, 6, *, *)"),
        (torch.ones(1, 6, 5, 5, device="meta"), ValueError, "x on meta, but its weight is on cpu"),
        (torch.ones(1, 6, 2, 2), ValueError, "is larger than the padded input"),
    ],
)
def test_wrong_inputs(x, error, words):
    with pytest.raises(error) as raised:
        DAQConv2d(6, 8, 3)(x)
    assert words in str(raised.value)


def test_float64_weights_are_refused():
    with pytest.raises(TypeError, match="weights of dtype torch.float64"):
        DAQConv2d(3, 3, 1, dtype=torch.float64)


def test_warmup_without_a_counter_is_refused_and_with_one_is_plain():
    layer = DAQConv2d(3, 4, 3, config=dict(warmup_iters=2))
    x = torch.randn(1, 3, 5, 5)
    with pytest.raises(RuntimeError, match="warmup_iters=2 needs"):
        layer(x)
    layer.training_iteration = 1
    assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias))
    layer.training_iteration = 2
    assert not torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias))


def test_copies_and_pickles(backend):
    layer = DAQConv2d(6, 8, 3, config="paper")
    x, g = torch.randn(1, 6, 5, 5), torch.randn(1, 8, 3, 3)
    run(layer, x, g)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x)) and other.config == layer.config
        assert torch.equal(other.gradient_quantizer.threshold, layer.gradient_quantizer.threshold)


@pytest.mark.parametrize(
    ("engine", "config"),
    [
        ("aot_eager", "daq"),
        ("inductor", "daq"),
        ("aot_eager", "ui8"),
        ("aot_eager", "switchback"),
        ("aot_eager", dict(keep_gradient_mean=True)),
        ("aot_eager", narrow(4, 5, 6, recipe="dorefa")),
    ],
)
def test_compile_without_graph_breaks(engine, config):
    model = nn.Sequential(
        DAQConv2d(6, 8, 3, padding=1, config=config),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        DAQConv2d(8, 8, 1, config=config),
    )
    compiled_model = copy.deepcopy(model)
    compiled = torch.compile(compiled_model, fullgraph=True, backend=engine)
    x, g = torch.randn(2, 6, 9, 9), torch.randn(2, 8, 9, 9)
    for _ in range(3):  # thresholds move on in place
        y, dx = run(model, x, g)
        x2 = x.clone().requires_grad_()
        compiled_model.zero_grad()
        y2 = compiled(x2)
        y2.backward(g)
    for name, buffer in model.named_buffers():
        if "quantizer" in name:
            torch.testing.assert_close(dict(compiled_model.named_buffers())[name], buffer)
    torch.testing.assert_close(y2, y, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(x2.grad, dx, rtol=1e-2, atol=1e-2)


def test_repr_shows_precision():
    text = repr(DAQConv2d(3, 4, 3, config=dict(recipe="paper", mcs_k=1.1)))
    assert "int8=(paper, mcs_k=1.1)" in text
