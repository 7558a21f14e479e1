"""grad_input_reduce: grad-input, mask and batch norm's sums in one op, against two references."""

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
)
from daq_mm import ops
from daq_mm.ops import reference, reference_glue
from tolerances import product_sum

CASES = {
    **{name: FIXED[name] for name in FIXED if name != "no images"},
    # Several blocks of pixels, of which the last is short, and several blocks of lanes.
    "long": dict(x_size=(3, 208, 19, 21), kernel=1, co=16),
    "long 3x3": dict(x_size=(2, 70, 25, 23), kernel=3, co=24, padding=1),
    "groups of whole vectors": dict(x_size=(2, 64, 9, 9), kernel=3, co=8, padding=1, groups=2),
}


def operands(case, dtype, kind):
    """Positional and keyword arguments of the op; y as `kind`: 'codes', 'float' or 'none'."""
    torch.manual_seed(0)
    geometry, args = geometry_of(**case)
    x_size = tuple(case["x_size"])
    q_g = channels_last(torch.randint(-127, 128, geometry.out_size, dtype=torch.int8))
    q_w = torch.randint(-127, 128, geometry.w_size)
    step = torch.rand(x_size[1]) * 1e-4
    channels, size = x_size[1], x_size
    y, grid = channels_last(torch.randn(size).to(dtype)), None
    if kind == "codes":
        y = channels_last(torch.randint(0, 256, size, dtype=torch.uint8))
        grid = torch.stack([torch.randn(channels), torch.rand(channels) / 50])
    statistics = dict(mean=torch.randn(channels), invstd=torch.rand(channels))
    if kind == "none":
        y, statistics = None, dict(mean=None, invstd=None)
    glue = dict(
        g2=channels_last(torch.randn(size).to(dtype)),
        mask=reference_glue.pack_mask(torch.rand(size) > 0.4) if x_size[0] else None,
        y=y,
        grid=grid,
        **statistics,
    )
    return (q_g, q_w.to(torch.int8), step, x_size), dict(**args, out_dtype=dtype), glue


def check(backend, product, settings, glue):
    leave_garbage(product[0].numel())
    gz, sums = ops.grad_input_reduce(*product, **settings, **glue)
    dx = reference.grad_input(*product, *settings.values())
    expected_gz, expected = reference_glue.norm_act_reduce(dx, *glue.values(), True)
    assert is_channels_last(gz)
    assert_same_bits(gz, expected_gz)
    over, shape = (0, *range(2, gz.dim())), (1, -1, *[1] * (gz.dim() - 2))
    magnitudes = torch.zeros_like(sums)
    magnitudes[0] = gz.double().abs().sum(over)
    if glue["mean"] is not None:
        centred = reference_glue._y_hat(glue["y"], glue["grid"]) - glue["mean"].view(shape)
        magnitudes[1] = (gz.double() * centred * glue["invstd"].view(shape)).abs().sum(over)
    error = (sums - expected).abs()
    assert (error <= product_sum(backend) * magnitudes + gz.numel() * 2.0**-150).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", CASES)
def test_geometries(backend, name, dtype):
    product, settings, glue = operands(CASES[name], dtype, "codes")
    check(backend, product, settings, glue)
    check(backend, product, settings, {**glue, "g2": None})


@pytest.mark.parametrize("kind", ["codes", "float", "none"])
@pytest.mark.parametrize("name", ["3x3", "3x3 strided", "long"])
def test_kinds_of_y_and_no_mask(backend, name, kind):
    product, settings, glue = operands(CASES[name], torch.bfloat16, kind)
    check(backend, product, settings, glue)
    check(backend, product, settings, {**glue, "mask": None})


def test_no_images(backend):
    product, settings, glue = operands(FIXED["no images"], torch.float32, "codes")
    gz, sums = ops.grad_input_reduce(*product, **settings, **glue)
    assert gz.shape == (0, 8, 6, 6) and torch.equal(sums, torch.zeros(2, 8).double())


@pytest.mark.parametrize("name", ["long", "long 3x3", "3x3 strided", "depthwise 128"])
def test_results_do_not_depend_on_threads(backend, name):
    product, settings, glue = operands(CASES[name], torch.bfloat16, "codes")
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(ops.grad_input_reduce(*product, **settings, **glue))
    finally:
        torch.set_num_threads(before)
    for gz, sums in results[1:]:
        assert torch.equal(gz, results[0][0]) and torch.equal(sums, results[0][1])


def test_wrong_operands_are_refused(backend):
    product, settings, glue = operands(FIXED["3x3"], torch.float32, "codes")
    with pytest.raises(ValueError, match="mean is given but y is None"):
        ops.grad_input_reduce(*product, **settings, **{**glue, "y": None, "grid": None})
    with pytest.raises(ValueError, match="size"):
        ops.grad_input_reduce(*product, **settings, **{**glue, "g2": glue["g2"][:1]})


def test_other_backends_run_the_two_ops(backend):
    """Without a kernel of its own the op is grad_input and then norm_act_reduce."""
    from daq_mm.ops import glue as module

    product, settings, glue = operands(FIXED["3x3"], torch.float32, "codes")
    gz, sums = module._grad_input_reduce(*product, *settings.values(), *glue.values())
    dx = ops.grad_input(*product, **settings)
    expected = ops.norm_act_reduce(dx, **glue, want_gz=True)
    assert torch.equal(gz, expected[0]) and torch.equal(sums, expected[1])
