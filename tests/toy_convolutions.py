"""A small convolutional network and its batch, for the tests of the benchmarks."""

import torch
from torch import nn


class ToyNetwork(nn.Module):
    """Four convolutions, two of the same shape, one that reads signed values."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.a = nn.Conv2d(4, 4, 3, padding=1)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.signed = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x, labels):
        x = self.norm(self.stem(x)).relu()
        x = self.b(self.a(x).relu())
        return nn.functional.cross_entropy(self.signed(x).mean((2, 3)), labels)


def toy_batch(n, device):
    return torch.randn(n, 3, 8, 8, device=device), torch.zeros(n, dtype=torch.int64, device=device)
