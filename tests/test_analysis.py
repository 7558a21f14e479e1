"""Distances to the families, errors of products, and the probe in a toy run."""

import json

import numpy as np
import pytest
import torch
from scipy import stats

import analyze_gradients
from analysis import families, products
from analysis.probe import GradientProbe, ProbeDone, fluctuation
from common.errors import UsageError
from toy_runner import toy_runner

N = 4000


def draws(law, rows=3):
    rng = np.random.default_rng(0)
    if law == "normal":
        return rng.standard_normal((rows, N)) * np.array([[1e-6], [1.0], [50.0]])[:rows]
    peak = rng.uniform(-0.05, 0.05, (rows, N))
    tail = rng.uniform(0.05, 1.0, (rows, N)) * rng.choice([-1, 1], (rows, N))
    return np.where(rng.uniform(size=(rows, N)) < 0.2, tail, peak) * 1e-4


def test_ks_distance_is_scipy_s():
    values = draws("normal")[1]
    ordered = np.sort(values)
    ours = families.ks_distance(ordered, stats.norm.cdf(ordered, scale=1.3))
    assert ours == pytest.approx(stats.kstest(values, stats.norm(scale=1.3).cdf).statistic)
    own = stats.kstest(values, stats.norm(scale=values.std()).cdf).statistic
    assert families.ks_own_normal(values[None])[0] == pytest.approx(own)


def test_each_family_is_nearest_to_its_own_draws():
    normal, inverted = draws("normal"), draws("inverted")
    # A fitted law of the right family is nearer than 1.36 / sqrt(n), the 5 % point; doubled.
    near = 2 * 1.36 / N**0.5
    assert (families.ks_normal(normal) < near).all()
    assert (families.ks_inverted_t(inverted) < near).all()
    assert (families.ks_inverted_t(normal) > 2 * families.ks_normal(normal)).all()
    assert (families.ks_normal(inverted) > 4 * families.ks_inverted_t(inverted)).all()
    laplace = np.random.default_rng(0).laplace(size=(2, N))
    assert (families.ks_laplace(laplace) < near).all()


def test_inverted_t_distribution_is_that_of_its_draws():
    values = draws("inverted", rows=1)
    ordered = np.sort(values, axis=-1)
    cdf = families.inverted_t_cdf(ordered, np.array([[5e-6]]), np.array([[1e-4]]), 0.8)
    assert families.ks_distance(ordered, cdf)[0] < 1.36 / N**0.5


def test_constant_rows_have_distances():
    rows = np.stack([np.zeros(100), np.full(100, 3.0)])
    for distance in (families.ks_normal, families.ks_inverted_t, families.ks_laplace):
        assert np.isfinite(distance(rows)).all()


def test_best_clipping():
    on_grid = np.arange(-127, 128)[None] / 127.0  # no threshold below the maximum beats exactness
    assert (families.best_clipping(on_grid, (0.0, 3.0)) == 1).all()
    assert (families.best_clipping(np.zeros((1, 9)), (0.0,)) == 1).all()
    outlier = np.concatenate([np.random.default_rng(0).uniform(-1, 1, 20_000), [3.0]])[None]
    ratio = families.best_clipping(outlier, (0.0, 12.0))[0]
    assert ratio[0] == pytest.approx(1 / 3, abs=0.021)  # clip the one, refine the many
    assert ratio[1] == 1  # unless large errors weigh most


def test_fluctuation_of_an_autoregressive_sequence():
    rng = np.random.default_rng(0)
    logs = np.zeros((4000, 3))
    for t in range(1, len(logs)):
        logs[t] = 0.6 * logs[t - 1] + 0.2 * rng.standard_normal(3)
    maxima = np.concatenate([np.exp(logs), np.zeros((len(logs), 1))], axis=1)  # one dead channel
    found = fluctuation(maxima)
    assert found["lag1"] == pytest.approx(0.6, abs=0.05)
    assert found["log_std"] == pytest.approx(0.2 / (1 - 0.36) ** 0.5, rel=0.05)
    assert fluctuation(maxima[:5]) is None


def tensors(groups=1, channels=8):
    geometry = dict(stride=(1, 1), padding=(1, 1, 1, 1), dilation=(1, 1), groups=groups)
    x = torch.randn(4, 6, 10, 10).relu()
    w = torch.randn(channels, 6 // groups, 3, 3)
    return x, w, torch.randn(4, channels, 10, 10), geometry


def test_vectorized_products_win_where_channels_differ_in_scale():
    x, w, g, geometry = tensors()
    g = g * torch.logspace(-3, 0, 8).view(1, -1, 1, 1)
    w = w / torch.logspace(-3, 0, 8).view(-1, 1, 1, 1)  # each channel counts alike in grad-input
    snr = products.product_errors(x, w, g, geometry)
    assert set(snr["grad_weight"]) == set(products.VARIANTS["grad_weight"])
    assert snr["grad_input"]["folded"] > snr["grad_input"]["global"] + 20
    assert snr["grad_weight"]["channel"] >= snr["grad_weight"]["tensor"] - 1


@pytest.mark.parametrize("groups", [1, 2])
def test_putting_back_the_dropped_mean(groups):
    """A gradient below half a step but for a few values: nearest rounding drops its mean."""
    x, w, g, geometry = tensors(groups)
    g = torch.full_like(g, 1e-3)
    g[:, :, 0, 0] = 1.0
    snr = products.product_errors(x, w, g, geometry)["grad_weight"]
    assert snr["centred"] > snr["channel"] + 20
    maxima = g.abs().amax((0, 2, 3))
    put_back = products.dropped_mean(x, w, g, maxima, geometry)
    step = (maxima / 127).view(1, -1, 1, 1)
    dropped = g - torch.round(g / step) * step
    xs = x.double()
    weight = torch.zeros_like(w, dtype=torch.float64, requires_grad=True)
    y = torch.nn.functional.conv2d(xs, weight, padding=1, groups=groups)
    mean = dropped.double().mean((0, 2, 3)).view(1, -1, 1, 1).expand_as(y)
    wanted = torch.autograd.grad(y, weight, mean)[0]
    torch.testing.assert_close(put_back.double(), wanted, rtol=1e-4, atol=1e-5)


def probed(tmp_path, **arguments):
    probe = GradientProbe([2, 11], **{"drawn": [], **arguments})
    runner = toy_runner(tmp_path, epochs=3)
    runner.register_hook(probe)
    with pytest.raises(ProbeDone):
        runner.train()
    return probe, runner


def test_probe_ends_a_run_and_its_records_are_drawn(tmp_path):
    probe, runner = probed(tmp_path, drawn=["body", "he*"])
    assert runner.iter == 11
    assert [(r["iteration"], r["layer"]) for r in probe.records] == [
        (i, layer) for i in (2, 11) for layer in ("stem", "body", "head")
    ]
    body = probe.records[-2]
    assert body["size"] == [4, 8, 8, 8]
    assert len(body["channels"]["tail_probability"]) == 8
    assert len(body["samples"]["ks_inverted_t"]) == 4
    assert body["fluctuation"]["iterations"] == 12
    assert "densities" not in probe.records[-3]["channels"]
    summary = analyze_gradients.summarize(probe.records, 0.3)
    assert 0 <= summary["inverted_t_share"]["11"]["channels"] <= 1
    records = json.loads(json.dumps(analyze_gradients.plain(probe.records)))
    document = {"summary": summary, "arguments": {"config": "toy.py", "recipe": "fp32"}}
    figures = analyze_gradients.draw(document, records, tmp_path)
    assert len(figures) == 5 and all(path.stat().st_size > 10_000 for path in figures)


def test_probe_changes_nothing_of_the_training(tmp_path):
    _, runner = probed(tmp_path / "probed")
    plain = toy_runner(tmp_path / "plain", epochs=3)
    losses = []

    class Stop(GradientProbe):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            losses.append(outputs["loss"].item())
            if runner.iter == 11:
                raise ProbeDone

    plain.register_hook(Stop([99], []))
    with pytest.raises(ProbeDone):
        plain.train()
    assert len(losses) == 12
    for a, b in zip(plain.model.parameters(), runner.model.parameters()):
        assert torch.equal(a, b)


def test_mistakes_are_told(tmp_path, capsys):
    with pytest.raises(ValueError, match="--layers 'nose.*' matches none of: stem, body, head"):
        runner = toy_runner(tmp_path)
        runner.register_hook(GradientProbe([1], ["nose.*"]))
        runner.train()
    with pytest.raises(UsageError, match="summary.json does not exist; run without"):
        analyze_gradients.main(["x.py", "--out", str(tmp_path), "--figures-only"])
    with pytest.raises(SystemExit):
        analyze_gradients.parse_args(["x.py", "--out", "o", "--iterations", "1,b"])
    assert "must be integers with commas between" in capsys.readouterr().err
