#!/usr/bin/env python
"""Train any mmdet or mmaction2 config, in FP32, bfloat16 AMP or INT8."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from mmengine.config import DictAction

from bench import allocator
from common.configs import (
    UsageError,
    check_checkpoint,
    check_data,
    load_config,
    recipe_of,
    set_recipe,
)


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
    precision.add_argument("--amp", action="store_true", help="train under bfloat16 autocast")
    precision.add_argument("--recipe", help="fp32, bf16 or an INT8 recipe; for scripts")
    parser.add_argument(
        "--settings",
        nargs="+",
        action=DictAction,
        metavar="KEY=VALUE",
        help="settings of DAQConfig that replace the recipe's, e.g. mcs_k=1.1",
    )
    parser.add_argument(
        "--allow-reference",
        action="store_true",
        help="train in INT8 even where the slow reference has to serve; see DAQHook",
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
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="key=value overrides")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def merge_args(args: argparse.Namespace):
    """The config with the command line's settings in it."""
    cfg = load_config(args.config, args.cfg_options)
    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads {args.threads} must be at least 1")
    recipe = args.recipe or args.int8 or ("bf16" if args.amp else None)
    if (args.settings or args.allow_reference) and recipe is None:
        raise UsageError("--settings and --allow-reference need --int8 or --recipe")
    if recipe:
        set_recipe(cfg, recipe, args.settings, allow_reference=args.allow_reference)
    cfg.launcher = args.launcher
    cfg.randomness = {**(cfg.get("randomness") or {}), "seed": args.seed}
    recipe = recipe_of(cfg).replace(", ", "-")
    name = f"{Path(args.config.split('::')[-1]).stem}_{recipe}"
    cfg.work_dir = args.work_dir or cfg.get("work_dir") or f"work_dirs/{name}"
    check_data(cfg, ("train", "val"))
    if args.resume:
        checkpoint = resume_from(args.resume, cfg.work_dir)
        cfg.resume = checkpoint is not None
        cfg.load_from = checkpoint
    return cfg


def resume_from(argument: str, work_dir: str) -> str | None:
    """The checkpoint to resume, checked; None if an 'auto' resume has nothing to start from."""
    if argument != "auto":
        check_checkpoint(argument)
        return argument
    from mmengine.runner import find_latest_checkpoint

    checkpoint = find_latest_checkpoint(work_dir) if Path(work_dir).is_dir() else None
    if checkpoint:
        check_checkpoint(checkpoint)
    return checkpoint


def identity_of(cfg, args: argparse.Namespace) -> dict:
    """The fields that tell this run from others in the tables."""
    task = "video" if cfg.get("default_scope") == "mmaction" else "detection"
    dataset = cfg.train_dataloader.dataset
    while "dataset" in dataset:
        dataset = dataset["dataset"]
    root = dataset.get("data_root") or Path(dataset.get("ann_file", "unknown")).parent
    stem = Path(args.config.split("::")[-1]).stem
    for suffix in ("_fp32", "_bf16", "_int8", "_int8_paper"):
        stem = stem.removesuffix(suffix)
    return {
        "task": task,
        "network": stem,
        "dataset": Path(str(root)).name,
        "recipe": recipe_of(cfg),
        "seed": args.seed,
        "config": args.config,
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
    from daq_mm import cpu_distributed
    from daq_mm.reproducible import EpochSeedHook

    cfg = merge_args(args)
    words = use_allocator(args.allocator)
    if args.threads:
        torch.set_num_threads(args.threads)
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    cpu_distributed.prepare(cfg)
    runner = Runner.from_cfg(cfg)
    if args.threads:
        torch.set_num_threads(args.threads)  # the runner's set-up may have changed it
    runner.register_hook(EpochSeedHook())
    if args.record:
        runner.register_hook(
            RecordHook(args.record, {**identity_of(cfg, args), "allocator": words})
        )
    runner.train()


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(f"error: {error}")
