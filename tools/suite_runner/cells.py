"""The suite file: cells of config, recipes and seeds, and the runs they stand for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from common.errors import UsageError
from common.schema import label_of, read_record, run_name

REQUIRED = {"config", "recipes", "seeds"}
OPTIONAL = {"options", "settings", "label", "allow_reference", "start", "test"}
LONGEST_NAME = 120


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: a config by a recipe with a seed, and what the cell changes.

    Attributes:
        options: overrides of the config, sorted pairs of dotted key and value.
        settings: fields of DAQConfig that differ from the recipe's, sorted pairs.
        label: words for both in names and tables; '' for the plain run.
        allow_reference: train in INT8 where only the slow reference can.
        start: config whose backbone, trained in FP32, the run starts from; '' for none.
        test: whether the trained weights are evaluated on the config's test set too.
    """

    config: str
    recipe: str
    seed: int
    options: tuple[tuple[str, Any], ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()
    label: str = ""
    allow_reference: bool = False
    start: str = ""
    test: bool = False

    @property
    def name(self) -> str:
        """File name of its record, without suffix."""
        return run_name(self.config, self.recipe, self.label, self.seed)

    @property
    def cell(self) -> tuple[str, str, str]:
        """What runs that differ by the seed alone have in common."""
        return self.config, self.recipe, self.label

    def config_options(self) -> dict[str, Any]:
        """Overrides of the config; 'max_epochs' also shortens the cosine schedule."""
        pairs = dict(self.options)
        epochs = pairs.pop("max_epochs", None)
        if epochs is not None:
            pairs["train_cfg.max_epochs"] = epochs
            pairs["train_cfg.val_interval"] = epochs
            pairs["param_scheduler.1.T_max"] = pairs["param_scheduler.1.end"] = epochs
        return pairs


def read_suite(path: Path) -> list[Run]:
    """The suite's runs, every recipe of the first seed before the second seed begins.

    Raises:
        UsageError: a missing file, one that is not a suite, or two runs of one name.
    """
    if not path.is_file():
        raise UsageError(f"suite {path} does not exist; there are tools/suites/*.json")
    try:
        cells = json.loads(path.read_text())["cells"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"suite {path} is not JSON with a list 'cells': {error}") from error
    runs = [run for cell in cells for run in _runs_of(cell, path)]
    seen: set[str] = set()
    for run in runs:
        if run.name in seen:
            raise UsageError(f"suite {path} has two runs {run.name}; give one cell a 'label'")
        if len(run.name) > LONGEST_NAME:
            raise UsageError(f"name {run.name} is too long; give the cell of {path} a 'label'")
        seen.add(run.name)
    return sorted(runs, key=lambda run: run.seed)


def _runs_of(cell: dict, path: Path) -> list[Run]:
    allowed = REQUIRED | OPTIONAL
    unknown, missing = set(cell) - allowed, REQUIRED - set(cell)
    if unknown or missing:
        raise UsageError(
            f"a cell of {path} has unknown keys {sorted(unknown)} or lacks {sorted(missing)}; "
            f"allowed: {sorted(allowed)}"
        )
    for config in (cell["config"], *([cell["start"]] if "start" in cell else [])):
        if not Path(config).is_file():
            raise UsageError(f"suite {path} names {config}, which does not exist")
    options, settings = cell.get("options", {}), cell.get("settings", {})
    choices = settings if isinstance(settings, list) else [settings]
    if "label" in cell and len(choices) > 1:
        raise UsageError(f"a cell of {path} has one 'label' for {len(choices)} settings")
    return [run for choice in choices for run in _runs_with(cell, options, choice, path)]


def _runs_with(cell: dict, options: dict, settings: dict, path: Path) -> list[Run]:
    """The runs of a cell with one of its settings."""
    label = cell.get("label", label_of(settings, options))
    if (options or settings) and not label:
        raise UsageError(f"a cell of {path} has options or settings, but an empty 'label'")
    if settings and not {"fp32", "bf16"}.isdisjoint(cell["recipes"]):
        raise UsageError(f"a cell of {path} has INT8 'settings' for the recipes fp32 or bf16")
    return [
        Run(
            *(cell["config"], recipe, seed, _frozen(options), _frozen(settings), label),
            allow_reference=bool(cell.get("allow_reference", False)),
            start=cell.get("start", ""),
            test=bool(cell.get("test", False)),
        )
        for seed in cell["seeds"]
        for recipe in cell["recipes"]
    ]


def _frozen(pairs: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(
        (name, tuple(value) if isinstance(value, list) else value)
        for name, value in sorted(pairs.items())
    )


def finished_record(run: Run, path: Path) -> dict[str, Any] | None:
    """The run's record if nothing of it is missing: training, and test where the cell asks for it.

    Raises:
        UsageError: as `trained_record`.
    """
    record = trained_record(run, path)
    return None if record is None or (run.test and not record["test"]) else record


def trained_record(run: Run, path: Path) -> dict[str, Any] | None:
    """The run's record if its training came to its end; None if there is none yet.

    Raises:
        UsageError: a broken record, or another run's under this name.
    """
    if not path.is_file():
        return None
    try:
        record = read_record(path)
    except ValueError as error:
        raise UsageError(f"{error}; move it away") from error
    expected = (run.recipe, run.seed, run.label)
    found = (record["recipe"], record["seed"], record["label"])
    if found != expected:
        raise UsageError(f"{path} is of another run: recipe, seed, label are {found}")
    return record if record["finished"] else None
