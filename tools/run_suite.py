#!/usr/bin/env python
"""Run the trainings of a suite that have no finished record yet; a killed suite goes on.

A suite is a JSON file: {"about": "...", "cells": [{"config": FILE, "recipes": [...],
"seeds": [...], "options": {"max_epochs": N, dotted.key: value}, "settings": [{setting of
DAQConfig: value}, ...], "allow_reference": true}]}. The last three may be left out; each entry of
`settings` is a training of its own. Each training is a process of tools/train.py with its own log;
one that fails is reported, and the others go on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from common.configs import UsageError
from common.record import read_record

TOOLS = Path(__file__).resolve().parent
CELL_KEYS = {"config", "recipes", "seeds", "options", "settings", "allow_reference"}


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: a config by a recipe with a seed."""

    config: str
    recipe: str
    seed: int
    options: tuple[tuple[str, object], ...]
    settings: tuple[tuple[str, object], ...] = ()
    allow_reference: bool = False

    @property
    def name(self) -> str:
        """File name of its record, without suffix."""
        words = [Path(self.config).stem.removesuffix("_fp32"), self.recipe]
        words += [f"{name}={value}" for name, value in self.settings]
        return "-".join([*words, f"seed{self.seed}"])


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("suite", type=Path, help="suite file, e.g. tools/suites/demo.json")
    parser.add_argument("--records", type=Path, required=True, help="folder of the JSON records")
    parser.add_argument("--work-dirs", type=Path, help="logs (default: RECORDS/../runs)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--threads", type=int, help="threads a training (default: cores / jobs)")
    parser.add_argument("--only", default="", help="run only what has this in its name")
    parser.add_argument("--dry-run", action="store_true", help="list what is missing and stop")
    return parser.parse_args(arguments)


def read_suite(path: Path) -> list[Run]:
    """The suite's runs, every recipe of the first seed before the second seed begins.

    Raises:
        UsageError: a missing file, or one that is not a suite.
    """
    if not path.is_file():
        raise UsageError(f"suite {path} does not exist; there are tools/suites/*.json")
    try:
        cells = json.loads(path.read_text())["cells"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"suite {path} is not JSON with a list 'cells': {error}") from error
    runs = []
    for cell in cells:
        unknown = set(cell) - CELL_KEYS
        missing = {"config", "recipes", "seeds"} - set(cell)
        if unknown or missing:
            raise UsageError(
                f"a cell of {path} has unknown keys {sorted(unknown)} or lacks {sorted(missing)}; "
                f"allowed: {sorted(CELL_KEYS)}"
            )
        if not Path(cell["config"]).is_file():
            raise UsageError(f"suite {path} names {cell['config']}, which does not exist")
        options = tuple(sorted(cell.get("options", {}).items()))
        allow_reference = bool(cell.get("allow_reference", False))
        runs += [
            Run(cell["config"], recipe, seed, options, tuple(settings.items()), allow_reference)
            for seed in cell["seeds"]
            for recipe in cell["recipes"]
            for settings in cell.get("settings", [{}])
        ]
    return sorted(runs, key=lambda run: run.seed)


def is_finished(record: Path) -> bool:
    """Whether there is a record of a training that came to its end."""
    return record.is_file() and bool(read_record(record).get("finished"))


def option_arguments(run: Run) -> list[str]:
    """--cfg-options of the run; 'max_epochs' also shortens the cosine schedule."""
    pairs = dict(run.options)
    epochs = pairs.pop("max_epochs", None)
    if epochs is not None:
        pairs["train_cfg.max_epochs"] = epochs
        pairs["train_cfg.val_interval"] = epochs
        pairs["param_scheduler.1.T_max"] = pairs["param_scheduler.1.end"] = epochs
    return ["--cfg-options", *(f"{k}={v}" for k, v in pairs.items())] if pairs else []


def execute(run: Run, record: Path, work_dir: Path, threads: int) -> tuple[int, float]:
    """Train in a process of its own; (exit status, seconds)."""
    work_dir.mkdir(parents=True, exist_ok=True)
    command = [
        *(sys.executable, str(TOOLS / "train.py"), run.config),
        *("--recipe", run.recipe, "--seed", str(run.seed), "--threads", str(threads)),
        *("--work-dir", str(work_dir), "--resume", "--record", str(record)),
        *option_arguments(run),
        *(["--settings", *(f"{k}={v}" for k, v in run.settings)] if run.settings else []),
        *(["--allow-reference"] if run.allow_reference else []),
    ]
    start = time.monotonic()
    with open(work_dir / "console.log", "a") as log:
        status = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        ).returncode
    return status, time.monotonic() - start


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing; the exit status tells whether all of it succeeded."""
    args = parse_args(arguments)
    if args.jobs < 1:
        raise UsageError(f"--jobs {args.jobs} must be at least 1")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = args.threads or max(1, cores // args.jobs)
    runs = [run for run in read_suite(args.suite) if args.only in run.name]
    if not runs:
        raise UsageError(f"--only {args.only!r} matches no run of {args.suite}")
    paths = {run: args.records / f"{run.name}.json" for run in runs}
    missing = [run for run in runs if not is_finished(paths[run])]
    print(f"{args.suite.name}: {len(runs)} runs, {len(runs) - len(missing)} finished before")
    if args.dry_run:
        print("\n".join(run.name for run in missing))
        return 0
    work_dirs = args.work_dirs or args.records.parent / "runs"
    return run_all(missing, paths, work_dirs, args.jobs, threads)


def run_all(runs: list[Run], paths: dict[Run, Path], work_dirs: Path, jobs: int, threads) -> int:
    """Train them `jobs` at a time and tell the progress; 1 if any failed, else 0."""
    failed = []
    start = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        futures = {
            pool.submit(execute, run, paths[run], work_dirs / run.name, threads): run
            for run in runs
        }
        for done, future in enumerate(as_completed(futures), 1):
            run = futures[future]
            status, seconds = future.result()
            left = (time.monotonic() - start) / done * (len(runs) - done)
            if status == 0 and is_finished(paths[run]):
                value = read_record(paths[run])
                outcome = f"{value['metric']} {value['value']:.4f}"
            else:
                failed.append(run)
                outcome = f"FAILED (status {status}), see {work_dirs / run.name / 'console.log'}"
            print(
                f"[{done}/{len(runs)}] {run.name}: {outcome}, {seconds:.0f} s, "
                f"about {left / 60:.0f} min left",
                flush=True,
            )
    if failed:
        print(f"{len(failed)} of {len(runs)} runs failed: {', '.join(r.name for r in failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (UsageError, ValueError) as error:
        sys.exit(f"error: {error}")
