"""Further tables: networks by methods, and the paper's ablation against one threshold a tensor."""

from __future__ import annotations

import pandas as pd

from .differences import MARGIN, compare
from .published import Published
from .records import KEYS
from .summary import BASELINE, rank
from .tables import seeds, spread

#: What a verdict looks like in a cell of a matrix; 'not shown' has no mark.
MARKS = {"equivalent": "≈", "better": "↑", "worse": "↓"}

#: The ablation's baseline, and what is set against it, in the order of the paper's table.
GLOBAL = "global"
PARTS = {
    "gvq": "a threshold a channel",
    "mcs": "clipping by distribution",
    "paper": "both: the paper's method",
    "daq": "both, and ours",
}

Rows = list[dict[str, str]]


def methods(table: pd.DataFrame) -> tuple[Rows, list[str]]:
    """A row a network, a column a method: FP32's value, then differences to it, in points.

    Of the cells of `summarize`, those with changed settings left out. A cell that the suite asks
    for and that has no run says so. The row 'all' has the mean over the networks whose seeds are
    all there, each network's mean counting once; its interval is Student's over the networks.
    """
    plain = table[table.label == ""]
    names = plain.drop_duplicates("recipe").set_index("recipe").method
    recipes = sorted(names.index, key=lambda recipe: (rank(recipe), recipe))
    rows = []
    for (task, network, _, _), group in plain.groupby(KEYS, sort=True):
        cells = {row["recipe"]: row for row in group.to_dict("records")}
        row = {"task": task, "network": network}
        rows.append({**row, **{names[r]: _matrix_cell(cells.get(r)) for r in recipes}})
    whole = plain[(plain.missing == 0) & (plain.pairs == plain.n)]
    over = {names[r]: _cell_over_networks(whole[whole.recipe == r].difference) for r in recipes}
    if any(over.values()):
        rows.append({"task": "all", "network": "mean over networks", **over})
    notes = [
        "FP32: mean ± standard deviation over seeds, in points. Others: mean difference to FP32 of "
        f"the same seeds ± its standard deviation. ≈ equivalent within {MARGIN} points, ↑ better, "
        "↓ worse, no mark: not shown. In parentheses: finished seeds of those asked for, where "
        "some are missing; an empty cell was not asked for. `all`: over the networks with all "
        "their seeds (their number), each one's mean counting once, with the 95% interval."
    ]
    return rows, notes


def _matrix_cell(row: dict | None) -> str:
    if row is None:
        return ""
    count = f" ({seeds(row)})" if row["missing"] else ""
    if row["n"] == 0:
        return f"—{count}"
    if row["recipe"] == BASELINE:
        return spread(row["mean"], row["std"]) + count
    if pd.isna(row["difference"]):
        return f"{spread(row['mean'], row['std'])}, no FP32{count}"
    mark = MARKS.get(row["verdict"], "")
    return f"{spread(row['difference'], row['difference_std'], '+')} {mark}".strip() + count


def _cell_over_networks(differences: pd.Series) -> str:
    """Mean of networks' mean differences, in points, its interval, their number; empty below 2."""
    if len(differences) < 2:
        return ""
    found = compare(list(differences))
    interval = f"[{found.low:+.2f}, {found.high:+.2f}]"
    words = (f"{found.mean:+.2f}", interval, MARKS.get(found.verdict, ""), f"({len(differences)})")
    return " ".join(filter(None, words))


def ablation(frame: pd.DataFrame, published: Published) -> tuple[Rows, list[str]]:
    """A row a network and part of the method: its difference to one global threshold, in points.

    Of the plain runs of networks that have some with 'global' and with another part, paired by
    seed. Rows of 'all' have the mean over networks, each network's mean counting once; their
    interval is Student's over the networks. Empty if there is no such network.
    """
    plain = frame[frame.label == ""]
    rows: Rows = []
    means: dict[str, list[float]] = {}
    for (task, network, _, _), group in plain.groupby(KEYS, sort=True):
        by_recipe = {
            recipe: cell.set_index("seed").value for recipe, cell in group.groupby("recipe")
        }
        if GLOBAL not in by_recipe or not set(PARTS) & set(by_recipe):
            continue
        base = by_recipe[GLOBAL]
        names = {"task": task, "network": network}
        rows.append(_ablation_row(names, GLOBAL, "one threshold", base, None))
        for part, words in PARTS.items():
            if part in by_recipe:
                paired = (by_recipe[part] - base).dropna() * 100
                rows.append(_ablation_row(names, part, words, by_recipe[part], list(paired)))
                if len(paired):
                    means.setdefault(part, []).append(float(paired.mean()))
    for part, found in means.items():
        if len(found) > 1:
            names = {"task": "all", "network": f"{len(found)} networks"}
            rows.append(_ablation_row(names, part, PARTS[part], None, found))
    if not rows:
        return [], []
    for figure in published.figures:
        if figure.against == GLOBAL and figure.difference is not None:
            cells = dict.fromkeys(rows[0], "")
            cells |= {
                "task": figure.task,
                "network": ", ".join(filter(None, (figure.network, figure.dataset))),
            }
            cells |= {"method": f"{figure.method} {figure.mark}"}
            rows.append({**cells, f"against {GLOBAL}": f"{figure.difference:+.2f}"})
    marks = {figure.mark for figure in published.figures if figure.against == GLOBAL}
    notes = [
        f"Differences to `{GLOBAL}` of the same seeds, in points, ± their standard deviation; "
        "`all`: over the networks, each network's mean counting once.",
        *(
            f"{m} published, not measured here: {text}"
            for m, text in published.citations
            if m in marks
        ),
    ]
    return rows, notes


def _ablation_row(names, method, words, values, differences) -> dict[str, str]:
    found = compare(differences) if differences is not None else None
    value = "" if values is None else spread(values.mean() * 100, values.std() * 100)
    known = found is not None and not pd.isna(found.low)
    return {
        **names,
        "method": method,
        "gradient": words,
        "seeds": "" if values is None else str(len(values)),
        "value, points": value,
        f"against {GLOBAL}": "" if found is None else spread(found.mean, found.std, "+"),
        "95% interval": f"{found.low:+.2f} to {found.high:+.2f}" if known else "",
        "verdict": "" if found is None else found.verdict,
    }
