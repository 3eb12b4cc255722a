"""Figures and sentences about members of the family judged on planted truth, from a summary dataset alone."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
import seaborn as sns
import xarray as xr

from crosscoders.report.figures import PAGE_WIDTH, PALETTE, SMALLEST_TEXT, NothingToDraw, grid

FEWEST_SEEDS = 3
"""Seeds from which sentences give an interval."""
RECALL_WANTED = 0.95
MARKERS = "osD^vP*X<>"


def member(summary: xr.Dataset, name: str) -> str:
    """A crosscoder's name without the size of its dictionary: `batchtopk` of `batchtopk-256`."""
    return name.removesuffix(f"-{int(summary['latents'].sel(crosscoder=name)[0])}")


def members(summary: xr.Dataset) -> dict[str, list[str]]:
    """Crosscoders of each member, by growing dictionary."""
    by_member: dict[str, list[str]] = {}
    for name in (str(value) for value in summary["crosscoder"].values):
        by_member.setdefault(member(summary, name), []).append(name)
    return {
        key: sorted(names, key=lambda name: int(summary["latents"].sel(crosscoder=name)[0]))
        for key, names in by_member.items()
    }


def over_seeds(values: xr.DataArray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean over `seed` and half the width of its t interval; seeds without a value are left out."""
    count = values.notnull().sum("seed").values
    with np.errstate(invalid="ignore", divide="ignore"):
        error = values.std("seed", ddof=1).values / np.sqrt(count)
        return values.mean("seed").values, np.where(
            count > 1, scipy.stats.t.ppf(0.5 + confidence / 2, np.maximum(count - 1, 1)) * error, 0.0
        )


def _exclusive(values: xr.DataArray) -> xr.DataArray:
    """Mean over the planted classes of one source."""
    names = [name for name in ("base-only", "chat-only") if name in values["planted_class"].values]
    return values.sel(planted_class=names).mean("planted_class")


def recall_and_false_positives(summary: xr.Dataset) -> plt.Figure:
    """d26-planted: concepts recovered, exclusive concepts found, and false alarms, by dictionary size and member."""
    common = "shared" if "shared" in summary["planted_class"].values else "spanning"
    panels = {f"{common} concepts recovered": (summary["recovered"].sel(planted_class=common), None)}
    if "rule" in summary.dims and summary.sizes["rule"]:
        panels["exclusive concepts recovered\nand called so"] = (_exclusive(summary["recall"]), "rule")
        panels["latents of common concepts\ncalled exclusive"] = (summary["false_positive_rate"], "rule")
    figure, axes = grid(len(panels), 3, 3.6)
    confidence = float(summary.attrs["confidence"])
    by_member = members(summary)
    offsets = np.exp(np.linspace(-0.12, 0.12, max(len(by_member), 2)))
    colours = sns.color_palette("husl", len(by_member))
    for axis, (title, (values, rule)) in zip(axes, panels.items(), strict=True):
        for i, (name, sizes) in enumerate(by_member.items()):
            place = summary["latents"].sel(crosscoder=sizes).values[:, 0] * offsets[i]
            for r, label in enumerate(values["rule"].values if rule else [None]):
                chosen = values.sel(crosscoder=sizes, rule=label) if rule else values.sel(crosscoder=sizes)
                mean, half = over_seeds(chosen, confidence)
                filled = "none" if rule and r == 0 else colours[i]
                style = {"color": colours[i], "marker": MARKERS[i % len(MARKERS)], "ms": 6, "lw": 1, "capsize": 2}
                style |= {"mfc": filled, "ls": ":" if rule and r == 0 else "-"}
                axis.errorbar(place, mean, yerr=half, **style, label=name if filled != "none" else None)
        axis.set(xscale="log", xlabel="latents of the dictionary", title=title, ylim=(-0.04, 1.04))
        sizes = sorted({int(size) for size in np.unique(summary["latents"].values) if size > 0})
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
    axes[0].set_ylabel(f"share ({100 * confidence:.0f}% over {summary.sizes['seed']} seeds)")
    if len(panels) > 1:
        axes[-1].plot([], [], color="black", marker="o", mfc="none", ls=":", label="class by norm alone")
        axes[-1].plot([], [], color="black", marker="o", ls="-", label="confirmed by latent scaling")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5)
    sns.despine(figure)
    return figure


def confusion(summary: xr.Dataset) -> plt.Figure:
    """ours-confusion: what every member calls concepts of each planted class, by norm and with latent scaling.

    With three sources or more, it is the subset of sources to which the latent of a concept is written.
    """
    if "subset_called" in summary:
        return _subset_confusion(summary)
    names = [sizes[-1] for sizes in members(summary).values()]
    names = [name for name in names if summary["called"].sel(crosscoder=name).notnull().any()]
    rules, calls = summary["rule"].values, [str(call) for call in summary["call"].values]
    planted = [str(name) for name in summary["planted_class"].values]
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(PAGE_WIDTH, 2.4 * rows), squeeze=False, sharey=True)
    for axis, name in zip(axes.ravel(), names, strict=False):
        mean = summary["called"].sel(crosscoder=name).mean("seed")
        table = np.concatenate([mean.sel(rule=rule).values for rule in rules], axis=1)
        sns.heatmap(
            table,
            ax=axis,
            annot=True,
            fmt=".2f",
            vmin=0,
            vmax=1,
            cmap="viridis",
            cbar=False,
            annot_kws={"size": SMALLEST_TEXT},
        )
        axis.axvline(len(calls), color="white", lw=4)
        axis.set_xticks(np.arange(table.shape[1]) + 0.5, calls * len(rules), rotation=60)
        axis.set_yticks(np.arange(len(planted)) + 0.5, planted, rotation=0)
        axis.set_title(f"{name}\n{rules[0]}  |  {rules[1]}")
    for axis in axes.ravel()[len(names) :]:
        axis.set_axis_off()
    figure.supxlabel("called (share of recovered concepts, mean over seeds)")
    figure.supylabel("planted")
    return figure


def _subset_confusion(summary: xr.Dataset) -> plt.Figure:
    """Planted classes against the subset that the largest dictionary of every member calls, mean over seeds."""
    names = [sizes[-1] for sizes in members(summary).values()]
    names = [name for name in names if summary["subset_called"].sel(crosscoder=name).notnull().any()]
    if not names:
        raise NothingToDraw("No crosscoder of this setting reads all sources of the contrast.")
    figure, axes = grid(len(names), 2, 3.2, sharey=True)
    for axis, name in zip(axes, names, strict=True):
        called = summary["subset_called"].sel(crosscoder=name)
        table = called.mean("seed").transpose("planted_class", "subset").to_pandas()
        style = {"annot": True, "fmt": ".2f", "vmin": 0, "vmax": 1, "cmap": "viridis", "cbar": False}
        sns.heatmap(table, ax=axis, annot_kws={"size": SMALLEST_TEXT}, xticklabels=True, yticklabels=True, **style)
        axis.tick_params(axis="x", rotation=60)
        axis.tick_params(axis="y", rotation=0)
        axis.set(title=name, xlabel="", ylabel="")
    figure.supxlabel("sources that the concept's latent is written to (share of recovered concepts, mean over seeds)")
    figure.supylabel("planted")
    return figure


def onset(summary: xr.Dataset) -> plt.Figure:
    """ours-onset: how often a member begins and ends a latent in the sources in which the planted concept does."""
    figure, axis = plt.subplots(figsize=(PAGE_WIDTH, 3))
    confidence = float(summary.attrs["confidence"])
    names = [str(name) for name in summary["crosscoder"].values]
    bars = {
        "recovered": summary["recovered"].sel(planted_class="spanning"),
        "begun in the right source, of these": summary["onset_accuracy"],
        "ended in the right source, of these": summary["ending_accuracy"],
    }
    for i, (label, values) in enumerate(bars.items()):
        values, place = values.sel(crosscoder=names), np.arange(len(names)) + 0.27 * (i - 1)
        mean, half = over_seeds(values, confidence)
        ends = np.minimum([half, half], [mean, 1 - mean])  # shares lie between 0 and 1
        axis.bar(place, mean, 0.25, yerr=ends, capsize=3, color=PALETTE[[7, 0, 3][i]], label=label)
        seeds = values.sizes["seed"]
        for s in range(seeds):
            at = place + 0.12 * (s - (seeds - 1) / 2) / seeds
            axis.scatter(at, values.isel(seed=s), s=10, color="white", edgecolor="black", linewidth=0.7, zorder=3)
    axis.set_xticks(range(len(names)), names, rotation=25, ha="right")
    axis.set(ylabel="share of planted concepts", ylim=(0, 1.08))
    figure.legend(
        title=f"dots: seeds; bars: {100 * confidence:.0f}% over {summary.sizes['seed']} seeds",
        loc="outside lower center",
        ncols=3,
    )
    sns.despine(figure)
    return figure


# -- sentences ---------------------------------------------------------------------------------------------------------


def _interval(values: xr.DataArray, confidence: float) -> str:
    """Mean and interval over seeds; the values' range where there are too few for an interval that says something."""
    known = values.values[np.isfinite(values.values)]
    if 0 < len(known) < FEWEST_SEEDS:
        low, high = f"{known.min():.2f}", f"{known.max():.2f}"
        return low if low == high else f"{low} to {high}"
    mean, half = over_seeds(values, confidence)
    return "none" if np.isnan(mean) else f"{float(mean):.2f} ± {float(half):.2f}"


def sentences(summary: xr.Dataset) -> str:
    """Per member: the smallest dictionary that recovers the common concepts, and its recall and false positives."""
    confidence, lines = float(summary.attrs["confidence"]), []
    common = "shared" if "shared" in summary["planted_class"].values else "spanning"
    for label, sizes in members(summary).items():
        recovered = {
            name: float(summary["recovered"].sel(crosscoder=name, planted_class=common).mean()) for name in sizes
        }
        enough = [name for name in sizes if recovered[name] >= RECALL_WANTED]
        best = enough[0] if enough else max(sizes, key=lambda name: recovered[name])
        one = summary.sel(crosscoder=best)
        verb = "reaches" if enough else f"does not reach {RECALL_WANTED:.0%}; its best is"
        text = (
            f"- **{label}** {verb} {100 * recovered[best]:.0f}% of the {common} concepts with "
            f"{int(one['latents'][0])} latents (L0 {float(one['l0'].mean()):.1f})"
        )
        if "rule" in summary.dims:
            for rule in summary["rule"].values:
                at = one.sel(rule=rule)
                if at["false_positive_rate"].notnull().any():
                    text += (
                        f"; by {rule}: exclusive concepts found {_interval(_exclusive(at['recall']), confidence)},"
                        f" false alarms {_interval(at['false_positive_rate'], confidence)}"
                    )
        if "subset_agreement" in one and one["subset_agreement"].notnull().any():
            agreement = _interval(one["subset_agreement"].mean("planted_class"), confidence)
            text += f"; recovered concepts written to exactly the sources in which they live {agreement} (mean over classes)"
        if one["onset_accuracy"].notnull().any():
            text += f"; right first source {_interval(one['onset_accuracy'], confidence)}"
            text += f", right last source {_interval(one['ending_accuracy'], confidence)}"
        if one["rotation_error"].notnull().any():
            text += f"; cosines between consecutive sources are off by {_interval(one['rotation_error'], confidence)}"
        lines.append(text + ".")
    return "\n".join(lines)
