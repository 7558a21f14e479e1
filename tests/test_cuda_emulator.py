"""The CUDA primitives' host implementation: layouts, copies, order, faults."""

import pytest
import torch

import emulated
from conv_cases import assert_same_bits

pytestmark = pytest.mark.skipif(bool(emulated.unavailable()), reason=emulated.unavailable())

FAULTS = {
    "read beyond": "out of bounds: 4 bytes at element 64 of a global buffer of 64",
    "read before": "out of bounds: 4 bytes at element -1 of a global buffer",
    "predicated read beyond": "out of bounds: 4 bytes at element 64 of a global buffer of 64",
    "write beyond": "out of bounds: 4 bytes at element 64 of a global buffer of 64",
    "misaligned": "misaligned: 16 bytes at element 1",
    "misaligned predicated read": "misaligned: 8 bytes at element 1",
    "shared memory beyond the launch's": "access of 4 bytes at byte .* of 1280 bytes of shared",
    "shared memory beyond the range": "out of bounds: 4 bytes at element .* of a shared range",
    "divergent barrier": "divergence at a barrier",
    "ended before a barrier": "divergence at a barrier",
    "divergent warp": "calls shuffle_xor while other lanes of its warp are in shuffle",
    "missing lane": "waits in shuffle for lanes that do not come",
    "race of warps": "race: (reads|writes) shared memory",
    "race in a warp": "race: (reads|writes) shared memory",
    "write after read": "race: (reads|writes) shared memory",
    "unwritten": "reads shared memory that nobody wrote",
    "copy in flight at the end": "ended with asynchronous copies in flight",
    "copy from beyond": "out of bounds: 16 bytes at element 256 of a global buffer of 256",
    "overwrites a copy in flight": "writes shared memory that a copy in flight writes too",
}


@pytest.fixture(params=(0, 1, 2), ids=("ascending", "shuffled", "shuffled again"))
def schedule(request):
    emulated.load().set_schedule(request.param)
    yield
    emulated.load().set_schedule(0)


def random_bytes(dtype, *size):
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max + 1, size, dtype=dtype)


@pytest.mark.parametrize("b_dtype", (torch.int8, torch.uint8))
@pytest.mark.parametrize("a_dtype", (torch.int8, torch.uint8))
def test_product_is_a_matrix_product(a_dtype, b_dtype):
    a, b = random_bytes(a_dtype, 16, 32), random_bytes(b_dtype, 32, 8)
    c = torch.randint(-(2**31), 2**31, (16, 8), dtype=torch.int32)
    got = emulated.load().product(a, b, c)
    assert torch.equal(got, (a.long() @ b.long() + c).to(torch.int32))


def test_product_wraps():
    a, b = torch.full((16, 32), 127, dtype=torch.int8), torch.full((32, 8), 127, dtype=torch.int8)
    got = emulated.load().product(a, b, torch.full((16, 8), 2**31 - 1, dtype=torch.int32))
    assert (got == 2**31 - 1 + 32 * 127 * 127 - 2**32).all()


@pytest.mark.parametrize("transposed", (False, True))
def test_matrix_loads(transposed):
    rows = random_bytes(torch.uint8, 32, 16)
    got = emulated.load().matrices(rows, transposed)
    halves = rows.view(torch.int16).view(4, 8, 8)  # matrix, row, column
    if transposed:
        halves = halves.transpose(1, 2)
    for lane in range(32):
        pair = halves[:, lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2]
        assert torch.equal(got[lane], pair.contiguous().view(torch.int32).view(4))


def test_lanes(schedule):
    values = torch.randint(-1000, 1000, (64,), dtype=torch.int32)
    got = emulated.load().lanes(values).view(5, 2, 32)
    warps, lane = values.view(2, 32), torch.arange(32)
    assert torch.equal(got[0], warps[:, 3:4].expand(2, 32))
    assert torch.equal(got[1], warps[:, (lane + 1) % 32])
    assert torch.equal(got[2], warps[:, lane ^ 5])
    bits = ((warps % 2 != 0).long() << lane).sum(1, keepdim=True).to(torch.int32)
    assert torch.equal(got[3], bits.expand(2, 32))
    assert torch.equal(got[4], warps.sum(1, keepdim=True).to(torch.int32).expand(2, 32))


@pytest.mark.parametrize("in_flight, read", ((0, 0), (0, 2), (1, 1), (2, 0)))
def test_copies_arrive_at_the_wait(in_flight, read, schedule):
    source = random_bytes(torch.uint8, 3 * 1024)
    got = emulated.load().copies(source, in_flight, read)
    assert torch.equal(got, source[read * 1024 : (read + 1) * 1024])


@pytest.mark.parametrize("in_flight, read", ((1, 2), (2, 1), (3, 0)))
def test_copies_in_flight_must_not_be_read(in_flight, read, schedule):
    with pytest.raises(RuntimeError, match="a copy in flight writes"):
        emulated.load().copies(random_bytes(torch.uint8, 3 * 1024), in_flight, read)


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(name, schedule):
    values = torch.arange(64, dtype=torch.int32)
    which = 1 + list(FAULTS).index(name)
    with pytest.raises(RuntimeError, match=FAULTS[name]):
        emulated.load().fault(values, which)


def test_a_kernel_without_fault_passes(schedule):
    values = torch.arange(64, dtype=torch.int32)
    assert torch.equal(emulated.load().fault(values, 0), values[torch.arange(64) ^ 33])


def test_warp_barriers_order_a_warp(schedule):
    values = torch.randint(0, 1000, (64,), dtype=torch.int32)
    expected = values.view(2, 32).roll(-3, 1).view(64)
    assert torch.equal(emulated.load().warp_exchange(values), expected)


def test_narrow_floats_round_as_torch():
    bits = torch.randint(-(2**31), 2**31, (20_000,), dtype=torch.int64).to(torch.int32)
    special = [0.0, -0.0, 65504.0, 65519.99, 65520.0, 1e-8, 5.96e-8, 2.98e-8, 1e38, 3.4e38]
    special += [float("inf"), float("-inf"), float("nan"), 1e-40, -1e-45, 1 + 2.0**-8, 1 + 3 / 256]
    near_half = torch.randn(5_000) * 10.0 ** torch.randint(-9, 6, (5_000,))
    values = torch.cat([bits.view(torch.float32), torch.tensor(special), near_half])
    bfloat16, half = emulated.load().narrow(values)
    assert_same_bits(bfloat16.view(torch.bfloat16), values.bfloat16())
    assert_same_bits(half.view(torch.float16), values.half())


def test_narrow_floats_widen_as_torch():
    words = torch.arange(65536).to(torch.int16)
    bfloat16, half = emulated.load().widen()
    assert_same_bits(bfloat16, words.view(torch.bfloat16).float())
    assert_same_bits(half, words.view(torch.float16).float())


def test_byte_permutation():
    low, high = (torch.randint(0, 2**31, (50,), dtype=torch.int32) for _ in range(2))
    nibbles = torch.randint(0, 8, (50, 4))
    selector = (nibbles << torch.tensor([0, 4, 8, 12])).sum(1).to(torch.int32)
    got = emulated.load().permute(low, high, selector).view(torch.uint8).view(50, 4)
    both = torch.cat([low.view(torch.uint8).view(50, 4), high.view(torch.uint8).view(50, 4)], 1)
    assert torch.equal(got, both.gather(1, nibbles))


@pytest.mark.parametrize("count", (0, 1, 31, 256, 257, 5_000))
def test_absolute_maximum(count, schedule):
    x = torch.randn(count)
    expected = x.abs().amax() if count else torch.tensor(0.0)
    assert emulated.load().maximum(x).item() == expected.item()


def test_absolute_maximum_keeps_what_is_not_finite():
    x = torch.randn(300)
    x[7] = float("-inf")
    assert emulated.load().maximum(x).item() == float("inf")
    x[290] = float("nan")
    assert emulated.load().maximum(x).isnan().all()
