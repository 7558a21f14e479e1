"""Ten minutes on a machine with a GPU: build, check, measure, and leave what was found as JSON.

    python tools/cuda_session.py                        # all steps, ten minutes
    python tools/cuda_session.py --steps ops train      # measure what is built already

Needs no network: a Python with a CUDA build of torch, pytest, numpy, tqdm and ninja, and nvcc for
the step 'build', which compiles for the card at hand alone. Each step has a time limit and the
next one begins whatever came of it; a step's whole output is in a text file, its result and
seconds in session.json, which is written anew after each step. The exit status is 1 if any failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from common.provenance import ROOT, provenance, write_json  # noqa: E402

#: Lines of a step's output that session.json keeps.
_TAIL = 30


@dataclass(frozen=True)
class Step:
    """One command of the session.

    Attributes:
        name: what --steps calls it; its output is in <name>.txt.
        command: arguments after the Python interpreter; {out} is the results' folder.
        limit: seconds after which it is ended.
        words: what it does, in a phrase.
        environment: variables added to the session's.
        prefix: a program that runs the interpreter; the step is left out where it is missing.
        architecture: the only one that it is for; empty for all.
    """

    name: str
    command: tuple[str, ...]
    limit: float
    words: str
    environment: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    architecture: str = ""


def steps(architecture: str, batch: int) -> list[Step]:
    """All steps in their order.

    Args:
        architecture: as TORCH_CUDA_ARCH_LIST has it, e.g. '9.0a'.
        batch: of the benchmarks.
    """
    tests = tuple(sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("tests/test_ops_*.py")))
    pytest = ("-m", "pytest", "--device", "cuda", "-p", "no:cacheprovider", "--tb=short")
    model = ("--device", "cuda", "--model", "resnet50", "--batch", str(batch))
    train = ("tools/bench_train.py", *model, "--iterations", "20", "--warm-up", "5")
    build = {"DAQ_MM_BUILD": "cuda", "TORCH_CUDA_ARCH_LIST": architecture}
    return [
        Step("build", ("setup.py", "build_ext", "--inplace"), 240, "compile the kernels", build),
        Step("test", (*pytest, "--maxfail=25", *tests), 150, "every op against the reference"),
        Step(
            "sanitize",
            (*pytest, *tests, "-k", "fixed or modes or special or steps_equal", "--maxfail=5"),
            90,
            "a selection of them under compute-sanitizer",
            {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            ("compute-sanitizer", "--error-exitcode=9"),
        ),
        Step(
            "wgmma",
            ("tools/compare_wgmma.py", "--batch", str(batch), "--limit-seconds", "30",
             "--json", "{out}/wgmma_resnet50.json"),
            60,
            "wgmma against mma.sync, bits and time",
            architecture="9.0a",
        ),
        Step(
            "train",
            (*train, "--modes", "bf16,int8-bf16,fp32,int8", "--limit-seconds", "40",
             "--json", "{out}/train_resnet50.json"),
            120,
            "training iterations of ResNet-50",
        ),
        Step(
            "train-graph",
            (*train, "--modes", "bf16,int8-bf16", "--cuda-graph", "--no-memory",
             "--limit-seconds", "20", "--json", "{out}/train_resnet50_graph.json"),
            60,
            "the same as CUDA graphs",
        ),
        Step(
            "ops",
            ("tools/bench_ops.py", "--device", "cuda", "--batch", str(batch), "--dtypes", "bf16",
             "--min-time", "0.02", "--limit-seconds", "80", "--json", "{out}/ops_resnet50.json"),
            120,
            "ResNet-50's convolutions, op by op",
        ),
        Step(
            "ops-autotune",
            ("tools/bench_ops.py", "--device", "cuda", "--batch", str(batch), "--dtypes", "bf16",
             "--ops", "forward,grad_input,grad_weight", "--min-time", "0.02", "--autotune",
             "--limit-seconds", "40", "--json", "{out}/ops_resnet50_autotune.json"),
            80,
            "its products with measured tiles and splits",
        ),
        Step(
            "train-compile",
            (*train, "--modes", "bf16,bf16-compile,int8-bf16-compile", "--no-memory",
             "--limit-seconds", "20", "--json", "{out}/train_resnet50_compile.json"),
            150,
            "the compiled modes",
        ),
    ]  # fmt: skip


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line of this tool."""
    names = [step.name for step in steps("", 1)]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--minutes", type=float, default=10, help="for all together, default 10")
    parser.add_argument("--batch", type=int, default=128, help="of the benchmarks, default 128")
    parser.add_argument("--out", type=Path, help="default results/cuda/<name of the card>")
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


def run_step(step: Step, out: Path, seconds: float) -> dict[str, Any]:
    """Run a step for at most so many seconds; its record."""
    record: dict[str, Any] = {"step": step.name, "words": step.words, "limit_s": step.limit}
    if step.prefix and shutil.which(step.prefix[0]) is None:
        return record | {"status": "left out", "reason": f"{step.prefix[0]} is not on the PATH"}
    if seconds < 5:
        return record | {"status": "left out", "reason": "the session's time is over"}
    command = [*step.prefix, sys.executable, *(part.format(out=out) for part in step.command)]
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, **step.environment, "PYTHONPATH": os.pathsep.join(paths)}
    begin = time.monotonic()
    log = out / f"{step.name}.txt"
    with log.open("w") as output:
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            status = "ok" if child.wait(min(step.limit, seconds)) == 0 else "failed"
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)  # compilers and other children too
            child.wait()
            status = "out of time"
    return record | {
        "status": status,
        "exit_status": child.returncode,
        "seconds": round(time.monotonic() - begin, 1),
        "tail": log.read_text(errors="replace").splitlines()[-_TAIL:],
    }


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
    document = {**provenance(vars(args)), "architecture": architecture, "steps": []}
    for step in steps(architecture, args.batch):
        if step.name not in args.steps:
            continue
        print(f"{step.name}: {step.words} ...", flush=True)
        if step.architecture in ("", architecture):
            record = run_step(step, out, args.minutes * 60 - (time.monotonic() - begin))
        else:
            record = {"step": step.name, "words": step.words, "status": "not for this card"}
        document["steps"].append(record)
        write_json(out / "session.json", document)
        print(f"{step.name}: {record['status']} {record.get('reason', '')}", flush=True)
        if record["status"] in ("failed", "out of time"):
            print("\n".join(f"    {line}" for line in record["tail"]), flush=True)
    good = ("ok", "not for this card")
    bad = [record["step"] for record in document["steps"] if record["status"] not in good]
    print(f"results are in {out}; not ok: {', '.join(bad) or 'none'}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
