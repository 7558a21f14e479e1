"""Every tile and split of the three CUDA products, through the table of plans, bit for bit.

The heuristic gives the small shapes of the other op tests small tiles, so that without this most
kernels would run on a GPU for the first time in a training. With `--device cuda` it runs there,
else on the emulator.
"""

import contextlib
from functools import partial

import pytest
import torch

import emulated
import test_ops_forward
import test_ops_glue
import test_ops_grad_input
import test_ops_grad_input_reduce
import test_ops_grad_weight
from conv_cases import FLOATS, assert_same_bits, channels_last, geometry_of, plan_key
from daq_mm import autotune_cache, ops, wgmma_switch
from daq_mm.autotune_cache import TILES
from daq_mm.ops import reference_glue
from devices import DEVICE
from tolerances import product_sum

BACKEND = "cuda" if DEVICE == "cuda" else "emulated"
if BACKEND == "emulated":
    pytestmark = pytest.mark.skipif(bool(emulated.unavailable()), reason=emulated.unavailable())

#: What kernels tell apart: whole chunks of 16 channels or gathers of 4 and 1 bytes, 2D and 3D,
#: phases of the stride, groups, spans of 64 and of 128 bytes; rows and columns beyond a tile, and
#: contractions of several stages.
CASES = {
    "beyond a tile": dict(x_size=(2, 144, 9, 8), kernel=(1, 2), co=144, padding=(0, 1, 0, 0)),
    "several taps": dict(x_size=(2, 48, 7, 6), kernel=3, co=64, padding=(1, 0, 1, 2), stride=2),
    "3d": dict(
        x_size=(1, 32, 3, 6, 5), kernel=(2, 3, 1), co=80, padding=(1, 0, 0) * 2, stride=(1, 2, 1)
    ),
    "grouped": dict(x_size=(2, 64, 6, 7), kernel=(2, 1), co=96, dilation=2, padding=1, groups=2),
    "gathered by four": dict(x_size=(2, 72, 5, 7), kernel=3, co=136, padding=1, groups=2),
    "gathered": dict(x_size=(2, 37, 7, 9), kernel=3, co=21, padding=1, dilation=2, stride=(1, 2)),
    "gathered, 3d": dict(x_size=(1, 3, 4, 9, 8), kernel=(1, 3, 3), co=24, stride=(1, 2, 2)),
}
WGMMA_CASES = ("beyond a tile", "several taps", "3d", "grouped")

#: Product, whether it takes sums of its results, and its tiles.
_OF_ROWS = [tile for tile in TILES if tile not in ("wgmma 64x128", "wgmma 256x128")]
VARIANTS = {
    "forward": ("forward", False, _OF_ROWS),
    "forward, statistics": ("forward", True, _OF_ROWS),
    "grad_input": ("grad_input", False, _OF_ROWS),
    "grad_input, reduced": ("grad_input", True, _OF_ROWS),
    "grad_weight": ("grad_weight", False, [tile for tile in TILES if tile != "wgmma 128x256"]),
}
NO_TILE = 99


def library():
    """Where the ops of csrc/cuda/ops_tune.cpp are."""
    return torch.ops.daq_mm if BACKEND == "cuda" else emulated.load()


def device() -> int:
    return torch.cuda.current_device() if BACKEND == "cuda" else 0


def table() -> autotune_cache.Choices:
    return autotune_cache.from_numbers(library().plan_table(device()))


@pytest.fixture(autouse=True)
def plans(one_thread):
    """An empty table, in which nothing is measured; what was there before comes back."""
    own = library()
    rows, tuned = own.plan_table(device()), own.tune_plans(False)
    own.clear_plans()
    with emulated.as_cpu_kernels() if BACKEND == "emulated" else contextlib.nullcontext():
        yield own
    own.clear_plans()
    own.load_plans(device(), rows)
    own.tune_plans(tuned)


@pytest.fixture
def by_wgmma(plans):
    """Switches tiles of wgmma on or off; the first raises Skipped where there are none."""
    if BACKEND == "emulated":
        plans.set_warpgroups(True)
    off = wgmma_switch.is_off()  # as in a GPU session whose kernels of wgmma have hung
    before = plans.use_wgmma(not off)

    def switch(on: bool) -> None:
        if on and off:
            pytest.skip(f"{wgmma_switch.VARIABLE}=0")
        plans.use_wgmma(on)
        if on and not plans.has_wgmma():
            # On the GPU that they are for, a build without them must not pass for a tested one.
            assert BACKEND == "emulated" or torch.cuda.get_device_capability() != (9, 0)
            pytest.skip("no kernels of wgmma: they need compute capability 9.0, built for sm_90a")

    yield switch
    plans.use_wgmma(before)
    if BACKEND == "emulated":
        plans.set_warpgroups(False)


def is_looked_up(key: list[int], run) -> bool:
    """Whether `run` asks the table for this key: it drops an entry that cannot run."""
    library().load_plans(device(), [*key, NO_TILE, 1])
    run()
    known = tuple(key) in table()
    library().clear_plans()
    return not known


def check_statistics(case: dict, dtype: torch.dtype) -> None:
    geometry, args = geometry_of(**case)
    q_x = channels_last(torch.randint(0, 256, geometry.x_size, dtype=torch.uint8))
    operands = (
        q_x,
        torch.tensor([0.02, 128.0]),
        torch.randn(geometry.w_size),
        torch.randn(case["co"]),
    )
    y, stats = ops.conv_forward_stats(*operands, **args, out_dtype=dtype, stats=True)
    expected, _ = reference_glue.conv_forward_stats(*operands, *args.values(), dtype, True)
    assert_same_bits(y, expected)
    test_ops_glue.check_stats(stats, y, product_sum(BACKEND))


def check(variant: str, case: dict, dtype: torch.dtype) -> None:
    """Run a product by the public op and compare it with the reference."""
    if variant == "forward":
        test_ops_forward.check(*test_ops_forward.operands(case, zero_point=77), dtype)
    elif variant == "grad_input":
        test_ops_grad_input.check(*test_ops_grad_input.operands(case), dtype)
    elif variant == "grad_weight":
        test_ops_grad_weight.check(test_ops_grad_weight.operands(**case), dtype)
    elif variant == "grad_input, reduced":
        operands = test_ops_grad_input_reduce.operands(case, dtype, "codes")
        test_ops_grad_input_reduce.check(BACKEND, *operands)
    else:
        check_statistics(case, dtype)


def tiles() -> list:
    """Each variant with each tile. One of each kind is enough for the emulator's everyday, since
    test_cuda_emulated_*.py run them all there."""
    slow = [pytest.mark.slow] if BACKEND == "emulated" else []
    return [
        pytest.param(variant, tile, marks=[] if tile in ("64x64", "wgmma 128x64") else slow)
        for variant, (*_, tiles) in VARIANTS.items()
        for tile in tiles
    ]


@pytest.mark.parametrize("variant, tile", tiles())
def test_tiles_and_splits(by_wgmma, variant, tile):
    product, sums, _ = VARIANTS[variant]
    wgmma = tile.startswith("wgmma")
    by_wgmma(wgmma)
    for number, name in enumerate(WGMMA_CASES if wgmma else CASES):
        dtype = FLOATS[number % 3]
        key = plan_key(product, geometry_of(**CASES[name])[0], sums, wgmma, dtype.itemsize)
        for splits in (1, 3)[: 1 + number % 2]:
            choice = (TILES.index(tile), splits)
            library().load_plans(device(), [*key, *choice])
            check(variant, CASES[name], dtype)
            assert table() == {tuple(key): choice}, name  # it can run, or it would be gone
            library().clear_plans()


@pytest.mark.parametrize("wgmma", (False, True))
@pytest.mark.parametrize("variant", VARIANTS)
def test_keys_are_those_of_the_products(by_wgmma, variant, wgmma):
    """Else no choice of the other tests would be met."""
    by_wgmma(wgmma)
    product, sums, _ = VARIANTS[variant]
    for name in ("several taps", "3d") if wgmma else CASES:
        geometry, _ = geometry_of(**CASES[name])
        for dtype in (torch.float32, torch.float16)[: 1 + (name == "3d")]:
            key = plan_key(product, geometry, sums, wgmma, dtype.itemsize)
            assert is_looked_up(key, partial(check, variant, CASES[name], dtype)), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_splits_beyond_the_contraction(by_wgmma, variant):
    """As many as there are stages, and with one entry for each type of results."""
    by_wgmma(False)
    product, sums, _ = VARIANTS[variant]
    case = CASES["several taps"]
    for dtype in (torch.float32, torch.bfloat16):
        key = plan_key(product, geometry_of(**case)[0], sums, result_bytes=dtype.itemsize)
        library().load_plans(device(), [*key, TILES.index("64x64"), 1000])
    assert len(table()) == 2
    for dtype in FLOATS:
        check(variant, case, dtype)
    assert len(table()) == 2
