"""RecordHook: what a training leaves for the tables, one JSON record a run."""

from __future__ import annotations

import json
import os
import resource
import statistics
import time
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook

from .provenance import provenance

#: The metric that stands in the tables, by task; higher is better, between 0 and 1.
PRIMARY_METRICS = {"detection": "coco/bbox_mAP", "video": "acc/top1"}


def read_record(path: str | Path) -> dict[str, Any]:
    """A record file; ValueError names the file if it is not one."""
    try:
        record = json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    missing = {"task", "network", "dataset", "recipe", "seed", "metric", "value"} - set(record)
    if missing:
        raise ValueError(f"{path} lacks the fields {sorted(missing)} of a run's record")
    return record


class RecordHook(Hook):
    """Collect the curve, times and memory of a run, and write its record after each epoch.

    Args:
        path: JSON file to write. After a kill, the part that was recorded before is read back
            and continued from the epoch that is resumed.
        identity: the fields `task`, `network`, `dataset`, `recipe`, `seed`, and `config`.

    Times are wall seconds of training iterations, data loading included, the first five of each
    start left out; memory is the process's peak resident set in MiB.
    """

    priority = "VERY_LOW"
    skipped_iterations = 5

    def __init__(self, path: str | Path, identity: dict[str, Any]) -> None:
        self.path = Path(path)
        self.identity = identity
        self.curve: list[dict[str, Any]] = []
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.spent_before = 0.0

    def before_train(self, runner) -> None:
        """Continue the record of an interrupted run."""
        self.start = time.monotonic()
        if self.path.exists() and runner.epoch > 0:
            old = json.loads(self.path.read_text())
            self.curve = [p for p in old["curve"] if p["epoch"] <= runner.epoch]
            self.spent_before = old["seconds"] if self.curve else 0.0
        self.tick = None
        self.iterations_here = 0

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
            found = metrics or {PRIMARY_METRICS[self.identity["task"]]: 0.0}
            self.curve[-1].update({name: float(value) for name, value in found.items()})
        self.write(runner)

    def after_train(self, runner) -> None:
        """Write the finished record."""
        self.write(runner, finished=runner.epoch >= runner.max_epochs)

    def write(self, runner, finished: bool = False) -> None:
        """Write the record atomically; only the first rank does."""
        if runner.rank != 0:
            return
        metric = PRIMARY_METRICS[self.identity["task"]]
        last = self.curve[-1] if self.curve else {}
        scalars = runner.message_hub.log_scalars
        record = {
            **self.identity,
            "metric": metric,
            "value": last.get(metric),
            "finished": finished,
            "final_metrics": {k: v for k, v in last.items() if "/" in k},
            "curve": self.curve,
            "iteration_seconds": statistics.median(self.seconds) if self.seconds else None,
            "seconds": self.spent_before + time.monotonic() - self.start,
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "quantization": {
                name.removeprefix("train/daq_"): float(scalar.mean())
                for name, scalar in scalars.items()
                if name.startswith("train/daq_")
            },
            "backend": dict(runner.message_hub.runtime_info).get("daq_backend", "torch"),
            **provenance(),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".partial")
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        os.replace(temporary, self.path)
