"""Fixtures that many tests share: seeds, the device, and the CPU instruction sets to force."""

import random

import numpy as np
import pytest
import torch

import emulated
from daq_mm import ops

_emulated = False


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        choices=("cpu", "cuda", "emulated"),
        help="where tests/test_ops_*.py run the ops: cpu (default), cuda, or the CUDA kernels "
        "emulated on the CPU, which takes minutes a file",
    )


def pytest_configure(config) -> None:
    """Choose the device before the test files are imported; they make tensors on the default."""
    global _emulated
    _emulated = config.getoption("--device") == "emulated"
    if config.getoption("--device") != "cuda":
        return
    if not torch.cuda.is_available():
        raise pytest.UsageError("--device cuda: torch sees no CUDA device here")
    if not ops.kernels_built("cuda")[0]:
        raise pytest.UsageError(f"--device cuda: {ops.kernels_built('cuda')[1]}")
    torch.set_default_device("cuda")


def backends() -> list[str]:
    """What the `backend` fixture runs a test with: the device, or the CPU instruction sets here.

    ['reference'] without the extension.
    """
    if _emulated:
        return ["emulated"]
    if torch.get_default_device().type == "cuda":
        return ["cuda"]
    if not ops.kernels_built("cpu")[0]:
        return ["reference"]
    from daq_mm import _C

    return list(_C.cpu_capabilities())


@pytest.fixture(autouse=True)
def _seeds():
    """Each test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def pytest_generate_tests(metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", backends(), indirect=True)


@pytest.fixture
def backend(request):
    """Run the test on the device, on a CPU with each instruction set in turn."""
    if request.param == "emulated":
        with emulated.as_cpu_kernels():
            yield request.param
        return
    if request.param in ("reference", "cuda"):
        yield request.param
        return
    ops.set_cpu_capability(request.param)
    yield request.param
    ops.set_cpu_capability(None)


@pytest.fixture
def one_thread():
    """For tiny cases, where waiting threads would slow a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
