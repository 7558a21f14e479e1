"""sweep_clipping.py: its thresholds are the package's, its ratios those of the products."""

import json

import pandas as pd
import pytest
import torch
from torch import nn

import sweep_clipping
from analysis.clipping_probe import VALUES, ClippingProbe, LayerThresholds, settings
from analysis.probe import ProbeDone
from analysis.products import product_errors
from common.errors import UsageError
from daq_mm.config import DAQConfig
from daq_mm.quantizers import build_quantizer
from toy_runner import toy_runner

BODY_AT_ZERO = ("body", "mcs_lambda", 0.0)


@pytest.mark.parametrize("recipe", ["paper", "daq"])
def test_thresholds_are_those_of_a_layer_trained_by_the_setting(recipe):
    tried = settings(recipe)
    configs = [config for *_, config in tried]
    quantizers = [build_quantizer(5, config) for config in configs]
    mine = LayerThresholds(5, configs)
    for step in range(55):  # past the second measurement of the discriminator
        g = torch.randn(2, 5, 6, 6) ** 3 * (1 + step % 4)
        g[:, 4] = 0
        for found, quantizer in zip(mine.update(g), quantizers, strict=True):
            torch.testing.assert_close(found, quantizer.update(g), rtol=0, atol=0)
    assert len({tuple(state.tolist()) for state in mine.state}) > 8


def test_every_parameter_holds_the_published_value():
    recipe = DAQConfig.from_recipe("paper")
    for field, values in VALUES.items():
        assert getattr(recipe, field) == sweep_clipping.PUBLISHED[field]
        assert sweep_clipping.PUBLISHED[field] in values


def probed(tmp_path, iterations, recipes=("paper", "daq"), watch=None):
    runner = toy_runner(tmp_path, hooks=[])
    probe = ClippingProbe(iterations, recipes)
    runner.register_hook(probe)
    if watch:
        watch(runner)
    with pytest.raises(ProbeDone):
        runner.train()
    return probe.records, runner


def test_ratios_at_the_first_gradient_are_those_without_clipping(tmp_path):
    """The first gradient is never clipped, so all settings agree with `product_errors`."""
    kept = {}

    def watch(runner):
        head = runner.model.head

        def forward_hook(module, inputs, output):
            x, w = inputs[0].detach(), module.weight.detach().clone()
            output.register_hook(lambda g: kept.update(head=(x, w, g.detach())))

        head.register_forward_hook(forward_hook)

    records, _ = probed(tmp_path, [0], watch=watch)
    geometry = dict(stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1), groups=1)
    wanted = product_errors(*kept["head"], geometry)
    at_head = [r for r in records if r["layer"] == "head"]
    assert len(at_head) == 2 * sum(map(len, VALUES.values()))
    for record in at_head:
        variant = "folded" if record["recipe"] == "daq" else "global"
        assert record["grad_input"] == pytest.approx(wanted["grad_input"][variant], abs=1e-4)
        assert record["grad_weight"] == pytest.approx(wanted["grad_weight"]["channel"], abs=1e-4)
    assert {r["layer"] for r in records} == {"body", "head"}  # not the first convolution


def test_a_layer_used_twice_is_measured_by_the_sum_of_its_uses(tmp_path):
    """With lambda = 0 thresholds are the maxima of each use, so float formulas tell the ratio."""
    uses = []

    def watch(runner):
        def forward_hook(module, inputs, output):
            x = inputs[0].detach()
            output.register_hook(lambda g: uses.append((x, g.detach())))

        runner.model.body.register_forward_hook(forward_hook)

    records, runner = probed(tmp_path, [0], recipes=["paper"], watch=watch)
    assert len(uses) == 2
    exact = approximate = 0
    for x, g in uses:
        x_step, g_step = x.abs().amax() / 127, g.abs().amax((0, 2, 3), keepdim=True) / 127
        x_hat = (x / x_step).round().double() * x_step
        g_hat = (g / g_step).round().double() * g_step
        w_size = runner.model.body.weight.shape
        exact = exact + nn.grad.conv2d_weight(x_hat, w_size, g.double(), padding=1)
        approximate = approximate + nn.grad.conv2d_weight(x_hat, w_size, g_hat, padding=1)
    ratio = exact.square().sum() / (approximate - exact).square().sum()
    [found] = [r for r in records if (r["layer"], r["field"], r["value"]) == BODY_AT_ZERO]
    assert found["grad_weight"] == pytest.approx(10 * float(ratio.log10()), abs=0.05)


def test_settings_differ_once_there_is_a_memory(tmp_path):
    records, _ = probed(tmp_path, [2, 5], recipes=["paper"])
    assert {r["iteration"] for r in records} == {2, 5}
    last = [r for r in records if r["iteration"] == 5 and r["layer"] == "body"]
    by_a = [r["grad_weight"] for r in last if r["field"] == "mcs_a"]
    assert len(set(by_a)) == len(VALUES["mcs_a"])


def test_the_training_is_not_changed(tmp_path):
    _, watched = probed(tmp_path / "a", [3])
    alone = toy_runner(tmp_path / "b")

    class Stop(ClippingProbe):
        def before_train(self, runner):
            self.layers, self.thresholds = {}, {}

    alone.register_hook(Stop([3], ["paper"]))
    with pytest.raises(ProbeDone):
        alone.train()
    pairs = zip(watched.model.parameters(), alone.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def made_up(layer, value, ratio, **fields):
    record = dict(network="net", iteration=1, layer=layer, recipe="paper", field="mcs_k")
    return {**record, "value": value, "grad_weight": ratio, "grad_input": None, **fields}


def test_medians_are_over_layers_and_differences_layer_by_layer():
    records = [made_up(f"l{i}", 1.0, 10.0 * i, grad_input=5.0) for i in range(5)]
    records += [made_up(f"l{i}", 1.2, 10.0 * i + (i - 3), grad_input=4.0) for i in range(5)]
    table = sweep_clipping.summarize(pd.DataFrame(records)).set_index(["value", "product"])
    row = table.loc[(1.2, "grad_weight")]
    assert (row.n, row["median"], row.q1, row.q3) == (5, 19.0, 8.0, 30.0)
    assert (row.gain_median, row.gain_q1, row.gain_q3) == (-1.0, -2.0, 0.0)
    assert table.loc[(1.0, "grad_weight")].gain_median == 0
    text = sweep_clipping.markdown(sweep_clipping.summarize(pd.DataFrame(records)))
    assert "| k = 1.2 | 19.0 (8.0 to 30.0) | -1.00 (-2.00 to +0.00) | 4.0 (4.0 to 4.0) |" in text
    assert "| k = 1 | 20.0 (10.0 to 30.0) | published | 5.0" in text


def test_tables_can_be_made_again_and_mistakes_are_told(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    records = [
        dict(made_up(layer, value, 20.0 + value, field=field), grad_input=30.0 - value)
        for field, values in VALUES.items()
        for value in values
        for layer in ("a", "b")
    ]
    monkeypatch.setattr(sweep_clipping, "measure", lambda args, config: records)
    sweep_clipping.main(["some.py", "--out", str(tmp_path)])
    first = {f.name: f.read_bytes() for f in tmp_path.iterdir() if f.suffix in (".csv", ".md")}
    assert set(first) == {"clipping.csv", "clipping.md", "layers.csv"}
    assert json.loads((tmp_path / "clipping.json").read_text())["arguments"]["by"]
    (tmp_path / "clipping.md").unlink()
    sweep_clipping.main(["--tables-only", "--out", str(tmp_path)])
    assert {name: (tmp_path / name).read_bytes() for name in first} == first
    with pytest.raises(UsageError, match="clipping.json does not exist; run without"):
        sweep_clipping.main(["--tables-only", "--out", str(tmp_path / "none")])
    for arguments, words in (
        (["--out", "x"], "give at least one config"),
        (["c.py", "--out", "x", "--iterations", "1,b"], "must be integers with commas between"),
        (["c.py", "--out", "x", "--iterations", "-1"], "must not be negative"),
    ):
        with pytest.raises(SystemExit):
            sweep_clipping.parse_args(arguments)
        assert words in capsys.readouterr().err


def test_grouped_and_strided_layers(tmp_path):
    """The products' geometry is the layer's: a depthwise, strided and dilated convolution."""
    layer = nn.Conv2d(6, 6, 3, stride=2, padding=2, dilation=2, groups=6)
    probe = ClippingProbe([0], ["paper"])
    probe._sums, probe._looking = {}, True
    probe.thresholds = {"l": LayerThresholds(6, [config for *_, config in probe.tried])}
    x = torch.randn(2, 6, 9, 9)
    g = torch.randn(layer(x).shape)
    probe._see("l", layer, x, g)
    found = probe._sums["l"][0].decibels()
    geometry = dict(stride=(2, 2), padding=(2,) * 4, dilation=(2, 2), groups=6)
    wanted = product_errors(x, layer.weight.detach(), g, geometry)
    assert found["grad_input"] == pytest.approx(wanted["grad_input"]["global"], abs=1e-4)
    assert found["grad_weight"] == pytest.approx(wanted["grad_weight"]["channel"], abs=1e-4)
