"""Fixtures that many tests share: seeds, threads, and the CPU instruction sets to force."""

import random

import numpy as np
import pytest
import torch

from daq_mm import ops


def cpu_capabilities() -> list[str]:
    """Instruction sets that can be forced here; ['reference'] without the extension."""
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


@pytest.fixture(params=cpu_capabilities())
def backend(request):
    """Run the test with each CPU instruction set in turn (or with the reference)."""
    if request.param == "reference":
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
