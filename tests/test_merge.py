"""The last reader of a unit's output does the unit's first backward sweep, where it may."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import daq_mm.glue
from daq_mm import convert_model, ops
from daq_mm.twin import Twin
from tolerances import fused_bound

LAST = torch.channels_last


class Bottleneck(nn.Module):
    def __init__(self, width=16, stride=1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, width, 1, bias=False), nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(width, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x):
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        identity = x if self.downsample is None else self.downsample(x)
        return torch.relu(out + identity)


class Pyramid(nn.Module):
    """Three blocks, each of whose outputs a lateral convolution reads; one has a float reader."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Bottleneck(), Bottleneck(stride=2), Bottleneck()])
        self.lateral = nn.ModuleList([nn.Conv2d(16, 4, 1) for _ in range(3)])

    def forward(self, x):
        outs = []
        for block, lateral in zip(self.blocks, self.lateral):
            x = block(x)
            outs.append(lateral(x).sum((1, 2, 3)))
        return sum(outs) + x.square().mean((1, 2, 3))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(Bottleneck(), Bottleneck())
        self.heads = nn.ModuleList([nn.Conv2d(16, 4, 1) for _ in range(3)])

    def forward(self, x):
        x = self.body(x)
        return sum(head(x).square().mean((1, 2, 3)) for head in self.heads)


def chain():
    return nn.Sequential(*(Bottleneck() for _ in range(3)))


MODELS = {"chain": chain, "pyramid": Pyramid, "heads": TwoHeads}


def images(n=2, side=8):
    """Channels-last, or blocks would hand each other contiguous copies, which carry no gradient
    slots."""
    return torch.randn(n, 16, side, side).contiguous(memory_format=LAST)


def prepared(make, **settings):
    torch.manual_seed(3)
    model = make()
    convert_model(model, dict(convert_first=True, **settings))
    return model


def gradients(model, x, *, autocast=False):
    """All gradients of one step, and of x."""
    x = x.to(torch.bfloat16 if autocast else torch.float32, copy=True).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(x).float().square().sum()
    loss.backward()
    result = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return {**result, "x": x.grad.float()}


def assert_close(got, expected, bound):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        difference = (got[name] - value).double().norm() / value.double().norm().clamp(min=1e-12)
        assert difference < bound, (name, difference)


@pytest.fixture
def merges(monkeypatch):
    """Whether a second gradient was in it, for each merge."""
    calls = []
    real = ops.grad_input_reduce

    def counted(*args, **keywords):
        calls.append(keywords["g2"] is not None)
        return real(*args, **keywords)

    monkeypatch.setattr(ops, "grad_input_reduce", counted)
    return calls


def apart(monkeypatch):
    """From now on nobody merges."""
    monkeypatch.setattr(
        daq_mm.glue,
        "_grad_input",
        lambda source, *args, **keywords: ops.grad_input(*args, **keywords),
    )


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_merged_gradients_are_those_of_separate_sweeps(name, autocast, merges, monkeypatch):
    model = prepared(MODELS[name])
    x = images(4, 12)
    got = gradients(copy.deepcopy(model), x, autocast=autocast)
    assert merges
    apart(monkeypatch)
    # Sums add up in another order, so a value here and there rounds to its neighbour on 8 bits.
    bound = fused_bound(torch.bfloat16 if autocast else torch.float32, 9, coded=False)
    before = len(merges)
    assert_close(got, gradients(copy.deepcopy(model), x, autocast=autocast), bound)
    assert len(merges) == before


def test_what_merges(merges):
    """Inside a bottleneck two values have one reader; a block's output meets the shortcut's."""
    gradients(prepared(chain), images())
    assert merges == [False, False, True, False, False, True, False, False]
    merges.clear()
    strided = nn.Sequential(Bottleneck(), Bottleneck(stride=2))
    gradients(prepared(lambda: strided), images())
    # The first block's output is read by conv1 and by the shortcut's convolution.
    assert merges == [False, False, True, False, False]


def test_a_third_reader_forbids_merging_of_that_value(merges):
    model = prepared(Pyramid)
    gradients(model, images())
    inside = 3 * 2
    # Of the blocks' outputs, the last has one lateral convolution and a reader of its floats.
    assert len(merges) == inside and not any(merges)


def test_a_reader_of_the_floats_is_added(merges, monkeypatch):
    """A block's output that is also read as floats, behind a merge of its other readers."""

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = Bottleneck(), Bottleneck()

        def forward(self, x):
            x = self.first(x)
            return self.second(x).mean((1, 2, 3)) + x.square().mean((1, 2, 3))

    model = prepared(Watched)
    x = images(4)
    got = gradients(copy.deepcopy(model), x)
    assert True in merges
    apart(monkeypatch)
    assert_close(
        got, gradients(copy.deepcopy(model), x), fused_bound(torch.float32, 6, coded=False)
    )


def test_backward_twice_and_of_a_part(merges):
    model = prepared(chain)
    # Thresholds move with each backward pass; their largest values alone would not.
    for module in model.modules():
        if hasattr(module, "gradient_quantizer"):
            module.gradient_quantizer.mcs = False
    x = images().requires_grad_()
    y = model(x)
    g = torch.randn_like(y)
    (first,) = torch.autograd.grad(y, x, g, retain_graph=True)
    (again,) = torch.autograd.grad(y, x, g, retain_graph=True)
    assert torch.equal(first, again)
    # Only what leads to the last block's weights runs; then everything.
    torch.autograd.grad(y, model[2].conv1.weight, g, retain_graph=True)
    (third,) = torch.autograd.grad(y, x, g, retain_graph=True)
    assert torch.equal(first, third)
    (double,) = torch.autograd.grad(y, x, 2 * g)
    assert torch.equal(double, 2 * first)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_blocks(reentrant, merges):
    model = prepared(chain)
    x = images()
    expected = gradients(copy.deepcopy(model), x)
    blocks = copy.deepcopy(model)

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = blocks

        def forward(self, x):
            for block in self.blocks:
                x = checkpoint(block, x, use_reentrant=reentrant)
            return x

    got = gradients(Wrapped(), x)
    got = {name.removeprefix("blocks."): value for name, value in got.items()}
    assert_close(got, expected, fused_bound(torch.float32, 9, coded=False))


def test_a_gradient_changed_on_its_way_is_told():
    model = prepared(lambda: nn.Sequential(Bottleneck(), Bottleneck()))
    middle = model[0](images())
    y = model[1](middle)
    middle.grad_fn.register_prehook(lambda gs: tuple(g if g is None else g * 2 for g in gs))
    with pytest.raises(RuntimeError, match="changed or added to on its way.*fuse=False"):
        y.sum().backward()


def test_nothing_keeps_gradients_alive_behind_a_step():
    import gc
    import weakref

    model = prepared(chain)
    x = images()
    seen = []
    real = ops.grad_input_reduce

    def watched(*args, **keywords):
        result = real(*args, **keywords)
        seen.append(weakref.ref(result[0]))
        return result

    gc.disable()
    try:
        ops.grad_input_reduce = watched
        gradients(model, x)
    finally:
        ops.grad_input_reduce = real
        gc.enable()
    assert seen and all(reference() is None for reference in seen)


@pytest.mark.parametrize("layout", ("channels_last", "contiguous"))
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_no_step_outlives_itself(monkeypatch, make, layout):
    """Else its autograd graph does, and the nodes that add up the parameters' gradients: those
    belong to the stream of their first step, and a CUDA graph of a later one cannot be captured."""
    import gc
    import weakref

    model = prepared(make)
    x = images() if layout == "channels_last" else images().contiguous()
    seen = []
    real = Twin.attach

    def watched(twin, tensor):
        seen.append(weakref.ref(twin))
        real(twin, tensor)

    monkeypatch.setattr(Twin, "attach", watched)
    gc.disable()
    try:
        gradients(model, x)
        alive = [reference for reference in seen if reference() is not None]
    finally:
        gc.enable()
    assert seen and not alive
