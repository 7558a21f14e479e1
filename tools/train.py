#!/usr/bin/env python
"""Train any mmdet or mmaction2 config, in FP32, bfloat16 AMP or INT8."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from mmengine.config import DictAction

from bench import allocator
from common.arguments import add_int8_changes
from common.configs import (
    UsageError,
    allow_reference,
    check_checkpoint,
    check_data,
    load_config,
    recipe_of,
    set_recipe,
    set_settings,
    settings_of,
    use_bf16,
)
from common.metrics import metric_of
from common.provenance import plain
from common.schema import METRICS, label_of
from common.starts import check_starts


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file, or mmdet::... / mmaction::...")
    precision = parser.add_mutually_exclusive_group()
    precision.add_argument(
        "--int8",
        nargs="?",
        const="daq",
        metavar="RECIPE",
        help="train in INT8 by this recipe (default: daq)",
    )
    precision.add_argument("--recipe", help="fp32, bf16 or an INT8 recipe; for scripts")
    parser.add_argument(
        "--amp",
        action="store_true",
        help="train under bfloat16 autocast; in INT8, what lies between the convolutions",
    )
    parser.add_argument("--work-dir", help="logs, checkpoints (default: work_dirs/CONFIG_RECIPE)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="go on from the newest checkpoint of the work dir, or from this one",
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, data order, rounding")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument(
        "--allocator",
        choices=allocator.CHOICES,
        default="heap",
        help="heap: glibc keeps freed memory, which on a CPU saves the page faults of every large "
        "tensor of every iteration; default: glibc as it is",
    )
    parser.add_argument("--record", type=Path, help="write the run's record to this JSON file")
    add_int8_changes(parser)
    parser.add_argument(
        "--channels-last",
        action="store_true",
        help="lay weights, and so activations, out channels-last, by any recipe: faster, unless a "
        "module of the model calls view on a feature map",
    )
    parser.add_argument(
        "--label", help="words for the record (default: what --settings and --cfg-options change)"
    )
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="key=value overrides")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.set_defaults(starts={})  # merge_args fills it in
    return parser.parse_args(arguments)


def merge_args(args: argparse.Namespace):
    """The config with the command line's settings in it."""
    cfg = load_config(args.config, args.cfg_options)
    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads {args.threads} must be at least 1")
    recipe = args.recipe or args.int8
    if recipe:
        set_recipe(cfg, recipe)
    if args.amp:
        if recipe == "fp32":
            raise UsageError("--amp contradicts --recipe fp32; --amp alone trains in bfloat16")
        use_bf16(cfg)
    if args.settings:
        set_settings(cfg, args.settings)
    if args.allow_reference:
        allow_reference(cfg)
    cfg.launcher = args.launcher
    cfg.randomness = {**(cfg.get("randomness") or {}), "seed": args.seed}
    name = f"{Path(args.config.split('::')[-1]).stem}_{recipe_of(cfg)}"
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or f"work_dirs/{name}"
    check_data(cfg, ("train", "val"))
    args.starts = check_starts(cfg)
    if args.resume:
        checkpoint = resume_from(args.resume, cfg.work_dir)
        cfg.resume = checkpoint is not None
        cfg.load_from = checkpoint
    return cfg


def resume_from(argument: str, work_dir: str) -> str | None:
    """The checkpoint to resume, checked; None if an 'auto' resume has nothing to start from.

    'auto' takes the newest checkpoint that can be read: a kill may have torn the last one.
    """
    if argument != "auto":
        check_checkpoint(argument)
        return argument
    checkpoints = sorted(Path(work_dir).glob("epoch_*.pth"), key=_epoch_of, reverse=True)
    for checkpoint in checkpoints:
        try:
            check_checkpoint(checkpoint)
        except UsageError as error:
            print(f"warning: {error}", file=sys.stderr)
            continue
        return str(checkpoint)
    if checkpoints:
        print(f"warning: {work_dir} has no sound checkpoint; starting anew", file=sys.stderr)
    return None


def _epoch_of(checkpoint: Path) -> int:
    digits = checkpoint.stem.removeprefix("epoch_")
    return int(digits) if digits.isdigit() else -1


def identity_of(cfg, args: argparse.Namespace) -> dict:
    """The fields that tell this run from others in the tables.

    Raises:
        UsageError: a config with a `task` or an evaluator that the tables do not know.
    """
    task = cfg.get("task") or ("video" if cfg.get("default_scope") == "mmaction" else "detection")
    if task not in METRICS:
        raise UsageError(f"config's task {task!r} is unknown; allowed: {', '.join(METRICS)}")
    dataset = cfg.train_dataloader.dataset
    while "dataset" in dataset or "datasets" in dataset:  # RepeatDataset, ConcatDataset, ...
        dataset = dataset["dataset"] if "dataset" in dataset else dataset["datasets"][0]
    root = dataset.get("data_root") or Path(dataset.get("ann_file", "unknown")).parent
    stem = Path(args.config.split("::")[-1]).stem
    for suffix in ("_fp32", "_bf16", "_int8", "_int8_paper"):
        stem = stem.removesuffix(suffix)
    options = {name: plain(value) for name, value in (args.cfg_options or {}).items()}
    if args.amp and recipe_of(cfg) != "bf16":
        options["optim_wrapper.type"] = cfg.optim_wrapper.type
    if args.channels_last:
        options["channels_last"] = True
    label = label_of(args.settings, options) if args.label is None else args.label
    return {
        "task": task,
        "network": stem,
        "dataset": Path(str(root)).name,
        "recipe": recipe_of(cfg),
        "seed": args.seed,
        "metric": metric_of(cfg, task),
        "config": args.config,
        "settings": settings_of(cfg),
        "options": options,
        "starts": args.starts,
        "label": label,
    }


def use_allocator(choice: str) -> str:
    """Set the allocator where that is possible, and say in words what is used."""
    try:
        chosen = allocator.configure(choice)
    except RuntimeError:  # not glibc: its own allocator stays
        chosen = allocator.configure("default")
    return f"{chosen['library']}, {chosen['setting']}"


def main(arguments: list[str] | None = None) -> None:
    """Check everything, then train."""
    args = parse_args(arguments)
    import torch
    from mmengine.runner import Runner

    from common.record import RecordHook
    from daq_mm import cpu_distributed, to_channels_last
    from daq_mm.reproducible import EpochSeedHook

    cfg = merge_args(args)
    identity = identity_of(cfg, args) if args.record else None
    words = use_allocator(args.allocator)
    if args.threads:
        torch.set_num_threads(args.threads)
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    cpu_distributed.prepare(cfg)
    runner = Runner.from_cfg(cfg)
    if args.threads:
        torch.set_num_threads(args.threads)  # the runner's set-up may have changed it
    if args.channels_last:
        to_channels_last(runner.model)
    runner.register_hook(EpochSeedHook())
    if identity is not None:
        runner.register_hook(RecordHook(args.record, {**identity, "allocator": words}))
    runner.train()
    del runner  # its model holds the process group
    cpu_distributed.leave()


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(f"error: {error}")
