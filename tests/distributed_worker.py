"""One rank of test_distributed.py: a toy mmengine run under torchrun; writes what it ended with.

Usage: torchrun ... distributed_worker.py OUT_DIR [--dies-at ITERATION]
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from mmengine.hooks import Hook

sys.path.insert(0, str(Path(__file__).parent))

from daq_mm import cpu_distributed, ops  # noqa: E402
from daq_mm.quantizers import quantizers_of  # noqa: E402
from toy_runner import ToyModel, toy_runner  # noqa: E402


class Recorder(Hook):
    """Keeps the losses and checks after each step that the ranks' thresholds agree."""

    priority = "LOW"

    def __init__(self, dies_at):
        self.dies_at = dies_at
        self.losses = []
        self.disagreements = 0

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.dies_at and runner.rank == 1:
            os._exit(13)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs["loss"].item())
        if runner.distributed:
            state = torch.cat([q.threshold for q in quantizers_of(runner.model).values()])
            both = [torch.empty_like(state) for _ in range(runner.world_size)]
            torch.distributed.all_gather(both, state)
            self.disagreements += not torch.equal(both[0], both[1])


def thread_names():
    """What the system calls this process's threads; Python knows only its own."""
    return [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--dies-at", type=int, default=-1)
    arguments = parser.parse_args()
    distributed = "RANK" in os.environ
    recorder = Recorder(arguments.dies_at)
    hook = dict(config=dict(recipe="daq"), allow_reference=not ops.kernels_built("cpu")[0])
    settings = dict(launcher="pytorch" if distributed else "none")
    cpu_distributed.prepare(settings)
    torch.manual_seed(0)  # the same weights in the run of one process
    runner = toy_runner(
        arguments.out / "work",
        hook=hook,
        hooks=[recorder],
        epochs=3,
        batch_size=4 if distributed else 8,
        model=ToyModel(norm=False),
        launcher=settings["launcher"],
        cfg=settings,
    )
    runner.train()
    model = runner.model.module if distributed else runner.model
    ended = {
        "losses": recorder.losses,
        "disagreements": recorder.disagreements,
        "state": model.state_dict(),
        "threads": thread_names(),
    }
    out = arguments.out / f"rank{runner.rank}.pt"
    del runner, model
    cpu_distributed.leave()
    torch.save({**ended, "threads_after_leave": thread_names()}, out)


if __name__ == "__main__":
    main()
