"""The summary as a reader wants it: rows of words, as Markdown, LaTeX or CSV."""

from __future__ import annotations

import pandas as pd

from common.errors import UsageError

from .published import Figure, Published
from .records import TESTED, UNFUSED

MARKERS = ("<!-- {name} begin -->", "<!-- {name} end -->")
TIMES = ("s/iteration", "× fp32")
NOTE = "published, not measured here"
UNFUSED_NOTE = (
    "unfused: computed layer by layer, with floats in between, where the other INT8 rows compute "
    "whole blocks with 8-bit activations between layers. Compare them with the row fuse=False; "
    "seconds and memory say nothing about the quantizer."
)

TESTED_NOTE = (
    "test of: measured on the config's test set after training, which is larger than the "
    "validation set that the curves show."
)

#: LaTeX for characters that it would misread or lacks.
LATEX = {
    "\\": r"\textbackslash{}",
    **{c: rf"\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "−": "--",
    "—": "---",
    "†": r"\dag{}",
    "‡": r"\ddag{}",
    "§": r"\S{}",
    "≈": r"$\approx$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "`": "",
    "¶": r"\P{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def spread(mean, std, sign: str = "") -> str:
    """A mean with its standard deviation after ±; a dash for none."""
    if mean is None or pd.isna(mean):
        return "—"
    text = format(mean, f"{sign}.2f")
    return text if std is None or pd.isna(std) else f"{text} ± {std:.2f}"


def rows(table: pd.DataFrame, published: Published, times: bool = True) -> list[dict[str, str]]:
    """A dict of words by column for each cell, then for each published figure."""
    shown = [_measured(row) for row in table.to_dict("records")]
    shown += [_published(figure) for figure in published.figures if times or figure.has_accuracy]
    if not times:
        shown = [{k: v for k, v in row.items() if k not in TIMES} for row in shown]
    return shown


def notes(table: pd.DataFrame, published: Published) -> list[str]:
    """What is missing, what 'unfused' says, and what the marks of published figures mean."""
    found = []
    if table.missing.any():
        found.append(
            f"{int(table.missing.sum())} of the suite's runs are missing; the column `seeds` says "
            "where. A difference is over the seeds that both have."
        )
    found += words_used(table)
    return [*found, *(f"{mark} {NOTE}: {citation}" for mark, citation in published.citations)]


def words_used(table: pd.DataFrame) -> list[str]:
    """What 'test of' and 'unfused' mean, where a metric or a method says so."""
    found = []
    if table.metric.str.contains(TESTED, regex=False).any():
        found.append(TESTED_NOTE)
    if table.method.str.endswith(f", {UNFUSED}").any():
        found.append(UNFUSED_NOTE)
    return found


def markdown(body: list[dict[str, str]], notes: list[str]) -> str:
    """A Markdown table, and its notes."""
    text = pd.DataFrame(body).to_markdown(index=False, disable_numparse=True)
    return "\n\n".join([text, *notes])


def latex(body: list[dict[str, str]], notes: list[str]) -> str:
    """A tabular for the package booktabs, and its notes."""
    names = list(body[0])
    lines = [
        "% needs \\usepackage{booktabs}",
        f"\\begin{{tabular}}{{{'l' * len(names)}}}",
        "\\toprule",
        f"{' & '.join(map(escape_latex, names))} \\\\",
        "\\midrule",
    ]
    previous = None
    for row in body:
        group = row["task"], row["network"]
        if previous not in (None, group):
            lines.append("\\addlinespace")
        previous = group
        lines.append(f"{' & '.join(escape_latex(row[name]) for name in names)} \\\\")
    lines += ["\\bottomrule", "\\end{tabular}"]
    lines += [f"\\par\\footnotesize {escape_latex(note)}" for note in notes]
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    """The text with what LaTeX would misread replaced."""
    return "".join(LATEX.get(character, character) for character in text)


def csv(table: pd.DataFrame, published: Published) -> str:
    """All columns of the summary; `source` tells the published figures from ours.

    The column `missing` is left out where nothing is.
    """
    frame = table if table.missing.any() else table.drop(columns="missing")
    frame = frame.assign(source="measured", against="fp32")
    cited = dict(published.citations)
    extra = [
        {
            **{k: getattr(f, k) for k in ("task", "network", "dataset", "method", "metric")},
            **{"mean": f.value, "difference": f.difference, "against": f.against},
            "source": cited[f.mark],
        }
        for f in published.figures
        if f.has_accuracy
    ]
    if extra:
        frame = pd.concat([frame, pd.DataFrame(extra).astype({"mean": float})])
    return frame.round(6).to_csv(index=False)


def splice(document: str, name: str, content: str, path) -> str:
    """The document with what stands between the markers of `name` replaced.

    Raises:
        UsageError: a document without the markers.
    """
    begin, end = (marker.format(name=name) for marker in MARKERS)
    if begin not in document or end not in document:
        raise UsageError(f"{path} has no markers {begin} ... {end}")
    head, _, rest = document.partition(begin)
    return f"{head}{begin}\n\n{content}\n\n{end}{rest.partition(end)[2]}"


def _measured(row: dict) -> dict[str, str]:
    compared = row["verdict"] is not None and not pd.isna(row["verdict"])
    interval = compared and not pd.isna(row["low"])
    seconds, times = row["iteration_seconds"], row["times_fp32"]
    return {
        "task": row["task"],
        "network": row["network"],
        "method": row["method"],
        "metric": row["metric"],
        "seeds": seeds(row),
        "value, points": spread(row["mean"], row["std"]),
        "against fp32": spread(row["difference"], row["difference_std"], "+") if compared else "",
        "95% interval": f"{row['low']:+.2f} to {row['high']:+.2f}" if interval else "",
        "verdict": row["verdict"] if compared else "",
        "s/iteration": "—" if pd.isna(seconds) else f"{seconds:.3f}",
        "× fp32": "" if times is None or pd.isna(times) else f"{times:.2f}",
        "peak MiB": "—" if pd.isna(row["memory_mib"]) else f"{row['memory_mib']:.0f}",
    }


def seeds(row: dict) -> str:
    """Number of runs of a cell, and of how many where some are missing."""
    return f"{row['n']} of {row['n'] + row['missing']}" if row["missing"] else str(row["n"])


def _published(figure: Figure) -> dict[str, str]:
    difference = "" if figure.difference is None else f"{figure.difference:+.2f}"
    if difference and figure.against != "fp32":
        difference += f" (against {figure.against})"
    return {
        "task": figure.task,
        "network": ", ".join(filter(None, (figure.network, figure.dataset))),
        "method": f"{figure.method} {figure.mark}",
        "metric": figure.metric,
        "seeds": "",
        "value, points": "" if figure.value is None else f"{figure.value:.2f}",
        "against fp32": difference,
        "95% interval": "",
        "verdict": "",
        "s/iteration": "",
        "× fp32": figure.speed,
        "peak MiB": "",
    }
