"""Fused and unfused twins over a few training steps: averaged models, and two ranks."""

import copy
import gc
from functools import partial

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import nn

from daq_mm import convert_model
from daq_mm.fuse import is_fused
from daq_mm.quantizers import quantizers_of, synchronize
from tolerances import fused_bound

STEPS = 3
#: Units between a weight and the loss.
UNITS = 4
RATE = 0.05


class Block(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + x)


def network(fuse):
    torch.manual_seed(5)
    model = nn.Sequential(Block(), Block())
    convert_model(model, dict(convert_first=True, fuse=fuse))
    assert any(is_fused(module) for module in model.modules()) == fuse
    return model


def batches(rank=0):
    generator = torch.Generator().manual_seed(6 + rank)
    size = (STEPS, 2, 4, 16, 8, 8)
    return torch.randn(size, generator=generator).transpose(0, 1).unbind(0)


def train(model, after_step=lambda: None, rank=0):
    """The loss before each step; plain SGD, so that weights are sums of gradients."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    losses = []
    for x, target in zip(*batches(rank)):
        optimizer.zero_grad()
        x = x.relu().contiguous(memory_format=torch.channels_last)
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        after_step()
        losses.append(float(loss))
    return losses


def moved(state, start):
    """What training changed of parameters and running averages, by name."""
    return {
        name: value.double() - start[name].double()
        for name, value in state.items()
        if value.is_floating_point() and "gradient_quantizer" not in name
    }


def assert_same_way(fused, unfused, start):
    """Weights went the same way, within the bound of one step for each step.

    A step's gradients differ by `fused_bound`, and a difference in the weights, of the size of
    that bound times a step, moves the next gradients by less than itself.
    """
    bound = STEPS * fused_bound(torch.float32, UNITS, coded=True)
    ways, expected = moved(fused, start), moved(unfused, start)
    assert ways.keys() == expected.keys()
    for name, way in expected.items():
        assert (ways[name] - way).norm() <= bound * way.norm() + 1e-9, name
        assert way.any(), name


def averaged(fuse, update_buffers):
    model = network(fuse)
    start = copy.deepcopy(model.state_dict())
    average = ExponentialMovingAverage(model, momentum=0.3, update_buffers=update_buffers)
    losses = train(model, lambda: average.update_parameters(model))
    return model, average, start, losses


@pytest.mark.parametrize("update_buffers", [False, True])
def test_averaged_model_of_a_fused_network(update_buffers):
    fused, average, start, losses = averaged(True, update_buffers)
    unfused, plain_average, _, plain_losses = averaged(False, update_buffers)
    assert losses == pytest.approx(plain_losses, rel=fused_bound(torch.float32, UNITS, coded=True))
    assert_same_way(fused.state_dict(), unfused.state_dict(), start)
    if update_buffers:
        states = average.module.state_dict(), plain_average.module.state_dict()
        assert_same_way(*states, start)
    # The average is a fused network of its own: it runs its own weights, not the model's.
    assert any(is_fused(module) for module in average.module.modules())
    x = batches()[0][0].relu()
    average.eval(), fused.eval()
    with torch.no_grad():
        y, other = average(x), fused(x)
        assert not torch.equal(y, other)
        plain = network(False)
        plain.load_state_dict(average.module.state_dict())
        expected = plain.eval()(x)
    assert (y - expected).norm() < fused_bound(torch.float32, UNITS, coded=False) * expected.norm()


def test_swapped_weights_are_the_ones_that_run():
    """As EMAHook does for validation: weights and averages change places by `.data`, in place."""
    fused, average, _, _ = averaged(True, False)
    fused.eval()
    x = batches()[0][0].relu()
    with torch.no_grad():
        before = fused(x)
        for p, q in zip(fused.parameters(), average.module.parameters()):
            kept = p.data.clone()
            p.data.copy_(q.data)
            q.data.copy_(kept)
        swapped = fused(x)
        unfused = network(False)
        unfused.load_state_dict(fused.state_dict())
        expected = unfused.eval()(x)
    assert not torch.equal(before, swapped)
    bound = fused_bound(torch.float32, UNITS, coded=False)
    assert (swapped - expected).norm() < bound * expected.norm()


def rank_main(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    for fuse in (True, False):
        model = network(fuse)
        parallel = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
        losses = train(parallel, partial(synchronize, model), rank)
        thresholds = torch.cat([q.threshold for q in quantizers_of(model).values()])
        result = dict(state=model.state_dict(), losses=losses, thresholds=thresholds)
        torch.save(result, f"{folder}/{'fused' if fuse else 'unfused'}{rank}.pt")
        # A reducer that outlives the group destroys it with the interpreter's lock held, which
        # gloo's thread may be waiting for.
        del parallel
        gc.collect()
    torch.distributed.destroy_process_group()


def test_two_ranks_of_a_fused_network(tmp_path):
    torch.multiprocessing.spawn(rank_main, (str(tmp_path),), nprocs=2)
    runs = {
        (name, rank): torch.load(tmp_path / f"{name}{rank}.pt")
        for name in ("fused", "unfused")
        for rank in range(2)
    }
    start = network(True).state_dict()
    for rank in range(2):
        fused, unfused = runs["fused", rank], runs["unfused", rank]
        assert_same_way(fused["state"], unfused["state"], start)
    first, second = runs["fused", 0], runs["fused", 1]
    assert first["losses"] != second["losses"]
    assert torch.equal(first["thresholds"], second["thresholds"])
    for name, value in first["state"].items():
        if "running" not in name and "gradient_quantizer" not in name:
            assert torch.equal(value, second["state"][name]), name
