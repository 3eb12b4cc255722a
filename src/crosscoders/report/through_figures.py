"""Figures and sentences about latents through the training of a model: when they emerge, rotate and vanish."""

from __future__ import annotations

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr

from crosscoders.report.figures import PAGE_WIDTH, PALETTE, SEED_MARKS, NothingToDraw, crosscoders

EMERGED, VANISHED, PRESENT, CHANCE, NULLS = PALETTE[0], PALETTE[3], "black", "0.82", "0.45"
NULLS_COSINE = PALETTE[1]
MEDIAN = 0.5


def followed(summary: xr.Dataset) -> list[str]:
    """Crosscoders some of whose latents are followed.

    Raises
    ------
    NothingToDraw
        There is none.
    """
    names = [name for name in crosscoders(summary) if _is_followed(summary, name)]
    if not names:
        raise NothingToDraw("No latent of this setting's crosscoders writes all snapshots and fires on test tokens.")
    return names


def _is_followed(summary: xr.Dataset, name: str) -> bool:
    """Whether some latents of a crosscoder are followed; of one that is not, their number is not known or 0."""
    return name in crosscoders(summary) and float(summary["trace_latents"].sel(crosscoder=name).max()) > 0


def beside(nulls: dict[str, xr.Dataset], name: str) -> dict[str, xr.Dataset]:
    """The nulls on which a crosscoder was trained and followed, by name."""
    return {
        label.replace("-", " "): null.sel(crosscoder=name)
        for label, null in nulls.items()
        if "trace_emerged" in null and _is_followed(null, name)
    }


def moments(summary: xr.Dataset) -> tuple[list[str], str]:
    """Labels of the snapshots on an axis, and what they are: steps of the training, or names where they are not known."""
    steps = summary["trace_step"].max(["crosscoder", "seed"]).values  # not known of crosscoders that are not followed
    if (steps >= 0).all():
        return [f"{int(step):,}" for step in steps], "step of training"
    return [str(name) for name in summary["snapshot"].values], "snapshot"


def _marks(axis: plt.Axes, one: xr.Dataset, name: str, style: dict, shift: float = 0.0) -> None:
    """A share or a quantile over snapshots: every seed with its interval."""
    seeds = one["seed"].values
    for s in range(len(seeds)):
        value, low, high = (one[f"trace_{name}{end}"].isel(seed=s).values for end in ("", "_low", "_high"))
        place = np.arange(len(value)) + shift + 0.12 * (s - (len(seeds) - 1) / 2)
        bars = np.abs([value - low, high - value])
        label = style.get("label") if s == 0 else None
        drawn = {"ms": 3.5, "lw": 1, "capsize": 2, "ls": "none"} | style | {"label": label}
        axis.errorbar(place, value, yerr=bars, marker=SEED_MARKS[s % 4], **drawn)


def _chance(axis: plt.Axes, one: xr.Dataset, name: str, label: str) -> None:
    """What chance gives at every snapshot, over seeds: the mean, and the widest ends of the intervals."""
    mean = one[f"trace_{name}_null"].mean("seed").values
    low, high = one[f"trace_{name}_null_low"].min("seed").values, one[f"trace_{name}_null_high"].max("seed").values
    for place, (middle, bottom, top) in enumerate(zip(mean, low, high, strict=True)):
        axis.fill_between([place - 0.4, place + 0.4], bottom, top, color=CHANCE, lw=0, label=None if place else label)
        axis.plot([place - 0.4, place + 0.4], [middle, middle], color=NULLS, lw=0.8)


def _norms(axis: plt.Axes, one: xr.Dataset, labels: list[str]) -> None:
    """Median norm through training of the latents that emerge at each snapshot, of the first seed."""
    first = one.isel(seed=0)
    for at, colour in enumerate(sns.color_palette("viridis", len(labels))):
        group = first.isel(emerged_in=at)
        if int(group["trace_group_latents"]) <= 0:
            continue
        place = np.arange(len(labels))
        label = f"{labels[at]} ({int(group['trace_group_latents']):,})"
        axis.plot(place, group["trace_norm"], color=colour, lw=1.2, marker=".", ms=4, label=label)
        axis.fill_between(place, group["trace_norm_low"], group["trace_norm_high"], color=colour, alpha=0.2, lw=0)
    axis.axhline(0.5, color="0.5", lw=0.7, ls=":")
    axis.set_ylim(0, 1.05)


def _shares(axis: plt.Axes, one: xr.Dataset, nulls: dict[str, xr.Dataset], name: str, style: dict) -> None:
    """A share over snapshots, beside chance and nulls."""
    _chance(axis, one, name, "snapshots in random order")
    _marks(axis, one, name, style)
    for null, other in nulls.items():
        _marks(axis, other, name, {"color": NULLS, "mfc": "white", "label": null}, 0.25)


def emergence(summary: xr.Dataset, nulls: dict[str, xr.Dataset]) -> plt.Figure:
    """ours-emergence: when latents emerge and vanish, and their norms through training, a row per crosscoder."""
    names, (labels, axis_label) = followed(summary), moments(summary)
    rows = len(names)
    figure, axes = plt.subplots(rows, 3, figsize=(PAGE_WIDTH, 0.9 + 2.3 * rows), squeeze=False, sharex=True)
    for row, name in zip(axes, names, strict=True):
        one = summary.sel(crosscoder=name)
        others, ended = beside(nulls, name), {"snapshot": slice(None, -1)}  # after the last snapshot nothing is known
        _shares(row[0], one, others, "emerged", {"color": EMERGED, "label": "emerged here"})
        gone = {null: other.isel(ended) for null, other in others.items()}
        _shares(row[2], one.isel(ended), gone, "vanished", {"color": VANISHED, "label": "vanished after"})
        _marks(row[2], one, "present", {"color": PRESENT, "ls": "-", "label": "present here"}, -0.2)
        _norms(row[1], one, labels)
        row[0].set_ylabel(f"{name}\nshare of latents")
        row[1].set_ylabel("norm / largest")
        row[0].set_ylim(-0.03, None)
        row[2].set_ylim(-0.03, 1.05)
        row[1].legend(title="emerge at (latents)", loc="upper left", bbox_to_anchor=(1, 1.02), handlelength=1)
    for axis, title in zip(
        axes[0], ("when latents emerge", f"norms, seed {int(summary['seed'][0])}", "vanished, present"), strict=True
    ):
        axis.set_title(title)
    for axis in axes[-1]:
        axis.set_xticks(range(len(labels)), labels, rotation=40, ha="right")
        axis.set_xlabel(axis_label)
    _legend(figure, (*axes[:, 0], *axes[:, 2]), "marks: seeds; bars: 95%, over latents", 3)
    sns.despine(figure)
    return figure


def rotation(summary: xr.Dataset, nulls: dict[str, xr.Dataset]) -> plt.Figure:
    """ours-rotation: cosine with the snapshot before and with the last one, over the latents present in both."""
    names, (labels, axis_label) = followed(summary), moments(summary)
    figure, axes = plt.subplots(
        len(names), 2, figsize=(PAGE_WIDTH, 0.8 + 2.3 * len(names)), squeeze=False, sharex=True, sharey=True
    )
    for row, name in zip(axes, names, strict=True):
        one = summary.sel(crosscoder=name)
        for axis, cosine in zip(row, ("before", "final"), strict=True):
            axis.axhline(0, color="0.8", lw=0.7)
            for null, other in beside(nulls, name).items():
                _marks(axis, other.sel(quantile=MEDIAN), cosine, {"color": NULLS_COSINE, "label": null}, 0.3)
            _cosines(axis, one, f"{cosine}_null", NULLS, "different latents paired")
            _cosines(axis, one, cosine, EMERGED, "same latent")
        row[0].set_ylabel(f"{name}\ncosine of decoder vectors")
    axes[0, 0].set_title("with the snapshot before")
    axes[0, 1].set_title("with the last snapshot")
    for axis in axes[-1]:
        axis.set_xticks(range(len(labels)), labels)
        axis.set_xlabel(axis_label)
    title = "marks: median, a seed each, with its 95% interval over latents; band: middle half of the latents"
    _legend(figure, axes.ravel(), title, 4)
    sns.despine(figure)
    return figure


def _legend(figure: plt.Figure, axes: Iterable[plt.Axes], title: str, columns: int) -> None:
    """One legend above all panels, with every label of theirs once."""
    handles: dict[str, object] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), title=title, loc="outside upper center", ncols=columns)


def _cosines(axis: plt.Axes, one: xr.Dataset, name: str, colour: object, label: str) -> None:
    """Medians of every seed, and between the quartiles a band, which holds the quartiles of all seeds."""
    low, high = (one[f"trace_{name}"].sel(quantile=share) for share in (0.25, 0.75))
    place = np.arange(one.sizes["snapshot"])
    axis.fill_between(place, low.min("seed"), high.max("seed"), color=colour, alpha=0.18, lw=0)
    _marks(axis, one.sel(quantile=MEDIAN), name, {"color": colour, "label": label, "ls": "-"})


# -- sentences ---------------------------------------------------------------------------------------------------------


def _shown(values: xr.DataArray, form: str = "{:.0%}") -> str:
    """A number, or its range over seeds."""
    low, high = (form.format(float(end)) for end in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def emergence_sentences(summary: xr.Dataset, nulls: dict[str, xr.Dataset]) -> str:
    """When latents emerge and vanish, whether the order of training matters, and which of them are dense."""
    labels, _ = moments(summary)
    lines = []
    for name in followed(summary):
        one = summary.sel(crosscoder=name)
        top = int(one["trace_emerged"].mean("seed").argmax("snapshot"))
        gone, last = one["trace_vanished"].sum("snapshot"), one.isel(snapshot=-1)
        lines.append(
            f"- **{name}** follows {_shown(one['trace_latents'], '{:,.0f}')} latents: {_at(one, 'emerged', 0)} are there in "
            f"the first snapshot ({labels[0]}). {_shown(_later(one))} emerge after it{_against(beside(nulls, name))}. Most emerge "
            f"at {labels[top]}, {_at(one, 'emerged', top)}, where random order gives "
            f"{_shown(one['trace_emerged_null'].isel(snapshot=top))}. {_shown(gone)} vanish before the last snapshot, in which "
            f"{_shown(last['trace_present'])} are present. {_shown(one['trace_contiguous'])} are present in every snapshot "
            f"between their first and last; in random order {_shown(one['trace_contiguous_null'])}."
        )
        lines.append(f"- **{name}**, share of each group among the densest tenth of latents: {_dense(one, labels)}.")
    return "\n".join(lines)


def _at(one: xr.Dataset, name: str, at: int) -> str:
    """A share at a snapshot, over seeds, with the widest ends of its intervals."""
    value, low, high = (one[f"trace_{name}{end}"].isel(snapshot=at) for end in ("", "_low", "_high"))
    return f"{_shown(value)} [{float(low.min()):.0%}, {float(high.max()):.0%}]"


def _later(one: xr.Dataset) -> xr.DataArray:
    """Share of latents that emerge after the first snapshot, over seeds."""
    return one["trace_emerged"].isel(snapshot=slice(1, None)).sum("snapshot")


def _against(nulls: dict[str, xr.Dataset]) -> str:
    """How many emerge after the first snapshot in nulls."""
    return "".join(f", and {_shown(_later(null))} in {label}" for label, null in nulls.items())


def _dense(one: xr.Dataset, labels: list[str]) -> str:
    """Dense latents of every group that has latents in all seeds."""
    parts = []
    for at, label in enumerate(labels):
        group = one.isel(emerged_in=at)
        if bool(group["trace_dense"].notnull().all()):
            low, high = float(group["trace_dense_low"].min()), float(group["trace_dense_high"].max())
            parts.append(f"emerging at {label} {_shown(group['trace_dense'])} [{low:.0%}, {high:.0%}]")
    return ", ".join(parts)


def rotation_sentences(summary: xr.Dataset, nulls: dict[str, xr.Dataset]) -> str:
    """Median cosines between snapshots, beside chance and nulls."""
    labels, _ = moments(summary)
    lines = []
    for name in followed(summary):
        one = summary.sel(crosscoder=name, quantile=MEDIAN)
        before = one["trace_before"].isel(snapshot=slice(1, None))
        steps = [
            f"{labels[at]} to {labels[at + 1]} {_shown(before.isel(snapshot=at), '{:.2f}')}"
            for at in range(before.sizes["snapshot"])
            if bool(before.isel(snapshot=at).notnull().any())
        ]
        chance = one["trace_before_null"].isel(snapshot=slice(1, None))
        beside_it = [
            f"{label} {_shown(null['trace_before'].sel(quantile=MEDIAN), '{:.2f}')}"
            for label, null in beside(nulls, name).items()
        ]
        first = one["trace_final"].isel(snapshot=0)
        lines.append(
            f"- **{name}**, median cosine with the snapshot before: {'; '.join(steps)}. Different latents paired: "
            f"{_shown(chance, '{:.2f}')}{''.join(f'; {part}' for part in beside_it)}. Of latents present in the first and "
            f"in the last snapshot the median cosine between the two is "
            f"{_shown(first, '{:.2f}') if bool(first.notnull().any()) else 'not defined, because there are none'}."
        )
    return "\n".join(lines)
