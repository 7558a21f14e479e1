"""Reads records into a table of runs, and fingerprints them."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from common.errors import UsageError
from common.schema import read_record

#: What a row of the summary is about, besides recipe and label.
KEYS = ["task", "network", "dataset", "variant"]

#: Overrides that change a method's precision and not its task, so that FP32 is still its baseline.
PRECISION_OPTIONS = ("optim_wrapper.type",)

#: Recipes with products that fused units do not compute, by the settings that say so.
OWN_PRODUCTS = {
    "dorefa": {"grad_weight": "sample", "grad_input": "sample"},
    "switchback": {"grad_weight": "float"},
}
UNFUSED = "unfused"

#: Between a metric and the number of samples of the test set that it was measured on.
TESTED = ", test of "

#: Nested fields of a record that stay whole in the table of runs.
WHOLE = ("curve", "machine", "versions")


def record_files(paths: list[Path]) -> list[Path]:
    """The records in folders and the files named.

    Raises:
        UsageError: a file that does not exist.
    """
    files = [
        f for path in paths for f in (sorted(path.glob("*.json")) if path.is_dir() else [path])
    ]
    missing = [str(f) for f in files if not f.is_file()]
    if missing:
        raise UsageError(f"record {missing[0]} does not exist")
    return files


def read_records(paths: list[Path]) -> pd.DataFrame:
    """One row a finished run.

    Columns: the record's plain fields, `curve`, `machine` and `versions`; `method` (recipe, label,
    and 'unfused' where that is not in the label); `variant` (of `variant_of`: runs that differ in
    it are never compared); `settings` (as JSON); `commit` (its sha); `file`. Where the record has a
    test, `value` is its result and `metric` says so.

    Raises:
        UsageError: no records, a broken one, two of the same run, or runs of one network on one
            data set with different metrics.
    """
    rows = []
    for file in record_files(paths):
        try:
            record = read_record(file)
        except ValueError as error:
            raise UsageError(str(error)) from error
        if not record["finished"]:
            print(f"left out, because unfinished: {file}", file=sys.stderr)
            continue
        row = {k: v for k, v in record.items() if k in WHOLE or not isinstance(v, (dict, list))}
        row["commit"] = record["commit"].get("sha")
        row["method"] = method_name(record["recipe"], record["label"], record["settings"])
        row["variant"] = variant_of(record["options"])
        row["settings"] = json.dumps(record["settings"], sort_keys=True)
        if test := record["test"]:
            row |= {
                "value": test["value"],
                "metric": f"{record['metric']}{TESTED}{test['samples']}",
            }
        rows.append({**row, "file": file})
    if not rows:
        raise UsageError(f"no finished records in {', '.join(map(str, paths))}")
    frame = pd.DataFrame(rows)
    repeated = frame[frame.duplicated([*KEYS, "recipe", "label", "seed"])]
    if len(repeated):
        first = repeated.iloc[0]
        raise UsageError(f"two records of {first.network}, {first.method}, seed {first.seed}")
    for (_, network, dataset, _), group in frame.groupby(KEYS):
        if group.metric.nunique() > 1:
            metrics = "; ".join(sorted(set(group.metric)))
            raise UsageError(
                f"records of {network} on {dataset} have different metrics: {metrics} (where some "
                'lack a test, tools/run_suite.py with "test": true in their cells makes it)'
            )
    return frame


def of_networks(frame: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """The runs of these networks alone; all of them if no name is given.

    Raises:
        UsageError: a network of which there is no run.
    """
    known = sorted(set(frame.network))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"no record is of network {unknown[0]!r}; there are: {', '.join(known)}")
    return frame[frame.network.isin(names)].reset_index(drop=True) if names else frame


def variant_of(options: Mapping[str, Any]) -> str:
    """The config's overrides as JSON, those of its precision left out."""
    task = {name: value for name, value in options.items() if name not in PRECISION_OPTIONS}
    return json.dumps(task, sort_keys=True)


def method_name(recipe: str, label: str, settings: Mapping[str, Any]) -> str:
    """How a table names a cell's method: the recipe, what was changed in it, and 'unfused'."""
    mark = UNFUSED if is_unfused(recipe, settings) and "fuse=" not in label else ""
    return ", ".join(filter(None, (recipe, label, mark)))


def is_unfused(recipe: str, settings: Mapping[str, Any]) -> bool:
    """Whether an INT8 run computes its blocks layer by layer, because it must or was told to.

    As `DAQConfig.suits_units`, which cannot be asked without torch.
    """
    fields = {**OWN_PRODUCTS.get(recipe, {}), **settings}
    return recipe not in ("fp32", "bf16") and (
        fields.get("fuse") is False
        or fields.get("grad_weight") in ("sample", "float")
        or fields.get("grad_input") == "sample"
        or any(fields.get(f"{what}_bits", 8) != 8 for what in ("activation", "weight", "gradient"))
    )


def manifest(frame: pd.DataFrame, folder: Path) -> str:
    """SHA-256 of each record, as `sha256sum -c` in `folder` reads it."""
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {os.path.relpath(file, folder)}"
        for file in sorted(frame.file)
    ]
    return "\n".join(lines) + "\n"


def changed_records(old: str, new: str) -> list[str]:
    """Records whose fingerprints differ between two manifests."""
    before, after = _by_name(old), _by_name(new)
    return sorted(name for name in before | after if before.get(name) != after.get(name))


def _by_name(text: str) -> dict[str, str]:
    pairs = (line.split("  ", 1) for line in text.splitlines())
    return {name: digest for digest, name in pairs}
