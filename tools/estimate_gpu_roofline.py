"""Estimates a training step's time on a GPU from counted work: a roofline on paper.

    python tools/estimate_gpu_roofline.py --model resnet50 --batch 256 --out results/cuda

Nothing is measured. For each convolution with a batch norm and a ReLU (which those of shortcuts do
not have in fact), every launch's bytes and multiply-adds are counted as `csrc/cuda` and PyTorch's
eager kernels read and write them; a launch takes the longer of its bytes at the bandwidth and its
arithmetic at the peak. Left out: launch gaps (with them the launches of a CUDA graph that find
nothing to do), residual adds, pooling, the classifier, the optimizer, caches, packing of weights,
and how far from peak a kernel stays: the INT8 rate is that of warpgroup products, which
grad-weight, by its traffic through shared memory, reaches to 57 or 73 % (csrc/cuda/README.md). So
the times are lower bounds, and ratios say what a data flow could win. Of memory, what the layers
keep for their backward passes is counted.

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
        fp32_tflops: outside of the tensor cores (no TF32), 2 operations a multiply-add.
        bf16_tflops: dense matrix products.
        int8_tops: the same of 8-bit integers.
        source: where the rates are from.
    """

    name: str
    bandwidth_gbps: float
    fp32_tflops: float
    bf16_tflops: float
    int8_tops: float
    source: str


DEVICES = {
    "h200": Device(
        "H200 class", 4300, 67, 790, 1580,
        "copy and bf16 product as once seen on an H200; INT8 taken for twice bf16; fp32 from the "
        "data sheet",
    ),
    "h100": Device(
        "H100 SXM class", 3000, 67, 790, 1580,
        "data sheet's 3350 GB/s scaled as the H200's copy to its data sheet (4300 / 4800); "
        "arithmetic as the H200's",
    ),
}  # fmt: skip

#: Bytes of a float32 value, a bfloat16 one, an 8-bit one, and of a mask's bit.
_FP32, _BF16, _INT8, _MASK = 4, 2, 1, 1 / 8


@dataclass(frozen=True)
class Launch:
    """One kernel's work: bytes read and written, and multiply-adds of values of so many bytes."""

    op: str
    bytes: float
    macs: int = 0
    value: int = _BF16

    def seconds(self, device: Device) -> float:
        """The longer of moving the bytes and computing."""
        rates = {_FP32: device.fp32_tflops, _BF16: device.bf16_tflops, _INT8: device.int8_tops}
        arithmetic = 2 * self.macs / (rates[self.value] * 1e12)
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


def _float_convolutions(c: Counts, first: bool, size: int) -> Iterator[Launch]:
    yield Launch("forward", size * (c.x + c.y + c.w), c.macs, size)
    if not first:
        yield Launch("grad_input", size * (c.y + c.x + c.w), c.macs, size)
    yield Launch("grad_weight", size * (c.y + c.x + c.w), c.macs, size)


def _eager_glue(c: Counts, size: int = _BF16) -> Iterator[Launch]:
    """PyTorch's batch norm and ReLU: statistics and normalising, each its own pass."""
    yield Launch("norm_statistics", size * c.y)
    yield Launch("norm_apply", 2 * size * c.y)
    yield Launch("relu", 2 * size * c.y)
    yield Launch("relu_backward", 3 * size * c.y)
    yield Launch("norm_backward_reduce", 2 * size * c.y)
    yield Launch("norm_backward_apply", 3 * size * c.y)


def fp32_eager(c: Counts, first: bool) -> Iterator[Launch]:
    """Convolutions, batch norm and ReLU in float32 without TF32, each its own kernels."""
    yield from _float_convolutions(c, first, _FP32)
    yield from _eager_glue(c, _FP32)


def bf16_eager(c: Counts, first: bool) -> Iterator[Launch]:
    """The same in bfloat16."""
    yield from _float_convolutions(c, first, _BF16)
    yield from _eager_glue(c)


def int8_layers(c: Counts, first: bool) -> Iterator[Launch]:
    """conv_forward, update_thresholds and conv_backward; bfloat16 eager glue between them."""
    if first:
        yield from bf16_eager(c, first)
        return
    yield Launch("quantize_x: extremes", _BF16 * c.x)
    yield Launch("quantize_x: bytes", (_BF16 + _INT8) * c.x)
    yield Launch("forward", _INT8 * (c.x + c.w) + _BF16 * c.y, c.macs, _INT8)
    yield Launch("update_thresholds", _BF16 * c.y)
    yield Launch("quantize_g", (_BF16 + _INT8) * c.y)
    yield Launch("grad_input", _INT8 * (c.y + c.w) + _BF16 * c.x, c.macs, _INT8)
    yield Launch("grad_weight", _INT8 * (c.y + c.x) + 4 * c.w, c.macs, _INT8)
    yield from _eager_glue(c)


def int8_fused(c: Counts, first: bool) -> Iterator[Launch]:
    """The glue ops: 8-bit operands between convolutions, y kept as 8-bit codes.

    The backward pass is that of a gradient for which the discriminator is not due (49 of 50).
    """
    yield from _fused(c, first, ("norm_backward_maxima",))


def int8_fused_due(c: Counts, first: bool) -> Iterator[Launch]:
    """The same where the discriminator is due: two passes more compute the gradient again."""
    passes = ("maxima", "moments", "tails")
    yield from _fused(c, first, tuple(f"norm_backward_thresholds: {what}" for what in passes))


def _fused(c: Counts, first: bool, passes: tuple[str, ...]) -> Iterator[Launch]:
    """A unit, with so many passes over its gradient before the one that quantizes it.

    The first layer's convolution stays in bfloat16, and pooling reads the unit's output.
    """
    codes_and_mask = (_INT8 + _MASK) * c.y
    if first:
        yield from _float_convolutions(c, first, _BF16)
        yield Launch("stats_of", _BF16 * c.y)
        yield Launch("norm_act_forward", 2 * _BF16 * c.y + codes_and_mask)
        yield Launch("norm_act_reduce", _BF16 * c.y + codes_and_mask)
        yield Launch("norm_backward_apply", 2 * _BF16 * c.y + codes_and_mask)
        return
    yield Launch("conv_forward_stats", _INT8 * (c.x + c.w) + _BF16 * c.y, c.macs, _INT8)
    yield Launch("norm_act_forward", (_BF16 + _INT8) * c.y + codes_and_mask)
    # In the epilogue of the next convolution's grad-input, which has the gradient at hand; it
    # masks it, so that what follows reads no mask.
    yield Launch("grad_input_reduce: codes, mask", codes_and_mask)
    for name in passes:
        yield Launch(name, (_BF16 + _INT8) * c.y)
    yield Launch("norm_backward_quantize", (_BF16 + 2 * _INT8) * c.y)
    yield Launch("grad_input", _INT8 * (c.y + c.w) + _BF16 * c.x, c.macs, _INT8)
    yield Launch("grad_weight", _INT8 * (c.y + c.x) + 4 * c.w, c.macs, _INT8)


FLOWS = {
    "fp32 eager": fp32_eager,
    "bf16 eager": bf16_eager,
    "int8 layers": int8_layers,
    "int8 fused": int8_fused,
    "int8 fused, due": int8_fused_due,
}

#: Bytes that a layer keeps for the backward pass, a value of its output: batch norm's input and the
#: ReLU's output, which is the next convolution's input; for INT8 layers that input in 8 bits beside
#: it. Fused: codes of batch norm's input, the next convolution's input, a mask.
KEPT = {
    "fp32 eager": 2 * _FP32,
    "bf16 eager": 2 * _BF16,
    "int8 layers": 2 * _BF16 + _INT8,
    "int8 fused": 2 * _INT8 + _MASK,
    "int8 fused, due": 2 * _INT8 + _MASK,
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
            counts = Counts.of(shape)
            launches = list(launches_of(counts, shape.first))
            records.append(
                {
                    **shape.fields(),
                    "flow": flow,
                    "kept_bytes": shape.count * KEPT[flow] * counts.y,
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
    """Sums over the layers: bytes moved and kept, seconds, and those of the products in them."""
    found = {}
    for flow in FLOWS:
        own = [record for record in records if record["flow"] == flow]
        found[flow] = {
            "bytes": sum(record["bytes"] for record in own),
            "kept_bytes": sum(record["kept_bytes"] for record in own),
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
    all_of = document["totals"]
    rows = [
        [flow, t["bytes"] / 1e9, t["products_s"] * 1e3, t["estimated_s"] * 1e3,
         *(all_of[base]["estimated_s"] / t["estimated_s"] for base in ("fp32 eager", "bf16 eager")),
         t["kept_bytes"] / 1e9, t["kept_bytes"] / all_of["bf16 eager"]["kept_bytes"]]
        for flow, t in all_of.items()
    ]  # fmt: skip
    header = ["data flow", "GB moved", "ms in products", "ms", "× fp32 eager", "× bf16 eager",
              "GB kept for backward", "of bf16 eager"]  # fmt: skip
    text = [
        f"# Estimate, not a measurement: {a['model']}, batch {a['batch']}, {device['name']}",
        f"Counted by `tools/estimate_gpu_roofline.py`, which says what is left out; no GPU ran "
        f"this. Rates: {device['bandwidth_gbps']} GB/s, {device['fp32_tflops']} fp32 and "
        f"{device['bf16_tflops']} bf16 TFLOP/s, {device['int8_tops']} INT8 TOP/s "
        f"({device['source']}).",
        markdown(header, rows),
        "`int8 fused`: where the discriminator is not due, 49 gradients of 50; `due`: where it is. "
        "What is kept is not all of a step's peak: weights, gradients, the optimizer's state and "
        "workspaces come on top of each.",
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
