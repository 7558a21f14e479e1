"""Generated parts of documents: Markdown tables, and their place between two markers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def markdown(header: list[str], rows: Iterable[Iterable[Any]]) -> str:
    """A Markdown table; floats get three significant digits, None becomes a dash."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "—"
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}".rstrip(".")
    return str(value)


def spliced(path: Path, name: str, content: str) -> str:
    """A document's text with `content` between <!-- NAME begin --> and <!-- NAME end -->.

    Raises:
        ValueError: no such document, or one without the markers in this order.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such document")
    begin, end = f"<!-- {name} begin -->", f"<!-- {name} end -->"
    head, found_begin, rest = path.read_text().partition(begin)
    _, found_end, tail = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"{path} has no markers {begin} ... {end}")
    return f"{head}{begin}\n\n{content}\n\n{end}{tail}"


def write_or_check(files: dict[Path, str], *, check: bool) -> list[Path]:
    """Write files, or with `check` only compare; returns those that were out of date."""
    stale = [p for p, text in files.items() if not p.is_file() or p.read_text() != text]
    if not check:
        for path in stale:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(files[path])
    return stale
