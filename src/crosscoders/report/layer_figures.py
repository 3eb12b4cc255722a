"""Figures of crosscoders across the layers of one model [L24]."""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr

from crosscoders.report.figures import (
    ONE_PANEL,
    PAGE_WIDTH,
    PALETTE,
    SEED_MARKS,
    SMALLEST_TEXT,
    alive,
    crosscoders,
    grid,
    heatmap,
    label_rows,
    of,
    panels,
    sample,
    seeds,
    select,
)

SHOWN_LATENTS = 50


def norms_by_layer(summary: xr.Dataset) -> plt.Figure:
    """l24-norms-by-layer: decoder norm against source for a sample of latents, each scaled to a maximum of 1."""
    figure, axes = panels(summary, sharey=True)
    sources = [str(name) for name in summary["source"].values]
    for name, axis in axes.items():
        one = select(summary, name)
        norms = one["decoder_norm"].values[sample(alive(one), SHOWN_LATENTS)]
        norms = norms / norms.max(axis=1, keepdims=True)
        for row in norms[np.argsort(norms.argmax(axis=1), kind="stable")]:
            axis.plot(sources, row, color=sns.color_palette("viridis", len(sources))[row.argmax()], alpha=0.5, lw=1)
        axis.plot(sources, norms.mean(axis=0), color="black", lw=2, label="mean of the sample")
        axis.set(xlabel="source (colour: source of the peak)")
        axis.tick_params(axis="x", rotation=30)
        axis.legend(loc="lower center")
    next(iter(axes.values())).set_ylim(0, None)
    label_rows(axes, "decoder norm (maximum = 1)")
    sns.despine(figure)
    return figure


def mean_cosine(one: xr.Dataset, chosen: np.ndarray) -> np.ndarray:
    """Mean cosine of some latents' decoder vectors between all sources, (S, S); NaN where no latent has one."""
    values = one["source_cosine"].values[chosen]
    counts = np.isfinite(values).sum(0)
    return np.divide(np.nansum(values, axis=0), counts, out=np.full(counts.shape, np.nan), where=counts > 0)


def drift(summary: xr.Dataset) -> plt.Figure:
    """l24-drift: cosine to the direction at the peak against decoder norm, and mean cosine between sources."""
    names = crosscoders(summary)
    figure, axes = plt.subplots(len(names), 2, figsize=(PAGE_WIDTH, 3 * len(names)), squeeze=False)
    sources = [str(name) for name in summary["source"].values]
    colours = sns.color_palette("viridis", len(sources))
    for (beside, axis), name in zip(axes, names, strict=True):
        one = select(summary, name)
        chosen = sample(alive(one), 10 * SHOWN_LATENTS)
        norms, peak = one["decoder_norm"].values[chosen], one["peak_source"].values[chosen].astype(int)
        cosine = one["source_cosine"].values[chosen]
        to_peak = cosine[np.arange(len(chosen)), :, peak]
        for s, source in enumerate(sources):
            away = peak != s
            place = (norms[:, s] / norms.max(axis=1))[away]
            beside.scatter(place, to_peak[away, s], s=4, alpha=0.5, color=colours[s], label=source)
        beside.set(
            xlabel="decoder norm / norm at the peak",
            ylabel="cosine to the peak's direction",
            title=name,
            ylim=(-0.5, 1.02),
        )
        matrix = mean_cosine(one, alive(one))
        if not np.isfinite(matrix[~np.eye(len(sources), dtype=bool)]).any():
            beside.text(0.5, 0.5, "sources of unequal width\nhave no cosine", ha="center", transform=beside.transAxes)
        style = {"annot": True, "fmt": ".2f", "vmin": 0, "vmax": 1, "cmap": "viridis", "square": True}
        labels = {"xticklabels": sources, "yticklabels": sources}
        sns.heatmap(
            matrix,
            ax=axis,
            annot_kws={"size": SMALLEST_TEXT},
            **style,
            **labels,
            cbar_kws={"label": "mean cosine of decoder vectors"},
        )
        axis.tick_params(axis="x", rotation=45)
        axis.tick_params(axis="y", rotation=0)
    axes[0, 0].legend(markerscale=2.5, title="source")
    return figure


def similarity(summary: xr.Dataset) -> plt.Figure:
    """ours-similarity: CKA and SVCCA between sources, and beside them the mean cosine of latents' decoder vectors."""
    names = crosscoders(summary)
    figure, axes = grid(2 + len(names), 2, 3.3)
    sources = [str(name) for name in summary["compared_source"].values]
    for axis, name in zip(axes, ("cka", "svcca"), strict=False):
        matrices = [summary[f"{name}{end}"].sel(source=sources).values for end in ("", "_low", "_high")]
        heatmap(axis, *matrices, sources, summary[name].attrs["long_name"])
        axis.set_title(f"{name.upper()} (95%, jackknife over documents)")
    for axis, name in zip(axes[2:], names, strict=True):
        matrices = []
        for seed in seeds(summary, name):
            one = select(summary, name, seed)
            matrices.append(mean_cosine(one, np.flatnonzero(one["density"].values > 0)))
        written = np.isfinite(matrices).any((0, 1))
        axis.set_title(f"{name} (range of seeds)")
        if not written.any():
            axis.set_axis_off()
            axis.text(0.5, 0.5, "no latent fires, or sources\ndiffer in width", ha="center", transform=axis.transAxes)
            continue
        shown = [matrix[written][:, written] for matrix in matrices]
        heatmap(
            axis,
            np.mean(shown, 0),
            np.min(shown, 0),
            np.max(shown, 0),
            [str(s) for s in summary["source"].values[written]],
            "mean cosine of alive latents",
        )
    return figure


# -- dictionaries of several sizes -------------------------------------------------------------------------------------

KINDS = {"crosscoder": PALETTE[3], "SAEs per source": PALETTE[0]}


def kind(one: xr.Dataset) -> str:
    """Whether latents write several sources or one."""
    return "crosscoder" if float(one["written_sources"].max()) > 1 else "SAEs per source"


def over_seeds(one: xr.Dataset, name: str) -> tuple[float, float, float]:
    """Mean over seeds, and the widest ends of the seeds' intervals over documents."""
    return (
        float(one[name].mean()),
        float(one.get(f"{name}_low", one[name]).min()),
        float(one.get(f"{name}_high", one[name]).max()),
    )


def same_coefficient(summary: xr.Dataset) -> list[str]:
    """The crosscoders of the penalty coefficient that most of them share, so that their losses can be compared."""
    coefficients = {
        name: round(float(summary["penalty_coefficient"].sel(crosscoder=name).mean()), 6)
        for name in crosscoders(summary)
    }
    values = list(coefficients.values())
    chosen = max(dict.fromkeys(values), key=values.count)
    return [name for name, value in coefficients.items() if value == chosen]


def curves(summary: xr.Dataset, names: list[str], x: str, y: str) -> dict[str, np.ndarray]:
    """The points of either kind of dictionary, sorted by x: rows of x, y and the ends of its interval."""
    points: dict[str, list] = {}
    for name in names:
        one = of(summary, name)
        points.setdefault(kind(one), []).append((float(one[x].mean()), *over_seeds(one, y)))
    return {label: np.array(sorted(points[label])) for label in KINDS if label in points}


def loss_against_features(summary: xr.Dataset) -> plt.Figure:
    """l24-loss-vs-features: loss against the size of the dictionary."""
    return loss_curve(summary, "dictionary_size")


def loss_against_flops(summary: xr.Dataset) -> plt.Figure:
    """l24-loss-vs-flops: loss against floating-point operations of training."""
    return loss_curve(summary, "training_flops")


def loss_curve(summary: xr.Dataset, x: str) -> plt.Figure:
    """l24-loss-vs-features, l24-loss-vs-flops: loss on test documents against `dictionary_size` or `training_flops`."""
    figure, axis = plt.subplots(figsize=(ONE_PANEL, 3.3))
    for label, rows in curves(summary, same_coefficient(summary), x, "loss").items():
        size, value, low, high = rows.T
        axis.errorbar(
            size, value, yerr=[value - low, high - value], fmt="o-", ms=5, capsize=3, color=KINDS[label], label=label
        )
    axis.set(
        xscale="log",
        xlabel=f"{summary[x].attrs['long_name']}, all sources together",
        ylabel="squared error and penalty per token",
    )
    axis.legend(title="bars: 95% over documents")
    sns.despine(figure)
    return figure


def error_against_l0(summary: xr.Dataset) -> plt.Figure:
    """l24-mse-vs-l0: normalised error against latents per token; FLOP-matched pairs of one coefficient are joined."""
    figure, axis = plt.subplots(figsize=(ONE_PANEL, 3.3))
    summary = summary.assign(
        error=1 - summary["fraction_variance_explained"].mean("source"),
        error_low=1 - summary["fraction_variance_explained_high"].mean("source"),
        error_high=1 - summary["fraction_variance_explained_low"].mean("source"),
    )
    pairs: dict[tuple, list] = {}
    drawn = set()
    for name in crosscoders(summary):
        one = of(summary, name)
        l0, (value, low, high), label = float(one["l0"].mean()), over_seeds(one, "error"), kind(one)
        key = round(float(one["training_flops"].mean()), -6), round(float(one["penalty_coefficient"].mean()), 6)
        pairs.setdefault(key, []).append((l0, value))
        first = label not in drawn
        drawn.add(label)
        axis.errorbar(
            l0,
            value,
            yerr=[[value - low], [high - value]],
            fmt="o",
            ms=5,
            capsize=3,
            color=KINDS[label],
            label=label if first else None,
        )
    for points in pairs.values():
        if len(points) > 1:
            axis.plot(*np.array(sorted(points)).T, color="black", lw=0.8, ls="--", zorder=0)
    axis.set(
        xscale="log",
        xlabel="latents per token, all sources together",
        ylabel="squared error / variance (mean of the sources)",
    )
    title = "bars: 95% over documents\ndashed: as many FLOPs, same coefficient"
    axis.legend(title=title, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    sns.despine(figure)
    return figure


# -- circuits ----------------------------------------------------------------------------------------------------------

COLLAPSE_COLOURS = {
    "none": PALETTE[7],
    "crosscoder": PALETTE[3],
    "clustering": PALETTE[1],
    "shuffled tokens": PALETTE[4],
}


def circuits(summary: xr.Dataset) -> plt.Figure:
    """ours-circuits: nodes, edges and identity share of the graph of SAE latents, by how its latents are collapsed."""
    figure, axes = grid(5, 3, 2.6)
    ways, seeds = [str(name) for name in summary["collapse"].values], summary["seed"].values
    measured = ("nodes_per_token", "edges_per_token", "identity_share", "collapse_factor")
    for axis, name in zip(axes, measured, strict=False):
        for w, way in enumerate(ways):
            for s, seed in enumerate(seeds):
                one = summary.sel(seed=seed, collapse=way)
                value = float(one[f"circuit_{name}"])
                place = w + 0.2 * (s - (len(seeds) - 1) / 2)
                ends = [float(one.get(f"circuit_{name}{end}", value)) for end in ("_low", "_high")]
                bars = np.abs([[value - ends[0]], [ends[1] - value]])
                axis.errorbar(place, value, yerr=bars, fmt=SEED_MARKS[s % 4], capsize=3, color=COLLAPSE_COLOURS[way])
        title = textwrap.fill(summary[f"circuit_{name}"].attrs["long_name"], 30)
        axis.set(xticks=range(len(ways)), title=title, xlim=(-0.5, len(ways) - 0.5))
        axis.set_xticklabels(ways, rotation=30, ha="right")
        high = summary.get(f"circuit_{name}_high", summary[f"circuit_{name}"])
        top = float(np.fmax(high.max(), summary[f"circuit_{name}"].max()))
        if top > 0:  # no interval, and no value, may be known
            axis.set_ylim(0, 1.1 * top)
    for s, seed in enumerate(seeds):
        axes[0].axhline(
            float(summary["circuit_crosscoder_l0"].sel(seed=seed)),
            color="black",
            lw=0.8,
            ls="--",
            label="crosscoder at the same FVE" if s == 0 else None,
        )
    axes[0].legend(loc="center", bbox_to_anchor=(0.5, 0.28))
    (_faithfulness if "circuit_faithfulness" in summary else _recall)(axes[4], summary)
    sns.despine(figure)
    return figure


def _faithfulness(axis: plt.Axes, summary: xr.Dataset) -> None:
    """Measured against predicted changes of logits, of the first seed."""
    one = summary.isel(seed=0)
    for colour, which in ((PALETTE[7], "another latent"), (PALETTE[3], "same latent")):
        predicted = one.sel(prediction=which)
        value, low, high = (float(predicted[f"circuit_faithfulness{end}"]) for end in ("", "_low", "_high"))
        label = f"{which}:\nr = {value:.2f} [{low:.2f}, {high:.2f}]"
        axis.scatter(
            predicted["circuit_predicted_change"],
            predicted["circuit_measured_change"],
            s=12,
            alpha=0.7,
            color=colour,
            label=label,
        )
    axis.set(xlabel="predicted change of the logit", ylabel="measured change")
    axis.set_title(f"a node ablated where it begins\n(seed {int(summary['seed'][0])})")
    axis.legend(loc="center left", bbox_to_anchor=(1.08, 0.5)).set_in_layout(False)  # beside it is an empty place


def _recall(axis: plt.Axes, summary: xr.Dataset) -> None:
    """Planted persistent concepts that collapsed nodes hold, every seed."""
    ways = [str(name) for name in summary["collapse"].values if str(name) != "none"]
    for w, way in enumerate(ways):
        value = summary["circuit_recall"].sel(collapse=way).values
        place = w + 0.1 * (np.arange(len(value)) - (len(value) - 1) / 2)
        axis.scatter(place, value, color=COLLAPSE_COLOURS[way])
    axis.set(xticks=range(len(ways)), ylim=(-0.02, 1.02))
    axis.set_xticklabels(ways, rotation=30, ha="right")
    axis.set_title(textwrap.fill(summary["circuit_recall"].attrs["long_name"], 30))
