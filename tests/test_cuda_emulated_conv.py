"""The CUDA kernels of the three products, run by the emulator, against the reference's bits."""

import mmap

import pytest
import torch

import emulated
from conv_cases import (
    DEPTHWISE,
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
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)  # Python 3.13 names it; the value is Linux's

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
    if tile is None and op == "grad_weight":
        last = ops.grad_weight(*tensors, *args.values(), out_dtype, True)
        assert is_channels_last(last)
        assert_same_bits(last.contiguous(), got)
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


@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize("name", ("3x3 strided", "stem", "depthwise", "grouped, odd channels"))
@pytest.mark.parametrize("op", OPS)
def test_output_dtypes(op, name, out_dtype):
    v, geometry, args = operands(FIXED[name])
    for splits in (1, 2):
        check(op, arguments(op, v, geometry), args, out_dtype, TILES["64x64"], splits)


@pytest.mark.parametrize("name", ("3x3 strided", "one pixel", "depthwise", "3d"))
def test_grad_weight_channels_last(name):
    v, geometry, args = operands(FIXED[name])
    tensors = arguments("grad_weight", v, geometry)
    got = emulated.load().grad_weight_with(*tensors, *args.values(), torch.float32, 2, 2, True)
    assert is_channels_last(got)
    assert_same_bits(got, reference.grad_weight(*tensors, **args, out_dtype=torch.float32))


@pytest.mark.parametrize("seed", (1, 2))
@pytest.mark.parametrize("name", ("3x3 strided", "stem", "depthwise"))
@pytest.mark.parametrize("op", OPS)
def test_order_of_threads_does_not_matter(op, name, seed):
    emulated.load().set_schedule(seed)
    v, geometry, args = operands(FIXED[name])
    check(op, arguments(op, v, geometry), args, torch.float32)


@pytest.mark.parametrize("processors", (1, 30, 500))
@pytest.mark.parametrize("op", OPS)
def test_plans_for_any_device(op, processors):
    emulated.load().set_multiprocessors(processors)
    v, geometry, args = operands(dict(x_size=(2, 96, 12, 12), kernel=3, co=40, padding=1))
    check(op, arguments(op, v, geometry), args, torch.float32)


@pytest.mark.parametrize("shared_kb, tile", ((228, 0), (100, 0), (64, 1)))
def test_small_shared_memory_has_room_for_fewer_large_tiles(shared_kb, tile):
    """Five tiles of 128 x 128 on four processors: one wave where two share one, else two."""
    emulated.load().set_multiprocessors(4, shared_kb << 10)
    geometry, args = geometry_of(x_size=(1, 64, 16, 40), kernel=1, co=128)
    sizes = list(geometry.x_size), list(geometry.w_size)
    assert emulated.load().planned(False, *sizes, *args.values())[0] == tile


LONG = {
    "forward": dict(x_size=(2, 66_400, 1, 2), kernel=1, co=3),
    "forward, beyond the bare sum's int32": dict(x_size=(1, 140_001, 1, 1), kernel=1, co=2),
    "grad_input, beyond the bare sum's int32": dict(x_size=(1, 2, 1, 1), kernel=1, co=140_001),
    "grad_input 2x2": dict(x_size=(1, 3, 2, 2), kernel=2, co=17_003, padding=1),
    "grad_weight": dict(x_size=(1, 2, 300, 301), kernel=1, co=3),
    "grad_weight, beyond the bare sum's int32": dict(x_size=(1, 1, 400, 401), kernel=1, co=2),
    "grad_weight depthwise": dict(x_size=(1, 2, 300, 301), kernel=1, co=2, groups=2),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * ("beyond" in name)) for name in LONG]
)
def test_long_contractions_are_exact(name):
    op = name.replace(",", " ").split()[0]
    for zero_point, w_value, out_dtype in ((0, -128, torch.float32), (128, 127, torch.int32)):
        v, geometry, args = operands(LONG[name], zero_point)
        v["q_x"].fill_(255)
        v["q_w"].fill_(w_value)
        v["q_g"].fill_(-128)
        check(op, arguments(op, v, geometry), args, out_dtype)


@pytest.mark.parametrize("step", (0.0, 1e-38, 1e30, float("inf"), float("nan")))
@pytest.mark.parametrize("op", OPS)
def test_extreme_steps(op, step):
    v, geometry, args = operands(FIXED["grouped 1x1"])
    for name in ("w_step", "g_step", "step"):
        v[name].fill_(1.0)
    v["x_qparams"][0] = step
    v["step"][::2] = step
    for bias in (1e-39, float("inf"), 0.0):
        v["bias"].fill_(bias)
        for out_dtype in FLOATS:
            check(op, arguments(op, v, geometry), args, out_dtype)


def test_one_step_for_all_input_channels():
    v, geometry, args = operands(FIXED["3x3 strided"])
    v["step"] = v["step"][:1].clone()
    for splits in (1, 2):
        check("grad_input", arguments("grad_input", v, geometry), args, torch.float32, 2, splits)


@pytest.mark.parametrize("dtype", FLOATS)
def test_bias_dtypes_and_strides(dtype):
    v, geometry, args = operands(FIXED["1x1"])
    v["bias"] = torch.randn(2 * 96).to(dtype)[::2]
    check("forward", arguments("forward", v, geometry), args, torch.float32)


def shifted(tensor, by):
    """The same channels-last tensor at an address that is `by` bytes off."""
    flat = tensor.movedim(1, -1).contiguous().flatten()
    room = torch.empty(flat.numel() + 32, dtype=tensor.dtype)
    start = -room.data_ptr() % 16 + by
    room[start : start + flat.numel()] = flat
    n, c, *spatial = tensor.shape
    return room[start : start + flat.numel()].view(n, *spatial, c).movedim(-1, 1)


@pytest.mark.parametrize("by", (1, 4))
@pytest.mark.parametrize("name", ("whole tiles", "chunks of several taps"))
@pytest.mark.parametrize("op", OPS)
def test_operands_at_any_address(op, name, by):
    v, geometry, args = operands(EDGES[name])
    v["q_x"], v["q_g"] = shifted(v["q_x"], by), shifted(v["q_g"], by)
    check(op, arguments(op, v, geometry), args, torch.float32, TILES["64x64"])


@pytest.mark.parametrize("by", (1, 2, 4, 8))
@pytest.mark.parametrize(
    "name", ("depthwise 32", "depthwise, short lines", "depthwise 5x5 strided")
)
@pytest.mark.parametrize("op", OPS)
def test_depthwise_operands_at_any_address(op, name, by):
    v, geometry, args = operands(FIXED[name], zero_point=77)
    v["q_x"], v["q_g"] = shifted(v["q_x"], by), shifted(v["q_g"], by)
    check(op, arguments(op, v, geometry), args, torch.bfloat16)


@pytest.mark.parametrize("splits", (1, 2, 7, 100))
@pytest.mark.parametrize("name", ("depthwise", *DEPTHWISE))
def test_depthwise_splits(name, splits):
    v, geometry, args = operands(FIXED[name], zero_point=77)
    check("grad_weight", arguments("grad_weight", v, geometry), args, torch.int32, 0, splits)


@pytest.mark.parametrize("zero_point", (0, 77, 255))
@pytest.mark.parametrize("out_dtype", DTYPES)
@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise_forward(name, out_dtype, zero_point):
    v, geometry, args = operands(DEPTHWISE[name], zero_point)
    check("forward", arguments("forward", v, geometry), args, out_dtype)


@pytest.mark.parametrize(
    "channels, expected",
    (
        (64, {1: 4, 4: 13, 132: 50}),  # a step for each block's 16 rows of threads
        (8, {1: 4, 4: 6, 132: 6}),  # at most a run for each of a block's 128 rows
        (520, {1: 1, 4: 5, 132: 50}),  # three tiles
    ),
)
def test_depthwise_grad_weight_fills_the_device(channels, expected):
    """Splits of 50 steps, of 16 runs each: to four blocks a processor, or as far as that goes."""
    case = dict(x_size=(2, channels, 40, 40), kernel=3, co=channels, padding=1, groups=channels)
    v, geometry, args = operands(case)
    tensors = arguments("grad_weight", v, geometry)
    for processors, splits in expected.items():
        emulated.load().set_multiprocessors(processors)
        launches = emulated.launches_of(
            lambda: check("grad_weight", tensors, args, torch.float32, None)
        )
        assert launches[0][:3] == (-(-channels // 256), 1, splits)


#: Case, width of an activation too large for 32 bits, and a stride that leaves few positions of it.
HUGE = {
    "dense": (dict(x_size=(1, 16, 1, 9), kernel=1, co=8), 2**28 + 9, 2**25),
    # More than 2**31 positions, too.
    "depthwise": (dict(x_size=(4, 4, 1, 16), kernel=1, co=4, groups=4), 2**30 - 8, 2**26),
    "depthwise, odd channels": (
        dict(x_size=(4, 3, 1, 16), kernel=1, co=3, groups=3),
        2**30 - 8,
        2**26,
    ),
}


@pytest.mark.parametrize("name", HUGE)
@pytest.mark.parametrize("op", ("forward", "grad_weight"))
def test_addresses_beyond_32_bits(op, name):
    """An activation of 4.3 GB and more, of which a huge stride leaves a few positions."""
    case, width, stride = HUGE[name]
    n, channels, _, met_width = case["x_size"]
    room_bytes = n * width * channels
    try:
        room = mmap.mmap(-1, room_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
    except OSError as error:
        pytest.skip(f"no address space for {room_bytes} bytes: {error}")
    q_x = torch.frombuffer(room, dtype=torch.uint8).view(n, 1, width, channels).movedim(-1, 1)
    v, geometry, args = operands(case)
    met = v["q_x"]
    q_x[..., ::stride] = met
    tensors = arguments(op, v, geometry)
    expected = getattr(reference, op)(*tensors, **args, out_dtype=torch.int32)
    args["stride"] = [1, stride]
    got = getattr(emulated.load(), op)(q_x, *tensors[1:], *args.values(), torch.int32)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("splits", (1, 2))
@pytest.mark.parametrize("out_dtype", FLOATS)
@pytest.mark.parametrize("name", ("3x3 strided", "one channel", "depthwise", "grouped", "3d"))
def test_statistics_of_what_is_stored(name, out_dtype, splits):
    v, geometry, args = operands(FIXED[name])
    for tile in TILES.values():
        tensors = arguments("forward", v, geometry)
        y, got = emulated.load().forward_with(*tensors, *args.values(), out_dtype, tile, splits)
        values = y.double().movedim(1, 0).flatten(1)
        # float32 over at most 128 values, float64 beyond.
        bound = 1e-6 * values.abs().sum(1)
        assert ((got[0] - values.sum(1)).abs() <= bound).all()
        assert ((got[1] - values.square().sum(1)).abs() <= 1e-6 * values.square().sum(1)).all()
        assert torch.equal(got[2], values.amin(1))
        assert torch.equal(got[3], values.amax(1))


@pytest.mark.parametrize("bad", (float("nan"), float("inf")))
@pytest.mark.parametrize("name", ("3x3 strided", "depthwise"))
def test_statistics_show_what_is_not_finite(name, bad):
    v, geometry, args = operands(FIXED[name])
    v["bias"][3] = bad
    for splits in (1, 2):
        tensors = arguments("forward", v, geometry)
        _, got = emulated.load().forward_with(*tensors, *args.values(), torch.float32, 2, splits)
        assert not got[:, 3].isfinite().any()
        assert got[:, :3].isfinite().all()


def test_statistics_of_many_rows():
    v, geometry, args = operands(dict(x_size=(3, 3, 61, 67), kernel=1, co=33))
    tensors = arguments("forward", v, geometry)
    y, got = emulated.load().forward_with(*tensors, *args.values(), torch.float32, 2, 1)
    values = y.double().movedim(1, 0).flatten(1)
    assert ((got[0] - values.sum(1)).abs() <= 1e-6 * values.abs().sum(1)).all()
    assert torch.equal(got[2:], torch.stack([values.amin(1), values.amax(1)]))


def bad(index, change):
    def apply(tensors):
        tensors[index] = change(tensors[index])

    return apply


@pytest.mark.parametrize(
    "op, change, error, message",
    (
        ("forward", bad(0, lambda t: t.to(torch.int8)), TypeError, "q_x has dtype"),
        ("forward", bad(0, lambda t: t.contiguous()), ValueError, "q_x .* channels-last"),
        ("forward", bad(1, lambda t: t[:1]), ValueError, "x_qparams has size"),
        ("forward", bad(2, channels_last), ValueError, "q_w .* expected contiguous"),
        ("forward", bad(3, lambda t: t.expand(2).contiguous()), ValueError, "w_step has size"),
        ("forward", bad(4, lambda t: t[1:]), ValueError, "bias has size"),
        ("grad_input", bad(0, lambda t: t[:, 1:]), ValueError, "q_g has size"),
        ("grad_input", bad(2, lambda t: t[1:]), ValueError, "step has size"),
        ("grad_input", bad(3, lambda t: t[:3]), ValueError, "x has 3 axes"),
        ("grad_weight", bad(2, lambda t: t.float()), TypeError, "q_g has dtype"),
        ("grad_weight", bad(3, lambda t: t[1:]), ValueError, "g_step has size"),
    ),
)
def test_wrong_arguments_are_named(op, change, error, message):
    v, geometry, args = operands(FIXED["3x3"])
    tensors = arguments(op, v, geometry)
    change(tensors)
    with pytest.raises(error, match=message):
        getattr(emulated.load(), op)(*tensors, *args.values(), torch.float32)
