#!/usr/bin/env python
"""Minimise the paper's weighted error E(s) by numbers and compare its closed-form thresholds.

    python tools/minimize_error.py --out results/analysis/error

For both families of channels, over alpha, k and A: where the minimum lies, what the published
thresholds (|g|max for Gaussian channels; the recursion with k and A for inverted-T ones) lose
against it, and how much of that comes from the paper's bound on the rounding error. No training is
needed. Writes `error.json` and `error.png`; `analysis/error_model.py` says what is computed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from analysis.error_model import (
    ROUNDINGS,
    InvertedT,
    TruncatedNormal,
    WeightedError,
    closed_form,
    recursion_regret,
)
from common.provenance import command, provenance, write_json

#: Laws by name. A channel of 1,000, 20,000 or 500,000 normal values has its maximum near 3.3, 4.2
#: or 5 standard deviations.
LAWS = {
    **{f"Gaussian, max {r:g} σ": TruncatedNormal(r) for r in (3.3, 4.2, 5.0)},
    **{
        f"inverted-T, {tail:.0%} beyond {width:g} max": InvertedT(width, tail)
        for width, tail in ((0.1, 0.3), (0.1, 0.1), (0.05, 0.03), (0.02, 0.01))
    },
}
ALPHAS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)
KS = tuple(np.round(np.arange(0.8, 2.01, 0.05), 2))
AS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
#: Standard deviations of log |g|max from one gradient to the next.
FLUCTUATIONS = (0.1, 0.25, 0.5)
#: Alphas for which k and A are looked at.
SHOWN_ALPHAS = (0.0, 2.0)
STEPS = 4000


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the record and figure")
    parser.add_argument("--seed", type=int, default=0, help="of the fluctuating maxima")
    parser.add_argument(
        "--figures-only", action="store_true", help="draw again from OUT/error.json"
    )
    return parser.parse_args(arguments)


def minima() -> dict[str, dict[str, list[float]]]:
    """By law and rounding: thresholds of the smallest E over alpha; by law: the regret of |g|max.

    The regret is counted with exact rounding: it is what the threshold loses in fact.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for name, law in LAWS.items():
        found[name] = {
            r: [WeightedError(law, a, r).minimum()[0] for a in ALPHAS] for r in ROUNDINGS
        }
        exact = [WeightedError(law, alpha, "exact") for alpha in ALPHAS]
        found[name]["regret"] = [float(e.regret(closed_form(law))[0]) for e in exact]
    return found


def regrets_of_k() -> dict[str, dict[str, list[float]]]:
    """By inverted-T law and alpha: regret of the steady threshold |g|max / k, over k."""
    found: dict[str, dict[str, list[float]]] = {}
    for name, law in LAWS.items():
        if isinstance(law, InvertedT):
            found[name] = {}
            for alpha in SHOWN_ALPHAS:
                error = WeightedError(law, alpha, "exact")
                steady = np.array([closed_form(law, k) for k in KS])
                # Above the maximum nothing is clipped and the grid is coarser, in proportion.
                above = error(1.0)[0] * steady / error.minimum()[1] - 1
                below = error.regret(np.minimum(steady, 1.0))
                found[name][f"{alpha:g}"] = np.where(steady > 1, above, below).tolist()
    return found


def regrets_of_a(seed: int) -> list[dict[str, Any]]:
    """Mean regret of the recursion at k = 1 over A, as published and capped at the maximum.

    The law is the second inverted-T one; |g|max is log-normal and independent from one gradient
    to the next.
    """
    law = next(law for name, law in LAWS.items() if "10% beyond" in name)
    draws = np.random.default_rng(seed).standard_normal(STEPS)
    found = []
    for fluctuation in FLUCTUATIONS:
        maxima = np.exp(fluctuation * draws)
        for alpha in SHOWN_ALPHAS:
            for cap in (False, True):
                regret = [
                    recursion_regret(law, alpha, maxima, 1.0, a, cap=cap, rounding="quarter")
                    for a in AS
                ]
                entry = {"fluctuation": fluctuation, "alpha": alpha, "cap": cap, "regret": regret}
                found.append(entry)
    return found


def draw(document: dict[str, Any], path: Path) -> Path:
    """Four panels: minima and their regret over alpha, regret over k, regret over A."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(14, 10.5), layout="constrained")
    _draw_minima(axes[0, 0], document["minima"])
    _draw_regret(axes[0, 1], document["minima"])
    _draw_k(axes[1, 0], document["k"])
    _draw_a(axes[1, 1], document["a"])
    figure.suptitle("The weighted error E(s) of 8-bit gradients, minimised by numbers", fontsize=13)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _colors(names) -> dict[str, str]:
    """Greens for Gaussian laws, reds for inverted-T ones."""
    from matplotlib import colormaps

    colors = {}
    for family, cmap in (("Gaussian", "Greens"), ("inverted-T", "Reds")):
        own = [name for name in names if name.startswith(family)]
        shades = np.linspace(0.45, 0.95, len(own))
        colors |= {name: colormaps[cmap](shade) for name, shade in zip(own, shades)}
    return colors


def _draw_minima(axis, found) -> None:
    for name, color in _colors(found).items():
        axis.plot(ALPHAS, found[name]["half"], "o-", color=color, ms=3, label=name)
        axis.plot(ALPHAS, found[name]["exact"], "--", color=color, lw=1)
    axis.plot([], [], "k-o", ms=3, label="rounding error of half a step (the paper's bound)")
    axis.plot([], [], "k--", lw=1, label="exact rounding error")
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xticks((0, 0.5, 1, 2, 4, 8, 16), ("0", "0.5", "1", "2", "4", "8", "16"))
    axis.set_ylim(0, 1.04)
    axis.set_xlabel("α |g|max of the weight exp(α|g|)")
    axis.set_ylabel("best threshold / |g|max")
    axis.set_title("where the minimum lies (the closed form at k = 1 says: at 1)", fontsize=10)
    axis.legend(fontsize=8, loc="lower right")
    axis.grid(alpha=0.3)


def _draw_regret(axis, found) -> None:
    for name, color in _colors(found).items():
        regret = 100 * np.maximum(found[name]["regret"], 1e-4)
        axis.plot(ALPHAS, regret, "o-", color=color, ms=3, label=name)
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xticks((0, 0.5, 1, 2, 4, 8, 16), ("0", "0.5", "1", "2", "4", "8", "16"))
    axis.set_yscale("symlog", linthresh=0.1)
    axis.set_ylim(0, None)
    axis.set_yticks((0, 0.1, 1, 10, 100), ("0", "0.1", "1", "10", "100"))
    axis.set_xlabel("α |g|max of the weight exp(α|g|)")
    axis.set_ylabel("E(|g|max) above the smallest E, %")
    axis.set_title("what the threshold |g|max loses (exact rounding)", fontsize=10)
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)


def _draw_k(axis, found) -> None:
    colors = _colors(found)
    for name, by_alpha in found.items():
        for values, width in zip(by_alpha.values(), (1.0, 2.4)):
            axis.plot(KS, 100 * np.maximum(values, 0), color=colors[name], lw=width)
        axis.plot([], [], color=colors[name], label=name)
    _explain_widths(axis)
    axis.axvline(1, color="black", ls=":", lw=1, label="published k = 1")
    axis.set_yscale("symlog", linthresh=1)
    axis.set_ylim(0, 300)
    axis.set_yticks((0, 1, 10, 100), ("0", "1", "10", "100"))
    axis.set_xlabel("k: a steady |g|max gives the threshold |g|max / k")
    axis.set_ylabel("E above the smallest E, %")
    axis.set_title("inverted-T channels: what k loses (exact rounding)", fontsize=10)
    axis.legend(fontsize=8, loc="lower right")
    axis.grid(alpha=0.3)


def _draw_a(axis, found) -> None:
    colors = dict(zip(FLUCTUATIONS, ("C0", "C1", "C2")))
    widths = dict(zip(SHOWN_ALPHAS, (1.0, 2.4)))
    for entry in found:
        axis.plot(
            AS,
            100 * np.array(entry["regret"]),
            "--" if entry["cap"] else "-",
            color=colors[entry["fluctuation"]],
            lw=widths[entry["alpha"]],
        )
    for fluctuation, color in colors.items():
        axis.plot([], [], color=color, label=f"log |g|max fluctuates by {fluctuation:g}")
    _explain_widths(axis)
    axis.plot([], [], "k--", lw=1, label="capped at |g|max (ours)")
    axis.axvline(0.8, color="black", ls=":", lw=1, label="published A = 0.8")
    axis.set_yscale("log")
    axis.set_xlabel("A: weight of the newest maximum in the recursion (k = 1)")
    axis.set_ylabel("mean E above the smallest E, %")
    axis.set_title(
        "inverted-T channels: what the recursion's memory loses while |g|max fluctuates",
        fontsize=10,
    )
    axis.legend(fontsize=8, loc="upper right")
    axis.grid(alpha=0.3)


def _explain_widths(axis) -> None:
    for alpha, width in zip(SHOWN_ALPHAS, (1.0, 2.4)):
        axis.plot([], [], "k-", lw=width, label=f"α|g|max = {alpha:g}")


def main(arguments: list[str] | None = None) -> None:
    """Compute, write the record, draw."""
    args = parse_args(arguments)
    path = args.out / "error.json"
    if args.figures_only:
        if not path.is_file():
            sys.exit(f"error: {path} does not exist; run without --figures-only first")
        document = json.loads(path.read_text())
    else:
        document = {
            **provenance({"out": args.out, "seed": args.seed}),
            "command": command(),
            "alphas": list(ALPHAS),
            "ks": [float(k) for k in KS],
            "as": list(AS),
            "minima": minima(),
            "k": regrets_of_k(),
            "a": regrets_of_a(args.seed),
        }
        write_json(path, document)
    print(draw(document, args.out / "error.png"))
    for name, values in document["minima"].items():
        pairs = zip(document["alphas"], values["exact"], values["regret"])
        words = ", ".join(f"α {a:g}: {s:.3f} (+{100 * r:.2f} %)" for a, s, r in pairs)
        print(f"{name}: {words}")


if __name__ == "__main__":
    main()
