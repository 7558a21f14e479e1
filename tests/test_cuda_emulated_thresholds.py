"""The CUDA thresholds, run thread by thread on the CPU (see emulated.py), against the reference."""

import pytest
import torch

import emulated
from daq_mm.ops import reference
from test_ops_thresholds import FLOATS, SETTINGS, gradient, state

pytestmark = pytest.mark.skipif(bool(emulated.unavailable()), reason=emulated.unavailable())


@pytest.fixture(scope="module")
def cuda():
    return emulated.load()


#: Vectors and single values, several columns of blocks, rows that fill no block, 2D and 3D.
SIZES = ((4, 24, 9, 11), (2, 3, 10, 11), (2, 70, 3, 5, 4), (1, 264, 2, 2), (1, 1, 1, 1))


def compare(cuda, g, ours, theirs, **settings):
    """One step of both; thresholds bit for bit, tail probabilities to a rounding."""
    got = cuda.update_thresholds(g, *ours, **settings)
    expected = reference.update_thresholds(g, *theirs, **settings)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=0)
    torch.testing.assert_close(ours[1], theirs[1], rtol=0, atol=1e-6)
    assert torch.equal(ours[2], theirs[2])


@pytest.mark.parametrize("layout", ["channels_last", "contiguous", "strided"])
@pytest.mark.parametrize("size", SIZES)
def test_steps_equal_the_reference(cuda, size, layout):
    ours, theirs = state(size[1]), state(size[1])
    for step in range(5):
        g = gradient(size, layout, FLOATS[step % 3]) * (0.1, 1.0, 3.0)[step % 3]
        compare(cuda, g, ours, theirs, **{**SETTINGS, "cap": step % 2 == 1})
    assert ours[2].item() == 5


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
def test_several_parts(cuda, layout):
    ours, theirs = state(3), state(3)
    compare(cuda, gradient((1, 3, 95, 97), layout, torch.float32), ours, theirs, **SETTINGS)


def test_without_mcs(cuda):
    ours, theirs = state(24), state(24)
    g = gradient(SIZES[0], "channels_last", torch.float32)
    compare(cuda, g, ours, theirs, **{**SETTINGS, "mcs": False})
    assert torch.equal(ours[0][:-1], g.abs().amax((0, 2, 3))) and (ours[1] == 1).all()


@pytest.mark.parametrize("layout", ["channels_last", "contiguous"])
@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_non_finite_entries_leave_their_state(cuda, layout, value):
    ours, theirs = state(24), state(24)
    for step in range(4):
        g = gradient((2, 24, 3, 4), layout, torch.float32)
        if step in (0, 2, 3):
            g[1, 4, 2, 3] = value
        compare(cuda, g, ours, theirs, **SETTINGS)
    assert ours[0].isfinite().all()


def test_zeros_denormals_and_constants(cuda):
    ours, theirs = state(4), state(4)
    for scale in (0.0, 1e-40, 0.0, 1.0):
        g = torch.randn(2, 4, 6, 6) * scale
        compare(cuda, g, ours, theirs, **{**SETTINGS, "interval": 1})
    compare(cuda, torch.full((2, 4, 6, 6), 0.25), ours, theirs, **{**SETTINGS, "interval": 1})


def test_empty_gradient_changes_nothing(cuda):
    ours = state(4)
    ours[0].fill_(2.0)
    got = cuda.update_thresholds(torch.zeros(0, 4, 6, 6), *ours, **SETTINGS)
    assert torch.equal(got, torch.full((5,), 2.0)) and ours[2].item() == 0


@pytest.mark.parametrize("mcs", [True, False])
def test_from_maxima(cuda, mcs):
    ours, theirs = state(300), state(300)
    rules = (mcs, 0.2, 0.8, True, 0.3)
    ours[1].uniform_(0, 0.6)
    theirs[1].copy_(ours[1])
    for _ in range(3):
        maximum = torch.rand(301)
        maximum[5] = float("inf")
        got = cuda.thresholds_from_maxima(maximum, *ours, *rules)
        assert torch.equal(got, reference.move_thresholds(maximum, *theirs, *rules))
        for a, b in zip(ours, theirs):
            assert torch.equal(a, b)


def test_wrong_arguments(cuda):
    threshold, tail_probability, iteration = state(4)
    g = torch.zeros(2, 4, 3, 3)
    for error, words, changes in (
        (TypeError, "g has dtype", dict(g=g.double())),
        (ValueError, "threshold has size", dict(threshold=torch.zeros(4))),
        (ValueError, "tail_probability has strides", dict(tail_probability=torch.zeros(10)[::2])),
        (TypeError, "iteration has dtype", dict(iteration=torch.zeros(1))),
        (ValueError, "interval=0", dict(interval=0)),
    ):
        values = dict(g=g, threshold=threshold, tail_probability=tail_probability)
        values |= dict(iteration=iteration, **SETTINGS)
        with pytest.raises(error, match=words):
            cuda.update_thresholds(**{**values, **changes})
