"""Measured tiles and splits of the CUDA products, on the emulator and by a clock that tests set."""

import pytest
import torch

import emulated
from conv_cases import assert_same_bits, plan_key
from daq_mm import autotune, autotune_cache
from daq_mm.autotune_cache import KEY_FIELDS, PRODUCTS, TILES, Kind
from daq_mm.ops import reference
from emulated import launches_of
from test_cuda_emulated_conv import arguments, check, operands
from test_cuda_emulated_wgmma import padded

pytestmark = pytest.mark.skipif(bool(emulated.unavailable()), reason=emulated.unavailable())

OPS = PRODUCTS
WGMMA_128x64 = TILES.index("wgmma 128x64")

CASES = {
    "odd channels": dict(
        x_size=(2, 83, 5, 13), kernel=(1, 3), co=70, padding=(0, 1), stride=(1, 2)
    ),
    "3d": dict(x_size=(2, 80, 3, 3, 4), kernel=(2, 1, 1), co=72, padding=(1, 0, 0)),
    "grouped": dict(x_size=(1, 136, 9, 8), kernel=(2, 1), co=136, dilation=2, padding=1, groups=2),
}


@pytest.fixture(autouse=True)
def _nothing_is_left(one_thread):
    ops = emulated.load()
    ops.clear_plans()
    yield
    ops.tune_plans(False)
    ops.clear_plans()
    ops.set_clock([])
    ops.set_capturing(False)
    ops.set_warpgroups(False)
    ops.use_wgmma(True)


def candidates_of(key):
    numbers = emulated.load().candidates(key)
    return list(zip(numbers[::2], numbers[1::2]))


def table():
    return autotune_cache.from_numbers(emulated.load().plan_table(0))


def by_choice(op, tensors, args, tile, splits):
    """Work that runs an op with a tile and splits; tile None: as it does by itself."""
    ops = emulated.load()
    if op == "forward":
        return lambda: ops.forward_with(
            *tensors, *args.values(), torch.float32, -1 if tile is None else tile, splits
        )
    if tile is None:
        return lambda: getattr(ops, op)(*tensors, *args.values(), torch.float32)
    tail = (False,) if op == "grad_weight" else ()
    return lambda: getattr(ops, f"{op}_with")(
        *tensors, *args.values(), torch.float32, tile, splits, *tail
    )


def prepared(op, name):
    """Tensors and arguments of a case, its key (with statistics in forward), work as it comes."""
    v, geometry, args = operands(padded(CASES[name]))
    tensors = arguments(op, v, geometry)
    key = plan_key(op, geometry, statistics=op == "forward")
    return tensors, args, key, by_choice(op, tensors, args, None, 1)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("op", OPS)
def test_an_entry_of_the_table_decides(op, name):
    tensors, args, key, run = prepared(op, name)
    own, seen = launches_of(run), []
    for tile, splits in ((0, 2), (1, 1), (2, 3)):
        emulated.load().load_plans(0, [*key, tile, splits])
        seen.append(launches_of(by_choice(op, tensors, args, tile, splits)))
        assert launches_of(run) == seen[-1]
        got = run()
        got = got[0] if isinstance(got, tuple) else got
        assert_same_bits(got, getattr(reference, op)(*tensors, **args, out_dtype=torch.float32))
    assert seen[0] != seen[1] != seen[2] != seen[0]
    emulated.load().clear_plans()
    assert launches_of(run) == own


@pytest.mark.parametrize("op", OPS)
def test_an_entry_is_for_its_own_results(op):
    """Another type of results, and in forward the op without statistics, go their own way."""
    v, geometry, args = operands(padded(CASES["odd channels"]))
    tensors = arguments(op, v, geometry)
    run = getattr(emulated.load(), op)

    def launches(dtype):
        return launches_of(lambda: run(*tensors, *args.values(), dtype))

    own = {dtype: launches(dtype) for dtype in (torch.float32, torch.bfloat16)}
    other = candidates_of(plan_key(op, geometry))[-1]
    emulated.load().load_plans(0, [*plan_key(op, geometry, statistics=op == "forward"), *other])
    if op == "forward":
        assert launches(torch.float32) == own[torch.float32]
        emulated.load().load_plans(0, [*plan_key(op, geometry), *other])
    assert launches(torch.float32) != own[torch.float32]
    assert launches(torch.bfloat16) == own[torch.bfloat16]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("op", OPS)
def test_measuring_takes_the_cheapest(op, name):
    ops = emulated.load()
    tensors, args, key, run = prepared(op, name)
    candidates = candidates_of(key)
    assert 1 < len(candidates) == len(set(candidates)) <= 12
    expected = getattr(reference, op)(*tensors, **args, out_dtype=torch.float32)
    for best in {0, 1, len(candidates) - 1} if name == "3d" else {len(candidates) - 1}:
        ops.clear_plans()
        ops.set_clock([1.0 + (i != best) for i in range(len(candidates))])
        assert ops.tune_plans(True) is False
        got = run()
        assert_same_bits(got[0] if isinstance(got, tuple) else got, expected)
        assert ops.clock_readings() == 4 * len(candidates)
        assert table() == {tuple(key): candidates[best]}
        assert launches_of(run) == launches_of(by_choice(op, tensors, args, *candidates[best]))
        assert ops.clock_readings() == 4 * len(candidates)  # known now
        assert ops.tune_plans(False) is True


def test_statistics_are_those_of_the_choice():
    """Measuring leaves them as the next call does, and right."""
    ops = emulated.load()
    _, _, key, run = prepared("forward", "odd channels")
    count = len(candidates_of(key))
    ops.set_clock([1.0 if i == count - 1 else 2.0 for i in range(count)])
    ops.tune_plans(True)
    y, first = run()
    assert ops.clock_readings() > 0
    assert torch.equal(first, run()[1])
    values = y.double().movedim(1, 0).flatten(1)
    assert ((first[0] - values.sum(1)).abs() <= 1e-6 * values.abs().sum(1)).all()
    assert ((first[1] - values.square().sum(1)).abs() <= 1e-6 * values.square().sum(1)).all()
    assert torch.equal(first[2:], torch.stack([values.amin(1), values.amax(1)]))


@pytest.mark.parametrize("gain, wins", ((0.01, False), (0.03, True)))
def test_a_gain_within_the_noise_keeps_the_heuristic(gain, wins):
    ops = emulated.load()
    _, _, key, run = prepared("grad_weight", "odd channels")
    candidates = candidates_of(key)
    ops.set_clock([1.0 - gain * (i == 1) for i in range(len(candidates))])
    ops.tune_plans(True)
    run()
    assert table()[tuple(key)] == candidates[int(wins)]


def test_the_first_round_and_single_delays_do_not_count():
    ops = emulated.load()
    _, _, key, run = prepared("grad_weight", "3d")
    candidates = candidates_of(key)
    rounds = torch.full((4, len(candidates)), 2.0)
    rounds[0, 1] = 0.5  # seems fast at first
    rounds[1:, 2] = 1.0
    rounds[2, 2] = 9.0  # is delayed once
    ops.set_clock(rounds.flatten().tolist())
    ops.tune_plans(True)
    run()
    assert table()[tuple(key)] == candidates[2]


def test_short_products_are_run_several_times_a_sample():
    ops = emulated.load()
    v, geometry, args = operands(dict(x_size=(1, 64, 1, 2), kernel=1, co=80))
    tensors = arguments("grad_weight", v, geometry)
    run = by_choice("grad_weight", tensors, args, None, 1)
    one = len(launches_of(run))
    count = len(candidates_of(plan_key("grad_weight", geometry)))
    ops.tune_plans(True)
    for seconds, runs in ((0.1, 1), (0.4e-3, 2), (1e-9, 50)):
        ops.clear_plans()
        # A sample's seconds are those of all its runs; the first round's samples have one.
        ops.set_clock([seconds] * count + [seconds * runs] * (3 * count))
        assert len(launches_of(run)) == one * (count * (2 + 3 * runs) + 1)


@pytest.mark.parametrize("op", OPS)
def test_nothing_is_measured_while_a_graph_is_captured(op):
    ops = emulated.load()
    tensors, args, key, run = prepared(op, "odd channels")
    own = launches_of(run)
    ops.set_clock([])
    ops.tune_plans(True)
    ops.set_capturing(True)
    assert launches_of(run) == own
    assert ops.clock_readings() == 0 and not table()
    ops.load_plans(0, [*key, 2, 3])
    assert launches_of(run) == launches_of(by_choice(op, tensors, args, 2, 3))
    ops.clear_plans()
    ops.set_capturing(False)
    run()
    assert ops.clock_readings() > 0 and table()


def test_nothing_is_measured_unasked():
    ops = emulated.load()
    ops.set_clock([])
    for op in OPS:
        prepared(op, "odd channels")[3]()
    assert ops.clock_readings() == 0 and not table()


@pytest.mark.parametrize("op", OPS)
def test_depthwise_has_nothing_to_choose(op):
    ops = emulated.load()
    v, geometry, args = operands(dict(x_size=(2, 20, 6, 5), kernel=3, co=20, padding=1, groups=20))
    ops.set_clock([])
    ops.tune_plans(True)
    check(op, arguments(op, v, geometry), args, torch.float32)
    assert ops.clock_readings() == 0 and not table()


@pytest.mark.parametrize(
    "choice",
    ((WGMMA_128x64, 1), (99, 1), (-1, 1), (0, 0), (0, -3), (0, 1 << 20)),
    ids=("wgmma", "no tile", "negative tile", "no splits", "negative splits", "too many splits"),
)
@pytest.mark.parametrize("op", OPS)
def test_an_entry_that_cannot_run_is_dropped(op, choice):
    ops = emulated.load()
    tensors, args, key, run = prepared(op, "odd channels")
    own = launches_of(run)
    ops.load_plans(0, [*key, *choice])
    assert table() == {tuple(key): choice}
    assert launches_of(run) == own
    assert not table()


def test_an_entry_that_needs_much_more_memory_is_dropped():
    ops = emulated.load()
    v, geometry, args = operands(dict(x_size=(1, 512, 65, 63), kernel=3, co=512, padding=1))
    key = plan_key("grad_weight", geometry)
    ops.set_multiprocessors(1)
    ops.load_plans(0, [*key, 0, 64])  # 64 times 9 MB
    ops.tune_plans(False)
    assert ops.measured_without_memory(key, -1)[1] < 64
    ops.set_multiprocessors(4)
    assert not table()


def test_candidates_without_memory_are_skipped():
    ops = emulated.load()
    _, _, key, run = prepared("forward", "odd channels")
    heuristic = candidates_of(key)[0]
    others = [choice for choice in candidates_of(key) if choice[0] != heuristic[0]]
    ops.set_clock([])
    ops.tune_plans(True)
    assert tuple(ops.measured_without_memory(key, heuristic[0])) == others[0]
    assert table() == {tuple(key): others[0]}


def test_hopper_tiles_are_measured_and_the_switch_forbids_them():
    ops = emulated.load()
    ops.set_warpgroups(True)
    v, geometry, args = operands(
        dict(x_size=(1, 64, 5, 5), kernel=(1, 3), co=80, padding=(0, 1) * 2)
    )
    ops.tune_plans(True)
    for op in ("forward", "grad_input"):
        tensors = arguments(op, v, geometry)
        key = plan_key(op, geometry, wgmma=True)
        candidates = candidates_of(key)
        by_wgmma = [tile >= WGMMA_128x64 for tile, _ in candidates]
        assert True in by_wgmma and False in by_wgmma
        best = len(by_wgmma) - 1 - by_wgmma[::-1].index(True)  # the last of wgmma
        ops.set_clock([1.0 + (i != best) for i in range(len(candidates))])
        check(op, tensors, args, torch.float32)
        assert table()[tuple(key)] == candidates[best]
        ops.tune_plans(False)
        ops.use_wgmma(False)  # another key, which nobody has measured
        check(op, tensors, args, torch.float32)
        forbidden = plan_key(op, geometry, wgmma=False)
        ops.load_plans(0, [*forbidden, *candidates[best]])
        check(op, tensors, args, torch.float32)
        assert tuple(forbidden) not in table()
        ops.use_wgmma(True)
        ops.tune_plans(True)


def test_rows_that_are_cut_off_are_refused():
    with pytest.raises(ValueError, match="rows has 5 numbers; expected a multiple of 28"):
        emulated.load().load_plans(0, [1, 2, 3, 4, 5])
    assert len(KEY_FIELDS) == 26


def test_the_cache_spares_the_next_process_the_measurement(tmp_path, monkeypatch):
    """The whole path: measure, write, forget, load, use."""
    ops = emulated.load()
    kind = Kind("Emulated", "7.5", 4, ops.kernels_version(), "none")
    monkeypatch.setattr(autotune, "_library", lambda: ops)
    monkeypatch.setattr(autotune, "_gpus", lambda: [autotune._Gpu(0, kind)])
    tensors, args, key, run = prepared("grad_input", "grouped")
    candidates = candidates_of(key)
    with autotune.enable(tmp_path):
        ops.set_clock([1.0 + (i != 1) for i in range(len(candidates))])
        run()
        (entry,) = autotune.choices()
        assert entry["product"] == "grad_input" and entry["groups"] == 2
        assert (entry["tile"], entry["splits"]) == (TILES[candidates[1][0]], candidates[1][1])
    assert not table() and ops.tune_plans(False) is False
    ops.set_clock([])
    with autotune.enable(tmp_path, measure=False):
        assert launches_of(run) == launches_of(
            by_choice("grad_input", tensors, args, *candidates[1])
        )
        assert ops.clock_readings() == 0
