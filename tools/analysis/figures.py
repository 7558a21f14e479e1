"""Figures of analyze_gradients.py, each from the records of `GradientProbe`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.colors import TwoSlopeNorm  # noqa: E402

from .probe import ALPHAS, BINS  # noqa: E402
from .products import VARIANTS  # noqa: E402

#: P(|g| > sigma) of a normal law.
NORMAL_TAIL = 0.3173
KINDS = {"channels": "C0", "samples": "C1"}
#: Distances that differ by less are a tie.
MARGIN = 0.01
FAMILIES = {"Gaussian": "C2", "inverted-T": "C3"}

Records = list[dict[str, Any]]


def save(figure, path: Path) -> Path:
    """Write a figure and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path


def last_of(records: Records) -> Records:
    """The records of the last iteration."""
    last = max(record["iteration"] for record in records)
    return [record for record in records if record["iteration"] == last]


def _colors(limit: float) -> tuple[TwoSlopeNorm, Any]:
    """Colours of a tail probability: red below the discriminator's lambda, blue above."""
    return TwoSlopeNorm(limit, 0.0, 0.5), plt.get_cmap("coolwarm_r")


def draw_densities(records: Records, limit: float, title: str):
    """Densities of channels (left) and samples (middle) and their maxima (right), layer by layer.

    Each density is in units of its own standard deviation, so only the shape tells them apart.
    """
    chosen = [r for r in last_of(records) if "densities" in r["channels"]]
    norm, cmap = _colors(limit)
    figure, axes = plt.subplots(
        len(chosen),
        3,
        figsize=(13, 2.6 * len(chosen) + 1.2),
        layout="constrained",
        squeeze=False,
        width_ratios=(1, 1, 0.85),
    )
    centres = (BINS[1:] + BINS[:-1]) / 2
    bell = np.exp(-0.5 * centres**2) / np.sqrt(2 * np.pi)
    for row, record in zip(axes, chosen):
        for axis, kind in zip(row, KINDS):
            tails = np.asarray(record[kind]["tail_probability"])
            shown = record[kind]["drawn"]
            for index, density in zip(shown, record[kind]["densities"]):
                seen = np.where(np.asarray(density) > 0, density, np.nan)  # empty bins: gaps
                axis.semilogy(centres, seen, ".-", color=cmap(norm(tails[index])), lw=1, ms=2.5)
            axis.semilogy(centres, bell, "k--", lw=1, label="normal law")
            axis.set_ylim(1e-4, 15)
            axis.set_xlim(-8, 8)
            span = f"P(|g| > σ) {tails.min():.2f} to {tails.max():.2f}"
            axis.set_title(f"{len(shown)} of {len(tails)} {kind}, {span}", fontsize=9)
            axis.grid(alpha=0.2)
        size = "×".join(map(str, record["size"]))
        row[0].set_ylabel(f"{_short(record['layer'])}\n{size}\n\ndensity (log)", fontsize=9)
        for kind, color in KINDS.items():
            maxima = np.sort(np.asarray(record[kind]["maximum"]))[::-1]
            rank = np.linspace(0, 100, len(maxima))
            row[2].semilogy(rank, maxima, color=color, label=f"{kind} ({len(maxima)})")
        row[2].set_title("max |g| of each, sorted", fontsize=9)
        row[2].set_ylabel("max |g| (log)", fontsize=9)
        row[2].legend(fontsize=8, loc="lower left")
        row[2].grid(alpha=0.2)
    axes[0, 0].legend(fontsize=8, loc="upper right")
    for axis in axes[-1, :2]:
        axis.set_xlabel("g / σ, σ of the channel or sample itself")
    axes[-1, 2].set_xlabel("rank, %")
    bar = figure.colorbar(
        plt.cm.ScalarMappable(norm, cmap), ax=axes, location="bottom", shrink=0.5, aspect=45
    )
    bar.set_label(f"P(|g| > σ): below λ = {limit} inverted-T, above Gaussian", fontsize=9)
    figure.suptitle(f"{title}: gradient distributions at iteration {chosen[0]['iteration']}")
    return figure


def draw_discriminator(records: Records, limit: float, title: str):
    """P(|g| > sigma) of every layer, of its channels and of its samples, at each iteration."""
    iterations = sorted({r["iteration"] for r in records})
    names = list(dict.fromkeys(_in_order(records)))
    figure, axes = plt.subplots(
        len(iterations),
        1,
        figsize=(12, 2.1 * len(iterations) + 2.4),
        layout="constrained",
        sharex=True,
        squeeze=False,
    )
    for axis, iteration in zip(axes[:, 0], iterations):
        at = {r["layer"]: r for r in records if r["iteration"] == iteration}
        for offset, (kind, color) in zip((-0.18, 0.18), KINDS.items()):
            places = [i for i, name in enumerate(names) if name in at]
            axis.boxplot(
                [np.asarray(at[names[i]][kind]["tail_probability"]) for i in places],
                positions=[i + offset for i in places],
                widths=0.3,
                whis=(0, 100),
                patch_artist=True,
                boxprops=dict(facecolor=color, alpha=0.5, lw=0.6),
                medianprops=dict(color="black", lw=1),
                whiskerprops=dict(color=color),
                capprops=dict(color=color),
                manage_ticks=False,
            )
        tails = np.concatenate([r["channels"]["tail_probability"] for r in at.values()])
        share = (tails <= limit).mean()
        axis.axhline(limit, color="C3", lw=1, label=f"λ = {limit}")
        axis.axhline(NORMAL_TAIL, color="black", lw=1, ls=":", label="normal law, 0.317")
        axis.set_ylabel("P(|g| > σ)")
        axis.set_ylim(0, 0.5)  # channels of one sign may lie above: their mean exceeds σ
        words = f"iteration {iteration}: {share:.0%} of all channels inverted-T"
        axis.set_title(words, fontsize=9, loc="left")
        axis.grid(alpha=0.2)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    for kind, color in KINDS.items():
        handles.append(plt.Rectangle((0, 0), 1, 1, facecolor=color, alpha=0.5))
        labels.append(f"{kind}: quartiles, whiskers to the extremes")
    figure.legend(handles, labels, ncols=4, fontsize=9, loc="outside lower center")
    axes[-1, 0].set_xticks(range(len(names)), [_short(n) for n in names], rotation=90, fontsize=8)
    figure.suptitle(f"{title}: the discriminator over layers (in the order of the forward pass)")
    return figure


def draw_families(records: Records, limit: float, title: str):
    """KS distances of channels and of samples to the two families, all layers in one."""
    at = last_of(records)
    norm, cmap = _colors(limit)
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.4), layout="constrained", sharex=True)
    for axis, kind in zip(axes, KINDS):
        normal, inverted = (distances(at, kind, law) for law in ("normal", "inverted_t"))
        tails = probed_tails(at, kind)
        drawn = axis.scatter(
            normal, inverted, c=tails, cmap=cmap, norm=norm, s=9, linewidths=0.2, edgecolors="grey"
        )
        top = max(normal.max(), inverted.max()) * 1.1
        axis.plot([0, top], [0, top], "k--", lw=1)
        axis.set_xlabel("KS distance to the nearest normal law")
        axis.set_ylabel("KS distance to the nearest inverted-T law")
        nearer = [np.mean(s) for s in (normal - inverted > MARGIN, inverted - normal > MARGIN)]
        axis.set_title(
            f"{len(tails)} {kind} of {len(at)} layers: nearer to inverted-T {nearer[0]:.0%},\n"
            f"to normal {nearer[1]:.0%}, a tie (within {MARGIN}) {1 - sum(nearer):.0%}",
            fontsize=10,
        )
        axis.grid(alpha=0.2)
    axes[0].annotate(
        "nearer to inverted-T", (0.97, 0.05), xycoords="axes fraction", ha="right", fontsize=9
    )
    axes[0].annotate("nearer to normal", (0.03, 0.93), xycoords="axes fraction", fontsize=9)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.8)
    bar.set_label(f"P(|g| > σ), λ = {limit}")
    figure.suptitle(f"{title}: distances to the two families at iteration {at[0]['iteration']}")
    return figure


def draw_products(records: Records, title: str):
    """Signal-to-noise ratio of both backward products, layer by layer, median over iterations."""
    names = [
        n for n in _in_order(records) if any(r["layer"] == n and "snr_db" in r for r in records)
    ]
    figure, axes = plt.subplots(2, 1, figsize=(12, 8.2), layout="constrained", sharex=True)
    for axis, (product, variants) in zip(axes, VARIANTS.items()):
        medians = [product_medians(records, names, product, variant) for variant in variants]
        for variant, values, style in zip(variants, medians, ("C1o", "C0s", "C4x", "C2^")):
            gain = np.nanmedian(values - medians[0])
            words = _WORDS[variant] + (
                f": median {gain:+.1f} dB" if values is not medians[0] else ""
            )
            axis.plot(range(len(names)), values, style, label=words, ms=6)
        axis.vlines(range(len(names)), np.min(medians, 0), np.max(medians, 0), "grey", lw=0.8)
        _cut(axis, medians)
        axis.set_title(product.replace("_", "-"), fontsize=10)
        axis.set_ylabel("signal to noise, dB")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    axes[-1].set_xticks(range(len(names)), [_short(n) for n in names], rotation=90, fontsize=8)
    iterations = sorted({r["iteration"] for r in records})
    figure.suptitle(
        f"{title}: 8-bit backward products against float ones, no clipping,\n"
        f"median of iterations {', '.join(map(str, iterations))}; higher is better"
    )
    return figure


def draw_clipping(records: Records, limit: float, title: str):
    """Where the weighted error of real channels is smallest, by family and alpha."""
    at = last_of(records)
    figure, axis = plt.subplots(figsize=(8, 4.8), layout="constrained")
    ratios, tails = clipping_ratios(at)
    for offset, (family, color) in zip((-0.17, 0.17), FAMILIES.items()):
        mask = (tails > limit) == (family == "Gaussian")
        if not mask.any():
            continue
        axis.boxplot(
            [ratios[mask, i] for i in range(len(ALPHAS))],
            positions=np.arange(len(ALPHAS)) + offset,
            widths=0.28,
            whis=(5, 95),
            showfliers=False,
            patch_artist=True,
            boxprops=dict(facecolor=color, alpha=0.5),
            medianprops=dict(color="black"),
            manage_ticks=False,
        )
        axis.plot([], [], "s", color=color, alpha=0.6, ms=9, label=f"{family}: {mask.sum()}")
    axis.axhline(1, color="black", lw=1, ls=":", label="published: max |g| (k = 1)")
    axis.set_xticks(range(len(ALPHAS)), [f"{alpha:g}" for alpha in ALPHAS])
    axis.set_xlabel("α max|g| of the weight exp(α|g|); 0 weighs all errors alike")
    axis.set_ylabel("best threshold / max |g|")
    axis.set_ylim(0, 1.05)
    axis.grid(alpha=0.3, axis="y")
    axis.legend(fontsize=9, title="channels", loc="lower right")
    axis.set_title(
        f"{title}: threshold of the smallest weighted error of real channels,\n"
        f"iteration {at[0]['iteration']}; quartiles, whiskers at 5 % and 95 %",
        fontsize=10,
    )
    return figure


def _cut(axis, medians: list[np.ndarray], top: float = 65.0) -> None:
    """Keep the axis below `top` dB and say what lies above: a gradient of few values is exact."""
    values = np.stack(medians)
    shown = values[np.isfinite(values) & (values < top)]
    if shown.size and shown.size < np.isfinite(values).sum():
        high = shown.max() + 4
        axis.set_ylim(shown.min() - 3, high)
        for place in np.flatnonzero((values >= top).any(0)):
            words = f"{np.nanmax(values[:, place]):.0f} →"
            axis.annotate(words, (place, high - 0.5), ha="center", va="top", rotation=90)


def distances(records: Records, kind: str, law: str) -> np.ndarray:
    """KS distances of all probed channels (or samples) to a law: normal, inverted_t, ..."""
    return np.concatenate([record[kind][f"ks_{law}"] for record in records])


def probed_tails(records: Records, kind: str) -> np.ndarray:
    """Tail probabilities of all probed channels (or samples)."""
    parts = [record[kind] for record in records]
    return np.concatenate(
        [np.asarray(p["tail_probability"])[np.asarray(p["probed"])] for p in parts]
    )


def clipping_ratios(records: Records) -> tuple[np.ndarray, np.ndarray]:
    """(best threshold over the maximum (channels, alphas), tail probability (channels,)).

    Of the probed channels that are not all zeros: those have nothing to clip.
    """
    parts = [record["channels"] for record in records]
    alive = np.concatenate([np.asarray(p["maximum"])[np.asarray(p["probed"])] for p in parts]) > 0
    ratios = np.concatenate([p["best_clipping"] for p in parts])
    return ratios[alive], probed_tails(records, "channels")[alive]


def product_medians(records: Records, names: list[str], product: str, variant: str) -> np.ndarray:
    """Median over iterations of a product's signal-to-noise ratio, one a layer; NaN for none."""
    medians = []
    for name in names:
        found = [r["snr_db"][product][variant] for r in records if r["layer"] == name]
        found = [value for value in found if value is not None]
        medians.append(np.median(found) if found else np.nan)
    return np.array(medians)


def _in_order(records: Records) -> list[str]:
    """Layer names, each once, as the model lists them."""
    return list(dict.fromkeys(record["layer"] for record in records))


def _short(name: str) -> str:
    return name.replace("backbone.", "").replace("bbox_head.", "head.").replace(".conv", ".c")


_WORDS = {
    "global": "one threshold for\nthe tensor (the paper)",
    "folded": "one a channel, folded\ninto the weights (ours)",
    "tensor": "one threshold for\nthe tensor",
    "channel": "one a channel\n(the paper's GVQ)",
    "stochastic": "one a channel,\nstochastic rounding",
    "centred": "one a channel, mean of\nwhat rounding drops\nput back",
}
