"""A layer's two ops with the CUDA kernels, run thread by thread on the CPU (see emulated.py).

All of test_ops_conv_backward.py and test_ops_forward.py pass so with `pytest --device emulated`;
here is what CI has time for.
"""

import pytest
import torch

import emulated
import test_ops_conv_backward as backward
import test_ops_forward as forward
from conv_cases import FLOATS
from daq_mm import DAQConv2d

pytestmark = pytest.mark.skipif(bool(emulated.unavailable()), reason=emulated.unavailable())


def test_every_op_of_the_cpu_has_a_cuda_kernel():
    emulated.load()
    of_cpu = emulated.ops_with_kernels("daq_mm")
    assert of_cpu and of_cpu <= emulated.ops_with_kernels("daq_mm_emulated")


@pytest.fixture
def kernels():
    with emulated.as_cpu_kernels():
        yield "emulated"


@pytest.mark.parametrize("name", ("3x3 strided", "stem", "depthwise", "3d"))
def test_conv_forward(kernels, name):
    forward.test_conv_forward(name, torch.bfloat16, kernels)


@pytest.mark.parametrize("folded", [True, False])
@pytest.mark.parametrize("channel_grad_weight", [True, False])
@pytest.mark.parametrize("seed", [None, torch.tensor([77])])
def test_modes(kernels, folded, channel_grad_weight, seed):
    backward.test_modes(kernels, folded, channel_grad_weight, seed)


@pytest.mark.parametrize("name", backward.GEOMETRIES)
def test_geometries(kernels, name):
    backward.test_geometries(kernels, name, "contiguous")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("layout", ["channels_last", "contiguous", "strided"])
def test_memory_formats(kernels, layout, dtype):
    backward.test_dtypes(kernels, dtype, dtype, dtype)
    backward.test_memory_formats(kernels, layout, layout)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("folded", [True, False])
def test_non_finite_thresholds_reach_the_results(kernels, folded, value):
    backward.test_non_finite_thresholds_reach_the_results(kernels, folded, value)


def test_a_layer_trains_alike():
    """Two steps of a layer, thresholds included, give the same bits as the CPU's kernels."""
    x, g = torch.randn(2, 16, 9, 8), torch.randn(2, 24, 9, 8) * 1e-2

    def train():
        torch.manual_seed(3)
        layer = DAQConv2d(16, 24, 3, padding=1, bias=False)
        for _ in range(2):
            source = x.clone().requires_grad_()
            y = layer(source)
            y.backward(g)
        return [*layer.state_dict().values(), layer.weight.grad, y.detach(), source.grad]

    expected = train()
    with emulated.as_cpu_kernels():
        got = train()
    for a, b in zip(got, expected):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
