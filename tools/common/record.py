"""RecordHook: what a training leaves for the tables, one JSON record a run."""

from __future__ import annotations

import json
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook

from .provenance import commit, provenance, write_json


class RecordHook(Hook):
    """Collect the curve, times and memory of a run, and write its record after each epoch.

    Args:
        path: JSON file to write.
        identity: the fields `task`, `network`, `dataset`, `recipe`, `seed`, `metric`, `config`,
            `settings`, `options`, `starts` and `label`.

    The curve travels in the checkpoints, so that a resumed run's record continues where its
    weights do; a validation that a kill cut off is made up for at the start. Times are wall
    seconds of training iterations, data loading included, the first five of each start left out;
    memory is the process's peak resident set in MiB, and what torch allocated at most on a GPU.

    Raises:
        ValueError: a validation without the run's metric, or with one outside of 0 to 1.
    """

    # After the hooks that validate and log, before CheckpointHook, whose file holds the curve.
    priority = "LOW"
    skipped_iterations = 5
    key = "daq_mm_record"

    def __init__(self, path: str | Path, identity: dict[str, Any]) -> None:
        self.path = Path(path)
        self.identity = identity
        self.metric = identity["metric"]
        self.curve: list[dict[str, Any]] = []
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.spent_before = 0.0
        # the code that runs is the one that was there when it started
        self.commit = commit()

    def after_load_checkpoint(self, runner, checkpoint) -> None:
        """Go on from the state of the run that is resumed; weights alone bring no state."""
        if runner._resume and self.key in checkpoint:
            state = checkpoint[self.key]
            self.curve, self.spent_before = state["curve"], state["seconds"]
            self.seconds = state["iteration_seconds"]
            self._take_over_validation()

    def before_save_checkpoint(self, runner, checkpoint) -> None:
        """Leave the state in the checkpoint: it is saved before the epoch's validation."""
        checkpoint[self.key] = {
            "curve": self.curve,
            "seconds": self._seconds(),
            "iteration_seconds": self.seconds,
        }

    def before_train(self, runner) -> None:
        """Start the clocks; validate if the kill came between a checkpoint and its validation."""
        self.start = time.monotonic()
        self.tick = None
        self.iterations_here = 0
        if self.curve and _validation_due(runner) and not _metrics(self.curve[-1]):
            runner.val_loop.run()

    def before_train_epoch(self, runner) -> None:
        """Validation and checkpoints lie between epochs: do not time them."""
        self.losses, self.tick = [], time.perf_counter()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        """Time from the end of one iteration to the end of the next."""
        now = time.perf_counter()
        self.iterations_here += 1
        if self.iterations_here > self.skipped_iterations:
            self.seconds.append(now - self.tick)
        self.tick = now
        self.losses.append(float(runner.message_hub.get_scalar("train/loss").current()))

    def after_train_epoch(self, runner) -> None:
        """A point of the curve; validation adds its metrics."""
        epoch = runner.epoch + 1
        loss = sum(self.losses) / max(1, len(self.losses))
        self.curve.append({"epoch": epoch, "iteration": runner.iter, "loss": loss})

    def after_val_epoch(self, runner, metrics=None) -> None:
        """Add the metrics to the epoch's point and write the record."""
        if self.curve:
            # mmdet's COCO metric returns nothing where there was no detection at all: its AP is 0.
            found = metrics or {self.metric: 0.0}
            if not 0 <= float(found.get(self.metric, -1)) <= 1:
                raise ValueError(
                    f"the validation must give {self.metric!r} between 0 and 1; it gave {found}"
                )
            self.curve[-1].update({name: float(value) for name, value in found.items()})
        self.write(runner)

    def after_train(self, runner) -> None:
        """Write the finished record."""
        self.write(runner, finished=runner.epoch >= runner.max_epochs)

    def write(self, runner, finished: bool = False) -> None:
        """Write the record atomically; only the first rank does."""
        if runner.rank != 0:
            return
        last = self.curve[-1] if self.curve else {}
        scalars = runner.message_hub.log_scalars
        record = {
            **self.identity,
            "value": last.get(self.metric),
            "finished": finished,
            "final_metrics": _metrics(last),
            "curve": self.curve,
            "iteration_seconds": statistics.median(self.seconds) if self.seconds else None,
            "seconds": self._seconds(),
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "peak_gpu_memory_mib": _peak_gpu_memory(),
            "quantization": {
                name.removeprefix("train/daq_"): float(scalar.mean())
                for name, scalar in scalars.items()
                if name.startswith("train/daq_")
            },
            "backend": dict(runner.message_hub.runtime_info).get("daq_backend", "torch"),
            **provenance(),
            "commit": self.commit,
        }
        write_json(self.path, record)

    def _take_over_validation(self) -> None:
        """The metrics of the resumed epoch, if the record has them from before the kill."""
        if self.curve and self.path.is_file():
            for point in json.loads(self.path.read_text())["curve"]:
                if {**point, **self.curve[-1]} == point:
                    self.curve[-1] = point

    def _seconds(self) -> float:
        return self.spent_before + time.monotonic() - self.start


def _metrics(point: dict[str, Any]) -> dict[str, float]:
    """The validation's metrics in a point of the curve."""
    return {name: value for name, value in point.items() if "/" in name}


def _validation_due(runner) -> bool:
    """Whether mmengine validates after the epoch that was last trained."""
    loop, epoch = runner.train_loop, runner.epoch
    if runner.val_loop is None or epoch < loop.val_begin:
        return False
    return epoch % loop.val_interval == 0 or epoch == loop.max_epochs


def _peak_gpu_memory() -> float | None:
    """MiB that torch allocated at most on this process's GPU; None without one."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.max_memory_allocated() / 2**20
