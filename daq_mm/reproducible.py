"""EpochSeedHook: random numbers become a function of (seed, epoch), so that a resumed run ends
as an uninterrupted one.

mmengine restores weights, optimizer and the order of the data, but not the state of the random
generators; dropout and augmentations would differ after resuming.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from mmengine.hooks import Hook


class EpochSeedHook(Hook):
    """Seed Python's, NumPy's and PyTorch's generators anew at the start of each training epoch.

    Loader workers are seeded by mmengine when they start, with the same seed each time: with
    `persistent_workers=False` they start with each epoch, so that they too are reproducible.
    """

    priority = "VERY_HIGH"

    def before_train_epoch(self, runner) -> None:
        """Seed with the run's seed, the epoch and the rank; and warn of what cannot be repeated."""
        seed = (runner.seed or 0) * 1_000_003 + runner.epoch * 1_009 + runner.rank
        seed %= 2**32
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        if runner.epoch == 0 and getattr(runner.train_dataloader, "persistent_workers", False):
            runner.logger.warning(
                "train_dataloader.persistent_workers=True: workers keep their random state from "
                "epoch to epoch, so a resumed run will see other augmentations; set it to False "
                "for exact resuming"
            )
