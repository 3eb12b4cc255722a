"""The figure of members of the family by the tokens that they saw in training, and its sentences.

Two members that are compared at one number of tokens may differ because one of them learns more slowly. Where a setting
trains members for several numbers of tokens, this figure shows whether their order stays.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr

from crosscoders.report import comparison
from crosscoders.report.figures import SEED_MARKS, NothingToDraw, colours, grid

COMPARED = {"fve": "FVE", "dead": "dead share", "lift": "lift", "specific": "chat-specific share"}
"""Measures of which the sentences speak."""


def several(summary: xr.Dataset) -> dict[str, list[str]]:
    """The crosscoders of members that are trained for several numbers of tokens, by rising tokens.

    Raises
    ------
    NothingToDraw
        There is no such member.
    """
    found = {member: names for member, names in comparison.series(summary).items() if len(names) > 1}
    if not found:
        raise NothingToDraw(
            "Every member of this setting is trained for one number of tokens; `studies/budgets.yaml` has several."
        )
    return found


def budgets(summary: xr.Dataset) -> plt.Figure:
    """ours-budgets: every measure against the tokens seen in training, a line per member, a mark per seed."""
    found, values = several(summary), comparison.table(summary)
    drawn_in = colours(len(found))
    figure, axes = grid(len(comparison.COLUMNS), 3, 2.5)
    for axis, (key, label) in zip(axes, comparison.COLUMNS.items(), strict=True):
        for m, (member, names) in enumerate(found.items()):
            tokens = np.array([comparison.tokens_seen(summary, name) for name in names])
            rows = [values[name][key] for name in names]
            axis.plot(tokens, [row[:, 0].mean() for row in rows], color=drawn_in[m], lw=1.2, label=member)
            shift = 1 + 0.02 * (m - (len(found) - 1) / 2)  # members that agree do not hide each other
            for at, row in zip(tokens * shift, rows, strict=True):
                for seed, (value, low, high) in enumerate(row):
                    bars = np.nan_to_num([[value - low], [high - value]]).clip(min=0)
                    mark = SEED_MARKS[seed % len(SEED_MARKS)]
                    axis.errorbar(at, value, yerr=bars, fmt=mark, ms=3.5, capsize=1.5, lw=0.7, color=drawn_in[m])
        seen = sorted({comparison.tokens_seen(summary, name) for names in found.values() for name in names})
        axis.set(xscale="log", xlabel="tokens seen in training", ylabel=label)
        axis.set_xticks(seen, [f"{count / 1e6:.2g}M" for count in seen])
        axis.minorticks_off()
    handles, labels = axes[0].get_legend_handles_labels()
    title = "a mark per seed; bars: 95% over documents, of rates also over latents"
    figure.legend(handles, labels, loc="outside upper center", ncols=6, title=title)
    sns.despine(figure)
    return figure


def sentences(summary: xr.Dataset) -> str:
    """A line for each measure: the members at the fewest and at the most tokens, and whether their order is the same.

    Raises
    ------
    NothingToDraw
        No member is trained for several numbers of tokens.
    """
    found, values = several(summary), comparison.table(summary)
    ends = {member: (names[0], names[-1]) for member, names in found.items()}
    fewest, most = (f"{min(comparison.tokens_seen(summary, pair[end]) for pair in ends.values()):,}" for end in (0, 1))
    lines = []
    for key, label in COMPARED.items():
        form = comparison.FORMS[key]
        measured = {m: pair for m, pair in ends.items() if np.isfinite(values[pair[0]][key][:, 0]).all()}
        if not measured:
            continue
        orders = [
            sorted(measured, key=lambda member, end=end: -values[measured[member][end]][key][:, 0].mean())
            for end in (0, 1)
        ]
        listed = "; ".join(
            f"{member} {comparison.shown(values[pair[0]][key], form)} and {comparison.shown(values[pair[1]][key], form)}"
            for member, pair in measured.items()
        )
        order = (
            f"the order stays: {', '.join(orders[0])}"
            if orders[0] == orders[1]
            else f"the order changes from {', '.join(orders[0])} to {', '.join(orders[1])}"
        )
        lines.append(f"- **{label}** at {fewest} and at {most} tokens: {listed}; {order}.")
    return "\n".join(lines)
