"""Gradient quantizers: they own a layer's thresholds and find those of the next gradient.

A registry by name (`DAQConfig.gradient_quantizer`); the two of the paper's ablation and UI8's stand
here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from . import ops
from .config import GRADIENT_QUANTIZERS, DAQConfig
from .host_count import HostCount

Tensor = torch.Tensor

_REGISTRY: dict[str, type[GradientQuantizer]] = {}


def register(name: str) -> Callable[[type], type]:
    """Class decorator: make a `GradientQuantizer` known to DAQConfig under this name."""

    def add(cls: type) -> type:
        if name in _REGISTRY:
            raise ValueError(f"gradient quantizer {name!r} is already registered")
        _REGISTRY[name] = cls
        GRADIENT_QUANTIZERS.add(name)
        return cls

    return add


def build_quantizer(channels: int, config: DAQConfig, layer_seed: int = 0) -> GradientQuantizer:
    """The quantizer that the config names, for a layer of so many output channels."""
    return _REGISTRY[config.gradient_quantizer](channels, config, layer_seed)


class GradientQuantizer(nn.Module):
    """Thresholds of one layer's output gradient, as buffers: in checkpoints, on the device.

    Args:
        channels: output channels Co of the layer.
        config: the settings.
        layer_seed: tells layers apart in stochastic rounding, 31 bits.

    Buffers:
        threshold: float32 (Co + 1,), one a channel, then the whole tensor's; 0 until a nonzero
            gradient was seen.
        tail_probability: float32 (Co + 1,), P(|g| > sigma) as last measured; 1 until then.
        iteration: int64 (1,), gradients seen.

    `threshold` and the buffers in `averaged` are made to agree across ranks by `synchronize`.
    """

    #: Names of float32 buffers of which ranks take the mean.
    averaged: tuple[str, ...] = ("tail_probability",)

    def __init__(self, channels: int, config: DAQConfig, layer_seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.layer_seed = layer_seed
        self.register_buffer("threshold", torch.zeros(channels + 1))
        self.register_buffer("tail_probability", torch.ones(channels + 1))
        self.register_buffer("iteration", torch.zeros(1, dtype=torch.int64))

    def update(self, g: Tensor) -> Tensor:
        """Thresholds float32 (Co + 1,) for the gradient g (N, Co, *out); moves the state on."""
        raise NotImplementedError

    def update_scale(self) -> Tensor | None:
        """float32 (1,), the factor on the layer's weight and bias gradients; None for none."""
        return None

    def needs_values(self) -> bool:
        """Whether `update` needs the gradient in memory.

        Fused units ask: if not, they call `update_from_backward` and never write it as floats.
        """
        return True

    def update_from_backward(self, *glue: Tensor | None) -> Tensor:
        """As `update`, of the gradient that `ops.norm_backward_apply` would make of `glue`."""
        raise NotImplementedError

    def seed(self) -> Tensor | None:
        """int64 (1,) for stochastic rounding of the next gradient, None to round to nearest.

        A function of the config's seed, the layer and the gradient's number, so that a resumed
        run draws the same numbers.
        """
        if self.config.rounding == "nearest":
            return None
        return self.iteration * 0x9E3779B1 + (self.config.rounding_seed ^ self.layer_seed)

    def gaussian(self) -> Tensor:
        """bool (Co + 1,): which channels the discriminator holds for Gaussian."""
        return self.tail_probability > self.config.mcs_lambda

    def extra_repr(self) -> str:
        return f"{self.config.gradient_quantizer}, {self.threshold.numel() - 1} channels"

    def _apply(self, fn, recurse=True):
        """Follow the module to a device but stay float32: model.half() must not touch state."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self._buffers[name]
            if after.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(after.device)
        return self

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, *rest):
        """A plain network's checkpoint has no thresholds: keep those there are, complain not."""
        own_missing: list[str] = []
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, own_missing, *rest
        )
        if len(own_missing) < len(self._buffers):
            # Some but not all of the state: a damaged checkpoint, which must be told.
            missing.extend(own_missing)


class _FusedQuantizer(GradientQuantizer):
    """The two whose update is one op."""

    mcs: bool

    def __init__(self, channels: int, config: DAQConfig, layer_seed: int = 0) -> None:
        super().__init__(channels, config, layer_seed)
        self.host_count = HostCount()

    def update(self, g: Tensor) -> Tensor:
        return self._counted(
            ops.update_thresholds,
            g,
            **self._state_and_rules(),
            interval=self.config.discriminator_interval,
        )

    def needs_values(self) -> bool:
        return False

    def update_from_backward(self, *glue: Tensor | None) -> Tensor:
        if self.discriminator_may_be_due():
            return self._counted(
                ops.norm_backward_thresholds,
                *glue,
                **self._state_and_rules(),
                interval=self.config.discriminator_interval,
            )
        maximum = ops.norm_backward_maxima(*glue)
        return self._counted(ops.thresholds_from_maxima, maximum, **self._state_and_rules())

    def discriminator_may_be_due(self) -> bool:
        """Whether it is due for the next gradient; True also where the host does not know, as in a
        CUDA graph."""
        if not self.mcs:
            return False
        count = self.host_count.read(self.iteration)
        return count is None or count % self.config.discriminator_interval == 0

    def _state_and_rules(self) -> dict[str, Any]:
        """What the ops that move thresholds take beside the gradient."""
        config = self.config
        return dict(
            threshold=self.threshold,
            tail_probability=self.tail_probability,
            iteration=self.iteration,
            mcs=self.mcs,
            decay=1.0 - config.mcs_k * config.mcs_a,
            gain=config.mcs_a,
            cap=config.cap_at_maximum,
            gaussian_above=config.mcs_lambda,
        )

    def _counted(self, update: Callable[..., Tensor], *args, **keywords) -> Tensor:
        """The result of an op that adds 1 to `iteration`, counted on the host too."""
        current = self.host_count.is_current(self.iteration)
        threshold = update(*args, **keywords)
        if current:
            self.host_count.add_one(self.iteration)
        return threshold


@register("mcs")
class MagnitudeAwareClipping(_FusedQuantizer):
    """Discriminator and inverted-T recursion (paper, section 3.3, equations 9 to 13)."""

    mcs = True


@register("absmax")
class AbsoluteMaximum(_FusedQuantizer):
    """No clipping: each threshold is the absolute maximum of its gradient."""

    mcs = False

    def gaussian(self) -> Tensor:
        """Nothing is clipped, so every channel counts as Gaussian."""
        return torch.ones_like(self.threshold, dtype=torch.bool)


@register("ui8")
class DirectionSensitiveClipping(GradientQuantizer):
    """UI8 (Zhu et al., "Towards Unified INT8 Training", CVPR 2020, arXiv 1912.12607).

    One threshold a layer, that of the smallest cosine distance d_c between the gradient and its
    quantized self, searched at every `ui8_interval`-th gradient ("direction sensitive gradient
    clipping"); and the layer's update scaled by max(exp(-alpha d_c), beta) with the d_c of that
    search ("deviation counteractive learning rate scaling").

    The factor is put on the gradients of weight and bias. Under SGD with momentum the step is a
    linear function of the gradients, so a constant factor on them is the same factor on the
    layer's learning rate. Where it changes, momentum remembers each gradient with the factor of
    its time, while a learning rate would apply today's to all; weight decay is not scaled, while
    a learning rate would scale it; an optimizer that normalises gradients (Adam) cancels it; and
    clipping by the norm of all gradients sees the scaled ones.

    Buffers:
        deviation: float32 (1,), d_c at the last search; 0 until then.
    """

    averaged = ("tail_probability", "deviation")

    def __init__(self, channels: int, config: DAQConfig, layer_seed: int = 0) -> None:
        super().__init__(channels, config, layer_seed)
        self.register_buffer("deviation", torch.zeros(1))

    def update(self, g: Tensor) -> Tensor:
        return ops.update_direction_threshold(
            g,
            self.threshold,
            self.deviation,
            self.iteration,
            interval=self.config.ui8_interval,
            bits=self.config.gradient_bits,
        )

    def update_scale(self) -> Tensor:
        return (-self.config.ui8_alpha * self.deviation).exp().clamp_min(self.config.ui8_beta)

    def gaussian(self) -> Tensor:
        """There is no discriminator, so every channel counts as Gaussian."""
        return torch.ones_like(self.threshold, dtype=torch.bool)


def quantizers_of(model: nn.Module) -> dict[str, GradientQuantizer]:
    """The model's quantizers by module name, each once, in the order of registration."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, GradientQuantizer)
    }


def synchronize(model: nn.Module, group: torch.distributed.ProcessGroup | None = None) -> None:
    """Make all ranks agree on thresholds and the other state after a training step.

    Every rank starts a step from the same state, and the update rules of 'mcs' and 'absmax' grow
    with the maximum; so the maximum of the ranks' thresholds is what one process would have had
    on the joint batch (while a channel's type is the same everywhere). For 'ui8' it clips least.
    Tail probabilities and deviations are averaged.

    Two collective calls for the whole model; every rank must call it, in the same order.
    """
    quantizers = list(quantizers_of(model).values())
    world = torch.distributed.get_world_size(group)
    if not quantizers or world == 1:
        return
    thresholds = [quantizer.threshold for quantizer in quantizers]
    averaged = [getattr(q, name) for q in quantizers for name in q.averaged]
    for buffers, reduce_op in (
        (thresholds, torch.distributed.ReduceOp.MAX),
        (averaged, torch.distributed.ReduceOp.SUM),
    ):
        flat = torch.cat(buffers)
        torch.distributed.all_reduce(flat, op=reduce_op, group=group)
        if reduce_op is torch.distributed.ReduceOp.SUM:
            flat /= world
        for buffer, value in zip(buffers, flat.split([b.numel() for b in buffers])):
            buffer.copy_(value)
