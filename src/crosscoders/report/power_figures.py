"""How small a change each method detects: AUC and power against the dose of what was planted, in a figure and sentences."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr

from crosscoders.report.figures import PAGE_WIDTH, PALETTE, NothingToDraw

WITHOUT_LABELS = ("energy", "nu", "delta")
"""Rankings of a method's own."""
NAMES = {"energy": "energy", "nu": "ν", "delta": "Δ", "labels": "labels"}
COLOURS = dict(zip(NAMES, (PALETTE[0], PALETTE[2], PALETTE[4], PALETTE[1]), strict=True))
WITH_AUC = ("energy", "labels")
"""Rankings whose AUC the figure shows: the one that every method has, and the upper bound. Power is shown by all."""
HALF = 0.5
"""Power from which a method is said to see a change."""


def rankings(summary: xr.Dataset, detector: str) -> list[str]:
    """The rankings that a method has."""
    has = summary["power_of_behaviour"].sel(detector=detector).notnull().any(["dose", "behaviour"])
    return [name for name in NAMES if bool(has.sel(ranking=name))]


def chosen_by(summary: xr.Dataset, detector: str, ranking: str) -> str:
    """How a ranking is named in sentences; a method that nobody chooses from by labels is a single number per token."""
    return NAMES[ranking] if "labels" in rankings(summary, detector) else "itself"


def power(summary: xr.Dataset) -> plt.Figure:
    """ours-power: AUC by behaviour and power over all behaviours, against the dose; a row per method."""
    methods, behaviours = ([str(name) for name in summary[dim].values] for dim in ("detector", "behaviour"))
    if not bool(summary["power"].notnull().any()):
        raise NothingToDraw("No test token belongs to a planted behaviour, so that no method can be measured.")
    shape = (len(methods), len(behaviours) + 1)
    size = (PAGE_WIDTH, 0.8 * shape[0] + 1)
    figure, axes = plt.subplots(*shape, figsize=size, squeeze=False, sharex=True, sharey=True)
    for row, method in zip(axes, methods, strict=True):
        one, shown = summary.sel(detector=method), rankings(summary, method)
        for place, ranking in enumerate(shown):
            for axis, behaviour in zip(row, behaviours if ranking in WITH_AUC else (), strict=False):
                _auc(axis, one.sel(ranking=ranking, behaviour=behaviour), COLOURS[ranking])
            _power(row[-1], one.sel(ranking=ranking), COLOURS[ranking], 0.08 * (place - (len(shown) - 1) / 2))
        row[-1].axhline(summary.attrs["false_alarms"], color="black", lw=0.7, ls=":")
        row[0].set_ylabel(method, rotation=0, ha="right", va="center")
    for axis, title in zip(
        axes[0], [*(f"AUC:\n{name.replace('_', ' ')}" for name in behaviours), "power"], strict=True
    ):
        axis.set_title(title)
    doses = summary["dose"].values
    axes[0, 0].set(xlim=(-0.4, len(doses) - 0.6), ylim=(-0.03, 1.05), yticks=[0, 0.5, 1])
    for axis in axes[-1]:
        axis.set_xticks(range(len(doses)), [f"{100 * dose:g}" for dose in doses])
    figure.supxlabel("dose: share of fine-tuning chats that show the behaviours (%)")
    _legend(figure, summary)
    sns.despine(figure)
    return figure


def _auc(axis: plt.Axes, one: xr.Dataset, colour: tuple) -> None:
    """AUC of every seed with its interval over documents, and the null's interval and threshold."""
    place = np.arange(one.sizes["dose"])
    axis.axhspan(float(one["null_low"]), float(one["null_high"]), color=colour, alpha=0.15, lw=0)
    axis.axhline(float(one["null_threshold"]), color=colour, lw=0.8, ls="--")
    repeated = one[["auc", "auc_low", "auc_high"]].stack(repeat=("fine_tune_seed", "seed")).transpose("dose", "repeat")
    shift = 0.08 * (np.arange(repeated.sizes["repeat"]) - (repeated.sizes["repeat"] - 1) / 2)
    for i, by in enumerate(shift):
        value, low, high = (repeated[name].values[:, i] for name in ("auc", "auc_low", "auc_high"))
        axis.errorbar(place + by, value, yerr=np.abs([value - low, high - value]), fmt=".", ms=4, lw=0.7, color=colour)
    axis.plot(place, repeated["auc"].mean("repeat"), color=colour, lw=1)


def _power(axis: plt.Axes, one: xr.Dataset, colour: tuple, shift: float) -> None:
    """Power with its Wilson interval."""
    value, low, high = (one[f"power{end}"].values for end in ("", "_low", "_high"))
    bars = np.abs([value - low, high - value])
    axis.errorbar(np.arange(len(value)) + shift, value, yerr=bars, fmt="o-", ms=3, lw=1, color=colour)


def _legend(figure: plt.Figure, summary: xr.Dataset) -> None:
    best = int(summary.attrs["best"])
    labels = {
        "energy": f"best {best} by energy, or the method itself",
        "nu": f"best {best} by ν",
        "delta": f"best {best} by Δ",
        "labels": f"best {best} by validation labels (upper bound)",
    }
    lines = [plt.Line2D([], [], color=COLOURS[key], label=label) for key, label in labels.items()]
    title = "dots: seeds; bars: 95% (over documents; power: Wilson)\nbands: AUC at dose 0; dashes: above them a behaviour is detected"
    figure.legend(handles=lines, title=title, loc="outside upper center", ncols=2)


# -- sentences ---------------------------------------------------------------------------------------------------------


def sentences(summary: xr.Dataset) -> str:
    """Which method finds a change of which size, in three lines, and power by method, ranking and dose in a table."""
    lines = [
        f"- **Without labels**: {_smallest(summary, WITHOUT_LABELS)}",
        f"- **With labels**: {_smallest(summary, ('labels',))}",
        f"- **Not seen**: {_unseen(summary)}",
    ]
    return "\n".join([*lines, "", *_table(summary)])


def _rows(summary: xr.Dataset, rankings: tuple[str, ...]) -> list[tuple[str, str, xr.Dataset]]:
    """Method, ranking and power over doses of all that were measured; the random latents are no method."""
    names = [str(name) for name in summary["detector"].values if name != "random-latents"]
    rows = [(name, ranking, summary.sel(detector=name, ranking=ranking)) for name in names for ranking in rankings]
    return [row for row in rows if bool(row[2]["power"].notnull().any())]


def _smallest(summary: xr.Dataset, rankings: tuple[str, ...]) -> str:
    """The smallest dose at which power reaches a half, and the method that reaches it."""
    seen = []
    for method, ranking, one in _rows(summary, rankings):
        reached = [dose for dose in one["dose"].values if dose > 0 and float(one["power"].sel(dose=dose)) >= HALF]
        if reached:
            best = one.sel(dose=min(reached))
            seen.append((min(reached), -float(best["power"]), method, ranking, best))
    if not seen:
        return f"no method detects half of the behaviours at any dose, at {_percent(summary.attrs['false_alarms'])} false alarms."
    dose, _, method, ranking, best = min(seen, key=lambda row: row[:2])
    others = sorted({row[2] for row in seen if row[0] == dose} - {method})
    beside = f"; {', '.join(others)} reach a half at that dose too" if others else ""
    return (
        f"{method} (by {chosen_by(summary, method, ranking)}) sees the smallest change: at a dose of {_percent(dose)} it detects "
        f"{_percent(float(best['power']))} of {int(best['power_trials'])} pairs of seed and behaviour "
        f"({_percent(float(best['power_low']))} to {_percent(float(best['power_high']))}){beside}."
    )


def _unseen(summary: xr.Dataset) -> str:
    """Methods that see less than half of the behaviours at the largest dose, and false alarms at dose 0."""
    largest = float(summary["dose"].max())
    best: dict[str, float] = {}
    for method, _, one in _rows(summary, WITHOUT_LABELS):
        best[method] = max(best.get(method, 0.0), float(one["power"].sel(dose=largest)))
    blind = [f"{method} ({_percent(value)})" for method, value in best.items() if value < HALF]
    alarms = [float(one["power"].sel(dose=0.0)) for _, _, one in _rows(summary, WITHOUT_LABELS)]
    false = f"; at dose 0, {_percent(float(np.nanmean(alarms)))} are detected" if np.isfinite(alarms).any() else ""
    listed = ", ".join(blind) if blind else "no method"
    verb = "stay" if len(blind) > 1 else "stays"
    return f"at a dose of {_percent(largest)}, {listed} {verb} below a half without labels{false}."


def _table(summary: xr.Dataset) -> list[str]:
    """Power in Markdown: a row per method and ranking, a column per dose; and how often the behaviours show."""
    doses = summary["dose"].values
    heads = ["method", "chosen by", *(f"{100 * dose:g}%" for dose in doses)]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * len(doses)]
    for method in [str(name) for name in summary["detector"].values]:
        for ranking in NAMES:
            one = summary.sel(detector=method, ranking=ranking)
            if bool(one["power"].notnull().any()):
                cells = [_cell(one.sel(dose=dose)) for dose in doses]
                lines.append("| " + " | ".join([method, chosen_by(summary, method, ranking), *cells]) + " |")
    return lines + _rates(summary)


def _rates(summary: xr.Dataset) -> list[str]:
    """Rows that say how often the fine-tunes show each behaviour, where that was measured."""
    if "behaviour_rate" not in summary:
        return []
    lines = []
    for name in [str(name) for name in summary["measured_behaviour"].values]:
        one = summary.sel(measured_behaviour=name)
        cells = [_cell(one.sel(dose=dose), "behaviour_rate") for dose in summary["dose"].values]
        lines.append("| " + " | ".join([f"rate: {name}", "first seed", *cells]) + " |")
    return lines


def _cell(one: xr.Dataset, name: str = "power") -> str:
    value, low, high = (float(one[f"{name}{end}"]) for end in ("", "_low", "_high"))
    return f"{value:.2f} [{low:.2f}, {high:.2f}]" if np.isfinite(value) else "–"


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
