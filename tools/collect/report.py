"""The report: one HTML file with tables, figures and filters that needs no network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from string import Template

import pandas as pd

from . import html
from .differences import MARGIN, VERDICTS
from .html import Cell, number
from .palette import colour_of
from .published import Published
from .records import KEYS
from .summary import rank
from .tables import seeds, spread, words_used

FOLDER = Path(__file__).parent
NO_FIGURE = '<svg class="figure"></svg>'
#: Points that the plot of an interval reaches at most; longer intervals end in arrows.
LONGEST_REACH = 5.0
#: Titles of further tables; columns of theirs that hold words; what their cells sort by.
FURTHER = {
    "methods": "Networks by methods",
    "ablation": "Ablation, against one threshold",
    "settings": "Changed settings, against the plain recipe",
}
WORDS = ("task", "network", "method", "gradient", "setting", "verdict")
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
CAPTIONS = {
    "difference": "Difference to FP32",
    "speed": "Accuracy against speed",
    "memory": "Peak memory",
    "settings": "Over the values of a setting",
}


def report(
    frame: pd.DataFrame,
    table: pd.DataFrame,
    published: Published,
    fingerprint: str,
    *,
    further: Mapping[str, tuple[list[dict[str, str]], list[str]]] | None = None,
    times: bool = True,
    draw: bool = True,
) -> str:
    """The report's HTML.

    Args:
        frame: the runs, of `read_records`.
        table: the cells, of `summarize`.
        fingerprint: SHA-256 of the records' manifest.
        further: rows and notes of further tables, by the names of `FURTHER`.
        times: show seconds and speeds.
        draw: draw the figures; without, their places are empty, as `without_figures` leaves them.
    """
    recipes = sorted(set(frame.recipe))
    verdicts = table.verdict.dropna()
    tiles = [html.tile(len(frame), "runs"), html.tile(table.network.nunique(), "networks")]
    tiles += [html.tile(table.recipe.nunique(), "methods")]
    tiles += [html.tile(int((verdicts == word).sum()), word) for word in VERDICTS]
    if table.missing.any():
        tiles.append(html.tile(int(table.missing.sum()), "runs of the suite missing"))
    methods = sorted(set(frame.recipe), key=lambda recipe: (rank(recipe), recipe))
    return Template((FOLDER / "report.html").read_text()).substitute(
        style=(FOLDER / "report.css").read_text(),
        script=(FOLDER / "report.js").read_text(),
        fingerprint=fingerprint,
        margin=MARGIN,
        lead=_lead(frame),
        tiles="".join(tiles),
        task_chips=html.chips("task", sorted(set(frame.task))),
        method_chips=html.chips("method", methods),
        results=_results(table, recipes, times),
        words="".join(f"<p>{escape(note)}</p>" for note in words_used(table)),
        further="\n".join(_further(name, *found) for name, found in (further or {}).items()),
        curves=_curves(frame, recipes, draw),
        figures_heading="Differences, speed and memory" if times else "Differences and memory",
        figures=_figures(frame, table, times, draw),
        runs=_runs(frame, recipes, times),
        published=_published(published),
        times_note=_times_note(times),
        provenance=_provenance(frame),
    )


def without_figures(text: str) -> str:
    """A report with its drawn figures taken out: what can be compared between two machines."""
    return re.sub(r'<svg class="figure".*?</svg>', NO_FIGURE, text, flags=re.DOTALL)


def _lead(frame: pd.DataFrame) -> str:
    dates = sorted(date[:10] for date in frame.date)
    days = dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"
    return (
        "Distribution Adaptive INT8 training of convolutional networks, trained beside FP32 with "
        f"the same seeds; {len(frame)} finished runs, {days}."
    )


def _times_note(times: bool) -> str:
    if times:
        return "Seconds an iteration are medians, data loading included; × fp32 above 1 is faster."
    return (
        "Seconds and speeds are left out: these runs shared their machine with other work. Speeds "
        "are measured by the benchmarks, tools/bench_train.py and tools/bench_ops.py."
    )


def _results(table: pd.DataFrame, recipes: list[str], times: bool) -> str:
    columns = {"Task": "", "Network": "", "Method": "", "Seeds": "number"}
    columns |= {"Value": "number", "Against FP32": "number", "95% interval": "number"}
    columns |= {"Verdict": ""}
    columns |= {"s/iteration": "number", "× fp32": "number"} if times else {}
    columns |= {"Peak MiB": "number"}
    widest = pd.concat([table[name] for name in ("low", "high", "difference")]).abs().max()
    reach = min(max(2 * MARGIN, _float(widest)), LONGEST_REACH)
    rows = [
        (_data(row), _result_cells(row, colour_of(row.recipe, recipes), reach, times))
        for row in table.itertuples()
    ]
    return html.table("results", columns, rows)


def _result_cells(row, colour: str, reach: float, times: bool) -> list[Cell]:
    compared, known = pd.notna(row.difference), pd.notna(row.low)
    plot = words = verdict = ""
    if compared:
        words = spread(row.difference, row.difference_std, "+")
        plot = html.interval(row.difference, row.low, row.high, MARGIN, reach, colour)
        plot += f"<small>{row.low:+.2f} to {row.high:+.2f}</small>" if known else ""
        verdict = f'<span class="verdict {row.verdict.replace(" ", "-")}">{row.verdict}</span>'
    name = row.network if row.variant == "{}" else f"{row.network} {row.variant}"
    network = f"{escape(name)}<small>{escape(row.metric)}</small>"
    seconds = [number(row.iteration_seconds, ".3f"), number(_float(row.times_fp32))]
    return [
        Cell(row.task),
        Cell(network, name, markup=True),
        Cell(html.dot(colour, row.method), f"{rank(row.recipe)} {row.method}", markup=True),
        number(row.n, text=seeds({"n": row.n, "missing": row.missing})),
        number(row.mean, text=spread(row.mean, row.std)),
        number(_float(row.difference), text=words),
        Cell(plot, _float(row.low), markup=True),
        Cell(verdict, row.verdict if compared else None, markup=True),
        *(seconds if times else []),
        number(row.memory_mib, ".0f"),
    ]


def _further(name: str, rows: list[dict[str, str]], notes: list[str]) -> str:
    """A section with a table whose cells are words; those that begin with a number sort by it."""
    heads = list(rows[0])
    kinds = {head: "number" if head not in WORDS and _numeric(rows, head) else "" for head in heads}
    body = []
    for row in rows:
        data = {"task": row["task"]} | ({"method": row["method"]} if "method" in row else {})
        body.append((data, [_word_cell(row[head], kinds[head]) for head in heads]))
    words = "".join(f"<p>{escape(note)}</p>" for note in notes)
    titled = {head.capitalize() if head in WORDS else head: kind for head, kind in kinds.items()}
    return (
        f"<section>\n<h2>{FURTHER[name]}</h2>\n{words}\n"
        f"{html.table(name, titled, body, tall=True)}\n</section>"
    )


def _numeric(rows: list[dict[str, str]], head: str) -> bool:
    return any(NUMBER.match(row[head]) for row in rows)


def _word_cell(text: str, kind: str) -> Cell:
    found = NUMBER.match(text)
    if kind == "number":
        return Cell(text, float(found[0]) if found else None)
    return Cell(text)


def _curves(frame: pd.DataFrame, recipes: list[str], draw: bool) -> str:
    cards = []
    for index, (keys, group) in enumerate(frame.groupby(KEYS, sort=True)):
        task, network, dataset, variant = keys
        svg = NO_FIGURE
        if draw:
            from . import curves, figures

            words = f"Training curves of {escape(network)}"
            svg = figures.inline_svg(curves.curve_of(group, recipes), f"curve{index}", words)
        words = escape(", ".join(filter(None, (task, dataset, "" if variant == "{}" else variant))))
        cards.append(
            f'<figure data-task="{escape(task)}"><figcaption>{escape(network)} '
            f"<small>{words}</small></figcaption>{svg}</figure>"
        )
    return "\n".join(cards)


def _figures(frame: pd.DataFrame, table: pd.DataFrame, times: bool, draw: bool) -> str:
    from . import figures

    cards = []
    for name in figures.names(frame, table, times):
        if name in CAPTIONS:
            svg = NO_FIGURE
            if draw:
                svg = figures.inline_svg(figures.draw(name, frame, table), name, CAPTIONS[name])
            cards.append(f"<figure><figcaption>{CAPTIONS[name]}</figcaption>{svg}</figure>")
    return "\n".join(cards)


def _runs(frame: pd.DataFrame, recipes: list[str], times: bool) -> str:
    columns = {"Task": "", "Network": "", "Method": "", "Seed": "number", "Value": "number"}
    columns |= {"Epochs": "number"}
    columns |= {"s/iteration": "number", "Seconds": "number"} if times else {}
    columns |= {"Peak MiB": "number", "Convolutions by": "", "Threads": "number"}
    columns |= {"Commit": "", "Date": "", "Config": ""}
    frame = frame.assign(rank=frame.recipe.map(rank))
    rows = []
    for run in frame.sort_values([*KEYS, "rank", "recipe", "label", "seed"]).itertuples():
        colour = colour_of(run.recipe, recipes)
        seconds = [number(_float(run.iteration_seconds), ".3f"), number(run.seconds, ".0f")]
        cells = [
            Cell(run.task),
            Cell(run.network),
            Cell(html.dot(colour, run.method), f"{run.rank} {run.method}", markup=True),
            number(run.seed, "d"),
            number(run.value * 100),
            number(len(run.curve), "d"),
            *(seconds if times else []),
            number(run.peak_memory_mib, ".0f"),
            Cell(run.backend),
            number(_float(run.threads), ".0f"),
            Cell((run.commit or "")[:7]),
            Cell(run.date[:10], run.date),
            Cell(run.config),
        ]
        rows.append((_data(run), cells))
    return html.table("runs", columns, rows, tall=True)


def _published(published: Published) -> str:
    if not published.figures:
        return ""
    columns = {"Task": "", "Network": "", "Data": "", "Method": "", "Metric": "", "Value": "number"}
    columns |= {"Difference": "number", "To": "", "Speed": "wide", "Source": ""}
    rows = [
        (
            {"task": figure.task},
            [
                *map(Cell, (figure.task, figure.network, figure.dataset, figure.method)),
                *(Cell(figure.metric), number(figure.value), number(figure.difference, "+.2f")),
                Cell("" if figure.difference is None else figure.against),
                *(Cell(figure.speed), Cell(figure.mark)),
            ],
        )
        for figure in published.figures
    ]
    notes = "".join(f"<li>{mark} {escape(text)}</li>" for mark, text in published.citations)
    return (
        "<section>\n<h2>Published figures</h2>\n<p>Results of the papers, as they state them. "
        "<strong>None of them was measured here.</strong></p>\n"
        f'{html.table("published", columns, rows)}\n<ul class="sources">{notes}</ul>\n</section>'
    )


def _provenance(frame: pd.DataFrame) -> str:
    """Machines, versions and commits of the runs; each with the number of runs it has."""
    groups: dict[str, dict[str, int]] = {"Machine": {}, "Versions": {}, "Commit": {}}
    for run in frame.itertuples():
        gpus = [gpu["name"] for gpu in run.machine.get("gpus") or []]
        machine = f"{run.machine.get('cpu')}, {run.machine.get('cores')} cores"
        words = {
            "Machine": ", ".join([machine, *gpus]),
            "Versions": ", ".join(f"{k} {v}" for k, v in run.versions.items() if v),
            "Commit": run.commit or "unknown",
        }
        for name, text in words.items():
            groups[name][text] = groups[name].get(text, 0) + 1
    items = ""
    for name, found in groups.items():
        words = "<br>".join(f"{escape(text)} ({n} runs)" for text, n in found.items())
        items += f"<dt>{name}</dt><dd>{words}</dd>"
    return f"<dl>{items}</dl>"


def _data(row) -> dict[str, str]:
    return {"task": row.task, "method": row.recipe}


def _float(value) -> float:
    return float("nan") if value is None or pd.isna(value) else float(value)
