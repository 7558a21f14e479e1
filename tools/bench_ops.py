"""Times the integer ops, layer by layer, against PyTorch's fp32 and bf16 convolution.

    python tools/bench_ops.py --set resnet50 --batch 16 --json results/ops.json
    python tools/bench_ops.py --shape 16x64x56x56,64x3x3,s1,p1 --ops forward,conv_forward

Each op passes a correctness gate on the very shape before it is timed; one that fails is told
and not timed, and the exit status is 1. All candidates of a shape take turns; times are medians.
On a CPU the peak is measured again before each shape; the record has the median and each value.
On CUDA float32 means float32, not TF32, and cuDNN chooses its algorithms by measuring them.
Ops: the integer products alone (forward, grad_input, grad_weight); a layer's passes with
quantization included (conv_forward, conv_grad_input, conv_grad_weight, conv_backward);
quantize_x, quantize_g, update_thresholds, update_thresholds_measured (with the discriminator).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench import allocator, autotuning, cuda_math, machine, report  # noqa: E402
from bench.candidates import (  # noqa: E402
    BASELINE,
    LAYER_OPS,
    OPS,
    PRODUCTS,
    QUANTIZERS,
    daq_candidates,
    torch_candidates,
)
from bench.gate import WrongResult, check_layer, check_products, check_quantizers  # noqa: E402
from bench.networks import SHAPE_SETS, shape_set  # noqa: E402
from bench.operands import DTYPES, Operands, make_operands  # noqa: E402
from bench.shapes import ConvShape, parse_shape  # noqa: E402
from bench.timing import Clock, device_of, take_turns  # noqa: E402
from common.provenance import provenance, warn_if_busy, write_json  # noqa: E402
from daq_mm import DAQConfig, ops  # noqa: E402


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of this tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    # fmt: off
    add("--set", action="append", default=[], choices=SHAPE_SETS, dest="sets",
        help="a network's convolutions; may be given again; default resnet50")
    add("--shape", action="append", default=[], dest="shapes",
        help="one convolution: NxCixHxW,CoxKHxKW[,sS][,pP][,dD][,gG][,signed]")
    add("--batch", type=int, default=16, help="of the sets, default 16")
    add("--filter", default="", help="only shapes whose layer name or sizes contain this text")
    add("--ops", default="all", help="names joined by commas, default all")
    add("--dtypes", default="fp32,bf16", help="of float operands: fp32, bf16 or both (default)")
    add("--backends", default="best",
        help="CPU instruction sets: best (default), all, or names joined by commas")
    add("--recipe", default="daq", help="which grids and thresholds, default daq")
    add("--device", default="cpu", help="cpu (default) or cuda")
    add("--threads", type=int, default=None, help="default: as torch chooses")
    add("--repeats", type=int, default=7, help="samples of each candidate, default 7")
    add("--min-time", type=float, default=0.15,
        help="seconds that each candidate's samples last together, default 0.15")
    add("--limit-seconds", type=float, default=float("inf"),
        help="begin no further shape after this time; what is left out is told")
    add("--allocator", default="heap", choices=allocator.CHOICES,
        help="heap (default): no page faults for large tensors; default: as the C library does")
    add("--autotune", action="store_true", help=autotuning.HELP)
    add("--json", type=Path, help="write records and provenance here")
    # fmt: on
    args = parser.parse_args(argv)
    args.ops = _names(parser, "--ops", args.ops, OPS)
    args.dtypes = _names(parser, "--dtypes", args.dtypes, tuple(DTYPES))
    if not args.sets and not args.shapes:
        args.sets = ["resnet50"]
    for name, least in (("batch", 1), ("repeats", 1), ("min_time", 0), ("limit_seconds", 0)):
        if getattr(args, name) < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}")
    if args.threads is not None and args.threads < 1:
        parser.error("--threads must be at least 1")
    return args


def _names(parser, option: str, text: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    names = allowed if text == "all" else tuple(text.split(","))
    for name in names:
        if name not in allowed:
            parser.error(f"{option}: {name!r} is unknown; allowed: all, {', '.join(allowed)}")
    return names


class OpsBenchmark:
    """Times shapes one after the other with the settings of the command line."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.allocator = allocator.configure(args.allocator)
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        torch.manual_seed(0)
        self.device = device_of(args.device)
        self.cuda_math = cuda_math.configure(self.device)
        autotuning.start(args.autotune, self.device)
        self.config = DAQConfig.make(args.recipe)
        self.capabilities = machine.capabilities(args.backends, self.device)
        self.peak_samples: dict[str, list[float | None]] = {}
        self._measure_peaks()
        self.bandwidth = machine.copy_bandwidth(self.device)

    def _backend(self) -> str:
        return ops.backend_of(torch.empty(0, device=self.device))

    def _measure_peaks(self) -> dict[str, float | None]:
        """By backend, now: a CPU's clock changes within a run."""
        peaks = {}
        for name in self.capabilities:
            with machine.cpu_capability(name):
                peaks[self._backend()] = machine.peak_gops(self.device)
        for backend, peak in peaks.items():
            self.peak_samples.setdefault(backend, []).append(peak)
        return peaks

    @property
    def peaks(self) -> dict[str, float | None]:
        """By backend: the median of what was measured so far, None where it cannot be."""
        known = {backend: [p for p in samples if p] for backend, samples in
                 self.peak_samples.items()}  # fmt: skip
        return {backend: statistics.median(s) if s else None for backend, s in known.items()}

    def shape(self, shape: ConvShape, set_name: str) -> list[report.Record]:
        """Check and time one shape; an op that fails the gate gives a record with 'error'."""
        args = self.args
        peaks = self._measure_peaks() if self.device.type == "cpu" else self.peaks
        operands = make_operands(shape, config=self.config, dtypes=args.dtypes, device=self.device)
        candidates, errors = [], []
        for capability in self.capabilities:
            passed, failed = self._check(operands, capability)
            errors += [{"set": set_name, **shape.fields(), **failure} for failure in failed]
            for dtype in args.dtypes:
                own = daq_candidates(operands, dtype, capability)
                candidates += [c for c in own if c.op in passed]
        wanted = {BASELINE[op] for op in args.ops if op in BASELINE}
        for dtype in args.dtypes:
            candidates += torch_candidates(operands, dtype, wanted)
        with torch.no_grad():
            summaries = take_turns(
                {candidate.name: candidate.run for candidate in candidates},
                repeats=args.repeats,
                min_time=args.min_time,
                clock=Clock(self.device),
            )
        records = [report.record(shape, c, summaries[c.name], set_name) for c in candidates]
        report.add_ratios(records, peaks)
        return records + errors

    def _check(self, operands: Operands, capability: str | None) -> tuple[set[str], list[dict]]:
        """The wanted ops that passed the gate, and a failure for each family that did not."""
        passed: set[str] = set()
        failures = []
        families = ((PRODUCTS, check_products), (LAYER_OPS, check_layer),
                    (QUANTIZERS, check_quantizers))  # fmt: skip
        with machine.cpu_capability(capability):
            for family, check in families:
                wanted = set(family) & set(self.args.ops)
                if not wanted:
                    continue
                try:
                    check(operands, self.args.dtypes)
                except WrongResult as error:
                    failures += [
                        {"op": op, "backend": self._backend(), "dtype": "any",
                         "error": str(error)}
                        for op in sorted(wanted)
                    ]  # fmt: skip
                else:
                    passed |= wanted
        return passed, failures


def chosen_shapes(args: argparse.Namespace) -> dict[str, list[ConvShape]]:
    """The shapes by set; those of --shape are the set 'given'."""
    sets = {name: shape_set(name, batch=args.batch) for name in dict.fromkeys(args.sets)}
    if args.shapes:
        sets["given"] = [parse_shape(text) for text in args.shapes]
    return sets


def measure(
    args: argparse.Namespace, benchmark: OpsBenchmark, sets: dict[str, list[ConvShape]]
) -> Iterator[dict]:
    """The benchmark; prints tables on the way and yields the JSON document as it grows."""
    begin = time.monotonic()
    document = {
        **provenance(vars(args)),
        "allocator": benchmark.allocator,
        "cuda_math": benchmark.cuda_math,
        "peak_gops": benchmark.peaks,
        "peak_gops_samples": benchmark.peak_samples,
        "bandwidth_gbps": benchmark.bandwidth,
        "autotune": None,
        "totals": [],
        "left_out": [],
        "records": [],
    }
    print(f"peak Gop/s: {benchmark.peaks}; copy: {benchmark.bandwidth:.0f} GB/s")
    for name, shapes in sets.items():
        wanted = [s for s in shapes if args.filter in s.name or args.filter in str(s)]
        for shape in tqdm(wanted, desc=name, disable=None):
            if time.monotonic() - begin > args.limit_seconds:
                document["left_out"].append({"set": name, **shape.fields()})
                continue
            records = benchmark.shape(shape, name)
            document["records"] += records
            document["peak_gops"] = benchmark.peaks
            document["autotune"] = autotuning.record()
            tqdm.write(report.shape_table(shape, records), file=sys.stdout)
            yield document
        document["totals"] += report.totals(document["records"], shapes, name)
    print(report.totals_table(document["totals"]))
    if document["left_out"]:
        print(f"\n--limit-seconds: {len(document['left_out'])} shapes were left out")
    yield document


def main(argv: list[str] | None = None) -> int:
    """Run the tool; 1 if an op failed the gate."""
    args = parse_args(argv)
    try:
        benchmark = OpsBenchmark(args)
        sets = chosen_shapes(args)
    except (ValueError, ImportError) as error:
        sys.exit(f"bench_ops.py: {error}")
    warn_if_busy()
    for document in measure(args, benchmark, sets):
        if args.json:
            write_json(args.json, document)
    failed = [entry for entry in document["records"] if "error" in entry]
    for entry in failed:
        print(f"FAILED {entry['layer']}: {entry['op']} {entry['error']}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
