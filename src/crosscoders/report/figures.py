"""What all figures share, and the figures of training and evaluation.

A function that draws takes a summary dataset, in which it finds the crosscoders that it compares, and returns a figure.
`save` writes the figure as PNG and SVG with bytes that depend on the data alone.
"""

from __future__ import annotations

import io
import json
import textwrap
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr

from crosscoders import artifacts, storage

PALETTE = sns.color_palette("colorblind")
CLASS_COLOURS = {"base-only": PALETTE[0], "shared": PALETTE[7], "chat-only": PALETTE[3], "other": PALETTE[2]}
CLASSES = list(CLASS_COLOURS)
SEED_MARKS = "os^D"
CHAT_SAMPLE = 100
"""Most chat-leaning latents shown where no or few latents pass the threshold of a class."""


PAGE_WIDTH, ONE_PANEL = 7.2, 4.6
"""Width of a figure, that of a page on which it is printed unscaled, and of a figure of one panel, inches."""
WIDEST_INTERVALS = 5
"""Most rows of a matrix whose cells have room for an interval."""
SMALLEST_TEXT = 7
"""No text of a figure is smaller, points."""
TEXT = {
    "font.size": 8,
    "figure.titlesize": 8.5,
    "figure.labelsize": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "legend.fontsize": 7.5,
    "legend.title_fontsize": 7.5,
}


class NothingToDraw(Exception):
    """A figure, or sentences, that do not apply to these results; the message is the sentence that a reader finds."""


NOTE_INCHES, LINE_INCHES = 0.22, 0.14
"""Height of the note of one line below a figure, and of each further line."""
LETTERS_PER_INCH = 16
"""The most letters of a note in an inch of a line."""
POSITION_DIGITS = 9
"""Digits kept of where axes stand. The solver of the layout orders its sums by addresses in memory, so that their last bits
differ between runs, and SVG names clip paths by positions in full precision."""


def style() -> None:
    """The look of all figures; SVG ids come from a fixed salt, so that equal data give equal bytes."""
    sns.set_theme(style="ticks", context="paper", palette="colorblind", rc=TEXT)
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "crosscoders",
            "figure.constrained_layout.use": True,
            "figure.dpi": 200,  # as saved: the layout counts pixels of letters
            "savefig.dpi": 200,
            "svg.fonttype": "path",
        }
    )


def save(figure: plt.Figure, folder: Path | str, name: str, note: str = "") -> None:
    """Write `{name}.png` and `{name}.svg`, with a note below; the layout is solved once for both."""
    if note:
        lines = textwrap.wrap(note, int(LETTERS_PER_INCH * figure.get_figwidth()), break_on_hyphens=False)
        below = NOTE_INCHES + LINE_INCHES * (len(lines) - 1)
        height = figure.get_figheight() + below
        figure.set_figheight(height)
        above = (0, below / height, 1, 1 - below / height)
        figure.get_layout_engine().set(rect=above)
        figure.text(0.01, 0.06 / height, "\n".join(lines), fontsize=SMALLEST_TEXT, color="0.35", va="bottom")
    for _ in range(2):  # labels of ticks that the first pass moves are known to the second
        figure.get_layout_engine().execute(figure)
    if note:  # a layout knows nothing of the note: the label at the foot and legends at the edge make room
        for text in figure.texts:
            if text.get_text() == figure.get_supxlabel():
                text.set_y(text.get_position()[1] + below / height)
        for legend in figure.legends:
            legend.set_bbox_to_anchor(above, figure.transFigure)
    figure.set_layout_engine("none")
    for axis in figure.axes:
        axis.set_position([round(part, POSITION_DIGITS) for part in axis.get_position(original=True).bounds])
    for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        drawn = io.BytesIO()
        figure.savefig(drawn, format=suffix, metadata=metadata)
        storage.write_sealed(drawn.getvalue(), Path(folder) / f"{name}.{suffix}")


def message(sentence: str) -> plt.Figure:
    """A picture of a sentence, where a figure is expected and there is nothing to draw."""
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH, 1))
    axis.set_axis_off()
    axis.text(0.5, 0.5, sentence, ha="center", va="center", transform=axis.transAxes)
    return figure


# -- access ------------------------------------------------------------------------------------------------------------


def crosscoders(summary: xr.Dataset) -> list[str]:
    """Names of the crosscoders in a summary."""
    return [str(name) for name in summary["crosscoder"].values]


def seeds(summary: xr.Dataset, crosscoder: str) -> list[int]:
    """Seeds with which there is a crosscoder: a published one is one training, whatever seeds the others have."""
    measured = np.isfinite(summary["l0"].sel(crosscoder=crosscoder).values)
    return [int(seed) for seed in summary["seed"].values[measured]]


def of(summary: xr.Dataset, crosscoder: str) -> xr.Dataset:
    """One crosscoder of a summary, with the seeds that it has."""
    return summary.sel(crosscoder=crosscoder, seed=seeds(summary, crosscoder))


def budget(summary: xr.Dataset) -> str:
    """How many tokens the crosscoders of a summary saw in training, in a sentence; nothing where that is not known."""
    if "training_tokens" not in summary:
        return ""
    tokens = {name: int(summary["training_tokens"].sel(crosscoder=name).max()) for name in crosscoders(summary)}
    tokens = {name: count for name, count in tokens.items() if count > 0}  # of a published one it is not known
    if not tokens:
        return ""
    if len(set(tokens.values())) == 1:
        return f"Tokens seen in training: {next(iter(tokens.values())):,} by each crosscoder."
    return f"Tokens seen in training: {', '.join(f'{name} {count:,}' for name, count in tokens.items())}."


def contrasted(summary: xr.Dataset) -> xr.Dataset:
    """The crosscoders that write both sources of the contrast: an SAE on their difference has no relative norms.

    Raises
    ------
    NothingToDraw
        There is none.
    """
    comparable = np.isfinite(summary["relative_norm"]).any(["latent", "seed"]) & (summary["written_sources"] > 1).any(
        "seed"
    )
    if not comparable.any():
        raise NothingToDraw("No crosscoder of this setting writes both sources of the contrast.")
    return summary.sel(crosscoder=comparable)


def spanning(summary: xr.Dataset) -> xr.Dataset:
    """The crosscoders whose latents write several sources: SAEs per source follow no latent from one to the next.

    Raises
    ------
    NothingToDraw
        There is none.
    """
    several = (summary["written_sources"] > 1).any("seed")
    if not several.any():
        raise NothingToDraw("No crosscoder of this setting writes several sources.")
    return summary.sel(crosscoder=several)


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
    """The settings of the classification, thresholds on Δ and ν among them."""
    return json.loads(summary.attrs["classification"])


def shared(one: xr.Dataset) -> np.ndarray:
    """Indices of alive latents of class `shared`."""
    indices = alive(one)
    return indices[one["norm_class"].values[indices] == artifacts.flag(one["norm_class"], "shared")]


def colours(count: int) -> list[tuple[float, float, float]]:
    """As many colours as are asked for, of a palette that the colour-blind can read where it has so many."""
    return list(PALETTE[:count] if count <= len(PALETTE) else sns.husl_palette(count))


def sample(indices: np.ndarray, count: int) -> np.ndarray:
    """A fixed random sample."""
    return np.sort(np.random.default_rng(0).permutation(indices)[:count])


def grid(count: int, columns: int, height: float, **keywords) -> tuple[plt.Figure, np.ndarray]:
    """A figure as wide as a page whose panels stand in rows.

    Parameters
    ----------
    count, columns : int
        Panels in all, and most of them in a row.
    height : float
        Of a row, inches.
    **keywords
        Of `matplotlib.pyplot.subplots`.

    Returns
    -------
    figure, (count,) array of axes
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    size = (PAGE_WIDTH if columns > 1 else ONE_PANEL, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **keywords)
    for axis in axes.ravel()[count:]:
        axis.remove()
    return figure, axes.ravel()[:count]


def panels(summary: xr.Dataset, height: float = 2.6, **keywords) -> tuple[plt.Figure, dict[str, plt.Axes]]:
    """A figure with a panel per crosscoder, and the panels by name."""
    names = crosscoders(summary)
    figure, axes = grid(len(names), 2 if len(names) in (2, 4) else 3, height, **keywords)
    for axis, name in zip(axes, names, strict=True):
        axis.set_title(name)
    return figure, dict(zip(names, axes, strict=True))


def label_rows(axes: dict[str, plt.Axes], label: str) -> None:
    """The label of the vertical axis, at the first panel of every row."""
    for axis in axes.values():
        if axis.get_subplotspec().is_first_col():
            axis.set_ylabel(label)


# -- training and evaluation -------------------------------------------------------------------------------------------


def training_curves(summary: xr.Dataset) -> plt.Figure:
    """Normalised error per source, L0 and dead share over training, every seed."""
    figure, axes = grid(3, 3, 2.6)
    names = crosscoders(summary)
    for colour, name in zip(colours(len(names)), names, strict=True):
        for i, seed in enumerate(summary["seed"].values):
            one = summary.sel(crosscoder=name, seed=seed)
            if not np.isfinite(one["training_l0"]).any():
                continue  # it was not trained here
            label, style = (name if i == 0 else None), ["-", "--", ":", "-."][i % 4]
            curves = (
                one["training_normalised_error"].mean("source"),
                one["training_l0"],
                one["training_dead_fraction"],
            )
            for axis, curve in zip(axes, curves, strict=True):
                axis.plot(np.arange(curve.size) + 1, curve.values, color=colour, ls=style, lw=1, label=label)
    axes[0].set(xlabel="step", ylabel="squared error / squared norm", yscale="log", title="error on training batches")
    axes[1].set(xlabel="step", ylabel="L0 (latents per token)", yscale="log", title="sparsity")
    axes[2].set(xlabel="step", ylabel="share of latents", title="dead latents", ylim=(-0.02, None))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, title="line style: seed", loc="outside lower center", ncols=5, frameon=False)
    sns.despine(figure)
    return figure


def evaluation(summary: xr.Dataset) -> plt.Figure:
    """Variance explained per source on test documents, and loss recovered where reconstructions were spliced in.

    Bars are intervals over documents, marks are seeds.
    """
    panels = {"variance explained, fraction": (summary, "fraction_variance_explained")}
    if "cross_entropy_recovered" in summary:
        panels |= {
            f"loss recovered, against {ablation} ablation": (summary.sel(ablation=ablation), "cross_entropy_recovered")
            for ablation in summary["ablation"].values
        }
    figure, axes = plt.subplots(len(panels), 1, figsize=(PAGE_WIDTH, 0.3 + 2.1 * len(panels)), squeeze=False)
    names, seeds = crosscoders(summary), summary["seed"].values
    drawn_in, step = colours(len(names)), min(0.12, 0.9 / (len(names) * len(seeds)))
    for axis, (label, (dataset, variable)) in zip(axes[:, 0], panels.items(), strict=True):
        dataset = dataset.sel(source=np.isfinite(dataset[variable]).any(["crosscoder", "seed"]))
        sources = [str(name) for name in dataset["source"].values]
        for c, name in enumerate(names):
            for s, seed in enumerate(seeds):
                one = dataset.sel(crosscoder=name, seed=seed)
                value = one[variable].values
                place = np.arange(len(sources)) + step * (c * len(seeds) + s - (len(names) * len(seeds) - 1) / 2)
                bars = np.abs([value - one[f"{variable}_low"], one[f"{variable}_high"] - value])
                title = f"{name}, L0 {float(one['l0']):.0f}" if s == 0 and axis is axes[0, 0] else None
                axis.errorbar(
                    place, value, yerr=bars, fmt=SEED_MARKS[s % 4], ms=4, color=drawn_in[c], capsize=2, label=title
                )
        axis.set(
            xticks=range(len(sources)),
            xticklabels=sources,
            ylabel=label.replace(", ", ",\n"),
            xlim=(-0.5, len(sources) - 0.5),
        )
    axes[0, 0].set_ylim(None, 1)
    figure.legend(title="marks: seeds; bars: 95% over documents", loc="outside upper center", ncols=4)
    sns.despine(figure)
    return figure


def _cell(value: float, ends: tuple[float, ...]) -> str:
    """A value between −1 and 1 and the ends of its interval, where they differ, in the fewest letters."""
    if not np.isfinite(value):
        return ""
    short = [f"{end:.2f}".replace("0.", ".", 1) for end in ends]
    return f"{value:.2f}\n{','.join(short)}" if len(set(short)) > 1 else f"{value:.2f}"


def heatmap(axis: plt.Axes, mean, low, high, labels: list[str], label: str) -> None:
    """A matrix between sources with its intervals written into the cells."""
    wide = len(labels) > WIDEST_INTERVALS  # then there is no room for the ends of the intervals
    text = [
        [_cell(m, () if wide else (a, b)) for m, a, b in zip(*cells, strict=True)]
        for cells in zip(mean, low, high, strict=True)
    ]
    sns.heatmap(
        mean,
        ax=axis,
        annot=np.array(text),
        fmt="",
        vmin=0,
        vmax=1,
        cmap="viridis",
        square=True,
        annot_kws={"size": SMALLEST_TEXT},
        xticklabels=labels,
        yticklabels=labels,
        cbar_kws={"label": textwrap.fill(label, 32), "shrink": 0.8},
    )
    axis.tick_params(axis="x", rotation=45)
    axis.tick_params(axis="y", rotation=0)
