"""analysis.operands: each part quantizes what it says, as the INT8 layers do, and nothing else."""

import pytest
import torch
from torch import nn

pytest.importorskip("mmengine")
import daq_mm  # noqa: E402
import study_start  # noqa: E402
from analysis import operands  # noqa: E402
from common.configs import UsageError  # noqa: E402


def layer_and_operands(groups: int = 1):
    """A model of two convolutions (the first one stays in floating point), x and the gradient."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3, padding=1)
    model = nn.Sequential(first, nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=groups))
    return model, torch.randn(4, 3, 9, 9), torch.randn(4, 8, 5, 5)


def step(model: nn.Module, x: torch.Tensor, g: torch.Tensor) -> dict[str, torch.Tensor]:
    """Result, weight gradients and the first layer's, which tells grad-input."""
    model.zero_grad()
    y = model(x)
    y.backward(g)
    return {
        "y": y.detach(),
        "dw": model[2].weight.grad,
        "db": model[2].bias.grad,
        "below": model[0].weight.grad,
    }


def changed(part: str, groups: int = 1) -> set[str]:
    """What differs from floating point by more than rounding."""
    model, x, g = layer_and_operands(groups)
    exact = step(model, x, g)
    found = step(operands.quantize_part(model, part), x, g)
    return {
        name for name in exact if (found[name] - exact[name]).norm() > 1e-4 * exact[name].norm()
    }


@pytest.mark.parametrize("groups", [1, 8])
@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("x", {"y", "dw"}),
        ("x_at_0.7", {"y", "dw"}),
        ("w", {"y", "below"}),
        ("w_by_channel", {"y", "below"}),
        ("forward", {"y", "dw", "below"}),
        ("x_by_channel", {"y", "dw"}),
        ("forward_folded", {"y", "dw", "below"}),
        ("grad_input", {"below"}),
        ("grad_weight", {"dw"}),
        ("all", {"y", "dw", "below"}),
    ],
)
def test_a_part_changes_what_depends_on_it(part, expected, groups):
    assert changed(part, groups) == expected


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_channels_on_grids_of_their_own_lose_less_where_they_differ_in_size(groups):
    torch.manual_seed(0)
    size = 4.0 ** torch.arange(-4, 4).float()
    x = (torch.randn(4, 8, 9, 9) * size.view(1, -1, 1, 1)).relu()
    w = torch.randn(16, 8 // groups, 3, 3) / size.view(groups, -1).repeat_interleave(
        16 // groups, 0
    ).view(16, -1, 1, 1)
    exact = nn.functional.conv2d(x, w, groups=groups)

    def error(x, w):
        return (nn.functional.conv2d(x, w, groups=groups) - exact).norm() / exact.norm()

    q_x, step = operands.on_grid_by_channel(x)
    assert ((q_x / step.view(1, -1, 1, 1)).round().amax((0, 2, 3)) == 255).all()
    q_w = operands.folded_weight_on_grid(w, step, groups)
    by_tensor = error(operands.on_grid(x), operands.weight_on_grid(w, by_channel=True))
    assert error(q_x, q_w) < 0.02 < 0.1 * by_tensor


@pytest.mark.parametrize("groups", [1, 8])
def test_all_parts_together_are_the_int8_layer(groups):
    model, x, g = layer_and_operands(groups)
    own = step(operands.quantize_part(model, "all"), x, g)
    settings = dict(gradient_quantizer="absmax", grad_input="folded", fuse=False)
    daq_mm.convert_model(model, settings)
    layers = step(model, x, g)
    for name in ("y", "dw", "db"):
        torch.testing.assert_close(own[name], layers[name], rtol=1e-4, atol=1e-4)
    # the layer folds the gradient's steps into the weight before it quantizes that
    error = (own["below"] - layers["below"]).norm() / layers["below"].norm()
    assert error < 0.02


@pytest.mark.parametrize("sign", [1, -1])
def test_a_grid_that_ends_below_the_maximum(sign):
    x = torch.linspace(0 if sign == 1 else -1, 1, 1001).view(1, 1, 1, -1)
    found = operands.on_grid(x, 0.5)
    inside = x.abs() <= 0.5
    step = 0.5 / (255 if sign == 1 else 127)
    assert (found - x)[inside].abs().max() <= step / 2 * 1.001
    assert torch.equal(found[~inside].abs(), found.abs().max().expand_as(found[~inside]))
    assert found.abs().max() == pytest.approx(0.5)
    assert torch.equal(operands.on_grid(x, 1.0), operands.on_grid(x))


def test_a_scale_for_each_channel_is_finer():
    w = torch.randn(8, 4, 3, 3) * torch.logspace(-3, 0, 8).view(-1, 1, 1, 1)
    errors = (operands.weight_on_grid(w, by_channel=True) - w).abs().amax((1, 2, 3))
    assert (errors <= w.abs().amax((1, 2, 3)) / 254 * 1.001).all()
    assert (operands.weight_on_grid(w) - w)[0].abs().max() > 10 * errors[0]


def test_the_model_itself_is_left_alone():
    model, x, g = layer_and_operands()
    exact = step(model, x, g)["y"]
    operands.quantize_part(model, "all")
    assert torch.equal(step(model, x, g)["y"], exact)
    assert type(model[2]) is nn.Conv2d


def test_bad_input_is_told():
    model, *_ = layer_and_operands()
    with pytest.raises(ValueError, match="only:weights is unknown; allowed: x, w, w_by_channel"):
        operands.quantize_part(model, "weights")
    for text in ("x_at_", "x_at_1.5", "x_at_0", "x_at_half"):
        with pytest.raises(ValueError, match=f"only:{text} needs a number above 0 and at most 1"):
            operands.quantize_part(model, text)
    with pytest.raises(ValueError, match="no convolution to quantize"):
        operands.quantize_part(nn.Sequential(nn.Linear(2, 2)), "x")
    reflected = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding="same"))
    with pytest.raises(ValueError, match="pads in a way"):
        operands.quantize_part(reflected, "x")
    with pytest.raises(UsageError, match="only:weights is unknown"):
        study_start.copied_by("only:weights", model)


def test_depthwise_layers_have_medians_of_their_own():
    rows = {
        name: dict.fromkeys(study_start.COMPARED, 1.0) | {"noise": e}
        for name, e in zip("abc", (1.0, 2.0, 6.0))
    }
    found = study_start.medians_of(rows, {"c"})
    assert [found[group]["noise"] for group in ("all", "depthwise", "others")] == [2.0, 6.0, 1.5]
    assert list(study_start.medians_of(rows, set())) == ["all"]
    model, *_ = layer_and_operands(groups=8)
    assert study_start.depthwise(model) == {"2"}


def test_a_part_in_place_leaves_the_parameters_to_their_optimizer():
    model, x, g = layer_and_operands()
    expected = step(operands.quantize_part(model, "x"), x, g)
    parameters = list(model.parameters())
    assert operands.quantize_part(model, "x", in_place=True) is model
    assert all(a is b for a, b in zip(model.parameters(), parameters))
    for name, value in step(model, x, g).items():
        assert torch.equal(value, expected[name])
