"""DAQConfig: recipes, checks, and what their messages say."""

import dataclasses

import pytest

from daq_mm import DAQConfig
from daq_mm.config import RECIPES


def test_defaults_are_the_recipe_daq():
    assert DAQConfig() == DAQConfig.from_recipe("daq") == DAQConfig.make(None)


def test_paper_is_faithful():
    config = DAQConfig.from_recipe("paper")
    assert config.gradient_quantizer == "mcs"
    assert (config.grad_weight, config.grad_input) == ("channel", "global")
    assert not config.unsigned_activations
    assert (config.mcs_lambda, config.mcs_k, config.mcs_a) == (0.3, 1.0, 0.8)
    assert config.rounding == "nearest"


@pytest.mark.parametrize(
    ("recipe", "quantizer", "grad_weight"),
    [("gvq", "absmax", "channel"), ("mcs", "mcs", "tensor"), ("global", "absmax", "tensor")],
)
def test_ablation_recipes(recipe, quantizer, grad_weight):
    config = DAQConfig.from_recipe(recipe)
    assert (config.gradient_quantizer, config.grad_weight) == (quantizer, grad_weight)
    assert config.grad_input == "global"
    assert not config.unsigned_activations


def test_recipes_of_other_papers():
    ui8, dorefa, switchback = map(DAQConfig.from_recipe, ("ui8", "dorefa", "switchback"))
    assert (ui8.gradient_quantizer, ui8.grad_weight, ui8.grad_input) == ("ui8", "tensor", "global")
    assert (ui8.ui8_interval, ui8.ui8_alpha, ui8.ui8_beta) == (100, 20.0, 0.1)
    assert (dorefa.grad_weight, dorefa.grad_input) == ("sample", "sample")
    assert not dorefa.gradient_zero and ui8.gradient_zero and switchback.gradient_zero
    assert ui8.rounding == dorefa.rounding == "stochastic" and switchback.rounding == "nearest"
    assert (switchback.grad_weight, switchback.grad_input) == ("float", "global")
    assert not any(c.unsigned_activations for c in (ui8, dorefa, switchback))


def test_settings_without_kernels_are_told():
    assert DAQConfig().without_kernels() == DAQConfig.make("ui8").without_kernels() == []
    assert DAQConfig.make("switchback").without_kernels() == []
    config = DAQConfig(weight_bits=5, grad_weight="sample")
    assert config.without_kernels() == ["weight_bits=5", "grad_weight='sample'"]


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_names_itself(name):
    assert DAQConfig.from_recipe(name).summary() == name


def test_summary_tells_overrides():
    assert DAQConfig.from_recipe("paper", mcs_k=1.1).summary() == "paper, mcs_k=1.1"


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DAQConfig().mcs_k = 2.0


def test_keyword_only():
    with pytest.raises(TypeError):
        DAQConfig("paper")


def test_make_from_dict_and_name():
    assert DAQConfig.make({"recipe": "paper", "warmup_iters": 5}).warmup_iters == 5
    assert DAQConfig.make("gvq").recipe == "gvq"
    assert DAQConfig.make({"exclude": ["head.*"]}).exclude == ("head.*",)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"recipe": "papr"}, "recipe='papr' is unknown; allowed: daq, dorefa, global, gvq"),
        ({"grad_input": "fold"}, "grad_input='fold' is unknown; allowed: folded, global"),
        ({"grad_weight": "row"}, "grad_weight='row' is unknown; allowed: channel, tensor"),
        ({"rounding": "up"}, "rounding='up' is unknown; allowed: nearest, stochastic"),
        ({"gradient_quantizer": "x"}, "gradient_quantizer='x' is unknown; allowed: absmax, mcs"),
        ({"mcs_lambda": 1.5}, "mcs_lambda=1.5 must be in [0, 1)"),
        ({"mcs_lambda": float("nan")}, "mcs_lambda=nan must be in [0, 1)"),
        ({"mcs_k": 0.0}, "mcs_k=0.0 must be greater than 0"),
        ({"mcs_a": 0.0}, "mcs_a=0.0 must be in (0, 1]"),
        ({"mcs_k": 2.0}, "mcs_k * mcs_a=1.6 must be at most 1"),
        ({"warmup_iters": -1}, "warmup_iters=-1 must be at least 0"),
        ({"discriminator_interval": 0}, "discriminator_interval=0 must be at least 1"),
        ({"rounding_seed": -1}, "rounding_seed=-1 must be in [0, 2**31)"),
        (
            {"recipe": "dorefa", "grad_input": "global"},
            "gradient_zero=False is made for grad_weight='sample' and grad_input='sample'; got",
        ),
        (
            {"recipe": "dorefa", "keep_gradient_mean": True},
            "keep_gradient_mean=True is not made for grad_weight='sample'; allowed with it:",
        ),
        ({"gradient_bits": 3}, "gradient_bits=3 is unknown; allowed: 4, 5, 6, 7, 8"),
        ({"weight_bits": 9}, "weight_bits=9 is unknown; allowed: 4, 5, 6, 7, 8"),
        ({"ui8_interval": 0}, "ui8_interval=0 must be at least 1"),
        ({"ui8_alpha": float("inf")}, "ui8_alpha=inf must be at least 0 and finite"),
        ({"ui8_beta": 0.0}, "ui8_beta=0.0 must be in (0, 1]"),
    ],
)
def test_wrong_values(fields, words):
    with pytest.raises(ValueError) as error:
        DAQConfig.make(fields)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"warmup": 5}, "unknown setting warmup; allowed: recipe, gradient_quantizer"),
        ({"warmup_iters": 1.5}, "warmup_iters=1.5 has type float; expected int"),
        ({"warmup_iters": True}, "warmup_iters=True has type bool; expected int"),
        ({"unsigned_activations": 1}, "unsigned_activations=1 has type int; expected bool"),
        ({"include": "head"}, "include='head' must be a list of patterns"),
        ({"exclude": [3]}, "exclude=[3] must hold strings only"),
    ],
)
def test_wrong_types(fields, words):
    with pytest.raises(TypeError) as error:
        DAQConfig.make(fields)
    assert words in str(error.value)


def test_wrong_config_type():
    with pytest.raises(TypeError, match="allowed: DAQConfig, dict, recipe name, None"):
        DAQConfig.make(7)
