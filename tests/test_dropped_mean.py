"""The sums that put the gradient's mean back: exact, by either way, whatever the shape."""

import random

import pytest
import torch

from daq_mm.ops import dropped_mean
from daq_mm.ops.layout import channels_last_format


@pytest.mark.parametrize("case", range(20))
@pytest.mark.parametrize("most", [dropped_mean.MOST_INT32_POSITIONS, 0], ids=["int32", "int64"])
def test_channel_sums_are_exact(case, most, monkeypatch):
    monkeypatch.setattr(dropped_mean, "MOST_INT32_POSITIONS", most)
    rng = random.Random(case)
    rank = rng.choice((2, 3))
    size = (rng.randint(1, 4), rng.randint(1, 70), *(rng.randint(1, 9) for _ in range(rank)))
    low = rng.choice((-127, 127))  # all of them at the end of the grid, or any
    q = torch.randint(low, 128, size, dtype=torch.int8)
    q = q.contiguous(memory_format=channels_last_format(rank))
    sums = dropped_mean._channel_sums(q)
    assert sums.dtype == (torch.int32 if most else torch.int64)
    assert torch.equal(sums.long(), q.long().sum((0, *range(2, q.dim()))))


def test_int32_holds_the_largest_sum():
    most = dropped_mean.MOST_INT32_POSITIONS
    assert 127 * most <= 2**31 - 1 < 127 * (most + 1)
