"""Fused blocks: what is fused, that it computes the same, and when it steps aside."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from daq_mm import DAQConv2d, convert_model, revert_model
from daq_mm.convert import set_iteration
from daq_mm.fuse import is_fused
from daq_mm.twin import twin_of
from tolerances import fused_bound

LAST = torch.channels_last


class Basic(nn.Module):
    """A residual block as torchvision and mmdet write it."""

    def __init__(self, width=16, stride=1, norm=nn.BatchNorm2d, with_cp=False):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.with_cp = with_cp
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(width, width, 1, stride, bias=False), norm(width)
            )

    def forward(self, x):
        def inner(x):
            identity = x
            out = self.relu(self.bn1(self.conv1(x)))
            out = self.bn2(self.conv2(out))
            if self.downsample is not None:
                identity = self.downsample(x)
            out += identity
            return out

        if self.with_cp and x.requires_grad:
            out = checkpoint(inner, x, use_reentrant=True)
        else:
            out = inner(x)
        return self.relu(out)


class PreActivation(nn.Module):
    """Norm and activation before the convolution."""

    def __init__(self, width=16):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)
        self.bn2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        y = self.conv1(torch.relu(self.bn1(x)))
        return x + self.conv2(self.bn2(y).relu())


def inverted_residual():
    return nn.Sequential(
        nn.Conv2d(16, 48, 1, bias=False),
        nn.BatchNorm2d(48),
        nn.ReLU6(inplace=True),
        nn.Conv2d(48, 48, 3, 1, 1, groups=48, bias=False),
        nn.BatchNorm2d(48),
        nn.ReLU6(inplace=True),
        nn.Conv2d(48, 16, 1, bias=False),
        nn.BatchNorm2d(16),
    )


def video():
    return nn.Sequential(
        nn.Conv3d(16, 24, (3, 1, 1), padding=(1, 0, 0)),
        nn.BatchNorm3d(24, affine=False),
        nn.ReLU(),
        nn.Conv3d(24, 16, (1, 3, 3), (1, 2, 2), (0, 1, 1)),
        nn.BatchNorm3d(16, momentum=None),
        nn.ReLU(),
    )


def plain_chain():
    return nn.Sequential(
        nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 16, 1), nn.ReLU(inplace=True)
    )


# Name: block, size of its input, units (for the bound).
BLOCKS = {
    "residual": (Basic, (4, 16, 16, 16), 2),
    "residual with downsample": (lambda: Basic(stride=2), (4, 16, 16, 16), 3),
    "ResNeXt-like": (
        lambda: nn.Sequential(
            nn.Conv2d(16, 32, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(32), nn.ReLU()
        ),
        (4, 16, 12, 12),
        1,
    ),
    "pre-activation": (PreActivation, (4, 16, 16, 16), 2),
    "inverted residual": (inverted_residual, (4, 16, 16, 16), 3),
    "video": (video, (2, 16, 4, 10, 10), 2),
    "no norm": (plain_chain, (2, 16, 16, 16), 2),
}


def pair(make, **settings):
    """The same block twice: converted unfused and fused."""
    torch.manual_seed(1)
    plain = make()
    for module in plain.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    fused = copy.deepcopy(plain)
    convert_model(plain, dict(fuse=False, convert_first=True))
    report = convert_model(fused, dict(convert_first=True, **settings))
    assert report.fused
    return plain, fused


def step(block, x, dtype=torch.float32, autocast=False):
    """Output, and all gradients by name."""
    x = x.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = block(x)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y)
    y.backward(g)
    grads = {name: p.grad.clone() for name, p in block.named_parameters() if p.grad is not None}
    block.zero_grad()
    return y.detach(), {**grads, "x": x.grad}


#: Size of the gradient of a bias before a norm, which is 0 but for rounding, against others'.
BEFORE_NORM = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def difference(a, b):
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / a.norm().clamp(min=1e-12))


def assert_same(plain, fused, x, units, *, dtype=torch.float32, coded=False, autocast=False):
    expected, grads = step(plain, x, dtype, autocast)
    got, fused_grads = step(fused, x, dtype, autocast)
    assert got.dtype == expected.dtype and got.shape == expected.shape
    bound = fused_bound(dtype, units, coded=coded)
    assert difference(expected, got) < bound
    assert grads.keys() == fused_grads.keys()
    scale = max(float(g.norm()) / g.numel() ** 0.5 for g in grads.values())
    for name, grad in grads.items():
        assert fused_grads[name].dtype == grad.dtype
        if float(grad.norm()) / grad.numel() ** 0.5 < BEFORE_NORM[dtype] * scale:
            continue  # a bias before a norm: nothing but rounding
        assert difference(grad, fused_grads[name]) < bound, name


@pytest.mark.parametrize("layout", [torch.contiguous_format, None], ids=["contiguous", "last"])
@pytest.mark.parametrize("saved", ["float", "int8"])
@pytest.mark.parametrize("name", BLOCKS)
def test_fused_computes_as_unfused(name, saved, layout):
    make, size, units = BLOCKS[name]
    plain, fused = pair(make, saved_output=saved)
    layout = layout or (LAST if len(size) == 4 else torch.channels_last_3d)
    x = torch.randn(size).contiguous(memory_format=layout)
    for _ in range(2):
        assert_same(plain, fused, x, units, coded=saved == "int8")
    for (key, a), b in zip(plain.state_dict().items(), fused.state_dict().values()):
        assert difference(a, b) < 1e-3 or "gradient_quantizer" in key, key
    assert plain(x).stride() == fused(x).stride()


@pytest.mark.parametrize("name", BLOCKS)
def test_bfloat16_autocast(name):
    make, size, units = BLOCKS[name]
    plain, fused = pair(make)
    x = torch.randn(size).relu()
    assert_same(plain, fused, x, units, dtype=torch.bfloat16, coded=True, autocast=True)


def test_mixed_dtypes_keep_the_dtype_of_the_result():
    """Under autocast, a float32 input is added in place to a bfloat16 value, or otherwise."""
    plain, fused = pair(Basic)
    assert_same(plain, fused, torch.randn(2, 16, 8, 8), 2, autocast=True)


@pytest.mark.parametrize("recipe", ["paper", "gvq", "mcs", "global"])
def test_recipes(recipe):
    plain, fused = pair(Basic, recipe=recipe)
    for module in plain.modules():
        if hasattr(module, "gradient_quantizer"):
            module.config = module.gradient_quantizer.config = fused.conv1.config
            module.gradient_quantizer.__class__ = fused.conv1.gradient_quantizer.__class__
    assert_same(plain, fused, torch.randn(4, 16, 16, 16), 2, coded=True)


def pair_of(config, make=Basic):
    """The same block twice by the same settings: unfused and fused, and what was fused."""
    torch.manual_seed(1)
    plain = make()
    fused = copy.deepcopy(plain)
    convert_model(plain, dict(config, fuse=False, convert_first=True))
    report = convert_model(fused, dict(config, convert_first=True, saved_output="float"))
    return plain, fused, report


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        dict(keep_gradient_mean=True),
        dict(recipe="paper", keep_gradient_mean=True),
        dict(recipe="ui8", rounding="nearest", ui8_alpha=1000.0),
    ],
    ids=lambda config: " ".join(f"{v}" for v in config.values()),
)
def test_other_settings_of_the_gradient_in_fused_units(config, frozen):
    plain, fused, report = pair_of(config)
    assert report.fused
    x = torch.randn(4, 16, 16, 16)
    step(plain, x), step(fused, x)
    if frozen:
        # The gradient of the convolution's output does not sum to zero any more.
        fused.load_state_dict(plain.state_dict())
        plain.eval(), fused.eval()
    for _ in range(2):
        assert_same(plain, fused, x, 2)
    if config.get("recipe") == "ui8":
        assert float(fused.conv2.gradient_quantizer.update_scale()) < 0.95


def test_keeping_the_mean_moves_the_weight_gradient_of_a_fused_unit():
    _, fused, _ = pair_of({})
    _, kept, _ = pair_of(dict(keep_gradient_mean=True))
    x = torch.randn(4, 16, 16, 16)
    without, with_it = step(fused, x)[1], step(kept, x)[1]
    assert torch.equal(without["bn2.weight"], with_it["bn2.weight"])
    assert difference(without["conv2.weight"], with_it["conv2.weight"]) > 1e-4


@pytest.mark.parametrize(
    "config", [dict(gradient_bits=5), dict(recipe="switchback"), dict(recipe="dorefa")]
)
def test_settings_that_units_lack_run_unfused(config):
    plain, other, report = pair_of(config)
    assert not report.fused and not is_fused(other)
    x = torch.randn(4, 16, 8, 8)
    (y, grads), (y_other, grads_other) = step(plain, x), step(other, x)
    assert torch.equal(y, y_other)
    assert all(torch.equal(grads[name], grads_other[name]) for name in grads)


@pytest.mark.parametrize("config", [dict(activation_bits=5), dict(recipe="switchback")])
def test_a_layer_of_such_settings_behind_a_unit_reads_floats(config):
    def make():
        return nn.Sequential(
            *(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(DAQConv2d(16, 16, 3, padding=1, config=config), nn.BatchNorm2d(16), nn.ReLU()),
        )

    plain, fused, report = pair_of({}, make)
    assert report.fused
    assert_same(plain, fused, torch.randn(4, 16, 8, 8), 2)


def test_evaluation_and_frozen_statistics():
    plain, fused = pair(Basic)
    x = torch.randn(4, 16, 16, 16)
    step(plain, x), step(fused, x)
    fused.load_state_dict(plain.state_dict())
    for block in (plain, fused):
        block.bn1.eval()
        block.bn1.weight.requires_grad_(False)
    assert_same(plain, fused, x, 2, coded=True)
    plain.eval(), fused.eval()
    with torch.no_grad():
        assert difference(plain(x), fused(x)) < fused_bound(torch.float32, 2, coded=False)
    with torch.inference_mode():
        assert difference(plain(x), fused(x)) < fused_bound(torch.float32, 2, coded=False)


def test_frozen_layers_get_no_gradient():
    _, fused = pair(Basic)
    for p in (*fused.conv1.parameters(), *fused.bn1.parameters()):
        p.requires_grad_(False)
    _, grads = step(fused, torch.randn(2, 16, 8, 8))
    assert set(grads) == {"conv2.weight", "bn2.weight", "bn2.bias", "x"}
    x = torch.randn(2, 16, 8, 8)
    fused(x).sum().backward()  # an input without a gradient


def test_activations_travel_in_8_bits():
    """Within a block no float activation is kept, and the next block takes the twin."""
    torch.manual_seed(0)
    model = nn.Sequential(Basic(), Basic())
    convert_model(model, dict(convert_first=True))
    saved = []
    x = torch.randn(2, 16, 16, 16).contiguous(memory_format=LAST).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        model(x)
    values = x.numel()
    large = [t for t in saved if t.numel() >= values]
    assert large and all(t.dtype == torch.uint8 for t in large)


def test_accumulation_of_gradients():
    plain, fused = pair(Basic)
    x = torch.randn(2, 4, 16, 8, 8)
    for block in (plain, fused):
        for part in x:
            block(part).square().mean().backward()
    bound = fused_bound(torch.float32, 2, coded=True)
    for (name, p), q in zip(plain.named_parameters(), fused.parameters()):
        assert difference(p.grad, q.grad) < bound, name


def test_checkpointing_inside_and_outside():
    _, fused = pair(Basic)
    inside = copy.deepcopy(fused)
    inside.with_cp = True
    convert_model(inside)  # plans are made for with_cp as it stood: unfused otherwise
    x = torch.randn(4, 16, 16, 16)
    _, expected = step(copy.deepcopy(fused), x)
    _, got = step(inside, x)
    outside = copy.deepcopy(fused)
    for reentrant in (True, False):
        again = copy.deepcopy(outside)
        _, wrapped = step(lambda_block(again, reentrant), x)
        for name in expected:
            assert torch.equal(expected[name], wrapped["block." + name if name != "x" else "x"])
    for name in expected:
        assert difference(expected[name], got[name]) < fused_bound(torch.float32, 2, coded=True)


def lambda_block(block, reentrant):
    class Wrapper(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block

        def forward(self, x):
            return checkpoint(self.block, x, use_reentrant=reentrant)

    return Wrapper()


def test_block_that_checkpoints_itself_is_planned():
    block = Basic(with_cp=True)
    report = convert_model(block, dict(convert_first=True))
    assert "conv2+bn2+add+relu" in dict(report.fused)[""]
    x = torch.randn(2, 16, 8, 8)
    apart = copy.deepcopy(block)
    apart.with_cp = False
    _, expected = step(apart, x)
    _, got = step(block, x)
    for name, grad in expected.items():
        assert torch.equal(grad, got[name]), name


def test_hooks_on_inner_modules_see_float_tensors():
    plain, fused = pair(Basic)
    x = torch.randn(2, 16, 8, 8)
    seen = {}
    for name, block in (("plain", plain), ("fused", fused)):
        block.bn1.register_forward_hook(lambda m, i, o, name=name: seen.update({name: o.detach()}))
    step(plain, x), step(fused, x)
    assert torch.equal(seen["plain"], seen["fused"])
    # A hook on the block itself does not disturb.
    _, other = pair(Basic)
    other.register_forward_hook(lambda m, i, o: seen.update(block=o))
    other(x)
    assert seen["block"].shape == x.shape


def test_unusual_calls_step_aside():
    plain, fused = pair(plain_chain)
    image = torch.randn(16, 8, 8)
    assert torch.equal(plain(image), fused(image))
    assert fused(torch.randn(0, 16, 8, 8)).shape == (0, 16, 8, 8)
    with pytest.raises(ValueError, match="expected \\(N, 16"):
        fused(torch.randn(2, 15, 8, 8))


def test_addition_that_broadcasts():
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x):
            return torch.relu(self.bn(self.conv(x)) + x.mean((2, 3), keepdim=True))

    plain, fused = pair(Shifted)
    assert_same(plain, fused, torch.randn(4, 8, 6, 6), 1, coded=True)


def test_identities_do_not_part_a_unit():
    class Dropped(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.drop = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.Identity()

        def forward(self, x):
            return x + self.drop(self.bn(self.conv(x)))

    plain, fused = pair(Dropped)
    assert fused._daq_plan.units[0].words() == "conv+bn+add"
    assert_same(plain, fused, torch.randn(4, 8, 6, 6), 1, coded=True)


def test_value_changed_in_place_is_quantized_again():
    torch.manual_seed(0)
    first = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    model = nn.Sequential(first, nn.Conv2d(8, 8, 1))
    convert_model(model, dict(convert_first=True))
    assert is_fused(first)
    with torch.no_grad():
        middle = first(torch.randn(2, 8, 8, 8).contiguous(memory_format=LAST))
        assert twin_of(middle, allow_unsigned=True, reader=model[1]) is not None
        before = model[1](middle)
        middle.mul_(2)
        assert twin_of(middle, allow_unsigned=True, reader=model[1]) is None
        after = model[1](middle)
    assert difference(after, 2 * before - model[1].bias.view(1, -1, 1, 1)) < 1e-2


@pytest.mark.parametrize("fuse", (False, True))
def test_value_changed_behind_the_version_counter_is_quantized_again(fuse):
    """As by a CUDA graph's replay, or by NumPy: the layer that shared its input reads it anew."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    convert_model(model, dict(convert_first=True, fuse=fuse))
    assert is_fused(model) == fuse
    x, other = torch.randn(2, 2, 8, 8, 8).unbind()
    x = x.contiguous(memory_format=LAST)
    model.eval()
    with torch.no_grad():
        before = model(x)
        version = x._version
        x.data.copy_(other)
        assert x._version == version
        after, expected = model(x), model(other.contiguous(memory_format=LAST))
    assert torch.equal(after, expected) and not torch.equal(after, before)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_copies(how):
    _, fused = pair(Basic)
    x = torch.randn(2, 16, 8, 8)
    other = copy.deepcopy(fused) if how == "deepcopy" else pickle.loads(pickle.dumps(fused))
    assert other.forward.__self__ is other
    with torch.no_grad():
        other.conv1.weight.zero_()
    assert fused.conv1.weight.any()
    fused.eval(), other.eval()
    assert not torch.equal(fused(x), other(x))


def test_state_dicts_and_reverting():
    block = Basic()
    plain = copy.deepcopy(block)
    keys = block.state_dict().keys()
    convert_model(block, dict(convert_first=True))
    assert {k for k in block.state_dict() if "gradient_quantizer" not in k} == keys
    again = convert_model(block, dict(convert_first=True))
    assert not again.converted and again.fused
    revert_model(block)
    assert not is_fused(block) and vars(block).keys() == vars(plain).keys()
    x = torch.randn(2, 16, 8, 8)
    assert torch.equal(block(x), plain(x))


def test_fuse_can_be_switched_off():
    block = Basic()
    report = convert_model(block, dict(convert_first=True, fuse=False))
    assert not report.fused and not is_fused(block)


def test_report_says_what_is_not_fused_and_why():
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

        def forward(self, x):
            return self.bn(self.conv(x)) if x.sum() > 0 else x

    model = nn.Sequential(nn.Conv2d(3, 8, 1), Stubborn())
    report = convert_model(model)
    assert "cannot be traced" in dict(report.unfused)["1"]
    assert "not fused  1:" in str(report)


def test_forward_that_depends_on_training_is_left_alone():
    class Moody(Basic):
        def forward(self, x):
            return super().forward(x) if self.training else x

    model = Moody()
    report = convert_model(model, dict(convert_first=True))
    assert "not the same in training" in dict(report.unfused)[""]
    model.eval()
    x = torch.randn(1, 16, 4, 4)
    assert model(x) is x


def test_tracing_leaves_no_trace():
    class Remembers(Basic):
        def forward(self, x):
            self.last = x
            return super().forward(x)

    model = Remembers()
    convert_model(model, dict(convert_first=True))
    assert not hasattr(model, "last")


def test_warmup_runs_in_floating_point():
    plain = Basic().eval()
    warm = copy.deepcopy(plain)
    convert_model(warm, dict(convert_first=True, warmup_iters=2))
    plain.train(), warm.train()
    x = torch.randn(2, 16, 8, 8)
    set_iteration(warm, 0)
    assert torch.equal(plain(x), warm(x))
    set_iteration(warm, 2)
    assert not torch.equal(plain(x), warm(x))


def test_nan_surfaces():
    _, fused = pair(Basic)
    x = torch.randn(2, 16, 8, 8)
    x[0, 0, 0, 0] = float("nan")
    assert fused(x).isnan().any()
    _, fused = pair(Basic)
    y = fused(torch.randn(2, 16, 8, 8))
    y.backward(torch.where(y == y.max(), float("inf"), 1.0))
    assert not fused.conv1.weight.grad.isfinite().all()


def test_compiled_models_run_unfused_and_right():
    _, fused = pair(Basic)
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    x = torch.randn(2, 16, 8, 8)
    fused.eval()
    bound = fused_bound(torch.float32, 2, coded=False)
    assert difference(fused(x), compiled(x)) < bound


def test_input_of_two_convolutions_is_quantized_and_kept_once():
    plain, _ = pair(lambda: Basic(stride=2))
    x = torch.randn(2, 16, 8, 8).contiguous(memory_format=LAST).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = plain(x)
    in_8_bits = [t for t in saved if t.dtype == torch.uint8 and t.shape == x.shape]
    assert len(in_8_bits) == 2 and in_8_bits[0].data_ptr() == in_8_bits[1].data_ptr()
    y.sum().backward()
    assert x.grad.isfinite().all()
