"""grad_input_reduce with the CUDA kernels, run thread by thread on the CPU (see emulated.py).

The CPU kernel's own checks, and every tile, edge and operand: gz bit for bit as by the two ops one
after another, sums within their bound, and the same bits each time.
"""

import pytest
import torch

import emulated
import test_ops_grad_input_reduce as reduce
from conv_cases import (
    FIXED,
    FLOATS,
    assert_same_bits,
    geometry_of,
    is_channels_last,
    leave_garbage,
    plan_key,
)
from daq_mm.ops import reference, reference_glue
from emulated import launches_of
from test_cuda_emulated_conv import shifted
from test_cuda_emulated_wgmma import padded
from tolerances import FLOAT32_TILE_SUM

pytestmark = pytest.mark.skipif(bool(emulated.unavailable()), reason=emulated.unavailable())

BF16, FP32 = torch.bfloat16, torch.float32
MMA = {"128x128": 0, "128x64": 1, "64x64": 2}
WGMMA = {"wgmma 128x64": 3, "wgmma 128x128": 4, "wgmma 128x256": 5}
TILES = {**MMA, **WGMMA}

#: Geometries at the edges of tiles, chunks and phases, for the tiles of mma.sync and of wgmma.
EDGES = {
    "whole tiles": dict(x_size=(2, 128, 8, 8), kernel=1, co=64),
    "a row and a chunk beyond": dict(x_size=(1, 144, 3, 43), kernel=1, co=16),
    "a row and a chunk short": dict(x_size=(1, 112, 127, 1), kernel=1, co=48),
    "images smaller than a tile": dict(x_size=(9, 64, 5, 3), kernel=3, co=32, padding=1),
    "stride without taps": dict(x_size=(2, 64, 9, 9), kernel=1, co=64, stride=2),
    "dilated, strided": dict(
        x_size=(2, 80, 13, 12), kernel=3, co=64, padding=2, dilation=2, stride=(2, 3)
    ),
    "grouped": dict(x_size=(2, 192, 6, 7), kernel=3, co=96, padding=1, groups=3),
    "3d": dict(x_size=(2, 48, 4, 5, 6), kernel=3, co=64, padding=1, stride=(1, 2, 2)),
}


@pytest.fixture(autouse=True)
def _a_hopper(one_thread):
    ops = emulated.load()
    ops.set_warpgroups(True)
    yield
    ops.set_warpgroups(False)
    ops.set_schedule(0)
    ops.set_multiprocessors(4)


@pytest.fixture
def kernels():
    emulated.load().set_warpgroups(False)
    with emulated.as_cpu_kernels():
        yield "emulated"


def passes(run):
    """How often norm_act_reduce's kernel ran, which alone has so many threads and shared bytes."""
    return sum(launch[3:] == (256, 32768) for launch in launches_of(run))


def run(operands, tile=None, splits=1):
    product, settings, glue = operands
    ops = emulated.load()
    args = (*product, *settings.values(), *glue.values())
    if tile is None:
        return ops.grad_input_reduce(*args)
    return ops.grad_input_reduce_with(*args, tile, splits)


def check(operands, tile=None, splits=1, *, in_tiles=True):
    """Compare with the reference; in_tiles: whether the tiles do it all, None for either."""
    product, settings, glue = operands
    leave_garbage(product[0].numel())
    found = []
    count = passes(lambda: found.extend(run(operands, tile, splits)))
    assert in_tiles is None or count == (not in_tiles)
    gz, sums = found
    dx = reference.grad_input(*product, *settings.values())
    expected, _ = reference_glue.norm_act_reduce(dx, *glue.values(), True)
    assert is_channels_last(gz)
    assert_same_bits(gz, expected)
    terms = [gz.double(), torch.zeros_like(gz, dtype=torch.float64)]
    if glue["mean"] is not None:
        mean, invstd = (glue[k].view(1, -1, *[1] * (gz.dim() - 2)) for k in ("mean", "invstd"))
        centred = reference_glue._y_hat(glue["y"], glue["grid"]) - mean
        terms[1] = (gz.float() * (centred * invstd)).double()
    over = (0, *range(2, gz.dim()))
    for got, term in zip(sums, terms):
        bound = FLOAT32_TILE_SUM * term.abs().sum(over) + gz.numel() * 2.0**-150
        assert ((got - term.sum(over)).abs() <= bound).all()
    return gz, sums


def without(operands, *names):
    product, settings, glue = operands
    return product, settings, {**glue, **dict.fromkeys(names)}


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("name", EDGES)
def test_tiles_and_edges(name, tile):
    number = list(EDGES).index(name) + TILES[tile]
    operands = reduce.operands(padded(EDGES[name]), FLOATS[number % 3], "codes")
    check(operands, TILES[tile])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("tile", TILES)
def test_every_operand_may_be_absent(tile, dtype):
    for kind in ("codes", "float", "none"):
        operands = reduce.operands(EDGES["images smaller than a tile"], dtype, kind)
        check(operands, TILES[tile])
        check(without(operands, "g2"), TILES[tile])
        check(without(operands, "mask"), TILES[tile])
    check(without(operands, "g2", "mask"), TILES[tile])
    operands = reduce.operands(EDGES["images smaller than a tile"], dtype, "codes")
    check(without(operands, "mean", "invstd"), TILES[tile])


@pytest.mark.parametrize(
    "case, dtype, in_tiles",
    (
        (dict(x_size=(2, 20, 7, 5), kernel=3, co=16, padding=1), FP32, True),
        (dict(x_size=(2, 20, 7, 5), kernel=3, co=16, padding=1), BF16, False),
        (dict(x_size=(2, 36, 7, 5), kernel=3, co=24, padding=1, groups=3), FP32, True),
        (dict(x_size=(2, 72, 7, 5), kernel=3, co=24, padding=1, groups=3), BF16, True),
        (dict(x_size=(2, 36, 7, 5), kernel=3, co=24, padding=1, groups=3), BF16, False),
        (dict(x_size=(2, 37, 7, 5), kernel=1, co=19), FP32, False),
        (dict(x_size=(2, 24, 7, 5), kernel=3, co=7, padding=1, stride=2), BF16, True),
    ),
)
def test_channels_that_fill_no_vectors(case, dtype, in_tiles):
    for tile in MMA.values():
        check(reduce.operands(case, dtype, "codes"), tile, in_tiles=in_tiles)


@pytest.mark.parametrize("tile", ("64x64", "wgmma 128x64"))
@pytest.mark.parametrize("dtype", FLOATS)
def test_splits_of_the_contraction_are_reduced_by_a_pass(tile, dtype):
    operands = reduce.operands(EDGES["images smaller than a tile"], dtype, "codes")
    check(operands, TILES[tile], splits=3, in_tiles=False)


@pytest.mark.parametrize("name", ("depthwise", "depthwise 3x3 strided", "3d depthwise"))
def test_depthwise_is_reduced_by_a_pass(name):
    check(reduce.operands(FIXED[name], BF16, "codes"), in_tiles=False)


@pytest.mark.parametrize("name, kind", (("g2", "codes"), ("y", "codes"), ("y", "float")))
def test_operands_at_any_address(name, kind):
    """Off by an element: a pass reads what the tiles cannot."""
    product, settings, glue = reduce.operands(EDGES["whole tiles"], BF16, kind)
    glue[name] = shifted(glue[name], 4)
    check((product, settings, glue), 2, in_tiles=False)


@pytest.mark.parametrize("name", ("stride beyond x", "one pixel 3x3", "3x3 stride 3", "3d strided"))
def test_plans_of_its_own(name):
    case = {**FIXED[name], "x_size": (2, 16, *FIXED[name]["x_size"][2:])}
    for processors in (1, 500):
        emulated.load().set_multiprocessors(processors)
        check(reduce.operands(case, BF16, "codes"), in_tiles=None)


def test_many_row_tiles():
    """More of them than one chunk of the second stage takes, and more chunks than one block."""
    case = dict(x_size=(3, 16, 61, 67), kernel=1, co=16, stride=(1, 2))
    for tile in (2, 3):
        check(reduce.operands(case, BF16, "codes"), tile)


@pytest.mark.parametrize("tile", ("128x128", "64x64", "wgmma 128x128"))
def test_order_of_threads_does_not_matter(tile):
    operands = reduce.operands(padded(EDGES["dilated, strided"]), BF16, "codes")
    first = run(operands, TILES[tile])
    for seed in (1, 2, 3):
        emulated.load().set_schedule(seed)
        gz, sums = run(operands, TILES[tile])
        assert torch.equal(gz, first[0]) and torch.equal(sums, first[1])


@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
def test_what_is_not_finite_stays_so(bad):
    product, settings, glue = reduce.operands(EDGES["whole tiles"], BF16, "codes")
    glue["g2"][0, 3, 0, 0] = bad
    glue["g2"][0, 5] = bad
    glue["mask"][0, 0, 0, 0] |= 1 << 3
    glue["mask"][:, :, :, 0] &= ~(1 << 5) & 0xFF
    for tile in (2, 4):
        gz, sums = run((product, settings, glue), tile)
        assert not sums[:, 3].isfinite().any()
        assert gz[:, 5].eq(0).all() and sums[:, 5].eq(0).all()
        assert sums[:, :3].isfinite().all() and sums[:, 4:].isfinite().all()


def changed(name, change):
    def apply(glue):
        glue[name] = change(glue[name])

    return apply


@pytest.mark.parametrize(
    "change, error, message",
    (
        (changed("g2", lambda t: t[:1]), ValueError, "g2 has size"),
        (changed("g2", lambda t: t.to(BF16)), TypeError, "g2 has dtype"),
        (changed("g2", lambda t: t.contiguous()), ValueError, "g2 .* channels-last"),
        (changed("mask", lambda t: t[..., :1]), ValueError, "mask has size"),
        (changed("mask", lambda t: t.to(torch.int8)), TypeError, "mask has dtype"),
        (changed("y", lambda t: t.to(torch.int8)), TypeError, "y has dtype"),
        (changed("y", lambda t: None), ValueError, "grid is given but y is None"),
        (changed("grid", lambda t: t[:1]), ValueError, "grid has size"),
        (changed("mean", lambda t: t[1:]), ValueError, "mean has size"),
        (changed("mean", lambda t: None), ValueError, "mean and invstd must both"),
        (changed("invstd", lambda t: t.double()), TypeError, "invstd has dtype"),
    ),
)
def test_wrong_operands_are_named(change, error, message):
    product, settings, glue = reduce.operands(FIXED["3x3"], FP32, "codes")
    change(glue)
    with pytest.raises(error, match=message):
        run((product, settings, glue))


def test_bare_sums_are_refused():
    product, settings, glue = reduce.operands(FIXED["3x3"], FP32, "codes")
    with pytest.raises(TypeError, match="out_dtype is .*; allowed: float32, bfloat16, float16$"):
        run((product, {**settings, "out_dtype": torch.int32}, glue))


# ---- the autotuner ----


def test_the_autotuner_keeps_it_apart_from_plain_grad_input():
    ops = emulated.load()
    operands = reduce.operands(EDGES["images smaller than a tile"], BF16, "codes")
    product, settings, _ = operands
    geometry, _ = geometry_of(**EDGES["images smaller than a tile"])
    keys = [
        plan_key("grad_input", geometry, statistics=own, wgmma=True, result_bytes=2)
        for own in (False, True)
    ]

    def plain():
        ops.grad_input(*product, *settings.values())

    before = launches_of(plain)
    try:
        ops.load_plans(0, [*keys[1], TILES["64x64"], 3])
        assert launches_of(plain) == before
        check(operands, in_tiles=False)
        ops.load_plans(0, [*keys[0], TILES["64x64"], 3])
        ops.load_plans(0, [*keys[1], TILES["wgmma 128x128"], 1])
        assert launches_of(plain) != before
        check(operands)
    finally:
        ops.clear_plans()


def test_measuring_leaves_what_the_next_call_gives():
    """Choices with and without splits, each of which writes gz, and the last of which is kept."""
    ops = emulated.load()
    operands = reduce.operands(EDGES["images smaller than a tile"], BF16, "codes")
    geometry, _ = geometry_of(**EDGES["images smaller than a tile"])
    key = plan_key("grad_input", geometry, statistics=True, wgmma=True, result_bytes=2)
    candidates = ops.candidates(key)
    tiles, splits = candidates[::2], candidates[1::2]
    assert len(set(tiles)) > 2
    try:
        for best in (0, len(tiles) - 1):
            ops.clear_plans()
            ops.set_clock([1.0 + (i != best) for i in range(len(tiles))])
            ops.tune_plans(True)
            first = run(operands)
            ops.tune_plans(False)
            assert ops.plan_table(0) == [*key, tiles[best], splits[best]]
            gz, sums = check(operands, in_tiles=splits[best] == 1)
            assert torch.equal(gz, first[0]) and torch.equal(sums, first[1])
    finally:
        ops.tune_plans(False)
        ops.clear_plans()
        ops.set_clock([])


# ---- the CPU kernel's own checks ----


@pytest.mark.parametrize("name", reduce.CASES)
def test_geometries(kernels, name):
    reduce.test_geometries(kernels, name, FLOATS[list(reduce.CASES).index(name) % 3])


@pytest.mark.parametrize("kind", ["codes", "float", "none"])
def test_kinds_of_y_and_no_mask(kernels, kind):
    reduce.test_kinds_of_y_and_no_mask(kernels, "3x3 strided", kind)


@pytest.mark.parametrize("own", [reduce.test_no_images, reduce.test_wrong_operands_are_refused])
def test_the_rest(kernels, own):
    own(kernels)
