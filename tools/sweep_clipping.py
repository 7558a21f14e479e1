#!/usr/bin/env python
"""What lambda, k and A of the paper's clipping do to the error of real gradients' products.

    python tools/sweep_clipping.py configs/detection/retinanet_r18_fpn_digits_fp32.py \\
        configs/video/slowonly_r18_digits_fp32.py --iterations 60,120,199 \\
        --out results/analysis/hyperparameters

trains each config up to the last of the iterations; every setting's thresholds follow the same
gradients all the way (see analysis/clipping_probe.py). Writes `clipping.csv` and `clipping.md`
(medians and quartiles over layers and iterations of the signal-to-noise ratios of grad-weight and
grad-input, in dB, and of their differences to the published value, layer by layer), `clipping.png`,
`layers.csv` with every layer's ratios, and `clipping.json`, which says where they come from.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.arguments import iterations_of
from analyze_gradients import merge_args, plain
from common.errors import UsageError
from common.provenance import command, commit, provenance, write_json

#: The published values, which the recipe `paper` has.
PUBLISHED = {"mcs_lambda": 0.3, "mcs_k": 1.0, "mcs_a": 0.8}
SYMBOLS = {"mcs_lambda": "λ", "mcs_k": "k", "mcs_a": "A"}
PRODUCTS = {"grad_weight": "grad-weight", "grad_input": "grad-input"}
KEYS = ["network", "recipe", "field", "value", "product"]


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", help="config files, or mmdet::... / mmaction::...")
    parser.add_argument("--out", type=Path, required=True, help="folder of tables and figure")
    parser.add_argument(
        "--iterations", default="60,120,199", help="to measure at, from 0 (default: %(default)s)"
    )
    parser.add_argument(
        "--by",
        nargs="+",
        default=["paper", "daq"],
        help="recipes whose products are computed (default: paper daq)",
    )
    parser.add_argument("--recipe", default="fp32", help="to train by (default: fp32)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--work-dir", default="work_dirs/sweep_clipping", help="logs")
    parser.add_argument(
        "--tables-only", action="store_true", help="tables and figure again, of OUT/layers.csv"
    )
    args = parser.parse_args(arguments)
    args.iterations = iterations_of(parser, args.iterations)
    if not args.configs and not args.tables_only:
        parser.error("give at least one config")
    return args


def measure(args: argparse.Namespace, config: str) -> list[dict[str, Any]]:
    """The probe's records of one config's training."""
    import torch
    from mmengine.runner import Runner

    from analysis.clipping_probe import ClippingProbe
    from analysis.probe import ProbeDone
    from daq_mm.reproducible import EpochSeedHook

    cfg = merge_args(argparse.Namespace(**{**vars(args), "config": config, "checkpoint": None}))
    network = Path(config.split("::")[-1]).stem.removesuffix("_fp32")
    cfg.experiment_name = network  # mmengine keeps one runner's state a name
    cfg.work_dir = f"{cfg.work_dir}/{network}"
    probe = ClippingProbe(args.iterations, args.by)
    runner = Runner.from_cfg(cfg)
    if args.threads:
        torch.set_num_threads(args.threads)
    runner.register_hook(EpochSeedHook())
    runner.register_hook(probe)
    try:
        runner.train()
    except ProbeDone:
        return [{"network": network, **record} for record in probe.records]
    raise UsageError(
        f"the training of {config} ended after {runner.iter} iterations, before --iterations "
        f"{args.iterations[-1]}"
    )


def summarize(records: pd.DataFrame) -> pd.DataFrame:
    """A row a network, recipe, setting and product: medians and quartiles over its ratios.

    Args:
        records: the probe's, with the network's name.

    Columns: n (layers times iterations that have a ratio); q1, median, q3 of the ratios in dB;
    gain_q1, gain_median, gain_q3 of their differences to the published value of the field.
    """
    frame = records.melt(
        ["network", "iteration", "layer", "recipe", "field", "value"],
        list(PRODUCTS),
        "product",
        "snr_db",
    )
    published = frame[frame.value == frame.field.map(PUBLISHED)]
    joint = ["network", "iteration", "layer", "recipe", "field", "product"]
    frame = frame.merge(published[[*joint, "snr_db"]], on=joint, suffixes=("", "_published"))
    frame["gain"] = frame.snr_db - frame.snr_db_published
    rows = []
    for keys, group in frame.dropna(subset=["snr_db"]).groupby(KEYS, sort=False):
        ratios = group.snr_db.quantile([0.25, 0.5, 0.75])
        gains = group.gain.dropna().quantile([0.25, 0.5, 0.75])
        row = dict(zip(KEYS, keys), n=len(group))
        row |= dict(zip(("q1", "median", "q3"), ratios))
        rows.append({**row, **dict(zip(("gain_q1", "gain_median", "gain_q3"), gains))})
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table for each network and recipe."""
    parts = []
    for (network, recipe), group in table.groupby(["network", "recipe"], sort=False):
        lines = [f"**{network}**, products as `{recipe}` computes them", ""]
        heads = [f"{word}, dB | to published" for word in PRODUCTS.values()]
        lines += [f"| setting | {' | '.join(heads)} |", "| --- |" + " --- | --- |" * len(PRODUCTS)]
        for (field, value), cell in group.groupby(["field", "value"], sort=False):
            cells = []
            for product in PRODUCTS:
                row = cell[cell["product"] == product].iloc[0]
                cells.append(f"{row['median']:.1f} ({row.q1:.1f} to {row.q3:.1f})")
                gain = f"{row.gain_median:+.2f} ({row.gain_q1:+.2f} to {row.gain_q3:+.2f})"
                cells.append("published" if value == PUBLISHED[field] else gain)
            lines.append(f"| {SYMBOLS[field]} = {value:g} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    note = "Median (quartiles) over layers and iterations; higher is better."
    return "\n\n".join([*parts, note]) + "\n"


def draw(table: pd.DataFrame, path: Path, title: str) -> Path:
    """Differences to the published value: a row of panels a network, a column a parameter."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    networks, fields = list(dict.fromkeys(table.network)), list(SYMBOLS)
    recipes = list(dict.fromkeys(table.recipe))
    figure, axes = plt.subplots(
        *(len(networks), len(fields)),
        figsize=(12, 3.1 * len(networks) + 1),
        layout="constrained",
        squeeze=False,
    )
    for line, network in zip(axes, networks):
        for axis, field in zip(line, fields):
            chosen = table[(table.network == network) & (table.field == field)]
            for recipe, dash in zip(recipes, ("-", "--", ":", "-.")):
                for product, color in zip(PRODUCTS, ("C3", "C0")):
                    cell = chosen[(chosen.recipe == recipe) & (chosen["product"] == product)]
                    words = f"{PRODUCTS[product]}, {recipe}"
                    axis.plot(cell.value, cell.gain_median, f"o{dash}", c=color, ms=3, label=words)
                    low, high = cell.gain_q1, cell.gain_q3
                    axis.fill_between(cell.value, low, high, color=color, alpha=0.1, lw=0)
            axis.axvline(PUBLISHED[field], color="black", ls=":", lw=1)
            axis.axhline(0, color="black", lw=0.6)
            axis.set_xlabel(SYMBOLS[field])
            axis.grid(alpha=0.25)
        line[0].set_ylabel(f"{network}\ndB to the published value", fontsize=9)
    axes[0, -1].legend(fontsize=8)
    figure.suptitle(f"{title}: signal-to-noise ratio, median over layers, quartiles shaded")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def main(arguments: list[str] | None = None) -> None:
    """Train, measure, write."""
    args = parse_args(arguments)
    path, layers = args.out / "clipping.json", args.out / "layers.csv"
    if args.tables_only:
        for file in (path, layers):
            if not file.is_file():
                raise UsageError(f"{file} does not exist; run without --tables-only first")
        document = json.loads(path.read_text())
    else:
        began = {"commit": commit()}  # the code that runs, whatever is committed meanwhile
        records = [record for config in args.configs for record in measure(args, config)]
        chosen = {name: value for name, value in vars(args).items() if name != "tables_only"}
        document = {**provenance(chosen), **began, "command": command()}
        write_json(path, document)
        layers.write_text(pd.DataFrame(plain(records)).to_csv(index=False))
    table = summarize(pd.read_csv(layers))  # of what is written, so that it can be made again
    text = markdown(table)
    path.with_suffix(".csv").write_text(table.round(4).to_csv(index=False))
    path.with_suffix(".md").write_text(text)
    title = f"λ, k and A, {document['arguments']['recipe']} training"
    print(draw(table, path.with_suffix(".png"), title))
    print(text)


if __name__ == "__main__":
    try:
        main()
    except (UsageError, ValueError) as error:
        sys.exit(f"error: {error}")
