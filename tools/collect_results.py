#!/usr/bin/env python
"""Make tables and figures of run records: FP32, AMP and INT8 side by side, with spread.

Writes NAME.csv, NAME.md, NAME.tex (booktabs) and NAME.sha256 (fingerprints of the records, for
`sha256sum -c`); with --matrices also NAME_methods (networks by methods), NAME_ablation (against
one global threshold) and NAME_settings (changed settings against the plain recipe) as .md and .tex;
with --figures also NAME_*.svg and NAME_*.png; with --html a report of one file. With --suite, runs
that it asks for and that are not there are told.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

from collect import records, summary, tables
from collect.published import read_published
from common.errors import UsageError


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("records", type=Path, nargs="+", help="folders of JSON records, or files")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for the tables")
    parser.add_argument("--name", default="accuracy", help="name of the tables' files")
    parser.add_argument(
        "--splice", type=Path, nargs="*", default=[], help="documents with <!-- NAME begin/end -->"
    )
    parser.add_argument(
        "--published", type=Path, help="figures of the papers, to stand in the tables too"
    )
    parser.add_argument(
        "--suite", type=Path, nargs="*", default=[], help="suites whose missing runs to tell"
    )
    parser.add_argument(
        "--networks", nargs="+", default=[], metavar="NAME", help="leave all others out"
    )
    parser.add_argument(
        "--matrices",
        action="store_true",
        help="also tables of networks by methods, ablation, settings",
    )
    parser.add_argument(
        "--figures",
        nargs="*",
        metavar="NAME",
        help="draw figures beside the tables: all, or these (curves, difference, settings, ...)",
    )
    parser.add_argument(
        "--html", type=Path, help="write a report of one file, to open in a browser"
    )
    parser.add_argument(
        "--without-times",
        action="store_true",
        help="leave seconds out of all but the CSV: the runs shared the machine with other work",
    )
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if out of date")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Write (or check) the tables and figures, and splice the table into documents."""
    args = parse_args(arguments)
    frame = records.of_networks(records.read_records(args.records), args.networks)
    table = summary.summarize(frame, expected=expected_of(args, frame))
    published = read_published(args.published)
    times = not args.without_times
    body, notes = tables.rows(table, published, times), tables.notes(table, published)
    text = tables.markdown(body, notes)
    manifest = records.manifest(frame, args.out)
    files = {
        args.out / f"{args.name}.csv": tables.csv(table, published),
        args.out / f"{args.name}.md": text + "\n",
        args.out / f"{args.name}.tex": tables.latex(body, notes),
        args.out / f"{args.name}.sha256": manifest,
    }
    further = matrices_of(frame, table, published) if args.matrices else {}
    for name, (body, notes) in further.items():
        files[args.out / f"{args.name}_{name}.md"] = tables.markdown(body, notes) + "\n"
        files[args.out / f"{args.name}_{name}.tex"] = tables.latex(body, notes)
    for path in args.splice:
        document = tables.splice(path.read_text(), args.name, text, path)
        for name, content in further.items():
            if tables.MARKERS[0].format(name=f"{args.name}_{name}") in document:
                words = tables.markdown(*content)
                document = tables.splice(document, f"{args.name}_{name}", words, path)
        files[path] = document
    fingerprint = hashlib.sha256(manifest.encode()).hexdigest()
    if args.html:
        from collect.report import report

        files[args.html] = report(
            *(frame, table, published, fingerprint),
            further=further,
            times=times,
            draw=not args.check,
        )
    drawn = figures_of(args, frame, table)
    if args.check:
        return _check(args, files, fingerprint, drawn)
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    if drawn:
        _draw(args, frame, table, fingerprint, drawn)
    print(text)
    return 0


def expected_of(args: argparse.Namespace, frame):
    """The runs that the suites ask for; None without a suite."""
    if not args.suite:
        return None
    from collect.suite import expected_runs

    expected = expected_runs(args.suite, frame)
    return expected[expected.network.isin(args.networks)] if args.networks else expected


def matrices_of(frame, table, published) -> dict[str, tuple[list, list[str]]]:
    """(rows, notes) by name: 'methods'; 'ablation' and 'settings' where there are runs for them."""
    from collect import matrices, settings

    found = {"methods": matrices.methods(table), "ablation": matrices.ablation(frame, published)}
    found["settings"] = settings.rows(frame)
    return {name: content for name, content in found.items() if content[0]}


def figures_of(args: argparse.Namespace, frame, table) -> list[str]:
    """Names of the figures to draw, of those that there are.

    Raises:
        UsageError: one that there is not.
    """
    if args.figures is None:
        return []
    from collect import figures

    known = figures.names(frame, table, not args.without_times)
    unknown = [name for name in args.figures if name not in known]
    if unknown:
        raise UsageError(f"there is no figure {unknown[0]!r} of these runs: {', '.join(known)}")
    return args.figures or known


def _draw(args: argparse.Namespace, frame, table, fingerprint: str, names: list[str]) -> None:
    from collect import figures

    for name in names:
        stem = args.out / f"{args.name}_{name}"
        figure = figures.draw(name, frame, table)
        for path, content in figures.files_of(figure, stem, fingerprint).items():
            path.write_bytes(content)


def _check(
    args: argparse.Namespace, files: dict[Path, str], fingerprint: str, drawn: list[str]
) -> int:
    """1 if a file is missing or is not what these records give, else 0; tells which."""
    stale = [path for path, content in files.items() if not _same(path, content)]
    if drawn:
        from collect import figures

        for name in drawn:
            paths = [args.out / f"{args.name}_{name}.{kind}" for kind in figures.FORMATS]
            stale += [path for path in paths if not figures.shows(path, fingerprint)]
    for path in stale:
        print(f"out of date: {path}")
    manifest = args.out / f"{args.name}.sha256"
    if manifest in stale and manifest.is_file():
        for name in records.changed_records(manifest.read_text(), files[manifest]):
            print(f"changed, new or gone since the tables were made: {args.out / name}")
    return 1 if stale else 0


def _same(path: Path, content: str) -> bool:
    """Whether a file holds this text; a report's figures are told by its fingerprint alone."""
    if not path.is_file():
        return False
    found = path.read_text()
    if path.suffix == ".html":
        from collect.report import without_figures

        return without_figures(found) == without_figures(content)
    return found == content


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UsageError as error:
        sys.exit(f"error: {error}")
