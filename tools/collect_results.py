#!/usr/bin/env python
"""Make tables of run records: CSV and Markdown, FP32, AMP and INT8 side by side with spread."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pandas as pd

from common.configs import UsageError
from common.record import read_record

KEYS = ["task", "network", "dataset"]
BASELINE = "fp32"
ORDER = ["fp32", "bf16", "paper", "daq", "gvq", "mcs", "global", "ui8", "dorefa", "switchback"]
MARKERS = ("<!-- {name} begin -->", "<!-- {name} end -->")


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", type=Path, nargs="+", help="folders of JSON records, or files")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for the tables")
    parser.add_argument("--name", default="accuracy", help="name of the tables' files")
    parser.add_argument(
        "--splice", type=Path, nargs="*", default=[], help="documents with <!-- NAME begin/end -->"
    )
    parser.add_argument(
        "--without-times",
        action="store_true",
        help="leave seconds out of the Markdown: the runs shared the machine with other work",
    )
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    return parser.parse_args(arguments)


def read_records(paths: list[Path]) -> pd.DataFrame:
    """One row a finished run.

    Raises:
        UsageError: no records, a broken one, or two of the same run.
    """
    files = [
        f for path in paths for f in (sorted(path.glob("*.json")) if path.is_dir() else [path])
    ]
    missing = [str(f) for f in files if not f.is_file()]
    if missing:
        raise UsageError(f"record {missing[0]} does not exist")
    rows = []
    for file in files:
        try:
            record = read_record(file)
        except ValueError as error:
            raise UsageError(str(error)) from error
        if not record.get("finished"):
            print(f"left out, because unfinished: {file}", file=sys.stderr)
            continue
        rows.append({**{k: v for k, v in record.items() if not isinstance(v, (dict, list))}})
        rows[-1]["commit"] = (record.get("commit") or {}).get("sha")
    if not rows:
        raise UsageError(f"no finished records in {', '.join(map(str, paths))}")
    frame = pd.DataFrame(rows)
    repeated = frame[frame.duplicated([*KEYS, "recipe", "seed"])]
    if len(repeated):
        first = repeated.iloc[0]
        raise UsageError(f"two records of {first.network}, {first.recipe}, seed {first.seed}")
    return frame


def summarize(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each task, network, dataset and recipe: means over seeds, spread, differences.

    Columns: metric; n (seeds); mean and std of the metric in points (hundredths), the sample
    standard deviation; difference to FP32 in points, of the means; difference_std, the sample
    standard deviation of the seed-by-seed differences; iteration_seconds (median over seeds) and
    `times_fp32`, FP32's seconds over these; peak memory in MiB (median) and its ratio to FP32's.
    """
    rows = []
    for keys, group in frame.groupby(KEYS, sort=True):
        base = group[group.recipe == BASELINE].set_index("seed")
        for recipe, cell in group.groupby("recipe"):
            cell = cell.set_index("seed")
            row = dict(zip(KEYS, keys), recipe=recipe, metric=cell.metric.iloc[0], n=len(cell))
            row["mean"] = cell.value.mean() * 100
            row["std"] = cell.value.std() * 100
            row["iteration_seconds"] = cell.iteration_seconds.median()
            row["memory_mib"] = cell.peak_memory_mib.median()
            if len(base):
                paired = (cell.value - base.value).dropna() * 100
                row["difference"] = paired.mean()
                row["difference_std"] = paired.std()
                row["times_fp32"] = base.iteration_seconds.median() / row["iteration_seconds"]
                row["memory_ratio"] = row["memory_mib"] / base.peak_memory_mib.median()
            rows.append(row)
    table = pd.DataFrame(rows)
    rank = {recipe: i for i, recipe in enumerate(ORDER)}
    table["rank"] = table.recipe.map(lambda r: rank.get(r, len(rank)))
    return table.sort_values([*KEYS, "rank", "recipe"]).drop(columns="rank").reset_index(drop=True)


def markdown(table: pd.DataFrame, times: bool = True) -> str:
    """The table as a reader wants it: one line a cell, spreads after ±."""

    def spread(mean, std, sign=""):
        if pd.isna(mean):
            return "—"
        text = format(mean, f"{sign}.2f")
        return text if pd.isna(std) else f"{text} ± {std:.2f}"

    rows = []
    for row in table.to_dict("records"):
        is_base = row["recipe"] == BASELINE
        difference = "" if is_base else spread(row.get("difference"), row["difference_std"], "+")
        rows.append(
            {
                "task": row["task"],
                "network": row["network"],
                "method": row["recipe"],
                "metric": row["metric"],
                "seeds": row["n"],
                "value, points": spread(row["mean"], row["std"]),
                "against fp32": difference,
                "s/iteration": f"{row['iteration_seconds']:.3f}",
                "× fp32": "" if is_base else f"{row['times_fp32']:.2f}",
                "peak MiB": f"{row['memory_mib']:.0f}",
            }
        )
    shown = pd.DataFrame(rows)
    if not times:
        shown = shown.drop(columns=["s/iteration", "× fp32"])
    return shown.to_markdown(index=False, disable_numparse=True)


def splice(document: str, name: str, content: str, path: Path) -> str:
    """The document with what stands between the markers of `name` replaced."""
    begin, end = (marker.format(name=name) for marker in MARKERS)
    if begin not in document or end not in document:
        raise UsageError(f"{path} has no markers {begin} ... {end}")
    head, _, rest = document.partition(begin)
    return f"{head}{begin}\n\n{content}\n\n{end}{rest.partition(end)[2]}"


def main(arguments: list[str] | None = None) -> int:
    """Write (or check) the tables and splice them into documents."""
    args = parse_args(arguments)
    frame = read_records(args.records)
    table = summarize(frame)
    text = markdown(table, times=not args.without_times)
    files = {
        args.out / f"{args.name}.csv": table.round(6).to_csv(index=False),
        args.out / f"{args.name}.md": text + "\n",
    }
    for path in args.splice:
        files[path] = splice(path.read_text(), args.name, text, path)
    stale = [p for p, content in files.items() if not p.is_file() or p.read_text() != content]
    if args.check:
        for path in stale:
            print(f"out of date: {path}")
        return 1 if stale else 0
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    print(text)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UsageError as error:
        sys.exit(f"error: {error}")
