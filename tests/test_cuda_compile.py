"""nvcc accepts every CUDA source, for each architecture that setup.py names. Nothing runs."""

import ast
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from torch.utils import cpp_extension

ROOT = Path(__file__).parent.parent
KERNELS = [
    *sorted((ROOT / "csrc/cuda").glob("*.cu")),
    *sorted((ROOT / "tests/cuda_emulated").glob("*.cu")),
]
HOST_SOURCES = sorted((ROOT / "csrc/cuda").glob("*.cpp"))
NVCC = shutil.which("nvcc")

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not on the PATH")


def architectures() -> tuple[str, ...]:
    """CUDA_ARCHITECTURES of setup.py, read without running it."""
    for node in ast.parse((ROOT / "setup.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "CUDA_ARCHITECTURES":
            return ast.literal_eval(node.value)
    raise AssertionError("setup.py has no CUDA_ARCHITECTURES")


def compile_(source, gencode, tmp_path):
    """nvcc -c for the given architectures; warnings of ptxas and the compiler are errors."""
    includes = [f"-I{ROOT / 'csrc'}", f"-I{sysconfig.get_paths()['include']}"]
    includes += [f"-isystem={path}" for path in cpp_extension.include_paths()]
    if not _has_generated_header():
        includes.append(f"-isystem={ROOT / 'tests/cuda_stubs'}")
    command = [NVCC, "-c", str(source), "-o", str(tmp_path / "object.o"), *includes, *gencode]
    command += ["-O3", "-std=c++20", "--fmad=false", "-Xcompiler", "-fPIC,-Wall", "--threads", "2"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    ours = [line for line in run.stderr.splitlines() if "warning" in line and "csrc/cuda" in line]
    assert not ours, "\n".join(ours)
    # ptxas tells as mere notes that it serialized the asynchronous products or made them wait
    notes = [line for line in run.stderr.splitlines() if "(C75" in line]
    assert not notes, "\n".join(notes)


def _has_generated_header() -> bool:
    header = "c10/cuda/impl/cuda_cmake_macros.h"
    return any((Path(path) / header).exists() for path in cpp_extension.include_paths())


def for_newest():
    newest = architectures()[-1]
    return [f"-gencode=arch=compute_{newest},code=sm_{newest}"]


def test_one_kernel_for_the_newest_architecture(tmp_path):
    compile_(ROOT / "csrc/cuda/quantize.cu", for_newest(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("source", HOST_SOURCES, ids=lambda path: path.name)
def test_host_sources(source, tmp_path):
    compile_(source, for_newest(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.name)
def test_kernels_for_all_architectures(source, tmp_path):
    gencode = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures()]
    gencode.append("-gencode=arch=compute_90,code=compute_90")
    compile_(source, gencode, tmp_path)
