"""Figures of the summary, drawn by matplotlib: differences, curves, speed, memory.

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

from .differences import MARGIN
from .palette import colour_of
from .records import KEYS
from .summary import BASELINE, rank

#: Text and axes have a colour that nothing else has: in the report it becomes the page's own.
INK = "#1f2328"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "daq_mm",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#85888f",
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    ),
}
NETWORK_MARKERS = "osD^vPX<>*"
NETWORKS_IN_A_ROW = 4
FORMATS = ("svg", "png")


def names(table: pd.DataFrame, times: bool = True) -> list[str]:
    """Names of the figures there are; that of the speeds only where the seconds mean something."""
    compared = ["difference"] + ["speed"] * times if table.difference.notna().any() else []
    return ["curves", *compared, "memory"]


def draw(name: str, frame: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """One of the figures, by its name."""
    with matplotlib.rc_context(STYLE):
        if name == "curves":
            return curves(frame)
        return {"difference": difference, "speed": speed, "memory": memory}[name](table)


def difference(table: pd.DataFrame) -> Figure:
    """Mean difference to FP32 and its 95% interval, a line a cell, the margin shaded."""
    cells = table[table.difference.notna()].iloc[::-1].reset_index(drop=True)
    recipes = list(table.recipe)
    figure = Figure(figsize=(7, 0.9 + 0.32 * len(cells)), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(-MARGIN, MARGIN, color="#85888f", alpha=0.18, linewidth=0)
    axes.axvline(0, color=INK, linewidth=0.8)
    for y, cell in cells.iterrows():
        colour = colour_of(cell.recipe, recipes)
        if pd.notna(cell.low):
            axes.plot([cell.low, cell.high], [y, y], color=colour, linewidth=2)
        axes.plot(cell.difference, y, "o", color=colour, markersize=6)
    names = [f"{cell.network}: {cell.method} ({cell.pairs:.0f})" for cell in cells.itertuples()]
    axes.set_yticks(range(len(cells)), names)
    axes.set_ylim(-0.7, len(cells) - 0.3)
    axes.set_xlabel(f"points against FP32 (pairs of seeds), 95% interval; shaded: ±{MARGIN}")
    axes.grid(axis="y", visible=False)
    return figure


def curves(frame: pd.DataFrame) -> Figure:
    """Metric, and loss below it, by epoch: mean over seeds, shaded from least to most."""
    groups = list(frame.groupby(KEYS, sort=True))
    columns = min(len(groups), NETWORKS_IN_A_ROW)
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(max(4.2, 3.6 * columns), 4.8 * lines), layout="constrained")
    axes = figure.subplots(2 * lines, columns, squeeze=False)
    for place in range(lines * columns):
        line, column = divmod(place, columns)
        metric, loss = axes[2 * line][column], axes[2 * line + 1][column]
        if place >= len(groups):
            metric.set_visible(False)
            loss.set_visible(False)
            continue
        (_, network, _, variant), group = groups[place]
        title = network if variant == "{}" else f"{network}\n{variant}"
        draw_curves(metric, loss, group, list(frame.recipe), title)
    return figure


def curve_of(group: pd.DataFrame, recipes: list[str]) -> Figure:
    """The two panels of `curves` side by side, for one network."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.6), layout="constrained")
        metric, loss = figure.subplots(1, 2)
        draw_curves(metric, loss, group, recipes, "")
        metric.set_xlabel("epoch")
    return figure


def draw_curves(metric, loss, group: pd.DataFrame, recipes: list[str], title: str) -> None:
    """The runs of one network into two axes; those with changed settings if there are no others."""
    plain = group[group.settings == "{}"]
    shown = plain if len(plain) else group
    name = group.metric.iloc[0]
    methods = set(zip(shown.recipe, shown.method))
    for recipe, method in sorted(methods, key=lambda pair: (rank(pair[0]), pair)):
        colour = colour_of(recipe, recipes)
        points = pd.concat([pd.DataFrame(c) for c in shown[shown.method == method].curve])
        for axes, column, factor in ((metric, name, 100), (loss, "loss", 1)):
            known = points.dropna(subset=[column])
            found = known.groupby("epoch")[column].agg(["mean", "min", "max"]) * factor
            style = "--" if recipe == BASELINE else "-"
            few = "o" if len(found) < 15 else ""
            axes.plot(found.index, found["mean"], style + few, ms=3, color=colour, label=method)
            axes.fill_between(
                found.index, found["min"], found["max"], color=colour, alpha=0.15, linewidth=0
            )
    metric.set_title(title, fontsize=9)
    metric.set_ylabel(f"{name}, points")
    loss.set_ylabel("training loss")
    loss.set_xlabel("epoch")
    for axes in (metric, loss):
        axes.xaxis.get_major_locator().set_params(integer=True)
    metric.legend(frameon=False, fontsize=8)


def speed(table: pd.DataFrame) -> Figure:
    """Difference to FP32 against speed: above and to the right is better."""
    cells = table[table.difference.notna() & table.times_fp32.notna()]
    recipes = list(table.recipe)
    networks = list(dict.fromkeys(table.network))
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.axhspan(-MARGIN, MARGIN, color="#85888f", alpha=0.18, linewidth=0)
    axes.plot(1, 0, "+", color=INK, markersize=10, label="fp32")
    for cell in cells.itertuples():
        colour = colour_of(cell.recipe, recipes)
        marker = NETWORK_MARKERS[networks.index(cell.network) % len(NETWORK_MARKERS)]
        label = f"{cell.network}: {cell.method}"
        axes.plot(cell.times_fp32, cell.difference, marker, color=colour, label=label)
        if pd.notna(cell.low):
            axes.plot(
                [cell.times_fp32] * 2, [cell.low, cell.high], color=colour, linewidth=1, alpha=0.6
            )
    axes.set_xlabel("× FP32's speed, a training iteration")
    axes.set_ylabel("points against FP32, 95% interval")
    axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def memory(table: pd.DataFrame) -> Figure:
    """Peak memory of a training, a bar a cell."""
    cells = table.iloc[::-1].reset_index(drop=True)
    recipes = list(table.recipe)
    figure = Figure(figsize=(7, 0.8 + 0.28 * len(cells)), layout="constrained")
    axes = figure.subplots()
    colours = [colour_of(recipe, recipes) for recipe in cells.recipe]
    bars = axes.barh(range(len(cells)), cells.memory_mib, color=colours, height=0.7)
    words = [
        f"{cell.memory_mib:.0f}"
        + (f" ({cell.memory_ratio:.2f} × fp32)" if pd.notna(cell.memory_ratio) else "")
        for cell in cells.itertuples()
    ]
    axes.bar_label(bars, words, padding=3, fontsize=8)
    axes.set_yticks(range(len(cells)), [f"{c.network}: {c.method}" for c in cells.itertuples()])
    axes.set_xlim(0, cells.memory_mib.max() * 1.25)
    axes.set_xlabel("peak memory of the process, MiB (median over seeds)")
    axes.grid(axis="y", visible=False)
    return figure


def files_of(figure: Figure, stem: Path, fingerprint: str) -> dict[Path, bytes]:
    """The figure as SVG and PNG, on white, with the records' fingerprint inside."""
    files = {}
    with matplotlib.rc_context(STYLE):
        for kind in FORMATS:
            buffer = io.BytesIO()
            metadata = {"Description": _description(fingerprint)}
            if kind == "svg":
                metadata["Date"] = None
            figure.savefig(buffer, format=kind, dpi=144, facecolor="white", metadata=metadata)
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
