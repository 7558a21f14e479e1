"""Times the fused glue ops on one activation, in GB/s of what they must read and write.

    python tools/bench_glue.py --size 16,256,56,56 --dtype bf16 --threads 2
    python tools/bench_glue.py --size 256,256,56,56 --device cuda

Each op is compared with the reference on the very tensors before it is timed; one that differs is
told and not timed, and the exit status is 1. All take turns; times are medians, of device time on
CUDA. The yardstick is a plain copy on the same device. A second table has products with glue in
their epilogues (statistics of the output, batch norm's backward sums) next to the same work in two
ops, for the bottlenecks of ResNet-50 at the batch of --size.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench import allocator, machine  # noqa: E402
from bench.glue_products import BOTTLENECKS, describe, variants  # noqa: E402
from bench.operands import DTYPES  # noqa: E402
from bench.timing import Clock, Summary, device_of, take_turns  # noqa: E402
from common.provenance import provenance, warn_if_busy, write_json  # noqa: E402
from daq_mm import ops  # noqa: E402
from daq_mm.ops import reference_glue  # noqa: E402
from daq_mm.ops.glue import RELU  # noqa: E402
from daq_mm.ops.layout import channels_last_format  # noqa: E402


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of this tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    # fmt: off
    add("--size", default="16,256,56,56", help="N,C,*spatial of the activation")
    add("--dtype", default="bf16", choices=DTYPES, help="of the float tensors")
    add("--device", default="cpu", help="cpu (default) or cuda")
    add("--threads", type=int, default=None, help="default: as torch chooses")
    add("--repeats", type=int, default=7, help="samples of each op, default 7")
    add("--min-time", type=float, default=0.15, help="seconds of an op's samples together")
    add("--no-products", action="store_true", help="leave out the products with epilogues")
    add("--json", type=Path, help="write records and provenance here")
    # fmt: on
    args = parser.parse_args(argv)
    try:
        args.size = [int(n) for n in args.size.split(",")]
    except ValueError:
        parser.error(f"--size {args.size!r}: expected N,C,H,W or N,C,D,H,W")
    if len(args.size) not in (4, 5) or min(args.size) < 1:
        parser.error(f"--size {args.size}: expected 4 or 5 numbers of at least 1")
    return args


class Case:
    """One call of an op: what runs, the reference on the same tensors, bytes it moves."""

    def __init__(self, op: str, args: tuple, keywords: dict, moves: list[torch.Tensor]) -> None:
        self.run: Callable[[], object] = lambda: getattr(ops, op)(*args, **keywords)
        self.reference = lambda: getattr(reference_glue, op)(*args, *keywords.values())
        self.operands = [t for t in (*args, *keywords.values()) if isinstance(t, torch.Tensor)]
        self.inputs = moves

    def check(self) -> None:
        """Raise AssertionError unless the op and the reference agree; long sums to 1e-5."""
        got, expected = self.run(), self.reference()
        got, expected = ([t] if isinstance(t, torch.Tensor) else t for t in (got, expected))
        for a, b in zip(got, expected, strict=True):
            sums = a.dtype == torch.float64
            atol = 1e-5 * b.abs().max().item() if sums else 0
            torch.testing.assert_close(a, b, rtol=0, atol=atol)

    @property
    def bytes(self) -> int:
        """Bytes of the large tensors that the op reads and writes."""
        results = self.run()
        results = [results] if isinstance(results, torch.Tensor) else results
        return sum(t.numel() * t.element_size() for t in (*self.inputs, *results))


def cases(
    size: list[int], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> dict[str, Case]:
    """The ops as ResNet's blocks call them."""
    with torch.device(device):  # every tensor below is made there
        return _cases(size, dtype)


def state_of(channels: int) -> dict[str, torch.Tensor]:
    """A layer's threshold state after its first gradient."""
    return dict(
        threshold=torch.ones(channels + 1),
        tail_probability=torch.zeros(channels + 1),
        iteration=torch.ones(1, dtype=torch.int64),
    )


def _cases(size: list[int], dtype: torch.dtype) -> dict[str, Case]:
    last = channels_last_format(len(size) - 2)
    y, residual, g, g2 = (
        torch.randn(size).to(dtype).contiguous(memory_format=last) for _ in range(4)
    )
    channels = size[1]
    stats = ops.stats_of(y)
    affine = [torch.rand(channels), torch.randn(channels), stats[0].float() * 0]
    affine.append(torch.ones(channels))
    settings = dict(act=RELU, want_out=False, want_q=True, allow_unsigned=True, want_codes=True)
    joined = {**settings, "want_out": True}
    *_, codes, grid, mask = ops.norm_act_forward(y, stats, *affine, None, **settings)
    statistics = torch.zeros(channels), torch.ones(channels)
    backward = (g, mask, codes, grid, torch.rand(3, channels))
    from_gz = (g, None, *backward[2:])
    threshold = ops.norm_backward_maxima(*backward)[:-1]
    nearest = dict(threshold=threshold, seed=None)
    random = dict(threshold=threshold, seed=torch.tensor([7]))
    # Thresholds that don't depend on the state, which every call moves on.
    rules = dict(mcs=True, decay=0.0, gain=1.0, cap=False, gaussian_above=0.3)
    reduce_args = (g, None, mask, codes, grid, *statistics)
    joined_args = (g, g2, mask, codes, grid, *statistics)
    return {
        "stats_of": Case("stats_of", (y,), {}, [y]),
        "forward: q, codes, mask": Case(
            "norm_act_forward", (y, stats, *affine, None), settings, [y]
        ),
        "forward: residual, out, q, codes, mask": Case(
            "norm_act_forward", (y, stats, *affine, residual), joined, [y, residual, y]
        ),
        "reduce": Case("norm_act_reduce", reduce_args, dict(want_gz=False), [g, mask, codes]),
        "reduce: g2, gz": Case(
            "norm_act_reduce", joined_args, dict(want_gz=True), [g, g2, mask, codes]
        ),
        "maxima": Case("norm_backward_maxima", backward, {}, [g, mask, codes]),
        "maxima of gz": Case("norm_backward_maxima", from_gz, {}, [g, codes]),
        "quantize": Case("norm_backward_quantize", backward, nearest, [g, mask, codes]),
        "quantize: random": Case("norm_backward_quantize", backward, random, [g, mask, codes]),
        "thresholds: due": Case(
            "norm_backward_thresholds",
            backward,
            {**state_of(channels), **rules, "interval": 1},
            [g, mask, codes],
        ),
        "thresholds: not due": Case(
            "norm_backward_thresholds",
            backward,
            {**state_of(channels), **rules, "interval": 2**40},
            [g, mask, codes],
        ),
        "apply": Case("norm_backward_apply", backward, {}, [g, mask, codes]),
    }


class GlueBenchmark:
    """Checks and times the ops with the settings of the command line; the document grows."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.device = device_of(args.device)
        setting = allocator.configure("heap")
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        torch.manual_seed(0)
        self.document: dict[str, Any] = {
            **provenance(vars(args)),
            "allocator": setting,
            "backend": ops.backend_of(torch.empty(0, device=self.device)),
            "bandwidth_gbps": machine.copy_bandwidth(self.device),
            "records": [],
            "products": [],
        }

    def save(self) -> None:
        """Write what there is, so that a run that is killed leaves it."""
        if self.args.json:
            write_json(self.args.json, self.document)

    def ops(self) -> None:
        """Records of the glue ops, and their table."""
        good = {}
        for name, case in cases(self.args.size, DTYPES[self.args.dtype], self.device).items():
            try:
                case.check()
            except (AssertionError, RuntimeError) as error:  # it differs, or does not run at all
                self._fail(self.document["records"], error, op=name)
            else:
                good[name] = case
        summaries = self._times({name: case.run for name, case in good.items()})
        bandwidth = self.document["bandwidth_gbps"]
        where = f"{torch.get_num_threads()} threads" if self.device.type == "cpu" else "device time"
        print(f"{self.args.size} {self.args.dtype}, {where}, ", end="")
        print(f"{self.document['backend']}; copy: {bandwidth:.0f} GB/s\n")
        print("| op | ms | GB/s | of a copy |\n| --- | --- | --- | --- |")
        for name, case in good.items():
            size, summary = case.bytes, summaries[name]
            gbps = size / summary.median_s / 1e9
            record = {"op": name, "bytes": size, "gbps": gbps, "copy_share": gbps / bandwidth}
            self.document["records"].append({**record, **summary.fields()})
            print(f"| {name} | {summary.median_s * 1e3:.2f} | {gbps:.1f} ", end="")
            print(f"| {gbps / bandwidth:.0%} |")
        self.save()

    def products(self) -> None:
        """Records of the products with epilogues, and their table."""
        begun = False
        for shape in BOTTLENECKS:
            name = describe(*shape)
            try:
                work = variants(
                    shape,
                    batch=self.args.size[0],
                    dtype=DTYPES[self.args.dtype],
                    device=self.device,
                )
            except (AssertionError, RuntimeError) as error:
                self._fail(self.document["products"], error, convolution=name)
                continue
            summaries = self._times(work)
            if not begun:
                print(f"\n| convolution, ms | {' | '.join(work)} |")
                print(f"| --- |{' --- |' * len(work)}")
                begun = True
            cells = [f"{summaries[op].median_s * 1e3:.2f}" for op in work]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)
            for op in work:
                record = {"convolution": name, "op": op, **summaries[op].fields()}
                self.document["products"].append(record)
            self.save()

    def failed(self) -> bool:
        """Whether a result was wrong or missing."""
        return any("error" in r for kind in ("records", "products") for r in self.document[kind])

    def _times(self, work: dict[str, Callable[[], object]]) -> dict[str, Summary]:
        return take_turns(
            work,
            repeats=self.args.repeats,
            min_time=self.args.min_time,
            clock=Clock(self.device),
        )

    def _fail(self, records: list[dict], error: Exception, **what: str) -> None:
        words = f"{type(error).__name__}: {error}"
        records.append({**what, "error": words})
        print(f"FAILED {' '.join(what.values())}: {words}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run the tool; 1 if an op's result is wrong."""
    args = parse_args(argv)
    warn_if_busy()
    try:
        benchmark = GlueBenchmark(args)
    except ValueError as error:
        sys.exit(f"bench_glue.py: {error}")
    benchmark.ops()
    if not args.no_products:
        benchmark.products()
    benchmark.save()
    return 1 if benchmark.failed() else 0


if __name__ == "__main__":
    sys.exit(main())
