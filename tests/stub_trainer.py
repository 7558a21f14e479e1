"""Stands in for tools/train.py: epochs are short sleeps, the checkpoint is a count of epochs.

The config's text tells what happens: 'fail' fails once and succeeds when it is resumed, 'broken'
fails always, 'slow' has epochs that a test has time to kill.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tools")]

from record_samples import record  # noqa: E402

EPOCHS = 4


def main():
    """Train, and leave a trace of what was done in the work folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    for name in ("--recipe", "--work-dir", "--record", "--label", "--threads"):
        parser.add_argument(name)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--settings", nargs="+", default=[])
    parser.add_argument("--cfg-options", nargs="+", default=[])
    args = parser.parse_args()
    text, work = Path(args.config).read_text(), Path(args.work_dir)
    checkpoint, target = work / "checkpoint", Path(args.record)
    begin = int(checkpoint.read_text()) if checkpoint.exists() else 0
    with open(work / "trace", "a") as trace:
        trace.write(f"{begin} ")
    if "broken" in text or ("fail" in text and not begin and args.recipe == "daq"):
        checkpoint.write_text("1")
        sys.exit("error: it went wrong")
    for epoch in range(begin, EPOCHS):
        time.sleep(0.5 if "slow" in text else 0.02)
        checkpoint.write_text(str(epoch + 1))
        done = record(args.recipe, args.seed, config=args.config, label=args.label)
        done["finished"] = epoch + 1 == EPOCHS
        done["settings"] = dict(pair.split("=") for pair in args.settings)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".part")
        partial.write_text(json.dumps(done))
        partial.replace(target)
    if "untested" not in text:
        # record_samples' curve has two epochs
        (work / "epoch_2.pth").write_text("")


if __name__ == "__main__":
    main()
