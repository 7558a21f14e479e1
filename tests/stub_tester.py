"""Stands in for tools/test.py: a result on a test set goes into the record, a trace on disk."""

import argparse
import json
import sys
from pathlib import Path


def main():
    """Add the test; the config's text 'untestable' makes it fail."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    parser.add_argument("checkpoint")
    for name in ("--recipe", "--into", "--threads"):
        parser.add_argument(name)
    parser.add_argument("--settings", nargs="+", default=[])
    args = parser.parse_args()
    with open(Path(args.checkpoint).parent / "tests", "a") as trace:
        trace.write(" ".join([Path(args.checkpoint).name, args.recipe, *args.settings]) + "\n")
    if "untestable" in Path(args.config).read_text():
        sys.exit("error: it cannot be tested")
    record = json.loads(Path(args.into).read_text())
    metrics = {record["metric"]: 0.25}
    record["test"] = {"value": 0.25, "samples": 40, "metrics": metrics}
    Path(args.into).write_text(json.dumps(record))


if __name__ == "__main__":
    main()
