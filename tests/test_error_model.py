"""The paper's weighted error: its minimum by numbers against solutions found another way."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.optimize import brentq

from analysis.error_model import (
    InvertedT,
    TruncatedNormal,
    WeightedError,
    closed_form,
    recursion,
    recursion_regret,
)
from daq_mm import DAQConfig
from daq_mm.quantizers import build_quantizer

LAWS = [TruncatedNormal(3.0), TruncatedNormal(4.5), InvertedT(0.1, 0.1), InvertedT(0.02, 0.01)]


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_densities_are_normalized(law):
    mass = 2 * quad(lambda g: float(law.density(np.array(g))), 0, 1, points=law.breaks or None)[0]
    assert mass == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("rounding", "share"), [("half", 0.5), ("quarter", 0.25)])
def test_uniform_law_without_weight(rounding, share):
    """dE/ds = 0 reads 2 share s / 127 = 1 - s there."""
    uniform = InvertedT(0.5, 0.5)
    s, value = WeightedError(uniform, 0.0, rounding).minimum()
    assert s == pytest.approx(127 / (127 + 2 * share), abs=1e-5)
    assert value == pytest.approx(share * s**2 / 127 + (1 - s) ** 2 / 2, rel=1e-4)


@pytest.mark.parametrize("law", LAWS[2:], ids=str)
@pytest.mark.parametrize("alpha", [0.7, 2.0, 5.0])
def test_inverted_t_against_the_root_of_its_derivative(law, alpha):
    """Beyond the peak, dE/ds = 0 times 127 alpha / b, with the paper's rounding error."""

    def derivative(s):
        peak = law.a / law.b * np.expm1(alpha * law.width) - np.exp(alpha * law.width)
        return np.exp(alpha * s) * (255 + alpha * s) + peak - 254 * np.exp(alpha)

    s, _ = WeightedError(law, alpha).minimum()
    root = brentq(derivative, law.width, 1)
    assert s == pytest.approx(root, abs=2e-4)


@pytest.mark.parametrize("spread", [3.0, 4.5])
@pytest.mark.parametrize("alpha", [0.0, 2.0, 8.0])
def test_gaussian_against_the_root_of_its_derivative(spread, alpha):
    law = TruncatedNormal(spread)

    def weight(g):
        return float(np.exp(alpha * (g - 1)) * law.density(np.array(g)))

    def derivative(s):
        return (quad(weight, 0, s)[0] + s * weight(s)) / 127 - 2 * quad(weight, s, 1)[0]

    s, _ = WeightedError(law, alpha).minimum()
    assert s == pytest.approx(brentq(derivative, 0.2, 1), abs=2e-4)


def test_heavier_weight_of_large_values_moves_the_gaussian_minimum_to_the_maximum():
    """What the paper's closed form for Gaussian channels rests on."""
    found = [WeightedError(TruncatedNormal(4.0), a).minimum()[0] for a in (0, 4, 16)]
    assert found[0] < 0.8 < found[1] < found[2]
    assert found[2] == pytest.approx(closed_form(TruncatedNormal(4.0)), abs=0.01)


@pytest.mark.parametrize("law", [TruncatedNormal(4.0), InvertedT(0.1, 0.2)], ids=str)
@pytest.mark.parametrize("s", [0.5, 0.9])
def test_exact_error_against_draws_through_the_quantizer(law, s):
    """Mean of |g - ghat| e^(alpha (g - 1)) over draws, rounded as the package rounds."""
    rng, alpha, count = np.random.default_rng(0), 1.5, 400_000
    if isinstance(law, TruncatedNormal):
        g = np.abs(rng.standard_normal(count) / law.spread)
        g = g[g <= 1]
    else:
        inside = rng.uniform(0, law.width, count)
        g = np.where(rng.uniform(size=count) < law.tail, rng.uniform(law.width, 1, count), inside)
    quantizer = torch.from_numpy(g).float().view(1, 1, -1, 1)
    q = torch.ops.daq_mm.quantize_g(quantizer, torch.tensor([s], dtype=torch.float32), None)
    off = np.abs(g - q.flatten().numpy() * s / 127)
    sample = off * np.exp(alpha * (g - 1))
    bound = 5 * sample.std() / len(g) ** 0.5
    assert abs(sample.mean() - WeightedError(law, alpha, "exact")(s)[0]) < bound


def test_a_rounding_error_is_a_quarter_step_on_average():
    law = TruncatedNormal(3.0)
    exact, quarter, half = (
        WeightedError(law, 0.5, r)(1.0)[0] for r in ("exact", "quarter", "half")
    )
    assert exact == pytest.approx(quarter, rel=0.01)
    assert half == pytest.approx(2 * quarter)


@pytest.mark.parametrize("cap", [False, True])
def test_recursion_is_the_package_s(cap):
    """The quantizer's thresholds of an inverted-T channel follow the analysed recursion."""
    config = DAQConfig.from_recipe("paper", mcs_k=1.1, mcs_a=0.6, cap_at_maximum=cap)
    quantizer = build_quantizer(1, config)
    g = torch.zeros(1, 1, 20, 20)
    g[..., 0, :3] = 1.0
    maxima = np.exp(0.4 * np.random.default_rng(1).standard_normal(12)).astype(np.float32)
    used = [float(quantizer.update(g * float(m))[0]) for m in maxima]
    np.testing.assert_allclose(used, recursion(maxima, 1.1, 0.6, cap), rtol=1e-5)


def test_regret_of_the_recursion():
    law, maxima = LAWS[2], np.exp(0.3 * np.random.default_rng(2).standard_normal(500))
    error = WeightedError(law, 1.0)
    newest = recursion_regret(law, 1.0, maxima, 1.0, 1.0)
    assert newest == pytest.approx(error.regret(1.0)[0])  # the threshold is always the maximum
    slow = recursion_regret(law, 1.0, maxima, 1.0, 0.2)
    capped = recursion_regret(law, 1.0, maxima, 1.0, 0.2, cap=True)
    assert newest < slow and capped != slow
    assert recursion_regret(law, 1.0, np.ones(9), 1.0, 0.3) == pytest.approx(newest)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((LAWS[0], -1.0), "alpha=-1.0"), ((LAWS[0], 1.0, "third"), "allowed: half, quarter, exact")],
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(ValueError, match=words):
        WeightedError(*arguments)
