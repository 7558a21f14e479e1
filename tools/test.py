#!/usr/bin/env python
"""Evaluate a checkpoint of an mmdet or mmaction2 config, in the precision it was trained in."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from mmengine.config import DictAction

from common.configs import UsageError, check_checkpoint, check_data, load_config, set_recipe


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file, or mmdet::... / mmaction::...")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument(
        "--recipe", help="fp32, bf16 or an INT8 recipe, instead of what the config says"
    )
    parser.add_argument("--work-dir", help="logs (default: the checkpoint's folder)")
    parser.add_argument("--out", type=Path, help="write the metrics to this JSON file")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="key=value overrides")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> dict:
    """Check everything, then evaluate; returns the metrics."""
    args = parse_args(arguments)
    from mmengine.runner import Runner

    from daq_mm import cpu_distributed

    cfg = load_config(args.config, args.cfg_options)
    if args.recipe:
        set_recipe(cfg, args.recipe)
    check_data(cfg, ("test",))
    check_checkpoint(args.checkpoint)
    cfg.launcher = args.launcher
    cfg.load_from = args.checkpoint
    cfg.work_dir = args.work_dir or str(Path(args.checkpoint).parent)
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    cpu_distributed.prepare(cfg)
    runner = Runner.from_cfg(cfg)
    metrics = {name: float(value) for name, value in runner.test().items()}
    if args.out and runner.rank == 0:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(metrics, indent=1) + "\n")
    return metrics


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(f"error: {error}")
