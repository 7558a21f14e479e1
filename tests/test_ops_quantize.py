"""Quantizers of activations, weights and gradients: the kernels against the reference."""

import random

import pytest
import torch

from daq_mm import ops
from daq_mm.ops import reference
from daq_mm.ops.layout import channels_last_format, weight_format
from devices import needs_kernels

pytestmark = needs_kernels

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = ("channels_last", "contiguous", "strided", "transposed")
SIZES = (
    (2, 3, 5, 7),
    (2, 64, 12, 12),
    (1, 130, 9, 15),
    (3, 1, 4, 4),
    (2, 17, 1, 1),
    (1, 1, 1, 1),
    (2, 3000, 2, 1),
    (2, 20, 3, 6, 5),
    (1, 6, 40, 41),
)


def arrange(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values in another memory layout."""
    if layout == "channels_last":
        return x.contiguous(memory_format=channels_last_format(x.dim() - 2))
    if layout == "strided":
        return torch.stack([x, x + 1], -1)[..., 0]
    if layout == "transposed":
        return x.transpose(0, 3).contiguous().transpose(0, 3)
    return x.contiguous()


def same(got, expected):
    """Equal bit for bit (NaN equals NaN), and of the same dtype."""
    assert len(got) == len(expected)
    for a, b in zip(got, expected):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_quantize_x(backend, size, layout, dtype):
    for values in (torch.randn(size) * 3, torch.rand(size) * 5):
        x = arrange(values.to(dtype), layout)
        for allow_unsigned in (True, False):
            got = ops.quantize_x(x, allow_unsigned=allow_unsigned)
            same(got, reference.quantize_x(x, allow_unsigned))
            assert got[0].is_contiguous(memory_format=channels_last_format(x.dim() - 2))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_quantize_g(backend, size, layout, dtype):
    g = arrange(torch.randn(size).to(dtype), layout)
    for threshold in (torch.rand(size[1]) * 3, torch.tensor([1.5])):
        for seed in (None, torch.tensor([12345]), torch.tensor([-7])):
            same(
                [ops.quantize_g(g, threshold, seed=seed)],
                [reference.quantize_g(g, threshold, seed)],
            )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "size",
    [(8, 3, 7, 7), (64, 64, 3, 3), (40, 24, 1, 1), (6, 130, 3, 5), (4, 5, 3, 3, 3), (300, 2, 1, 1)],
)
def test_quantize_w(backend, size, layout, dtype):
    w = arrange((torch.randn(size) * 0.05).to(dtype), layout)
    same(ops.quantize_w(w), reference.quantize_w(w))
    threshold = torch.rand(size[0]) * 1e-3
    for groups in (1, 2):
        same(
            ops.quantize_w_folded(w, threshold, groups=groups),
            reference.quantize_w_folded(w, threshold, groups),
        )
        kept, _ = ops.quantize_w_folded(w, threshold, groups=groups, keep_format=True)
        assert torch.equal(kept, reference.quantize_w_folded(w, threshold, groups)[0])
        assert kept.is_contiguous(memory_format=weight_format(w))


def test_random_rounding_by_parts(backend):
    """The reference hashes positions a part at a time; the kernels tell where a part is lost."""
    size, seed = (2, 33, 50, 41), torch.tensor([2**33 + 17])
    assert torch.Size(size).numel() > 2 * reference._HASHED_AT_ONCE
    g, threshold = torch.randn(size), torch.rand(33)
    same([ops.quantize_g(g, threshold, seed=seed)], [reference.quantize_g(g, threshold, seed)])


@pytest.mark.parametrize("seed", range(20))
def test_random_sizes(backend, seed):
    rng = random.Random(seed)
    spatial = [rng.randint(1, 20) for _ in range(rng.choice([2, 3]))]
    size = (rng.randint(1, 4), rng.choice([1, 2, 5, 15, 16, 31, 33, 64, 65, 129]), *spatial)
    dtype = rng.choice(FLOATS)
    x = arrange((torch.randn(size) * 10 ** rng.uniform(-6, 3)).to(dtype), rng.choice(LAYOUTS))
    same(ops.quantize_x(x, allow_unsigned=True), reference.quantize_x(x, True))
    threshold = x.float().abs().amax() * torch.rand(rng.choice([1, size[1]]))
    hash_seed = rng.choice([None, torch.tensor([rng.getrandbits(40)])])
    same(
        [ops.quantize_g(x, threshold, seed=hash_seed)],
        [reference.quantize_g(x, threshold, hash_seed)],
    )


SPECIAL = {
    "zeros": [0.0],
    "minus zero": [0.0, -0.0],
    "nan": [1.0, float("nan"), 2.0],
    "negative nan": [1.0, -float("nan"), -2.0],
    "inf": [1.0, float("inf")],
    "minus inf": [1.0, -float("inf"), 0.0],
    "nan and inf": [float("inf"), float("nan"), -1.0],
    "denormal": [1e-40, 3e-45, 0.0],
    "denormal signed": [1e-40, -2e-40],
    "smallest usable": [1.2e-36, 3e-37],
    "largest": [3.4e38, 1.0, -3.4e38],
    "ties": [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 126.5],
    "unsigned ties": [255.0, 0.5, 1.5, 2.5, 254.5],
}


@pytest.mark.parametrize("layout", ("channels_last", "contiguous"))
@pytest.mark.parametrize("name", SPECIAL)
def test_special_values(backend, name, layout):
    values = torch.tensor(SPECIAL[name])
    x = arrange(values[torch.arange(2 * 18 * 5 * 3) % len(values)].view(2, 18, 5, 3), layout)
    for allow_unsigned in (True, False):
        same(
            ops.quantize_x(x, allow_unsigned=allow_unsigned),
            reference.quantize_x(x, allow_unsigned),
        )
    same(ops.quantize_w(x), reference.quantize_w(x))
    for threshold in (0.0, 1e-40, 3e-45, 1.0, 3.4e38, float("inf"), float("nan")):
        by_channel = torch.full((18,), 2.0)
        by_channel[3] = threshold
        for s in (torch.tensor([threshold]), by_channel):
            for seed in (None, torch.tensor([3])):
                same([ops.quantize_g(x, s, seed=seed)], [reference.quantize_g(x, s, seed)])
        by_row = torch.tensor([threshold, 1.0])
        same(ops.quantize_w_folded(x, by_row, groups=1), reference.quantize_w_folded(x, by_row, 1))
        same(ops.quantize_w_folded(x, by_row, groups=2), reference.quantize_w_folded(x, by_row, 2))


def test_one_nan_among_many_is_found(backend):
    for position in (0, 1023, 1024, 70000, 99999):
        x = torch.rand(1, 10, 100, 100)
        x.view(-1)[position] = float("nan")
        _, qparams = ops.quantize_x(x, allow_unsigned=True)
        assert qparams[0].isnan() and qparams[1] == 128


def test_empty_batch(backend):
    x = torch.zeros(0, 4, 5, 5)
    same(ops.quantize_x(x, allow_unsigned=True), reference.quantize_x(x, True))
    assert ops.quantize_g(x, torch.ones(4)).shape == x.shape


def test_threads_do_not_change_the_result(backend):
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(1)
            x = torch.randn(4, 70, 40, 40)
            for layout in ("channels_last", "contiguous"):
                y = arrange(x, layout)
                results.append(
                    [
                        *ops.quantize_x(y, allow_unsigned=True),
                        ops.quantize_g(y, torch.rand(1) + torch.ones(70), seed=torch.tensor([5])),
                    ]
                )
    finally:
        torch.set_num_threads(before)
    for i in range(2, len(results)):
        same(results[i], results[i % 2])


G = torch.zeros(2, 4, 3, 3)


@pytest.mark.parametrize(
    "error, words, call",
    [
        (TypeError, "x has dtype", lambda: ops.quantize_x(G.double(), allow_unsigned=True)),
        (ValueError, "x has 3 axes", lambda: ops.quantize_x(G[0], allow_unsigned=True)),
        (TypeError, "w has dtype", lambda: ops.quantize_w(G.int())),
        (ValueError, "w has 2 axes", lambda: ops.quantize_w(G[0, 0])),
        (TypeError, "g has dtype", lambda: ops.quantize_g(G.double(), torch.ones(4))),
        (TypeError, "threshold has dtype", lambda: ops.quantize_g(G, torch.ones(4).double())),
        (ValueError, "threshold has size", lambda: ops.quantize_g(G, torch.ones(3))),
        (TypeError, "seed has dtype", lambda: ops.quantize_g(G, torch.ones(4), seed=torch.ones(1))),
        (
            ValueError,
            "seed has size",
            lambda: ops.quantize_g(G, torch.ones(4), seed=torch.ones(2, dtype=torch.int64)),
        ),
        (
            ValueError,
            "g_threshold has size",
            lambda: ops.quantize_w_folded(G, torch.ones(3), groups=1),
        ),
        (
            TypeError,
            "g_threshold has dtype",
            lambda: ops.quantize_w_folded(G, torch.ones(2).half(), groups=1),
        ),
        (ValueError, "groups=3", lambda: ops.quantize_w_folded(G, torch.ones(2), groups=3)),
    ],
)
def test_wrong_arguments(backend, error, words, call):
    with pytest.raises(error, match=words):
        call()
