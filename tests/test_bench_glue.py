"""bench_glue: every op is checked and recorded; a wrong result ends it. Nothing asserts a time."""

import json
import sys
from pathlib import Path

import pytest
import torch

from daq_mm import ops

TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path.insert(0, str(TOOLS))

import bench_glue  # noqa: E402
from bench import glue_products  # noqa: E402

QUICK = ["--size", "2,24,5,6", "--repeats", "1", "--min-time", "0"]


@pytest.fixture(autouse=True)
def _plain_allocator(monkeypatch):
    """The tool's allocator setting would outlive the test."""
    monkeypatch.setattr(bench_glue.allocator, "configure", lambda choice: {"library": choice})
    monkeypatch.setattr(bench_glue.machine, "copy_bandwidth", lambda device: 1.0)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_records(tmp_path, dtype):
    path = tmp_path / "glue.json"
    assert bench_glue.main([*QUICK, "--dtype", dtype, "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    records = document["records"]
    by_op = {record["op"]: record for record in records}
    element = 4 if dtype == "fp32" else 2
    values = 2 * 24 * 30
    assert by_op["stats_of"]["bytes"] == values * element + 4 * 24 * 8
    assert by_op["apply"]["bytes"] == values * (2 * element + 1) + values // 8
    assert all(record["gbps"] > 0 for record in records)
    ops_of = {}
    for record in document["products"]:
        assert record["median_s"] > 0
        ops_of.setdefault(record["convolution"], []).append(record["op"])
    assert len(ops_of) == 12 and "256->64 1x1 at 56, g2" in ops_of
    assert all(len(set(names)) == len(names) == 5 for names in ops_of.values())


def test_a_wrong_epilogue_is_not_timed(monkeypatch):
    def wrong(*args, **keywords):
        gz, sums = torch.ops.daq_mm.grad_input_reduce(*args, *keywords.values())
        return gz, sums + 1e6

    monkeypatch.setattr(ops, "grad_input_reduce", wrong)
    with pytest.raises(AssertionError):
        glue_products.product_cases(1, torch.float32, ((16, 8, 1, 4, False),))


def test_a_wrong_result_is_not_timed(monkeypatch, capsys):
    monkeypatch.setattr(ops, "stats_of", lambda y: torch.ones(4, y.shape[1]).double())
    assert bench_glue.main(QUICK) == 1
    assert "FAILED stats_of" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["2,3", "2,a,4,4", "0,3,4,4"])
def test_wrong_size(size, capsys):
    with pytest.raises(SystemExit):
        bench_glue.main(["--size", size])
    assert "--size" in capsys.readouterr().err
