#!/usr/bin/env python
"""Evaluate a checkpoint of an mmdet or mmaction2 config, in the precision it was trained in.

With --into, the result on the config's test set becomes part of the record that the training left,
and the tables show it in the place of the validation's.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from mmengine.config import DictAction

from common.arguments import add_int8_changes
from common.configs import (
    UsageError,
    allow_reference,
    check_checkpoint,
    check_data,
    load_config,
    set_recipe,
    set_settings,
)
from common.tested import add_test, check_into


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config file, or mmdet::... / mmaction::...")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument(
        "--recipe", help="fp32, bf16 or an INT8 recipe, instead of what the config says"
    )
    parser.add_argument("--work-dir", help="logs (default: the checkpoint's folder)")
    parser.add_argument("--out", type=Path, help="write the metrics to this JSON file")
    parser.add_argument(
        "--into", type=Path, metavar="RECORD", help="add the result to this record of the training"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    add_int8_changes(parser)
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="key=value overrides")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict:
    """Check everything, then evaluate; returns the metrics."""
    args = parse_args(arguments)
    import torch
    from mmengine.runner import Runner

    from daq_mm import cpu_distributed

    if args.threads is not None and args.threads < 1:
        raise UsageError(f"--threads {args.threads} must be at least 1")
    cfg = load_config(args.config, args.cfg_options)
    if args.recipe:
        set_recipe(cfg, args.recipe)
    if args.settings:
        set_settings(cfg, args.settings)
    if args.allow_reference:
        allow_reference(cfg)
    check_data(cfg, ("test",))
    check_checkpoint(args.checkpoint)
    if args.into:
        check_into(args.into, cfg, args.checkpoint)
    cfg.launcher = args.launcher
    cfg.load_from = args.checkpoint
    cfg.work_dir = args.work_dir or str(Path(args.checkpoint).parent)
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    cpu_distributed.prepare(cfg)
    runner = Runner.from_cfg(cfg)
    if args.threads:
        torch.set_num_threads(args.threads)
    metrics = {name: float(value) for name, value in runner.test().items()}
    if args.out and runner.rank == 0:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(metrics, indent=1) + "\n")
    if args.into and runner.rank == 0:
        samples = len(runner.test_loop.dataloader.dataset)
        add_test(args.into, metrics, cfg, samples, args.checkpoint)
    del runner  # its model holds the process group
    cpu_distributed.leave()
    return metrics


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(f"error: {error}")
