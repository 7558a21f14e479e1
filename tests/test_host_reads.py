"""A training step reads no value back from the device: that would wait for it in each layer, and
keep the step out of a CUDA graph.

Layers run on device 'meta', whose tensors have no values: reading one raises, and all branches are
those of a device that is not the CPU. What the ops do inside runs on the emulator, where a dispatch
mode refuses the reads. (Kernels that talk to the device would not compile there.)
"""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import emulated
from daq_mm import convert_model, norm
from daq_mm.conv import _Int8Mixin
from daq_mm.fuse import is_fused
from daq_mm.quantizers import _FusedQuantizer, quantizers_of
from test_fuse import BLOCKS, Basic

CONFIGS = {
    "daq": dict(recipe="daq"),
    "paper": dict(recipe="paper"),
    "gvq": dict(recipe="gvq"),
    "the mean is kept": dict(keep_gradient_mean=True),
    "stochastic": dict(rounding="stochastic"),
    "unfused": dict(fuse=False),
}


def converted(make, **config) -> nn.Module:
    model = make()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.momentum is None:
            module.momentum = 0.1  # PyTorch reads the count of a cumulative average as well
    convert_model(model, dict(convert_first=True, **config))
    fuse = config.get("fuse", True)
    assert any(is_fused(module) for module in model.modules()) == fuse
    return model


class HostRead(Exception):
    """A value was asked for on the host."""


class OnlyMeta(TorchDispatchMode):
    """Raises where a tensor of the host takes part: copying it would wait as well."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for value in torch.utils._pytree.arg_tree_leaves(*args, **(kwargs or {})):
            if isinstance(value, torch.Tensor) and not value.is_meta:
                raise HostRead(f"{func.name()} of a tensor on {value.device}")
        return func(*args, **(kwargs or {}))


def train(model: nn.Module, x: torch.Tensor) -> None:
    """Two steps; in the second one gradients and thresholds are there already."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(2):
        model(x.requires_grad_()).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)


@pytest.fixture
def without_values(monkeypatch):
    """Autocast, which layers ask whether it is on, does not know device 'meta'."""
    monkeypatch.setattr(_Int8Mixin, "out_dtype", lambda layer, x: x.dtype)
    with torch.device("meta"), OnlyMeta():
        yield


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", BLOCKS)
def test_layers_read_nothing(without_values, name, config):
    make, size, _ = BLOCKS[name]
    train(converted(make, **CONFIGS[config]), torch.empty(size))


def test_layers_read_nothing_where_the_host_counts(without_values, monkeypatch):
    """Between two evaluations of the discriminator, the count having been read before."""
    model = converted(Basic)
    for quantizer in quantizers_of(model).values():
        quantizer.host_count._remember(quantizer.iteration, 1)
    asked = []
    may_be_due = _FusedQuantizer.discriminator_may_be_due
    monkeypatch.setattr(
        *(_FusedQuantizer, "discriminator_may_be_due"),
        lambda q: asked.append(may_be_due(q)) or asked[-1],
    )
    train(model, torch.empty(2, 16, 8, 8))
    assert asked == [False] * 2 * len(quantizers_of(model))


def test_statistics_of_several_ranks_read_nothing(without_values, monkeypatch):
    sums = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda t, group: sums.append(t.shape))
    monkeypatch.setattr(norm, "_world_size", lambda norm: 2)
    model = converted(lambda: Basic(norm=nn.SyncBatchNorm))
    for module in model.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.process_group = "two ranks"
    train(model, torch.empty(2, 16, 8, 8))
    assert sums == 2 * [(33,), (33,), (2, 16), (2, 16)]


def test_a_read_on_this_device_raises(without_values, monkeypatch):
    """That the tests above can fail."""
    own = _FusedQuantizer.discriminator_may_be_due
    monkeypatch.setattr(
        *(_FusedQuantizer, "discriminator_may_be_due"), lambda q: bool(q.iteration) and own(q)
    )
    with pytest.raises(RuntimeError, match="cannot be called on meta tensors"):
        train(converted(Basic), torch.empty(2, 16, 8, 8))


#: What waits for the device, for a value or for the size of a result.
READS = {
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose"),
    *("nonzero", "masked_select", "unique_dim", "_unique2", "unique_consecutive"),
    *("repeat_interleave.Tensor", "bincount"),
}


class HostReads(TorchDispatchMode):
    """Notes what waits for the device, also within the ops of daq_mm."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        space, _, name = func.name().partition("::")
        if space == "aten" and not READS.isdisjoint((name, name.partition(".")[0])):
            self.seen.append(name)
        if not space.startswith("daq_mm"):
            return func(*args, **(kwargs or {}))
        key = "CPU"
        if not torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), key):
            key = "CompositeExplicitAutograd"
        with self:  # what it calls comes here as well; it itself is called past the dispatcher
            return func._op_dk(getattr(torch._C.DispatchKey, key), *args, **(kwargs or {}))


def reads_of(model: nn.Module) -> list[str]:
    """What two steps wait for."""
    with HostReads() as reads:
        train(model, torch.randn(2, 16, 5, 5))
    return reads.seen


@pytest.fixture
def kernels(monkeypatch, one_thread):
    if emulated.unavailable():
        pytest.skip(emulated.unavailable())
    monkeypatch.setattr(_FusedQuantizer, "discriminator_may_be_due", lambda q: q.mcs)
    with emulated.as_cpu_kernels():
        yield


@pytest.mark.parametrize("config", CONFIGS)
def test_ops_read_nothing(kernels, config):
    assert reads_of(converted(Basic, **CONFIGS[config])) == []


def test_ops_of_an_inverted_residual_read_nothing(kernels):
    assert reads_of(converted(BLOCKS["inverted residual"][0])) == []


def test_a_read_within_an_op_is_seen(kernels):
    """UI8's search compares on the host, within its op."""
    assert "item" in reads_of(converted(Basic, recipe="ui8"))


def test_reading_the_layer_s_counter_is_seen(kernels, monkeypatch):
    monkeypatch.undo()  # the CPU's branch again
    assert reads_of(converted(Basic)) == 2 * 2 * ["_local_scalar_dense"]
