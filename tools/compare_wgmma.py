"""Compares the two ways to multiply on Hopper GPUs: wgmma with the copy engine, and mma.sync.

    python tools/compare_wgmma.py --set resnet50 --batch 128 --json results/cuda/h100/wgmma.json

For each convolution of the set, the three products run both ways on the same operands. Results
must have the same bits, or the pair is told and not timed, and the exit status is 1. Both take
turns within one run; times are medians of device time, packing of the weights included. What wgmma
cannot take runs by mma.sync both times: the two times then differ by noise alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench.networks import SHAPE_SETS, shape_set  # noqa: E402
from bench.operands import DTYPES, Operands, make_operands  # noqa: E402
from bench.shapes import ConvShape  # noqa: E402
from bench.timing import Clock, take_turns  # noqa: E402
from common.documents import markdown  # noqa: E402
from common.provenance import provenance, write_json  # noqa: E402
from daq_mm import DAQConfig, ops, wgmma_switch  # noqa: E402

PATHS = {"wgmma": True, "mma_sync": False}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of this tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    # fmt: off
    add("--set", default="resnet50", choices=SHAPE_SETS, help="a network's convolutions")
    add("--batch", type=int, default=128, help="default 128")
    add("--dtype", default="bf16", choices=tuple(DTYPES), help="of results, default bf16")
    add("--repeats", type=int, default=7, help="samples of each, default 7")
    add("--min-time", type=float, default=0.02, help="seconds of each one's samples together")
    add("--limit-seconds", type=float, default=float("inf"),
        help="begin no further shape after this time; what is left out is told")
    add("--json", type=Path, help="write records and provenance here")
    # fmt: on
    args = parser.parse_args(argv)
    for name, least in (("batch", 1), ("repeats", 1), ("min_time", 0), ("limit_seconds", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}")
    return args


def products(o: Operands, dtype: torch.dtype) -> dict[str, Callable[[], torch.Tensor]]:
    """The products of the operands; of the first layer, without grad-input."""
    g_step = o.threshold[:-1] / 127
    found = {
        "forward": lambda: ops.forward(
            o.q_x, o.x_qparams, o.q_w, o.w_step, None, **o.conv_arguments, out_dtype=dtype
        ),
        "grad_weight": lambda: ops.grad_weight(
            *(o.q_x, o.x_qparams, o.q_g, g_step),
            o.shape.geometry.w_size[2:],
            **o.conv_arguments,
            out_dtype=torch.float32,
        ),
    }
    if not o.shape.first:
        found["grad_input"] = lambda: ops.grad_input(
            o.q_g, o.q_w_input, o.input_step, o.q_x.shape, **o.conv_arguments, out_dtype=dtype
        )
    return found


def along(path: str, use: Callable[[bool], bool], work: Callable[[], Any]) -> Callable[[], Any]:
    """Work that runs by a path, and leaves the switch as it was."""

    def run() -> Any:
        before = use(PATHS[path])
        try:
            return work()
        finally:
            use(before)

    return run


def compare(
    shape: ConvShape, args: argparse.Namespace, device: str, use: Callable[[bool], bool]
) -> list[dict[str, Any]]:
    """A record for each product of a shape: medians by path, or 'error'.

    Args:
        use: says whether wgmma may be used and returns what was said before.
    """
    operands = make_operands(
        shape, config=DAQConfig.make("daq"), dtypes=(args.dtype,), device=device
    )
    records = []
    for op, work in products(operands, DTYPES[args.dtype]).items():
        record: dict[str, Any] = {**shape.fields(), "op": op, "dtype": args.dtype}
        ways = {path: along(path, use, work) for path in PATHS}
        with torch.no_grad():
            results = [way() for way in ways.values()]
            if not torch.equal(*results):
                differ = int((results[0] != results[1]).sum())
                record["error"] = f"{differ} of {results[0].numel()} results differ"
            else:
                times = take_turns(
                    ways, repeats=args.repeats, min_time=args.min_time, clock=Clock(device)
                )
                for path, summary in times.items():
                    record[path] = {
                        **summary.fields(),
                        "tops": 2 * shape.macs / summary.median_s / 1e12,
                    }
                record["speedup"] = times["mma_sync"].median_s / times["wgmma"].median_s
        records.append(record)
    return records


def table(records: list[dict[str, Any]]) -> str:
    """The records as Markdown."""
    header = ["layer", "layers", "op", "wgmma µs", "mma.sync µs", "wgmma TOP/s", "speed-up"]
    rows = [
        [r["layer"], r["count"], r["op"], r["wgmma"]["median_s"] * 1e6,
         r["mma_sync"]["median_s"] * 1e6, r["wgmma"]["tops"], r["speedup"]]
        for r in records if "error" not in r
    ]  # fmt: skip
    return markdown(header, rows)


def run(
    args: argparse.Namespace, device: str, use: Callable[[bool], bool], about: dict[str, Any]
) -> int:
    """Compare all shapes; 1 if results differ. about: of the device, for the document."""
    torch.manual_seed(0)
    begin = time.monotonic()
    document = {**provenance(vars(args)), **about, "left_out": [], "records": []}
    for shape in shape_set(args.set, batch=args.batch):
        if time.monotonic() - begin > args.limit_seconds:
            document["left_out"].append(shape.fields())
            continue
        document["records"] += compare(shape, args, device, use)
        if args.json:
            write_json(args.json, document)
    print(table(document["records"]))
    failed = [record for record in document["records"] if "error" in record]
    for record in failed:
        print(f"FAILED {record['layer']}: {record['op']}: {record['error']}", file=sys.stderr)
    return 1 if failed else 0


def missing_wgmma(has: Callable[[], bool]) -> str:
    """Why there is nothing to compare; empty if there is. has: the op `has_wgmma`."""
    if wgmma_switch.is_off():
        return f"{wgmma_switch.VARIABLE}=0 switches wgmma off"
    if has():
        return ""
    return (
        "this build has no kernels of wgmma, so both ways would be mma.sync: rebuild with "
        "TORCH_CUDA_ARCH_LIST=9.0a, or without that variable"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the tool; 1 if the two ways differ."""
    args = parse_args(argv)
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        sys.exit("compare_wgmma.py: needs a GPU of compute capability 9.0 (Hopper)")
    if not ops.kernels_built("cuda")[0]:
        sys.exit(f"compare_wgmma.py: {ops.kernels_built('cuda')[1]}")
    if reason := missing_wgmma(torch.ops.daq_mm.has_wgmma):
        sys.exit(f"compare_wgmma.py: {reason}")
    about = {"card": torch.cuda.get_device_name()}
    return run(args, "cuda", torch.ops.daq_mm.use_wgmma, about)


if __name__ == "__main__":
    sys.exit(main())
