"""The emulated compute capability 9.0: bulk copies, arrivals, products of a warpgroup."""

import random

import pytest
import torch
import torch.nn.functional as F

import emulated

pytestmark = pytest.mark.skipif(bool(emulated.unavailable()), reason=emulated.unavailable())

FAULTS = {
    "products without a beginning": "multiplies without begin_products",
    "a warp does not wait for the operands": "whose copy it did not wait for|in flight writes",
    "reads a copy in flight": "in flight writes|race: writes shared memory that other threads read",
    "refills before the products are waited for": "a copy in flight writes too|a product of",
    "too few arrivals": "waits for arrivals that do not come",
    "more bytes expected than come": "waits for arrivals that do not come",
    "products in flight at the end": "ended with products in flight",
    "copies in flight at the end": "ended with bulk copies in flight",
    "arrivals not set": "an arrival object that was not set",
    "arrivals set without a barrier": "(race: uses|uses) an arrival object that",
    "a lane is missing": "for lanes of its warpgroup that do not come",
    "a warp multiplies something else": "something else than other lanes",
    "sums before the wait": None,
    "arrivals as memory": "accesses an arrival object as memory",
    "misplaced": "expected a multiple of eight rows",
}


STORE_FAULTS = {
    "a thread does not publish its stores": "without publish_stores",
    "registers change before the wait": "changes registers that a product in flight reads",
    "stores before the products are waited for": "a product of warpgroup 0 reads",
}


@pytest.fixture(params=(0, 1, 2), ids=("ascending", "shuffled", "shuffled again"), autouse=True)
def schedule(request):
    ops = emulated.load()
    ops.set_warpgroups(True)
    ops.set_schedule(request.param)
    yield request.param
    ops.set_schedule(0)
    ops.set_warpgroups(False)


def random_bytes(*size, dtype=torch.uint8):
    return torch.randint(-128, 128, size, dtype=torch.int8).view(dtype)


def straightened(memory, rows, span):
    """Rows of a box, whose 16-byte chunks lie permuted: CU_TENSOR_MAP_SWIZZLE_128B and _64B."""
    row = torch.arange(rows)[:, None]
    by = row % 8 if span == 128 else row // 2 % 4
    chunk = torch.arange(span // 16)[None, :] ^ by
    return memory.view(rows, span // 16, 16)[row, chunk].reshape(rows, span)


@pytest.mark.parametrize("span", (64, 128))
@pytest.mark.parametrize("column, row", ((0, 0), (16, 3), (-32, -5), (150, 70), (400, 0)))
def test_boxes_of_a_matrix(span, column, row):
    matrix = random_bytes(77, 208)
    got = straightened(emulated.load().bring_box(matrix, span, 64, column, row), 64, span)
    padded = F.pad(matrix, (512, 512, 512, 512))
    assert torch.equal(got, padded[512 + row :, 512 + column :][:64, :span])


def random_walk(seed):
    """A walk over images: its parameters, and all that it meets, (pixels, channels)."""
    rng = random.Random(seed)
    axes = rng.choice((2, 3))
    size = [1 if axes == 2 and a == 0 else rng.randint(1, 9) for a in range(3)]
    used = [axes == 3 or a > 0 for a in range(3)]
    step = [rng.randint(1, 3) if u else 1 for u in used]
    lower = [rng.randint(-3, 1) if u else 0 for u in used]
    count = [rng.randint(1, 6) if u else 1 for u in used]
    slack = [rng.randrange(s) for s in step]
    upper = [low + (n - 1) * s + 1 + r - z
             for low, n, s, r, z in zip(lower, count, step, slack, size)]  # fmt: skip
    offset = [rng.randint(0, 4) if u else 0 for u in used]
    images = random_bytes(rng.randint(1, 4), *size, 16 * rng.randint(1, 12))
    room = 40
    padded = F.pad(images, (0, 0, *(room,) * 6))
    taken = padded
    for a in range(3):
        first = room + lower[a] + offset[a]
        indices = first + step[a] * torch.arange(count[a])
        taken = taken.index_select(a + 1, indices)
    return axes, lower, upper, step, count, offset, images, taken.flatten(0, 3), rng


@pytest.mark.parametrize("seed", range(25))
def test_walks_over_images(seed):
    axes, lower, upper, step, count, offset, images, taken, rng = random_walk(seed)
    span, pixels = rng.choice((64, 128)), rng.choice((8, 64, 128))
    start, channel = rng.randrange(len(taken)), 16 * rng.randint(0, 3)
    at, rest = [0, 0, 0], start
    for a in (2, 1, 0):
        at[a] = lower[a] + rest % count[a] * step[a]
        rest //= count[a]
    memory = emulated.load().bring_walk(
        images, axes, lower, upper, step, span, pixels, channel, at, rest, offset
    )
    expected = F.pad(taken, (0, 512, 0, pixels))[start : start + pixels, channel : channel + span]
    assert torch.equal(straightened(memory, pixels, span), expected)


@pytest.mark.parametrize(
    "change, message",
    (
        (dict(lower=(0, -129, 0), upper=(0, 0, 0)), "corners that do not fit"),
        (dict(upper=(0, 0, 128)), "corners that do not fit"),
        (dict(axes=3, lower=(-17, 0, 0)), "corners that do not fit"),
        (dict(step=(1, 9, 1)), "a step outside of 1..8"),
        (dict(offset=(0, 0, 255)), "offsets that do not fit"),
        (dict(axes=3, offset=(0, 31, 0)), "offsets that do not fit"),
        (dict(upper=(0, -5, 0)), "an empty walk"),
        (dict(pixels=1025), "pixels outside of"),
        (dict(images=random_bytes(1, 1, 5, 5, 24)), "channels that are no multiple of 16"),
        (dict(images=random_bytes(8 + 25 * 16)[8:].view(1, 1, 5, 5, 16)), "an address"),
    ),
)
def test_walks_that_the_engine_cannot_take(change, message):
    arguments = dict(
        images=random_bytes(1, 1, 5, 5, 32), axes=2, lower=(0, 0, 0), upper=(0, 0, 0),
        step=(1, 1, 1), span=64, pixels=8, channel=0, position=(0, 0, 0), image=0, offset=(0, 0, 0),
    )  # fmt: skip
    with pytest.raises(RuntimeError, match=f"refused: {message}"):
        emulated.load().bring_walk(**arguments | change)


@pytest.mark.parametrize("columns", (64, 128, 256))
@pytest.mark.parametrize("span", (64, 128))
@pytest.mark.parametrize("dtype", (torch.int8, torch.uint8))
def test_warpgroup_product_is_a_matrix_product(dtype, span, columns):
    a, b = random_bytes(64, span, dtype=dtype), random_bytes(columns, span, dtype=torch.int8)
    got = emulated.load().warpgroup_product(a, b, 0)
    assert torch.equal(got, (2 * (a.long() @ b.long().T)).to(torch.int32))


@pytest.mark.parametrize("columns", (64, 128))
def test_product_of_registers_and_stored_bytes(columns):
    a, b = random_bytes(64, 64, dtype=torch.int8), random_bytes(columns, 64)
    got = emulated.load().register_product(a, b, 0)
    assert torch.equal(got, (a.long() @ b.long().T).to(torch.int32))


@pytest.mark.parametrize("name", STORE_FAULTS)
def test_faults_of_operands_that_threads_bring_are_named(name):
    a, b = random_bytes(64, 64, dtype=torch.int8), random_bytes(64, 64)
    with pytest.raises(RuntimeError, match=STORE_FAULTS[name]):
        emulated.load().register_product(a, b, 1 + list(STORE_FAULTS).index(name))


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_named(name):
    a, b = random_bytes(64, 128), random_bytes(64, 128, dtype=torch.int8)
    which = 1 + list(FAULTS).index(name)
    if name == "copies in flight at the end":
        emulated.load().set_schedule(0)  # shuffled, they may land before
    if FAULTS[name] is None:  # nothing to see but that the sums are not there
        got = emulated.load().warpgroup_product(a, b, which)[0, 0]
        once = (a[0].long() * b[0].long()).sum()
        assert got != once and got != 2 * once
        return
    with pytest.raises(RuntimeError, match=FAULTS[name]):
        emulated.load().warpgroup_product(a, b, which)
