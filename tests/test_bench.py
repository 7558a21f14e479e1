"""bench_ops: shapes, records, ratios, the correctness gate, errors. Nothing asserts a time."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from daq_mm import DAQConfig, convert_model, ops
from toy_convolutions import ToyNetwork, toy_batch

TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path.insert(0, str(TOOLS))

import bench_ops  # noqa: E402
import plot_roofline  # noqa: E402
from bench import allocator, autotuning, gate, machine, networks, report  # noqa: E402
from bench.candidates import OPS, Candidate  # noqa: E402
from bench.operands import make_operands  # noqa: E402
from bench.shapes import ConvShape, parse_shape, trace  # noqa: E402
from bench.timing import Clock, Summary, device_of, take_turns  # noqa: E402
from common.provenance import provenance, write_json  # noqa: E402

SHAPES = (
    "3x6x5x4,10x3x3,s2",
    "2x8x5x5,8x3x3,g8",
    "2x6x3x4x5,4x1x3x3,signed",
    "2x8x4x4,12x1x1,g2,p0",
)
QUICK = ["--repeats", "1", "--min-time", "0", "--allocator", "default"]


def summary(seconds: float) -> Summary:
    return Summary.of([seconds])


# ---- provenance ----


def test_provenance_has_the_fields_and_is_json(tmp_path):
    document = provenance({"path": Path("x"), "sizes": (1, 2), "limit": 3})
    assert set(document) == {
        "tool", "arguments", "commit", "date", "machine", "versions", "threads"
    }  # fmt: skip
    assert document["arguments"] == {"path": "x", "sizes": [1, 2], "limit": 3}
    assert set(document["commit"]) == {"sha", "dirty"}
    assert document["versions"]["torch"] == torch.__version__
    assert document["versions"]["daq_mm"]
    assert document["threads"] == torch.get_num_threads()
    assert {"cpu", "cores", "cpu_flags", "memory_gib", "gpus"} <= set(document["machine"])
    write_json(tmp_path / "new" / "x.json", document)
    assert json.loads((tmp_path / "new" / "x.json").read_text()) == document
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.json"]


def test_a_package_from_elsewhere_is_told(tmp_path, monkeypatch, capsys):
    """As in a second checkout: the commit is the tools', and the package is another one's."""
    other = types.ModuleType("daq_mm")
    other.__file__ = str(tmp_path / "daq_mm/__init__.py")
    monkeypatch.setitem(sys.modules, "daq_mm", other)
    for _ in range(2):
        assert provenance()["commit"]["other_package"] is True
    told = capsys.readouterr().err
    assert told.count("warning: daq_mm is imported from") == 1 and str(tmp_path) in told


def test_provenance_imports_neither_torch_nor_anything_else_heavy():
    code = (
        "import sys; from common.provenance import provenance; p = provenance();"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules; assert p['versions']"
    )
    subprocess.run([sys.executable, "-c", code], cwd=TOOLS, check=True)


# ---- timing, machine, allocator ----


def test_summary_of_samples():
    s = Summary.of([4.0, 1.0, 2.0, 3.0, 10.0])
    assert (s.median_s, s.min_s, s.max_s, s.samples) == (3.0, 1.0, 10.0, 5)
    assert (s.q25_s, s.q75_s) == (2.0, 4.0)
    assert Summary.of([2.0]).q75_s == 2.0
    with pytest.raises(ValueError, match="at least one sample"):
        Summary.of([])


def test_candidates_take_turns():
    class FakeClock:
        seconds = staticmethod(lambda work, head_start=0.0: (work(), 1.0)[1])

    calls = []
    result = take_turns(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        repeats=2,
        min_time=0.0,
        clock=FakeClock(),
    )
    assert calls == ["a", "a", "b", "b", "a", "b", "a", "b"]  # two warm-ups each, then turns
    assert result["a"].samples == 2
    with pytest.raises(ValueError, match="repeats=0 must be at least 1"):
        take_turns({}, repeats=0, min_time=0.0, clock=Clock())


def test_unknown_devices_and_instruction_sets_are_refused():
    with pytest.raises(ValueError, match="allowed: cpu, cuda"):
        device_of("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="sees no CUDA device"):
            device_of("cuda")
    assert machine.capabilities("best", torch.device("cpu")) == [None]
    with pytest.raises(ValueError, match="backends='sse9'"):
        machine.capabilities("sse9", torch.device("cpu"))


def test_peak_is_measured_where_kernels_are_built(backend):
    peak = machine.peak_gops(torch.device("cpu"))
    assert (peak is None) == (backend == "reference")
    assert peak is None or peak > 0


def test_allocator_tells_what_it_set():
    assert allocator.configure("default")["setting"]
    with pytest.raises(ValueError, match="allocator='heep' is unknown; allowed: heap, default"):
        allocator.configure("heep")
    code = "from bench import allocator; print(allocator.configure('heap')['setting'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=TOOLS, text=True, capture_output=True)
    assert "M_MMAP_MAX=0" in done.stdout or "glibc" in done.stderr or "preloaded" in done.stdout


# ---- shapes ----


def test_a_shape_in_words():
    shape = parse_shape("16x64x56x48, 128x3x3, s2, p0, d2, g4, signed")
    g = shape.geometry
    assert (g.x_size, g.w_size) == ((16, 64, 56, 48), (128, 16, 3, 3))
    assert (g.stride, g.padding, g.dilation, g.groups) == ((2, 2), (0,) * 4, (2, 2), 4)
    assert not shape.unsigned
    assert parse_shape("2x4x8x8,4x3x3").geometry.padding == (1, 1, 1, 1)
    assert parse_shape("1x2x5x5,3x3x3,p0").macs == 3 * 9 * 2 * 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("16x64", "does not read as"),
        ("2x4x8x8,4x3x3,q1", "does not read as"),
        ("2x4x8x8,4x3x3x3", "expected 5"),
        ("2x4x8x8,4x9x9,p0", "larger than the padded input"),
    ],
)
def test_wrong_shapes_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_shape(text)


def test_tracing_counts_equal_layers_and_sees_signs():
    toy = ToyNetwork()
    shapes = trace(toy, lambda: toy(*toy_batch(2, "cpu")), batch=16)
    assert [(s.name, s.count, s.unsigned, s.first) for s in shapes] == [
        ("stem", 1, False, True),
        ("a", 2, True, False),
        ("signed", 1, False, False),
    ]
    assert all(s.geometry.x_size[0] == 16 for s in shapes)
    with pytest.raises(ValueError, match="no convolution"):
        trace(nn.ReLU(), lambda: None, batch=1)


def without(monkeypatch, *packages):
    """These packages cannot be imported; daq_mm is as it was."""
    for name in list(sys.modules):
        if name.partition(".")[0] in packages:
            monkeypatch.delitem(sys.modules, name)
    for name in packages:
        monkeypatch.setitem(sys.modules, name, None)


def test_resnet50_has_its_known_multiplications():
    shapes = networks.shape_set("resnet50", batch=1)
    assert sum(s.count for s in shapes) == 53
    assert sum(s.count * s.macs for s in shapes) == 4_087_136_256
    assert [s.first for s in shapes] == [True] + [False] * (len(shapes) - 1)


def test_resnet50_in_plain_pytorch_is_that_of_mmdet(monkeypatch, capsys):
    pytest.importorskip("mmdet.models", reason="compares with mmdet's")
    theirs = networks.build("resnet50", size=64)
    shapes = networks.shape_set("resnet50", batch=2)
    with monkeypatch.context() as patch:
        without(patch, "mmdet")
        own = networks.build("resnet50", size=64)
        assert networks.shape_set("resnet50", batch=2) == shapes
    assert (theirs.source, own.source) == ("mmdet", "tools/bench/resnet.py")
    assert "needs mmdet" in capsys.readouterr().err  # not silently
    sizes = [[(k, v.shape) for k, v in n.module.state_dict().items()] for n in (theirs, own)]
    assert sizes[0] == sizes[1]
    # Drawn alike: each layer's spread is that of the other's, and every branch is awake.
    for (name, a), b in zip(theirs.module.named_parameters(), own.module.parameters()):
        assert torch.allclose(a.std(correction=0), b.std(correction=0), rtol=0.1), name
        assert a.dim() != 1 or torch.equal(a, b) or name == "head.bias", name
    own.module.load_state_dict(theirs.module.state_dict())
    batch = theirs.batch(2, torch.device("cpu"))
    assert torch.equal(theirs.module(*batch), own.module(*batch))
    # What is fused with what decides its speed.
    reports = [convert_model(network.module, DAQConfig()) for network in (theirs, own)]
    assert reports[0].converted == reports[1].converted and len(reports[0].converted) == 52
    assert reports[0].fused == reports[1].fused and len(reports[0].fused) == 17


#: Read by each Python process at its start, if its folder is on the path: as without the packages.
_HIDE = """
import sys
sys.modules.update(dict.fromkeys(["mmdet", "mmcv", "mmengine", "mmaction"]))
"""


@pytest.mark.parametrize(
    "command",
    [
        ["bench_train.py", "--model", "resnet50", "--modes", "int8-fused", "--size", "32",
         "--batch", "2", "--iterations", "1", "--warm-up", "1", "--memory-repeats", "1",
         "--threads", "1", "--allow-reference"],
        ["bench_ops.py", "--set", "resnet50", "--batch", "1", "--filter", "1x512x7x7 -> 2048",
         "--ops", "forward", "--repeats", "1", "--min-time", "0", "--threads", "1"],
    ],
    ids=["bench_train", "bench_ops"],
)  # fmt: skip
def test_benchmarks_run_without_openmmlab(tmp_path, command):
    (tmp_path / "sitecustomize.py").write_text(_HIDE)
    path = os.pathsep.join([str(tmp_path), str(TOOLS.parent)])
    result = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, *command, "--json", str(result)],
        cwd=TOOLS,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "which is not installed" in done.stderr  # mmdet's ResNet was asked for
    document = json.loads(result.read_text())
    assert document["records"]
    if command[0] == "bench_train.py":
        assert document["network"] == "tools/bench/resnet.py"
        (record,) = document["records"]
        assert record["median_s"] > 0 and "iteration" in record["memory"]
        assert record["int8_layers"] == 52


def test_other_networks_say_what_they_need(monkeypatch):
    for name, package in (("mobilenetv2", "mmdet"), ("vgg16", "mmcv")):
        with monkeypatch.context() as patch:
            without(patch, package)
            with pytest.raises(ImportError, match=f"needs {package}, which is not installed"):
                networks.build(name, size=32)


def test_a_missing_package_is_told_before_mmengine_installs_it(monkeypatch):
    hub = pytest.importorskip("mmengine.hub")
    monkeypatch.setattr(hub, "get_config", lambda name: pytest.fail("it would run pip install"))
    without(monkeypatch, "mmdet")
    with pytest.raises(ImportError, match="retinanet.* needs mmdet, which is not installed"):
        networks.build("retinanet_r50", size=32)


def test_unknown_sets_and_models_are_refused():
    with pytest.raises(ValueError, match="set='resnet51' is unknown; allowed: resnet50"):
        networks.shape_set("resnet51", batch=1)
    with pytest.raises(ValueError, match="model='resnet51' is unknown; allowed: resnet50"):
        networks.build("resnet51", size=32)
    pytest.importorskip("mmengine")
    with pytest.raises(ValueError, match="no such config file"):
        networks.build("nowhere.py", size=32)


def test_checkpoints_are_switched_off_everywhere():
    config = {
        "pretrained": "https://a",
        "backbone": {"init_cfg": {"type": "Pretrained", "checkpoint": "b"}, "depth": 18},
        "heads": [{"init_cfg": {"type": "Normal"}}, {"pretrained2d": True}],
    }
    assert networks.without_checkpoints(config) == {
        "pretrained": None,
        "backbone": {"init_cfg": None, "depth": 18},
        "heads": [{"init_cfg": {"type": "Normal"}}, {"pretrained2d": True}],
    }


# ---- the gate ----


@pytest.mark.parametrize("recipe", ["daq", "paper"])
@pytest.mark.parametrize("text", SHAPES)
def test_gate_passes_the_ops(backend, text, recipe):
    operands = make_operands(parse_shape(text), config=DAQConfig.make(recipe))
    for check in (gate.check_products, gate.check_quantizers, gate.check_layer):
        check(operands, ("fp32", "bf16"))


def last_value_off(result: torch.Tensor) -> torch.Tensor:
    """The result with its last value one step off: a mistake at the border."""
    wrong = result.clone(memory_format=torch.preserve_format)
    last = (-1,) * wrong.dim()
    value = wrong[last]
    wrong[last] = value ^ 1 if not value.is_floating_point() else value * 1.5 + 1
    return wrong


@pytest.mark.parametrize(
    ("op", "check"),
    [
        ("forward", gate.check_products),
        ("grad_input", gate.check_products),
        ("grad_weight", gate.check_products),
        ("quantize_x", gate.check_quantizers),
        ("quantize_g", gate.check_quantizers),
        ("conv_forward", gate.check_layer),
        ("conv_backward", gate.check_layer),
    ],
)
def test_gate_refuses_a_wrong_kernel(monkeypatch, op, check):
    operands = make_operands(parse_shape(SHAPES[0]), config=DAQConfig())
    right = getattr(ops, op)

    def wrong(*args, **kwargs):
        result = right(*args, **kwargs)
        if isinstance(result, tuple):
            return (last_value_off(result[0]), *result[1:])
        return last_value_off(result)

    monkeypatch.setattr(ops, op, wrong)
    with pytest.raises(gate.WrongResult, match=f"{op}.*differ from the reference"):
        check(operands, ("fp32",))


# ---- records and sums ----


def candidate(op: str, backend: str, dtype: str = "bf16", products: int = 1) -> Candidate:
    return Candidate(op, backend, dtype, lambda: None, products, bytes=1000)


def test_ratios_within_a_shape():
    shape = parse_shape("1x2x5x5,3x3x3,p0")  # 486 multiply-adds
    pairs = [
        (candidate("forward", "cpu/x"), 2e-6),
        (candidate("conv_backward", "cpu/x", products=2), 4e-6),
        (candidate("quantize_x", "cpu/x", products=0), 1e-6),
        (candidate("forward", "torch", "fp32"), 6e-6),
        (candidate("forward", "torch", "bf16"), 3e-6),
        (candidate("backward", "torch", "bf16", products=2), 5e-6),
    ]
    records = [report.record(shape, c, summary(t), "given") for c, t in pairs]
    report.add_ratios(records, {"cpu/x": 0.972})
    forward, backward, quantize, baseline = records[:4]
    assert forward["gops"] == pytest.approx(2 * 486 / 2e-6 / 1e9)
    assert forward["gbps"] == pytest.approx(0.5)
    assert forward["intensity"] == pytest.approx(0.972)
    assert (forward["speedup_fp32"], forward["speedup_bf16"]) == pytest.approx((3.0, 1.5))
    assert forward["peak_share"] == pytest.approx(0.5)
    assert backward["operations"] == 4 * 486
    assert backward["speedup_fp32"] is None
    assert backward["speedup_bf16"] == pytest.approx(1.25)
    assert (quantize["gops"], quantize["speedup_bf16"], quantize["peak_share"]) == (0, None, None)
    assert baseline["speedup_fp32"] is None
    assert "forward" in report.shape_table(shape, records)


def test_sums_over_a_network():
    base = parse_shape("2x4x6x6,4x3x3")
    first = ConvShape(parse_shape("2x3x6x6,4x3x3").geometry, "stem", unsigned=False, first=True)
    many = ConvShape(base.geometry, "a", count=3)
    unmeasured = ConvShape(parse_shape("2x8x6x6,4x1x1").geometry, "b", count=2)
    records = []
    for shape in (first, many):
        for op, backend, dtype, seconds in (
            ("forward", "cpu/x", "bf16", 1.0),
            ("forward", "torch", "fp32", 4.0),
            ("forward", "torch", "bf16", 2.0),
            ("grad_weight", "cpu/x", "fp32", 2.0),
            ("grad_weight", "torch", "bf16", 5.0),
        ):
            measured = report.record(shape, candidate(op, backend, dtype), summary(seconds), "n")
            records.append(measured)
    entries = report.totals(records, [first, many, unmeasured], "n")
    by_product = {
        e["product"]: e for e in entries if e["scope"] == "kernels alone" and e["dtype"] == "bf16"
    }
    forward = by_product["forward"]
    assert (forward["layers"], forward["layers_measured"]) == (5, 3)
    assert (forward["daq_mm_s"], forward["fp32_s"], forward["bf16_s"]) == (3.0, 12.0, 6.0)
    assert (forward["speedup_fp32"], forward["speedup_bf16"]) == (4.0, 2.0)
    assert forward["gops"] == pytest.approx(2 * many.macs * 3 / 3.0 / 1e9)
    weight = by_product["grad-weight"]  # one record, of float32, serves both types of x
    assert (weight["daq_mm_s"], weight["fp32_s"], weight["speedup_bf16"]) == (6.0, None, 2.5)
    assert by_product["grad-input"]["layers_measured"] == 0
    assert by_product["grad-input"]["speedup_bf16"] is None
    assert "3 of 5" in report.totals_table(entries)


# ---- bench_ops ----


def test_bench_ops_writes_records_and_the_plot_reads_them(tmp_path, capsys):
    path = tmp_path / "ops.json"
    shapes = ["--shape", SHAPES[0], "--shape", SHAPES[2]]
    assert bench_ops.main([*shapes, *QUICK, "--dtypes", "bf16", "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    assert {"commit", "machine", "allocator", "peak_gops", "bandwidth_gbps", "totals"} <= set(
        document
    )
    assert document["autotune"] is None
    records = document["records"]
    own = [entry for entry in records if entry["backend"] != "torch"]
    assert {entry["op"] for entry in own} == set(OPS) - {"grad_weight"}
    assert {entry["backend"] for entry in own} == {ops.backend_of(torch.zeros(1))}
    for entry in own:
        has_product = "quantize" not in entry["op"] and "thresholds" not in entry["op"]
        assert (entry["speedup_bf16"] is not None) == has_product
        assert entry["median_s"] > 0 and entry["samples"] == 1
    assert "Sums over each set" in capsys.readouterr().out
    picture = tmp_path / "roofline.png"
    pytest.importorskip("matplotlib")
    assert plot_roofline.main([str(path), "-o", str(picture), "--with-torch"]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match="--backend 'cuda' is not in the file"):
        plot_roofline.main([str(path), "-o", str(picture), "--backend", "cuda"])
    with pytest.raises(SystemExit, match="no such file"):
        plot_roofline.main([str(tmp_path / "none.json"), "-o", str(picture)])


def test_bench_ops_does_not_time_a_wrong_kernel(tmp_path, monkeypatch, capsys):
    right = ops.forward
    monkeypatch.setattr(ops, "forward", lambda *a, **k: last_value_off(right(*a, **k)))
    path = tmp_path / "ops.json"
    arguments = ["--shape", SHAPES[0], "--ops", "forward,quantize_g", "--dtypes", "fp32"]
    assert bench_ops.main([*arguments, *QUICK, "--json", str(path)]) == 1
    own = [e for e in json.loads(path.read_text())["records"] if e["backend"] != "torch"]
    by_op = {entry["op"]: entry for entry in own}
    assert "differ from the reference" in by_op["forward"]["error"]
    assert "median_s" not in by_op["forward"]
    assert by_op["quantize_g"]["median_s"] > 0
    captured = capsys.readouterr()
    assert "WRONG" in captured.out and "FAILED given: forward" in captured.err


def test_what_was_tuned_is_recorded_and_saved(monkeypatch):
    done = []
    entry = {"device": 0, "product": "forward", "tile": "64x64", "splits": 2}
    fake = types.SimpleNamespace(
        enable=lambda: done.append("enable"), enabled=lambda: bool(done),
        save=lambda: done.append("save"), choices=lambda: [entry],
    )  # fmt: skip
    monkeypatch.setattr(autotuning, "autotune", fake)
    autotuning.start(False, torch.device("cuda"))
    assert autotuning.record() is None and not done
    autotuning.start(True, torch.device("cuda"))
    assert autotuning.record() == [entry] and done == ["enable", "save"]


@pytest.mark.skipif(ops.kernels_built("cuda")[0], reason="for builds without CUDA kernels")
def test_autotuning_without_kernels_is_refused():
    with pytest.raises(ValueError, match="--autotune: autotuning measures the CUDA kernels: "):
        autotuning.start(True, torch.device("cuda"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ops", "foward"], "'foward' is unknown; allowed: all, forward"),
        (["--dtypes", "fp8"], "'fp8' is unknown; allowed: all, fp32, bf16"),
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--shape", "1x2"], "does not read as"),
        (["--shape", SHAPES[0], "--recipe", "papr"], "recipe='papr' is unknown"),
        (["--shape", SHAPES[0], "--device", "gpu"], "allowed: cpu, cuda"),
        (["--shape", SHAPES[0], "--backends", "sse9"], "backends='sse9'"),
        (["--autotune"], "--autotune measures the CUDA kernels: it needs --device cuda, not cpu"),
    ],
)
def test_bench_ops_refuses_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        bench_ops.main([*arguments, "--allocator", "default"])
    assert message in f"{caught.value} {capsys.readouterr().err}"
