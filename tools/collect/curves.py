"""Training curves: metric and loss by epoch, FP32 beside INT8, a column of two panels a network."""

from __future__ import annotations

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

from .palette import colour_of
from .records import KEYS, TESTED
from .style import STYLE
from .summary import BASELINE, rank

NETWORKS_IN_A_ROW = 4
#: With more networks than this, each task has a figure of its own.
NETWORKS_IN_A_FIGURE = 8
#: Methods in a panel up to which the spread over seeds is shaded.
SHADED = 4
#: What FP32 is set against where a network has many methods; others have their own figure.
OURS = "daq"


def names(frame: pd.DataFrame) -> list[str]:
    """'curves' or 'curves_TASK' each, and 'curves_methods' where networks have many methods."""
    groups = frame.groupby(KEYS)
    found = ["curves"]
    if groups.ngroups > NETWORKS_IN_A_FIGURE:
        found = [f"curves_{task}" for task in sorted(set(frame.task))]
    return [*found, *(["curves_methods"] if _with_many(frame) else [])]


def draw(name: str, frame: pd.DataFrame) -> Figure:
    """One of `names`."""
    if name == "curves_methods":
        groups = _with_many(frame)
    else:
        task = name.removeprefix("curves").removeprefix("_")
        chosen = frame[frame.task == task] if task else frame
        groups = [(keys, _against_ours(group)) for keys, group in chosen.groupby(KEYS, sort=True)]
    return _grid(groups, list(frame.recipe))


def curve_of(group: pd.DataFrame, recipes: list[str]) -> Figure:
    """The two panels of one network side by side, with all its methods."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 2.6), layout="constrained")
        metric, loss = figure.subplots(1, 2)
        _draw(metric, loss, group, recipes, "")
        metric.set_xlabel("epoch")
    return figure


def _with_many(frame: pd.DataFrame) -> list:
    """Networks that have more methods than their figure of FP32 against ours shows."""
    plain = frame[frame.label == ""]
    groups = plain.groupby(KEYS, sort=True)
    return [
        (keys, group)
        for keys, group in groups
        if group.recipe.nunique() > SHADED and {BASELINE, OURS} <= set(group.recipe)
    ]


def _against_ours(group: pd.DataFrame) -> pd.DataFrame:
    """FP32 and our recipe alone where there are both and many others."""
    plain = group[group.label == ""]
    if plain.recipe.nunique() > SHADED and {BASELINE, OURS} <= set(plain.recipe):
        return plain[plain.recipe.isin((BASELINE, OURS))]
    return group


def _grid(groups: list, recipes: list[str]) -> Figure:
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
        _draw(metric, loss, group, recipes, title)
    return figure


def _draw(metric, loss, group: pd.DataFrame, recipes: list[str], title: str) -> None:
    """The runs of one network into two axes; those with changed settings if there are no others."""
    plain = group[group.settings == "{}"]
    shown = plain if len(plain) else group
    name = group.metric.iloc[0].split(TESTED)[0]  # curves are those of the validation
    methods = sorted(set(zip(shown.recipe, shown.method)), key=lambda pair: (rank(pair[0]), pair))
    for recipe, method in methods:
        colour = colour_of(recipe, recipes)
        points = pd.concat([pd.DataFrame(c) for c in shown[shown.method == method].curve])
        for axes, column, factor in ((metric, name, 100), (loss, "loss", 1)):
            known = points.dropna(subset=[column])
            found = known.groupby("epoch")[column].agg(["mean", "min", "max"]) * factor
            style = "--" if recipe == BASELINE else "-"
            few = "o" if len(found) < 15 else ""
            axes.plot(found.index, found["mean"], style + few, ms=3, color=colour, label=method)
            if len(methods) <= SHADED:
                axes.fill_between(
                    found.index, found["min"], found["max"], color=colour, alpha=0.15, linewidth=0
                )
    metric.set_title(title, fontsize=9)
    metric.set_ylabel(f"{name}, points")
    loss.set_ylabel("training loss")
    loss.set_xlabel("epoch")
    metric.set_xlim(loss.get_xlim())  # there may be fewer validations than epochs
    for axes in (metric, loss):
        axes.xaxis.get_major_locator().set_params(integer=True)
    legend = loss if len(methods) > SHADED else metric  # losses fall: there is room above them
    many = len(methods) > SHADED
    legend.legend(frameon=False, fontsize=7 if many else 8, ncols=2 if many else 1)
