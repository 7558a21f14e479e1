"""The result on a test set as a part of a run's record: `test`, beside the validation's `value`.

A validation of a few hundred samples is enough to follow a training, and too coarse to tell two
trained networks apart; a config may have a larger test set for that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from . import provenance
from .configs import dataset_paths, recipe_of, settings_of
from .errors import UsageError
from .schema import check_record, read_record


def check_into(path: Path, cfg, checkpoint: str | Path) -> None:
    """Make sure, before any work, that a test of this config and checkpoint belongs to a record.

    Args:
        path: the record.
        cfg: the config as it will be evaluated; it has a test set of its own.
        checkpoint: of the run's last epoch; RecordHook left the curve of the run in it.

    Raises:
        UsageError: no finished record, another run's, or a config without a test set.
    """
    if not path.is_file():
        raise UsageError(f"record {path} does not exist")
    try:
        record = read_record(path)
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not record["finished"]:
        raise UsageError(f"{path} is of a training that is not finished")
    found = recipe_of(cfg), settings_of(cfg)
    if found != (record["recipe"], record["settings"]):
        raise UsageError(
            f"{path} is of recipe {record['recipe']!r} with settings {record['settings']}; this "
            f"would test {found[0]!r} with {found[1]} (--recipe, --settings)"
        )
    sets = [dataset_paths(cfg[f"{split}_dataloader"]["dataset"]) for split in ("val", "test")]
    if sets[0] == sets[1]:
        raise UsageError(
            f"the config's test set is its validation set, {sets[1][0]}; its result is the record's"
        )
    if _losses(record["curve"]) != _losses(_curve_in(checkpoint)):
        raise UsageError(f"{checkpoint} is not the last checkpoint of the run in {path}")


def add_test(
    path: Path, metrics: Mapping[str, float], cfg, samples: int, checkpoint: str | Path
) -> dict[str, Any]:
    """Write the test's result into a record, atomically; returns the record.

    Args:
        path: the record, of which `check_into` approved.
        metrics: what the test gave, by name.
        cfg: what was tested; the folder of its test set is recorded.
        samples: length of the test set.
        checkpoint: what was tested; its SHA-256 is recorded.

    Raises:
        UsageError: metrics without the record's, or with one outside of 0 to 1.
    """
    record = json.loads(path.read_text())
    where = provenance.provenance()
    record["test"] = {
        "dataset": dataset_paths(cfg.test_dataloader["dataset"])[0].parent.name,
        "samples": samples,
        "value": metrics.get(record["metric"]),
        "metrics": dict(metrics),
        "checkpoint": hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest(),
        **{name: where[name] for name in ("commit", "date", "versions", "threads")},
        "cpu": where["machine"]["cpu"],
    }
    try:
        check_record(record)
    except ValueError as error:
        raise UsageError(f"the test of {path} gave {dict(metrics)}: {error}") from error
    provenance.write_json(path, record)
    return record


def _curve_in(checkpoint: str | Path) -> list[dict[str, Any]]:
    import torch

    state = torch.load(checkpoint, map_location="cpu", weights_only=False)
    return state.get("daq_mm_record", {}).get("curve", [])


def _losses(curve: list[dict[str, Any]]) -> list[float]:
    return [point["loss"] for point in curve]
