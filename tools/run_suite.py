#!/usr/bin/env python
"""Run the trainings of a suite that have no finished record yet; a killed suite goes on.

A suite is a JSON file: {"about": "...", "cells": [{"config": FILE, "recipes": [...],
"seeds": [...], "settings": {DAQConfig field: value}, "options": {"max_epochs": N, dotted.key:
value}, "label": "...", "allow_reference": true, "start": FILE, "test": true}]}. The last six may be
left out; `settings` may be a list, each entry of which is a training of its own; `start` is a
config whose backbone, trained first by tools/prepare_start.py, the cell's config starts from;
`test` evaluates what was trained on the config's test set too, by tools/test.py. Each training is a
process of tools/train.py with its own log; one that fails is reported, and the others go on.
Several suites may run at the same time, on the same records too: a run is trained by one of them.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from common.errors import UsageError
from suite_runner import launch
from suite_runner.cells import finished_record, read_suite
from suite_runner.loop import Loop, Plan


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", type=Path, help="suite file, e.g. tools/suites/demo.json")
    parser.add_argument("--records", type=Path, required=True, help="folder of the JSON records")
    parser.add_argument("--work-dirs", type=Path, help="logs (default: RECORDS/../runs)")
    parser.add_argument(
        "--jobs", type=int, help="trainings at a time (default: cores / threads; 1 with a GPU)"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads a training (default: 1)")
    parser.add_argument("--retries", type=int, default=0, help="further attempts of a failed run")
    parser.add_argument("--report", type=float, default=60, help="seconds between lines of state")
    parser.add_argument("--only", default="", help="run only what has this in its name")
    parser.add_argument("--dry-run", action="store_true", help="list what is missing and stop")
    return parser.parse_args(arguments)


def default_jobs(threads: int) -> int:
    """Trainings at a time: one a GPU machine, otherwise as many as the cores allow."""
    if Path("/proc/driver/nvidia/gpus").is_dir():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, cores // threads)


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing; the exit status tells whether all of it succeeded."""
    args = parse_args(arguments)
    for name, least in (("threads", 1), ("jobs", 1), ("retries", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UsageError(f"--{name} {value} must be at least {least}")
    runs = [run for run in read_suite(args.suite) if args.only in run.name]
    if not runs:
        raise UsageError(f"--only {args.only!r} matches no run of {args.suite}")
    plan = Plan(
        records=args.records,
        work_dirs=args.work_dirs or args.records.parent / "runs",
        jobs=args.jobs or default_jobs(args.threads),
        threads=args.threads,
        retries=args.retries,
        report_seconds=args.report,
    )
    missing = [run for run in runs if finished_record(run, plan.record(run)) is None]
    print(
        f"{args.suite.name}: {len(runs)} runs, {len(runs) - len(missing)} finished before; "
        f"{plan.jobs} at a time, {plan.threads} threads each",
        flush=True,
    )
    if args.dry_run:
        print("\n".join(run.name for run in missing))
        return 0
    for start in sorted({run.start for run in missing if run.start}):
        if not launch.prepare_start(start, plan.threads):
            print(f"{start} could not be trained: the runs that start from it will fail")
    failed = Loop(runs, plan).run()
    if failed:
        print(f"{len(failed)} of {len(missing)} runs failed: {', '.join(r.name for r in failed)}")
    return 1 if failed else 0


def _interrupt(*_) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sys.exit(main())
    except UsageError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from the newest checkpoints")
