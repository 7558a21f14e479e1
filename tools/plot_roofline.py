"""Draws a roofline from records of bench_ops: Gop/s against operations a byte.

    python tools/plot_roofline.py results/ops.json -o results/roofline.png

One point a layer and product; its area grows with the layer's share of the time. The roof is
the INT8 peak and the copy bandwidth that were measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

#: Products that are drawn: op, label, marker.
PRODUCTS = {
    "forward": ("forward", "o"),
    "grad_input": ("grad-input", "s"),
    "grad_weight": ("grad-weight", "^"),
    "conv_forward": ("forward, quantization included", "o"),
    "conv_backward": ("backward, quantization included", "D"),
    "backward": ("backward", "D"),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of this tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="JSON that bench_ops wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a .png, .svg or .pdf")
    parser.add_argument("--set", default=None, dest="set_name", help="default: the first in it")
    parser.add_argument("--backend", default=None, help="default: the first of daq_mm's in it")
    parser.add_argument("--dtype", default="bf16", help="of float operands, default bf16")
    parser.add_argument(
        "--ops",
        default="forward,grad_input,grad_weight",
        help=f"of {', '.join(PRODUCTS)}; default: the three products alone",
    )
    parser.add_argument(
        "--with-torch", action="store_true", help="draw PyTorch's bf16 convolution too, hollow"
    )
    args = parser.parse_args(argv)
    args.ops = args.ops.split(",")
    for op in args.ops:
        if op not in PRODUCTS:
            parser.error(f"--ops: {op!r} is unknown; allowed: {', '.join(PRODUCTS)}")
    return args


def load(path: Path) -> dict[str, Any]:
    """Read and check a document of bench_ops.

    Raises:
        ValueError: no such file, or another tool's document.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file")
    document = json.loads(path.read_text())
    missing = [n for n in ("records", "peak_gops", "bandwidth_gbps") if n not in document]
    if missing:
        raise ValueError(f"{path} is no result of bench_ops.py: it lacks {', '.join(missing)}")
    return document


def select(document: dict[str, Any], args: argparse.Namespace) -> tuple[list[dict], str]:
    """The records to draw, daq_mm's first, and the backend's name.

    Raises:
        ValueError: a set or backend that the document lacks, or nothing to draw.
    """
    records = [entry for entry in document["records"] if "median_s" in entry]
    sets = list(dict.fromkeys(entry["set"] for entry in records))
    backends = list(dict.fromkeys(e["backend"] for e in records if e["backend"] != "torch"))
    set_name = args.set_name or (sets[0] if sets else None)
    backend = args.backend or (backends[0] if backends else None)
    for option, value, allowed in (("--set", set_name, sets), ("--backend", backend, backends)):
        if value not in allowed:
            raise ValueError(f"{option} {value!r} is not in the file; allowed: {allowed}")
    chosen = []
    for entry in records:
        if entry["set"] != set_name or entry["op"] not in args.ops:
            continue
        own = entry["backend"] == backend
        # grad_weight alone has one record, whatever the type of x.
        if own and (entry["dtype"] == args.dtype or entry["op"] == "grad_weight"):
            chosen.append(entry)
        elif args.with_torch and entry["backend"] == "torch" and entry["dtype"] == "bf16":
            chosen.append(entry)
    if not any(entry["backend"] == backend for entry in chosen):
        raise ValueError(
            f"nothing to draw: no record of {', '.join(args.ops)} on {backend} with "
            f"--dtype {args.dtype}"
        )
    return chosen, backend


def draw(document: dict[str, Any], records: list[dict], backend: str, output: Path) -> None:
    """Write the picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    colors = {op: f"C{index}" for index, op in enumerate(PRODUCTS)}
    total = sum(entry["median_s"] * entry["count"] for entry in records)
    for op, (label, marker) in PRODUCTS.items():
        for own in (True, False):
            points = [e for e in records if e["op"] == op and (e["backend"] == backend) is own]
            if not points:
                continue
            axes.scatter(
                [entry["intensity"] for entry in points],
                [entry["gops"] for entry in points],
                s=[20 + 2000 * e["median_s"] * e["count"] / total for e in points],
                marker=marker,
                facecolors=colors[op] if own else "none",
                edgecolors=colors[op],
                alpha=0.75,
                label=label if own else f"{label}, PyTorch bf16",
            )
    _draw_roof(axes, document["peak_gops"].get(backend), document["bandwidth_gbps"], records)
    versions, machine = document["versions"], document["machine"]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations a byte (each operand and result moved once)")
    axes.set_ylabel("Gop/s (a multiply-add is two)")
    axes.set_title(
        f"{records[0]['set']}, {backend}, {document['threads']} threads, "
        f"{(machine['gpus'] or [{'name': machine['cpu']}])[0]['name']}, "
        f"torch {versions['torch']}",
        fontsize=10,
    )
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(fontsize=8, loc="lower right", markerscale=0.6)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=150)
    plt.close(figure)


def _draw_roof(axes, peak: float | None, bandwidth: float, records: list[dict]) -> None:
    values = [entry["intensity"] for entry in records]
    low, high = min(values) / 2, max(values) * 2
    if peak:
        ridge = peak / bandwidth
        xs = [low, min(max(ridge, low), high), high]
        axes.plot(xs, [min(peak, x * bandwidth) for x in xs], color="black", linewidth=1)
        axes.annotate(f"{peak:.0f} Gop/s", (high, peak), ha="right", va="bottom", fontsize=8)
    else:
        axes.plot([low, high], [low * bandwidth, high * bandwidth], color="black", linewidth=1)
    axes.annotate(
        f"{bandwidth:.0f} GB/s",
        (low, low * bandwidth),
        va="bottom",
        ha="left",
        xytext=(0, 8),
        textcoords="offset points",
        fontsize=8,
    )


def main(argv: list[str] | None = None) -> int:
    """Run the tool."""
    args = parse_args(argv)
    try:
        document = load(args.results)
        records, backend = select(document, args)
    except ValueError as error:
        sys.exit(f"plot_roofline.py: {error}")
    draw(document, records, backend, args.output)
    print(f"{len(records)} points in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
