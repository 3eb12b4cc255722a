"""Figures that compare two models latent by latent [L24, K24, M25]."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr

from crosscoders import artifacts
from crosscoders.report.figures import (
    CHAT_SAMPLE,
    CLASS_COLOURS,
    CLASSES,
    ONE_PANEL,
    PAGE_WIDTH,
    PALETTE,
    SEED_MARKS,
    NothingToDraw,
    alive,
    colours,
    crosscoders,
    grid,
    label_rows,
    leaning,
    of,
    panels,
    sample,
    seeds,
    select,
    shared,
    thresholds,
)

LOWEST_LIFT = 0.03
"""Lowest lift shown: groups that never fire on a category are drawn here."""
RANDOM = "random"
"""How the names of random sets begin, conditions of causal patching."""
CONTROLS = (RANDOM, "mean difference", "components")
"""Conditions of causal patching, by how their names begin, that use no chosen latents."""
SEGMENT_LABELS = {"all": "all response tokens", "first": "the first 9", "rest": "the rest"}
CONDITION_LABELS = {"all": "all latents", "error": "reconstruction's error", "template": "template tokens alone"}


def relative_norm(summary: xr.Dataset) -> plt.Figure:
    """l24-relative-norm: histogram of Δ, mean over seeds, with the range of the seeds."""
    figure, axes = panels(summary, sharey=True)
    edges = np.linspace(0, 1, 51)
    for name, axis in axes.items():
        counts = np.array([_histogram(summary.sel(crosscoder=name, seed=seed), edges) for seed in seeds(summary, name)])
        axis.stairs(counts.mean(0), edges, fill=True, color=PALETTE[0], alpha=0.6)
        middle = (edges[1:] + edges[:-1]) / 2
        axis.vlines(middle, counts.min(0), counts.max(0), color="black", lw=1, label="range of seeds")
        axis.set(yscale="log", xlabel=_delta_label(summary))
    label_rows(axes, "alive latents")
    first = next(iter(axes.values()))
    first.set(ylim=(0.5, 2 * max(axis.dataLim.ymax for axis in axes.values())))
    first.legend(loc="upper left")
    sns.despine(figure)
    return figure


def _histogram(one: xr.Dataset, edges: np.ndarray) -> np.ndarray:
    return np.histogram(one["relative_norm"].values[alive(one)], edges)[0]


def _delta_label(summary: xr.Dataset) -> str:
    return f"relative norm Δ (0: {summary.attrs['base']}, 1: {summary.attrs['chat']})"


def shared_cosine(summary: xr.Dataset) -> plt.Figure:
    """l24-shared-cosine: cosine of the two decoder vectors of shared latents."""
    figure, axes = panels(summary, sharey=True)
    for name, axis in axes.items():
        one = select(summary, name)
        values = one["decoder_cosine"].values[shared(one)]
        axis.hist(values, np.linspace(-1, 1, 81), color=CLASS_COLOURS["shared"])
        axis.axvline(np.median(values), color="black", lw=1, ls="--", label=f"median {np.median(values):.2f}")
        axis.set(yscale="log", xlabel="cosine of the decoder vectors")
        axis.legend(loc="upper left")
    label_rows(axes, "shared latents")
    sns.despine(figure)
    return figure


def penalty_field() -> plt.Figure:
    """m25-penalty-field: descent direction of two sparsity penalties in the plane of a latent's decoder norms."""
    figure, axes = grid(2, 2, 3.6, sharey=True)
    base, chat = np.meshgrid(np.linspace(0.05, 1, 14), np.linspace(0.05, 1, 14))
    fields = {
        "crosscoder: λ f (n_base + n_chat)": (np.ones_like(base), np.ones_like(chat)),
        "stacked SAE: λ f √(n_base² + n_chat²)": (base / np.hypot(base, chat), chat / np.hypot(base, chat)),
    }
    for axis, (name, (along_base, along_chat)) in zip(axes, fields.items(), strict=True):
        axis.quiver(base, chat, -along_base, -along_chat, color=PALETTE[0], width=0.006)
        axis.set(xlabel="decoder norm in base", title=name, xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), aspect="equal")
    axes[0].set_ylabel("decoder norm in chat")
    sns.despine(figure)
    return figure


def delta_histogram(summary: xr.Dataset) -> plt.Figure:
    """m25-delta-histogram: Δ coloured by class, latents that pass latent scaling overlaid, the chat end enlarged."""
    figure, axes = panels(summary, 3.2, sharey=True)
    limit, below_inset = thresholds(summary)["chat_only_above"], 0
    for name, axis in axes.items():
        one = select(summary, name)
        indices = alive(one)
        delta, kind = one["relative_norm"].values[indices], one["norm_class"].values[indices]
        specific = one["specific"].values[indices] == artifacts.flag(one["specific"], "chat")
        parts = [(delta[kind == i], CLASS_COLOURS[label], label) for i, label in enumerate(CLASSES)]
        _stacked(axis, parts, delta[specific], np.linspace(0, 1, 51))
        if (delta >= limit).any():
            below_inset = max(below_inset, np.histogram(delta, np.linspace(0, 1, 51))[0][33:].max())
            inset = axis.inset_axes([0.72, 0.55, 0.27, 0.42])
            _stacked(inset, parts, delta[specific], np.linspace(limit, 1, 11))
            inset.set_title(f"Δ ≥ {limit:g}: {(delta >= limit).sum()} latents")
        else:
            axis.text(0.98, 0.95, f"no latent with Δ ≥ {limit:g}", ha="right", va="top", transform=axis.transAxes)
        axis.set_xlabel(_delta_label(summary))
        axis.legend(loc="upper left")
    top = max(axis.get_ylim()[1] for axis in axes.values())
    room = 0.5 * (2 * below_inset) ** 1.9  # on a logarithmic scale: bars below the inset take half of the height
    next(iter(axes.values())).set(ylim=(0.5, max(8 * top, room)))
    label_rows(axes, "alive latents")
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
    columns = min(2, len(names))
    rows = -(-len(names) // columns)
    figure = plt.figure(figsize=(PAGE_WIDTH if columns > 1 else ONE_PANEL, 3.7 * rows))
    limits = thresholds(summary)
    edges = np.linspace(-0.5, 1.5, 41)
    for part, name in zip(figure.subfigures(rows, columns, squeeze=False).ravel(), names, strict=False):
        grid = part.add_gridspec(2, 2, width_ratios=[4, 1], height_ratios=[1, 4])
        axis = part.add_subplot(grid[1, 0])
        above, beside = part.add_subplot(grid[0, 0], sharex=axis), part.add_subplot(grid[1, 1], sharey=axis)
        one = select(summary, name)
        chat = leaning(one)
        groups = {_leaning_label(one, chat): (chat, CLASS_COLOURS["chat-only"])}
        groups["shared sample"] = (sample(np.setdiff1d(shared(one), chat), len(chat)), CLASS_COLOURS["shared"])
        for label, (chosen, colour) in groups.items():
            x, y = one["nu_reconstruction"].values[chosen], one["nu_error"].values[chosen]
            spans = [
                [v - one[f"nu_{t}_low"].values[chosen], one[f"nu_{t}_high"].values[chosen] - v]
                for t, v in (("reconstruction", x), ("error", y))
            ]
            axis.errorbar(
                x,
                y,
                xerr=np.abs(spans[0]),
                yerr=np.abs(spans[1]),
                fmt="none",
                ecolor=colour,
                elinewidth=0.5,
                alpha=0.35,
            )
            axis.scatter(x, y, s=6, color=colour, label=label)
            above.hist(x, edges, color=colour, alpha=0.6)
            beside.hist(y, edges, color=colour, alpha=0.6, orientation="horizontal")
        axis.axhline(limits["specific_error_below"], color="black", lw=0.8, ls="--")
        axis.axvline(limits["specific_reconstruction_below"], color="black", lw=0.8, ls="--")
        axis.set(xlim=(-0.5, 1.5), ylim=(-0.5, 1.5), xlabel="ν of the reconstruction", ylabel="ν of the error")
        axis.set(xticks=np.arange(-0.5, 1.6, 0.5), yticks=np.arange(-0.5, 1.6, 0.5))
        axis.legend(loc="lower right", title=f"{name}; bars: 95% over documents")
        above.tick_params(labelbottom=False)
        beside.tick_params(labelleft=False)
    sns.despine(figure)
    return figure


def _leaning_label(one: xr.Dataset, chosen: np.ndarray) -> str:
    lowest = one["relative_norm"].values[chosen].min() if len(chosen) else np.nan
    return f"{len(chosen)} most chat-leaning (Δ ≥ {lowest:.2f})"


def nu_threshold_counts(summary: xr.Dataset) -> plt.Figure:
    """m25-nu-threshold-counts: among equally many chat-leaning latents, how many have both ν below a threshold π."""
    figure, axis = plt.subplots(figsize=(ONE_PANEL, 3.2))
    steps = np.linspace(0, 1.2, 61)
    names = crosscoders(summary)
    for colour, name in zip(colours(len(names)), names, strict=True):
        counts = []
        for seed in seeds(summary, name):
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
    figure, axes = panels(summary, sharey=True)
    for name, axis in axes.items():
        one = select(summary, name)
        chosen = leaning(one, 10 * CHAT_SAMPLE)
        ranks = sum(_rank(one[f"nu_{target}"].values[chosen]) for target in ("error", "reconstruction"))
        axis.scatter(ranks, one["relative_norm"].values[chosen], s=8, alpha=0.6, color=PALETTE[3])
        axis.set_xlabel("rank of ν error + rank of ν reconstruction")
        axis.set_title(f"{name}: {len(chosen)} most chat-leaning")
    label_rows(axes, "relative norm Δ")
    sns.despine(figure)
    return figure


def _rank(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values, kind="stable"), kind="stable")


def cosine_by_class(summary: xr.Dataset) -> plt.Figure:
    """m25-cosine-by-class: cosine of the two decoder vectors by class of relative norm."""
    figure, axes = panels(summary, sharey=True)
    for name, axis in axes.items():
        one = select(summary, name)
        indices = alive(one)
        kind = one["norm_class"].values[indices]
        groups = [one["decoder_cosine"].values[indices[kind == i]] for i in range(len(CLASSES))]
        shown = [i for i, values in enumerate(groups) if len(values)]
        for i in shown:
            boxes = axis.boxplot(
                groups[i], positions=[i], widths=0.6, patch_artist=True, flierprops={"ms": 2}, manage_ticks=False
            )
            boxes["boxes"][0].set_facecolor(CLASS_COLOURS[CLASSES[i]])
        labels = [f"{label}\n({len(values)})" for label, values in zip(CLASSES, groups, strict=True)]
        axis.set(xticks=range(len(CLASSES)), xticklabels=labels, xlim=(-0.6, len(CLASSES) - 0.4))
    label_rows(axes, "cosine of the decoder vectors")
    sns.despine(figure)
    return figure


def twin_divergence(summary: xr.Dataset) -> plt.Figure:
    """m25-twin-divergence: of twins, a chat-only and a base-only latent of one direction, how apart they fire."""
    figure, axes = panels(summary, sharey=True)
    for name, axis in axes.items():
        values = summary["twin_divergence"].sel(crosscoder=name).values.ravel()
        values = values[np.isfinite(values)]
        axis.hist(values, np.linspace(0, 1, 21), color=PALETTE[3])
        axis.set(xlabel="tokens where one is high / where any is", title=f"{name}: {len(values)} twins, all seeds")
        if not len(values):
            axis.text(
                0.5,
                0.5,
                "no twins:\nno chat-only latent has the direction\nof a base-only one (cosine > 0.9)",
                transform=axis.transAxes,
                ha="center",
                va="center",
            )
    label_rows(axes, "twins")
    sns.despine(figure)
    return figure


def template(summary: xr.Dataset) -> plt.Figure:
    """m25-template: ν of chat-leaning latents, template-heavy ones overlaid; share of activation on template tokens."""
    names = crosscoders(summary)
    figure, axes = plt.subplots(len(names), 3, figsize=(PAGE_WIDTH, 2.4 * len(names)), squeeze=False)
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
        row[0].legend()
        bins = np.linspace(0, 1, 26)
        for group, label, colour in ((alive(one), "all alive", PALETTE[7]), (chosen, "chat-leaning", PALETTE[3])):
            weights = np.full(len(group), 1 / max(len(group), 1))
            row[2].hist(
                one["template_share"].values[group],
                bins,
                weights=weights,
                histtype="step",
                lw=1.8,
                color=colour,
                label=label,
            )
        row[2].set(
            xlabel="share of activation\non template tokens", ylabel="share of latents", yscale="log", title=name
        )
        row[2].legend()
    sns.despine(figure)
    return figure


def _condition_label(condition: str) -> str:
    """A condition of causal patching in words."""
    count = condition.removeprefix("components ")
    if count != condition:
        return f"{count} principal component{'s' if count != '1' else ''}"
    return CONDITION_LABELS.get(condition, condition.replace(" half by", " ½ by"))


def _patched_conditions(one: xr.Dataset) -> list[str]:
    """The conditions that one crosscoder has, but for the first two checks and the random sets, which are shown otherwise."""
    measured = np.isfinite(one["divergence"]).all(["seed", "segment"])
    names = [str(name) for name in one["condition"].values[measured.values]]
    return [name for name in names if name not in ("none", "all and error") and not name.startswith(RANDOM)]


def _patches(axis: plt.Axes, one: xr.Dataset, conditions: list[str]) -> None:
    """One segment of one crosscoder: a row per condition, a mark per seed, and the range of the random sets behind."""
    random = one["divergence"].isel(condition=[str(name).startswith(RANDOM) for name in one["condition"].values])
    if random.notnull().any():
        axis.axvspan(float(random.min()), float(random.max()), color=PALETTE[7], alpha=0.35, lw=0, label="random sets")
    axis.axvline(
        float(one["divergence"].sel(condition="none").mean()), color="black", lw=0.8, ls="--", label="nothing patched"
    )
    for s, seed in enumerate(one["seed"].values):
        here = one.sel(seed=seed, condition=conditions)
        value = here["divergence"].values
        bars = np.abs([value - here["divergence_low"], here["divergence_high"] - value])
        place = np.arange(len(conditions)) + 0.34 * (s - (one.sizes["seed"] - 1) / 2)
        colours = [PALETTE[7] if condition.startswith(CONTROLS) else PALETTE[3] for condition in conditions]
        for i, colour in enumerate(colours):
            style = {"fmt": SEED_MARKS[s % 4], "ms": 3, "lw": 0.9, "color": "0.35" if colour == PALETTE[7] else colour}
            axis.errorbar(value[i], place[i], xerr=bars[:, [i]], **style, label=f"seed {seed}" if i == 0 else None)


def divergence(summary: xr.Dataset) -> plt.Figure:
    """m25-kl-bars: KL from the chat model's own next-token distributions under every patch, by response segment."""
    segments = [str(name) for name in summary["segment"].values]
    rows = {name: _patched_conditions(of(summary, name)) for name in crosscoders(summary)}
    heights = [1 + len(conditions) for conditions in rows.values()]
    size = (PAGE_WIDTH, 1 + 0.21 * sum(heights))
    figure, axes = plt.subplots(
        len(rows), len(segments), figsize=size, squeeze=False, sharex="col", sharey="row", height_ratios=heights
    )
    tokens = summary["segment_tokens"].values.reshape(-1, len(segments)).max(0)
    for row, (name, conditions) in zip(axes, rows.items(), strict=True):
        for axis, segment, count in zip(row, segments, tokens, strict=True):
            _patches(axis, of(summary, name).sel(segment=segment), conditions)
            axis.grid(axis="y", lw=0.4)
            if name == next(iter(rows)):
                axis.set_title(f"{SEGMENT_LABELS[segment]} (n = {count:,})")
        row[0].set_yticks(range(len(conditions)), [_condition_label(condition) for condition in conditions])
        row[0].set_ylim(len(conditions) - 0.4, -0.6)
        row[0].set_ylabel(name, fontweight="bold")
    for axis in axes[-1]:
        axis.set_xlim(0, None)
    figure.supxlabel("KL divergence from the chat model, nats per token (grey: controls; bars: 95% over conversations)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    sns.despine(figure)
    return figure


# -- the known answer --------------------------------------------------------------------------------------------------


def _lift_bars(axis: plt.Axes, one: xr.Dataset) -> None:
    """The lift of every group and seed of one crosscoder, with intervals."""
    for s, seed in enumerate(one["seed"].values):
        here = one.sel(seed=seed)
        value = np.fmax(here["enrichment_lift"].values, LOWEST_LIFT)
        bars = np.abs([value - here["enrichment_lift_low"], here["enrichment_lift_high"] - value])
        style = {
            "fmt": SEED_MARKS[s % 4],
            "ms": 4,
            "capsize": 2,
            "color": PALETTE[(3 + s) % len(PALETTE)],
            "label": f"seed {seed}",
        }
        axis.errorbar(np.arange(len(value)) + 0.15 * s, value, yerr=bars, **style)


def planted_enrichment(summary: xr.Dataset) -> plt.Figure:
    """ours-planted-enrichment: lift of planted behaviours and template tokens by quantile of Δ, beside its null."""
    top = float(summary["enrichment_lift_high"].max())
    if not np.isfinite(top):
        raise NothingToDraw("No test token belongs to a planted behaviour or to a chat template.")
    names = crosscoders(summary)
    labels = [str(name) for name in summary["category"].values]
    figure, axes = plt.subplots(
        len(names), len(labels), figsize=(PAGE_WIDTH, 0.5 + 2.1 * len(names)), squeeze=False, sharex=True, sharey=True
    )
    quantiles = summary["delta_quantile"].values.reshape(-1, summary.sizes["edge"])[0]
    ticks = [f"{100 * a:g}–{100 * b:g}" for a, b in zip(quantiles, quantiles[1:], strict=False)]
    for row, name in zip(axes, names, strict=True):
        for axis, label in zip(row, labels, strict=True):
            one = select(summary, name).sel(category=label)
            place = np.arange(len(ticks))
            axis.fill_between(
                place,
                np.fmax(one["enrichment_null_low"], LOWEST_LIFT),
                one["enrichment_null_high"],
                color=PALETTE[7],
                alpha=0.4,
                label="latents permuted",
            )
            _lift_bars(axis, of(summary, name).sel(category=label))
            axis.axhline(1, color="black", lw=0.8)
            axis.set(title=label.replace("_", " ").replace(" or ", "\nor ") if name == names[0] else "", xticks=place)
            axis.set_xticklabels(ticks, rotation=90)
            axis.set(yscale="log")
            axis.minorticks_off()
        row[0].set_ylabel(f"{name}:\nlift over the token base rate")
    axes[0, 0].set_ylim(LOWEST_LIFT, 1.3 * max(top, 1.0))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5, frameon=False)
    figure.supxlabel(f"quantile group of Δ among alive latents, % (right: {summary.attrs['chat']})")
    sns.despine(figure)
    return figure


def behaviour_rates(summary: xr.Dataset) -> plt.Figure:
    """ours-behaviour-rates: how often each planted behaviour shows before and after fine-tuning."""
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH, 2.8))
    behaviours = [str(name) for name in summary["measured_behaviour"].values]
    step = 0.8 / summary.sizes["model"]
    for i, model in enumerate(summary["model"].values):
        one = summary.sel(model=model)
        rate = one["behaviour_rate"].values
        bars = np.abs([rate - one["behaviour_rate_low"].values, one["behaviour_rate_high"].values - rate])
        axis.bar(
            np.arange(len(behaviours)) + step * (i - (summary.sizes["model"] - 1) / 2),
            rate,
            0.95 * step,
            yerr=bars,
            capsize=3,
            color=PALETTE[[7, 3, 0, 2][i % 4]],
            label=str(model),
        )
    axis.set(xticks=range(len(behaviours)), ylabel="share of held-out prompts", ylim=(0, 1.05))
    axis.set_xticklabels([name.replace("_", "\n") for name in behaviours])
    figure.legend(title="bars: 95% Wilson", loc="outside right upper")
    sns.despine(figure)
    return figure
