"""Builds the CUDA kernels for the CPU emulator and loads them as `torch.ops.daq_mm_emulated`.

Every `csrc/cuda/*.cu` and `*.cpp` is compiled by the C++ compiler with DAQ_MM_EMULATED, beside the
test kernels of `tests/cuda_emulated/`. Objects are kept in `build/emulated` under the hash of all
that they depend on, so that a change recompiles what it touches and processes do not disturb each
other. The registered ops have the schemas of `daq_mm`, and run on CPU tensors.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils import cpp_extension

from daq_mm import ops  # noqa: F401  (defines the schemas that are copied)

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "emulated"
COMPILER = os.environ.get("CXX", "c++")
FLAGS = [
    "-x",
    "c++",
    "-O2",
    "-g0",
    "-std=c++20",
    "-fPIC",
    "-fopenmp",
    "-ffp-contract=off",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-DDAQ_MM_EMULATED",
    f"-I{ROOT / 'csrc'}",
]


def unavailable() -> str:
    """Why the emulator cannot be built here; empty if it can."""
    return "" if shutil.which(COMPILER) else f"no C++ compiler ({COMPILER})"


def sources() -> list[Path]:
    """What is compiled."""
    folders = (ROOT / "csrc/cuda", ROOT / "csrc/cuda/primitives", ROOT / "tests/cuda_emulated")
    return sorted(p for f in folders for p in f.iterdir() if p.suffix in (".cu", ".cpp"))


@functools.cache
def _included(path: Path) -> frozenset[Path]:
    """A file and all of ours that it includes, directly or not."""
    found = {path}
    for name in re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE):
        candidates = (ROOT / "csrc" / name, path.parent / name)
        found.update(*(_included(header) for header in candidates if header.exists()))
    return frozenset(found)


def _key(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _run(command: list[str], result: Path) -> Path:
    """Run a command that writes `result`, which appears complete or not at all."""
    if result.exists():
        return result
    part = result.with_suffix(f".{os.getpid()}.part")
    run = subprocess.run([*command, "-o", str(part)], capture_output=True, text=True)
    if run.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{run.stderr}")
    os.replace(part, result)
    return result


def build() -> Path:
    """Compile what changed; the path of the shared library."""
    BUILD.mkdir(parents=True, exist_ok=True)
    includes = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    includes.append(f"-isystem{sysconfig.get_paths()['include']}")
    compile_ = [COMPILER, *FLAGS, *includes]
    common = _key(" ".join(compile_).encode(), torch.__version__.encode())

    def object_of(source: Path) -> Path:
        files = sorted(_included(source))
        key = _key(common.encode(), *(file.read_bytes() for file in files))
        return _run([*compile_, "-c", str(source)], BUILD / f"{source.stem}-{key}.o")

    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
        objects = sorted(map(str, pool.map(object_of, sources())))
    link = [COMPILER, "-shared", "-fopenmp", *objects]
    for path in cpp_extension.library_paths():
        link += [f"-L{path}", f"-Wl,-rpath,{path}"]
    link += ["-lc10", "-ltorch_cpu", "-ltorch"]
    return _run(link, BUILD / f"daq_mm_emulated-{_key(' '.join(link).encode())}.so")


@functools.cache
def load():
    """`torch.ops.daq_mm_emulated`, built if need be."""
    library = torch.library.Library("daq_mm_emulated", "DEF")
    for name in torch._C._dispatch_get_registrations_for_dispatch_key("CompositeExplicitAutograd"):
        if name.startswith("daq_mm::"):
            schema = str(getattr(torch.ops.daq_mm, name.partition("::")[2]).default._schema)
            library.define(schema.partition("::")[2])
    load.library = library  # the definitions live as long as this object
    torch.ops.load_library(str(build()))
    return torch.ops.daq_mm_emulated


def ops_with_kernels(library: str) -> set[str]:
    """The ops of `daq_mm` or `daq_mm_emulated` that have a kernel for CPU tensors."""
    registered = torch._C._dispatch_get_registrations_for_dispatch_key("CPU")
    prefix = f"{library}::"
    return {name.removeprefix(prefix) for name in registered if name.startswith(prefix)}


@contextlib.contextmanager
def as_cpu_kernels():
    """While it is open, the ops of `daq_mm` run the emulated CUDA kernels on CPU tensors."""
    own = load()
    replacement = torch.library.Library("daq_mm", "IMPL")
    try:
        for op in ops_with_kernels("daq_mm_emulated"):
            replacement.impl(op, getattr(own, op).default, "CPU", allow_override=True)
        yield
    finally:
        replacement._destroy()


def launches_of(run):
    """The launches of some work: a row of grid, threads and shared bytes for each."""
    kernels = load()
    kernels.log_launches(True)
    run()
    kernels.log_launches(False)
    numbers = kernels.logged_launches()
    return [tuple(numbers[i : i + 5]) for i in range(0, len(numbers), 5)]
