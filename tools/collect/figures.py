"""Figures of the summary, drawn by matplotlib, as files and in the report.

Each carries the fingerprint of the records that it shows, so that a check can tell whether it is
current without drawing it again (another version of matplotlib draws other bytes).
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from . import comparisons, curves, settings
from .style import INK, STYLE

FORMATS = ("svg", "png")


def names(frame: pd.DataFrame, table: pd.DataFrame, times: bool = True) -> list[str]:
    """Names of the figures there are; that of the speeds only where the seconds mean something."""
    compared = ["difference"] + ["speed"] * times if table.difference.notna().any() else []
    swept = ["settings"] if settings.sweeps(frame) else []
    return [*curves.names(frame), *compared, "memory", *swept]


def draw(name: str, frame: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """One of the figures, by its name."""
    if name == "settings":
        return settings.figure(frame)
    with matplotlib.rc_context(STYLE):
        drawn = {
            "difference": comparisons.difference,
            "speed": comparisons.speed,
            "memory": comparisons.memory,
        }.get(name)
        return curves.draw(name, frame) if drawn is None else drawn(table)


def files_of(figure: Figure, stem: Path, fingerprint: str) -> dict[Path, bytes]:
    """The figure as SVG and PNG, on white, with the records' fingerprint inside."""
    files = {}
    with matplotlib.rc_context(STYLE):
        for kind in FORMATS:
            buffer = io.BytesIO()
            metadata = {"Description": _description(fingerprint)}
            if kind == "svg":
                metadata["Date"] = None
            figure.savefig(buffer, format=kind, dpi=110, facecolor="white", metadata=metadata)
            files[stem.with_name(f"{stem.name}.{kind}")] = buffer.getvalue()
    return files


def shows(file: Path, fingerprint: str) -> bool:
    """Whether a figure's file was drawn from the records of this fingerprint."""
    return file.is_file() and _description(fingerprint).encode() in file.read_bytes()


def inline_svg(figure: Figure, name: str, words: str) -> str:
    """The figure as an <svg> element without background, in the page's own text colour.

    Args:
        name: prefix of the ids in it, which must be unique in the page.
        words: what a screen reader says.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    text = re.sub(r'<svg\b[^>]*?viewBox="([^"]*)"[^>]*>', _opening(words), text, count=1)
    return text.strip()


def _opening(words: str):
    return lambda match: (
        f'<svg class="figure" role="img" aria-label="{words}" viewBox="{match[1]}" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )


def _description(fingerprint: str) -> str:
    return f"drawn from records with SHA-256 {fingerprint}"
