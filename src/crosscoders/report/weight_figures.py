"""What changes of weights without training bring about, beside a fine-tune: figure and sentences on rounded models."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr

from crosscoders.report.figures import PAGE_WIDTH, PALETTE, NothingToDraw
from crosscoders.report.null_figures import LOWEST_RATE, RATES, compared, enrichment, rates

Measure = Callable[[xr.Dataset], np.ndarray]
"""A value of a summary with the ends of its interval, (3,)."""
FINE_TUNE = "fine-tune"
ABSENT = "This study has no null whose weights are rounded; `studies/nulls-weights.yaml` has."


def rounded(controls: dict[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """The nulls whose second model is rounded, from many bits to few.

    Parameters
    ----------
    controls : {setting: xarray.Dataset}
        Summaries of nulls.

    Returns
    -------
    {setting: xarray.Dataset}

    Raises
    ------
    NothingToDraw
        There is none.
    """
    found = {name: one for name, one in controls.items() if np.isfinite(one.get("weight_bits", np.nan))}
    if not found:
        raise NothingToDraw(ABSENT)
    return dict(sorted(found.items(), key=lambda item: -float(item[1]["weight_bits"])))


def others(summary: xr.Dataset, controls: dict[str, xr.Dataset]) -> dict[str, xr.Dataset]:
    """The fine-tune and the nulls that are not rounded, beside which rounding is shown."""
    beside = {name: one for name, one in controls.items() if name not in rounded(controls)}
    return {FINE_TUNE: summary, **{name.removeprefix("null-"): one for name, one in beside.items()}}


def rounding(summary: xr.Dataset, controls: dict[str, xr.Dataset]) -> plt.Figure:
    """ours-rounding: calls, lift, change of weights and of predictions against bits, beside the fine-tune and nulls."""
    columns, beside = rounded(controls), others(summary, controls)
    names = compared(summary, columns)
    lifts = all(enrichment(one, name) for one in columns.values() for name in names)
    bits = np.array([float(one["weight_bits"]) for one in columns.values()])
    colours = {label: PALETTE[(3, 0, 2, 1, 4, 5, 6)[i % 7]] for i, label in enumerate(beside)}
    rows = 2 + lifts
    figure, axes = plt.subplots(rows, len(names) + 1, figsize=(PAGE_WIDTH, 0.8 + 1.9 * rows), sharex=True)

    def draw(axis: plt.Axes, measure: Measure, among: dict[str, xr.Dataset]) -> None:
        found = {label: measure(one) for label, one in among.items()}
        _against_bits(axis, bits, [measure(one) for one in columns.values()], found, colours)

    for c, name in enumerate(names):
        having = {label: one for label, one in beside.items() if name in one["crosscoder"].values}
        for axis, call in zip(axes[:, c], ("chat-only", "chat-specific"), strict=False):
            draw(axis, lambda one, n=name, k=call: np.maximum(rates(one, n)[k][:3], LOWEST_RATE), having)
            axis.set(ylabel=f"share {RATES[call]}", yscale="log", ylim=(LOWEST_RATE / 1.5, 1.2))
        if lifts:
            having = {label: one for label, one in having.items() if enrichment(one, name)}
            draw(axes[2, c], lambda one, n=name: np.array(enrichment(one, n)[:3]), having)
            axes[2, c].set_ylabel("lift, highest Δ")
        axes[0, c].set_title(name)
    changed = {label: one for label, one in beside.items() if "weight_change" in one}
    for axis, measure, title in ((axes[0, -1], _change, "change of weights"), (axes[1, -1], _divergence, "KL, nats")):
        draw(axis, measure, changed)
        axis.set(ylabel=title, yscale="log")
    axes[0, -1].set_title("the models")
    for axis in [*axes[-1, :-1], axes[1, -1]]:
        axis.set(xlabel="bits per weight", xticks=bits, xlim=(bits.max() + 0.5, bits.min() - 0.5))
        axis.tick_params(labelbottom=True)
    legend = {"title": f"bars and bands: 95%\nshares at {LOWEST_RATE:g}: none"}
    if lifts:
        axes[2, -1].axis("off")
        axes[2, -1].legend(*axes[0, 0].get_legend_handles_labels(), loc="center", **legend)
    else:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, **legend)
    sns.despine(figure)
    return figure


def _against_bits(
    axis: plt.Axes, bits: np.ndarray, found: list[np.ndarray], beside: dict[str, np.ndarray], colours: dict[str, tuple]
) -> None:
    """Values with the ends of their intervals, (3,), against bits; those of models without bits as bands."""
    value, low, high = np.array(found).T
    axis.errorbar(bits, value, yerr=[value - low, high - value], fmt="o-", color="black", capsize=3, label="rounded")
    for label, (value, low, high) in beside.items():
        axis.axhline(value, color=colours[label], lw=2.4 if label == FINE_TUNE else 1.2, label=label)
        axis.axhspan(low, high, color=colours[label], alpha=0.12, lw=0)


def _change(one: xr.Dataset) -> np.ndarray:
    """Relative change of the weights, which is known exactly, as a value without an interval, (3,)."""
    return np.full(3, float(one["weight_change"]))


def _divergence(one: xr.Dataset) -> np.ndarray:
    """KL divergence of the second model's predictions with the ends of its interval, (3,)."""
    return np.array([float(one[f"model_kl_divergence{end}"]) for end in ("", "_low", "_high")])


# -- sentences ---------------------------------------------------------------------------------------------------------


def sentences(summary: xr.Dataset, controls: dict[str, xr.Dataset]) -> str:
    """By how much every change of the model alters weights, predictions and the rate of chat-only latents."""
    lines = []
    for label, one in {**others(summary, controls), **rounded(controls)}.items():
        if "weight_change" not in one:
            continue
        kl, low, high = _divergence(one)
        loss = [float(one[f"model_loss_difference{end}"]) for end in ("", "_low", "_high")]
        calls = "; ".join(
            f"{name} {100 * rate:.2f}% ({100 * low_rate:.2f} to {100 * high_rate:.2f})"
            for name in map(str, one["crosscoder"].values)
            for rate, low_rate, high_rate, _ in [rates(one, name)["chat-only"]]
        )
        lines.append(
            f"- **{label.removeprefix('null-')}**: the weights change by {100 * float(one['weight_change']):.2g}% of their "
            f"norm, the loss by {loss[0]:+.3g} nats ({loss[1]:+.3g} to {loss[2]:+.3g}), KL is {kl:.3g} nats ({low:.3g} to "
            f"{high:.3g}); called chat-only by norm: {calls}."
        )
    return "\n".join(lines)
