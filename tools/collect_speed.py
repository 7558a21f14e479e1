"""Makes tables of speed records: whole iterations (bench_train) and ops (bench_ops).

    python tools/collect_speed.py results/cpu/emr-2cores/train_*.json --out results/cpu/emr-2cores \
        --name speed --splice README.md

Each record becomes a line that says what was measured where, and a table. Given both, tables of
iterations come first. Ratios are within one record, whose candidates took turns.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from common.documents import markdown, spliced, write_or_check

Document = dict[str, Any]

#: What a table calls the modes of bench_train that others are compared with.
BASELINES = {
    "fp32": "fp32",
    "fp32-compile": "fp32 compiled",
    "bf16": "bf16",
    "bf16-compile": "bf16 compiled",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of this tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", type=Path, nargs="+", help="JSON of bench_train or bench_ops")
    parser.add_argument("--out", type=Path, required=True, help="folder for NAME.md")
    parser.add_argument("--name", default="speed", help="of the file and the markers")
    parser.add_argument(
        "--splice", type=Path, nargs="*", default=[], help="documents with <!-- NAME begin/end -->"
    )
    parser.add_argument(
        "--layers",
        action="store_true",
        help="of bench_ops: by kind of layer, with the roofline's bound",
    )
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    return parser.parse_args(argv)


def load(path: Path) -> Document:
    """A record, checked.

    Raises:
        ValueError: no such file, no JSON, or another tool's record.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    tool = document.get("tool") if isinstance(document, dict) else None
    if tool not in TABLES:
        raise ValueError(f"{path} is of tool {tool!r}; allowed: {', '.join(TABLES)}")
    return document


def conditions(document: Document) -> str:
    """Where and how a record was made."""
    machine, commit = document["machine"], document["commit"]
    device = (machine["gpus"] or [{"name": machine["cpu"]}])[0]["name"]
    state = (commit["sha"] or "unknown")[:7] + (" with changes" if commit["dirty"] else "")
    return (
        f"{device}, {document['threads']} threads, torch {document['versions']['torch']}, "
        f"allocator {document['allocator']['setting']}, commit {state}, load average at the start "
        f"{machine['load_average']}"
    )


def train_table(document: Document) -> str:
    """Iterations of a network by mode, with the speed-ups over the float modes."""
    a, records = document["arguments"], document["records"]
    timed = {record["mode"] for record in records if "median_s" in record}
    if not timed:
        return memory_table(document)
    baselines = [mode for mode in BASELINES if mode in timed]
    header = ["mode", "ms", "quartiles ms", "samples/s", *(f"× {BASELINES[m]}" for m in baselines)]
    rows = []
    for record in records:
        if record["mode"] not in timed:
            rows.append([record["words"], "failed", *[None] * (len(header) - 2)])
            continue
        ratios = record["speedup_over"]
        rows.append(
            [
                record["words"],
                record["median_s"] * 1e3,
                f"{record['q25_s'] * 1e3:.0f}–{record['q75_s'] * 1e3:.0f}",
                record["samples_per_s"],
                *(1.0 if mode == record["mode"] else ratios[mode] for mode in baselines),
            ]
        )
    return f"{_what(a)}: {conditions(document)}.\n\n{markdown(header, rows)}"


def _what(a: dict[str, Any]) -> str:
    return f"**{a['model']}**, batch {a['batch']}, {a['size']} pixels, a training iteration"


def memory_table(document: Document) -> str:
    """Memory of a network's iteration by mode, in MB (10**6 bytes)."""
    header = ["mode", "peak of an iteration MB", "kept by all convolutions MB",
              "without the first MB", "of fp32's"]  # fmt: skip
    rows = []
    reference = next((r for r in document["records"] if r["mode"] == "fp32"), {})
    fp32 = _kept(reference).get("int8_layers")
    for record in document["records"]:
        kept = _kept(record)
        own = kept.get("int8_layers")
        values = [record.get("memory", {}).get("iteration"), kept.get("convolutions"), own]
        share = own / fp32 if own and fp32 else None
        rows.append([record["words"], *(None if v is None else v / 1e6 for v in values), share])
    title = f"{_what(document['arguments'])}, memory"
    return f"{title}: {conditions(document)}.\n\n{markdown(header, rows)}"


def _kept(record: dict[str, Any]) -> dict[str, int]:
    return record.get("memory", {}).get("saved_for_backward") or {}


def ops_table(document: Document) -> str:
    """Sums over each set's layers, by type of the float operands, scope and product."""
    header = ["set", "float type", "scope", "product", "layers", "ms", "fp32 ms", "bf16 ms",
              "Gop/s", "of peak", "× fp32", "× bf16"]  # fmt: skip
    rows = []
    for entry in document["totals"]:
        if not entry["layers_measured"]:
            continue
        peak, layers = document["peak_gops"].get(entry["backend"]), entry["layers"]
        whole = entry["layers_measured"] == layers
        rows.append(
            [
                *(entry[name] for name in ("set", "dtype", "scope", "product")),
                layers if whole else f"{entry['layers_measured']} of {layers}",
                *(None if entry[n] is None else entry[n] * 1e3
                  for n in ("daq_mm_s", "fp32_s", "bf16_s")),
                entry["gops"],
                f"{entry['gops'] / peak:.0%}" if peak else None,
                entry["speedup_fp32"],
                entry["speedup_bf16"],
            ]
        )  # fmt: skip
    sets = ", ".join(dict.fromkeys(entry["set"] for entry in document["totals"]))
    peaks = ", ".join(f"{name} {gops:.0f}" for name, gops in document["peak_gops"].items() if gops)
    return (
        f"**{sets}**, batch {document['arguments']['batch']}, sums over the layers without the "
        f"first: {conditions(document)}; peak in Gop/s: {peaks}.\n\n{markdown(header, rows)}"
    )


def layers_table(document: Document) -> str:
    """Products alone by kind and size of layer: share of the peak, and what a roofline allows.

    The roofline is that of the record: its peak, and its copy's rate beyond the caches with every
    operand and result moved once. Results that stay in the last-level cache can be above it.

    Raises:
        ValueError: a record without layers, or of several backends.
    """
    records = [r for r in document.get("records", []) if r.get("op") in PRODUCTS and not r["first"]]
    backends = sorted({r["backend"] for r in records} - {"torch"})
    if len(backends) != 1:
        raise ValueError(f"a table of layers needs products of one backend, found {backends}")
    peak, bandwidth = document["peak_gops"][backends[0]], document["bandwidth_gbps"]
    # grad-weight has float32 results whatever the operands' type.
    chosen = {
        (r["layer"], r["op"]): r
        for r in sorted(records, key=lambda r: r["dtype"] == "bf16")
        if r["backend"] == backends[0] and "median_s" in r
    }
    sums: dict[str, dict[str, list[float]]] = {}
    for (_, op), r in chosen.items():
        ideal = r["operations"] / peak / 1e9
        bound = max(ideal, r["bytes"] / bandwidth / 1e9)
        added = (1, r["median_s"], ideal, bound)
        group = sums.setdefault(_kind(r), {})
        before = group.get(op, [0.0] * 4)
        group[op] = [a + r["count"] * b for a, b in zip(before, added, strict=True)]
    header = ["layers", "number"]
    header += [f"{op.replace('_', '-')} {what}" for op in PRODUCTS for what in ("ms", "of peak")]
    header += ["roofline allows"]
    rows = []
    for kind, ops in sorted(sums.items()):
        cells: list[Any] = []
        for op in PRODUCTS:
            _, spent, ideal, _ = ops.get(op, [0.0] * 4)
            cells += [spent * 1e3, f"{ideal / spent:.0%}"] if spent else [None, None]
        allowed = [f"{ideal / bound:.0%}" for _, _, ideal, bound in ops.values()]
        rows.append([kind, int(next(iter(ops.values()))[0]), *cells, " / ".join(allowed)])
    name = ", ".join(document["arguments"]["sets"])
    return (
        f"**{name}**, batch {document['arguments']['batch']}, products alone, bfloat16 results "
        f"(float32 for grad-weight), output size behind the kernel's: {conditions(document)}; peak "
        f"{peak:.0f} Gop/s, copy {bandwidth:.0f} GB/s.\n\n{markdown(header, rows)}"
    )


def _kind(r: dict[str, Any]) -> str:
    """Kernel, stride and output size of a layer, sorted by size."""
    kernel, stride = r["w_size"][2:], r["stride"]
    rank = len(kernel)
    pads = [r["padding"][i] + r["padding"][rank + i] for i in range(rank)]
    size = [
        (r["x_size"][2 + i] + pads[i] - r["dilation"][i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i in range(rank)
    ]
    kind = "" if r["groups"] == 1 else "depthwise " if r["w_size"][1] == 1 else "grouped "
    kind += "×".join(map(str, kernel)) + (f" /{stride[-1]}" if stride[-1] > 1 else "")
    return f"{kind}, {'×'.join(map(str, size))}"


#: The products alone of bench_ops.
PRODUCTS = ("forward", "grad_input", "grad_weight")

#: By the tool of a record, in the order of the tables.
TABLES = {"bench_train.py": train_table, "bench_ops.py": ops_table}


def main(argv: list[str] | None = None) -> int:
    """Write (or check) the tables."""
    args = parse_args(argv)
    try:
        documents = [load(path) for path in args.records]
        makers = {"bench_ops.py": layers_table} if args.layers else TABLES
        tables = [
            table(document)
            for tool, table in makers.items()
            for document in documents
            if document["tool"] == tool
        ]
        text = "\n\n".join(tables)
        files = {args.out / f"{args.name}.md": text + "\n"}
        files |= {path: spliced(path, args.name, text) for path in args.splice}
    except ValueError as error:
        sys.exit(f"collect_speed.py: {error}")
    stale = write_or_check(files, check=args.check)
    if args.check:
        for path in stale:
            print(f"out of date: {path}")
        return 1 if stale else 0
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
