"""The 8-bit twin of an activation: what lets a value travel between layers in 8 bits.

A fused unit (`daq_mm.glue`) attaches a twin to the tensor that it returns. An INT8 convolution
that gets this tensor takes the twin instead of quantizing again. Anything else sees an ordinary
tensor; where an operation makes a new one, the twin stays behind and the convolution quantizes.
"""

from __future__ import annotations

from copy import copy as copy_of
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from . import ops

Tensor = torch.Tensor

_ATTRIBUTE = "_daq_twin"


@dataclass
class Merged:
    """A unit's gradient before its activation, found in the epilogue of a reader's grad-input.

    Attributes:
        gz: that gradient, which the reader returned as its own. sums: float64 (2, C), its sums.
        other: the other reader's gradient, which gz contains, or None.
        saved: what the unit had saved for its backward pass, unpacked (it can be only once).
    """

    gz: Tensor
    sums: Tensor
    other: Tensor | None
    saved: tuple[Tensor | None, ...]

    def is_of(self, gradients: list[Tensor]) -> bool:
        """Whether these, from the readers' slots, are what was merged and nothing else."""
        mine = [t for t in (self.gz, self.other) if t is not None]
        # Both sides keep their tensors alive, so equal addresses are the same values.
        return sorted(t.data_ptr() for t in gradients) == sorted(t.data_ptr() for t in mine)


@dataclass
class Readers:
    """Those who read a unit's output through its carriers: convolutions, and units that add it.

    The unit's node and its twin share this, so that in the backward pass the last of at most two
    readers can do the unit's first sweep along with its own product (`daq_mm.glue`).

    Attributes:
        count: readers in the forward pass. waiting: the gradient of the reader that came first in
            the backward pass, while the other one's is to come. merged: see `Merged`.
        task: the call of backward() that the last two belong to.
    """

    count: int = 0
    waiting: Tensor | None = None
    merged: Merged | None = None
    task: int = -1

    def in_this_pass(self) -> Readers:
        """Itself, without what an earlier backward() left, which may have run only a part."""
        task = torch._C._current_graph_task_id()
        if task != self.task:
            self.task, self.waiting, self.merged = task, None, None
        return self


class Twin:
    """q and its parameters for one activation tensor.

    Args:
        q: uint8 (N, C, *spatial), channels-last; None to make it of `x` when it is first asked
            for.
        qparams: float32 (2,) = (step, zero point), the ones that `quantize_x` would find.
        allow_unsigned: the setting that they were found with.
        carriers: two tensors by which readers connect to the autograd graph. Their values are
            never read; they have the activation's size and dtype on storage of one value. None for
            the activation itself. An entry becomes None once the twin is attached to that carrier:
            the tensor that has the twin.
        readers: of the carriers.
        x: the float activation; None if only q exists, and then x's values must not be read.
        exact: the activation's float values for observers of quantization noise, or None.
        maker: the layer that quantized x for itself and shares it, or None.
    """

    def __init__(
        self,
        q: Tensor | None,
        qparams: Tensor,
        *,
        allow_unsigned: bool,
        carriers: tuple[Tensor | None, ...] | None,
        x: Tensor | None,
        readers: Readers | None = None,
        exact: Tensor | None = None,
        maker: nn.Module | None = None,
    ) -> None:
        self._q = q
        self.qparams = qparams
        self.allow_unsigned = allow_unsigned
        self.carriers = carriers
        self.readers = readers
        self.exact = exact
        self.is_only_value = x is None
        self._version: int | None = None
        # A number, so that a tensor with a twin can be saved without the layer.
        self._maker = None if maker is None else id(maker)

    def attach(self, x: Tensor) -> None:
        """Make this the twin of x, the float activation or the carrier itself."""
        # A weak bond: the tensor owns its twin, not the other way round. A cycle would keep the
        # iteration's autograd graph until Python's collector comes by, and with it the nodes that
        # add up the parameters' gradients, which remember the stream they were made on: a CUDA
        # graph cannot be captured after that.
        if self.carriers is not None:
            self.carriers = tuple(None if carrier is x else carrier for carrier in self.carriers)
        self._version = None if self.is_only_value else x._version
        setattr(x, _ATTRIBUTE, self)

    def move(self, x: Tensor, copy: Tensor) -> None:
        """Attach the like of this twin of x to `copy`, which has x's values."""
        twin = copy_of(self)
        if self.carriers is not None:
            twin.carriers = tuple(x if carrier is None else carrier for carrier in self.carriers)
        twin.attach(copy)

    def is_made_by(self, layer: nn.Module) -> bool:
        """Whether this layer quantized x for itself: if it reads x again, that is another pass."""
        return self._maker == id(layer)

    def quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q and its parameters; q is made of x, whose twin this is, when first asked for."""
        if self._q is None:
            self._q = ops.quantize_x_with(x.detach(), self.qparams)
        return self._q, self.qparams

    def is_current(self, x: Tensor) -> bool:
        """Whether x still has the values that it had when the twin was made."""
        return self._version is None or x._version == self._version

    def source(self, x: Tensor) -> Tensor:
        """The tensor by which one more reader of x's values connects to the autograd graph.

        A carrier, so that its gradient reaches the unit apart from other readers' and needs no
        addition of its own (the third reader and later ones share the second's); x itself where
        the two are not of one node any more, as after reentrant activation checkpointing.
        """
        if self.carriers is None:
            return x
        carrier = self.carriers[min(self.readers.count, 1)]
        if carrier is None:
            carrier = x
        if x.requires_grad != carrier.requires_grad or x.grad_fn is not carrier.grad_fn:
            return x
        self.readers.count += 1
        return carrier


def source_of(x: Tensor) -> Tensor:
    """`Twin.source` of x's twin, for a reader of x's floats; x if it has no current twin."""
    twin = None if torch.compiler.is_compiling() else getattr(x, _ATTRIBUTE, None)
    return x if twin is None or not twin.is_current(x) else twin.source(x)


def twin_of(x: Tensor, *, allow_unsigned: bool, reader: nn.Module) -> Twin | None:
    """x's twin if it has a usable one, quantized under the same setting, for this layer.

    The layer that made a twin of its input does not get it back: it quantizes in each pass. What
    changes an input between two passes need not count versions (a CUDA graph's replay, NumPy, a
    copy to `x.data`), and a graph must hold the kernel that quantizes.
    """
    if torch.compiler.is_compiling():
        return None
    twin = getattr(x, _ATTRIBUTE, None)
    if twin is None or twin.is_made_by(reader):
        return None
    if twin.allow_unsigned == allow_unsigned and twin.is_current(x):
        return twin
    if twin.is_only_value:
        raise RuntimeError("a fused unit's 8-bit output reached a layer that reads another grid")
    return None


def share_twin(
    x: Tensor, q: Tensor, qparams: Tensor, *, allow_unsigned: bool, maker: nn.Module
) -> None:
    """Keep x's 8-bit form, which `maker` found, for the next convolution that reads x, as in a
    residual block with a convolution on its shortcut: it is quantized, and kept for the backward
    pass, once."""
    if torch.compiler.is_compiling() or x.is_inference():
        return
    Twin(q, qparams, allow_unsigned=allow_unsigned, carriers=None, x=x, maker=maker).attach(x)


def move_twin(x: Tensor, copy: Tensor) -> Tensor:
    """`copy`, which has x's values in another layout, with x's twin."""
    twin = getattr(x, _ATTRIBUTE, None)
    if copy is not x and twin is not None and twin.is_current(x):
        twin.move(x, copy)
    return copy


def new_carrier(size: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of this size on the storage of a single value, which is no view of another."""
    empty = torch.empty(0, dtype=dtype, device=device)
    return empty.set_(_one_value(dtype, device), 0, size, [0] * len(size))


@cache
def _one_value(dtype: torch.dtype, device: torch.device) -> torch.UntypedStorage:
    return torch.zeros(1, dtype=dtype, device=device).untyped_storage()
