"""estimate_gpu_roofline: what is counted, and that it says it is an estimate."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import estimate_gpu_roofline as tool  # noqa: E402
from bench.shapes import parse_shape  # noqa: E402

#: 1000 GB/s, 0.5 fp32 and 1 bf16 TFLOP/s, 2 INT8 TOP/s.
DEVICE = tool.Device("a device", 1000, 0.5, 1, 2, "a test")


def test_a_launch_takes_the_longer_of_bytes_and_arithmetic():
    assert tool.Launch("copy", 1e9).seconds(DEVICE) == pytest.approx(1e-3)
    assert tool.Launch("bf16", 1e9, 10**9).seconds(DEVICE) == pytest.approx(2e-3)
    assert tool.Launch("fp32", 1e3, 10**9, 4).seconds(DEVICE) == pytest.approx(4e-3)
    assert tool.Launch("int8", 1e3, 10**9, 1).seconds(DEVICE) == pytest.approx(1e-3)


def test_bytes_of_the_flows():
    shape = parse_shape("2x4x8x8,6x3x3,p1")
    counts = tool.Counts.of(shape)
    x, y, w = 2 * 4 * 64, 2 * 6 * 64, 6 * 4 * 9
    assert (counts.x, counts.y, counts.w, counts.macs) == (x, y, w, y * 4 * 9)
    moved = {
        flow: sum(launch.bytes for launch in launches(counts, False))
        for flow, launches in tool.FLOWS.items()
    }
    glue = 26 * y
    assert moved["bf16 eager"] == 6 * (x + y + w) + glue
    assert moved["fp32 eager"] == 2 * moved["bf16 eager"]
    assert moved["int8 layers"] == 9 * x + 9 * y + 6 * w + glue
    # norm_act_forward writes q, codes and mask; an epilogue, which has the gradient, reads the
    # other two; two passes read the masked gradient and codes, and one writes q.
    fused = 4 * x + 4 * y + 6 * w + (4 + 1 / 8) * y + (1 + 1 / 8) * y + (3 + 4) * y
    assert moved["int8 fused"] == fused
    assert moved["int8 fused, due"] == fused + 2 * 3 * y
    for flow in (tool.int8_fused, tool.int8_fused_due):
        # a convolution in bfloat16 without grad-input; statistics, forward, reduce, dy as floats
        of_first = sum(launch.bytes for launch in flow(counts, True))
        assert of_first == 4 * (x + y + w) + (2 + 5 + 1 / 8 + 3 + 1 / 8 + 5 + 1 / 8) * y


def test_products_carry_the_quantization_that_they_need():
    shape = parse_shape("2x4x8x8,6x3x3,p1")
    x, y, w = 2 * 4 * 64, 2 * 6 * 64, 6 * 4 * 9
    slow = tool.Device("bytes alone", 1e-9, 1e9, 1e9, 1e9, "a test")  # 1 byte a second
    found = tool.by_product(tool.estimate([shape], slow))
    forward = found["forward"]
    assert forward["bf16 eager"] == pytest.approx(2 * (x + y + w))
    assert forward["int8 layers"] == pytest.approx(5 * x + x + w + 2 * y)
    assert forward["int8 layers, product alone"] == pytest.approx(x + w + 2 * y)
    grad_input = found["grad-input"]
    assert grad_input["int8 layers"] == pytest.approx(5 * y + y + w + 2 * x)
    assert found["grad-weight"]["int8 layers"] == pytest.approx(y + x + 4 * w)


def test_memory_kept_for_the_backward_pass():
    shape = parse_shape("2x4x8x8,6x3x3,p1")
    kept = {
        flow: t["kept_bytes"] for flow, t in tool.totals(tool.estimate([shape], DEVICE)).items()
    }
    y = 2 * 6 * 64
    assert kept["fp32 eager"] == 8 * y and kept["bf16 eager"] == 4 * y
    assert kept["int8 layers"] == 5 * y and kept["int8 fused"] == (2 + 1 / 8) * y
    assert kept.keys() == tool.FLOWS.keys() == tool.KEPT.keys()


def test_writes_both_files(tmp_path, monkeypatch, capsys):
    shapes = [parse_shape("2x4x8x8,6x3x3,p1")]
    monkeypatch.setattr(tool, "shape_set", lambda name, batch: shapes)
    assert tool.main(["--batch", "2", "--out", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "estimate_resnet50_h200.json").read_text())
    assert "not a measurement" in document["kind"]
    total = document["totals"]["int8 fused"]["estimated_s"]
    own = [r for r in document["records"] if r["flow"] == "int8 fused"]
    assert total == pytest.approx(sum(e["estimated_s"] for e in own[0]["launches"]))
    text = (tmp_path / "estimate_resnet50_h200.md").read_text()
    assert text == capsys.readouterr().out.removesuffix("\n")
    assert text.startswith("# Estimate, not a measurement")
