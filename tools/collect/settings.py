"""What changed settings do to a recipe: a table against the plain recipe, and curves over values.

FP32 is not the baseline here: whether lambda matters is seen between two runs of the same method.
"""

from __future__ import annotations

import json

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .differences import compare
from .palette import colour_of
from .records import KEYS
from .style import INK, STYLE
from .summary import BASELINE, rank
from .tables import spread

Rows = list[dict[str, str]]

AGAINST = "against the plain recipe"

#: Settings that a figure shows over their values: the words of the axis, and every recipe's value.
SWEPT = {
    ("mcs_lambda",): ("λ of the discriminator", 0.3),
    ("mcs_k",): ("k of the threshold's recursion", 1.0),
    ("mcs_a",): ("A of the threshold's recursion", 0.8),
    ("gradient_bits",): ("bits of the gradient", 8),
    ("activation_bits", "gradient_bits", "weight_bits"): ("bits of all operands", 8),
}


def rows(frame: pd.DataFrame) -> tuple[Rows, list[str]]:
    """A row a network, recipe and changed setting: its difference to the plain recipe, in points.

    Args:
        frame: the finished runs, of `read_records`.

    Returns:
        rows, and notes; both empty without a recipe that ran both plain and changed.
    """
    found: Rows = []
    for keys, group in _changed_and_plain(frame):
        plain = group[group.label == ""].set_index("seed").value
        for label in ("", *sorted(set(group.label) - {""})):
            cell = group[group.label == label].set_index("seed").value
            differences = list((cell - plain).dropna() * 100) if label else []
            found.append(_row(keys, label, cell, differences))
    notes = [
        "Differences to the plain recipe of the same seeds, in points, ± their standard deviation."
    ]
    return (found, notes) if found else ([], [])


def _changed_and_plain(frame: pd.DataFrame) -> list[tuple[tuple, pd.DataFrame]]:
    """The runs of each network and recipe that has plain ones and changed ones."""
    groups = [
        (keys, group)
        for keys, group in frame.groupby([*KEYS, "recipe"], sort=True)
        if keys[-1] != BASELINE and "" in set(group.label) and len(set(group.label)) > 1
    ]
    return sorted(groups, key=lambda found: (*found[0][:-1], rank(found[0][-1]), found[0][-1]))


def _row(keys: tuple, label: str, cell: pd.Series, differences: list[float]) -> dict[str, str]:
    compared = compare(differences)
    known = compared is not None and not pd.isna(compared.low)
    return {
        "task": keys[0],
        "network": keys[1],
        "method": keys[-1],
        "setting": label or "plain",
        "seeds": str(len(cell)),
        "value, points": spread(cell.mean() * 100, cell.std() * 100),
        AGAINST: "" if compared is None else spread(compared.mean, compared.std, "+"),
        "95% interval": f"{compared.low:+.2f} to {compared.high:+.2f}" if known else "",
        "verdict": "" if compared is None else compared.verdict,
    }


def sweeps(frame: pd.DataFrame) -> dict[tuple, pd.DataFrame]:
    """Runs over the values of a setting: by (task, network, data set, variant, settings' names).

    Each frame has the columns `recipe`, `seed`, `at` (the setting's value; the plain recipe has
    its own, of the seeds that changed runs have) and `value` (points). A setting with less than
    two values beside the recipe's has none.
    """
    found = {}
    for keys, group in frame.groupby(KEYS, sort=True):
        settings = group.settings.map(json.loads)
        for names, (_, default) in SWEPT.items():
            at = settings.map(lambda changed, names=names: _value_of(changed, names))
            at = at.where(group.label != "", float(default))
            chosen = group.assign(at=at)[at.notna() & (group.recipe != BASELINE)]
            changed = chosen[chosen.label != ""]
            if changed["at"].nunique() > 1:
                # means over different seeds would differ by the seeds
                swept = changed.groupby("recipe").seed.agg(set)
                same = [
                    run.recipe in swept and run.seed in swept[run.recipe]
                    for run in chosen.itertuples()
                ]
                chosen = chosen[same]
                points = chosen.assign(value=chosen.value * 100)
                found[(*keys, names)] = points[["recipe", "seed", "at", "value"]]
    return found


def _value_of(changed: dict, names: tuple[str, ...]) -> float:
    """The one value of exactly these settings; NaN if others or none are changed."""
    if tuple(sorted(changed)) != names or len(set(changed.values())) != 1:
        return float("nan")
    return float(changed[names[0]])


def figure(frame: pd.DataFrame) -> Figure:
    """A panel a network and setting: all runs, means over seeds, and FP32's mean and spread."""
    found = sweeps(frame)
    recipes = list(frame.recipe)
    columns = min(3, len(found))
    lines = -(-len(found) // columns)
    with matplotlib.rc_context(STYLE):
        drawn = Figure(figsize=(3.6 * columns, 0.5 + 2.9 * lines), layout="constrained")
        panels = list(drawn.subplots(lines, columns, squeeze=False).flat)
        for axes, ((*keys, names), points) in zip(panels, found.items()):
            _draw_fp32(axes, frame, keys)
            for recipe, runs in points.groupby("recipe"):
                colour = colour_of(recipe, recipes)
                axes.plot(runs["at"], runs.value, "o", color=colour, markersize=3, alpha=0.5)
                means = runs.groupby("at").value.mean()
                axes.plot(means.index, means, "-", color=colour, linewidth=1.5)
            words, default = SWEPT[names]
            axes.set_xlabel(f"{words} (the recipe's: {default})")
            axes.set_title(keys[1], fontsize=8)
        for axes in panels[len(found) :]:
            axes.set_axis_off()
        drawn.supylabel("points", fontsize=9)
        _legend(drawn, found, recipes)
    return drawn


def _draw_fp32(axes, frame: pd.DataFrame, keys: list[str]) -> None:
    """FP32's mean as a line and its sample standard deviation as a band."""
    same = (frame[KEYS] == keys).all(axis=1) & (frame.recipe == BASELINE) & (frame.label == "")
    values = frame[same].value * 100
    if len(values):
        axes.axhline(values.mean(), color=INK, linewidth=0.9, linestyle="--")
    if len(values) > 1:
        low, high = values.mean() - values.std(), values.mean() + values.std()
        axes.axhspan(low, high, color=colour_of(BASELINE, []), alpha=0.18, linewidth=0)


def _legend(drawn: Figure, found: dict[tuple, pd.DataFrame], recipes: list[str]) -> None:
    shown = sorted({recipe for points in found.values() for recipe in points.recipe}, key=rank)
    handles = [Line2D([], [], color=colour_of(name, recipes), label=name) for name in shown]
    handles.append(Line2D([], [], color=INK, linestyle="--", label="fp32, ± standard deviation"))
    drawn.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
