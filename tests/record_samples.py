"""Records of runs as the tools write them, made up for the tests."""

import json

from common.schema import METRICS, run_name


def record(recipe="fp32", seed=0, value=0.5, seconds=1.0, finished=True, **fields):
    """A valid record of two epochs that end at `value`."""
    task = fields.get("task", "detection")
    metric = fields.get("metric", METRICS[task][0])
    return {
        **dict(task=task, network="net", dataset="digits", recipe=recipe, seed=seed),
        **dict(config="net_fp32.py", settings={}, options={}, label=""),
        **dict(metric=metric, value=value, finished=finished),
        "final_metrics": {metric: value},
        "curve": [
            {"epoch": 1, "iteration": 10, "loss": 2.0, metric: value / 2},
            {"epoch": 2, "iteration": 20, "loss": 1.0, metric: value},
        ],
        **dict(iteration_seconds=seconds, seconds=20 * seconds, peak_memory_mib=100.0),
        **dict(commit={"sha": "0" * 40, "dirty": False}, date="2026-01-01T00:00:00+00:00"),
        **dict(versions={"torch": "2.13.0"}, machine={"cpu": "test", "cores": 2}),
        **dict(backend="torch", threads=1),
        **fields,
    }


def write(folder, *records):
    """Write records under the names that the suite gives them; returns the folder."""
    folder.mkdir(exist_ok=True, parents=True)
    for r in records:
        name = run_name(r["network"], r["recipe"], r["label"], r["seed"])
        (folder / f"{name}.json").write_text(json.dumps(r))
    return folder
