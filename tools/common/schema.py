"""What a run's record must hold, and how a run is named; no torch and no mmengine.

A record is checked whenever it is read: its fields' types and ranges, and that the value in the
tables is the last point of the curve, so that a figure changed by hand in one place is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: The metrics that may stand in the tables, by task; higher is better, between 0 and 1. Which one
#: a run has is its config's choice (`metrics.metric_of`).
METRICS = {
    "classification": ("accuracy/top1",),
    "detection": ("coco/bbox_mAP", "pascal_voc/mAP"),
    "video": ("acc/top1",),
}

#: Fields that a record must have, and their types.
REQUIRED = {
    "task": str,
    "network": str,
    "dataset": str,
    "recipe": str,
    "seed": int,
    "metric": str,
    "value": (int, float, type(None)),
    "finished": bool,
    "curve": list,
    "final_metrics": dict,
    "iteration_seconds": (int, float, type(None)),
    "seconds": (int, float),
    "peak_memory_mib": (int, float),
    "backend": str,
    "threads": (int, type(None)),
    "date": str,
    "commit": dict,
    "versions": dict,
    "machine": dict,
}

#: Fields that came later; a record without one is read as if it had this value.
DEFAULTS = {"config": "", "settings": {}, "options": {}, "starts": {}, "label": "", "test": {}}


def label_of(settings: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """The words that tell a run from the same recipe's plain run; '' if nothing was changed.

    Args:
        settings: fields of DAQConfig that differ from the recipe's.
        options: overrides of the config, dotted keys.
    """
    changed = {**settings, **options}
    return ",".join(f"{name}={_word(changed[name])}" for name in sorted(changed))


def run_name(config: str, recipe: str, label: str, seed: int) -> str:
    """Name of a run's record and work folder: config-recipe[-label]-seedN."""
    stem = Path(config.split("::")[-1]).stem.removesuffix("_fp32")
    return "-".join([stem, recipe, *([label] if label else []), f"seed{seed}"])


def read_record(path: str | Path) -> dict[str, Any]:
    """A record file, checked; fields that older records lack have their defaults.

    Raises:
        ValueError: not JSON, or not a record; the message names the file and the field.
    """
    try:
        record = json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    try:
        check_record(record)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    return {**DEFAULTS, **record}


def check_record(record: Any) -> None:
    """Raise ValueError for the first thing that is wrong in a record."""
    if not isinstance(record, dict):
        raise ValueError("is not a JSON object")
    missing = sorted(set(REQUIRED) - set(record))
    if missing:
        raise ValueError(f"lacks the fields {missing} of a run's record")
    for name, kinds in REQUIRED.items():
        value = record[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise ValueError(f"has {name}={value!r}, which is of a wrong type")
    task = record["task"]
    if task not in METRICS:
        raise ValueError(f"has task={task!r}; allowed: {', '.join(METRICS)}")
    if record["metric"] not in METRICS[task]:
        raise ValueError(
            f"has metric={record['metric']!r}; allowed for {task}: {', '.join(METRICS[task])}"
        )
    for name in ("iteration_seconds", "seconds", "peak_memory_mib"):
        value = record[name]
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ValueError(f"has {name}={value!r}, which must be greater than 0")
    _check_curve(record["curve"])
    if record["finished"]:
        _check_result(record)
    if record.get("test"):
        _check_test(record)


def _check_curve(curve: list) -> None:
    """Epochs 1, 2, 3, ...; each with its loss."""
    for expected, point in enumerate(curve, 1):
        if not isinstance(point, dict) or point.get("epoch") != expected:
            raise ValueError(f"has no curve with epochs 1 to {len(curve)}, one after the other")
        if not isinstance(point.get("loss"), (int, float)):
            raise ValueError(f"has no loss for epoch {expected} of its curve")


def _check_result(record: Mapping[str, Any]) -> None:
    """The value is the final metric, and that is the last point of the curve."""
    metric, value, curve = record["metric"], record["value"], record["curve"]
    if value is None or not 0 <= value <= 1:
        raise ValueError(f"has value={value!r}, which must be between 0 and 1")
    if not curve:
        raise ValueError("is finished, but has no curve")
    last = {name: found for name, found in curve[-1].items() if "/" in name}
    if record["final_metrics"] != last:
        raise ValueError(f"has final_metrics that are not those of epoch {len(curve)} of its curve")
    if last.get(metric) != value:
        raise ValueError(
            f"has value={value!r}, but {metric}={last.get(metric)!r} at the end of its curve"
        )


def _check_test(record: Mapping[str, Any]) -> None:
    """The result on the test set (tools/test.py --into): a finished run's, of the same metric."""
    test, metric = record["test"], record["metric"]
    if not record["finished"]:
        raise ValueError("has a test, but its training is not finished")
    if not isinstance(test, dict):
        raise ValueError("has a test that is not a JSON object")
    value, samples = test.get("value"), test.get("samples")
    if not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"has test value={value!r}, which must be between 0 and 1")
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(f"has test samples={samples!r}, which must be at least 1")
    if (test.get("metrics") or {}).get(metric) != value:
        raise ValueError(f"has test value={value!r}, which is not its metric {metric}")


def _word(value: Any) -> str:
    """A value as it can stand in a file's name."""
    if isinstance(value, (list, tuple)):
        return "+".join(_word(item) for item in value)
    text = str(value)
    return "".join(c if c.isalnum() or c in "._+-*" else "_" for c in text).replace("*", "any")
