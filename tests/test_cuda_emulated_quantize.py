"""The CUDA quantizers, run thread by thread on the CPU (see emulated.py), against the reference."""

import random

import pytest
import torch

import emulated
from daq_mm.ops import reference, reference_glue
from daq_mm.ops.layout import channels_last_format
from test_ops_quantize import FLOATS, LAYOUTS, SPECIAL, arrange, same

pytestmark = pytest.mark.skipif(bool(emulated.unavailable()), reason=emulated.unavailable())


@pytest.fixture(scope="module")
def cuda():
    return emulated.load()


#: Vectors and single values, one tile and several, rows that fill no block, 2D and 3D.
SIZES = (
    (2, 3, 5, 7),
    (2, 64, 9, 8),
    (1, 130, 9, 15),
    (2, 8, 1, 1),
    (1, 2056, 2, 1),
    (2, 16, 3, 4, 5),
)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_quantize_x(cuda, size, layout):
    for dtype, values in zip(
        FLOATS, (torch.randn(size) * 3, torch.rand(size) * 5, torch.randn(size))
    ):
        x = arrange(values.to(dtype), layout)
        for allow_unsigned in (True, False):
            got = cuda.quantize_x(x, allow_unsigned)
            same(got, reference.quantize_x(x, allow_unsigned))
            assert got[0].is_contiguous(memory_format=channels_last_format(x.dim() - 2))


def check_known_grid(cuda, x, step, zero_point):
    qparams = torch.tensor([step, zero_point])
    got = cuda.quantize_x_with(x, qparams)
    same([got], [reference_glue.quantize_x_with(x, qparams)])
    assert got.is_contiguous(memory_format=channels_last_format(x.dim() - 2))
    return got


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_quantize_x_with(cuda, size, layout):
    for dtype in FLOATS:
        for values, zero_point in ((torch.randn(size) * 3, 128.0), (torch.rand(size) * 5, 0.0)):
            x = arrange(values.to(dtype), layout)
            levels = 127 if zero_point else 255
            q = check_known_grid(cuda, x, float(x.float().abs().max()) / levels, zero_point)
            assert q.int().sub(int(zero_point)).abs().max() == levels
            # Values beyond a coarser grid are clipped at both ends of it.
            check_known_grid(cuda, x, 0.3 / levels, zero_point)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_quantize_g(cuda, size, layout):
    for dtype, seed in zip(FLOATS, (None, torch.tensor([12345]), torch.tensor([-7]))):
        g = arrange(torch.randn(size).to(dtype), layout)
        for threshold in (torch.rand(size[1]) * 3, torch.tensor([1.5])):
            same([cuda.quantize_g(g, threshold, seed)], [reference.quantize_g(g, threshold, seed)])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "size", [(8, 3, 7, 7), (40, 24, 1, 1), (6, 30, 3, 5), (4, 5, 3, 3, 3), (300, 2, 1, 1)]
)
def test_quantize_w(cuda, size, layout):
    for dtype in FLOATS:
        w = arrange((torch.randn(size) * 0.05).to(dtype), layout)
        same(cuda.quantize_w(w), reference.quantize_w(w))
        threshold = torch.rand(size[0]) * 1e-3
        for groups in (1, 2):
            same(
                cuda.quantize_w_folded(w, threshold, groups),
                reference.quantize_w_folded(w, threshold, groups),
            )


@pytest.mark.parametrize("seed", range(6))
def test_random_sizes(cuda, seed):
    rng = random.Random(seed)
    spatial = [rng.randint(1, 9) for _ in range(rng.choice([2, 3]))]
    size = (rng.randint(1, 3), rng.choice([1, 5, 15, 16, 33, 64, 65, 129]), *spatial)
    dtype = rng.choice(FLOATS)
    x = arrange((torch.randn(size) * 10 ** rng.uniform(-6, 3)).to(dtype), rng.choice(LAYOUTS))
    same(cuda.quantize_x(x, True), reference.quantize_x(x, True))
    threshold = x.float().abs().amax() * torch.rand(rng.choice([1, size[1]]))
    hash_seed = rng.choice([None, torch.tensor([rng.getrandbits(40)])])
    same(
        [cuda.quantize_g(x, threshold, hash_seed)], [reference.quantize_g(x, threshold, hash_seed)]
    )


@pytest.mark.parametrize("layout", ("channels_last", "contiguous"))
@pytest.mark.parametrize("name", SPECIAL)
def test_special_values(cuda, name, layout):
    values = torch.tensor(SPECIAL[name])
    x = arrange(values[torch.arange(2 * 18 * 3 * 2) % len(values)].view(2, 18, 3, 2), layout)
    for allow_unsigned in (True, False):
        same(cuda.quantize_x(x, allow_unsigned), reference.quantize_x(x, allow_unsigned))
    for step in (0.0, 1e-45, 1e-40, 0.01, 3e38, float("inf"), float("nan")):
        check_known_grid(cuda, x, step, 128.0)
        if not (values < 0).any():  # bytes below zero have no meaning
            check_known_grid(cuda, x, step, 0.0)
    same(cuda.quantize_w(x), reference.quantize_w(x))
    for threshold in (0.0, 1e-40, 3.4e38, float("inf"), float("nan")):
        by_channel = torch.full((18,), 2.0)
        by_channel[3] = threshold
        for s in (torch.tensor([threshold]), by_channel):
            for seed in (None, torch.tensor([3])):
                same([cuda.quantize_g(x, s, seed)], [reference.quantize_g(x, s, seed)])
        by_row = torch.tensor([threshold, 1.0])
        same(cuda.quantize_w_folded(x, by_row, 1), reference.quantize_w_folded(x, by_row, 1))
        same(cuda.quantize_w_folded(x, by_row, 2), reference.quantize_w_folded(x, by_row, 2))


def test_misaligned_memory(cuda):
    x = torch.randn(2 * 64 * 20 + 1)[1:].view(2, 64, 4, 5)
    last = torch.randn(2 * 64 * 20 + 1)[1:].view(2, 4, 5, 64).permute(0, 3, 1, 2)
    for t in (x, last):
        same(cuda.quantize_x(t, True), reference.quantize_x(t, True))
        check_known_grid(cuda, t, 0.02, 128.0)
        for threshold in (torch.rand(64), torch.rand(1)):
            same([cuda.quantize_g(t, threshold, None)], [reference.quantize_g(t, threshold, None)])


def test_empty_batch(cuda):
    x = torch.zeros(0, 4, 5, 5)
    same(cuda.quantize_x(x, True), reference.quantize_x(x, True))
    assert cuda.quantize_g(x, torch.ones(4), None).shape == x.shape
    assert cuda.quantize_x_with(x, torch.ones(2)).shape == x.shape


def test_wrong_arguments(cuda):
    g = torch.zeros(2, 4, 3, 3)
    for error, words, call in (
        (TypeError, "x has dtype", lambda: cuda.quantize_x(g.double(), True)),
        (TypeError, "qparams has dtype", lambda: cuda.quantize_x_with(g, torch.ones(2).double())),
        (ValueError, "qparams has size", lambda: cuda.quantize_x_with(g, torch.ones(1))),
        (ValueError, "w has 2 axes", lambda: cuda.quantize_w(g[0, 0])),
        (ValueError, "threshold has size", lambda: cuda.quantize_g(g, torch.ones(3), None)),
        (TypeError, "seed has dtype", lambda: cuda.quantize_g(g, torch.ones(4), torch.ones(1))),
        (ValueError, "groups=3", lambda: cuda.quantize_w_folded(g, torch.ones(2), 3)),
    ):
        with pytest.raises(error, match=words):
            call()
