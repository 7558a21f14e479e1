"""The runs that a suite asks for, so that tables can tell which of them are missing."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from common.schema import METRICS
from suite_runner.cells import read_suite

from .records import method_name, variant_of

CELL = ["task", "network", "variant", "recipe", "label"]


def expected_runs(paths: list[Path], frame: pd.DataFrame) -> pd.DataFrame:
    """One row a run of the suites: CELL, `dataset`, `method`, `seed`.

    Args:
        paths: suite files; the same run in two of them counts once.
        frame: the finished runs. A config's task is its folder's name, and its data set is that of
            the network's finished runs ('' while there are none).

    Raises:
        UsageError: a file that is no suite.
    """
    known = frame.drop_duplicates("network").set_index("network")
    rows = []
    for run in (run for path in paths for run in read_suite(path)):
        network = run.name.removesuffix(f"-seed{run.seed}").removesuffix(f"-{run.label}")
        network = network.removesuffix(f"-{run.recipe}")
        task = Path(run.config).parent.name
        if network in known.index:
            task = known.task[network]
        row = {
            "task": task if task in METRICS else "",
            "network": network,
            "dataset": known.dataset[network] if network in known.index else "",
            "variant": variant_of(run.config_options()),
            "method": method_name(run.recipe, run.label, dict(run.settings)),
        }
        rows.append({**row, "recipe": run.recipe, "label": run.label, "seed": run.seed})
    return pd.DataFrame(rows).drop_duplicates([*CELL, "seed"])


def missing_runs(expected: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of `expected` that have no finished run."""
    done = set(frame[[*CELL, "seed"]].itertuples(index=False, name=None))
    rows = expected[[*CELL, "seed"]].itertuples(index=False, name=None)
    return expected[[row not in done for row in rows]]
