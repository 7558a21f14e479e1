"""The 8-bit twin of an activation: what lets a value travel between layers in 8 bits.

A fused unit (`daq_mm.glue`) attaches a twin to the tensor that it returns. An INT8 convolution
that gets this tensor takes the twin instead of quantizing again. Anything else sees an ordinary
tensor; where an operation makes a new one, the twin stays behind and the convolution quantizes.
"""

from __future__ import annotations

import torch

from . import ops

Tensor = torch.Tensor

_ATTRIBUTE = "_daq_twin"


class Twin:
    """q and its parameters for one activation tensor.

    Args:
        q: uint8 (N, C, *spatial), channels-last; None to make it of `x` when it is first asked
            for.
        qparams: float32 (2,) = (step, zero point), the ones that `quantize_x` would find.
        allow_unsigned: the setting that they were found with.
        carrier: the tensor by which convolutions connect to the autograd graph. Its values are
            never read; it has the activation's size and dtype on storage of one value. None for
            the activation itself.
        x: the float activation; None if only q exists, and then x's values must not be read.
        exact: the activation's float values for observers of quantization noise, or None.
    """

    def __init__(
        self,
        q: Tensor | None,
        qparams: Tensor,
        *,
        allow_unsigned: bool,
        carrier: Tensor | None,
        x: Tensor | None,
        exact: Tensor | None = None,
    ) -> None:
        self._q = q
        self.qparams = qparams
        self.allow_unsigned = allow_unsigned
        self.carrier = carrier
        self.exact = exact
        self.is_only_value = x is None
        self._version: int | None = None

    def attach(self, x: Tensor) -> None:
        """Make this the twin of x, the float activation or the carrier itself."""
        # A weak bond: the tensor owns its twin, not the other way round.
        self._version = None if self.is_only_value else x._version
        setattr(x, _ATTRIBUTE, self)

    def quantized(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """q and its parameters; q is made of x, whose twin this is, when first asked for."""
        if self._q is None:
            self._q = ops.quantize_x_with(x.detach(), self.qparams)
        return self._q, self.qparams

    def is_current(self, x: Tensor) -> bool:
        """Whether x still has the values that it had when the twin was made."""
        return self._version is None or x._version == self._version

    def source(self, x: Tensor) -> Tensor:
        """The tensor by which a consumer of x's twin connects to the autograd graph.

        The carrier, so that its gradient reaches the unit apart from other consumers' and needs
        no addition of its own; x itself where the two are not of one node any more, as after
        reentrant activation checkpointing.
        """
        if self.carrier is None:
            return x
        same = x.requires_grad == self.carrier.requires_grad and x.grad_fn is self.carrier.grad_fn
        return self.carrier if same else x


def twin_of(x: Tensor, *, allow_unsigned: bool) -> Twin | None:
    """x's twin if it has a usable one, quantized under the same setting."""
    if torch.compiler.is_compiling():
        return None
    twin = getattr(x, _ATTRIBUTE, None)
    if twin is None:
        return None
    if twin.allow_unsigned == allow_unsigned and twin.is_current(x):
        return twin
    if twin.is_only_value:
        raise RuntimeError("a fused unit's 8-bit output reached a layer that reads another grid")
    return None


def share_twin(x: Tensor, q: Tensor, qparams: Tensor, *, allow_unsigned: bool) -> None:
    """Keep x's 8-bit form for the next convolution that reads x, as in a residual block with a
    convolution on its shortcut: it is quantized, and kept for the backward pass, once."""
    if torch.compiler.is_compiling() or x.is_inference():
        return
    Twin(q, qparams, allow_unsigned=allow_unsigned, carrier=None, x=x).attach(x)


def move_twin(x: Tensor, copy: Tensor) -> Tensor:
    """`copy`, which has x's values in another layout, with x's twin."""
    twin = getattr(x, _ATTRIBUTE, None)
    if copy is not x and twin is not None and twin.is_current(x):
        twin.attach(copy)
    return copy


def new_carrier(size: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of this size on the storage of a single value, which is no view of another."""
    storage = torch.zeros(1, dtype=dtype, device=device).untyped_storage()
    return torch.empty(0, dtype=dtype, device=device).set_(storage, 0, size, [0] * len(size))
