"""study_start.py: recipes with settings, when a plateau is left, and what an error consists of."""

import pytest
import torch

pytest.importorskip("mmengine")
import study_start  # noqa: E402


def test_recipes_carry_settings():
    text = "daq:unsigned_activations=False,rounding=stochastic,mcs_k=1.1"
    expected = {"unsigned_activations": False, "rounding": "stochastic", "mcs_k": 1.1}
    assert study_start.split_recipe(text) == ("daq", expected)
    assert study_start.split_recipe(study_start.CONTROL) == (study_start.CONTROL, {})


def test_plateau_is_left_when_the_smoothed_loss_falls():
    losses = [2.5] * 100 + [2.0] * 40
    # 20 losses, 10 of them lower, have the mean 2.25
    assert study_start.exit_iteration(losses, 2.26) == 110
    assert study_start.exit_iteration(losses, 1.9) is None
    assert study_start.exit_iteration(losses[:10], 9.0) is None


def test_an_error_is_what_is_lost_and_what_is_added():
    exact = [torch.tensor([3.0, 4.0])] * 2
    across = torch.tensor([4.0, -3.0])
    found = study_start.compare([0.8 * e + 0.5 * across for e in exact], exact)
    assert found["kept"] == pytest.approx(0.8)
    assert found["noise"] == pytest.approx(0.5)
    assert found["error"] == pytest.approx((0.2**2 + 0.5**2) ** 0.5)


def test_batches_that_err_alike_err_in_the_mean():
    signal, across = torch.tensor([3.0, 4.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 5.0, 0.0])
    aside = torch.tensor([0.0, 0.0, 0.0, 5.0])
    exact = [signal + across, signal - across]
    alike = study_start.compare([e + 0.2 * aside for e in exact], exact)
    assert alike["noise"] == pytest.approx(0.2 / 2**0.5)
    assert alike["noise_of_mean"] == pytest.approx(0.2)
    found = [exact[0] + 0.2 * aside, exact[1] - 0.2 * aside]
    apart = study_start.compare(found, exact)
    assert apart["noise"] == pytest.approx(alike["noise"])
    assert apart["noise_of_mean"] == pytest.approx(0, abs=1e-6)
    assert apart["kept_of_mean"] == pytest.approx(1)
