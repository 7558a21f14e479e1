"""Which implementation runs an op: the compiled kernels of a device, or the reference."""

from __future__ import annotations

import torch

from . import conv  # noqa: F401  (defines the op that stands for all)
from ._library import LIBRARY, _load_kernels  # noqa: F401

_KERNELS = _load_kernels()

#: Dispatch keys by device type.
_KEYS = {"cpu": "CPU", "cuda": "CUDA"}

#: Device types that compiled kernels serve. conv_backward is the last op that a backend gains, so
#: it stands for all of them.
_SERVED = frozenset(
    device_type
    for device_type, key in _KEYS.items()
    if torch._C._dispatch_has_kernel_for_dispatch_key("daq_mm::conv_backward", key)
)

_reference_allowed = False


def kernels_built(device_type: str = "cpu") -> tuple[bool, str]:
    """Whether compiled kernels serve this device type, and the reason in words.

    Args:
        device_type: 'cpu' or 'cuda', as in `torch.device.type`.
    """
    if _KERNELS is None:
        return False, (
            "daq_mm._C was not built; rebuild with DAQ_MM_BUILD=auto pip install "
            "--no-build-isolation -e . (needs a C++ compiler)"
        )
    key = _KEYS.get(device_type)
    if key is None:
        return False, f"daq_mm has no kernels for device type {device_type!r}; allowed: cpu, cuda"
    if device_type in _SERVED:
        return True, f"daq_mm._C has {key} kernels"
    missing = f"daq_mm._C was built without {key} kernels (DAQ_MM_BUILD={build_switch()})"
    if device_type == "cuda":
        missing += f"; {cuda_remedy()}"
    return False, missing


def cuda_remedy() -> str:
    """What to do about missing CUDA kernels, in words."""
    if torch.version.cuda is None:
        return (
            f"this torch ({torch.__version__}) has no CUDA either: install one that has, then "
            "rebuild with DAQ_MM_BUILD=cuda pip install --no-build-isolation -e ."
        )
    return (
        f"rebuild with DAQ_MM_BUILD=cuda pip install --no-build-isolation -e . (needs nvcc of "
        f"CUDA {torch.version.cuda})"
    )


def allow_reference(allowed: bool = True) -> None:
    """Let layers on CUDA run the slow reference where that build has no CUDA kernels.

    `DAQHook(allow_reference=True)` calls it. On a CPU, layers run the reference unasked (a first
    try needs no compiler there), and only the hook refuses it.
    """
    global _reference_allowed
    _reference_allowed = allowed


def check_served(tensor: torch.Tensor) -> None:
    """Raise RuntimeError if a layer would run the reference on CUDA without being allowed to."""
    if tensor.is_cuda and "cuda" not in _SERVED and not _reference_allowed:
        raise RuntimeError(
            f"no INT8 kernels for a tensor on {tensor.device}: {kernels_built('cuda')[1]}. To run "
            "the slow reference all the same, call daq_mm.ops.allow_reference()"
        )


def build_switch() -> str:
    """The value of DAQ_MM_BUILD that the extension was built with, or 'none'."""
    return "none" if _KERNELS is None else _KERNELS.build_info()["build"]


def cpu_capability() -> str:
    """The instruction set that the CPU kernels use: 'avx512_vnni', 'avx2', 'scalar', ...

    'reference' if there are no kernels.
    """
    return "reference" if _KERNELS is None else _KERNELS.cpu_capability()


def set_cpu_capability(name: str | None) -> None:
    """Force the CPU kernels to an instruction set, for tests and benchmarks.

    Args:
        name: one of `daq_mm._C.cpu_capabilities()`, or None for the best the processor has.

    Raises:
        ValueError: an instruction set that this build or processor lacks.
        RuntimeError: a build without the extension.
    """
    if _KERNELS is None:
        raise RuntimeError(kernels_built("cpu")[1])
    allowed = _KERNELS.cpu_capabilities()
    if name is not None and name not in allowed:
        raise ValueError(f"CPU capability {name!r} is not available; allowed: {allowed}")
    _KERNELS.set_cpu_capability(name or "")


def backend_of(tensor: torch.Tensor) -> str:
    """Name of what runs the ops on this tensor: e.g. 'cpu/avx512_vnni', 'cuda', 'reference'."""
    if not kernels_built(tensor.device.type)[0]:
        return "reference"
    if tensor.device.type == "cpu":
        return f"cpu/{cpu_capability()}"
    return tensor.device.type
