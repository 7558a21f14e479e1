"""Fused training steps with the CUDA kernels, run thread by thread on the CPU (see emulated.py).

What the layers' tests say of the CPU backend holds of the other one if a step gives the same there.
"""

import pytest
import torch
from torch import nn

import emulated
from conv_cases import channels_last
from daq_mm import convert_model
from daq_mm.fuse import is_fused
from daq_mm.quantizers import _FusedQuantizer
from test_fuse import BEFORE_NORM, BLOCKS
from test_fused_training import Block
from tolerances import fused_bound

pytestmark = pytest.mark.skipif(bool(emulated.unavailable()), reason=emulated.unavailable())

#: The last one never asks for a gradient's tails.
RECIPES = ("daq", "paper", "gvq")
STEPS = 2


@pytest.fixture
def as_on_a_gpu(monkeypatch, one_thread):
    """The branch that fused units take where reading a layer's counter would wait for a device."""
    monkeypatch.setattr(_FusedQuantizer, "discriminator_may_be_due", lambda q: q.mcs)


def train(recipe: str, dtype: torch.dtype, make=Block, size=(2, 16, 7, 6)) -> dict:
    """All that a few steps leave: results, gradients, and the state, thresholds included."""
    torch.manual_seed(7)
    model = make()
    for norm in model.modules():
        if isinstance(norm, (nn.BatchNorm2d, nn.BatchNorm3d)) and norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
    convert_model(model, dict(recipe=recipe, convert_first=True))
    assert any(is_fused(module) for module in model.modules())
    found = {}
    for step in range(STEPS):
        x = channels_last(torch.randn(size).to(dtype)).requires_grad_()
        y = model(x)
        (y * torch.randn_like(y)).sum().backward()
        found |= {f"{step} y": y.detach(), f"{step} x.grad": x.grad}
    found |= {f"{name}.grad": p.grad for name, p in model.named_parameters()}
    return found | {name: value.clone() for name, value in model.state_dict().items()}


def assert_trains_alike(units: int, *args) -> None:
    """But for the order of the statistics' sums, which moves values at ties to another code.

    Both backends round to `dtype` in the same places, so that the bound is float32's for all.
    """
    expected, got = train(*args), {}
    with emulated.as_cpu_kernels():
        launches = emulated.launches_of(lambda: got.update(train(*args)))
    assert len(launches) > STEPS * units * 10  # the kernels ran
    bound = fused_bound(torch.float32, units, coded=False)
    scale = max(rms(value) for name, value in expected.items() if name.endswith(".grad"))
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and got[name].stride() == value.stride(), name
        if name.endswith(".grad") and rms(value) < BEFORE_NORM[torch.float32] * scale:
            continue  # of a bias before a norm: nothing but rounding
        difference = (got[name].double() - value.double()).norm()
        assert difference <= bound * value.double().norm(), name


def rms(value: torch.Tensor) -> float:
    return float(value.double().square().mean().sqrt())


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_residual_block(as_on_a_gpu, recipe, dtype):
    assert_trains_alike(2, recipe, dtype)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks(as_on_a_gpu, name):
    """Downsampling, groups, depthwise and ReLU6, three axes, no norm, norm first."""
    make, size, units = BLOCKS[name]
    size = (2, size[1], *(min(axis, 8) for axis in size[2:]))
    assert_trains_alike(units, "daq", torch.float32, make, size)


def test_where_maxima_are_enough(one_thread):
    """As the CPU does between two evaluations of the discriminator."""
    assert_trains_alike(2, "daq", torch.float32)


@pytest.mark.parametrize("recipe", ("daq", "paper"))
def test_on_compute_capability_9_0(as_on_a_gpu, recipe):
    kernels = emulated.load()
    try:
        kernels.set_warpgroups(True)
        assert_trains_alike(2, recipe, torch.bfloat16)
    finally:
        kernels.set_warpgroups(False)
