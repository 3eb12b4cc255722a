"""The figure of latents of a crosscoder that compares three sources or more, and its sentences."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.colors import LogNorm

from crosscoders.report.figures import PAGE_WIDTH, PALETTE, SEED_MARKS, NothingToDraw, crosscoders, thresholds

LOWEST_SHARE = 1e-4
"""Lowest share shown: shares of 0 are drawn here on a logarithmic axis."""
MOST_SUBSETS = 15
"""Subsets shown at most, the most frequent ones."""
HEXAGONS = 36
"""Hexagons along the base of the triangle."""
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])
"""Where a triangle shows latents that are written to one source alone: left, right, top."""
TRIANGLE = 3
"""Sources whose relative norms a triangle shows."""


def compared(summary: xr.Dataset) -> xr.Dataset:
    """The crosscoders of a summary that read all sources of the contrast.

    Raises
    ------
    NothingToDraw
        There is none.
    """
    chosen = (summary["subset_count"] >= 0).all(["seed", "subset"])
    if not chosen.any():
        raise NothingToDraw("No crosscoder of this setting reads all sources of the contrast.")
    return summary.sel(crosscoder=chosen)


def share(one: xr.Dataset, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A count by subset over all latents that are alive, with the ends of its interval, each (..., subset)."""
    total = np.maximum(one["subset_count"].values.sum(-1, keepdims=True), 1)
    return tuple(np.clip(one[f"{name}{end}"].values / total, 0, 1) for end in ("", "_low", "_high"))


def shown_subsets(summary: xr.Dataset) -> list[str]:
    """The subsets with the most latents, by growing number of sources; all that are there where a triangle shows them."""
    names = [str(name) for name in summary["subset"].values]
    if summary.sizes["contrast_source"] > TRIANGLE:
        counts = summary["subset_count"].sum(["crosscoder", "seed"]).values
        order = np.argsort(-counts, kind="stable")[:MOST_SUBSETS]
        names = [names[i] for i in sorted(order) if counts[i] > 0]
    return sorted(names, key=lambda name: name.count("+"))


def simplex(summary: xr.Dataset, controls: dict[str, xr.Dataset]) -> plt.Figure:
    """ours-simplex: relative norms of three sources in a triangle, and how many latents each subset of sources has."""
    summary = compared(summary)
    names, subsets = crosscoders(summary), shown_subsets(summary)
    sources = [str(name) for name in summary["contrast_source"].values]
    three = len(sources) == TRIANGLE
    figure = plt.figure(figsize=(PAGE_WIDTH, 0.7 + 2.9 * len(names)))
    cells = figure.add_gridspec(
        2 * len(names), 1 + three, width_ratios=[1, 1.25][-1 - three :], height_ratios=[2.4, 1] * len(names)
    )
    handles: dict[str, object] = {}
    for c, name in enumerate(names):
        if three:
            _triangle(figure.add_subplot(cells[2 * c : 2 * c + 2, 0]), summary.sel(crosscoder=name), sources)
        above, below = (figure.add_subplot(cells[2 * c + row, -1]) for row in (0, 1))
        nulls = {label: one.sel(crosscoder=name) for label, one in controls.items() if _has(one, name)}
        _shares(above, summary.sel(crosscoder=name), subsets, nulls)
        above.set_title(name)
        _members(below, subsets, sources, summary.sizes["subset"])
        handles |= dict(zip(*reversed(above.get_legend_handles_labels()), strict=True))
    title = "bars: 95% over documents"
    figure.legend(handles.values(), handles.keys(), title=title, loc="outside upper center", ncols=4, frameon=False)
    return figure


def _has(null: xr.Dataset, crosscoder: str) -> bool:
    """Whether a null has the subset classes of a crosscoder."""
    return "subset_count" in null and crosscoder in crosscoders(null)


def _triangle(axis: plt.Axes, one: xr.Dataset, sources: list[str]) -> None:
    """Relative norms of alive latents of the first seed as a density on the triangle, with the borders of classes."""
    first = one.isel(seed=0)
    chosen = (first["density"].values > 0) & (first["subset_class"].values > 0)
    x, y = (first["relative_norms"].values[chosen] @ CORNERS).T
    if chosen.any():
        drawn = axis.hexbin(
            x, y, gridsize=HEXAGONS, extent=(0, 1, 0, 1), mincnt=1, norm=LogNorm(vmin=1), cmap="viridis_r"
        )
        label = "latents (dashed: borders of the subsets)"
        axis.figure.colorbar(drawn, ax=axis, shrink=0.6, label=label, location="bottom", pad=0.02, format="%d")
    axis.plot(*CORNERS[[0, 1, 2, 0]].T, color="black", lw=0.8)
    for border in class_borders(float(thresholds(one)["present_above"])):
        axis.plot(*(border @ CORNERS).T, color="0.35", lw=0.7, ls="--")
    places = ((-0.02, -0.03, "left", "top"), (1.02, -0.03, "right", "top"), (0.5, 0.75**0.5 + 0.03, "center", "bottom"))
    for source, (at, height, aside, above) in zip(sources, places, strict=True):
        axis.text(at, height, source, ha=aside, va=above)
    axis.set(xlim=(-0.05, 1.05), ylim=(-0.1, 0.98), aspect="equal")
    axis.set_title(f"{one['crosscoder'].item()}, seed {int(first['seed'])}: {chosen.sum():,} alive latents")
    axis.set_axis_off()


def class_borders(present_above: float) -> list[np.ndarray]:
    """Where one of three relative norms is a share of the largest, for each of them: (3, 3) points on the simplex."""
    borders = []
    for s in range(TRIANGLE):
        corners = np.array([[1, 0], [1, 1], [0, 1]], float)  # the two other norms, of which the larger is 1
        norms = np.insert(corners, s, present_above, axis=1)
        borders.append(norms / norms.sum(1, keepdims=True))
    return borders


def _shares(axis: plt.Axes, one: xr.Dataset, subsets: list[str], nulls: dict[str, xr.Dataset]) -> None:
    """Share of alive latents of every subset: a mark per seed, those that latent scaling confirms, and the nulls."""
    chosen = [list(one["subset"].values).index(name) for name in subsets]
    place, everything = np.arange(len(subsets)), one.sizes["contrast_source"]
    proper = np.array([name.count("+") + 1 < everything for name in subsets])
    kinds = (
        ("subset_count", "written to these", PALETTE[0]),
        ("subset_specific_count", "and specific by ν", PALETTE[3]),
    )
    for s, seed in enumerate(one["seed"].values):
        for k, (name, label, colour) in enumerate(kinds):
            value, low, high = (part[chosen] for part in share(one.sel(seed=seed), name))
            at = place - 0.3 + 0.2 * k + 0.08 * (s - (one.sizes["seed"] - 1) / 2)
            kept = proper if k else np.ones_like(proper)
            _marks(
                axis,
                at[kept],
                [part[kept] for part in (value, low, high)],
                SEED_MARKS[s % 4],
                colour,
                f"{label}, seed {seed}",
            )
    for n, (label, null) in enumerate(nulls.items()):
        seeds = null.sizes["seed"]
        for s in range(seeds):
            at = place + 0.12 + 0.28 * (n + (s + 0.5) / seeds) / len(nulls)
            ends = [part[chosen] for part in share(null.isel(seed=s), "subset_count")]
            named = f"null: {label.removeprefix('null-').replace('-', ' ')}" if s == 0 else None
            _marks(axis, at, ends, "xd+v"[n % 4], ("0.35", "0.6")[n % 2], named)
    axis.set(
        yscale="log",
        ylim=(LOWEST_SHARE / 1.6, 1.5),
        xlim=(-0.6, len(subsets) - 0.4),
        ylabel="share of alive latents\n(at the foot: none)",
    )
    axis.set_xticks([])
    sns.despine(ax=axis)


def _marks(
    axis: plt.Axes, at: np.ndarray, ends: list[np.ndarray], mark: str, colour: object, label: str | None
) -> None:
    """Shares with their intervals on a logarithmic axis; those of 0 stand at its foot."""
    value, low, high = (np.fmax(part, LOWEST_SHARE) for part in ends)
    bars = np.fmax([value - low, high - value], 0)
    axis.errorbar(at, value, yerr=bars, fmt="none", ecolor=colour, elinewidth=0.8)
    axis.scatter(at, value, s=12, marker=mark, linewidths=0.8, color=colour, label=label)


def _members(axis: plt.Axes, subsets: list[str], sources: list[str], known: int) -> None:
    """Which sources each subset has, of so many subsets that are known: a dot for each, joined."""
    for place, name in enumerate(subsets):
        rows = [sources.index(part) for part in name.split("+")]
        axis.scatter([place] * len(sources), range(len(sources)), s=14, color="0.88")
        axis.plot([place] * len(rows), rows, color="black", marker="o", ms=4, lw=1.2)
    axis.set_yticks(range(len(sources)), sources)
    axis.set(xticks=[], xlim=(-0.6, len(subsets) - 0.4), ylim=(len(sources) - 0.5, -0.5))
    some = f" ({len(subsets)} of {known} subsets)" if len(subsets) < known else ""
    axis.set_xlabel(f"sources that latents are written to{some}")
    axis.tick_params(axis="y", length=0)
    sns.despine(ax=axis, left=True, bottom=True)


# -- sentences ---------------------------------------------------------------------------------------------------------


def sentences(summary: xr.Dataset, controls: dict[str, xr.Dataset]) -> str:
    """Latents by subset with intervals, how many latent scaling confirms, and the same under every null."""
    summary = compared(summary)
    sources = [str(name) for name in summary["contrast_source"].values]
    everything, limit = "+".join(sources), thresholds(summary)["present_above"]
    lines = [
        f"- A latent counts as written to a source where its decoder norm is at least {limit:g} of its largest. Δ, its classes, "
        f"twins and enrichment, here and in all other figures, compare {sources[0]} (base) with {sources[-1]} (chat)."
    ]
    for name in crosscoders(summary):
        one = summary.sel(crosscoder=name)
        parts = [_counted(one, subset) for subset in shown_subsets(summary) if subset != everything]
        lines.append(f"- **{name}**, all sources: {_over_seeds(one, everything)}; some of them: {'; '.join(parts)}.")
        for label, null in controls.items():
            if _has(null, name):
                rest = [
                    f"{subset} {_over_seeds(null.sel(crosscoder=name), subset)}" for subset in shown_subsets(summary)
                ]
                lines.append(f"  Under the null {label}: {', '.join(rest)}.")
    return "\n".join(lines)


def _over_seeds(one: xr.Dataset, subset: str) -> str:
    """Count of a subset, every seed with its interval over documents."""
    at = one.sel(subset=subset)
    columns = (at[f"subset_count{end}"].values for end in ("", "_low", "_high"))
    return " and ".join(f"{value:,.0f} [{low:,.0f}, {high:,.0f}]" for value, low, high in zip(*columns, strict=True))


def _counted(one: xr.Dataset, subset: str) -> str:
    """Latents of a subset, and how many of them latent scaling confirms."""
    specific = one["subset_specific_count"].sel(subset=subset).values
    confirmed = " and ".join(f"{value:,.0f}" for value in specific)
    return f"{subset} {_over_seeds(one, subset)}, of which specific by ν {confirmed}"
