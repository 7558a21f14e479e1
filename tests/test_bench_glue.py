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
    monkeypatch.setattr(bench_glue.machine, "copy_bandwidth", lambda device: 2.0)


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
    assert document["backend"] == ops.backend_of(torch.zeros(1))
    assert all(record["copy_share"] == record["gbps"] / 2.0 > 0 for record in records)
    ops_of = {}
    for record in document["products"]:
        assert record["median_s"] > 0
        ops_of.setdefault(record["convolution"], []).append(record["op"])
    assert len(ops_of) == 12 and "256->64 1x1 at 56, g2" in ops_of
    assert all(len(set(names)) == len(names) == 5 for names in ops_of.values())


def test_a_wrong_epilogue_is_told_and_not_timed(monkeypatch, tmp_path, capsys):
    def wrong(*args, **keywords):
        gz, sums = torch.ops.daq_mm.grad_input_reduce(*args, *keywords.values())
        return gz, sums + (1e6 if gz.shape[1] == 16 else 0)

    monkeypatch.setattr(ops, "grad_input_reduce", wrong)
    shapes = ((16, 8, 1, 4, False), (8, 16, 3, 4, True))
    monkeypatch.setattr(bench_glue, "BOTTLENECKS", shapes)
    path = tmp_path / "glue.json"
    assert bench_glue.main([*QUICK, "--json", str(path)]) == 1
    first, *others = json.loads(path.read_text())["products"]
    assert first["convolution"] == "16->8 1x1 at 4" and "median_s" not in first
    assert first["error"].startswith("AssertionError")
    assert {r["convolution"] for r in others} == {"8->16 3x3 at 4, g2"} and len(others) == 5
    assert "FAILED 16->8 1x1 at 4: AssertionError" in capsys.readouterr().err


def test_a_wrong_result_is_told_and_not_timed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(ops, "stats_of", lambda y: torch.ones(4, y.shape[1]).double())
    path = tmp_path / "glue.json"
    assert bench_glue.main([*QUICK, "--no-products", "--json", str(path)]) == 1
    by_op = {record["op"]: record for record in json.loads(path.read_text())["records"]}
    assert "median_s" not in by_op["stats_of"] and by_op["apply"]["median_s"] > 0
    assert "FAILED stats_of: AssertionError" in capsys.readouterr().err


def test_an_op_that_does_not_run_is_told(monkeypatch, tmp_path):
    def broken(*args, **keywords):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(ops, "norm_backward_apply", broken)
    path = tmp_path / "glue.json"
    assert bench_glue.main([*QUICK, "--no-products", "--json", str(path)]) == 1
    by_op = {record["op"]: record for record in json.loads(path.read_text())["records"]}
    assert by_op["apply"] == {"op": "apply", "error": "RuntimeError: no such kernel"}
    assert by_op["quantize"]["median_s"] > 0


def test_all_operands_are_made_on_the_device(monkeypatch):
    """On 'meta', which has no values, so that none can slip in from the CPU unseen."""
    for case in bench_glue.cases([2, 24, 5, 6], torch.bfloat16, "meta").values():
        assert {t.device.type for t in (*case.operands, *case.inputs)} == {"meta"}
        assert case.bytes > 0
    monkeypatch.setattr(glue_products, "_expect_equal", lambda *args, **keywords: None)
    shape = (16, 8, 1, 4, True)
    work = glue_products.variants(shape, batch=2, dtype=torch.bfloat16, device="meta")
    for name, run in work.items():
        result = run()
        first = result[0] if isinstance(result, tuple) else result
        assert first.device.type == "meta", name


@pytest.mark.parametrize(("device", "words"), [("gpu", "allowed: cpu, cuda"), ("cuda", "no CUDA")])
def test_wrong_device(device, words):
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("this device is there")
    with pytest.raises(SystemExit, match=words):
        bench_glue.main([*QUICK, "--device", device])


@pytest.mark.parametrize("size", ["2,3", "2,a,4,4", "0,3,4,4"])
def test_wrong_size(size, capsys):
    with pytest.raises(SystemExit):
        bench_glue.main(["--size", size])
    assert "--size" in capsys.readouterr().err
