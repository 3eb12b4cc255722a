"""What changes of weights without training bring about, beside a fine-tune: figure and sentences on rounded models."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr

from crosscoders.report.figures import PAGE_WIDTH, PALETTE, NothingToDraw
from crosscoders.report.null_figures import LOWEST_RATE, RATES, compared, rates

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
    """ours-rounding: calls, change of weights and change of predictions against bits, beside the fine-tune and nulls."""
    columns, beside = rounded(controls), others(summary, controls)
    names = compared(summary, columns)
    bits = np.array([float(one["weight_bits"]) for one in columns.values()])
    colours = {label: PALETTE[(3, 0, 2, 1, 4, 5, 6)[i % 7]] for i, label in enumerate(beside)}
    figure, axes = plt.subplots(2, len(names) + 1, figsize=(PAGE_WIDTH, 4.8), sharex=True)
    for row, call in zip(axes, ("chat-only", "chat-specific"), strict=True):
        for axis, name in zip(row, names, strict=False):
            having = {label: one for label, one in beside.items() if name in one["crosscoder"].values}
            called = {
                label: np.maximum(rates(one, name)[call][:3], LOWEST_RATE) for label, one in (columns | having).items()
            }
            _against_bits(axis, bits, [called.pop(label) for label in columns], called, colours)
            axis.set(ylabel=f"share {RATES[call]}", yscale="log", ylim=(LOWEST_RATE / 1.5, 1.2))
            axis.set_title(name if call == "chat-only" else "")
    for axis, measure, label in (
        (axes[0, -1], _change, "relative norm of the weights' change"),
        (axes[1, -1], _divergence, "KL divergence of predictions (nats)"),
    ):
        measured = {label: measure(one) for label, one in beside.items() if "weight_change" in one}
        _against_bits(axis, bits, [measure(one) for one in columns.values()], measured, colours)
        axis.set(ylabel=label, yscale="log")
    for axis in axes[1]:
        axis.set(xlabel="bits per weight", xticks=bits, xlim=(bits.max() + 0.5, bits.min() - 0.5))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=4,
        title=f"bars and bands: 95%; rates at {LOWEST_RATE:g}: none",
    )
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
