"""From runs to cells: means over seeds, spread, differences to FP32, seconds and memory."""

from __future__ import annotations

import pandas as pd

from .differences import MARGIN, compare
from .records import KEYS
from .suite import CELL, missing_runs

BASELINE = "fp32"
#: Columns that hold NaN where there is nothing to compare with.
COMPARED = ("pairs", "difference", "difference_std", "low", "high", "times_fp32", "memory_ratio")
ORDER = ["fp32", "bf16", "paper", "daq", "gvq", "mcs", "global", "ui8", "dorefa", "switchback"]


def summarize(
    frame: pd.DataFrame, margin: float = MARGIN, expected: pd.DataFrame | None = None
) -> pd.DataFrame:
    """A row for each task, network, dataset, variant, recipe and label.

    Columns: method (see `records.method_name`); metric; n (seeds); mean and std of the metric in
    points (hundredths), the sample standard deviation; and against FP32 of the same variant, paired
    by seed, in points: pairs, difference, difference_std, low and high (95% interval), verdict;
    iteration_seconds (median over seeds) and `times_fp32`, FP32's seconds over these; memory_mib
    (median) and memory_ratio to FP32's. FP32's own rows have no pairs and no verdict.

    Args:
        frame: the finished runs.
        margin: of equivalence, in points.
        expected: the runs of a suite (`suite.expected_runs`). Cells without any finished run have
            a row too then, with n = 0, and `missing` counts each cell's missing runs; without it
            `missing` is 0.
    """
    rows = []
    for keys, group in frame.groupby(KEYS, sort=True):
        for (recipe, label), cell in group.groupby(["recipe", "label"]):
            base = None if recipe == BASELINE else _baseline(group, label)
            names = {"recipe": recipe, "label": label, "method": cell.method.iloc[0]}
            rows.append({**dict(zip(KEYS, keys)), **names, **_row(cell, base, margin)})
    table = pd.DataFrame(rows)
    table["missing"] = 0
    if expected is not None:
        table = _with_missing(table, missing_runs(expected, frame))
    table = table.astype(dict.fromkeys(COMPARED, float))
    table["rank"] = table.recipe.map(rank)
    order = [*KEYS, "rank", "recipe", "label"]
    return table.sort_values(order).drop(columns="rank").reset_index(drop=True)


def _with_missing(table: pd.DataFrame, missing: pd.DataFrame) -> pd.DataFrame:
    """The table with missing runs counted, and a row for each cell that has none at all."""
    rows = table.set_index(CELL, drop=False)
    metrics = dict(zip(table.network, table.metric))
    empty = []
    for cell, group in missing.groupby(CELL, sort=False):
        if cell in rows.index:
            rows.loc[cell, "missing"] = len(group)
            continue
        row = dict(zip(CELL, cell), missing=len(group), n=0)
        row |= {name: group[name].iloc[0] for name in ("dataset", "method")}
        row["metric"] = metrics.get(row["network"], "")
        empty.append(row)
    rows = rows.reset_index(drop=True)
    return pd.concat([rows, pd.DataFrame(empty, dtype=object)]) if empty else rows


def rank(recipe: str) -> int:
    """Place of a recipe in tables and figures; those that have none come last."""
    return ORDER.index(recipe) if recipe in ORDER else len(ORDER)


def _baseline(group: pd.DataFrame, label: str) -> pd.DataFrame | None:
    """FP32's runs: those of the same label, else the plain ones, else the only ones there are."""
    fp32 = group[group.recipe == BASELINE]
    labels = set(fp32.label)
    for choice in (label, ""):
        if choice in labels:
            return fp32[fp32.label == choice]
    return fp32 if len(labels) == 1 else None


def _row(cell: pd.DataFrame, base: pd.DataFrame | None, margin: float) -> dict:
    seconds, memory = cell.iteration_seconds.median(), cell.peak_memory_mib.median()
    row = {
        "metric": cell.metric.iloc[0],
        "n": len(cell),
        "mean": cell.value.mean() * 100,
        "std": cell.value.std() * 100,
        **dict.fromkeys((*COMPARED, "verdict")),
        "iteration_seconds": seconds,
        "memory_mib": memory,
    }
    if base is None:
        return row
    paired = (cell.set_index("seed").value - base.set_index("seed").value).dropna() * 100
    found = compare(list(paired), margin)
    if found is not None:
        row.update(pairs=found.n, difference=found.mean, difference_std=found.std)
        row.update(low=found.low, high=found.high, verdict=found.verdict)
    row["times_fp32"] = base.iteration_seconds.median() / seconds
    row["memory_ratio"] = memory / base.peak_memory_mib.median()
    return row
