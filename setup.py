"""Build daq_mm: a Python package and, by DAQ_MM_BUILD, its compiled kernels.

DAQ_MM_BUILD=auto  CPU kernels; CUDA kernels too where torch has CUDA and nvcc is found (default)
             cpu   CPU kernels alone
             cuda  both, and an error if CUDA is missing
             none  no extension: the slow reference runs, and the hook asks before it does

CUDA kernels are compiled for `CUDA_ARCHITECTURES` and, as PTX, for later ones. torch's own
TORCH_CUDA_ARCH_LIST (e.g. 9.0a) names others, to build faster for the one card at hand.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
BUILDS = ("auto", "cpu", "cuda", "none")

# No -march: instruction sets are chosen at run time. No contraction to fused multiply-add:
# the float results of the kernels must equal the reference's bit for bit.
CXX_FLAGS = [
    "-O3",
    "-std=c++20",
    "-fopenmp",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Wall",
    "-g0",
]
# The same for nvcc, by its own names. Turing, Ampere (data centre, consumer), Ada, Hopper with its
# warpgroup instructions; the driver compiles the PTX for whatever comes later.
NVCC_FLAGS = ["-O3", "-std=c++20", "--fmad=false", "-lineinfo"]
CUDA_ARCHITECTURES = ("75", "80", "86", "89", "90a")
CUDA_PTX = "90"


def chosen_build() -> str:
    """The build to make: 'none', 'cpu' or 'cuda'."""
    build = os.environ.get("DAQ_MM_BUILD", "auto")
    if build not in BUILDS:
        raise SystemExit(f"DAQ_MM_BUILD={build!r} is unknown; allowed: {', '.join(BUILDS)}")
    if build == "none":
        return build
    find_tools()
    if build == "cpu":
        return build
    try:
        import torch
        from torch.utils.cpp_extension import CUDA_HOME
    except ImportError:
        raise SystemExit(
            "building the kernels needs torch: install it first and use --no-build-isolation, "
            "or set DAQ_MM_BUILD=none"
        ) from None
    if not cuda_sources():
        missing = "csrc/cuda has no sources yet"
    elif torch.version.cuda is None:
        missing = "this torch was built without CUDA"
    elif CUDA_HOME is None:
        missing = "nvcc was not found (set CUDA_HOME)"
    else:
        return "cuda"
    if build == "cuda":
        raise SystemExit(f"DAQ_MM_BUILD=cuda is not possible: {missing}")
    return "cpu"


def find_tools() -> None:
    """Name the CUDA toolkit and ninja to torch where it would not find them itself.

    torch takes the folder above nvcc's for the toolkit, which has no headers if the nvcc on the
    PATH is a script that starts another one. And it looks for ninja on the PATH alone, where an
    environment's is not if its Python was started without activating it; without ninja it compiles
    one file at a time.
    """
    if shutil.which("ninja") is None:
        os.environ["PATH"] += os.pathsep + str(Path(sys.executable).parent)
    nvcc = shutil.which("nvcc")
    if nvcc is None or os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return
    if (Path(nvcc).parent.parent / "include/cuda_runtime.h").exists():
        return
    command = [nvcc, "--dryrun", "-E", "-x", "cu", os.devnull]
    said = subprocess.run(command, capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.+)$", said, re.MULTILINE)
    if top and (Path(top[1]) / "include/cuda_runtime.h").exists():
        os.environ["CUDA_HOME"] = str(Path(top[1]).resolve())


def cuda_sources() -> list[str]:
    """The CUDA sources (kernels .cu, ops .cpp), as paths relative to this file."""
    paths = [path for path in (ROOT / "csrc/cuda").iterdir() if path.suffix in (".cu", ".cpp")]
    return sorted(str(path.relative_to(ROOT)) for path in paths)


def gencode_flags() -> list[str]:
    """nvcc's flags for the architectures; none where TORCH_CUDA_ARCH_LIST lets torch add them."""
    if os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return []
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in CUDA_ARCHITECTURES]
    return [*flags, f"-gencode=arch=compute_{CUDA_PTX},code=compute_{CUDA_PTX}"]


def extension(build: str) -> dict:
    """The setup() arguments that compile daq_mm._C."""
    if build == "none":
        return {}
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    sources = ["csrc/module.cpp"]
    sources += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "csrc/cpu").glob("*.cpp"))
    headers = [path for kind in ("*.h", "*.cuh") for path in (ROOT / "csrc").rglob(kind)]
    depends = sorted(str(path.relative_to(ROOT)) for path in headers)
    options = {
        "name": "daq_mm._C",
        "include_dirs": [str(ROOT / "csrc")],
        "define_macros": [("DAQ_MM_BUILD_NAME", f'"{build}"')],
        "extra_link_args": ["-fopenmp"],
        "depends": depends,
    }
    if build == "cuda":
        flags = {"cxx": CXX_FLAGS, "nvcc": [*NVCC_FLAGS, *gencode_flags()]}
        module = CUDAExtension(
            sources=sources + cuda_sources(), extra_compile_args=flags, **options
        )
    else:
        module = CppExtension(sources=sources, extra_compile_args={"cxx": CXX_FLAGS}, **options)
    return {"ext_modules": [module], "cmdclass": {"build_ext": BuildExtension}}


def version() -> str:
    """The version that daq_mm/version.py states, read without importing the package."""
    scope: dict = {}
    exec((ROOT / "daq_mm/version.py").read_text(), scope)
    return scope["__version__"]


setup(
    name="daq_mm",
    version=version(),
    description="Distribution Adaptive INT8 training of CNNs, a plugin for OpenMMLab",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["daq_mm", "daq_mm.*"]),
    python_requires=">=3.10",
    install_requires=["torch>=2.6"],
    extras_require={"mm": ["mmengine", "mmcv"]},
    zip_safe=False,
    **extension(chosen_build()),
)
