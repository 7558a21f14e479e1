"""The count of gradients as the host knows it where reading it would wait for a GPU."""

import copy
import pickle

import pytest
import torch
from torch import nn

from daq_mm import convert_model, host_count, ops
from daq_mm.host_count import HostCount
from daq_mm.quantizers import quantizers_of


@pytest.fixture
def reads(monkeypatch):
    """Tensors count as those of a GPU; every read of one is noted."""
    found = []

    class Readable(HostCount):
        def _remember(self, tensor, count):
            if not self.is_current(tensor):
                found.append(count)
            super()._remember(tensor, count)

    monkeypatch.setattr(host_count, "_is_on_host", lambda tensor: False)
    monkeypatch.setattr("daq_mm.quantizers.HostCount", Readable)
    return found


def test_a_count_is_read_once_and_counted_along(reads):
    from daq_mm import quantizers

    count, tensor = quantizers.HostCount(), torch.tensor([3])
    for expected in (3, 4, 5):
        assert count.read(tensor) == expected
        current = count.is_current(tensor)
        tensor.numpy()[0] += 1  # as a kernel does: no version is counted
        assert current
        count.add_one(tensor)
    assert reads == [3]
    tensor.fill_(40)
    assert not count.is_current(tensor)
    assert count.read(tensor) == 40
    assert count.read(tensor.clone()) == 40
    assert reads == [3, 40, 40]


def test_copies_read_their_own_tensor(reads):
    count, tensor = HostCount(), torch.tensor([7])
    assert count.read(tensor) == 7
    for other in (copy.deepcopy(count), *(pickle.loads(pickle.dumps(count, p)) for p in (0, 2))):
        assert not other.is_current(tensor)
        assert other.read(torch.tensor([9])) == 9


def test_nothing_is_known_once_a_graph_was_captured(monkeypatch):
    capturing = []
    monkeypatch.setattr(host_count, "_is_on_host", lambda tensor: False)
    monkeypatch.setattr(host_count, "_is_capturing", lambda tensor: bool(capturing))
    count, tensor = HostCount(), torch.tensor([1])
    assert count.read(tensor) == 1
    capturing.append(True)
    assert count.read(tensor) is None
    capturing.clear()
    assert count.read(tensor) is None


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, *copy.deepcopy(layers), *copy.deepcopy(layers))


def test_the_discriminator_runs_as_often_as_on_the_cpu(reads, monkeypatch):
    """The same thresholds and gradients; moments and tails only where they are due."""
    if not ops.kernels_built("cpu")[0]:
        pytest.skip(ops.kernels_built("cpu")[1])
    config = dict(recipe="daq", discriminator_interval=3)
    calls = []

    def count(name):
        op = getattr(ops, name)

        def counted(*args, **keywords):
            calls.append(name)
            return op(*args, **keywords)

        monkeypatch.setattr(ops, name, counted)

    for name in ("norm_backward_maxima", "norm_backward_thresholds", "norm_backward_apply"):
        count(name)

    def train(model):
        convert_model(model, config)
        generator = torch.Generator().manual_seed(1)
        for _ in range(7):
            x = torch.randn(2, 8, 6, 6, generator=generator)
            model(x).square().mean().backward()
        return [p.grad for p in model.parameters()], list(model.buffers())

    model = network()
    seen = train(model)
    layers = len(quantizers_of(model))
    assert layers > 1
    # the discriminator at the counts 0, 3 and 6, else maxima alone
    assert calls.count("norm_backward_maxima") == 4 * layers
    assert calls.count("norm_backward_thresholds") == 3 * layers
    assert calls.count("norm_backward_apply") == 7  # of the first convolution, which is not INT8
    assert reads == [0] * layers
    monkeypatch.undo()
    for actual, expected in zip(seen, train(network())):
        for one, other in zip(actual, expected):
            assert torch.equal(one, other)
    # a checkpoint sets the count: it is read again
    (first, *_) = quantizers_of(model).values()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    assert not first.host_count.is_current(first.iteration)
