"""Layout of tensors: between fused blocks, at modules that fusing does not know, channels-last."""

import copy

import pytest
import torch
from torch import nn

from daq_mm import convert_model, run_plan, to_channels_last
from daq_mm.convert import set_iteration
from test_convert import Net
from test_fuse import Basic, difference

LAST = torch.channels_last


class Backbone(nn.Module):
    """A stem, stages of blocks, and the result of each stage, as mmdet's ResNet gives them."""

    def __init__(self, between=None, with_cp=False):
        super().__init__()
        self.with_cp = with_cp
        conv = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.stem = nn.Sequential(conv, nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.stages = nn.ModuleList()
        for stride in (1, 2):
            blocks = [Basic(stride=stride, with_cp=with_cp), Basic(with_cp=with_cp)]
            if between is not None:
                blocks.insert(1, between())
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, x):
        x = self.pool(self.stem(x))
        results = []
        for stage in self.stages:
            x = stage(x)
            results.append(x)
        return tuple(results)


class NeedsContiguous(nn.Module):
    def forward(self, x):
        assert x.is_contiguous()
        return x * 1


def block_by_block(backbone, x):
    """The same, each block called on a contiguous tensor of its own."""
    x = backbone.pool(backbone.stem(x).contiguous())
    results = []
    for stage in backbone.stages:
        for block in stage:
            x = block(x.contiguous())
        results.append(x)
    return tuple(results)


def converted(**arguments):
    torch.manual_seed(0)
    backbone = Backbone(**arguments)
    convert_model(backbone)
    return backbone


def gradients(backbone, results):
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(y.shape, generator=generator) for y in results]
    sum((y * w).sum() for y, w in zip(results, weights)).backward()
    return {name: p.grad for name, p in backbone.named_parameters()}


def assert_same(grads, others):
    """Equal but for the order of sums: a pool's, and a norm's in the next product's epilogue."""
    assert grads.keys() == others.keys()
    for name, g in grads.items():
        assert difference(others[name], g) < 1e-4, name


@pytest.fixture
def layouts(monkeypatch):
    """By name of the class, whether blocks that ran by their plans began channels-last."""
    seen = []
    run = run_plan._run

    def spy(module, plan, contiguous, *args):
        seen.append((type(module).__name__, run_plan._is_channels_last(args[0])))
        return run(module, plan, contiguous, *args)

    monkeypatch.setattr(run_plan, "_run", spy)
    return seen


def test_between_blocks_tensors_stay_as_they_are_computed(layouts):
    backbone = converted()
    results = backbone(torch.randn(2, 3, 32, 32))
    assert layouts == [("Backbone", False)] + 4 * [("Basic", True)]
    assert all(y.is_contiguous() for y in results)


def test_the_same_as_block_by_block():
    """What differs is copies alone."""
    together, apart = converted(), converted()
    x = torch.randn(2, 3, 32, 32)
    results, expected = together(x), block_by_block(apart, x)
    for y, z in zip(results, expected, strict=True):
        assert torch.equal(y, z)
    assert_same(gradients(together, results), gradients(apart, expected))
    for a, b in zip(together.buffers(), apart.buffers(), strict=True):
        assert a.dtype == b.dtype and difference(a, b) < 1e-5


def test_a_container_that_no_plan_surrounds_joins_its_blocks(layouts):
    class Untraceable(nn.Module):
        def __init__(self):
            super().__init__()
            self.stage = nn.Sequential(Basic(), Basic(), Basic())

        def forward(self, x):
            return self.stage(x) if x.sum() > 0 else self.stage(x)

    model = Untraceable()
    report = convert_model(model, dict(convert_first=True))
    assert [name for name, _ in report.fused] == ["stage.0", "stage.1", "stage.2"]
    assert model(torch.randn(2, 16, 8, 8)).is_contiguous()
    assert layouts == [("Sequential", False)] + 3 * [("Basic", True)]


@pytest.mark.parametrize("what", ["foreign module", "hook", "hook inside", "warm-up"])
def test_a_block_that_may_look_at_its_input_gets_it_contiguous(what, layouts):
    between = NeedsContiguous if what == "foreign module" else None
    backbone = converted(between=between)
    seen = []
    if what == "hook":
        backbone.stages[0][1].register_forward_hook(
            lambda _, args, y: seen.extend([args[0].is_contiguous(), y.is_contiguous()])
        )
    elif what == "hook inside":
        backbone.stages[0][1].conv1.register_forward_pre_hook(
            lambda _, args: seen.append(args[0].is_contiguous())
        )
    elif what == "warm-up":
        torch.manual_seed(0)
        backbone = Backbone(between=NeedsContiguous)
        convert_model(backbone, dict(warmup_iters=5))
        set_iteration(backbone, 0)
    results = backbone(torch.randn(2, 3, 32, 32))
    assert all(y.is_contiguous() for y in results)
    assert all(seen) and len(seen) == {"hook": 2, "hook inside": 1}.get(what, 0)
    sum(y.sum() for y in results).backward()
    if what == "hook inside":
        assert layouts.count(("Basic", True)) == 3


@pytest.mark.parametrize("with_cp", [False, True])
def test_a_foreign_module_inside_a_block_gets_contiguous_tensors(with_cp, layouts):
    """As mmcv's deformable convolution in a Bottleneck, which refuses others."""
    torch.manual_seed(0)
    backbone = Backbone(with_cp=with_cp)
    backbone.stages[1][1].bn1 = nn.Sequential(NeedsContiguous(), nn.BatchNorm2d(16))
    convert_model(backbone)
    results = backbone(torch.randn(2, 3, 32, 32))
    sum(y.sum() for y in results).backward()
    assert layouts[:5] == [("Backbone", False)] + 4 * [("Basic", True)]
    assert all(y.is_contiguous() for y in results)


def test_a_backbone_with_blocks_that_checkpoint_runs_its_stem_once(layouts):
    """mmdet's ResNet has `with_cp` for its blocks: it is no reason to run the whole twice."""
    backbone, plain = converted(with_cp=True), converted()
    x = torch.randn(2, 3, 32, 32)
    expected = gradients(plain, plain(x))
    layouts.clear()
    assert_same(gradients(backbone, backbone(x)), expected)
    assert layouts.count(("Backbone", False)) == 1
    assert layouts.count(("Basic", True)) == 8


def test_foreign_modules_get_contiguous_tensors_of_contiguous_networks():
    block = nn.Sequential(
        *(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), NeedsContiguous()),
        *(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()),
    )
    report = convert_model(block, dict(convert_first=True))
    assert dict(report.fused)[""] == "0+1+relu, 4+5+relu"
    assert block(torch.randn(2, 8, 6, 6)).is_contiguous()


@pytest.mark.parametrize("first", ["layout", "conversion"])
def test_channels_last_from_the_first_convolution_on(first):
    contiguous = Net()
    model = copy.deepcopy(contiguous)
    parameters = list(model.parameters())
    for change in (to_channels_last, convert_model)[:: 1 if first == "layout" else -1]:
        change(model)
    convert_model(contiguous)
    seen = {}
    for name in ("stem", "body.0", "head", "up"):
        module = model.get_submodule(name)
        assert module.weight.is_contiguous(memory_format=torch.channels_last)
        keep = lambda _, __, y, name=name: seen.update({name: y})  # noqa: E731
        module.register_forward_hook(keep)
    assert all(a is b for a, b in zip(model.parameters(), parameters))
    x = torch.randn(2, 3, 9, 7)
    y = model(x)
    assert list(seen) == ["stem", "body.0", "head", "up"]
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in seen.values())
    torch.testing.assert_close(y, contiguous(x), rtol=0.05, atol=0.05)


def test_channels_last_of_2d_and_3d_and_of_nothing_else():
    model = nn.ModuleList([nn.Conv1d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv3d(4, 4, 3)])
    model.append(nn.Linear(4, 4))
    model.register_parameter("embedding", nn.Parameter(torch.zeros(1, 4, 3, 3)))
    to_channels_last(model)
    assert model[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert model[2].weight.is_contiguous(memory_format=torch.channels_last_3d)
    rest = (model[0].weight, model[3].weight, model.embedding)
    assert all(p.is_contiguous() for p in rest)


def test_mmcv_operators_of_a_channels_last_network_get_contiguous_tensors():
    """RoIAlign reads the memory of a channels-last map as if it were contiguous, silently."""
    ops = pytest.importorskip("mmcv.ops")

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.pool = ops.RoIAlign(4, 1.0, 0)
            self.deform = ops.DeformConv2dPack(8, 8, 3, padding=1)
            self.norm = nn.BatchNorm2d(8)

        def forward(self, x, rois):
            x = self.norm(self.deform(self.conv(x)))
            return self.pool(x, rois)

    torch.manual_seed(0)
    contiguous = Head()
    last = copy.deepcopy(contiguous)
    for _ in range(2):
        to_channels_last(last)
    assert last.conv.weight.is_contiguous(memory_format=LAST)
    assert last.deform.weight.is_contiguous() and last.deform.conv_offset.weight.is_contiguous()
    assert len(last.pool._forward_pre_hooks) == 1
    x, rois = torch.randn(2, 3, 16, 16), torch.tensor([[0, 1.0, 1, 9, 9], [1, 2.0, 3, 12, 14]])
    y, z = contiguous(x, rois), last(x, rois)
    torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-5)
    g = torch.randn(y.shape)
    y.backward(g)
    z.backward(g.contiguous(memory_format=LAST))
    for a, b in zip(contiguous.parameters(), last.parameters()):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)
