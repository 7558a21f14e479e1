"""The products by wgmma (compute capability 9.0), run by the emulator, bit for bit."""

import random
from functools import partial

import pytest
import torch

import emulated
from conv_cases import FIXED, FLOATS, geometry_of
from emulated import launches_of
from test_cuda_emulated_conv import DTYPES, arguments, check, operands, shifted

pytestmark = pytest.mark.skipif(bool(emulated.unavailable()), reason=emulated.unavailable())

TILES = {"128x64": 3, "128x128": 4, "128x256": 5}
GRAD_TILES = {"128x64": 3, "128x128": 4, "64x128": 6, "256x128": 7}
OPS = ("forward", "grad_input")

#: Geometries at the edges of tiles, spans, boxes and images.
EDGES = {
    "whole tiles": dict(x_size=(2, 64, 8, 8), kernel=1, co=256),
    "one beyond a tile": dict(x_size=(1, 16, 3, 43), kernel=1, co=272),
    "one short of a tile": dict(x_size=(1, 48, 127, 1), kernel=1, co=112),
    "images smaller than a tile": dict(x_size=(9, 32, 5, 3), kernel=3, co=64, padding=1),
    "more padding than image": dict(x_size=(2, 16, 2, 3), kernel=5, co=32, padding=4),
    "several spans a tap": dict(x_size=(1, 272, 4, 4), kernel=(2, 3), co=144, padding=1),
    "rings go round": dict(x_size=(1, 384, 3, 3), kernel=3, co=384, padding=1),
    "dilated, strided": dict(
        x_size=(2, 64, 13, 12), kernel=3, co=80, padding=2, dilation=2, stride=(2, 3)
    ),
    "stride without taps": dict(x_size=(2, 64, 9, 9), kernel=1, co=64, stride=2),
    "grouped": dict(x_size=(2, 96, 6, 7), kernel=3, co=192, padding=1, groups=3),
    "3d": dict(x_size=(2, 48, 4, 5, 6), kernel=3, co=64, padding=1, stride=(1, 2, 2)),
    "3d of depth one, strided": dict(
        x_size=(3, 32, 1, 5, 6), kernel=(1, 3, 2), co=48, padding=(0, 1, 0), stride=(2, 1, 2)
    ),
    "3d, 2d kernel": dict(x_size=(1, 64, 3, 6, 6), kernel=(1, 3, 3), co=32, padding=(0, 1, 1)),
}


@pytest.fixture(autouse=True)
def _one_thread_of_a_hopper():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ops = emulated.load()
    ops.set_warpgroups(True)
    yield
    torch.set_num_threads(threads)
    ops.set_warpgroups(False)
    ops.use_wgmma(True)
    ops.set_schedule(0)
    ops.set_multiprocessors(4)


def padded(case):
    """A case whose padding is spelt out for both ends of each axis."""
    rank = len(case["x_size"]) - 2
    padding = case.get("padding", 0)
    if isinstance(padding, tuple) and len(padding) == rank:
        case = {**case, "padding": padding + padding}
    return case


def planned_tile(op, case):
    geometry, args = geometry_of(**padded(case))
    sizes = list(geometry.x_size), list(geometry.w_size)
    return emulated.load().planned(op == "grad_input", *sizes, *args.values())[0]


@pytest.mark.parametrize("splits", (1, 3))
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("op", OPS)
def test_tiles_and_splits(op, name, tile, splits):
    v, geometry, args = operands(padded(EDGES[name]), zero_point=(201, 0)[splits == 3])
    check(op, arguments(op, v, geometry), args, torch.float32, TILES[tile], splits)


@pytest.mark.parametrize("splits", (1, 3))
@pytest.mark.parametrize("tile", GRAD_TILES)
@pytest.mark.parametrize("name", EDGES)
def test_grad_weight_tiles_and_splits(name, tile, splits):
    v, geometry, args = operands(padded(EDGES[name]), zero_point=(201, 0)[splits == 3])
    tensors = arguments("grad_weight", v, geometry)
    check("grad_weight", tensors, args, torch.float32, GRAD_TILES[tile], splits)


@pytest.mark.parametrize("block", range(6))
def test_grad_weight_of_random_geometries(block):
    for seed in range(6 * block, 6 * block + 6):
        torch.manual_seed(seed)
        emulated.load().set_schedule(seed % 3)
        v, geometry, args = operands(random_case(seed), (0, 128, 77)[seed % 3])
        tensors = arguments("grad_weight", v, geometry)
        tile = list(GRAD_TILES.values())[seed % 4]
        check("grad_weight", tensors, args, DTYPES[seed % 4], tile, (1, 2, 5)[seed % 3])


@pytest.mark.parametrize("name", FIXED)
def test_grad_weight_by_the_plan(name):
    v, geometry, args = operands(FIXED[name], zero_point=(0, 128)[len(name) % 2])
    check("grad_weight", arguments("grad_weight", v, geometry), args, torch.float32)


@pytest.mark.parametrize("channels, by_wgmma", ((64, True), (128, True), (72, False)))
def test_grad_weight_runs_by_wgmma_where_it_can(channels, by_wgmma):
    v, geometry, args = operands(dict(x_size=(2, channels, 8, 8), kernel=1, co=channels))
    tensors = arguments("grad_weight", v, geometry)
    found = {}
    run = partial(emulated.load().grad_weight, *tensors, *args.values(), torch.float32)
    for use in (True, False):
        emulated.load().use_wgmma(use)
        found[use] = launches_of(run)
    assert (found[True] != found[False]) == by_wgmma


@pytest.mark.parametrize("splits", (1, 2))
@pytest.mark.parametrize(
    "name", ("images smaller than a tile", "dilated, strided", "grouped", "3d")
)
def test_zero_points_of_padding(name, splits):
    """Padding counts as the zero point, with all that goes with one that is as large as can be."""
    for zero_point in (1, 255):
        v, geometry, args = operands(EDGES[name], zero_point)
        for out_dtype in (torch.int32, torch.bfloat16):
            check("forward", arguments("forward", v, geometry), args, out_dtype, 4, splits)


def random_case(seed):
    """A geometry of channels that are multiples of 16."""
    rng = random.Random(seed)
    rank = rng.choice((2, 2, 3))
    kernel = [rng.choice((1, 2, 3)) for _ in range(rank)]
    dilation = [rng.choice((1, 1, 2)) for _ in range(rank)]
    stride = [rng.choice((1, 1, 2)) for _ in range(rank)]
    stride[-1] = rng.choice((1, 1, stride[-1], 3 if rank == 2 else 1))
    padding = [rng.randint(0, 2) for _ in range(2 * rank)]
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel)]
    size = [max(s - 2 * padding[i], 1) + rng.randint(0, 7) for i, s in enumerate(spans)]
    size = [max(z, s - padding[i] - padding[rank + i]) for i, (z, s) in enumerate(zip(size, spans))]
    groups = rng.choice((1, 1, 1, 2))
    channels = [16 * groups * rng.randint(1, 6) for _ in range(2)]
    return dict(
        x_size=(rng.randint(1, 4), channels[0], *size), co=channels[1], kernel=tuple(kernel),
        stride=tuple(stride), padding=tuple(padding), dilation=tuple(dilation), groups=groups,
    )  # fmt: skip


@pytest.mark.parametrize("block", range(6))
@pytest.mark.parametrize("op", OPS)
def test_random_geometries(op, block):
    for seed in range(6 * block, 6 * block + 6):
        torch.manual_seed(seed)
        emulated.load().set_schedule(seed % 3)
        v, geometry, args = operands(random_case(seed), (0, 128, 77)[seed % 3])
        tensors = arguments(op, v, geometry, bias=seed % 2 == 0)
        check(op, tensors, args, DTYPES[seed % 4], 3 + seed % 3, (1, 2, 5)[seed % 3])


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("op", OPS)
def test_fixed_geometries_by_the_plan(op, name):
    v, geometry, args = operands(FIXED[name], zero_point=(0, 128)[len(name) % 2])
    check(op, arguments(op, v, geometry), args, torch.float32)


@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize("op", OPS)
def test_output_dtypes(op, out_dtype):
    v, geometry, args = operands(EDGES["images smaller than a tile"])
    for tile, splits in ((3, 1), (4, 2), (5, 1)):
        check(op, arguments(op, v, geometry), args, out_dtype, tile, splits)


@pytest.mark.parametrize("seed", (1, 2, 3))
@pytest.mark.parametrize("op", OPS)
def test_order_of_threads_and_copies_does_not_matter(op, seed):
    emulated.load().set_schedule(seed)
    v, geometry, args = operands(EDGES["rings go round"])
    check(op, arguments(op, v, geometry), args, torch.float32, 3)


@pytest.mark.parametrize("out_dtype", FLOATS)
@pytest.mark.parametrize("tile", TILES)
def test_statistics_of_what_is_stored(tile, out_dtype):
    v, geometry, args = operands(dict(x_size=(3, 32, 9, 9), kernel=3, co=208, padding=1))
    tensors = arguments("forward", v, geometry)
    y, got = emulated.load().forward_with(*tensors, *args.values(), out_dtype, TILES[tile], 1)
    values = y.double().movedim(1, 0).flatten(1)
    assert ((got[0] - values.sum(1)).abs() <= 1e-6 * values.abs().sum(1)).all()
    assert ((got[1] - values.square().sum(1)).abs() <= 1e-6 * values.square().sum(1)).all()
    assert torch.equal(got[2:], torch.stack([values.amin(1), values.amax(1)]))


@pytest.mark.parametrize(
    "case",
    (
        dict(x_size=(64, 64, 56, 56), kernel=1, co=256),
        dict(x_size=(64, 128, 28, 28), kernel=3, co=128, padding=1),
        dict(x_size=(64, 256, 56, 56), kernel=3, co=256, padding=1, stride=2),
        dict(x_size=(8, 64, 8, 56, 56), kernel=3, co=64, padding=1),
    ),
)
@pytest.mark.parametrize("op", OPS)
def test_plans_choose_wgmma_and_the_switch_forbids_it(op, case):
    ops = emulated.load()
    ops.set_multiprocessors(132)
    assert planned_tile(op, case) in TILES.values()
    assert ops.use_wgmma(False) is True
    assert planned_tile(op, case) not in TILES.values()
    assert ops.use_wgmma(True) is False
    ops.set_warpgroups(False)
    assert planned_tile(op, case) not in TILES.values()


@pytest.mark.parametrize(
    "op, reason, case",
    (
        ("forward", "channels that are no multiple of 16",
         dict(x_size=(1, 24, 4, 4), kernel=1, co=32)),
        ("grad_input", "channels that are no multiple of 16",
         dict(x_size=(1, 32, 4, 4), kernel=1, co=24)),
        ("forward", "depthwise", dict(x_size=(1, 32, 4, 4), kernel=3, co=32, groups=32)),
        ("grad_input", "depthwise", dict(x_size=(1, 32, 4, 4), kernel=3, co=32, groups=32)),
        ("forward", "channels of a group that are no multiple of 16",
         dict(x_size=(1, 80, 6, 7), kernel=3, co=64, padding=1, groups=2)),
        ("grad_input", "channels of a group that are no multiple of 16",
         dict(x_size=(1, 64, 6, 7), kernel=3, co=80, padding=1, groups=2)),
        ("forward", "a contraction of more than 65536 terms",
         dict(x_size=(1, 65552, 1, 1), kernel=1, co=16)),
        ("grad_input", "a contraction of more than 65536 terms",
         dict(x_size=(1, 16, 1, 1), kernel=1, co=65552)),
        ("grad_input", "more than 8 phases of the stride",
         dict(x_size=(1, 16, 7, 9), kernel=3, co=16, padding=1, stride=3)),
        ("forward", "a step outside of 1..8",
         dict(x_size=(1, 16, 1, 19), kernel=1, co=16, stride=9)),
        ("forward", "corners that do not fit",
         dict(x_size=(1, 16, 1, 300), kernel=(1, 2), co=16, dilation=(1, 256))),
        ("grad_input", "corners that do not fit",
         dict(x_size=(1, 16, 1, 300), kernel=(1, 2), co=16, dilation=(1, 256))),
        ("forward", "corners that do not fit",
         dict(x_size=(1, 16, 2, 2, 2), kernel=1, co=16, padding=(0, 17, 0))),
    ),
)  # fmt: skip
def test_what_wgmma_cannot_take_runs_by_mma(op, reason, case):
    case = padded(case)
    assert planned_tile(op, case) not in TILES.values()
    v, geometry, args = operands(case)
    check(op, arguments(op, v, geometry), args, torch.float32)
    if reason != "depthwise":
        with pytest.raises(ValueError, match=f"cannot take {reason}"):
            check(op, arguments(op, v, geometry), args, torch.float32, 4)


@pytest.mark.parametrize("op", OPS)
def test_addresses_that_the_copy_engine_cannot_read(op):
    v, geometry, args = operands(EDGES["images smaller than a tile"])
    v["q_x"], v["q_g"] = shifted(v["q_x"], 4), shifted(v["q_g"], 4)
    check(op, arguments(op, v, geometry), args, torch.float32)
    with pytest.raises(ValueError, match="cannot take this device or address"):
        check(op, arguments(op, v, geometry), args, torch.float32, 4)


@pytest.mark.parametrize("value", (-1.0, 256.0, 0.5, float("nan"), float("inf")))
@pytest.mark.parametrize("name", ("3x3 strided", "depthwise", "grouped, odd channels"))
def test_a_zero_point_that_is_none_makes_results_nan(name, value):
    """The CPU ops refuse it; on a device nobody looks, so that results must tell."""
    ops = emulated.load()
    v, geometry, args = operands(FIXED[name])
    v["x_qparams"][1] = value
    for tile in (2, 4) if name == "3x3 strided" else (2,):
        for splits in (1, 2):
            tensors = arguments("forward", v, geometry)
            y, _ = ops.forward_with(*tensors, *args.values(), torch.bfloat16, tile, splits)
            assert y.isnan().all()
    tensors = arguments("grad_weight", v, geometry)
    assert ops.grad_weight(*tensors, *args.values(), torch.float32).isnan().all()


def test_zero_points_at_the_ends_are_good():
    for zero_point in (0, 255):
        v, geometry, args = operands(FIXED["3x3 strided"], zero_point)
        for tile in (2, 4):
            check("forward", arguments("forward", v, geometry), args, torch.float32, tile)
