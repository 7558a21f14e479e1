#!/usr/bin/env python
"""Train a network in FP32 and keep its backbone alone: weights that another config starts from.

Leaves OUT/NETWORK.pth, a state dict with the backbone's own names, as mmaction's `pretrained` and
mmengine's `Pretrained` take it, and OUT/NETWORK.json, the run's record. What is there already is
left as it is; a training that was killed goes on.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import sys
from pathlib import Path

import train
from common.errors import UsageError
from common.schema import read_record

PREFIX = "backbone."


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="FP32 config whose model has a backbone")
    parser.add_argument(
        "--out", type=Path, default=Path("data/starts"), help="default: data/starts"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def export_backbone(checkpoint: Path, target: Path) -> int:
    """Write the weights of a checkpoint's backbone, without their prefix; returns their number.

    Raises:
        UsageError: a checkpoint of a model without a backbone.
    """
    import torch

    weights = torch.load(checkpoint, map_location="cpu", weights_only=False)["state_dict"]
    kept = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in weights.items()
        if name.startswith(PREFIX)
    }
    if not kept:
        raise UsageError(f"{checkpoint} has no weights named {PREFIX}*; a start is a backbone's")
    part = target.with_suffix(".part")
    torch.save(kept, part)
    os.replace(part, target)
    return len(kept)


def main(arguments: list[str] | None = None) -> None:
    """Train what is missing, then export it; a second process waits for the first."""
    args = parse_args(arguments)
    name = Path(args.config).stem.removesuffix("_fp32")
    target, record = args.out / f"{name}.pth", args.out / f"{name}.json"
    args.out.mkdir(parents=True, exist_ok=True)
    with open(args.out / f"{name}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_file():
            print(f"{target} was there already")
            return
        work_dir = args.out / name
        finished = record.is_file() and read_record(record)["finished"]
        if not finished:
            threads = [] if args.threads is None else ["--threads", str(args.threads)]
            train.main(
                [
                    *(
                        args.config,
                        "--recipe",
                        "fp32",
                        "--seed",
                        str(args.seed),
                        "--resume",
                        *threads,
                    ),
                    *("--work-dir", str(work_dir), "--record", str(record)),
                ]
            )
        last = train.resume_from("auto", str(work_dir))
        if last is None:
            raise UsageError(
                f"{work_dir} has no checkpoint of the run in {record}; delete {record}"
            )
        count = export_backbone(Path(last), target)
        value = read_record(record)["value"]
        print(f"{target}: {count} tensors of a network whose metric is {value}")


def _interrupt(*_) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        main()
    except (UsageError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from the newest checkpoint")
