"""Records of bench_ops: rates, ratios within a shape, sums over a network, Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from common.documents import markdown

from .candidates import BASELINE, Candidate
from .shapes import ConvShape
from .timing import Summary

Record = dict[str, Any]

_ALONE = {
    "forward": [("forward", "forward")],
    "grad-input": [("grad_input", "grad_input")],
    "grad-weight": [("grad_weight", "grad_weight")],
}
_LAYER = {
    "forward": [("conv_forward", "forward")],
    "grad-input": [("conv_grad_input", "grad_input")],
    "grad-weight": [("conv_grad_weight", "grad_weight")],
    "backward": [("conv_backward", "backward")],
}
#: Sums over a network by scope and product: the pairs (daq_mm's op, PyTorch's op) in each.
TOTALS = {
    "kernels alone": {**_ALONE, "all three": [pair for row in _ALONE.values() for pair in row]},
    "quantization included": {
        **_LAYER,
        "forward and backward": [*_LAYER["forward"], *_LAYER["backward"]],
    },
}


def record(shape: ConvShape, candidate: Candidate, summary: Summary, set_name: str) -> Record:
    """One measurement; `add_ratios` fills in what needs the others of its shape.

    'gops' is 0 for an op without a product. 'intensity' is in operations a byte.
    """
    operations = 2 * shape.macs * candidate.products
    seconds = summary.median_s
    return {
        "set": set_name,
        **shape.fields(),
        "op": candidate.op,
        "backend": candidate.backend,
        "dtype": candidate.dtype,
        **summary.fields(),
        "operations": operations,
        "bytes": candidate.bytes,
        "gops": operations / seconds / 1e9,
        "gbps": candidate.bytes / seconds / 1e9,
        "intensity": operations / candidate.bytes if candidate.bytes else 0.0,
        "speedup_fp32": None,
        "speedup_bf16": None,
        "peak_share": None,
    }


def add_ratios(records: list[Record], peaks: dict[str, float | None]) -> None:
    """Fill in speed-ups over PyTorch and the share of the peak, for the records of one shape.

    Args:
        records: of one shape, in place. A speed-up is PyTorch's median over the op's.
        peaks: Gop/s by backend.
    """
    baselines = {
        (entry["op"], entry["dtype"]): entry["median_s"]
        for entry in records
        if entry["backend"] == "torch"
    }
    for entry in records:
        if entry["backend"] == "torch":
            continue
        for dtype in ("fp32", "bf16"):
            baseline = baselines.get((BASELINE.get(entry["op"]), dtype))
            if baseline is not None:
                entry[f"speedup_{dtype}"] = baseline / entry["median_s"]
        peak = peaks.get(entry["backend"])
        if peak and entry["operations"]:
            entry["peak_share"] = entry["gops"] / peak


def totals(records: list[Record], shapes: Iterable[ConvShape], set_name: str) -> list[Record]:
    """Sums over a network, each shape times its multiplicity.

    The network's first convolution is left out: `convert_model` leaves it in floating point.
    A sum is made only of shapes whose ops were all timed; 'layers' and 'layers_measured' say
    whether that was all of them.
    """
    shapes = [shape for shape in shapes if not shape.first]
    times: dict[tuple, float] = {}
    for entry in records:
        if "median_s" in entry and entry["set"] == set_name:
            times[(entry["op"], entry["backend"], entry["dtype"], *_identity(entry))] = entry[
                "median_s"
            ]
    runs = dict.fromkeys(
        (entry["backend"], entry["dtype"])
        for entry in records
        if entry["set"] == set_name and entry.get("backend") not in (None, "torch")
    )
    return [
        {
            "set": set_name,
            "backend": backend,
            "dtype": dtype,
            "scope": scope,
            "product": product,
            **_total(times, shapes, backend, dtype, pairs),
        }
        for backend, dtype in runs
        for scope, products in TOTALS.items()
        for product, pairs in products.items()
    ]


def _identity(entry: Record) -> tuple:
    sizes = (entry[name] for name in ("x_size", "w_size", "stride", "padding", "dilation"))
    return (*map(tuple, sizes), entry["groups"], entry["unsigned"], entry["first"])


def _total(
    times: dict[tuple, float],
    shapes: list[ConvShape],
    backend: str,
    dtype: str,
    pairs: list[tuple[str, str]],
) -> Record:
    """Sum of each side over the shapes that have every time; a side without any is None."""
    sums: dict[str, float] = {}
    measured, operations = 0, 0
    for shape in shapes:
        identity = _identity(shape.fields())
        # grad_weight has one record: its result has the weight's type whatever x has.
        own = [
            times.get((op, backend, "fp32" if op == "grad_weight" else dtype, *identity))
            for op, _ in pairs
        ]
        sides = {"daq_mm_s": own}
        for name in ("fp32", "bf16"):
            sides[f"{name}_s"] = [times.get((op, "torch", name, *identity)) for _, op in pairs]
        if None in own:
            continue
        measured += shape.count
        products = sum(2 if op == "backward" else 1 for _, op in pairs)
        operations += 2 * shape.macs * shape.count * products
        for side, seconds in sides.items():
            if None not in seconds:
                sums[side] = sums.get(side, 0.0) + shape.count * sum(seconds)
    own_sum = sums.get("daq_mm_s")
    return {
        "layers": sum(shape.count for shape in shapes),
        "layers_measured": measured,
        **{side: sums.get(side) for side in ("daq_mm_s", "fp32_s", "bf16_s")},
        "gops": operations / own_sum / 1e9 if own_sum else None,
        **{
            f"speedup_{name}": sums[f"{name}_s"] / own_sum if f"{name}_s" in sums else None
            for name in ("fp32", "bf16")
        },
    }


def shape_table(shape: ConvShape, records: list[Record]) -> str:
    """All measurements of one shape."""
    header = ["op", "backend", "dtype", "µs", "quartiles µs", "Gop/s", "GB/s", "of peak",
              "× fp32", "× bf16"]  # fmt: skip
    rows = []
    for entry in records:
        start = [entry["op"], entry["backend"], entry["dtype"]]
        if "error" in entry:
            rows.append([*start, f"WRONG: {entry['error']}", *[None] * 6])
            continue
        share = entry["peak_share"]
        rows.append(
            [
                *start,
                entry["median_s"] * 1e6,
                f"{entry['q25_s'] * 1e6:.0f}–{entry['q75_s'] * 1e6:.0f}",
                entry["gops"] or None,
                entry["gbps"],
                None if share is None else f"{share:.0%}",
                entry["speedup_fp32"],
                entry["speedup_bf16"],
            ]
        )
    return f"\n### {shape} ({shape.count} × {shape.name})\n\n" + markdown(header, rows)


def totals_table(entries: list[Record]) -> str:
    """The sums over a network."""
    header = ["set", "backend", "dtype", "scope", "product", "layers", "ms", "fp32 ms", "bf16 ms",
              "Gop/s", "× fp32", "× bf16"]  # fmt: skip
    rows = []
    for entry in entries:
        layers, measured = entry["layers"], entry["layers_measured"]
        rows.append(
            [
                *(entry[name] for name in ("set", "backend", "dtype", "scope", "product")),
                str(layers) if measured == layers else f"{measured} of {layers}",
                *(_ms(entry[name]) for name in ("daq_mm_s", "fp32_s", "bf16_s")),
                *(entry[name] for name in ("gops", "speedup_fp32", "speedup_bf16")),
            ]
        )
    title = "\n### Sums over each set, without a network's first convolution\n\n"
    return title + markdown(header, rows)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
