"""Gradient quantizers: the recursion, the discriminator, and their state's life."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from daq_mm import DAQConfig
from daq_mm.ops.direction import cosine_distance
from daq_mm.quantizers import build_quantizer, register, synchronize


def make(channels=3, **fields):
    return build_quantizer(channels, DAQConfig.make(fields or None))


def two_families(n=4, size=16):
    """A gradient whose channel 0 is normal, 1 is a sharp peak with a tail, 2 is zero."""
    g = torch.randn(n, 3, size, size)
    g[:, 1] *= 0.01
    g[:, 1, ::4, ::4] = torch.randn(n, size // 4, size // 4)
    g[:, 2] = 0
    return g


def test_first_gradient_is_never_clipped(backend):
    quantizer, g = make(), two_families()
    used = quantizer.update(g)
    maximum = g.abs().amax((0, 2, 3))
    assert torch.equal(used, torch.cat([maximum, maximum.amax().view(1)]))


def test_discriminator_tells_the_families_apart(backend):
    quantizer = make()
    quantizer.update(two_families())
    assert quantizer.gaussian().tolist()[:2] == [True, False]
    assert quantizer.tail_probability[0] == pytest.approx(0.317, abs=0.03)
    assert quantizer.tail_probability[2] == 1  # nothing known of a channel of zeros


@pytest.mark.parametrize(("k", "a"), [(1.0, 0.8), (1.2, 0.5)])
def test_recursion(backend, k, a):
    quantizer = make(recipe="paper", mcs_k=k, mcs_a=a)
    g = two_families()
    s = float(g[:, 1].abs().max())
    quantizer.update(g)
    for factor in (0.5, 3.0, 1.0):
        used = quantizer.update(g * factor)
        maximum = float(g[:, 1].abs().max()) * factor
        s = (1 - k * a) * s + a * maximum
        assert float(used[1]) == pytest.approx(s, rel=1e-5)
        assert float(used[0]) == float((g[:, 0] * factor).abs().max())


def test_interval_of_the_discriminator(backend):
    quantizer = make(discriminator_interval=3)
    g = two_families()
    seen = []
    for step in range(7):
        quantizer.update(g.flip(1) if step else g)  # channel 0 becomes the zero one
        seen.append(float(quantizer.tail_probability[0]) == 1)
    assert seen == [False, False, False, True, True, True, True]


def test_capped_recursion_never_exceeds_the_maximum(backend):
    """As in a head shared by pyramid levels: a large gradient, then a small one."""
    g = two_families()
    capped, paper = make(recipe="daq"), make(recipe="paper")
    for factor in (1.0, 0.01, 1.0):
        maximum = float((g[:, 1] * factor).abs().max())
        used = float(capped.update(g * factor)[1])
        published = float(paper.update(g * factor)[1])
        assert used <= maximum
        if factor < 1:
            assert used == pytest.approx(maximum)
            assert published > 10 * maximum


@pytest.mark.parametrize("recipe", ["gvq", "global"])
def test_absolute_maximum(backend, recipe):
    quantizer, g = make(recipe=recipe), two_families()
    for factor in (1.0, 0.1, 7.0):
        used = quantizer.update(g * factor)
        assert torch.equal(used[:-1], (g * factor).abs().amax((0, 2, 3)))
    assert bool(quantizer.gaussian().all())


def test_zero_then_nonzero_gradient_is_not_clipped(backend):
    quantizer, g = make(), two_families()
    assert quantizer.update(torch.zeros_like(g)).tolist() == [0] * 4
    assert torch.equal(quantizer.update(g)[:-1], g.abs().amax((0, 2, 3)))


def test_outlier_decays(backend):
    quantizer, g = make(), two_families()
    huge = g.clone()
    huge[0, 1, 0, 0] = 1e6
    quantizer.update(huge)
    for _ in range(12):
        used = quantizer.update(g)
    assert float(used[1]) == pytest.approx(float(g[:, 1].abs().max()), rel=0.01)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nonfinite_surfaces_and_leaves_the_state(backend, bad):
    quantizer, g = make(), two_families()
    quantizer.update(g)
    before = quantizer.threshold.clone()
    broken = g.clone()
    broken[1, 1, 2, 3] = bad
    used = quantizer.update(broken)
    assert not used[1].isfinite() and not used[3].isfinite()
    assert used[0].isfinite()
    assert torch.equal(quantizer.threshold, before)


def test_empty_gradient_changes_nothing(backend):
    quantizer, g = make(), two_families()
    quantizer.update(g)
    before = copy.deepcopy(quantizer.state_dict())
    used = quantizer.update(g[:0])
    assert torch.equal(used, before["threshold"])
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name])


def test_state_stays_float32():
    quantizer = nn.Sequential(make()).to(torch.bfloat16).half()[0]
    assert quantizer.threshold.dtype == torch.float32
    assert quantizer.iteration.dtype == torch.int64


def test_state_round_trip():
    quantizer, g = make(), two_families()
    quantizer.update(g)
    other = make()
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other.update(g * 0.3), quantizer.update(g * 0.3))


def test_loading_a_plain_checkpoint_is_silent_and_a_damaged_one_is_not():
    quantizer = make()
    quantizer.load_state_dict({})
    state = quantizer.state_dict()
    del state["tail_probability"]
    with pytest.raises(RuntimeError, match="tail_probability"):
        quantizer.load_state_dict(state)


def test_seed_is_a_function_of_settings_layer_and_gradient():
    config = DAQConfig.from_recipe("daq", rounding="stochastic", rounding_seed=5)
    first, second = build_quantizer(3, config, 11), build_quantizer(3, config, 12)
    assert first.seed() is not None and int(first.seed()) != int(second.seed())
    before = int(first.seed())
    first.update(two_families())
    assert int(first.seed()) != before
    assert make().seed() is None


def test_register_refuses_a_name_twice():
    with pytest.raises(ValueError, match="'mcs' is already registered"):
        register("mcs")(object)


def ui8(**fields):
    return make(recipe="ui8", **fields)


@pytest.mark.parametrize("bits", [4, 8])
def test_ui8_finds_the_smallest_cosine_distance(bits):
    """Against a dense grid of thresholds, for a peaked gradient with rare large values."""
    g = torch.randn(4, 3, 16, 16) ** 5
    quantizer = ui8(gradient_bits=bits)
    s = float(quantizer.update(g)[-1])
    maximum = float(g.abs().max())
    grid = [cosine_distance(g, maximum * i / 1000, bits) for i in range(1, 1001)]
    assert 0 < s <= maximum
    assert float(quantizer.deviation) == pytest.approx(cosine_distance(g, s, bits), rel=1e-5)
    assert float(quantizer.deviation) <= 1.02 * min(grid)
    assert float(quantizer.deviation) < cosine_distance(g, maximum, bits)


def test_cosine_distance_against_numpy():
    g = torch.randn(2, 3, 5, 5)
    s = 1.7
    values = g.numpy().astype(np.float64).ravel()
    rounded = np.round(np.clip(values, -s, s) / s * 127) * s / 127
    norms = np.linalg.norm(values) * np.linalg.norm(rounded)
    assert cosine_distance(g, s) == pytest.approx(1 - values @ rounded / norms, rel=1e-4)
    assert cosine_distance(g, 0.0) == cosine_distance(torch.zeros_like(g), 1.0) == 1.0


def test_ui8_searches_at_its_interval_only():
    quantizer, g = ui8(ui8_interval=3), two_families()
    seen = [float(quantizer.update(g * factor)[-1]) for factor in (1, 2, 4, 8, 16)]
    assert seen[0] == seen[1] == seen[2] and seen[3] == seen[4]
    assert seen[3] == pytest.approx(8 * seen[0])
    assert torch.equal(quantizer.threshold, torch.full((4,), seen[4]))


def test_ui8_searches_at_the_first_nonzero_gradient():
    quantizer, g = ui8(), two_families()
    assert not quantizer.update(torch.zeros_like(g)).any()
    assert quantizer.update_scale() == 1
    assert bool((quantizer.update(g) > 0).all())


def test_ui8_state_survives_a_checkpoint_in_the_middle_of_an_interval():
    quantizer, g = ui8(ui8_interval=4), two_families()
    quantizer.update(g)
    other = ui8(ui8_interval=4)
    other.load_state_dict(quantizer.state_dict())
    for factor in (0.3, 3.0, 0.1, 7.0):
        assert torch.equal(other.update(g * factor), quantizer.update(g * factor))
        assert torch.equal(other.update_scale(), quantizer.update_scale())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_ui8_and_nonfinite_gradients(bad):
    quantizer, g = ui8(ui8_interval=2), two_families()
    quantizer.update(g)
    before = copy.deepcopy(quantizer.state_dict())
    broken = g.clone()
    broken[0, 0, 0, 0] = bad
    for _ in range(2):
        assert not quantizer.update(broken).isfinite().any()
    for name in ("threshold", "deviation"):
        assert torch.equal(quantizer.state_dict()[name], before[name])
    assert quantizer.update(g[:0]).isfinite().all()


def test_only_ui8_scales_updates():
    for recipe in ("daq", "paper", "global", "dorefa", "switchback"):
        assert make(recipe=recipe).update_scale() is None
    assert bool(ui8().gaussian().all())


def test_ranks_agree_on_every_state(monkeypatch):
    """Two ranks, the second played by a changed copy: its state stands in for the collective."""
    models = [nn.Sequential(make(recipe=recipe), ui8()) for recipe in ("daq", "paper")]
    for model, factor in zip(models, (1.0, 3.0)):
        for quantizer in model:
            quantizer.update(two_families() ** 3 * factor)
            quantizer.tail_probability.mul_(1 / factor)
        model[1].deviation.mul_(factor)
    theirs = iter(
        [
            torch.cat([q.threshold for q in models[1]]),
            torch.cat([getattr(q, name) for q in models[1] for name in q.averaged]),
        ]
    )

    def all_reduce(flat, op, group):
        other = next(theirs)
        flat.copy_(
            torch.maximum(flat, other) if op == torch.distributed.ReduceOp.MAX else flat + other
        )

    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    before = [copy.deepcopy(q.state_dict()) for q in models[0]]
    synchronize(models[0])
    for quantizer, old, other in zip(models[0], before, models[1]):
        assert torch.equal(quantizer.threshold, torch.maximum(old["threshold"], other.threshold))
        for name in quantizer.averaged:
            mean = (old[name] + getattr(other, name)) / 2
            torch.testing.assert_close(getattr(quantizer, name), mean)
    assert models[0][1].deviation != before[1]["deviation"]
