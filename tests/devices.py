"""The device that the op tests run on: `pytest --device cpu|cuda` (see conftest.py).

conftest makes it torch's default device before the test files are imported, so every tensor that a
test makes, operands and the reference's results alike, is there without the test naming it.
"""

import pytest
import torch

from daq_mm import ops

DEVICE = torch.get_default_device().type

#: For files that compare kernels with the reference: skip them where there are no kernels.
needs_kernels = pytest.mark.skipif(
    not ops.kernels_built(DEVICE)[0], reason=ops.kernels_built(DEVICE)[1]
)

#: For checks of values that lie on the device, which a CUDA op cannot look at without waiting; the
#: emulated ones do not either.
host_values_only = pytest.mark.skipif(
    "config.getoption('--device') != 'cpu'", reason="CUDA ops do not read values on the host"
)
