"""collect_speed.py: tables of speed records, and that those in documents are current."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import collect_speed  # noqa: E402

#: The generated tables in the repository: records, and what they are spliced into.
COMMITTED = (
    (["results/cpu/zen4-2cores/train_resnet50.json"], "results/cpu/zen4-2cores", "speed", []),
    (sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("results/cpu/emr-2cores/train_*.json")),
     "results/cpu/emr-2cores", "speed", ["README.md"]),
    ([f"results/cpu/emr-2cores/ops_{name}.json" for name in
      ("resnet50", "resnet50_1thread", "vgg16", "mobilenetv2", "retinanet_head", "slowonly_r50")],
     "results/cpu/emr-2cores", "ops", []),
    (["results/cpu/emr-2cores/ops_resnet50.json", "--layers"],
     "results/cpu/emr-2cores", "ops_layers", ["csrc/README.md"]),
)  # fmt: skip

CONDITIONS = {
    "machine": {"cpu": "a processor", "gpus": [], "load_average": 0.25},
    "commit": {"sha": "0123456789", "dirty": True},
    "versions": {"torch": "2.13.0"},
    "allocator": {"setting": "default"},
    "threads": 2,
}


def mode(name, seconds=None, **ratios):
    entry = {"mode": name, "words": f"words of {name}"}
    if seconds is None:
        return {**entry, "error": "no"}
    times = {"median_s": seconds, "q25_s": seconds * 0.9, "q75_s": seconds * 1.1}
    return {**entry, **times, "samples_per_s": 4 / seconds, "speedup_over": ratios}


def write(path, tool, **fields):
    path.write_text(json.dumps({"tool": tool, **CONDITIONS, **fields}))
    return path


@pytest.fixture
def train(tmp_path):
    records = [mode("fp32", 2.0, bf16=0.5), mode("bf16", 1.0, fp32=2.0), mode("bf16-compile"),
               mode("int8", 0.5, fp32=4.0, bf16=2.0)]  # fmt: skip
    arguments = {"model": "net", "batch": 4, "size": 64}
    return write(tmp_path / "train.json", "bench_train.py", records=records, arguments=arguments)


@pytest.fixture
def operations(tmp_path):
    total = dict(set="net", backend="cpu/x", dtype="bf16", scope="kernels alone", layers=3,
                 daq_mm_s=0.002, fp32_s=0.006, bf16_s=None, gops=75.0, speedup_fp32=3.0,
                 speedup_bf16=None)  # fmt: skip
    totals = [
        {**total, "product": "forward", "layers_measured": 3},
        {**total, "product": "grad-input", "layers_measured": 2},
        {**total, "product": "grad-weight", "layers_measured": 0},
    ]
    fields = dict(totals=totals, peak_gops={"cpu/x": 100.0}, arguments={"batch": 4})
    return write(tmp_path / "ops.json", "bench_ops.py", **fields)


def test_iterations_by_mode(train):
    text = collect_speed.train_table(collect_speed.load(train))
    assert "| mode | ms | quartiles ms | samples/s | × fp32 | × bf16 |" in text
    assert "| words of int8 | 500 | 450–550 | 8.00 | 4.00 | 2.00 |" in text
    assert "| words of bf16-compile | failed | — | — | — | — |" in text
    assert "a processor, 2 threads, torch 2.13.0" in text
    assert "0123456 with changes, load average at the start 0.25" in text


def test_sums_of_ops(operations):
    text = collect_speed.ops_table(collect_speed.load(operations))
    row = "| net | bf16 | kernels alone | forward | 3 | 2.00 | 6.00 | — | 75.0 | 75% | 3.00 | — |"
    assert row in text
    assert "| grad-input | 2 of 3 |" in text
    assert "grad-weight" not in text


def layer(name, op, dtype, seconds, **changes):
    fields = dict(first=False, x_size=[1, 8, 9, 9], w_size=[8, 8, 3, 3], stride=[2, 2],
                  padding=[1, 1, 1, 1], dilation=[1, 1], groups=1, count=2, backend="cpu/x",
                  operations=1_000_000_000, bytes=20_000_000)  # fmt: skip
    return {**fields, "layer": name, "op": op, "dtype": dtype, "median_s": seconds, **changes}


def test_layers_by_kind(tmp_path):
    records = [
        layer("a", "forward", "fp32", 9.0),
        layer("a", "forward", "bf16", 0.02),
        layer("b", "forward", "bf16", 0.04, bytes=400_000_000, count=1),
        layer("a", "grad_weight", "fp32", 0.04),
        layer("a", "forward", "fp32", 1.0, backend="torch"),
        layer("stem", "forward", "bf16", 9.0, first=True),
        layer("c", "forward", "bf16", 0.01, w_size=[8, 1, 1, 1], groups=8, padding=[0] * 4),
    ]
    fields = dict(records=records, peak_gops={"cpu/x": 100.0}, bandwidth_gbps=20.0)
    path = write(tmp_path / "o.json", "bench_ops.py", **fields,
                 arguments={"batch": 4, "sets": ["net"]})  # fmt: skip
    text = collect_speed.layers_table(collect_speed.load(path))
    # Three layers of 10 ms at the peak in 80 ms; one of them takes 20 ms at the copy's rate.
    assert "| 3×3 /2, 5×5 | 3 | 80.0 | 38% | — | — | 80.0 | 25% | 75% / 100% |" in text
    assert "| depthwise 1×1 /2, 5×5 | 2 | 20.0 | 100% |" in text
    document = {**collect_speed.load(path), "records": []}
    with pytest.raises(ValueError, match="products of one backend"):
        collect_speed.layers_table(document)


def test_memory_where_nothing_was_timed(tmp_path):
    kept = {"fp32": (100e6, 80e6), "int8": (30e6, 20e6), "int8-fused": (None, None)}
    records = [
        {"mode": name, "words": name, "memory": {"iteration": 5e6, "saved_for_backward": {
            "convolutions": all_of_them, "int8_layers": own, "all": 1e9}}}
        for name, (all_of_them, own) in kept.items()
    ]  # fmt: skip
    arguments = {"model": "net", "batch": 4, "size": 64}
    path = write(tmp_path / "m.json", "bench_train.py", records=records, arguments=arguments)
    text = collect_speed.train_table(collect_speed.load(path))
    assert "| int8 | 5.00 | 30.0 | 20.0 | 0.250 |" in text
    assert "| int8-fused | 5.00 | — | — | — |" in text


def test_splice_and_check(train, operations, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- t begin -->\nold\n<!-- t end -->\nb\n")
    arguments = [str(operations), str(train), "--out", str(tmp_path), "--name", "t",
                 "--splice", str(readme)]  # fmt: skip
    assert collect_speed.main([*arguments, "--check"]) == 1
    assert "old" in readme.read_text()
    assert collect_speed.main(arguments) == 0
    assert collect_speed.main([*arguments, "--check"]) == 0
    text = readme.read_text()
    assert text.startswith("a\n<!-- t begin -->") and text.endswith("<!-- t end -->\nb\n")
    assert "old" not in text
    assert text.index("words of int8") < text.index("kernels alone")  # iterations come first
    train.write_text(train.read_text().replace("0.5", "0.4"))
    assert collect_speed.main([*arguments, "--check"]) == 1


def test_what_cannot_be_read_is_told(train, tmp_path):
    def refuses(words, *arguments):
        with pytest.raises(SystemExit, match=words):
            collect_speed.main([*map(str, arguments), "--out", str(tmp_path)])

    refuses("there is no such file", tmp_path / "gone.json")
    refuses("'collect_results.py'; allowed: bench_train.py, bench_ops.py",
            write(tmp_path / "other.json", "collect_results.py"))  # fmt: skip
    (tmp_path / "broken.json").write_text("{")
    refuses("is not valid JSON", tmp_path / "broken.json")
    (tmp_path / "plain.md").write_text("no markers")
    refuses("has no markers <!-- speed begin -->", train, "--splice", tmp_path / "plain.md")


@pytest.mark.parametrize("records, out, name, documents", COMMITTED)
def test_committed_tables_are_current(records, out, name, documents, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    splice = ["--splice", *documents] if documents else []
    status = collect_speed.main([*records, "--out", out, "--name", name, *splice, "--check"])
    assert status == 0, capsys.readouterr().out
