"""Pieces of HTML: tables whose columns sort, chips, tiles, and the small plot of an interval."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from html import escape


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: what is shown, as HTML if `markup`.
        value: what the column is sorted by (default: the text); NaN and None sort last.
    """

    text: str
    value: object = ""
    markup: bool = False

    def html(self, kind: str) -> str:
        """The <td>; `kind` is its column's class."""
        key = self.text if self.value == "" and not self.markup else self.value
        if key is None or (isinstance(key, float) and math.isnan(key)):
            key = ""
        text = self.text if self.markup else escape(self.text)
        return f'<td{_class(kind)} data-value="{escape(str(key))}">{text}</td>'


def number(value, form: str = ".2f", text: str | None = None) -> Cell:
    """A cell that sorts by a number and shows a dash for none."""
    if value is None or math.isnan(value):
        return Cell("" if text is None else text, None)
    return Cell(format(value, form) if text is None else text, float(value))


def table(
    name: str,
    columns: Mapping[str, str],
    rows: Iterable[tuple[Mapping[str, str], list[Cell]]],
    tall: bool = False,
) -> str:
    """A table that sorts by a click on a heading.

    Args:
        columns: heading to class: 'number', 'wide' or ''.
        rows: data attributes for the filters, and the cells.
        tall: scroll it, rather than the page.
    """
    heads = "".join(
        f'<th scope="col"{_class(kind)}><button type="button">{escape(head)}</button></th>'
        for head, kind in columns.items()
    )
    body = "\n".join(
        f"<tr{attributes(data)}>"
        + "".join(cell.html(kind) for cell, kind in zip(cells, columns.values(), strict=True))
        + "</tr>"
        for data, cells in rows
    )
    return (
        f'<div class="scroll{" tall" if tall else ""}"><table class="sortable" id="{name}">\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>"
    )


def attributes(data: Mapping[str, str]) -> str:
    """data-NAME="..." for each pair."""
    return "".join(f' data-{name}="{escape(value)}"' for name, value in data.items())


def chips(name: str, values: Iterable[str]) -> str:
    """Buttons that choose values of the filter `name`."""
    return "".join(
        f'<button type="button" class="chip" aria-pressed="false"'
        f"{attributes({'filter': name, 'value': value})}>{escape(value)}</button>"
        for value in values
    )


def tile(figure: object, words: str) -> str:
    """A figure with its words below."""
    return f'<div class="tile"><b>{escape(str(figure))}</b><span>{escape(words)}</span></div>'


def dot(colour: str, words: str) -> str:
    """A spot of a method's colour before its name."""
    return f'<span class="dot" style="background:{colour}"></span>{escape(words)}'


def interval(mean: float, low: float, high: float, margin: float, reach: float, colour: str) -> str:
    """A mean with its interval on an axis from -reach to reach, the margin as a band.

    An end that lies beyond the axis is an arrow; a NaN interval is not drawn.
    """

    def x(value: float) -> float:
        return round(75 + 69 * max(-1.0, min(1.0, value / reach)), 1)

    marks, words = "", f"{mean:+.2f}"
    if not math.isnan(low):
        words += f", 95% interval {low:+.2f} to {high:+.2f}"
        marks += f'<line x1="{x(low)}" x2="{x(high)}" y1="9" y2="9"/>'
        marks += '<path d="M8 5 2 9l6 4"/>' if low < -reach else ""
        marks += '<path d="m142 5 6 4-6 4"/>' if high > reach else ""
    if abs(mean) <= reach:
        marks += f'<circle cx="{x(mean)}" cy="9" r="3.5" fill="{colour}"/>'
    return (
        f'<svg class="interval" viewBox="0 0 150 18" role="img" '
        f'aria-label="{words}">'
        f'<rect class="band" x="{x(-margin)}" y="1" width="{x(margin) - x(-margin):.1f}" '
        'height="16"/><line class="zero" x1="75" x2="75" y1="1" y2="17"/>'
        f'<g stroke="{colour}" fill="none" stroke-width="2.2">{marks}</g></svg>'
    )


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
