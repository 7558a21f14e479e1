"""Arguments that training and testing share: what a run changes in its INT8 recipe."""

from __future__ import annotations

import argparse

from mmengine.config import DictAction


def add_int8_changes(parser: argparse.ArgumentParser) -> None:
    """Add --settings (a dict, {} by default) and --allow-reference."""
    parser.add_argument(
        "--settings",
        nargs="+",
        action=DictAction,
        default={},
        metavar="NAME=VALUE",
        help="settings of the INT8 recipe, e.g. mcs_lambda=0.2 (fields of DAQConfig)",
    )
    parser.add_argument(
        "--allow-reference",
        action="store_true",
        help="compute in INT8 even where only the slow reference can; see DAQHook",
    )
