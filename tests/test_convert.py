"""convert_model and revert_model on plain networks."""

import copy

import pytest
import torch
from torch import nn

from daq_mm import DAQConv2d, DAQConv3d, convert_model, revert_model


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Conv2d(8, 4, 1)
        self.again = self.head
        self.up = nn.ConvTranspose2d(4, 4, 2)

    def forward(self, x):
        return self.up(self.head(self.body(self.stem(x)).relu()))


def test_default_leaves_the_first():
    model = Net()
    parameters = dict(model.named_parameters())
    report = convert_model(model)
    assert [name for name, _ in report.converted] == ["body.0", "head"]
    assert dict(report.skipped)["stem"].startswith("the network's first convolution")
    assert "ConvTranspose2d is not exactly" in dict(report.skipped)["up"]
    assert type(model.head) is DAQConv2d and model.again is model.head
    after = dict(model.named_parameters())
    assert after.keys() == parameters.keys()
    assert all(after[name] is parameters[name] for name in parameters)
    text = str(report)
    assert "2 converted" in text and "2 stay in floating point" in text


def test_idempotent():
    model = Net()
    convert_model(model, "paper")
    model(torch.randn(1, 3, 6, 6)).sum().backward()
    state = copy.deepcopy(model.state_dict())
    report = convert_model(model, "daq")
    assert not report.converted and len(report.already) == 2
    assert model.head.config.recipe == "paper"
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name])


def test_revert_gives_the_plain_network():
    model = Net()
    plain = copy.deepcopy(model)
    convert_model(model)
    assert sorted(revert_model(model)) == ["body.0", "head"]
    assert repr(model) == repr(plain)
    assert model.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(model(x), plain(x))
    assert vars(model.head).keys() == vars(plain.head).keys()
    assert revert_model(model) == []


def test_revert_a_layer_built_as_int8():
    model = nn.Sequential(DAQConv3d(2, 3, 1))
    revert_model(model)
    assert type(model[0]) is nn.Conv3d


@pytest.mark.parametrize(
    ("config", "names"),
    [
        (dict(include=["body.*"]), ["body.0"]),
        (dict(exclude=["body.*"]), ["head"]),
        (dict(exclude=["again"]), ["body.0"]),
        (dict(convert_first=True), ["stem", "body.0", "head"]),
    ],
)
def test_patterns(config, names):
    assert [name for name, _ in convert_model(Net(), config).converted] == names


def test_depthwise_layers_may_stay_in_float():
    def network():
        return nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.Conv2d(4, 8, 3, groups=4),
            nn.Conv2d(8, 8, 3, groups=4),
            nn.Conv2d(8, 1, 1),
            nn.Conv2d(1, 2, 1),
        )

    assert [name for name, _ in convert_model(network()).converted] == ["1", "2", "3", "4"]
    report = convert_model(network(), dict(convert_depthwise=False))
    # one input channel in one group is an ordinary convolution
    assert [name for name, _ in report.converted] == ["2", "3", "4"]
    assert "a depthwise convolution (convert_depthwise=True converts it)" in str(report)


@pytest.mark.parametrize("setting", ["include", "exclude"])
def test_pattern_that_matches_nothing(setting):
    model = Net()
    with pytest.raises(ValueError) as error:
        convert_model(model, {setting: ["bodyy.*"]})
    assert f"{setting} pattern 'bodyy.*' matches no convolution; there are: again" in str(
        error.value
    )
    assert type(model.head) is nn.Conv2d


def test_state_dicts_load_both_ways():
    plain, converted = Net(), Net()
    convert_model(converted)
    converted.load_state_dict(plain.state_dict())
    converted(torch.randn(1, 3, 6, 6)).sum().backward()
    missing, unexpected = plain.load_state_dict(converted.state_dict(), strict=False)
    assert not missing and all("gradient_quantizer" in name for name in unexpected)
    again = Net()
    convert_model(again)
    again.load_state_dict(converted.state_dict())
    assert torch.equal(
        again.head.gradient_quantizer.threshold, converted.head.gradient_quantizer.threshold
    )


def test_optimizer_built_before_keeps_working():
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.5)
    convert_model(model)
    before = model.head.weight.detach().clone()
    model(torch.randn(2, 3, 6, 6)).square().mean().backward()
    thresholds = model.head.gradient_quantizer.threshold.clone()
    optimizer.step()
    assert not torch.equal(model.head.weight, before)
    assert torch.equal(model.head.gradient_quantizer.threshold, thresholds)


def test_subclasses_and_other_dtypes_are_left():
    class MyConv(nn.Conv2d):
        pass

    model = nn.Sequential(nn.Conv2d(3, 3, 1), MyConv(3, 3, 1), nn.Conv2d(3, 3, 1).double())
    report = convert_model(model)
    reasons = dict(report.skipped)
    assert "MyConv is not exactly" in reasons["1"]
    assert "dtype torch.float64" in reasons["2"]


def test_mmcv_wrappers_are_equivalent():
    wrappers = pytest.importorskip("mmcv.cnn.bricks.wrappers")
    model = nn.Sequential(nn.Conv2d(3, 3, 1), wrappers.Conv2d(3, 3, 1))
    convert_model(model)
    assert type(model[1]) is DAQConv2d
    revert_model(model)
    assert type(model[1]) is wrappers.Conv2d


def test_a_module_used_five_times_learns():
    """A head shared over levels: thresholds are updated by each use's gradient."""
    model = nn.ModuleDict({"first": nn.Conv2d(3, 4, 1), "head": nn.Conv2d(4, 4, 3, padding=1)})
    convert_model(model)
    x = model["first"](torch.randn(1, 3, 16, 16))
    loss = sum(model["head"](x[..., : 2**k]).sum() for k in range(5))
    loss.backward()
    assert int(model["head"].gradient_quantizer.iteration) == 5
