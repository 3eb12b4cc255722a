"""Figures and sentences that say how far a result can be trusted: null controls and agreement of seeds."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
import seaborn as sns
import xarray as xr

from crosscoders.analysis import bootstrap
from crosscoders.report.figures import (
    CLASS_COLOURS,
    CLASSES,
    PAGE_WIDTH,
    PALETTE,
    SMALLEST_TEXT,
    NothingToDraw,
    alive,
    colours,
    crosscoders,
    heatmap,
    of,
)

LOWEST_RATE = 1e-4
"""Lowest rate shown: rates of 0 are drawn here on a logarithmic axis."""
MATCHED_ABOVE = 0.7
RATES = {"chat-only": "chat-only by norm", "chat-specific": "chat-specific by ν", "chat-only and chat-specific": "both"}
"""Calls whose rates are compared with nulls, and how figures name them."""


def interval(counts: list[tuple[int, int]], confidence: float = 0.95) -> tuple[float, float, float]:
    """A rate over all (hits, total) with its Wilson interval."""
    hits, total = (sum(column) for column in zip(*counts, strict=True))
    ends = scipy.stats.binomtest(int(hits), max(int(total), 1)).proportion_ci(confidence, "wilson")
    return hits / max(total, 1), ends.low, ends.high


def rates(summary: xr.Dataset, crosscoder: str) -> dict[str, tuple[float, float, float, list[float]]]:
    """How often alive latents are called chat-only by norm, chat-specific by latent scaling, and both.

    Returns
    -------
    dict
        By call: the rate over all seeds, the ends of its 95% interval, and the rate of every seed. The interval joins
        that of a bootstrap over documents with Wilson's over latents, which alone bounds a rate of 0.
    """
    one, by_call = of(summary, crosscoder), {}
    counts, replicates = one["called"], one["called_replicate"].sum("seed")
    alive = counts.sel(call="alive").values
    for call in RATES:
        hits = counts.sel(call=call).values
        rate, low, high = interval(list(zip(hits, alive, strict=True)))
        drawn = replicates.sel(call=call) / replicates.sel(call="alive").clip(min=1)
        ends = bootstrap.interval(drawn.values, 0.95)
        by_call[call] = (
            rate,
            min(low, float(ends[0])),
            max(high, float(ends[1])),
            (hits / np.maximum(alive, 1)).tolist(),
        )
    return by_call


def enrichment(summary: xr.Dataset, crosscoder: str) -> tuple[float, ...] | None:
    """Lift of planted behaviours and template tokens in the group of latents of highest Δ.

    Parameters
    ----------
    summary : xarray.Dataset
    crosscoder : str

    Returns
    -------
    (lift, low, high, null_low, null_high) or None
        The mean over seeds, the ends of its 95% interval over documents (lowest and highest of all seeds), and those
        where latents are permuted. None where no test token belongs to a behaviour or to the template.
    """
    if "enrichment_lift" not in summary:
        return None
    top = of(summary, crosscoder).sel(category="planted_or_template").isel(group=-1)
    values = {name: top[f"enrichment_{name}"].values for name in ("lift", "lift_low", "lift_high")}
    values |= {name: top[f"enrichment_{name}"].values for name in ("null_low", "null_high")}
    if not all(np.isfinite(value).any() for value in values.values()):
        return None
    ends = (np.nanmean, np.nanmin, np.nanmax, np.nanmin, np.nanmax)
    return tuple(float(end(value)) for end, value in zip(ends, values.values(), strict=True))


def compared(summary: xr.Dataset, controls: dict[str, xr.Dataset]) -> list[str]:
    """Crosscoders of a summary that were trained on all of its nulls too.

    Raises
    ------
    NothingToDraw
        There is none.
    """
    names = [name for name in crosscoders(summary) if all(name in crosscoders(other) for other in controls.values())]
    if not names:
        raise NothingToDraw("None of this setting's crosscoders was trained on its null controls too.")
    return names


def nulls(summary: xr.Dataset, controls: dict[str, xr.Dataset]) -> plt.Figure:
    """ours-nulls: rates of chat-only and chat-specific latents, and the enrichment of the highest Δ, under every null."""
    names, columns = compared(summary, controls), {"real pair": summary, **controls}
    lifts = {name: {column: enrichment(one, name) for column, one in columns.items()} for name in names}
    rows = 1 + any(lift for group in lifts.values() for lift in group.values())
    figure, axes = plt.subplots(rows, len(names), figsize=(PAGE_WIDTH, 0.4 + 2.6 * rows), squeeze=False, sharey="row")
    for c, name in enumerate(names):
        for place, column in enumerate(columns.values()):
            for r, (call, found) in enumerate(rates(column, name).items()):
                _rate(axes[0, c], place + 0.22 * (r - 1), found, r, RATES[call] if place == 0 else None)
        axes[0, c].set(yscale="log", title=name, ylim=(LOWEST_RATE / 1.5, 1.2))
        for axis in axes[1:, c]:
            _lifts(axis, lifts[name])
        for axis in axes[:, c]:
            axis.set_xticks(
                range(len(columns)),
                [label.replace("null-", "").replace("-", " ") for label in columns],
                rotation=40,
                ha="right",
            )
            axis.set_xlim(-0.5, len(columns) - 0.5)
    axes[0, 0].set_ylabel("share of alive latents (hollow: none)")
    title = "bars: 95%, over documents or latents; dots: seeds"
    figure.legend(*axes[0, 0].get_legend_handles_labels(), title=title, loc="outside upper center", ncols=3)
    if rows > 1:
        axes[1, 0].set_ylabel("lift of planted behaviours and\ntemplate tokens at the highest Δ")
        axes[1, 0].legend()
    sns.despine(figure)
    return figure


def _rate(axis: plt.Axes, place: float, found: tuple, kind: int, label: str | None) -> None:
    """A rate of one kind of call on a logarithmic axis, with its interval and its seeds."""
    rate, low, high, seeds = found
    shown = max(rate, LOWEST_RATE)
    axis.errorbar(
        place,
        shown,
        yerr=[[shown - max(low, LOWEST_RATE)], [high - shown]],
        color=PALETTE[[3, 0, 2][kind]],
        marker="osD"[kind],
        ms=6,
        capsize=3,
        mfc=None if rate else "white",
        label=label,
    )
    axis.scatter([place + 0.06] * len(seeds), np.maximum(seeds, LOWEST_RATE), s=9, color="black", alpha=0.5, zorder=3)


def _lifts(axis: plt.Axes, lifts: dict[str, tuple[float, ...] | None]) -> None:
    """The enrichment of one crosscoder under every null, beside that of permuted latents."""
    found = {place: lift for place, lift in enumerate(lifts.values()) if lift is not None}
    if found:
        lift, low, high, null_low, null_high = np.array(list(found.values())).T
        places = np.array(list(found))
        axis.bar(places, null_high - null_low, 0.6, null_low, color=PALETTE[7], alpha=0.4, label="latents permuted")
        bars = [lift - low, high - lift]
        axis.errorbar(places, lift, yerr=bars, fmt="o", color="black", capsize=3, label="95% over documents, all seeds")
    axis.axhline(1, color="black", lw=0.8)
    axis.set_ylim(0, None)


def stability(summary: xr.Dataset, controls: dict[str, xr.Dataset] | None = None) -> plt.Figure:
    """ours-stability: latents of two seeds and their classes, and the spaces that latents span, beside nulls.

    A row for each crosscoder.
    """
    summary = repeated(summary)
    names, spanned = crosscoders(summary), "subspace_overlap" in summary
    size = (PAGE_WIDTH, 0.9 + (1 + spanned) * (0.75 + 0.36 * len(names)))
    figure, rows = plt.subplots(1 + spanned, 3, figsize=size, squeeze=False, sharey=True)
    for row, name in enumerate(names):
        cosines, agreement = _matched(summary, name)
        _cosines(rows[0, 0], row, cosines)
        _agreement(rows[0, 1], row, agreement)
        _class_counts(rows[0, 2], row, summary.sel(crosscoder=name))
    rows[0, 0].axvline(MATCHED_ABOVE, color="black", lw=0.8, ls="--")
    rows[0, 0].set(
        xlabel="largest decoder cosine with a latent\nof another seed: 5, 25, 50, 75 and 95%", xlim=(0, 1.01)
    )
    rows[0, 1].set(
        xlabel=f"same class in the other seed\n(cosine > {MATCHED_ABOVE:g}; bars: 95% Wilson)", xlim=(-0.03, 1.03)
    )
    rows[0, 2].set_xlabel("alive latents by class of relative norm,\na bar per seed")
    if spanned:
        _draw_spans(rows[1], summary, controls or {})
    rows[0, 0].set_yticks(range(len(names)), names)
    rows[0, 0].set_ylim(len(names) - 0.5, -0.5)
    handles = [plt.Rectangle((0, 0), 1, 1, color=CLASS_COLOURS[label], label=label) for label in CLASSES]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(CLASSES), frameon=False)
    sns.despine(figure)
    return figure


def _cosines(axis: plt.Axes, row: int, cosines: np.ndarray) -> None:
    """Five quantiles of the cosines of one crosscoder, and the share above the limit."""
    lowest, low, middle, high, highest = np.quantile(cosines, [0.05, 0.25, 0.5, 0.75, 0.95])
    axis.plot([lowest, highest], [row, row], color="0.3", lw=0.8)
    axis.plot([low, high], [row, row], color="0.3", lw=3, solid_capstyle="butt")
    axis.plot(middle, row, "o", color="black", ms=4)
    share = f"{np.mean(cosines > MATCHED_ABOVE):.0%} above {MATCHED_ABOVE:g}"
    axis.text(0.01, row - 0.17, share, fontsize=SMALLEST_TEXT, va="bottom")


def _agreement(axis: plt.Axes, row: int, agreement: dict[str, np.ndarray]) -> None:
    """For every class the share of matched latents that have it in the other seed too."""
    for i, (label, kept) in enumerate(agreement.items()):
        if len(kept):
            rate, low, high = interval([(int(kept.sum()), len(kept))])
            at = row + 0.17 * (i - (len(agreement) - 1) / 2)
            bars = [[max(rate - low, 0)], [max(high - rate, 0)]]
            axis.errorbar(rate, at, xerr=bars, fmt="o", ms=4, capsize=2, color=CLASS_COLOURS[label])


def repeated(summary: xr.Dataset) -> xr.Dataset:
    """The crosscoders that were trained with several seeds.

    Raises
    ------
    NothingToDraw
        There is none.
    """
    several = np.isfinite(summary["matched_cosine"]).any(["seed", "other_seed", "latent"])
    if not several.any():
        raise NothingToDraw("No latent of this setting's crosscoders has another in a second seed.")
    return summary.sel(crosscoder=several)


def spans(summary: xr.Dataset, crosscoder: str, leaning: str, size: int) -> dict[str, np.ndarray]:
    """Overlaps of what latents of two seeds span, and those of nulls, each (pairs of seeds, 3): value, low, high.

    Latents that lean to the base are compared in what they write to it, all others in what they write to the other
    source of the contrast. Pairs of which nothing is known are left out.
    """
    source = summary.attrs["base" if leaning == "base" else "chat"]
    one = summary.sel(crosscoder=crosscoder, source=source, subspace_size=size)
    seeds, found = summary["seed"].values, {}
    pairs = [(a, b) for a in seeds for b in seeds if a < b]
    for name in ("overlap", "random_latents", "random_directions"):
        columns = [one[f"subspace_{name}{end}"] for end in ("", "_low", "_high")]
        if name == "overlap":
            columns = [column.sel(leaning=leaning) for column in columns]
        found[name] = np.array([[float(c.sel(seed=a, other_seed=b)) for c in columns] for a, b in pairs]).reshape(-1, 3)
    known = np.isfinite(found["overlap"][:, 0])
    return {name: values[known] for name, values in found.items()}


def _draw_spans(axes: np.ndarray, summary: xr.Dataset, controls: dict[str, xr.Dataset]) -> None:
    """A panel for every size of the span: overlaps by crosscoder and leaning, a mark per pair of seeds."""
    names, places = crosscoders(summary), {"base": -0.22, "shared": 0.0, "chat": 0.22}
    of_leaning = {
        leaning: CLASS_COLOURS[label]
        for leaning, label in zip(places, ("base-only", "shared", "chat-only"), strict=True)
    }
    for axis, size in zip(axes, summary["subspace_size"].values, strict=True):
        drawn = False
        for c, name in enumerate(names):
            for leaning, place in places.items():
                found = spans(summary, name, leaning, size)
                for pair, (value, low, high) in enumerate(found["overlap"]):
                    at, drawn = c + place + 0.05 * pair, True
                    bars = [[value - low], [high - value]]
                    axis.errorbar(value, at, xerr=bars, fmt="o", ms=4, capsize=2, color=of_leaning[leaning])
                    for kind, colour in (("random_latents", "0.6"), ("random_directions", "black")):
                        _, lowest, highest = found[kind][pair]
                        axis.fill_betweenx([at - 0.09, at + 0.09], lowest, highest, color=colour, alpha=0.5, lw=0)
                for other in (
                    one for one in controls.values() if name in crosscoders(one) and "subspace_overlap" in one
                ):
                    values = spans(other, name, leaning, size)["overlap"][:, 0]
                    axis.scatter(values, [c + place] * len(values), marker="x", s=24, color=of_leaning[leaning])
        axis.set(xlabel=f"overlap of what {size} latents span\nin two seeds (bars: 95% jackknife)", xlim=(-0.03, 1.03))
        if not drawn:
            reason = "too few latents are alive in two seeds,\nor they would fill half of the source"
            axis.text(0.5, 0.5, reason, ha="center", va="center", transform=axis.transAxes)
    for leaning, label in {"base": "lowest Δ, in base", "shared": "Δ nearest ½", "chat": "highest Δ"}.items():
        axes[0].scatter([], [], color=of_leaning[leaning], label=label)
    axes[0].scatter([], [], marker="s", color="0.6", label="random latents (95%)")
    axes[0].scatter([], [], marker="s", color="black", label="random directions (95%)")
    if controls:
        axes[0].scatter([], [], marker="x", color="black", label="null controls")
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)


def _class_counts(axis: plt.Axes, row: int, one: xr.Dataset) -> None:
    """A bar of alive latents for every seed of a crosscoder, stacked by class."""
    count = one.sizes["seed"]
    for i in range(count):
        of_seed, left = one.isel(seed=i), 0
        counts = np.bincount(of_seed["norm_class"].values[alive(of_seed)], minlength=len(CLASSES))
        at = row + 0.7 * ((i + 0.5) / count - 0.5)
        for label, latents in zip(CLASSES, counts, strict=True):
            axis.barh(at, latents, 0.6 / count, left=left, color=CLASS_COLOURS[label])
            left += latents


def _matched(summary: xr.Dataset, name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Cosines of all matched latents over pairs of seeds, and for each class whether matched latents keep it."""
    cosines: list[np.ndarray] = []
    kept: dict[str, list[np.ndarray]] = {label: [] for label in CLASSES}
    for seed in summary["seed"].values:
        one = summary.sel(crosscoder=name, seed=seed)
        for other in summary["seed"].values:
            if other == seed:
                continue
            match = one.sel(other_seed=other)
            indices = np.flatnonzero(match["matched_latent"].values >= 0)
            cosine = match["matched_cosine"].values[indices]
            cosines.append(cosine)
            classes = one["norm_class"].values[indices]
            theirs = (
                summary["norm_class"].sel(crosscoder=name, seed=other).values[match["matched_latent"].values[indices]]
            )
            for i, label in enumerate(CLASSES):
                chosen = (classes == i) & (cosine > MATCHED_ABOVE)
                kept[label].append((theirs == classes)[chosen])
    return np.concatenate(cosines), {label: np.concatenate(parts) for label, parts in kept.items()}


def _range(summary: xr.Dataset, variable: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over seeds, lowest lower and highest upper end of their intervals."""
    return (
        summary[variable].mean("seed").values,
        summary[f"{variable}_low"].min("seed").values,
        summary[f"{variable}_high"].max("seed").values,
    )


def aligned(summary: xr.Dataset) -> plt.Figure:
    """ours-aligned: variance explained from every source's code to every source, and overlap of codes, over seeds."""
    names = [str(name) for name in summary["aligned"].values]
    figure, axes = plt.subplots(len(names), 2, figsize=(PAGE_WIDTH, 3.3 * len(names)), squeeze=False)
    read = np.isfinite(summary["aligned_l0"]).any(["aligned", "seed"])  # aligned crosscoders read no differences
    sources = [str(name) for name in summary["source"].values[read.values]]
    panels = (
        ("aligned_fraction_variance_explained", "fraction of variance explained"),
        ("aligned_overlap", "overlap of active latents (Jaccard)"),
    )
    for row, name in zip(axes, names, strict=True):
        one = summary.sel(aligned=name, source=sources, other_source=sources)
        for axis, (variable, label) in zip(row, panels, strict=True):
            heatmap(axis, *_range(one, variable), sources, label)
            axis.set(title=f"{name} (95% over documents)", xlabel="to", ylabel="from")
    return figure


def transfer(summary: xr.Dataset, elsewhere: dict[str, xr.Dataset]) -> plt.Figure:
    """ours-transfer: variance explained where crosscoders were trained and on other activations.

    Bars are by source; those of aligned crosscoders are from every source's code to every source.
    """
    columns = {"where trained": summary, **elsewhere}
    bars: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    for label, one in columns.items():
        for name in crosscoders(one):
            explained = _range(one.sel(crosscoder=name), "fraction_variance_explained")
            for s, source in enumerate(one["source"].values):
                bars.setdefault(f"{name}: {source}", []).append((label, *(values[s] for values in explained)))
        for name in one["aligned"].values if "aligned" in one.dims else ():
            explained = _range(one.sel(aligned=name), "aligned_fraction_variance_explained")
            for s, source in enumerate(one["source"].values):
                for t, other in enumerate(one["other_source"].values):
                    if np.isfinite(explained[0][s, t]):
                        bars.setdefault(f"{name}: {source} → {other}", []).append(
                            (label, *(v[s, t] for v in explained))
                        )
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH, 0.9 + 0.3 * len(bars)))
    for c, label in enumerate(columns):
        rows = [(r, *bar[1:]) for r, group in enumerate(bars.values()) for bar in group if bar[0] == label]
        if not rows:
            continue
        place, value, low, high = (np.array(column) for column in zip(*rows, strict=True))
        axis.errorbar(
            value,
            place + 0.18 * (c - (len(columns) - 1) / 2),
            xerr=[value - low, high - value],
            fmt="osD^v"[c % 5],
            color=colours(len(columns))[c],
            capsize=3,
            label=label,
        )
    axis.set_yticks(range(len(bars)), list(bars))
    axis.invert_yaxis()
    axis.grid(axis="y", lw=0.4)
    axis.set(xlabel="fraction of variance explained (bars: 95% over documents, all seeds)")
    axis.legend()
    sns.despine(figure)
    return figure


# -- sentences ---------------------------------------------------------------------------------------------------------


def null_sentences(summary: xr.Dataset, controls: dict[str, xr.Dataset]) -> str:
    """Rates of both calls and enrichment under every null, beside those on the real pair."""
    lines, columns = [], {"real pair": summary, **controls}
    for name in crosscoders(summary):
        for call in ("chat-only", "chat-specific"):
            parts = []
            for column, dataset in columns.items():
                if name in crosscoders(dataset):
                    rate, low, high, _ = rates(dataset, name)[call]
                    parts.append(f"{column} {100 * rate:.2f}% ({100 * low:.2f} to {100 * high:.2f})")
            lines.append(f"- **{name}**, {RATES[call]}: " + "; ".join(parts) + ".")
        lifts = [(column, enrichment(one, name)) for column, one in columns.items() if name in crosscoders(one)]
        parts = [
            f"{column} {lift[0]:.1f} ({lift[1]:.1f} to {lift[2]:.1f}; latents permuted {lift[3]:.1f} to {lift[4]:.1f})"
            for column, lift in lifts
            if lift is not None
        ]
        if parts:
            lines.append(f"- **{name}**, lift of planted behaviours and template at the highest Δ: {'; '.join(parts)}.")
    return "\n".join(lines)


def stability_sentences(summary: xr.Dataset, controls: dict[str, xr.Dataset] | None = None) -> str:
    """How many latents come back in another seed, and how much of what those of the highest Δ span does."""
    lines, several = [], crosscoders(repeated(summary))
    for name in crosscoders(summary):
        if name not in several:
            lines.append(f"- **{name}** is one training, so that nothing can be said of other seeds.")
            continue
        cosines, agreement = _matched(summary, name)
        agree = np.concatenate(list(agreement.values()))
        lines.append(
            f"- **{name}**: {100 * np.mean(cosines > MATCHED_ABOVE):.0f}% of alive latents have one of cosine above "
            f"{MATCHED_ABOVE:g} in another seed (median cosine {np.median(cosines):.2f}); of these, "
            f"{100 * agree.mean():.0f}% fall into the same class of relative norm.{_span_sentence(summary, name)}"
        )
    return "\n".join(lines)


def _span_sentence(summary: xr.Dataset, crosscoder: str) -> str:
    """How much of what the latents of highest Δ span comes back in another seed, for every size that is known."""
    parts = []
    for size in summary["subspace_size"].values if "subspace_overlap" in summary else []:
        found = spans(summary, crosscoder, "chat", size)
        if len(found["overlap"]):
            value, latents, directions = (values[:, 0].mean() for values in found.values())
            low, high = found["overlap"][:, 1].min(), found["overlap"][:, 2].max()
            parts.append(
                f"{value:.2f} [{low:.2f}, {high:.2f}] for {size} latents (random latents {latents:.2f}, random directions "
                f"{directions:.2f})"
            )
    return f" What the latents of highest Δ span overlaps between seeds by {', '.join(parts)}." if parts else ""


def transfer_sentences(summary: xr.Dataset, elsewhere: dict[str, xr.Dataset]) -> str:
    """What is lost on other activations, and what the same latents are called there."""
    lines = []
    for label, other in elsewhere.items():
        for name in crosscoders(other):
            here, there = (
                one.sel(crosscoder=name)["fraction_variance_explained"].mean("seed").values for one in (summary, other)
            )
            sources = ", ".join(
                f"{source} {a:.3f} to {b:.3f}" for source, a, b in zip(other["source"].values, here, there, strict=True)
            )
            specific = [100 * rates(one, name)["chat-specific"][0] for one in (summary, other)]
            lines.append(
                f"- **{name}** on {label}: variance explained goes from where it was trained, by source: {sources}; "
                f"{specific[0]:.2f}% of alive latents are chat-specific there, {specific[1]:.2f}% here."
            )
    return "\n".join(lines)
