"""Ten minutes on a machine with a GPU: build, check, measure, and leave what was found as JSON.

    python tools/cuda_session.py                        # all steps, ten minutes
    python tools/cuda_session.py --steps ops train      # measure what is built already

Needs no network: a Python with a CUDA build of torch, setuptools, ninja, pytest, numpy and tqdm,
and nvcc for the step 'build', which compiles for the card at hand alone. compute-sanitizer is used
where it is on the PATH. No step needs mmdet, mmcv or mmengine: without them ResNet-50 is that of
bench/resnet.py, layer for layer the same, and the record says so. Other networks than ResNet-50
are mmdet's, mmcv's and mmaction's, in the benchmarks themselves.

Steps are in the order of their worth. Each has a time limit, in proportion to --minutes, and the
next one begins whatever came of it (where wgmma fails on a Hopper GPU, later steps run without it,
and session.json says so). A step's whole output is in a text file (tests: one for each
file of tests), its result and seconds in session.json, which is written anew after each step. The
benchmarks write their JSON as they go, so what a limit cuts off loses only what was not measured.
The exit status is 1 if any step failed or was left out.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench.session_steps import MINUTES, Step, steps  # noqa: E402
from bench.side_by_side import run_all  # noqa: E402
from common.provenance import COMMIT_VARIABLE, ROOT, provenance, write_json  # noqa: E402

#: Lines of a step's output that session.json keeps; of a process that ran beside others, fewer.
_TAIL, _SHORT_TAIL = 30, 8
#: Processes of a step that use the GPU at a time, at most: each takes memory there and on the host.
_WORKERS = 8


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of this tool."""
    names = [step.name for step in steps("", 1)]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--steps", nargs="+", choices=names, default=names, help="default: all")
    add(
        "--minutes",
        type=float,
        default=MINUTES,
        help=f"for all together, default {MINUTES}; limits are in proportion",
    )
    add("--batch", type=int, default=256, help="of the benchmarks, default 256")
    add("--out", type=Path, help="default results/cuda/<name of the card>")
    add(
        "--archive",
        type=Path,
        help="after each step pack the results into this .tar.gz, for machines that give back "
        "few files",
    )
    add("--commit", help="of these files, for the records, where they came without a repository")
    return parser.parse_args(argv)


def card() -> tuple[str, str]:
    """Folder name of the GPU and its architecture for nvcc.

    Raises:
        RuntimeError: no GPU, or a torch without CUDA.
    """
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"torch {torch.__version__} sees no CUDA device (torch.version.cuda is "
            f"{torch.version.cuda}); this tool needs a GPU and a CUDA build of torch"
        )
    name = torch.cuda.get_device_name().lower().replace("nvidia", "")
    major, minor = torch.cuda.get_device_capability()
    suffix = "a" if (major, minor) == (9, 0) else ""  # Hopper's warpgroup instructions
    return re.sub("[^a-z0-9]+", "-", name).strip("-"), f"{major}.{minor}{suffix}"


def run_step(step: Step, out: Path, seconds: float, environment: dict[str, str]) -> dict[str, Any]:
    """Run a step for at most so many seconds, with these variables too; its record."""
    record: dict[str, Any] = {"step": step.name, "words": step.words, "limit_s": step.limit}
    if step.prefix and shutil.which(step.prefix[0]) is None:
        return record | {"status": "left out", "reason": f"{step.prefix[0]} is not on the PATH"}
    if seconds < 5:
        return record | {"status": "left out", "reason": "the session's time is over"}
    command = [*step.prefix, sys.executable, *(part.format(out=out) for part in step.command)]
    commands = {out / f"{step.name}.txt": command}
    if step.each:
        commands = {
            out / f"{step.name}-{Path(part).stem}.txt": [*command, part] for part in step.each
        }
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    begin = time.monotonic()
    found = run_all(
        commands,
        seconds=min(step.limit, seconds),
        workers=max(1, min(_WORKERS, (os.cpu_count() or 1) // 2)),
        folder=ROOT,
        environment={
            **os.environ,
            **environment,
            **step.environment,
            "PYTHONPATH": os.pathsep.join(paths),
        },
    )
    record |= _outcome(found) | {"seconds": round(time.monotonic() - begin, 1)}
    if step.each:
        record["parts"] = {log.stem: status for log, status in found.items()}
    return record


def _outcome(found: dict[Path, int | None]) -> dict[str, Any]:
    """What became of a step, as record fields, from its processes' exit statuses by log."""
    failed = [code for code in found.values() if code]
    if failed:
        status, exit_status = "failed", failed[0]
    elif None in found.values():
        status, exit_status = "out of time", None
    else:
        status, exit_status = "ok", 0
    tail = []
    for log, code in found.items():
        lines = log.read_text(errors="replace").splitlines() if log.exists() else ["never begun"]
        if len(found) == 1:
            tail += lines[-_TAIL:]
        else:
            tail += [f"-- {log.stem}", *lines[-1 if code == 0 else -_SHORT_TAIL :]]
    return {"status": status, "exit_status": exit_status, "tail": tail}


def pack(out: Path, archive: Path) -> None:
    """Put the results into an archive of which a reader never finds half."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    unfinished = archive.with_name(f"{archive.name}.part")
    with tarfile.open(unfinished, "w:gz") as tar:
        tar.add(out, arcname=out.name, filter=_unless_unfinished)
    unfinished.replace(archive)


def _unless_unfinished(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if entry.name.endswith((".part", ".tar.gz")) else entry


def main(argv: list[str] | None = None) -> int:
    """Run the session; 1 if a step failed or was left out."""
    args = parse_args(argv)
    begin = time.monotonic()
    try:
        name, architecture = card()
    except RuntimeError as error:
        sys.exit(f"cuda_session.py: {error}")
    out = (args.out or ROOT / "results/cuda" / name).resolve()
    out.mkdir(parents=True, exist_ok=True)
    environment: dict[str, str] = {}
    if args.commit:
        os.environ[COMMIT_VARIABLE] = args.commit
    document = {**provenance(vars(args)), "architecture": architecture, "steps": []}
    for step in steps(architecture, args.batch, args.minutes):
        if step.name not in args.steps:
            continue
        print(f"{step.name}: {step.words} ...", flush=True)
        if step.architecture in ("", architecture):
            seconds = args.minutes * 60 - (time.monotonic() - begin)
            record = run_step(step, out, seconds, environment)
            if environment:
                record["environment"] = dict(environment)
            if record["status"] in ("failed", "out of time"):
                environment |= step.otherwise
        else:
            record = {"step": step.name, "words": step.words, "status": "not for this card"}
        document["steps"].append(record)
        write_json(out / "session.json", document)
        if args.archive:
            pack(out, args.archive)
        print(f"{step.name}: {record['status']} {record.get('reason', '')}", flush=True)
        if record["status"] in ("failed", "out of time"):
            print("\n".join(f"    {line}" for line in record["tail"]), flush=True)
    good = ("ok", "not for this card")
    bad = [record["step"] for record in document["steps"] if record["status"] not in good]
    print(f"results are in {out}; not ok: {', '.join(bad) or 'none'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
