"""One network being trained in one mode: what an iteration is, and whether it computes sense."""

from __future__ import annotations

import contextlib
import copy
import gc
import time
from dataclasses import dataclass

import torch
import torch._dynamo
from torch import nn

from daq_mm import DAQConfig, to_channels_last

from .modes import Mode
from .networks import Network, inputs_to_memory_format

#: The first loss of a mode may differ from float32's by this share: all start from the same
#: weights and the same batch, and neither bfloat16 nor INT8 moves a fresh network's loss by more.
LOSS_TOLERANCE = 0.25

#: Iterations on the stream of a capture before it, so that libraries have set themselves up there.
_BEFORE_CAPTURE = 3


@dataclass(frozen=True)
class Setting:
    """What is the same for all modes of a run."""

    batch: int
    device: torch.device
    channels_last: bool
    config: DAQConfig
    seed: int = 0


class Trainer:
    """A copy of the network, an optimizer and a fixed random batch.

    SGD with momentum and weight decay, as OpenMMLab's configs have it; the learning rate is so
    small that the loss of random targets stays where it is.

    Args:
        network: is copied, so that every mode begins with the same weights.
        mode: how to train.
        setting: batch size, device, layout, INT8 settings.
    """

    def __init__(self, network: Network, mode: Mode, setting: Setting) -> None:
        self.mode = mode
        self.device = setting.device
        self.module = copy.deepcopy(network.module).to(setting.device)
        if setting.channels_last:
            to_channels_last(self.module)
        self.report = mode.convert(self.module, setting.config) if mode.convert else None
        torch.manual_seed(setting.seed)
        batch = network.batch(setting.batch, setting.device)
        self.batch = inputs_to_memory_format(batch, setting.channels_last)
        self.optimizer = torch.optim.SGD(
            [p for p in self.module.parameters() if p.requires_grad],
            lr=1e-5,
            momentum=0.9,
            weight_decay=1e-4,
        )
        self.forward = torch.compile(self.module) if mode.compiled else self.module
        self.graph: torch.cuda.CUDAGraph | None = None
        self.graph_loss: torch.Tensor | None = None

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context that the forward pass runs in."""
        if self.mode.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.mode.autocast)

    def loss(self) -> torch.Tensor:
        """The forward pass of an iteration."""
        with self.autocast():
            return self.forward(*self.batch)

    def step(self) -> torch.Tensor:
        """One training iteration; returns the loss before it."""
        if self.graph is not None:
            self.graph.replay()
            return self.graph_loss
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def capture(self) -> None:
        """From now on, `step` replays a CUDA graph of a whole iteration, recorded here.

        A graph repeats the device's work without the host's: no Python, no dispatch, and no gaps
        between kernels. The batch, weights, optimizer state and thresholds stay where they are.

        Raises:
            RuntimeError: an iteration that waits for the device (a detector that picks boxes on
                the host), which no graph can hold.
        """
        # A graph of tensors that nobody reads any more may keep the nodes that add up gradients,
        # which belong to the stream of their first step: the capture would have to wait for it.
        gc.collect()
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_BEFORE_CAPTURE):
                self.step()
            self.release_gradients()
        torch.cuda.current_stream().wait_stream(stream)
        gc.collect()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            loss = self.step()
        self.graph, self.graph_loss = graph, loss

    def release_gradients(self) -> None:
        """Free what the next iteration would free first."""
        self.optimizer.zero_grad(set_to_none=True)

    def facts(self) -> dict:
        """The mode and what it did to the network, as record fields."""
        fields = {"mode": self.mode.name, "words": self.mode.words}
        if self.report is not None:
            fields["int8_layers"] = len(self.report.converted)
            fields["float_layers"] = len(self.report.skipped)
        return fields


def warm_up(trainer: Trainer, *, iterations: int, seed: int = 0) -> dict:
    """Run the first iterations, compiling on the way.

    Returns:
        'first_loss', 'first_iteration_s' and, for a compiled mode, how many graphs the compiler
        made and how often it had to leave one.

    Raises:
        whatever the mode fails with; ArithmeticError for a loss that is not finite.
    """
    torch.manual_seed(seed)
    if trainer.mode.compiled:
        # The modes of a run share their code, so each counts as a recompilation of the others.
        torch._dynamo.config.recompile_limit = 64
        torch._dynamo.utils.counters.clear()
    begin = time.perf_counter()
    first = trainer.step().item()
    facts = {"first_loss": first, "first_iteration_s": time.perf_counter() - begin}
    last = first
    for _ in range(iterations - 1):
        last = trainer.step().item()
    for value in (first, last):
        if not -float("inf") < value < float("inf"):
            raise ArithmeticError(f"the loss is {value}, so its time means nothing")
    if trainer.mode.compiled:
        counters = torch._dynamo.utils.counters
        facts["graphs"] = counters["stats"].get("unique_graphs", 0)
        facts["graph_breaks"] = sum(counters["graph_break"].values())
    return facts


def check_loss(mode: str, loss: float, expected: float, expected_mode: str) -> None:
    """Raise ArithmeticError if a mode's first loss is far from another's."""
    if abs(loss - expected) > LOSS_TOLERANCE * abs(expected):
        raise ArithmeticError(
            f"{mode} computes a first loss of {loss:.4g} where {expected_mode} has "
            f"{expected:.4g}; more than {LOSS_TOLERANCE:.0%} apart, so its time means nothing"
        )


def parameters_of(module: nn.Module) -> int:
    """Number of trainable values."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
