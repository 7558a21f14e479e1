"""Times whole training iterations of a network: float32, bfloat16 and INT8, side by side.

    python tools/bench_train.py --model resnet50 --batch 16 --size 224 --json results/train.json
    python tools/bench_train.py --model retinanet_r50 --batch 2 --size 512 --modes bf16,int8-bf16

An iteration is forward, loss, backward and an SGD step on a random batch. All modes start from
the same weights and take turns within one process; times are medians. A mode that fails, or whose
first loss is not that of the first mode, is told as failed and the others go on; the exit status
is 1. Peak memory is measured for each mode in a process of its own. --json is written after every
mode and round, so that what is killed leaves what it has measured, with 'finished' false. On CUDA
float32 means float32, not TF32, and cuDNN chooses its algorithms by measuring them.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench import (  # noqa: E402
    allocator,
    autotuning,
    cuda_math,
    layer_profile,
    memory,
    train_report,
)
from bench.modes import DEFAULT_MODES, MODES, Mode, choose  # noqa: E402
from bench.networks import NETWORKS, Network, build  # noqa: E402
from bench.timing import Clock, Summary, device_of  # noqa: E402
from bench.training import Setting, Trainer, check_loss, parameters_of, warm_up  # noqa: E402
from common.provenance import provenance, warn_if_busy, write_json  # noqa: E402
from common.recipes import split_recipe  # noqa: E402
from daq_mm import DAQConfig, ops  # noqa: E402

#: Begins the line on which a child process hands over what it measured.
_CHILD_RESULT = "BENCH_TRAIN_RESULT "


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of this tool."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    # fmt: off
    add("--model", required=True,
        help=f"{', '.join(NETWORKS)}, or the path of a config of mmdet or mmaction")
    add("--batch", type=int, default=16, help="samples a batch, default 16")
    add("--size", type=int, default=224, help="side of the pictures in pixels, default 224")
    add("--frames", type=int, default=8, help="frames of a clip (video networks), default 8")
    add("--modes", default=",".join(DEFAULT_MODES),
        help=f"joined by commas, or all; of {', '.join(MODES)}; default {','.join(DEFAULT_MODES)}")
    add(
        "--recipe",
        default="daq",
        help="of the INT8 modes, default daq; with settings: daq:keep_gradient_mean=True",
    )
    add("--device", default="cpu", help="cpu (default) or cuda")
    add("--threads", type=int, default=None, help="default: as torch chooses")
    add("--layout", default="channels_last", choices=("channels_last", "contiguous"),
        help="memory format of weights and inputs, default channels_last")
    add("--iterations", type=int, default=7, help="timed iterations of each mode, default 7")
    add("--warm-up", type=int, default=2, help="iterations before, default 2")
    add("--limit-seconds", type=float, default=float("inf"),
        help="time no further round after this time; at least one is timed")
    add("--no-memory", action="store_true", help="do not measure peak memory")
    add("--memory-repeats", type=int, default=3,
        help="processes a mode whose peak is measured; the median counts, default 3")
    add("--no-time", action="store_true", help="measure memory only")
    add("--cuda-graph", action="store_true",
        help="time replays of a CUDA graph of the whole iteration (memory is that of eager ones)")
    add("--profile-layers", action="store_true",
        help="also print where the time goes, by kind of work and by convolution")
    add("--allocator", default="heap", choices=allocator.CHOICES,
        help="heap (default): no page faults for large tensors; default: as the C library does")
    add("--allow-reference", action="store_true",
        help="time INT8 modes even without compiled kernels, where they are very slow")
    add("--autotune", action="store_true", help=autotuning.HELP)
    add("--json", type=Path, help="write records and provenance here")
    add("--memory-of", choices=tuple(MODES), help=argparse.SUPPRESS)  # the child process
    # fmt: on
    args = parser.parse_args(argv)
    for name in ("batch", "size", "frames", "iterations", "warm_up", "memory_repeats"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if args.threads is not None and args.threads < 1:
        parser.error("--threads must be at least 1")
    if args.cuda_graph and args.profile_layers:
        parser.error("--profile-layers looks into eager iterations: not with --cuda-graph")
    return args


class TrainBenchmark:
    """The network and what all modes share; raises ValueError for settings that do not fit."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.allocator = allocator.configure(args.allocator)
        if args.threads is not None:
            torch.set_num_threads(args.threads)
        self.device = device_of(args.device)
        if args.cuda_graph and self.device.type != "cuda":
            raise ValueError(f"--cuda-graph needs --device cuda, not {args.device!r}")
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        self.cuda_math = cuda_math.configure(self.device)
        autotuning.start(args.autotune, self.device)
        self.modes = choose(args.modes)
        recipe, settings = split_recipe(args.recipe)
        config = DAQConfig.from_recipe(recipe, **settings)
        self.setting = Setting(args.batch, self.device, args.layout == "channels_last", config)
        built, reason = ops.kernels_built(self.device.type)
        slow = [mode.name for mode in self.modes if mode.convert is not None]
        if slow and not built and not args.allow_reference:
            raise ValueError(
                f"modes {', '.join(slow)} would run the slow reference: {reason}. To time them "
                "all the same, add --allow-reference"
            )
        ops.allow_reference(args.allow_reference)
        self.backend = ops.backend_of(torch.empty(0, device=self.device))

    def network(self) -> Network:
        """The network, with the same weights at each call."""
        torch.manual_seed(self.setting.seed)
        return build(self.args.model, size=self.args.size, frames=self.args.frames)

    def trainer(self, network: Network, mode: Mode) -> Trainer:
        """One mode's trainer."""
        return Trainer(network, mode, self.setting)

    def time(
        self, network: Network, records: list[dict[str, Any]], save: Callable[[], None]
    ) -> None:
        """Time all modes in turns.

        Args:
            network: that all modes start from.
            records: gets a record for each mode; those of failed ones have 'error'.
            save: is called whenever the records tell more than before.
        """
        trainers = {}
        for mode in tqdm(self.modes, desc="warm-up", disable=None):
            record, trainer = self._warm(network, mode, records)
            records.append(record)
            if trainer is not None:
                trainers[mode.name] = trainer
            save()
        self._rounds(trainers, records, save)
        if self.args.profile_layers:
            for record in tqdm(records, desc="profile", disable=None):
                if record["mode"] in trainers:
                    record["profile"] = layer_profile.profile_iterations(trainers[record["mode"]])
                    save()

    def _warm(
        self, network: Network, mode: Mode, earlier: list[dict]
    ) -> tuple[dict[str, Any], Trainer | None]:
        """A mode's record, and its trainer if it works."""
        record: dict[str, Any] = {"mode": mode.name, "words": mode.words}
        record["cuda_graph"] = self.args.cuda_graph
        # A network may fail in one mode in any way (a compiler, an op without bfloat16): that is
        # a result, and the other modes go on. So this is the one broad except of the tools.
        try:
            trainer = self.trainer(network, mode)
            record |= trainer.facts()
            record |= warm_up(trainer, iterations=self.args.warm_up)
            for other in earlier[:1]:
                if "error" not in other:
                    check_loss(mode.name, record["first_loss"], other["first_loss"], other["mode"])
            if self.args.cuda_graph:
                trainer.capture()
                replayed = trainer.step().item()
                check_loss(f"{mode.name}, replayed,", replayed, record["first_loss"], "eager")
        except Exception as error:
            record["error"] = f"{type(error).__name__}: {error}"
            tqdm.write(f"{mode.name} FAILED: {record['error'][:2000]}", file=sys.stderr)
            return record, None
        if trainer.graph is None:
            trainer.release_gradients()
        return record, trainer

    def _rounds(
        self, trainers: dict[str, Trainer], records: list[dict], save: Callable[[], None]
    ) -> None:
        clock, begin = Clock(self.device), time.monotonic()
        samples: dict[str, list[float]] = {name: [] for name in trainers}
        for index in tqdm(range(self.args.iterations), desc="rounds", disable=None):
            if index and time.monotonic() - begin > self.args.limit_seconds:
                tqdm.write(f"--limit-seconds: {index} of {self.args.iterations} rounds timed")
                break
            for name, trainer in trainers.items():
                samples[name].append(clock.seconds(trainer.step))
                if trainer.graph is None:
                    trainer.release_gradients()
            for record in records:
                if record["mode"] in trainers:
                    summary = Summary.of(samples[record["mode"]])
                    record |= summary.fields()
                    record["samples_per_s"] = self.args.batch / summary.median_s
            train_report.add_ratios(records)
            save()

    def memory_of(self, mode: Mode) -> dict[str, Any]:
        """Memory of one mode, in this process; see `measure_memory`."""
        trainers = []

        def make() -> Trainer:
            trainers.append(self.trainer(self.network(), mode))
            return trainers[0]

        result: dict[str, Any] = dict(memory.peak(make, self.device))
        saved = None if mode.compiled else memory.saved_for_backward(trainers[0])
        return {**result, "saved_for_backward": saved}


def measure_memory(args: argparse.Namespace, argv: list[str], mode: Mode) -> dict[str, Any]:
    """Memory of one mode: that of the child process of the median peak; 'error' if one fails.

    The C library's heap is left in pieces of another size each time, so peaks differ.
    'iteration_of_each' has the peak within an iteration of every child, in bytes.
    """
    results = [_measure_memory_once(argv, mode) for _ in range(args.memory_repeats)]
    failed = next((result for result in results if "error" in result), None)
    if failed:
        return failed
    results.sort(key=lambda result: result["iteration"])
    each = [result["iteration"] for result in results]
    return {**results[(len(results) - 1) // 2], "iteration_of_each": each}


def _measure_memory_once(argv: list[str], mode: Mode) -> dict[str, Any]:
    command = [sys.executable, __file__, *argv, "--memory-of", mode.name]
    child = subprocess.run(command, capture_output=True, text=True)
    for line in child.stdout.splitlines():
        if line.startswith(_CHILD_RESULT):
            return json.loads(line.removeprefix(_CHILD_RESULT))
    last = (child.stderr.strip().splitlines() or ["no output"])[-1]
    return {"error": f"exit status {child.returncode}: {last}"}


def run(args: argparse.Namespace, argv: list[str], benchmark: TrainBenchmark) -> dict[str, Any]:
    """The whole benchmark; returns the JSON document."""
    network = benchmark.network()
    records: list[dict[str, Any]] = []
    document = {
        **provenance(vars(args)),
        "allocator": benchmark.allocator,
        "cuda_math": benchmark.cuda_math,
        "backend": benchmark.backend,
        "network": network.source,
        "parameters": parameters_of(network.module),
        "autotune": None,
        "finished": False,
        "records": records,
    }

    def save() -> None:
        if args.json:
            write_json(args.json, document)

    if args.no_time:
        records += [{"mode": m.name, "words": m.words} for m in benchmark.modes]
    else:
        benchmark.time(network, records, save)
    document["autotune"] = autotuning.record()
    save()
    if not args.no_memory:
        _free(benchmark.device)
        for record in tqdm(records, desc="memory", disable=None):
            if "error" not in record:
                record["memory"] = measure_memory(args, argv, MODES[record["mode"]])
                save()
    document["finished"] = True
    save()
    print(train_report.tables(document))
    return document


def _free(device: torch.device) -> None:
    """Give back what the timed modes held on the device: the child processes need it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def main(argv: list[str] | None = None) -> int:
    """Run the tool; 1 if a mode failed."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    try:
        benchmark = TrainBenchmark(args)
        if args.memory_of:
            result = benchmark.memory_of(MODES[args.memory_of])
            print(_CHILD_RESULT + json.dumps(result))
            return 0
        warn_if_busy()
        document = run(args, argv, benchmark)
    except (ValueError, ImportError) as error:
        sys.exit(f"bench_train.py: {error}")
    failed = [r for r in document["records"] if "error" in r or "error" in r.get("memory", {})]
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
