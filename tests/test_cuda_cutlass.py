"""Layouts, tensor maps and instructions of the CUDA primitives against NVIDIA's CUTLASS and CuTe.

The programs of `tests/cutlass/` run on the CPU and say what they compare; machine code is compared
as nvcc writes it, and never run. What no host can tell is whether a GPU does what both sides expect
of an instruction. Each comparison is also run with a mistake in it, which it must see.
"""

import functools
import importlib.util
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

import emulated

ROOT = Path(__file__).parent.parent
HERE = ROOT / "tests/cutlass"
CUDA = ROOT / "csrc/cuda"
NVCC = shutil.which("nvcc")

EMULATOR = [*sorted((CUDA / "primitives").glob("emulator*.cpp")), CUDA / "primitives/fiber.cpp"]
# What else a program consists of: sources for the emulator, and sources compiled as for a GPU.
PROGRAMS = {
    "fragments": ([], []),
    "warpgroup": ([], []),
    "tensor_maps": (
        [CUDA / "conv_wgmma.cpp"],
        [CUDA / "tensor_map.cpp", HERE / "driver_recorder.cpp"],
    ),
}
FLAGS = ["-std=c++20", "-O1", "-ffp-contract=off", f"-I{ROOT / 'csrc'}", f"-I{HERE}"]

# Of CUTLASS's PTX: how much the cache shall fetch and how long it shall keep it. Ours has no hints.
HINTS = ((r"(cp\.async\S*)\.L2::128B", r"\1"), (r"\.L2::cache_hint( .*), %rd\d+;", r"\1;"))


def cutlass() -> Path | None:
    """The folder of CUTLASS's sources in the installed package, which is not imported."""
    package = importlib.util.find_spec("cutlass_library")
    folders = package.submodule_search_locations if package else []
    found = [Path(folder) / "source" for folder in folders or []]
    return next((path for path in found if (path / "include/cute/tensor.hpp").exists()), None)


def missing() -> str:
    """What these tests need and do not find; empty if nothing."""
    if NVCC is None:
        return "nvcc is not on the PATH, nor are its CUDA headers known"
    if cutlass() is None:
        return "no CUTLASS headers: pip install --no-deps nvidia-cutlass"
    return emulated.unavailable()


pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing())]
both_ways = pytest.mark.parametrize("mistaken", (False, True), ids=("as it is", "mistaken"))


def includes() -> list[str]:
    """-isystem for CUTLASS and for the toolkit, which nvcc names even if a script starts it."""
    command = [NVCC, "--dryrun", "-E", "-x", "cu", "/dev/null"]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    top = Path(re.search(r"^#\$ TOP=(.+)$", said, re.MULTILINE)[1]).resolve()
    folders = [cutlass() / "include", cutlass() / "tools/util/include"]
    folders += [top / "include/cccl", top / "include"]
    return [part for path in folders if path.exists() for part in ("-isystem", str(path))]


def run(command):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.args}\n{done.stdout}\n{done.stderr}"


# ---- programs ----


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Builds a program, once, and returns its path."""
    folder = tmp_path_factory.mktemp("cutlass")

    @functools.cache
    def object_of(source, *flags):
        result = folder / f"{source.stem}.o"
        run([emulated.COMPILER, *FLAGS, *flags, *includes(), "-c", source, "-o", result])
        return result

    @functools.cache
    def build(name):
        emulated_sources, hardware_sources = PROGRAMS[name]
        # -fpermissive: CUTLASS's convolutions are written for nvcc and name what it declares. Its
        # tensor maps are encoded by the functions of driver_recorder.cpp.
        own = ["-DDAQ_MM_EMULATED", "-fpermissive", "-DCUTLASS_ENABLE_DIRECT_CUDA_DRIVER_CALL"]
        objects = [object_of(HERE / f"{name}.cpp", *own)]
        objects += [object_of(s, "-DDAQ_MM_EMULATED") for s in (*EMULATOR, *emulated_sources)]
        objects += [object_of(source) for source in hardware_sources]
        run([emulated.COMPILER, *objects, "-o", folder / name])
        return folder / name

    return build


@both_ways
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name, mistaken, program):
    command = [str(program(name)), *(["mistaken"] if mistaken else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    wrong = [line for line in lines if line.startswith(("WRONG", "  "))]
    assert done.returncode == 0, "\n".join([*wrong, done.stderr])
    assert sum(line.startswith("ok") for line in lines) > 5


# ---- machine code ----


def compile_kernels(source, architecture, folder, flags):
    """The machine code of each kernel, and its instructions in PTX, both without hints."""
    ptx, binary = folder / "kernels.ptx", folder / "kernels.cubin"
    # NDEBUG: without CUTLASS's assertions
    command = [NVCC, "-ptx", f"-arch={architecture}", "-std=c++20", "-DNDEBUG", *flags]
    run([*command, f"-I{ROOT / 'csrc'}", f"-I{HERE}", *includes(), source, "-o", ptx])
    text = ptx.read_text()
    for hint, without in HINTS:
        text = re.sub(hint, without, text)
    ptx.write_text(text)
    run([NVCC, "-cubin", f"-arch={architecture}", ptx, "-o", binary])
    bodies = re.split(r"\.entry (\w+)\(", text)[1:]
    inline = r"// begin inline asm\n(.*?)\s*// end inline asm"
    instructions = {
        kernel: "\n".join(line for line in re.findall(inline, body, re.DOTALL) if line.strip())
        for kernel, body in zip(bodies[::2], bodies[1::2])
    }
    return text_sections(binary.read_bytes()), instructions


def text_sections(elf: bytes) -> dict[str, bytes]:
    """The contents of the sections .text.<kernel> of a cubin, which is a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
    sections = [struct.unpack_from("<IIQQQQ", elf, table + i * size) for i in range(count)]
    names = sections[names_index][4]
    result = {}
    for name, _, _, _, offset, length in sections:
        start = names + name
        text = elf[start : elf.index(b"\0", start)].decode()
        if text.startswith(".text."):
            result[text.removeprefix(".text.")] = elf[offset : offset + length]
    return result


@both_ways
@pytest.mark.parametrize(
    "source, architecture, count",
    (("instructions.cu", "sm_90a", 29), ("turing_product.cu", "sm_75", 1)),
    ids=("instructions", "turing_product"),
)
def test_machine_code(source, architecture, count, mistaken, tmp_path):
    kernels = []
    for side, flags in (("ours", ["-DMISTAKEN"] if mistaken else []), ("theirs", ["-DBY_CUTLASS"])):
        folder = tmp_path / side
        folder.mkdir()
        kernels.append(compile_kernels(HERE / source, architecture, folder, flags))
    (ours, our_ptx), (theirs, their_ptx) = kernels
    assert ours.keys() == theirs.keys() and len(ours) == count
    wrong = [name for name in ours if (ours[name] == theirs[name]) == mistaken]
    told = (f"{name}: ours\n{our_ptx[name]}\nCUTLASS's\n{their_ptx[name]}" for name in wrong)
    assert not wrong, "\n\n".join(told)
