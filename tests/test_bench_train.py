"""bench_train: records of modes, failing modes, memory, errors. Nothing asserts a time."""

import argparse
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from daq_mm import DAQConfig, ops
from toy_convolutions import ToyNetwork, toy_batch

TOOLS = Path(__file__).resolve().parent.parent / "tools"
sys.path.insert(0, str(TOOLS))

import bench_train  # noqa: E402
from bench import cuda_math, layer_profile, memory, modes, networks  # noqa: E402
from bench.timing import Summary  # noqa: E402
from bench.train_report import add_ratios, tables  # noqa: E402
from bench.training import Setting, Trainer, check_loss, warm_up  # noqa: E402


def summary_of(seconds: float) -> Summary:
    return Summary.of([seconds])


@pytest.fixture
def toy_model(monkeypatch):
    """bench_train with the toy network under every name."""

    def build(name, *, size, frames):
        return networks.Network(ToyNetwork().train(), toy_batch)

    monkeypatch.setattr(bench_train, "build", build)


TRAIN = ["--model", "resnet50", "--batch", "2", "--iterations", "2", "--warm-up", "1",
         "--allocator", "default", "--allow-reference", "--no-memory"]  # fmt: skip


def test_bench_train_compares_modes(tmp_path, toy_model, capsys):
    path = tmp_path / "train.json"
    arguments = ["--modes", "fp32,bf16,int8,int8-bf16", "--profile-layers", "--json", str(path)]
    assert bench_train.main([*TRAIN, *arguments]) == 0
    document = json.loads(path.read_text())
    assert document["autotune"] is None and document["cuda_math"] is None
    assert document["finished"] is True
    by_mode = {record["mode"]: record for record in document["records"]}
    assert list(by_mode) == ["fp32", "bf16", "int8", "int8-bf16"]
    assert (by_mode["int8"]["int8_layers"], by_mode["int8"]["float_layers"]) == (3, 1)
    for record in by_mode.values():
        assert record["samples"] == 2
        assert record["first_loss"] == pytest.approx(by_mode["fp32"]["first_loss"], rel=0.1)
        assert record["samples_per_s"] == pytest.approx(2 / record["median_s"])
        assert set(record["speedup_over"]) == set(by_mode) - {record["mode"]}
        rows = record["profile"]["by_convolution"]
        assert sum(row["calls"] for row in rows) == pytest.approx(4)
        assert all(row["forward_s"] > 0 and row["backward_s"] > 0 for row in rows)
    text = capsys.readouterr().out
    assert "× bf16" in text and "By convolution" in text


def test_a_failing_mode_is_told_and_the_others_go_on(tmp_path, toy_model, monkeypatch, capsys):
    def broken(model, config):
        raise RuntimeError("no such kernel")

    mode = modes.Mode("broken", "fails", convert=broken)
    monkeypatch.setitem(modes.MODES, "broken", mode)
    path = tmp_path / "train.json"
    assert bench_train.main([*TRAIN, "--modes", "broken,fp32,bf16", "--json", str(path)]) == 1
    records = {r["mode"]: r for r in json.loads(path.read_text())["records"]}
    assert records["broken"]["error"] == "RuntimeError: no such kernel"
    assert "median_s" not in records["broken"]
    assert set(records["fp32"]["speedup_over"]) == {"bf16"}
    captured = capsys.readouterr()
    assert "FAILED: RuntimeError: no such kernel" in captured.out
    assert "0.00" not in captured.out.split("bf16")[0]


@pytest.fixture
def cuda_flags():
    """PyTorch's flags as they were, after the test."""
    backends = torch.backends
    before = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, backends.cudnn.benchmark
    yield
    backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, backends.cudnn.benchmark = before


def test_float32_is_float32_and_cudnn_measures(cuda_flags):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = False
    assert cuda_math.configure(torch.device("cpu")) is None
    assert torch.backends.cudnn.allow_tf32 is True  # nothing was set
    found = cuda_math.configure(torch.device("cuda"))
    assert torch.backends.cudnn.allow_tf32 is torch.backends.cuda.matmul.allow_tf32 is False
    assert torch.backends.cudnn.benchmark is True
    expected = {"matmul_allow_tf32": False, "cudnn_allow_tf32": False, "cudnn_benchmark": True}
    assert expected.items() <= found.items()


def test_the_benchmark_sets_cudas_libraries_before_it_builds_anything(monkeypatch):
    seen = []
    monkeypatch.setattr(bench_train.cuda_math, "configure", lambda device: seen.append(device))
    args = bench_train.parse_args([*TRAIN, "--modes", "fp32"])
    assert bench_train.TrainBenchmark(args).cuda_math is None
    assert seen == [torch.device("cpu")]


#: bench_train on the toy network in a process of its own, which dies at the second mode's memory.
_KILLED = """
import os, signal, sys
sys.path[:0] = ["tools", "tests"]
import bench_train
from bench.networks import Network
from toy_convolutions import ToyNetwork, toy_batch

bench_train.build = lambda name, size, frames: Network(ToyNetwork().train(), toy_batch)

def measure(argv, mode):
    if mode.name == "bf16":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"iteration": 5}

bench_train._measure_memory_once = measure
bench_train.main(sys.argv[1:])
"""


def test_what_was_measured_survives_a_kill_between_modes(tmp_path):
    path = tmp_path / "train.json"
    arguments = [a for a in TRAIN if a != "--no-memory"]
    arguments += ["--modes", "fp32,bf16", "--memory-repeats", "1", "--json", str(path)]
    root = TOOLS.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    document = json.loads(path.read_text())
    by_mode = {record["mode"]: record for record in document["records"]}
    assert document["finished"] is False
    assert all(record["samples"] == 2 for record in by_mode.values())
    assert by_mode["bf16"]["speedup_over"].keys() == {"fp32"}
    assert by_mode["fp32"]["memory"] == {"iteration": 5, "iteration_of_each": [5]}
    assert "memory" not in by_mode["bf16"]


def test_the_file_grows_with_every_mode_and_round(tmp_path, toy_model, monkeypatch):
    path, seen = tmp_path / "train.json", []

    def write(to, document):
        records = document["records"]
        seen.append([(r["mode"], r.get("samples", 0)) for r in records])

    monkeypatch.setattr(bench_train, "write_json", write)
    assert bench_train.main([*TRAIN, "--modes", "fp32,bf16", "--json", str(path)]) == 0
    assert seen[:4] == [
        [("fp32", 0)],
        [("fp32", 0), ("bf16", 0)],
        [("fp32", 1), ("bf16", 1)],
        [("fp32", 2), ("bf16", 2)],
    ]


@pytest.mark.parametrize("mode", ["fp32", "int8-fused-fp32", "int8"])
def test_an_iteration_reads_no_value_on_the_host(mode, monkeypatch):
    """So that a CUDA graph can hold it: tensors on 'meta' have no values to wait for.

    Only modes without autocast, which has no meta device; a cast reads nothing either.
    """
    enabled = torch.is_autocast_enabled
    monkeypatch.setattr(
        torch, "is_autocast_enabled", lambda *a: False if a == ("meta",) else enabled(*a)
    )
    network = networks.Network(networks.Classifier(networks.ResNet50(), 2048).train(), pictures)
    on_meta = Setting(2, torch.device("meta"), channels_last=True, config=DAQConfig())
    trainer = Trainer(network, modes.MODES[mode], on_meta)
    for _ in range(2):
        assert trainer.step().device.type == "meta"


def pictures(n, device):
    labels = torch.zeros(n, dtype=torch.int64, device=device)
    return torch.randn(n, 3, 32, 32, device=device), labels


def test_a_mode_that_computes_something_else_is_refused(toy_model, capsys):
    with pytest.raises(ArithmeticError, match="int8 computes a first loss of 2 where fp32 has 1"):
        check_loss("int8", 2.0, 1.0, "fp32")
    check_loss("int8", 1.1, 1.0, "fp32")
    network = networks.Network(ToyNetwork(), toy_batch)
    with torch.no_grad():
        network.module.signed.weight.fill_(float("nan"))
    with pytest.raises(ArithmeticError, match="the loss is nan"):
        warm_up(Trainer(network, modes.MODES["fp32"], setting()), iterations=1)


def setting() -> Setting:
    return Setting(4, torch.device("cpu"), channels_last=True, config=DAQConfig())


def test_memory_of_a_mode():
    network = networks.Network(ToyNetwork().train(), toy_batch)
    trainers = {name: Trainer(network, modes.MODES[name], setting()) for name in ("fp32", "int8")}
    kept = {name: memory.saved_for_backward(t) for name, t in trainers.items()}
    # Four float inputs, the picture among them; three 8-bit ones and the float picture.
    values, picture = 4 * 4 * 64, 4 * 3 * 64
    assert kept["fp32"]["convolutions"] == 4 * (picture + 3 * values)
    assert kept["int8"]["convolutions"] == 4 * picture + 3 * (values + 8)
    assert kept["fp32"]["int8_layers"] == 4 * 3 * values
    assert kept["int8"]["int8_layers"] == 3 * (values + 8)
    assert kept["fp32"]["all"] > kept["fp32"]["convolutions"]
    if Path("/proc/self/clear_refs").exists():
        peak = memory.peak(lambda: trainers["fp32"], torch.device("cpu"))
        assert set(peak) == {"baseline", "idle", "peak", "peak_over_baseline", "iteration"}
        assert peak["peak"] >= peak["idle"] > 0


class Mean(torch.nn.Module):
    def forward(self, x):
        return x.mean()


def test_memory_and_profile_of_fused_convolutions():
    conv = torch.nn.Conv2d
    network = networks.Network(
        torch.nn.Sequential(
            *(conv(3, 4, 1), conv(4, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), Mean())
        ).train(),
        lambda n, device: (torch.randn(n, 3, 8, 8, device=device),),
    )
    fused = memory.saved_for_backward(Trainer(network, modes.MODES["int8-fused-fp32"], setting()))
    apart = memory.saved_for_backward(Trainer(network, modes.MODES["int8"], setting()))
    assert (fused["convolutions"], fused["int8_layers"]) == (None, None)
    assert 0 < fused["all"] < apart["all"]
    trainer = Trainer(network, modes.MODES["int8-fused-fp32"], setting())
    profile = layer_profile.profile_iterations(trainer, iterations=1)
    assert {"fused glue forward", "fused glue backward"} <= profile["by_kind"].keys()
    unit = next(r for r in profile["by_convolution"] if r["w_size"] == (4, 4, 1, 1))
    assert unit["calls"] == 1 and unit["forward_s"] > 0 and unit["backward_s"] > 0


def test_the_median_peak_of_several_processes_counts(monkeypatch):
    peaks = iter([7, 3, 9, 5])
    monkeypatch.setattr(
        bench_train, "_measure_memory_once", lambda argv, mode: {"iteration": next(peaks)}
    )
    args = argparse.Namespace(memory_repeats=4)
    got = bench_train.measure_memory(args, [], modes.MODES["fp32"])
    assert got == {"iteration": 5, "iteration_of_each": [3, 5, 7, 9]}
    monkeypatch.setattr(bench_train, "_measure_memory_once", lambda argv, mode: {"error": "killed"})
    assert bench_train.measure_memory(args, [], modes.MODES["fp32"]) == {"error": "killed"}


def test_tables_of_modes():
    records = [
        {"mode": "fp32", **summary_of(3.0).fields(), "samples_per_s": 1.0},
        {"mode": "int8", **summary_of(2.0).fields(), "samples_per_s": 1.5},
        {"mode": "bf16-compile", "error": "CompileError: line one\nline two"},
    ]
    add_ratios(records)
    assert records[1]["speedup_over"] == {"fp32": 1.5}
    records[1]["memory"] = {"error": "exit status 1: killed"}
    arguments = {"model": "toy", "batch": 2, "size": 8}
    text = tables(
        {"records": records, "arguments": arguments, "threads": 1, "backend": "reference",
         "allocator": {"setting": "default"}}
    )  # fmt: skip
    assert "FAILED: CompileError: line one line two" in text
    assert "FAILED: exit status 1: killed" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--modes", "fp33"], "'fp33' is unknown; allowed: all, fp32"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--recipe", "papr"], "recipe='papr' is unknown"),
        (["--model", "resnet51", "--modes", "fp32"], "model='resnet51' is unknown"),
        (["--cuda-graph", "--modes", "fp32"], "--cuda-graph needs --device cuda, not 'cpu'"),
        (["--autotune", "--modes", "fp32"], "it needs --device cuda, not cpu"),
        (["--cuda-graph", "--profile-layers"], "--profile-layers looks into eager iterations"),
    ],
)
def test_bench_train_refuses_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as caught:
        bench_train.main([*TRAIN, *arguments])
    assert message in f"{caught.value} {capsys.readouterr().err}"


def test_bench_train_does_not_time_the_reference_unasked(monkeypatch, toy_model):
    monkeypatch.setattr(ops, "kernels_built", lambda device: (False, "nothing was built"))
    arguments = [a for a in TRAIN if a != "--allow-reference"]
    with pytest.raises(SystemExit, match="int8 would run the slow reference: nothing was built"):
        bench_train.main([*arguments, "--modes", "fp32,int8"])
