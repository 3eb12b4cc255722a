"""Figure and sentences of labels of latents: how well a label tells where its latent fires, beside shuffled labels."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr

from crosscoders.report.figures import PALETTE, SEED_MARKS, NothingToDraw, crosscoders, label_rows, panels

GROUPS = {
    "relative_norm": "largest Δ",
    "nu": "lowest ν",
    "planted_share": "planted behaviours",
    "random": "at random",
    "all": "all",
}
"""What latents were chosen by, and how the figure names it."""
SIDES = {
    "labels_score": ("label", PALETTE[3], -0.18),
    "labels_shuffled_score": ("another latent's label", PALETTE[7], 0.18),
}
"""Variables that are drawn: name, colour, and place within a row."""


def _labelled(summary: xr.Dataset) -> xr.Dataset:
    """The crosscoders whose latents were labelled.

    Raises
    ------
    NothingToDraw
        There is none.
    """
    measured = np.isfinite(summary["labels_score"]).any(["seed", "label_group"])
    if not measured.any():
        raise NothingToDraw("No latent of this setting's crosscoders was labelled.")
    return summary.sel(crosscoder=measured)


def labels(summary: xr.Dataset) -> plt.Figure:
    """ours-labels: balanced accuracy of labels and of shuffled labels, by what latents were chosen by, every seed."""
    summary = _labelled(summary)
    names = [str(name) for name in summary["label_group"].values]
    figure, axes = panels(summary, 0.6 + 0.36 * len(names), sharex=True, sharey=True)
    for name, axis in axes.items():
        one = summary.sel(crosscoder=name)
        for s, seed in enumerate(one["seed"].values):
            _scores(axis, one.sel(seed=seed), 0.3 * (s - (one.sizes["seed"] - 1) / 2) / one.sizes["seed"], s)
        tried, shown = (one[f"labels_{key}"].clip(min=0).sum("seed").values.astype(int) for key in ("tried", "shown"))
        for place, counts in enumerate(zip(shown, tried, strict=True)):
            axis.text(1.06, place, "{} of {}".format(*counts), va="center", ha="left")
        axis.axvline(0.5, color="black", lw=0.8, ls="--", label="chance")
        axis.set(xlim=(-0.03, 1.45), xticks=[0, 0.5, 1], ylim=(len(names) - 0.4, -0.6), xlabel="balanced accuracy")
        axis.set_yticks(range(len(names)), [GROUPS[one] for one in names])
    label_rows(axes, "latents chosen by")
    named = next(iter(axes.values())).get_legend_handles_labels()
    handles, said = zip(*sorted(zip(*named, strict=True), key=lambda entry: _place(entry[1])), strict=True)
    title = "bars: 95% over latents; at the right: labels shown of labels tried"
    figure.legend(handles, said, loc="outside lower center", ncols=3, title=title, frameon=False)
    sns.despine(figure)
    return figure


def _place(label: str) -> int:
    """Where the legend names something: labels, then those of other latents, then chance; each fills a column."""
    begins = [label.startswith(side) for side, *_ in SIDES.values()]
    return begins.index(True) if any(begins) else len(begins)


def _scores(axis: plt.Axes, one: xr.Dataset, shift: float, mark: int) -> None:
    """Mean scores of one training, a mark for each group, with intervals over latents."""
    for variable, (label, colour, place) in SIDES.items():
        value, low, high = (one[variable + end].values for end in ("", "_low", "_high"))
        bars = np.abs(np.nan_to_num([value - low, high - value]))
        style = {"fmt": SEED_MARKS[mark % 4], "ms": 3.5, "lw": 0.8, "color": colour}
        rows = np.arange(len(value)) + place + shift
        axis.errorbar(value, rows, xerr=bars, **style, label=f"{label}, seed {int(one['seed'])}")


def label_sentences(summary: xr.Dataset) -> str:
    """How many labels of every crosscoder are shown, and how well they tell where latents fire, beside shuffled labels."""
    summary, lines = _labelled(summary), []
    for name in crosscoders(summary):
        for seed in summary["seed"].values:
            one = summary.sel(crosscoder=name, seed=seed, label_group="all")
            if not np.isfinite(one["labels_score"]):
                continue
            own, other = (
                f"{float(one[key]):.2f} [{float(one[f'{key}_low']):.2f}, {float(one[f'{key}_high']):.2f}]"
                for key in SIDES
            )
            shown, tried, by_chance = (int(one[f"labels_{key}"]) for key in ("shown", "tried", "shuffled_shown"))
            lines.append(
                f"- **{name}, seed {seed}**: {shown} of {tried} labels tell where their latent fires better than labels of "
                f"other latents do; of shuffled labels {by_chance} would pass. The balanced accuracy is {own}, of shuffled "
                f"labels {other}."
            )
    return "\n".join(lines)
