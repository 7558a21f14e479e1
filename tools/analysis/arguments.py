"""Command-line arguments that the tools that look at gradients share."""

from __future__ import annotations

import argparse


def iterations_of(parser: argparse.ArgumentParser, text: str) -> list[int]:
    """`--iterations` as sorted integers without repetition, e.g. '60,5' as [5, 60].

    Anything else ends the program by `parser.error`, whose message names the argument.
    """
    try:
        iterations = sorted({int(part) for part in text.split(",")})
    except ValueError:
        parser.error(f"--iterations {text!r} must be integers with commas between")
    if iterations[0] < 0:
        parser.error("--iterations must not be negative")
    return iterations
