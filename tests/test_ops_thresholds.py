"""update_thresholds: the kernel against the reference, step by step."""

import pytest
import torch

from daq_mm import ops
from daq_mm.ops import reference
from daq_mm.ops.layout import channels_last_format
from devices import needs_kernels

pytestmark = needs_kernels

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
SETTINGS = dict(mcs=True, decay=0.2, gain=0.8, cap=False, gaussian_above=0.3, interval=3)
SIZES = (
    (4, 24, 9, 11),
    (2, 3, 40, 41),
    (2, 70, 3, 5, 4),
    (3, 1, 6, 6),
    (5, 600, 2, 2),
    (1, 1, 1, 1),
)


def state(channels: int) -> list[torch.Tensor]:
    return [
        torch.zeros(channels + 1),
        torch.ones(channels + 1),
        torch.zeros(1, dtype=torch.int64),
    ]


def gradient(size, layout: str, dtype: torch.dtype) -> torch.Tensor:
    """Channels of several laws and magnitudes: bell-shaped, peaked with long tails, all zero."""
    g = torch.randn(size)
    g[:, 1::3] = g[:, 1::3] ** 5
    g[:, 2::5] = 0
    g = (g * torch.logspace(-4, 0, size[1]).view(1, -1, *[1] * (len(size) - 2))).to(dtype)
    if layout == "channels_last":
        return g.contiguous(memory_format=channels_last_format(g.dim() - 2))
    return torch.stack([g, g + 1], -1)[..., 0] if layout == "strided" else g


def compare(g, ours, theirs, **settings):
    """One step of both; thresholds bit for bit, tail probabilities to a value's count or two."""
    got = ops.update_thresholds(g, *ours, **settings)
    expected = reference.update_thresholds(g, *theirs, **settings)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=0)
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=1e-6)
    assert torch.equal(ours[2], theirs[2])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", ["channels_last", "contiguous", "strided"])
@pytest.mark.parametrize("size", SIZES)
def test_steps_equal_the_reference(backend, size, layout, dtype):
    ours, theirs = state(size[1]), state(size[1])
    for _ in range(5):
        compare(gradient(size, layout, dtype), ours, theirs, **SETTINGS)
    for factor in (0.1, 3.0):
        capped = {**SETTINGS, "cap": True}
        compare(gradient(size, layout, dtype) * factor, ours, theirs, **capped)
    assert ours[2].item() == 7
    if size[1] > 10 and size[0] * size[2] > 30:
        assert (ours[1] > 0.3).any() and (ours[1] < 0.3).any()


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_large_gradient(backend, layout):
    ours, theirs = state(48), state(48)
    compare(gradient((4, 48, 61, 47), layout, torch.float32), ours, theirs, **SETTINGS)


def test_without_mcs_every_threshold_is_the_maximum(backend):
    ours, theirs = state(24), state(24)
    for _ in range(2):
        g = gradient(SIZES[0], "channels_last", torch.float32)
        compare(g, ours, theirs, **{**SETTINGS, "mcs": False})
        assert torch.equal(ours[0][:-1], g.abs().amax((0, 2, 3)))
    assert (ours[1] == 1).all()


def test_tails_are_measured_at_the_interval_only(backend):
    ours = state(24)
    seen = []
    for _ in range(7):
        ops.update_thresholds(gradient(SIZES[0], "contiguous", torch.float32), *ours, **SETTINGS)
        seen.append(ours[1].clone())
    changed = [not torch.equal(a, b) for a, b in zip(seen, seen[1:])]
    assert changed == [False, False, True, False, False, True]


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_entries_leave_their_state(backend, layout, value):
    ours, theirs = state(24), state(24)
    for step in range(4):
        g = gradient(SIZES[0], layout, torch.float32)
        if step in (0, 2, 3):
            g[1, 4, 3, 3] = value
        compare(g, ours, theirs, **SETTINGS)
    got = ops.update_thresholds(g, *ours, **SETTINGS)
    assert not got[4].isfinite() and not got[-1].isfinite()
    assert ours[0].isfinite().all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_zeros_and_denormals(backend, dtype):
    ours, theirs = state(4), state(4)
    for scale in (0.0, 1e-40, 0.0, 1e-30, 1.0):
        g = (torch.randn(2, 4, 6, 6) * scale).to(dtype)
        compare(g, ours, theirs, **{**SETTINGS, "interval": 1})


def test_constant_gradient(backend):
    ours, theirs = state(4), state(4)
    compare(torch.full((2, 4, 6, 6), 0.25), ours, theirs, **SETTINGS)


def test_empty_gradient_changes_nothing(backend):
    ours = state(4)
    ours[0].fill_(2.0)
    got = ops.update_thresholds(torch.zeros(0, 4, 6, 6), *ours, **SETTINGS)
    assert torch.equal(got, torch.full((5,), 2.0)) and ours[2].item() == 0
    got.zero_()
    assert (ours[0] == 2).all()


def test_threads_do_not_change_the_result(backend):
    before = torch.get_num_threads()
    g = gradient((4, 48, 41, 40), "channels_last", torch.float32)
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for layout in ("channels_last", "contiguous"):
                ours = state(48)
                h = g.contiguous() if layout == "contiguous" else g
                results.append([ops.update_thresholds(h, *ours, **SETTINGS), *ours])
    finally:
        torch.set_num_threads(before)
    for i in range(2, len(results)):
        for a, b in zip(results[i], results[i % 2]):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    "error, words, changes",
    [
        (TypeError, "g has dtype", dict(g=torch.zeros(2, 4, 3, 3).double())),
        (ValueError, "g has 3 axes", dict(g=torch.zeros(4, 3, 3))),
        (TypeError, "threshold has dtype", dict(threshold=torch.zeros(5).double())),
        (ValueError, "threshold has size", dict(threshold=torch.zeros(4))),
        (TypeError, "tail_probability has dtype", dict(tail_probability=torch.zeros(5).half())),
        (ValueError, "tail_probability has size", dict(tail_probability=torch.zeros(6))),
        (TypeError, "iteration has dtype", dict(iteration=torch.zeros(1))),
        (ValueError, "iteration has size", dict(iteration=torch.zeros(2, dtype=torch.int64))),
        (ValueError, "interval=0", dict(interval=0)),
    ],
)
def test_wrong_arguments(backend, error, words, changes):
    threshold, tail_probability, iteration = state(4)
    values = dict(
        g=torch.zeros(2, 4, 3, 3),
        threshold=threshold,
        tail_probability=tail_probability,
        iteration=iteration,
        **SETTINGS,
    )
    with pytest.raises(error, match=words):
        ops.update_thresholds(**{**values, **changes})
