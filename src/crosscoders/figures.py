"""Every figure of the study, drawn from a summary dataset alone.

Each function takes the dataset (and, where it compares crosscoders, finds them in it) and returns a figure; `save`
writes it as PNG and SVG with bytes that depend on the data alone.
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr

from crosscoders import artifacts

PALETTE = sns.color_palette("colorblind")
CLASS_COLOURS = {"base-only": PALETTE[0], "shared": PALETTE[7], "chat-only": PALETTE[3], "other": PALETTE[2]}
CLASSES = list(CLASS_COLOURS)
SHOWN_LATENTS = 50
LIFT_FLOOR = 0.03
"""Lowest lift shown: groups that never fire on a category stand on the floor of the panel."""
CONTROLS = ("random", "mean difference", "components")
"""Conditions of causal patching, by how their names begin, that use no chosen latents."""
SEGMENT_LABELS = {"all": "all response tokens", "first": "the first 9", "rest": "the rest"}
CHAT_SAMPLE = 100
"""Most chat-leaning latents shown where no or few latents pass the threshold of a class."""


def style() -> None:
    """The look of all figures; SVG ids come from a fixed salt, so that equal data give equal bytes."""
    sns.set_theme(style="ticks", context="notebook", palette="colorblind")
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "crosscoders",
            "figure.constrained_layout.use": True,
            "savefig.dpi": 150,
            "svg.fonttype": "path",
        }
    )


def save(figure: plt.Figure, folder: Path | str, name: str) -> None:
    """Write `{name}.png` and `{name}.svg`; the layout is solved once for both."""
    figure.get_layout_engine().execute(figure)
    figure.set_layout_engine("none")
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        artifacts.atomic(
            Path(folder) / f"{name}.{suffix}",
            lambda path, suffix=suffix, metadata=metadata: figure.savefig(path, format=suffix, metadata=metadata),
        )


def show(figure: plt.Figure, folder: Path | str, name: str) -> None:
    """Save a figure and show the saved picture in a notebook, so that it is drawn once."""
    from IPython.display import Image, display

    save(figure, folder, name)
    plt.close(figure)
    display(Image(filename=Path(folder) / f"{name}.png", width=round(100 * figure.get_figwidth())))


# -- access ------------------------------------------------------------------------------------------------------------


def crosscoders(summary: xr.Dataset) -> list[str]:
    """Names of the crosscoders in a summary."""
    return [str(name) for name in summary["crosscoder"].values]


def alive(one: xr.Dataset) -> np.ndarray:
    """Indices of latents that fire on test tokens and write something."""
    return np.flatnonzero((one["density"].values > 0) & np.isfinite(one["relative_norm"].values))


def select(summary: xr.Dataset, crosscoder: str, seed: int | None = None) -> xr.Dataset:
    """One training of a summary; the first seed by default."""
    return summary.sel(crosscoder=crosscoder, seed=int(summary["seed"][0]) if seed is None else seed)


def leaning(one: xr.Dataset, count: int = CHAT_SAMPLE) -> np.ndarray:
    """Chat-only latents, or, where there are fewer than `count`, the `count` with the largest relative norm."""
    indices = alive(one)
    delta = one["relative_norm"].values[indices]
    chosen = indices[delta >= thresholds(one)["chat_only_above"]]
    return chosen if len(chosen) >= count else indices[np.argsort(delta, kind="stable")[::-1][:count]]


def thresholds(summary: xr.Dataset) -> dict:
    """The settings of the classification."""
    return json.loads(summary.attrs["classification"])


def shared(one: xr.Dataset) -> np.ndarray:
    """Indices of alive latents of class `shared`."""
    indices = alive(one)
    return indices[one["norm_class"].values[indices] == artifacts.flag(one["norm_class"], "shared")]


def sample(indices: np.ndarray, count: int) -> np.ndarray:
    """A fixed random sample."""
    return np.sort(np.random.default_rng(0).permutation(indices)[:count])


def _panels(summary: xr.Dataset, width: float = 5.0, height: float = 4.0, **keywords):
    names = crosscoders(summary)
    figure, axes = plt.subplots(1, len(names), figsize=(width * len(names), height), squeeze=False, **keywords)
    for axis, name in zip(axes[0], names, strict=True):
        axis.set_title(name)
    return figure, dict(zip(names, axes[0], strict=True))


# -- training and evaluation -------------------------------------------------------------------------------------------


def training_curves(summary: xr.Dataset) -> plt.Figure:
    """Normalised error per source, L0 and dead share over training, every seed."""
    figure, axes = plt.subplots(1, 3, figsize=(15, 4))
    for colour, name in zip(PALETTE, crosscoders(summary), strict=False):
        for i, seed in enumerate(summary["seed"].values):
            one = summary.sel(crosscoder=name, seed=seed)
            label, style = (name if i == 0 else None), ["-", "--", ":", "-."][i % 4]
            curves = (
                one["training_normalised_error"].mean("source"),
                one["training_l0"],
                one["training_dead_fraction"],
            )
            for axis, curve in zip(axes, curves, strict=True):
                axis.plot(np.arange(curve.size) + 1, curve.values, color=colour, ls=style, lw=1, label=label)
    axes[0].set(
        xlabel="step", ylabel="squared error / squared norm", yscale="log", title="reconstruction, training batches"
    )
    axes[1].set(xlabel="step", ylabel="L0 (latents per token)", yscale="log", title="sparsity")
    axes[2].set(xlabel="step", ylabel="share of latents", title="dead latents", ylim=(-0.02, None))
    axes[0].legend(title="line style: seed")
    sns.despine(figure)
    return figure


def evaluation(summary: xr.Dataset) -> plt.Figure:
    """Variance explained per source on test documents, and loss recovered where reconstructions were spliced in.

    Bars are intervals over documents, marks are seeds.
    """
    panels = {"fraction of variance explained": (summary, "fraction_variance_explained")}
    if "cross_entropy_recovered" in summary:
        panels |= {
            f"loss recovered, against {ablation} ablation": (summary.sel(ablation=ablation), "cross_entropy_recovered")
            for ablation in summary["ablation"].values
        }
    figure, axes = plt.subplots(1, len(panels), figsize=(1.5 + 6 * len(panels), 4), squeeze=False)
    sources = [str(name) for name in summary["source"].values]
    names, seeds = crosscoders(summary), summary["seed"].values
    for axis, (label, (found, variable)) in zip(axes[0], panels.items(), strict=True):
        for c, name in enumerate(names):
            for s, seed in enumerate(seeds):
                one = found.sel(crosscoder=name, seed=seed)
                value = one[variable].values
                place = np.arange(len(sources)) + 0.12 * (c * len(seeds) + s - (len(names) * len(seeds) - 1) / 2)
                bars = np.abs([value - one[f"{variable}_low"], one[f"{variable}_high"] - value])
                title = f"{name}, L0 {float(one['l0']):.0f}" if s == 0 and axis is axes[0, 0] else None
                axis.errorbar(place, value, yerr=bars, fmt="os^D"[s % 4], ms=5, color=PALETTE[c], capsize=2, label=title)  # fmt: skip
        axis.set(xticks=range(len(sources)), xticklabels=sources, ylabel=label, xlim=(-0.5, len(sources) - 0.5))
    axes[0, 0].set_ylim(None, 1)
    figure.legend(title="marks: seeds", loc="outside right upper", fontsize=9)
    sns.despine(figure)
    return figure


def heatmap(axis: plt.Axes, mean, low, high, labels: list[str], label: str) -> None:
    """A matrix between sources with its intervals written into the cells."""
    text = [[f"{m:.2f}\n[{a:.2f}, {b:.2f}]" if np.isfinite(m) else "" for m, a, b in zip(*cells, strict=True)] for cells in zip(mean, low, high, strict=True)]  # fmt: skip
    sns.heatmap(mean, ax=axis, annot=np.array(text), fmt="", vmin=0, vmax=1, cmap="viridis", square=True, annot_kws={"size": 8},
                xticklabels=labels, yticklabels=labels, cbar_kws={"label": label})  # fmt: skip


# -- cross-layer [L24] -------------------------------------------------------------------------------------------------


def norms_by_layer(summary: xr.Dataset) -> plt.Figure:
    """l24-norms-by-layer: decoder norm against source for a sample of latents, each scaled to a maximum of 1."""
    figure, axes = _panels(summary, sharey=True)
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
    next(iter(axes.values())).set_ylabel("decoder norm (maximum = 1)")
    sns.despine(figure)
    return figure


def drift(summary: xr.Dataset) -> plt.Figure:
    """l24-drift: cosine to the direction at the peak against decoder norm, and mean cosine between sources."""
    names = crosscoders(summary)
    figure, axes = plt.subplots(2, len(names), figsize=(5.2 * len(names), 8.4), squeeze=False)
    sources = [str(name) for name in summary["source"].values]
    colours = sns.color_palette("viridis", len(sources))
    for column, name in enumerate(names):
        one = select(summary, name)
        chosen = sample(alive(one), 10 * SHOWN_LATENTS)
        norms, peak = one["decoder_norm"].values[chosen], one["peak_source"].values[chosen].astype(int)
        cosine = one["source_cosine"].values[chosen]
        to_peak = cosine[np.arange(len(chosen)), :, peak]
        for s, source in enumerate(sources):
            away = peak != s
            axes[0, column].scatter(
                (norms[:, s] / norms.max(axis=1))[away],
                to_peak[away, s],
                s=6,
                alpha=0.5,
                color=colours[s],
                label=source,
            )
        axes[0, column].set(xlabel="decoder norm / norm at the peak", ylabel="cosine to the peak's direction", title=name, ylim=(-0.5, 1.02))  # fmt: skip
        matrix = np.nanmean(one["source_cosine"].values[alive(one)], axis=0)
        sns.heatmap(matrix, ax=axes[1, column], annot=True, fmt=".2f", vmin=0, vmax=1, cmap="viridis", square=True,
                    xticklabels=sources, yticklabels=sources, cbar_kws={"label": "mean cosine of decoder vectors"})  # fmt: skip
    axes[0, 0].legend(markerscale=2.5, title="source")
    return figure


def similarity(summary: xr.Dataset) -> plt.Figure:
    """ours-similarity: CKA and SVCCA between sources, and beside them the mean cosine of latents' decoder vectors."""
    names = crosscoders(summary)
    figure, axes = plt.subplots(1, 2 + len(names), figsize=(5.6 * (2 + len(names)), 5))
    sources = [str(name) for name in summary["compared_source"].values]
    for axis, name in zip(axes, ("cka", "svcca"), strict=False):
        found = [summary[f"{name}{end}"].sel(source=sources).values for end in ("", "_low", "_high")]
        heatmap(axis, *found, sources, summary[name].attrs["long_name"])
        axis.set_title(f"{name.upper()} (brackets: 95%, jackknife over documents)", fontsize=10)
    for axis, name in zip(axes[2:], names, strict=True):
        seeds = []
        for seed in summary["seed"].values:
            one = select(summary, name, int(seed))
            seeds.append(one["source_cosine"].values[np.flatnonzero(one["density"].values > 0)].mean(0))
        heatmap(
            axis,
            np.mean(seeds, 0),
            np.min(seeds, 0),
            np.max(seeds, 0),
            [str(s) for s in summary["source"].values],
            "mean cosine of decoder vectors of alive latents",
        )
        axis.set_title(f"{name} (brackets: range of seeds)", fontsize=10)
    return figure


# -- model diffing [L24, K24, M25] -------------------------------------------------------------------------------------


def relative_norm(summary: xr.Dataset) -> plt.Figure:
    """l24-relative-norm: histogram of Δ, mean over seeds, with the range of the seeds."""
    figure, axes = _panels(summary, sharey=True)
    edges = np.linspace(0, 1, 51)
    for name, axis in axes.items():
        counts = np.array(
            [_histogram(summary.sel(crosscoder=name, seed=seed), edges) for seed in summary["seed"].values]
        )
        axis.stairs(counts.mean(0), edges, fill=True, color=PALETTE[0], alpha=0.6)
        middle = (edges[1:] + edges[:-1]) / 2
        axis.vlines(middle, counts.min(0), counts.max(0), color="black", lw=1, label="range of seeds")
        axis.set(yscale="log", xlabel=_delta_label(summary), ylim=(0.5, None))
        axis.legend()
    next(iter(axes.values())).set_ylabel("alive latents")
    sns.despine(figure)
    return figure


def _histogram(one: xr.Dataset, edges: np.ndarray) -> np.ndarray:
    return np.histogram(one["relative_norm"].values[alive(one)], edges)[0]


def _delta_label(summary: xr.Dataset) -> str:
    return f"relative norm Δ (0: {summary.attrs['base']}, 1: {summary.attrs['chat']})"


def shared_cosine(summary: xr.Dataset) -> plt.Figure:
    """l24-shared-cosine: cosine of the two decoder vectors of shared latents."""
    figure, axes = _panels(summary, sharey=True)
    for name, axis in axes.items():
        one = select(summary, name)
        values = one["decoder_cosine"].values[shared(one)]
        axis.hist(values, np.linspace(-1, 1, 81), color=CLASS_COLOURS["shared"])
        axis.axvline(np.median(values), color="black", lw=1, ls="--", label=f"median {np.median(values):.2f}")
        axis.set(yscale="log", xlabel="cosine of the decoder vectors")
        axis.legend(loc="upper left")
    next(iter(axes.values())).set_ylabel("shared latents")
    sns.despine(figure)
    return figure


def penalty_field() -> plt.Figure:
    """m25-penalty-field: descent direction of two sparsity penalties in the plane of a latent's decoder norms."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), sharey=True)
    base, chat = np.meshgrid(np.linspace(0.05, 1, 14), np.linspace(0.05, 1, 14))
    fields = {
        "crosscoder, L1 of norms: λ f (n_base + n_chat)": (np.ones_like(base), np.ones_like(chat)),
        "stacked SAE, L2 of norms: λ f √(n_base² + n_chat²)": (
            base / np.hypot(base, chat),
            chat / np.hypot(base, chat),
        ),
    }
    for axis, (name, (along_base, along_chat)) in zip(axes, fields.items(), strict=True):
        axis.quiver(base, chat, -along_base, -along_chat, color=PALETTE[0], width=0.004)
        axis.set(xlabel="decoder norm in base", title=name, xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), aspect="equal")
        axis.title.set_fontsize(11)
    axes[0].set_ylabel("decoder norm in chat")
    sns.despine(figure)
    return figure


def delta_histogram(summary: xr.Dataset) -> plt.Figure:
    """m25-delta-histogram: Δ coloured by class, latents that pass latent scaling overlaid, the chat end enlarged."""
    figure, axes = _panels(summary, width=6, sharey=True)
    limit = thresholds(summary)["chat_only_above"]
    for name, axis in axes.items():
        one = select(summary, name)
        indices = alive(one)
        delta, kind = one["relative_norm"].values[indices], one["norm_class"].values[indices]
        specific = one["specific"].values[indices] == artifacts.flag(one["specific"], "chat")
        parts = [(delta[kind == i], CLASS_COLOURS[label], label) for i, label in enumerate(CLASSES)]
        _stacked(axis, parts, delta[specific], np.linspace(0, 1, 51))
        if (delta >= limit).any():
            inset = axis.inset_axes([0.72, 0.55, 0.27, 0.42])
            _stacked(inset, parts, delta[specific], np.linspace(limit, 1, 11))
            inset.set_title(f"Δ ≥ {limit:g}: {(delta >= limit).sum()} latents", fontsize=9)
            inset.tick_params(labelsize=8)
        else:
            axis.text(
                0.98, 0.95, f"no latent with Δ ≥ {limit:g}", ha="right", va="top", transform=axis.transAxes, fontsize=10
            )
        axis.set_xlabel(_delta_label(summary))
        axis.legend(fontsize=8, loc="upper left")
    top = max(axis.get_ylim()[1] for axis in axes.values())
    next(iter(axes.values())).set(ylabel="alive latents", ylim=(0.5, 8 * top))
    sns.despine(figure)
    return figure


def _stacked(axis: plt.Axes, parts: list, specific: np.ndarray, edges: np.ndarray) -> None:
    """Histograms of the classes on a logarithmic scale, those that pass latent scaling outlined."""
    for values, colour, label in parts:
        axis.hist(values, edges, color=colour, label=f"{label} ({len(values)})")
    axis.hist(specific, edges, histtype="step", color="black", lw=1.5, label=f"chat-specific by ν ({len(specific)})")
    axis.set(yscale="log", ylim=(0.5, None))


def nu_scatter(summary: xr.Dataset) -> plt.Figure:
    """m25-nu-scatter: ν of the error against ν of the reconstruction, chat-leaning beside as many shared latents."""
    names = crosscoders(summary)
    figure = plt.figure(figsize=(6 * len(names), 5.6))
    limits = thresholds(summary)
    edges = np.linspace(-0.5, 1.5, 41)
    for part, name in zip(figure.subfigures(1, len(names), squeeze=False)[0], names, strict=True):
        grid = part.add_gridspec(2, 2, width_ratios=[4, 1], height_ratios=[1, 4])
        axis = part.add_subplot(grid[1, 0])
        above, beside = part.add_subplot(grid[0, 0], sharex=axis), part.add_subplot(grid[1, 1], sharey=axis)
        one = select(summary, name)
        chat = leaning(one)
        groups = {_leaning_label(one, chat): (chat, CLASS_COLOURS["chat-only"])}
        groups["shared sample"] = (sample(np.setdiff1d(shared(one), chat), len(chat)), CLASS_COLOURS["shared"])
        for label, (chosen, colour) in groups.items():
            x, y = one["nu_reconstruction"].values[chosen], one["nu_error"].values[chosen]
            spans = [[v - one[f"nu_{t}_low"].values[chosen], one[f"nu_{t}_high"].values[chosen] - v] for t, v in (("reconstruction", x), ("error", y))]  # fmt: skip
            axis.errorbar(x, y, xerr=np.abs(spans[0]), yerr=np.abs(spans[1]), fmt="none", ecolor=colour, elinewidth=0.5, alpha=0.35)  # fmt: skip
            axis.scatter(x, y, s=12, color=colour, label=label)
            above.hist(x, edges, color=colour, alpha=0.6)
            beside.hist(y, edges, color=colour, alpha=0.6, orientation="horizontal")
        axis.axhline(limits["specific_error_below"], color="black", lw=0.8, ls="--")
        axis.axvline(limits["specific_reconstruction_below"], color="black", lw=0.8, ls="--")
        axis.set(xlim=(-0.5, 1.5), ylim=(-0.5, 1.5), xlabel="ν of the reconstruction", ylabel="ν of the error")
        axis.set(xticks=np.arange(-0.5, 1.6, 0.5), yticks=np.arange(-0.5, 1.6, 0.5))
        axis.legend(fontsize=8, loc="upper left", title=f"{name}; bars: 95% over documents", title_fontsize=8)
        above.tick_params(labelbottom=False)
        beside.tick_params(labelleft=False)
    sns.despine(figure)
    return figure


def _leaning_label(one: xr.Dataset, chosen: np.ndarray) -> str:
    lowest = one["relative_norm"].values[chosen].min() if len(chosen) else np.nan
    return f"{len(chosen)} most chat-leaning (Δ ≥ {lowest:.2f})"


def nu_threshold_counts(summary: xr.Dataset) -> plt.Figure:
    """m25-nu-threshold-counts: among equally many chat-leaning latents, how many have both ν below a threshold π."""
    figure, axis = plt.subplots(figsize=(6, 4.2))
    steps = np.linspace(0, 1.2, 61)
    for colour, name in zip(PALETTE, crosscoders(summary), strict=False):
        counts = []
        for seed in summary["seed"].values:
            one = summary.sel(crosscoder=name, seed=seed)
            indices = alive(one)
            chosen = indices[np.argsort(one["relative_norm"].values[indices], kind="stable")[::-1][:CHAT_SAMPLE]]
            largest = np.fmax(one["nu_error"].values[chosen], one["nu_reconstruction"].values[chosen])
            counts.append([(largest < step).sum() for step in steps])
        counts = np.array(counts)
        axis.plot(steps, counts.mean(0), color=colour, label=name)
        axis.fill_between(steps, counts.min(0), counts.max(0), color=colour, alpha=0.2)
    axis.set(xlabel="threshold π", ylabel=f"both ν < π, of the {CHAT_SAMPLE} largest Δ", ylim=(0, None))
    axis.legend(title="band: range of seeds")
    sns.despine(figure)
    return figure


def delta_vs_rank(summary: xr.Dataset) -> plt.Figure:
    """m25-delta-vs-rank: Δ against the sum of the ranks of ν of error and reconstruction (low: chat-specific)."""
    figure, axes = _panels(summary, sharey=True)
    for name, axis in axes.items():
        one = select(summary, name)
        chosen = leaning(one, 10 * CHAT_SAMPLE)
        ranks = sum(_rank(one[f"nu_{target}"].values[chosen]) for target in ("error", "reconstruction"))
        axis.scatter(ranks, one["relative_norm"].values[chosen], s=8, alpha=0.6, color=PALETTE[3])
        axis.set_xlabel("rank of ν error + rank of ν reconstruction")
        axis.set_title(f"{name}: {len(chosen)} most chat-leaning latents")
    next(iter(axes.values())).set_ylabel("relative norm Δ")
    sns.despine(figure)
    return figure


def _rank(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values, kind="stable"), kind="stable")


def cosine_by_class(summary: xr.Dataset) -> plt.Figure:
    """m25-cosine-by-class: cosine of the two decoder vectors by class of relative norm."""
    figure, axes = _panels(summary, sharey=True)
    for name, axis in axes.items():
        one = select(summary, name)
        indices = alive(one)
        kind = one["norm_class"].values[indices]
        groups = [one["decoder_cosine"].values[indices[kind == i]] for i in range(len(CLASSES))]
        shown = [i for i, values in enumerate(groups) if len(values)]
        boxes = axis.boxplot(
            [groups[i] for i in shown], positions=shown, widths=0.6, patch_artist=True, flierprops={"ms": 2}
        )
        for patch, i in zip(boxes["boxes"], shown, strict=True):
            patch.set_facecolor(CLASS_COLOURS[CLASSES[i]])
        labels = [f"{label}\n({len(values)})" for label, values in zip(CLASSES, groups, strict=True)]
        axis.set(xticks=range(len(CLASSES)), xticklabels=labels, xlim=(-0.6, len(CLASSES) - 0.4))
    next(iter(axes.values())).set_ylabel("cosine of the decoder vectors")
    sns.despine(figure)
    return figure


def twin_divergence(summary: xr.Dataset) -> plt.Figure:
    """m25-twin-divergence: of twins, a chat-only and a base-only latent of one direction, how apart they fire."""
    figure, axes = _panels(summary, sharey=True)
    for name, axis in axes.items():
        values = summary["twin_divergence"].sel(crosscoder=name).values.ravel()
        values = values[np.isfinite(values)]
        axis.hist(values, np.linspace(0, 1, 21), color=PALETTE[3])
        axis.set(
            xlabel="tokens on which only one is high / either is high", title=f"{name}: {len(values)} twins, all seeds"
        )
        if not len(values):
            axis.text(0.5, 0.5, "no twins:\nno chat-only latent has the direction\nof a base-only one (cosine > 0.9)", transform=axis.transAxes, ha="center", va="center")  # fmt: skip
    next(iter(axes.values())).set_ylabel("twins")
    sns.despine(figure)
    return figure


def template(summary: xr.Dataset) -> plt.Figure:
    """m25-template: ν of chat-leaning latents, template-heavy ones overlaid; share of activation on template tokens."""
    names = crosscoders(summary)
    figure, axes = plt.subplots(len(names), 3, figsize=(14, 3.6 * len(names)), squeeze=False)
    edges = np.linspace(-0.5, 1.5, 41)
    for row, name in zip(axes, names, strict=True):
        one = select(summary, name)
        chosen = leaning(one)
        heavy = chosen[one["template_share"].values[chosen] > 0.5]
        for axis, target in zip(row, ("error", "reconstruction"), strict=False):
            axis.hist(one[f"nu_{target}"].values[chosen], edges, color=PALETTE[7], label=_leaning_label(one, chosen))
            axis.hist(
                one[f"nu_{target}"].values[heavy], edges, color=PALETTE[1], label=f"template share > ½ ({len(heavy)})"
            )
            axis.set(xlabel=f"ν of the {target}", ylabel="latents", title=name)
            axis.margins(y=0.35)
        row[0].legend(fontsize=8)
        bins = np.linspace(0, 1, 26)
        for group, label, colour in ((alive(one), "all alive", PALETTE[7]), (chosen, "chat-leaning", PALETTE[3])):
            weights = np.full(len(group), 1 / max(len(group), 1))
            row[2].hist(one["template_share"].values[group], bins, weights=weights, histtype="step", lw=1.8, color=colour, label=label)  # fmt: skip
        row[2].set(xlabel="share of activation on template tokens", ylabel="share of latents", yscale="log", title=name)
        row[2].legend(fontsize=8)
    sns.despine(figure)
    return figure


def divergence(summary: xr.Dataset) -> plt.Figure:
    """m25-kl-bars: KL from the chat model's own next-token distributions under every patch, by segment of the response."""
    names = crosscoders(summary)
    segments = [str(name) for name in summary["segment"].values]
    conditions = [str(name) for name in summary["condition"].values if str(name) != "all and error"]
    figure, axes = plt.subplots(len(names), len(segments), figsize=(4.6 * len(segments), (0.9 + 0.24 * len(conditions)) * len(names)), squeeze=False, sharey=True)  # fmt: skip
    tokens = summary["segment_tokens"].values.reshape(-1, len(segments)).max(0)
    for row, name in zip(axes, names, strict=True):
        for axis, segment, count in zip(row, segments, tokens, strict=True):
            one = summary.sel(crosscoder=name, segment=segment, condition=conditions)
            for s, seed in enumerate(summary["seed"].values):
                here = one.sel(seed=seed)
                value = here["divergence"].values
                bars = np.abs([value - here["divergence_low"], here["divergence_high"] - value])
                place = np.arange(len(conditions)) + 0.24 * (s - (summary.sizes["seed"] - 1) / 2)
                colours = [PALETTE[7] if condition.startswith(CONTROLS) else PALETTE[3] for condition in conditions]
                axis.barh(place, value, 0.22, xerr=bars, color=colours, error_kw={"lw": 0.8, "capsize": 1.5})
            axis.axvline(float(one["divergence"].sel(condition="none").mean()), color="black", lw=0.8, ls="--")
            axis.set(
                title=f"{name}: {SEGMENT_LABELS[segment]} ({count:,})",
                yticks=range(len(conditions)),
                yticklabels=conditions,
            )
            axis.title.set_fontsize(10)
            axis.tick_params(axis="y", labelsize=8)
    axes[0, 0].invert_yaxis()
    figure.supxlabel(
        "KL from the chat model, nats per token (grey: controls; dashed: none; bars: seeds, 95% over conversations)",
        fontsize=10,
    )
    sns.despine(figure)
    return figure


# -- the known answer --------------------------------------------------------------------------------------------------


def planted_enrichment(summary: xr.Dataset) -> plt.Figure:
    """ours-planted-enrichment: lift of planted behaviours and template tokens by quantile of Δ, beside its null."""
    names = crosscoders(summary)
    labels = [str(name) for name in summary["category"].values]
    figure, axes = plt.subplots(len(names), len(labels), figsize=(3.1 * len(labels), 3.3 * len(names)), squeeze=False, sharey=True)  # fmt: skip
    quantiles = summary["delta_quantile"].values.reshape(-1, summary.sizes["edge"])[0]
    ticks = [f"{100 * a:g}–{100 * b:g}" for a, b in zip(quantiles, quantiles[1:], strict=False)]
    for row, name in zip(axes, names, strict=True):
        for axis, label in zip(row, labels, strict=True):
            one = select(summary, name).sel(category=label)
            place = np.arange(len(ticks))
            axis.fill_between(place, np.fmax(one["enrichment_null_low"], LIFT_FLOOR), one["enrichment_null_high"], color=PALETTE[7], alpha=0.4, label="latents permuted")  # fmt: skip
            for s, seed in enumerate(summary["seed"].values):
                here = summary.sel(crosscoder=name, seed=seed, category=label)
                value = np.fmax(here["enrichment_lift"].values, LIFT_FLOOR)
                bars = np.abs([value - here["enrichment_lift_low"], here["enrichment_lift_high"] - value])
                axis.errorbar(place + 0.15 * s, value, yerr=bars, fmt="os^D"[s % 4], ms=4, capsize=2, color=PALETTE[3 + s], label=f"seed {seed}")  # fmt: skip
            axis.axhline(1, color="black", lw=0.8)
            axis.set(title=f"{name}: {label.replace('_', ' ')}", xticks=place)
            axis.title.set_fontsize(10)
            axis.set_xticklabels(ticks, rotation=60, fontsize=8)
            axis.set(yscale="log")
            axis.minorticks_off()
        row[0].set_ylabel("lift over the token base rate")
    top = float(summary["enrichment_lift_high"].max())
    axes[0, 0].set_ylim(LIFT_FLOOR, 1.3 * max(top, 1.0))
    axes[0, 0].legend(fontsize=8)
    figure.supxlabel(f"quantile group of Δ among alive latents, % (right: {summary.attrs['chat']})", fontsize=11)
    sns.despine(figure)
    return figure


def behaviour_rates(summary: xr.Dataset) -> plt.Figure:
    """ours-behaviour-rates: how often each planted behaviour shows before and after fine-tuning."""
    figure, axis = plt.subplots(figsize=(8, 4))
    behaviours = [str(name) for name in summary["measured_behaviour"].values]
    for i, model in enumerate(summary["model"].values):
        one = summary.sel(model=model)
        rate = one["behaviour_rate"].values
        bars = np.abs([rate - one["behaviour_rate_low"].values, one["behaviour_rate_high"].values - rate])
        axis.bar(np.arange(len(behaviours)) + 0.4 * i - 0.2, rate, 0.38, yerr=bars, capsize=3, color=PALETTE[[7, 3][i % 2]], label=str(model))  # fmt: skip
    axis.set(xticks=range(len(behaviours)), ylabel="share of held-out prompts", ylim=(0, 1.05))
    axis.set_xticklabels([name.replace("_", "\n") for name in behaviours])
    figure.legend(title="bars: 95% Wilson", loc="outside right upper")
    sns.despine(figure)
    return figure
