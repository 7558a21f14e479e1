#!/usr/bin/env python
"""Compare runs that two folders of records both have, such as published ones and repeated ones.

    python tools/compare_records.py results/benchmark/records again/records

Prints for each run the difference of its value in points (and of its test's, where both have one),
the first epoch whose loss or metrics differ, and what else differs between the two: commit,
versions, processor, threads, backend. Exits with 1 if a value or a test differs by more than
--tolerance points (default: any difference).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UsageError
from common.schema import read_record

#: What may explain a difference, by the words for it.
CAUSES = {
    "commit": lambda record: record["commit"].get("sha"),
    "versions": lambda record: record["versions"],
    "processor": lambda record: record["machine"].get("cpu"),
    "backend": lambda record: record["backend"],
    "threads": lambda record: record["threads"],
}


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("first", type=Path, help="folder of records")
    parser.add_argument("second", type=Path, help="folder of records")
    parser.add_argument("--tolerance", type=float, default=0.0, help="points (default: 0)")
    return parser.parse_args(arguments)


def shared_records(first: Path, second: Path) -> dict[str, tuple[dict, dict]]:
    """The finished records that both folders have, by name.

    Raises:
        UsageError: a folder that does not exist, a broken record, or none in common.
    """
    for folder in (first, second):
        if not folder.is_dir():
            raise UsageError(f"{folder} is not a folder of records")
    names = sorted({file.name for file in first.glob("*.json")})
    pairs = {}
    for name in (name for name in names if (second / name).is_file()):
        try:
            pair = read_record(first / name), read_record(second / name)
        except ValueError as error:
            raise UsageError(str(error)) from error
        if all(record["finished"] for record in pair):
            pairs[name.removesuffix(".json")] = pair
    if not pairs:
        raise UsageError(f"{first} and {second} have no finished record of the same name")
    return pairs


def first_difference(one: list[Mapping[str, Any]], other: list[Mapping[str, Any]]) -> int | None:
    """Epoch of the first point in which two curves differ; None if they are the same."""
    for a, b in zip(one, other):
        if a != b:
            return a["epoch"]
    return None if len(one) == len(other) else min(len(one), len(other)) + 1


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[float]:
    """Second less first in points: of the value and, where both have a test, of its value."""
    pairs = [(one, other)]
    if one["test"] and other["test"]:
        pairs.append((one["test"], other["test"]))
    return [100 * (second["value"] - first["value"]) for first, second in pairs]


def words_of(one: dict[str, Any], other: dict[str, Any]) -> str:
    """How two records of a run differ."""
    epoch = first_difference(one["curve"], other["curve"])
    of_value, *of_test = differences(one, other)
    if epoch is None:
        words = "the same curve to the last digit"
    else:
        words = f"{of_value:+.2f} points, curves part at epoch {epoch}"
    words += f", {of_test[0]:+.2f} points on the test set" if of_test else ""
    causes = [name for name, of in CAUSES.items() if of(one) != of(other)]
    return f"{words}; different: {', '.join(causes)}" if causes else words


def main(arguments: list[str] | None = None) -> int:
    """Print a line a run; 1 if a value differs by more than the tolerance."""
    args = parse_args(arguments)
    differ = 0
    for name, (one, other) in shared_records(args.first, args.second).items():
        print(f"{name}: {words_of(one, other)}")
        differ += max(map(abs, differences(one, other))) > args.tolerance
    return 1 if differ else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UsageError as error:
        sys.exit(f"error: {error}")
