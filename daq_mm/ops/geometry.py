"""Sizes of a convolution: one frozen record, checked once, shared by ops, shapes and layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Longest contraction whose signed 8-bit products surely fit in int32: (2**31 - 1) // 127**2.
MAX_INT32_CONTRACTION = (2**31 - 1) // 127**2
#: The same for an unsigned 0..255 operand times a signed one: (2**31 - 1) // (255 * 127).
MAX_INT32_CONTRACTION_UNSIGNED = (2**31 - 1) // (255 * 127)


@dataclass(frozen=True)
class ConvGeometry:
    """A 2D or 3D convolution of `x` (N, Ci, *spatial) with `w` (Co, Ci // groups, *kernel).

    Attributes:
        x_size: (N, Ci, *spatial).
        w_size: (Co, Ci // groups, *kernel).
        stride, dilation: one entry a spatial axis.
        padding: two entries a spatial axis, all the begins and then all the ends, so that
            asymmetric padding needs no copy of x.
        groups: number of blocked connections.

    Raises:
        ValueError: sizes that do not fit together; the message names the argument.
    """

    x_size: tuple[int, ...]
    w_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def make(
        cls,
        x_size: Sequence[int],
        w_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> ConvGeometry:
        """Build and check a geometry; see the class for the arguments."""
        geometry = cls(
            tuple(x_size), tuple(w_size), tuple(stride), tuple(padding), tuple(dilation), groups
        )
        geometry.check()
        return geometry

    def check(self) -> None:
        """Raise ValueError unless the sizes fit together."""
        rank = len(self.w_size) - 2
        if rank not in (2, 3):
            raise ValueError(f"w has {len(self.w_size)} axes; expected 4 (2D) or 5 (3D)")
        if len(self.x_size) != rank + 2:
            raise ValueError(
                f"x has {len(self.x_size)} axes {tuple(self.x_size)}; expected {rank + 2} "
                f"for a kernel of size {self.w_size[2:]}"
            )
        for name, value, length in (
            ("stride", self.stride, rank),
            ("dilation", self.dilation, rank),
            ("padding", self.padding, 2 * rank),
        ):
            if len(value) != length:
                raise ValueError(f"{name} has {len(value)} entries {value}; expected {length}")
        if min(self.stride) < 1 or min(self.dilation) < 1:
            raise ValueError(
                f"stride {self.stride} and dilation {self.dilation} must be at least 1"
            )
        if min(self.padding) < 0:
            raise ValueError(f"padding {self.padding} must not be negative")
        if self.groups < 1 or self.w_size[0] % self.groups:
            raise ValueError(
                f"groups={self.groups} must be at least 1 and divide the "
                f"{self.w_size[0]} output channels"
            )
        if self.x_size[1] != self.w_size[1] * self.groups:
            raise ValueError(
                f"x has {self.x_size[1]} channels; expected {self.w_size[1] * self.groups} "
                f"(weight {tuple(self.w_size)}, groups={self.groups})"
            )
        if any(size < 1 for size in self.out_spatial):
            raise ValueError(
                f"kernel {self.w_size[2:]} with dilation {self.dilation} is larger than the "
                f"padded input {self.x_size[2:]}, padding {self.padding}"
            )

    @property
    def rank(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return len(self.w_size) - 2

    @property
    def pad_begin(self) -> tuple[int, ...]:
        """Padding before each spatial axis."""
        return self.padding[: self.rank]

    @property
    def pad_end(self) -> tuple[int, ...]:
        """Padding after each spatial axis."""
        return self.padding[self.rank :]

    @property
    def out_spatial(self) -> tuple[int, ...]:
        """Spatial size of the output."""
        return tuple(
            (size + begin + end - dilation * (kernel - 1) - 1) // stride + 1
            for size, begin, end, dilation, kernel, stride in zip(
                self.x_size[2:],
                self.pad_begin,
                self.pad_end,
                self.dilation,
                self.w_size[2:],
                self.stride,
            )
        )

    @property
    def out_size(self) -> tuple[int, ...]:
        """(N, Co, *out_spatial)."""
        return (self.x_size[0], self.w_size[0], *self.out_spatial)

    @property
    def forward_contraction(self) -> int:
        """Products summed for one value of the forward product."""
        return math.prod(self.w_size[1:])

    @property
    def grad_input_contraction(self) -> int:
        """Products summed for one value of grad-input."""
        return self.w_size[0] // self.groups * math.prod(self.w_size[2:])

    @property
    def grad_weight_contraction(self) -> int:
        """Products summed for one value of grad-weight: N x out positions."""
        return self.x_size[0] * math.prod(self.out_spatial)
