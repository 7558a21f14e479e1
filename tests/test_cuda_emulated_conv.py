"""The CUDA kernels of the three products, run by the emulator, against the reference bit for bit."""

import pytest
import torch

import emulated
from conv_cases import (
    FIXED,
    FLOATS,
    assert_same_bits,
    channels_last,
    geometry_of,
    is_channels_last,
    leave_garbage,
    random_case,
)
from daq_mm.ops import reference

pytestmark = pytest.mark.skipif(bool(emulated.unavailable()), reason=emulated.unavailable())

TILES = {"128x128": 0, "128x64": 1, "64x64": 2}
DTYPES = (*FLOATS, torch.int32)

#: Geometries at the edges of the tiles and of their 16-byte chunks.
EDGES = {
    "whole tiles": dict(x_size=(2, 64, 8, 8), kernel=1, co=128),
    "one beyond a tile": dict(x_size=(1, 16, 3, 43), kernel=1, co=129),
    "one short of a tile": dict(x_size=(1, 48, 127, 1), kernel=1, co=127),
    "chunks of several taps": dict(x_size=(2, 16, 6, 5), kernel=3, co=48, padding=1),
    "long contraction": dict(x_size=(1, 80, 4, 4), kernel=(2, 3), co=24, padding=1),
}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    emulated.load().set_schedule(0)
    emulated.load().set_multiprocessors(4)


def signed(*size):
    return torch.randint(-128, 128, size, dtype=torch.int8)


def operands(case, zero_point=128):
    """Random operands of the three ops for a case: a record of tensors, and the geometry's."""
    geometry, args = geometry_of(**case)
    v = {
        "q_x": channels_last(torch.randint(0, 256, geometry.x_size, dtype=torch.uint8)),
        "x_qparams": torch.tensor([0.0173, zero_point], dtype=torch.float32),
        "q_w": signed(*geometry.w_size),
        "w_step": torch.tensor([0.0091]),
        "bias": torch.randn(case["co"]),
        "q_g": channels_last(signed(*geometry.out_size)),
        "g_step": torch.rand(case["co"]) * 0.01,
        "step": torch.rand(geometry.x_size[1]) * 0.01,
    }
    return v, geometry, args


def arguments(op, v, geometry, bias=True):
    """The positional arguments of an op before stride, ..., out_dtype."""
    if op == "forward":
        return [v["q_x"], v["x_qparams"], v["q_w"], v["w_step"], v["bias"] if bias else None]
    if op == "grad_input":
        return [v["q_g"], v["q_w"], v["step"], list(geometry.x_size)]
    return [v["q_x"], v["x_qparams"], v["q_g"], v["g_step"], list(geometry.w_size[2:])]


def check(op, tensors, args, out_dtype, tile=None, splits=1):
    """Run an op by the emulator, with a tile and splits or by its own plan, and compare."""
    expected = getattr(reference, op)(*tensors, **args, out_dtype=out_dtype)
    leave_garbage(expected.numel())
    ops = emulated.load()
    if tile is None:
        got = getattr(ops, op)(*tensors, *args.values(), out_dtype)
    elif op == "grad_weight":
        got = ops.grad_weight_with(*tensors, *args.values(), out_dtype, tile, splits, False)
    else:
        got = getattr(ops, f"{op}_with")(*tensors, *args.values(), out_dtype, tile, splits)
    got = got[0] if isinstance(got, tuple) else got
    assert got.is_contiguous() if op == "grad_weight" else is_channels_last(got)
    assert_same_bits(got, expected)


OPS = ("forward", "grad_input", "grad_weight")


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("op", OPS)
def test_fixed_geometries(op, name):
    v, geometry, args = operands(FIXED[name], zero_point=(0, 128)[len(name) % 2])
    check(op, arguments(op, v, geometry), args, torch.float32)


@pytest.mark.parametrize("splits", (1, 3))
@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("op", OPS)
def test_tiles_and_splits(op, name, tile, splits):
    v, geometry, args = operands(EDGES[name], zero_point=(128, 0)[splits == 3])
    check(op, arguments(op, v, geometry), args, torch.float32, TILES[tile], splits)


@pytest.mark.parametrize("block", range(6))
@pytest.mark.parametrize("op", OPS)
def test_random_geometries(op, block):
    for seed in range(10 * block, 10 * block + 10):
        torch.manual_seed(seed)
        v, geometry, args = operands(random_case(seed), (0, 128, 77)[seed % 3])
        tile = (None, 0, 1, 2)[seed % 4] if seed % 5 else 2
        splits = (1, 2, 5)[seed % 3]
        tensors = arguments(op, v, geometry, bias=seed % 2 == 0)
        check(op, tensors, args, DTYPES[seed % 4], tile, splits)
