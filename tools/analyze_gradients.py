#!/usr/bin/env python
"""Look at the gradients of a training: do channels split into the paper's two families?

    python tools/analyze_gradients.py configs/detection/retinanet_r18_fpn_digits_fp32.py \\
        --iterations 20,100,299 --out results/analysis/detection

trains the config (or goes on from a checkpoint's weights) up to the last of the iterations and
writes there, for every convolution: the discriminator's P(|g| > sigma) of each channel and each
sample, their Kolmogorov-Smirnov distances to the two families, the threshold of the smallest
weighted error, and the errors of 8-bit grad-input and grad-weight with one threshold a tensor or a
channel. `summary.json` holds what documents quote and where it comes from, `channels.json` the
numbers of every channel, PNGs show them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from analysis.arguments import iterations_of
from common.configs import check_checkpoint, check_data, load_config, set_recipe
from common.errors import UsageError
from common.provenance import command, commit, provenance, write_json


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config file, or mmdet::... / mmaction::...")
    parser.add_argument("--out", type=Path, required=True, help="folder of the record and figures")
    parser.add_argument(
        "--iterations", default="20,100,299", help="to look at, from 0 (default: %(default)s)"
    )
    parser.add_argument(
        "--layers", nargs="*", default=[], help="layers to draw (default: four, evenly spread)"
    )
    parser.add_argument("--recipe", default="fp32", help="fp32, bf16 or an INT8 recipe")
    parser.add_argument("--checkpoint", help="start from these weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    parser.add_argument("--work-dir", default="work_dirs/analyze_gradients", help="logs")
    parser.add_argument(
        "--figures-only", action="store_true", help="draw again from the records in OUT"
    )
    args = parser.parse_args(arguments)
    args.iterations = iterations_of(parser, args.iterations)
    return args


def merge_args(args: argparse.Namespace):
    """The config with the command line's settings in it: no validation, no checkpoints."""
    cfg = load_config(args.config)
    set_recipe(cfg, args.recipe)
    check_data(cfg, ("train",))
    cfg.randomness = {**(cfg.get("randomness") or {}), "seed": args.seed}
    cfg.work_dir = args.work_dir
    for name in ("val_cfg", "val_dataloader", "val_evaluator", "test_cfg", "test_dataloader"):
        cfg[name] = None
    cfg.test_evaluator = None
    cfg.default_hooks.pop("checkpoint", None)
    if args.checkpoint:
        check_checkpoint(args.checkpoint)
        cfg.load_from = args.checkpoint
    return cfg


def train(args: argparse.Namespace):
    """Train to the last iteration; the probe with its records."""
    import torch
    from mmengine.runner import Runner

    from analysis.probe import GradientProbe, ProbeDone
    from daq_mm.reproducible import EpochSeedHook

    cfg = merge_args(args)
    runner = Runner.from_cfg(cfg)
    if args.threads:
        torch.set_num_threads(args.threads)
    probe = GradientProbe(args.iterations, args.layers)
    runner.register_hook(EpochSeedHook())
    runner.register_hook(probe)
    try:
        runner.train()
    except ProbeDone:
        return probe
    raise UsageError(
        f"the training ended after {runner.iter} iterations, before --iterations "
        f"{args.iterations[-1]}"
    )


def summarize(records: list[dict[str, Any]], limit: float) -> dict[str, Any]:
    """The few numbers that the figures' titles and documents quote."""
    from analysis import figures
    from analysis.probe import ALPHAS

    summary: dict[str, Any] = {"lambda": limit, "inverted_t_share": {}}
    for iteration in sorted({r["iteration"] for r in records}):
        at = [r for r in records if r["iteration"] == iteration]
        summary["inverted_t_share"][str(iteration)] = {
            kind: float(np.mean(np.concatenate([r[kind]["tail_probability"] for r in at]) <= limit))
            for kind in ("channels", "samples")
        }
    last = figures.last_of(records)
    for kind in ("channels", "samples"):
        tails = figures.probed_tails(last, kind)
        laws = ("normal", "own_normal", "inverted_t", "laplace")
        found = {law: figures.distances(last, kind, law) for law in laws}
        below = tails <= limit
        summary[f"ks_{kind}"] = {
            "nearer_to_inverted_t_than_normal": nearer(found["inverted_t"], found["normal"]),
            "nearer_to_normal_than_inverted_t": nearer(found["normal"], found["inverted_t"]),
            "nearer_to_inverted_t_than_own_normal": nearer(
                found["inverted_t"], found["own_normal"]
            ),
            "nearer_to_laplace_than_both": nearer(
                found["laplace"], np.minimum(found["normal"], found["inverted_t"])
            ),
            "median_distance": {
                family: {law: median(d[mask]) for law, d in found.items()}
                for family, mask in (("inverted_t", below), ("gaussian", ~below))
            },
        }
        spreads = [np.asarray(r[kind]["tail_probability"]) for r in last]
        summary[f"median_range_of_tail_probability_{kind}"] = median(
            [s.max() - s.min() for s in spreads]
        )
    ratios, tails = figures.clipping_ratios(last)
    summary["best_clipping"] = {
        family: {f"alpha={alpha:g}": median(ratios[mask, i]) for i, alpha in enumerate(ALPHAS)}
        for family, mask in (("inverted_t", tails <= limit), ("gaussian", tails > limit))
    }
    summary["fluctuation_of_maxima"] = {
        r["layer"]: r["fluctuation"] for r in last if "fluctuation" in r
    }
    names = list(dict.fromkeys(r["layer"] for r in records if "snr_db" in r))
    for product, (first, *others) in figures.VARIANTS.items():
        base = figures.product_medians(records, names, product, first)
        summary[f"{product}_gain_db"] = {}
        for variant in others:
            gains = figures.product_medians(records, names, product, variant) - base
            summary[f"{product}_gain_db"][variant] = {
                "median": median(gains[np.isfinite(gains)]),
                "least": float(np.nanmin(gains)),
                "most": float(np.nanmax(gains)),
            }
    return summary


def median(values) -> float | None:
    """Their median; None for none."""
    return float(np.median(values)) if len(values) else None


def nearer(distances: np.ndarray, others: np.ndarray) -> float:
    """Share of distances that are smaller by more than a tie."""
    from analysis.figures import MARGIN

    return float(np.mean(others - distances > MARGIN))


def plain(value: Any) -> Any:
    """Arrays as lists of numbers with four digits: a record is read, not computed with."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.4g}")
    return int(value) if isinstance(value, np.integer) else value


def draw(document: dict[str, Any], records: list[dict[str, Any]], out: Path) -> list[Path]:
    """All figures of a record."""
    from analysis import figures

    limit = document["summary"]["lambda"]
    title = Path(document["arguments"]["config"].split("::")[-1]).stem
    title = f"{title.removesuffix('_fp32')}, {document['arguments']['recipe']} training"
    drawn = {
        "densities": figures.draw_densities(records, limit, title),
        "discriminator": figures.draw_discriminator(records, limit, title),
        "families": figures.draw_families(records, limit, title),
        "products": figures.draw_products(records, title),
        "clipping": figures.draw_clipping(records, limit, title),
    }
    return [figures.save(figure, out / f"{name}.png") for name, figure in drawn.items()]


def main(arguments: list[str] | None = None) -> None:
    """Train, write the records, draw."""
    args = parse_args(arguments)
    paths = args.out / "summary.json", args.out / "channels.json"
    if args.figures_only:
        for path in paths:
            if not path.is_file():
                raise UsageError(f"{path} does not exist; run without --figures-only first")
        document, records = (json.loads(path.read_text()) for path in paths)
    else:
        from daq_mm.config import DAQConfig

        settings = {name: value for name, value in vars(args).items() if name != "figures_only"}
        began = {"commit": commit()}  # the code that runs, whatever is committed meanwhile
        records = train(args).records
        summary = summarize(records, DAQConfig.from_recipe("paper").mcs_lambda)
        document = {**provenance(settings), **began, "command": command()}
        document["summary"] = plain(summary)
        records = plain(records)
        write_json(paths[0], document)
        paths[1].write_text(json.dumps(records, separators=(",", ":")) + "\n")
    for figure in draw(document, records, args.out):
        print(figure)
    print(json.dumps(document["summary"], indent=1))


if __name__ == "__main__":
    try:
        main()
    except (UsageError, ValueError) as error:
        sys.exit(f"error: {error}")
