"""Which metric stands in the tables for a config: what its evaluator gives, by task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import UsageError
from .schema import METRICS

#: Evaluators by type: their prefix, the argument that names what they measure with its default,
#: and, for each value of it that a table can show, the name under the prefix. All give shares
#: between 0 and 1. mmpretrain's Accuracy is not among them: it gives hundredths.
EVALUATORS: dict[str, tuple[str, tuple[str, Any], dict[str, str]]] = {
    "CocoMetric": ("coco", ("metric", "bbox"), {"bbox": "bbox_mAP"}),
    "VOCMetric": ("pascal_voc", ("metric", "mAP"), {"mAP": "mAP"}),
    "AccMetric": (
        "acc",
        ("metric_list", ("top_k_accuracy", "mean_class_accuracy")),
        {"top_k_accuracy": "top1"},
    ),
    "daq_mm.models.Accuracy": ("accuracy", ("topk", (1,)), {"1": "top1"}),
}


def metric_of(cfg: Mapping[str, Any], task: str) -> str:
    """Name of the metric that a run of this config is recorded by, as the validation gives it.

    Args:
        cfg: a config with `val_evaluator`, one evaluator or a list.
        task: one of `METRICS`.

    Raises:
        UsageError: no evaluator whose metric the tables know for this task, or several.
    """
    evaluators = cfg.get("val_evaluator") or []
    if isinstance(evaluators, Mapping):
        evaluators = [evaluators]
    found = [name for name in map(_metric, evaluators) if name is not None]
    if len(found) == 1 and found[0] in METRICS[task]:
        return found[0]
    given = ", ".join(str(e.get("type")) for e in evaluators) or "nothing"
    if len(found) > 1:
        problem = f"gives several metrics for a table, {', '.join(found)}; keep one of them"
    elif found:
        problem = f"gives {found[0]}, which is no metric of {task}"
    else:
        problem = "gives none of the metrics that a record can hold"
    raise UsageError(
        f"val_evaluator ({given}) {problem}; metrics of {task}: {', '.join(METRICS[task])} "
        f"(of {', '.join(EVALUATORS)}, with the default prefix)"
    )


def _metric(evaluator: Mapping[str, Any]) -> str | None:
    """What one evaluator gives for a table; None for nothing that is known."""
    kind = evaluator.get("type")
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    for scope in ("mmdet.", "mmaction."):
        kind = kind.removeprefix(scope)
    if kind.startswith("daq_mm.models."):  # a class, or the path of the module that holds it
        kind = f"daq_mm.models.{kind.rpartition('.')[2]}"
    if kind.startswith(("evaluation.", "datasets.")):  # a class of mmdet or mmaction
        kind = kind.rpartition(".")[2]
    if kind not in EVALUATORS:
        return None
    prefix, (argument, default), names = EVALUATORS[kind]
    measured = evaluator.get(argument, default)
    measured = measured if isinstance(measured, (list, tuple)) else [measured]
    shown = [names[str(value)] for value in measured if str(value) in names]
    return f"{evaluator.get('prefix') or prefix}/{shown[0]}" if shown else None
