"""Which implementation runs an op: the compiled kernels of a device, or the reference."""

from __future__ import annotations

import torch

from ._library import LIBRARY, _load_kernels  # noqa: F401

_KERNELS = _load_kernels()

#: Dispatch keys by device type.
_KEYS = {"cpu": "CPU", "cuda": "CUDA"}


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
    # conv_backward is the last op that a backend gains, so it stands for all of them.
    if torch._C._dispatch_has_kernel_for_dispatch_key("daq_mm::conv_backward", key):
        return True, f"daq_mm._C has {key} kernels"
    return False, f"daq_mm._C was built without {key} kernels (DAQ_MM_BUILD={build_switch()})"


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
