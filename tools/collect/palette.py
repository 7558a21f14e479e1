"""Colours of the methods, the same in every figure; legible on white and on near-black."""

from __future__ import annotations

COLOURS = {
    "fp32": "#85888f",
    "bf16": "#b08a2e",
    "paper": "#e07b39",
    "daq": "#2f86d6",
    "gvq": "#2a9d74",
    "mcs": "#a45cc4",
    "global": "#c94f6d",
    "ui8": "#4aa3a2",
    "dorefa": "#8c6d4f",
    "switchback": "#7a86e0",
}

#: For recipes that have no colour of their own, in the order of their names.
FURTHER = ("#9aa03a", "#cf6fb0", "#5c9e4a")


def colour_of(recipe: str, recipes: list[str]) -> str:
    """The recipe's colour, given all recipes that are shown."""
    if recipe in COLOURS:
        return COLOURS[recipe]
    others = sorted(set(recipes) - set(COLOURS))
    return FURTHER[others.index(recipe) % len(FURTHER)]
