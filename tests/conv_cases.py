"""Geometries that the tests of forward and grad-input share: fixed ones and a seeded sweep."""

from __future__ import annotations

import random

import torch

from daq_mm import ops
from daq_mm.autotune_cache import PRODUCTS
from daq_mm.ops.layout import channels_last_format

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

#: What the depthwise kernels tell apart: whole pieces of four channels or not, runs of four or
#: eight positions, strides of one, of two or any, chunks of three or four taps along W, tiles of
#: channels.
DEPTHWISE = {
    "depthwise, two tiles": dict(x_size=(1, 260, 4, 6), kernel=3, co=260, padding=1, groups=260),
    "depthwise, short lines": dict(x_size=(3, 8, 5, 3), kernel=3, co=8, padding=1, groups=8),
    "depthwise 5x5": dict(x_size=(2, 12, 6, 21), kernel=5, co=12, padding=2, groups=12),
    "depthwise 7x7": dict(x_size=(1, 8, 9, 10), kernel=7, co=8, padding=3, groups=8),
    "depthwise 1x1 strided": dict(x_size=(2, 20, 5, 6), kernel=1, co=20, stride=2, groups=20),
    "depthwise 1x1 padded": dict(x_size=(2, 4, 3, 9), kernel=1, co=4, padding=1, groups=4),
    "depthwise stride 3": dict(
        x_size=(2, 36, 10, 11), kernel=3, co=36, stride=3, padding=1, groups=36
    ),
    "depthwise dilated, whole pieces": dict(
        x_size=(2, 64, 9, 11), kernel=3, co=64, padding=2, dilation=2, groups=64
    ),
    "depthwise dilated and strided": dict(
        x_size=(2, 16, 13, 14), kernel=(3, 4), co=16, stride=2, padding=3, dilation=3, groups=16
    ),
    "depthwise, dilation as stride": dict(
        x_size=(1, 24, 8, 9), kernel=3, co=24, stride=2, padding=2, dilation=2, groups=24
    ),
    "depthwise, asymmetric padding": dict(
        x_size=(2, 32, 7, 9), kernel=3, co=32, stride=2, padding=(0, 2, 1, 0), groups=32
    ),
    "depthwise, padding wider than x": dict(
        x_size=(1, 8, 2, 1), kernel=(3, 5), co=8, padding=(3, 4, 3, 4), groups=8
    ),
    "depthwise, many taps": dict(x_size=(1, 32, 1, 1151), kernel=(1, 1150), co=32, groups=32),
    "3d depthwise strided": dict(
        x_size=(2, 28, 5, 6, 7), kernel=(3, 2, 3), co=28, stride=(1, 2, 2), padding=1, groups=28
    ),
    "3d depthwise temporal": dict(
        x_size=(1, 54, 6, 3, 5), kernel=(5, 1, 1), co=54, padding=(2, 0, 0) * 2, groups=54
    ),
}

FIXED = {
    "1x1": dict(x_size=(2, 64, 9, 7), kernel=1, co=96),
    "1x1 odd channels": dict(x_size=(3, 37, 5, 6), kernel=1, co=19),
    "1x1 strided": dict(x_size=(2, 40, 9, 8), kernel=1, co=72, stride=2),
    "1x1 padded": dict(x_size=(2, 8, 4, 5), kernel=1, co=17, padding=1),
    "one channel": dict(x_size=(2, 1, 8, 8), kernel=3, co=1, padding=1),
    "3x3": dict(x_size=(2, 64, 14, 14), kernel=3, co=64, padding=1),
    "3x3 strided": dict(x_size=(2, 96, 15, 13), kernel=3, co=24, stride=2, padding=1),
    "3x3 stride 3": dict(x_size=(2, 16, 11, 13), kernel=3, co=80, stride=3),
    "3x3 dilated": dict(x_size=(2, 33, 11, 12), kernel=3, co=9, padding=2, dilation=2),
    "3x3 dilated and strided": dict(
        x_size=(2, 12, 13, 14), kernel=3, co=20, stride=2, padding=3, dilation=3
    ),
    "5x5": dict(x_size=(1, 20, 9, 9), kernel=5, co=33, padding=2),
    "asymmetric padding": dict(x_size=(2, 32, 8, 9), kernel=3, co=8, padding=(0, 2, 1, 0)),
    "padding wider than x": dict(x_size=(1, 32, 2, 1), kernel=(3, 5), co=8, padding=(3, 4, 3, 4)),
    "kernel as large as x": dict(x_size=(2, 12, 6, 7), kernel=(6, 7), co=130),
    "stem": dict(x_size=(2, 3, 32, 30), kernel=7, co=64, stride=2, padding=3),
    "few channels, wide rows": dict(
        x_size=(2, 5, 12, 13), kernel=(1, 9), co=10, padding=(0, 4) * 2
    ),
    "few channels dilated": dict(x_size=(2, 5, 12, 13), kernel=3, co=10, padding=2, dilation=2),
    "stride beyond x": dict(x_size=(2, 6, 2, 3), kernel=1, co=5, stride=4),
    "grouped": dict(x_size=(2, 64, 9, 9), kernel=3, co=96, padding=1, groups=4),
    "grouped, odd channels": dict(x_size=(2, 21, 7, 7), kernel=3, co=15, padding=1, groups=3),
    "grouped, four a group": dict(x_size=(2, 64, 9, 7), kernel=3, co=64, padding=1, groups=16),
    "grouped, more outputs": dict(x_size=(2, 48, 7, 7), kernel=3, co=120, padding=1, groups=12),
    "grouped 1x1": dict(x_size=(2, 24, 7, 7), kernel=1, co=12, groups=4),
    "depthwise": dict(x_size=(2, 70, 13, 12), kernel=3, co=70, padding=1, groups=70),
    "depthwise 128": dict(x_size=(1, 128, 9, 9), kernel=3, co=128, padding=1, groups=128),
    "depthwise 32": dict(x_size=(2, 32, 9, 9), kernel=3, co=32, padding=1, groups=32),
    "depthwise 19": dict(x_size=(1, 19, 3, 3), kernel=3, co=19, padding=1, groups=19),
    "depthwise 3x3 strided": dict(
        x_size=(2, 33, 13, 12), kernel=3, co=33, stride=2, padding=1, groups=33
    ),
    "depthwise 5x5 strided": dict(
        x_size=(2, 16, 13, 12), kernel=5, co=16, stride=2, padding=2, groups=16
    ),
    "depthwise dilated": dict(
        x_size=(2, 65, 13, 12), kernel=3, co=65, padding=2, dilation=2, groups=65
    ),
    "depthwise multiplier": dict(x_size=(2, 8, 9, 9), kernel=3, co=24, padding=1, groups=8),
    "one pixel": dict(x_size=(1, 1, 1, 1), kernel=1, co=1),
    "one pixel 3x3": dict(x_size=(1, 40, 1, 1), kernel=3, co=3, padding=1),
    "3d": dict(x_size=(2, 34, 4, 6, 5), kernel=3, co=12, padding=1),
    "3d strided": dict(x_size=(1, 16, 5, 9, 8), kernel=3, co=70, stride=(2, 1, 2), padding=1),
    "3d stem": dict(
        x_size=(1, 3, 6, 14, 13), kernel=(3, 7, 7), co=16, stride=(1, 2, 2), padding=(1, 3, 3) * 2
    ),
    "3d temporal": dict(x_size=(2, 48, 6, 5, 4), kernel=(3, 1, 1), co=32, padding=(1, 0, 0) * 2),
    "3d spatial": dict(x_size=(2, 24, 3, 7, 6), kernel=(1, 3, 3), co=64, padding=(0, 1, 1) * 2),
    "3d depthwise": dict(x_size=(2, 20, 5, 6, 6), kernel=3, co=20, padding=1, groups=20),
    "no images": dict(x_size=(0, 8, 6, 6), kernel=3, co=4, padding=1),
    "depthwise, no images": dict(x_size=(0, 8, 6, 6), kernel=3, co=8, padding=1, groups=8),
    **DEPTHWISE,
}


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=channels_last_format(tensor.dim() - 2))


def is_channels_last(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous(memory_format=channels_last_format(tensor.dim() - 2))


def geometry_of(x_size, kernel, co, stride=1, padding=0, dilation=1, groups=1):
    """The record of a case, each scalar spread over the axes, and the ops' keyword arguments."""
    rank = len(x_size) - 2

    def spread(value, length):
        return [value] * length if isinstance(value, int) else list(value)

    args = {
        "stride": spread(stride, rank),
        "padding": spread(padding, 2 * rank),
        "dilation": spread(dilation, rank),
        "groups": groups,
    }
    w_size = (co, x_size[1] // groups, *spread(kernel, rank))
    return ops.ConvGeometry.make(x_size, w_size, **args), args


def plan_key(product, geometry, statistics=False, wgmma=False, result_bytes=4):
    """A product's key in the table of CUDA plans (daq_mm/autotune_cache.py), from the geometry."""
    rank = len(geometry.x_size) - 2

    def axes(values, fill):
        return [fill] * (3 - rank) + list(values)[:rank]

    n, ci, *size = geometry.x_size
    return [
        *(PRODUCTS.index(product), n, ci, geometry.w_size[0], geometry.groups),
        *(*axes(size, 1), *axes(geometry.out_size[2:], 1), *axes(geometry.w_size[2:], 1)),
        *(*axes(geometry.stride, 1), *axes(geometry.dilation, 1), *axes(geometry.padding, 0)),
        *(int(statistics), int(wgmma), result_bytes),
    ]


def random_case(seed: int) -> dict:
    """A small random convolution, 2D or 3D, one in four of them depthwise."""
    rng = random.Random(seed)
    rank = rng.choice([2, 2, 3])
    groups = rng.choice([1, 1, 1, 2, 3])
    ci = rng.choice([1, 2, 3, 4, 5, 8, 16, 17] + [32, 64] * (rank == 2))
    co = rng.choice([1, 2, 3, 8, 16, 17, 31, 48] + [64, 80, 130] * (rank == 2))
    if seed % 4 == 3:
        groups, ci, co = rng.choice([2, 3, 16, 33, 64, 96]), 1, 1
    kernel = [rng.choice([1, 1, 2, 3, 3, 5]) for _ in range(rank)]
    dilation = [rng.choice([1, 1, 2]) for _ in range(rank)]
    padding = [rng.choice([0, 1, 2]) for _ in range(2 * rank)]
    spatial = [
        max(rng.choice([1, 3, 5, 8, 9]), dilation[a] * (kernel[a] - 1) + 1 - padding[a])
        for a in range(rank)
    ]
    return {
        "x_size": (rng.choice([1, 2, 3]), ci * groups, *spatial),
        "kernel": kernel,
        "co": co * groups,
        "stride": [rng.choice([1, 1, 2, 3]) for _ in range(rank)],
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }


def assert_same_bits(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal dtype, size and bits (any NaN equals any NaN)."""
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)
    if got.is_floating_point():  # close() takes -0 for 0
        assert torch.equal(torch.signbit(got.nan_to_num()), torch.signbit(expected.nan_to_num()))


def leave_garbage(numel: int) -> None:
    """Free blocks full of NaN bytes, which the next outputs are likely to be allocated from."""
    for size in (numel, 2 * numel, 4 * numel):
        torch.full((max(size, 1),), 0xFF, dtype=torch.uint8)
