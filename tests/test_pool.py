"""Max pooling inside a planned block: what nn.MaxPool2d gives, and little is kept for it."""

import pytest
import torch
from torch import nn

from daq_mm import convert_model
from daq_mm.pool import compact_max_pool, pools_compactly

POOLS = {
    "stem": dict(kernel_size=3, stride=2, padding=1),
    "plain": dict(kernel_size=2),
    "pairs, dilated": dict(kernel_size=(3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1)),
    "ceil": dict(kernel_size=3, stride=2, ceil_mode=True),
}


def step(function, x):
    x = x.detach().requires_grad_()
    y = function(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y))
    return y.detach(), x.grad


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", POOLS)
def test_same_bits(name, dtype, layout):
    torch.manual_seed(0)
    pool = nn.MaxPool2d(**POOLS[name])
    x = torch.randn(2, 8, 13, 12).relu().to(dtype).contiguous(memory_format=layout)  # many ties
    for a, b in zip(step(pool, x), step(lambda x: compact_max_pool(pool, x), x)):
        assert a.dtype == b.dtype and a.stride() == b.stride()
        assert torch.equal(a, b)


@pytest.mark.parametrize("side, dtype", [(181, torch.int16), (182, torch.int32)])
def test_indices_of_large_pictures(side, dtype):
    pool, kept = nn.MaxPool2d(2), []
    x = torch.randn(1, 2, side, side)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        got = step(lambda x: compact_max_pool(pool, x), x)
    assert [t.dtype for t in kept] == [dtype]
    assert torch.equal(got[1], step(pool, x)[1])


def test_which_calls_are_served():
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    pool = nn.MaxPool2d(2)
    assert pools_compactly(pool, (x,), {})
    assert not pools_compactly(pool, (x.detach(),), {})
    assert not pools_compactly(pool, (x[0],), {})
    assert not pools_compactly(nn.AvgPool2d(2), (x,), {})
    assert not pools_compactly(nn.MaxPool2d(2, return_indices=True), (x,), {})
    with torch.no_grad():
        assert not pools_compactly(pool, (x,), {})
    pool.register_forward_hook(lambda *_: None)
    assert not pools_compactly(pool, (x,), {})


def test_a_planned_block_pools_so():
    """The stem of a ResNet: its float output and int64 indices are not kept."""
    torch.manual_seed(0)
    stem = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
    )
    report = convert_model(stem, dict(convert_first=True))
    assert report.fused
    kept = []
    x = torch.randn(2, 3, 18, 18).contiguous(memory_format=torch.channels_last)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = stem(x)
    large = {t.dtype for t in kept if t.numel() >= y.numel()}
    assert large == {torch.uint8, torch.int16}
    y.sum().backward()
    assert all(p.grad.isfinite().all() for p in stem.parameters())
