"""BF16OptimWrapper: bfloat16 where it is meant to be, float32 where it has to be."""

import copy

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine", reason="mmengine not installed")

from daq_mm.amp import BF16OptimWrapper, depth_is_short  # noqa: E402


def wrapper_of(model: nn.Module, **kwargs) -> BF16OptimWrapper:
    return BF16OptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.1), **kwargs)


@pytest.fixture
def model() -> nn.ModuleDict:
    return nn.ModuleDict(dict(conv=nn.Conv2d(3, 4, 3), fc_cls=nn.Linear(6, 2)))


def test_precisions(model):
    wrapper = wrapper_of(model)
    before = model["conv"].weight.detach().clone()
    with wrapper.optim_context(model):
        y = model["conv"](torch.randn(1, 3, 8, 8))
        logits = model["fc_cls"](y)
    assert y.dtype == torch.bfloat16 and logits.dtype == torch.float32
    wrapper.update_params(logits.sum())
    assert model["conv"].weight.dtype == torch.float32
    assert not model["conv"].weight.equal(before)


def test_outside_the_context_all_is_float32(model):
    with wrapper_of(model).optim_context(model):
        pass
    y = model["conv"](torch.randn(1, 3, 8, 8))
    assert y.dtype == torch.float32 and model["fc_cls"](y).dtype == torch.float32


def test_float32_modules(model):
    with wrapper_of(model, float32_modules=["conv"]).optim_context(model):
        y = model["conv"](torch.randn(1, 3, 8, 8))
        assert y.dtype == torch.float32
        assert model["fc_cls"](y).dtype == torch.bfloat16
    with pytest.raises(TypeError, match="float32_modules must be a list"):
        wrapper_of(model, float32_modules="conv")


def test_a_copied_model_uses_its_own_weights(model):
    """EMA copies a model that may have been trained before."""
    with wrapper_of(model).optim_context(model):
        pass
    other = copy.deepcopy(model)
    other["fc_cls"].weight.data.zero_()
    other["fc_cls"].bias.data.zero_()
    x = torch.randn(2, 6)
    assert not other["fc_cls"](x).any() and model["fc_cls"](x).any()


@pytest.mark.parametrize("kernel, dilation, short", [(3, 1, [2]), (5, 1, [2, 3, 4]), (1, 1, [])])
def test_depth_is_short(kernel, dilation, short):
    conv = nn.Conv3d(1, 1, (kernel, 1, 1), dilation=dilation)
    assert [t for t in range(1, 8) if depth_is_short(conv, torch.empty(1, 1, t, 2, 2))] == short


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_grad_weight_of_conv3d_is_right(depth):
    """Without the exemption it is garbage at depth 2, if memory held something else before."""
    conv = nn.Conv3d(32, 32, 3, padding=1, bias=False)
    x = torch.randn(8, 32, depth, 7, 7)
    y = conv(x)
    g = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, conv.weight, g)
    junk = torch.full((4_000_000,), float("nan"))  # what unwritten memory would then hold
    del junk
    with wrapper_of(conv).optim_context(conv):
        y = conv(x)
    (grad,) = torch.autograd.grad(y, conv.weight, g.to(y.dtype))
    # inputs and gradient each rounded to 8 bits of mantissa: 2^-9 a factor, independent
    assert (grad - expected).norm() < 2**-7 * expected.norm()
