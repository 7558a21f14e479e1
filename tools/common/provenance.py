"""Where a result comes from: commit, machine, versions, threads, date, as one JSON-ready dict.

Importing it imports nothing but the standard library. What needs torch is told only if torch is
imported already, and CUDA is looked at only if torch can see a GPU. No host name, user or path
goes into a record.
"""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

#: Import names whose versions matter to a result.
PACKAGES = ("torch", "mmengine", "mmcv", "mmdet", "mmaction", "daq_mm", "numpy")

#: Names the commit of files that came without their repository.
COMMIT_VARIABLE = "DAQ_MM_COMMIT"

#: Instruction sets, as Linux names them, that change the speed of 8-bit or bfloat16 arithmetic.
CPU_FLAGS = (
    "avx2", "fma", "avx512f", "avx512bw", "avx512vbmi", "avx512_vnni", "avx512_bf16", "avx_vnni",
    "avx512_fp16", "amx_int8", "amx_bf16", "asimddp", "i8mm", "bf16",
)  # fmt: skip


def provenance(arguments: dict[str, Any] | None = None) -> dict[str, Any]:
    """Everything a reader needs in order to judge or repeat a result.

    Args:
        arguments: the tool's settings, e.g. `vars(args)`; values that JSON lacks become strings.

    Returns:
        dict with 'tool', 'arguments', 'commit', 'date', 'machine', 'versions', 'threads'.
    """
    return {
        "tool": Path(sys.argv[0]).name,
        "arguments": {name: plain(value) for name, value in (arguments or {}).items()},
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "threads": threads(),
    }


def command() -> str:
    """The command line of this process, as one types it from the repository's root."""
    return " ".join(["python", f"tools/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def write_json(path: Path, document: Any) -> None:
    """Write a document so that a reader never finds half of it; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    unfinished.write_text(json.dumps(document, indent=1) + "\n")
    unfinished.replace(path)


def warn_if_busy() -> None:
    """Say so on standard error if other processes use the machine: times will not be its own."""
    cores = os.cpu_count() or 1
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5 * cores:
        print(
            f"warning: load average {os.getloadavg()[0]:.1f} on {cores} cores; something else is "
            "running, so times, and ratios too, are unreliable",
            file=sys.stderr,
        )


def commit() -> dict[str, Any]:
    """'sha' of the tools' checkout (None outside of one); 'dirty', whether files differ from it.

    With `other_package: true` where the daq_mm that is imported is not the one beside the tools, as
    happens in a second checkout with another one installed: the commit says nothing of it then,
    which is told on standard error too. Outside of a checkout DAQ_MM_COMMIT in the environment may
    say what the files are of.
    """
    sha = _git("rev-parse", "--verify", "-q", "HEAD") or os.environ.get(COMMIT_VARIABLE)
    status = _git("status", "--porcelain")
    found: dict[str, Any] = {"sha": sha or None, "dirty": None if status is None else bool(status)}
    package = getattr(sys.modules.get("daq_mm"), "__file__", None)
    if package is not None and Path(package).resolve().parents[1] != ROOT:
        found["other_package"] = True
        _tell_of_other_package(package)
    return found


@functools.cache
def _tell_of_other_package(package: str) -> None:
    """Once a process: a record is written after each validation."""
    print(
        f"warning: daq_mm is imported from {package}, not from {ROOT}, so the record's commit is "
        f"not the package's; PYTHONPATH={ROOT} changes that",
        file=sys.stderr,
    )


def machine() -> dict[str, Any]:
    """Processor, cores, memory, load, huge pages and GPUs."""
    cpu = _cpu_fields()
    flags = set((cpu.get("flags") or cpu.get("Features") or "").split())
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
        "memory_gib": _memory_gib(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "transparent_hugepage": _chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        "system": platform.system(),
        "gpus": _gpus(),
    }


def versions() -> dict[str, str | None]:
    """Versions by import name, None where a package is absent; and of the compiler of daq_mm._C."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    distributions = importlib.metadata.packages_distributions()
    for name in PACKAGES:
        found[name] = _version(name, distributions.get(name, []))
    found["compiler"] = found["daq_mm_build"] = None
    kernels = sys.modules.get("daq_mm._C")
    if kernels is not None:
        info = kernels.build_info()
        found["compiler"], found["daq_mm_build"] = info["compiler"], info["build"]
    torch = sys.modules.get("torch")
    if torch is not None:
        found["cuda"] = torch.version.cuda
    return found


def threads() -> int | None:
    """Threads that torch computes with, or None if torch is not imported."""
    torch = sys.modules.get("torch")
    return None if torch is None else torch.get_num_threads()


def _version(name: str, distributions: list[str]) -> str | None:
    """Of the imported module, or else of whatever distribution provides it (there are forks)."""
    module = sys.modules.get(name)
    if module is not None and hasattr(module, "__version__"):
        return str(module.__version__)
    for distribution in distributions:
        return importlib.metadata.version(distribution)
    return None


def _gpus() -> list[dict[str, Any]]:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": properties.name,
                "capability": f"{properties.major}.{properties.minor}",
                "memory_gib": round(properties.total_memory / 2**30, 1),
                "multiprocessors": properties.multi_processor_count,
            }
        )
    return found


def _git(*arguments: str) -> str | None:
    """Output of a git command in this repository; None if git or the repository is missing."""
    try:
        result = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _cpu_fields() -> dict[str, str]:
    """The first processor's fields in /proc/cpuinfo; empty where there is none."""
    fields: dict[str, str] = {}
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return fields
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    return fields


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def _chosen(path: str) -> str | None:
    """The word in brackets of a kernel setting such as 'always [madvise] never'."""
    try:
        text = Path(path).read_text()
    except OSError:
        return None
    return text.partition("[")[2].partition("]")[0] or None


def plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    return str(value)
