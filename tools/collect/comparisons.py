"""Figures of the cells: difference to FP32 with its interval, against speed, and memory.

A panel a task side by side; in it a block a network, so that some twenty networks can be read.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from .differences import MARGIN
from .palette import colour_of
from .style import INK
from .summary import rank

SIGNS = "osD^vPX<"
GREY = "#85888f"
#: Points that the axis of differences reaches at most; longer intervals end in arrows.
LONGEST_REACH = 6.0


def difference(table: pd.DataFrame) -> Figure:
    """Mean difference to FP32 and its 95% interval, a line a cell, the margin shaded."""
    cells = table[table.difference.notna()]
    recipes = list(table.recipe)
    reach = min(1.1 * _largest(cells), max(LONGEST_REACH, 1.3 * cells.difference.abs().max()))
    blocks = _blocks(cells, per_cell=True)
    figure, panels = _panels(blocks, 0.19)
    for axes, (task, networks) in zip(panels, blocks.items()):
        axes.axvspan(-MARGIN, MARGIN, color=GREY, alpha=0.18, linewidth=0)
        axes.axvline(0, color=INK, linewidth=0.8)
        for _, lines in networks:
            for y, cell in lines:
                _draw_difference(axes, y, cell, colour_of(cell.recipe, recipes), reach)
        axes.set_xlim(-reach, reach)
        _finish_panel(axes, task, networks)
    _legend(figure, cells, recipes, "o-")
    figure.supxlabel(
        f"points against FP32 of the same seeds, 95% interval (arrow: goes on); shaded: ±{MARGIN}; "
        "without a bar: one pair of seeds",
        fontsize=9,
    )
    return figure


def _draw_difference(axes, y: float, cell, colour: str, reach: float) -> None:
    if pd.notna(cell.low):
        low, high = max(cell.low, -reach), min(cell.high, reach)
        axes.plot([low, high], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
        for end, goes_on, sign in ((low, cell.low < low, "<"), (high, cell.high > high, ">")):
            if goes_on:
                axes.plot(end, y, sign, color=colour, markersize=5, clip_on=False)
    filled = dict(markerfacecolor=colour if cell.label == "" else "none")
    axes.plot(cell.difference, y, "o", color=colour, markersize=4.5, **filled)


def speed(table: pd.DataFrame) -> Figure:
    """Difference to FP32 against speed, a panel a task: above and to the right is better."""
    cells = table[table.difference.notna() & table.times_fp32.notna()]
    recipes = list(table.recipe)
    tasks = list(dict.fromkeys(cells.task))
    figure = Figure(figsize=(1.5 + 4.2 * len(tasks), 4.4), layout="constrained")
    panels = figure.subplots(1, len(tasks), squeeze=False)[0]
    reach = max(LONGEST_REACH, 1.3 * cells.difference.abs().max())
    for axes, task in zip(panels, tasks):
        own = cells[cells.task == task]
        networks = list(dict.fromkeys(own.network))
        axes.axhspan(-MARGIN, MARGIN, color=GREY, alpha=0.18, linewidth=0)
        axes.plot(1, 0, "+", color=INK, markersize=10)
        for cell in own.itertuples():
            colour = colour_of(cell.recipe, recipes)
            sign = SIGNS[networks.index(cell.network) % len(SIGNS)]
            at = cell.times_fp32
            if pd.notna(cell.low):
                axes.plot([at, at], [cell.low, cell.high], color=colour, linewidth=0.8, alpha=0.4)
            axes.plot(at, cell.difference, sign, color=colour, markersize=5)
        for index, name in enumerate(networks):
            axes.plot([], [], SIGNS[index % len(SIGNS)], color=GREY, label=name)
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -reach), min(high, reach))
        axes.set_title(task, fontsize=10)
        axes.set_xlabel("× FP32's speed, a training iteration")
        axes.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    panels[0].set_ylabel("points against FP32, 95% interval")
    _legend(figure, cells[cells.label == ""], recipes, "-")
    return figure


def memory(table: pd.DataFrame) -> Figure:
    """Peak memory of the training's process, a line a network, a dot a method."""
    cells = table[table.memory_mib.notna()]
    recipes = list(table.recipe)
    blocks = _blocks(cells, per_cell=False)
    figure, panels = _panels(blocks, 0.42)
    for axes, (task, networks) in zip(panels, blocks.items()):
        for _, lines in networks:
            values = [cell.memory_mib for _, cell in lines]
            axes.plot([min(values), max(values)], [lines[0][0]] * 2, color=GREY, linewidth=0.8)
            for index, (y, cell) in enumerate(lines):
                place = y + 0.5 * ((index + 0.5) / len(lines) - 0.5)  # apart, in their order
                colour = colour_of(cell.recipe, recipes)
                filled = dict(markerfacecolor=colour if cell.label == "" else "none")
                axes.plot(cell.memory_mib, place, "o", color=colour, markersize=5, **filled)
        axes.set_xlim(0, 1.06 * axes.get_xlim()[1])
        _finish_panel(axes, task, networks)
    _legend(figure, cells, recipes, "o")
    figure.supxlabel("peak memory of the process, MiB (median over seeds)", fontsize=9)
    return figure


Lines = list[tuple[float, object]]


def _blocks(cells: pd.DataFrame, per_cell: bool) -> dict[str, list[tuple[str, Lines]]]:
    """By task: (network, [(y, cell), ...]) from the top down; a line a cell, or a network."""
    blocks: dict[str, list[tuple[str, Lines]]] = {}
    for task, group in cells.groupby("task", sort=True):
        y, blocks[task] = 0.0, []
        for (network, variant), rows in group.groupby(["network", "variant"], sort=True):
            name = network if variant == "{}" else f"{network} {variant}"
            lines = []
            for cell in rows.itertuples():
                lines.append((y, cell))
                y -= per_cell
            y -= 0.7 if per_cell else 1
            blocks[task].append((name, lines))
    return blocks


def _panels(blocks, line: float):
    """A figure with a panel a task; `line` is the height of a line in inches."""
    spans = [1 - networks[-1][1][-1][0] for networks in blocks.values()]
    size = (0.5 + 4.6 * max(1.3, len(blocks)), 1.5 + line * max(spans))
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(1, len(blocks), squeeze=False)[0]


def _finish_panel(axes, task: str, networks) -> None:
    """Names of networks at the middle of their blocks, and lines between the blocks."""
    centres = [(lines[0][0] + lines[-1][0]) / 2 for _, lines in networks]
    axes.set_yticks(centres, [_short(name) for name, _ in networks], fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(networks[-1][1][-1][0] - 0.7, 0.7)
    for (_, above), (_, below) in zip(networks, networks[1:]):
        axes.axhline((above[-1][0] + below[0][0]) / 2, color=GREY, linewidth=0.4, alpha=0.6)
    axes.grid(axis="y", visible=False)
    axes.set_title(task, fontsize=10)


def _legend(figure: Figure, cells: pd.DataFrame, recipes: list[str], sign: str) -> None:
    """Methods by colour above the panels; what changes settings is hollow."""
    from matplotlib.lines import Line2D

    found = set(zip(cells.recipe, cells.label, cells.method))
    handles = []
    for recipe, label, method in sorted(found, key=lambda cell: (rank(cell[0]), cell)):
        colour = colour_of(recipe, recipes)
        dot = dict(marker="o", markersize=5, markerfacecolor="none" if label else colour)
        line = dict(linestyle="-" if "-" in sign else "none", linewidth=2)
        handles.append(
            Line2D([], [], color=colour, label=method, **line, **(dot if "o" in sign else {}))
        )
    columns = min(len(handles), 6)
    figure.legend(
        handles=handles, ncols=columns, loc="outside upper center", frameon=False, fontsize=8
    )


def _short(name: str) -> str:
    """A network's name on two lines where it is long."""
    if len(name) <= 18 or "_" not in name:
        return name
    middle = min((i for i, c in enumerate(name) if c == "_"), key=lambda i: abs(i - len(name) / 2))
    return f"{name[:middle]}\n{name[middle:]}"


def _largest(cells: pd.DataFrame) -> float:
    """The largest number of points that a mean or an interval reaches, at least the margin."""
    values = pd.concat([cells[name] for name in ("low", "high", "difference")]).abs()
    return max(2 * MARGIN, float(values.max()))
