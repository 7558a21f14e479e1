"""compare_wgmma: both ways run and are told apart; the emulator is its device here."""

import json
import sys
from pathlib import Path

import pytest
import torch

import emulated

TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path.insert(0, str(TOOLS))

import compare_wgmma  # noqa: E402
from bench.shapes import parse_shape  # noqa: E402

pytestmark = pytest.mark.skipif(bool(emulated.unavailable()), reason=emulated.unavailable())

QUICK = ["--repeats", "1", "--min-time", "0"]


@pytest.fixture
def hopper(monkeypatch):
    """Emulated kernels of compute capability 9.0 as the CPU's, and one small shape to compare."""
    own = emulated.load()
    own.set_warpgroups(True)
    shape = parse_shape("1x64x6x6,64x3x3,s1,p1")
    monkeypatch.setattr(compare_wgmma, "shape_set", lambda name, batch: [shape])
    with emulated.as_cpu_kernels():
        yield own
    own.set_warpgroups(False)
    own.use_wgmma(True)


def test_records_of_both_ways(hopper, tmp_path, capsys):
    args = compare_wgmma.parse_args([*QUICK, "--json", str(tmp_path / "wgmma.json")])
    assert compare_wgmma.run(args, "cpu", hopper.use_wgmma, {"card": "none"}) == 0
    document = json.loads((tmp_path / "wgmma.json").read_text())
    ops = [record["op"] for record in document["records"]]
    assert ops == ["forward", "grad_weight", "grad_input"]
    for record in document["records"]:
        assert record["speedup"] == record["mma_sync"]["median_s"] / record["wgmma"]["median_s"]
    assert "| forward |" in capsys.readouterr().out
    assert hopper.use_wgmma(True) is True  # as it was


def test_the_two_ways_are_two(hopper):
    said = []

    def use(value):
        said.append(value)
        return hopper.use_wgmma(value)

    for path, by_wgmma in compare_wgmma.PATHS.items():
        assert compare_wgmma.along(path, use, lambda: hopper.use_wgmma(said[-1]))() is by_wgmma
    assert said == [True, True, False, True]


def test_results_that_differ_are_told_and_not_timed(hopper, monkeypatch, capsys):
    own = compare_wgmma.ops.forward

    def forward(*args, **kwargs):
        by_wgmma = hopper.use_wgmma(True)
        hopper.use_wgmma(by_wgmma)
        return own(*args, **kwargs) + (1 if by_wgmma else 0)

    monkeypatch.setattr(compare_wgmma.ops, "forward", forward)
    args = compare_wgmma.parse_args(QUICK)
    assert compare_wgmma.run(args, "cpu", hopper.use_wgmma, {}) == 1
    captured = capsys.readouterr()
    assert "forward: 2304 of 2304 results differ" in captured.err
    assert "| forward |" not in captured.out and "| grad_input |" in captured.out


def test_a_build_without_wgmma_is_told(hopper, monkeypatch):
    assert compare_wgmma.missing_wgmma(hopper.has_wgmma) == ""
    hopper.set_warpgroups(False)
    assert "rebuild with TORCH_CUDA_ARCH_LIST=9.0a" in compare_wgmma.missing_wgmma(hopper.has_wgmma)
    monkeypatch.setenv("DAQ_MM_WGMMA", "0")
    assert "DAQ_MM_WGMMA=0 switches" in compare_wgmma.missing_wgmma(hopper.has_wgmma)


def test_needs_a_hopper(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="compute capability 9.0"):
        compare_wgmma.main([])
