"""Recipes as a command line writes them: a name, or a name and settings that differ from it."""

from __future__ import annotations

import ast
from typing import Any


def split_recipe(text: str) -> tuple[str, dict[str, Any]]:
    """'daq:rounding=stochastic,mcs_a=1.0' as ('daq', {'rounding': 'stochastic', 'mcs_a': 1.0})."""
    recipe, _, settings = text.partition(":")
    pairs = [pair.partition("=") for pair in settings.split(",") if pair]
    return recipe, {name: _value(value) for name, _, value in pairs}


def _value(text: str) -> Any:
    """A Python literal where the text is one, else the text."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
