"""How figures look: fonts, axes, and the one colour that becomes the page's own in the report."""

from __future__ import annotations

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
