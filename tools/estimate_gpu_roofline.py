"""Estimates a training step's time on a GPU from counted work: a roofline on paper.

    python tools/estimate_gpu_roofline.py --model resnet50 --batch 256 --out results/cuda

Nothing is measured. For each convolution and its batch norm and ReLU, every launch's bytes and
multiply-adds are counted as `csrc/cuda` and PyTorch's eager kernels read and write them; a launch
takes the longer of its bytes at the bandwidth and its arithmetic at the peak. Left out: launch
gaps, residual adds, pooling, the classifier, the optimizer, caches, packing of weights, and how far
from peak a kernel stays: the INT8 rate is that of warpgroup products, which grad-weight, by its
traffic through shared memory, reaches to 57 or 73 % (csrc/cuda/README.md). So the times are lower
bounds, and ratios say what a data flow could win.

Writes estimate_<model>_<device>.json and .md.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench.networks import SHAPE_SETS, shape_set  # noqa: E402
from bench.report import markdown  # noqa: E402
from bench.shapes import ConvShape  # noqa: E402
from common.provenance import provenance, write_json  # noqa: E402


@dataclass(frozen=True)
class Device:
    """Rates of a GPU: what the estimate divides by.

    Attributes:
        name: for titles.
        bandwidth_gbps: reads and writes together.
        bf16_tflops: dense matrix products, 2 operations a multiply-add.
        int8_tops: the same of 8-bit integers.
        source: where the rates are from.
    """

    name: str
    bandwidth_gbps: float
    bf16_tflops: float
    int8_tops: float
    source: str


DEVICES = {
    "h200": Device(
        "H200 class", 4300, 790, 1580,
        "copy and bf16 product as once seen on an H200; INT8 taken for twice bf16",
    ),
    "h100": Device(
        "H100 SXM class", 3000, 790, 1580,
        "data sheet's 3350 GB/s scaled as the H200's copy to its data sheet (4300 / 4800); "
        "arithmetic as the H200's",
    ),
}  # fmt: skip

#: Bytes of a bfloat16 value and of an 8-bit one; bits of a mask.
_BF16, _INT8, _MASK = 2, 1, 1 / 8


@dataclass(frozen=True)
class Launch:
    """One kernel's work: bytes read and written, and multiply-adds in 8-bit or bfloat16."""

    op: str
    bytes: float
    macs: int = 0
    int8: bool = False

    def seconds(self, device: Device) -> float:
        """The longer of moving the bytes and computing."""
        rate = device.int8_tops if self.int8 else device.bf16_tflops
        arithmetic = 2 * self.macs / (rate * 1e12)
        return max(self.bytes / (device.bandwidth_gbps * 1e9), arithmetic)


@dataclass(frozen=True)
class Counts:
    """Values of a layer's tensors: input, output, weight."""

    x: int
    y: int
    w: int
    macs: int

    @classmethod
    def of(cls, shape: ConvShape) -> Counts:
        g = shape.geometry
        return cls(math.prod(g.x_size), math.prod(g.out_size), math.prod(g.w_size), shape.macs)


def _bf16_convolutions(c: Counts, first: bool) -> Iterator[Launch]:
    yield Launch("forward", _BF16 * (c.x + c.y + c.w), c.macs)
    if not first:
        yield Launch("grad_input", _BF16 * (c.y + c.x + c.w), c.macs)
    yield Launch("grad_weight", _BF16 * (c.y + c.x + c.w), c.macs)


def _eager_glue(c: Counts) -> Iterator[Launch]:
    """PyTorch's batch norm and ReLU: statistics and normalising, each its own pass."""
    yield Launch("norm_statistics", _BF16 * c.y)
    yield Launch("norm_apply", 2 * _BF16 * c.y)
    yield Launch("relu", 2 * _BF16 * c.y)
    yield Launch("relu_backward", 3 * _BF16 * c.y)
    yield Launch("norm_backward_reduce", 2 * _BF16 * c.y)
    yield Launch("norm_backward_apply", 3 * _BF16 * c.y)


def bf16_eager(c: Counts, first: bool) -> Iterator[Launch]:
    """Convolutions, batch norm and ReLU in bfloat16, each its own kernels."""
    yield from _bf16_convolutions(c, first)
    yield from _eager_glue(c)


def int8_layers(c: Counts, first: bool) -> Iterator[Launch]:
    """conv_forward, update_thresholds and conv_backward; bfloat16 eager glue between them."""
    if first:
        yield from bf16_eager(c, first)
        return
    yield Launch("quantize_x: extremes", _BF16 * c.x)
    yield Launch("quantize_x: bytes", (_BF16 + _INT8) * c.x)
    yield Launch("forward", _INT8 * (c.x + c.w) + _BF16 * c.y, c.macs, int8=True)
    yield Launch("update_thresholds", _BF16 * c.y)
    yield Launch("quantize_g", (_BF16 + _INT8) * c.y)
    yield Launch("grad_input", _INT8 * (c.y + c.w) + _BF16 * c.x, c.macs, int8=True)
    yield Launch("grad_weight", _INT8 * (c.y + c.x) + 4 * c.w, c.macs, int8=True)
    yield from _eager_glue(c)


def int8_fused(c: Counts, first: bool) -> Iterator[Launch]:
    """The glue ops: 8-bit operands between convolutions, y kept as 8-bit codes.

    The backward pass is that of a gradient for which the discriminator is not due (49 of 50).
    """
    kept = yield from _fused_without_gradient(c, first)
    yield Launch("norm_backward_maxima", _BF16 * c.y + kept)
    yield Launch("norm_backward_quantize", (_BF16 + _INT8) * c.y + kept)


def int8_fused_values(c: Counts, first: bool) -> Iterator[Launch]:
    """The same where the gradient's values are needed: discriminator due, or a CUDA graph."""
    kept = yield from _fused_without_gradient(c, first)
    yield Launch("norm_backward_apply", 2 * _BF16 * c.y + kept)
    if not first:
        yield Launch("update_thresholds", _BF16 * c.y)
        yield Launch("quantize_g", (_BF16 + _INT8) * c.y)


def _fused_without_gradient(c: Counts, first: bool) -> Iterator[Launch]:
    """All but what makes the 8-bit gradient; returns the bytes that its sweeps read beside it."""
    kept = (_INT8 + _MASK) * c.y  # codes and mask, as the backward passes read them
    if first:
        yield from _bf16_convolutions(c, first)
    else:
        yield Launch("conv_forward_stats", _INT8 * (c.x + c.w) + _BF16 * c.y, c.macs, int8=True)
        yield Launch("grad_input", _INT8 * (c.y + c.w) + _BF16 * c.x, c.macs, int8=True)
        yield Launch("grad_weight", _INT8 * (c.y + c.x) + 4 * c.w, c.macs, int8=True)
    yield Launch("norm_act_forward", (_BF16 + _INT8) * c.y + kept)
    if first:  # whose output pooling reads
        yield Launch("norm_act_reduce", _BF16 * c.y + kept)
    else:  # in the epilogue of the next convolution's grad-input, which has the gradient at hand
        yield Launch("grad_input_reduce: codes, mask", kept)
    return kept


FLOWS = {
    "bf16 eager": bf16_eager,
    "int8 layers": int8_layers,
    "int8 fused": int8_fused,
    "int8 fused, values": int8_fused_values,
}

#: What a convolution's product costs with the quantization that it needs, by the ops' names; the
#: gradient is quantized once, which counts as grad-input's.
PRODUCTS = {
    "forward": ("quantize_x: extremes", "quantize_x: bytes", "forward", "conv_forward_stats"),
    "grad-input": ("update_thresholds", "quantize_g", "grad_input"),
    "grad-weight": ("grad_weight",),
}


def estimate(shapes: list[ConvShape], device: Device) -> list[dict[str, Any]]:
    """A record for each layer and flow, times the layer's count, with its launches."""
    records = []
    for shape in shapes:
        for flow, launches_of in FLOWS.items():
            launches = list(launches_of(Counts.of(shape), shape.first))
            records.append(
                {
                    **shape.fields(),
                    "flow": flow,
                    "bytes": shape.count * sum(launch.bytes for launch in launches),
                    "estimated_s": shape.count * sum(x.seconds(device) for x in launches),
                    "launches": [
                        {**asdict(launch), "estimated_s": launch.seconds(device)}
                        for launch in launches
                    ],
                }
            )
    return records


def totals(records: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Sums over the layers: bytes, seconds, and the part of them that arithmetic bounds."""
    found = {}
    for flow in FLOWS:
        own = [record for record in records if record["flow"] == flow]
        found[flow] = {
            "bytes": sum(record["bytes"] for record in own),
            "estimated_s": sum(record["estimated_s"] for record in own),
            "products_s": sum(
                record["count"] * launch["estimated_s"]
                for record in own
                for launch in record["launches"]
                if launch["macs"]
            ),
        }
    return found


def by_product(records: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Seconds of each product by flow, over the layers: with quantization, and of it alone.

    Of the unfused flows: in the fused ones quantization is a part of other ops.
    """
    found: dict[str, dict[str, float]] = {}
    for product, names in PRODUCTS.items():
        for flow in ("bf16 eager", "int8 layers"):
            launches = [
                (launch["op"], record["count"] * launch["estimated_s"])
                for record in records
                if record["flow"] == flow
                for launch in record["launches"]
            ]
            all_of_it = sum(seconds for op, seconds in launches if op in names)
            alone = sum(seconds for op, seconds in launches if op == product.replace("-", "_"))
            found.setdefault(product, {})[flow] = all_of_it
            found[product][f"{flow}, product alone"] = alone
    return found


def tables(document: dict[str, Any], shapes: list[ConvShape]) -> str:
    """The estimate as Markdown."""
    device, a = document["device"], document["arguments"]
    rows = [
        [flow, t["bytes"] / 1e9, t["products_s"] * 1e3, t["estimated_s"] * 1e3,
         document["totals"]["bf16 eager"]["estimated_s"] / t["estimated_s"]]
        for flow, t in document["totals"].items()
    ]  # fmt: skip
    header = ["data flow", "GB moved", "ms in products", "ms", "× bf16 eager"]
    text = [
        f"# Estimate, not a measurement: {a['model']}, batch {a['batch']}, {device['name']}",
        f"Counted by `tools/estimate_gpu_roofline.py`, which says what is left out; no GPU ran "
        f"this. Rates: {device['bandwidth_gbps']} GB/s, {device['bf16_tflops']} bf16 TFLOP/s, "
        f"{device['int8_tops']} INT8 TOP/s ({device['source']}).",
        markdown(header, rows),
        "`int8 fused`: where the discriminator is not due, 49 gradients of 50; `values`: where it "
        "is, and in a CUDA graph, which cannot choose.",
        "## By product: estimated ms, all layers together, unfused ops",
        _product_table(document["products"]),
        "Quantization of the input counts as forward's, that of the gradient as grad-input's. The "
        "fused flow's forward is the product alone: what was before it wrote the 8-bit operand.",
        "## By layer: estimated ms, all of its kind together",
    ]
    layers = []
    for shape in shapes:
        own = {
            r["flow"]: r["estimated_s"] * 1e3
            for r in document["records"]
            if r["layer"] == shape.name
        }
        layers.append([shape.name, str(shape), shape.count, *(own[flow] for flow in FLOWS)])
    text.append(markdown(["first of its kind", "shape", "layers", *FLOWS], layers))
    return "\n\n".join(text) + "\n"


def _product_table(products: dict[str, dict[str, float]]) -> str:
    rows = []
    for product, seconds in products.items():
        bf16, int8 = seconds["bf16 eager"], seconds["int8 layers"]
        alone = seconds["int8 layers, product alone"]
        rows.append([product, bf16 * 1e3, int8 * 1e3, bf16 / int8, alone * 1e3, bf16 / alone])
    header = ["product", "bf16", "INT8 with quantization", "× bf16", "INT8 product alone", "× bf16"]
    return markdown(header, rows)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of this tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet50", choices=SHAPE_SETS)
    parser.add_argument("--batch", type=int, default=256, help="default 256")
    parser.add_argument("--device", default="h200", choices=tuple(DEVICES), help="default h200")
    parser.add_argument("--out", type=Path, required=True, help="folder of the two files")
    args = parser.parse_args(argv)
    if args.batch < 1:
        parser.error("--batch must be at least 1")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the tool."""
    args = parse_args(argv)
    device = DEVICES[args.device]
    shapes = shape_set(args.model, batch=args.batch)
    records = estimate(shapes, device)
    document = {
        "kind": "estimate from counts, not a measurement",
        **provenance(vars(args)),
        "device": asdict(device),
        "totals": totals(records),
        "products": by_product(records),
        "records": records,
    }
    name = f"estimate_{args.model}_{args.device}"
    write_json(args.out / f"{name}.json", document)
    text = tables(document, shapes)
    (args.out / f"{name}.md").write_text(text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
