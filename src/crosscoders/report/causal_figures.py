"""Figures and sentences of what latents cause: steering, ablation, and their effects in two models."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr

from crosscoders.report.figures import (
    PAGE_WIDTH,
    PALETTE,
    SEED_MARKS,
    NothingToDraw,
    crosscoders,
    grid,
    label_rows,
    of,
    seeds,
)

BEHAVIOUR_LABELS = {
    "refusal_on_target": "refuses the\nrefused topic",
    "refusal_off_target": "refuses\nother topics",
    "tag_present": "writes\na topic tag",
    "tag_right": "writes the\nright tag",
    "persona": "gives its\nname",
}
FLUENCY = {
    "steering_not_fluent": "not fluent to\nthis model",
    "steering_not_fluent_to_both": "fluent to\nneither model",
}
UNMODIFIED, RANDOM = "unmodified", "random"


def _steered(summary: xr.Dataset, crosscoder: str) -> xr.Dataset | None:
    """What was measured with one crosscoder; None where it steered nothing."""
    names = [name for name in summary.data_vars if name.startswith("steering_")]  # a choice from all would take long
    one = of(summary, crosscoder)[names]
    measured = (one["steering_set"] != "").all("seed").values
    return one.isel(intervention=measured) if measured.any() else None


def _quantities(one: xr.Dataset) -> dict[str, tuple[str, xr.Dataset]]:
    """The columns: label of every behaviour that was asked for and of either count of fluency, with its variable."""
    asked = [name for name in BEHAVIOUR_LABELS if (one["steering_prompts"].sel(steered_behaviour=name) > 0).all()]
    columns = {BEHAVIOUR_LABELS[name]: ("steering_rate", one.sel(steered_behaviour=name)) for name in asked}
    return columns | {label: (name, one) for name, label in FLUENCY.items()}


def _of_side(one: xr.Dataset, side: str) -> tuple[xr.Dataset, list[str], list[float]]:
    """The interventions of one side, its sets without random ones, and its strengths."""
    one = one.isel(intervention=(one["steering_side"].isel(seed=0) == side).values)
    names = dict.fromkeys(str(name) for name in one["steering_set"].isel(seed=0).values)
    sets = [name for name in names if name != UNMODIFIED and not name.startswith(RANDOM)]
    strengths = sorted({float(value) for value in one["steering_strength"].isel(seed=0).values if np.isfinite(value)})
    return one, sets, strengths or [np.nan]


def _chosen(one: xr.Dataset, strength: float, begins: str) -> xr.Dataset:
    """The interventions of a strength whose sets' names begin so."""
    first = one.isel(seed=0) if "seed" in one.dims else one
    of_set = np.array([str(name).startswith(begins) for name in first["steering_set"].values])
    value = first["steering_strength"].values
    return one.isel(intervention=of_set & (np.isnan(value) if np.isnan(strength) else value == strength))


def steering(summary: xr.Dataset) -> plt.Figure:
    """ours-steering: rates of behaviours with latents added to base and ablated from chat, beside random sets."""
    measured = {name: one for name in crosscoders(summary) if (one := _steered(summary, name)) is not None}
    rows = [(name, side) for name in measured for side in ("base", "chat")]
    sides = {row: _of_side(measured[row[0]], row[1]) for row in rows}
    heights = [len(sets) * (1 + 0.6 * len(strengths)) for _, sets, strengths in sides.values()]
    columns = max((_quantities(one) for one in measured.values()), key=len)
    figure, axes = plt.subplots(
        len(rows),
        len(columns),
        figsize=(PAGE_WIDTH, 1.0 + 0.17 * sum(heights)),
        squeeze=False,
        sharex=True,
        sharey="row",
        height_ratios=heights,
    )
    for line, row in zip(axes, rows, strict=True):
        one, sets, strengths = sides[row]
        for axis, (label, (variable, part)) in zip(line, _quantities(one).items(), strict=False):
            _rates(axis, part, variable, sets, strengths)
            axis.set_title(label if row == rows[0] else "")
        line[0].set_yticks(range(len(sets)), sets)
        line[0].set_ylim(len(sets) - 0.4, -0.6)
        done = f"added to {summary.attrs['base']}" if row[1] == "base" else f"ablated from {summary.attrs['chat']}"
        line[0].set_ylabel(f"{row[0]}:\n{done}")
    for axis in axes.flat:
        axis.set(xlim=(-0.05, 1.05), xticks=[0, 0.5, 1])
        axis.set_xticklabels(["0", "½", "1"])
        axis.tick_params(length=2)
    _legend(figure, sides)
    sns.despine(figure)
    return figure


def _rates(axis: plt.Axes, one: xr.Dataset, variable: str, sets: list[str], strengths: list[float]) -> None:
    """One panel: a row per set, in it a line per strength and seed, over the range of the random sets."""
    for i, strength in enumerate(strengths):
        shift = 0.8 * ((i + 0.5) / len(strengths) - 0.5)
        null = _chosen(one, strength, RANDOM)[variable].values
        for place, name in enumerate(sets):
            if null.size:
                axis.barh(
                    place + shift,
                    null.max() - null.min() + 0.03,
                    0.75 / len(strengths),
                    left=null.min() - 0.015,
                    color=PALETTE[7],
                    alpha=0.45,
                    lw=0,
                )
            for s in range(one.sizes["seed"]):
                here = _chosen(one.isel(seed=s), strength, name).isel(intervention=0)
                value = float(here[variable])
                low, high = float(here[f"{variable}_low"]), float(here[f"{variable}_high"])
                inside = 0.5 * (s - (one.sizes["seed"] - 1) / 2) / (len(strengths) * one.sizes["seed"])
                axis.errorbar(
                    value,
                    place + shift + inside,
                    xerr=[[max(value - low, 0)], [max(high - value, 0)]],
                    fmt=SEED_MARKS[s % 4],
                    ms=2.8,
                    lw=0.7,
                    color=_colour(i, strengths),
                )
    axis.axvline(float(_chosen(one, np.nan, UNMODIFIED)[variable].mean()), color="black", lw=0.8, ls="--")


def _colour(i: int, strengths: list[float]) -> tuple:
    return PALETTE[3] if len(strengths) == 1 else sns.color_palette("flare", len(strengths))[i]


def _legend(figure: plt.Figure, sides: dict) -> None:
    """What colours, marks, the band and the line stand for, below the panels."""
    strengths = next(strengths for (_, side), (_, _, strengths) in sides.items() if side == "base")
    one = max((part for part, _, _ in sides.values()), key=lambda part: part.sizes["seed"])
    handles = [
        plt.Line2D([], [], color=_colour(i, strengths), lw=2, label=f"{strength:g} times the unit added")
        for i, strength in enumerate(strengths)
    ]
    handles += [
        plt.Line2D([], [], color="0.3", marker=SEED_MARKS[s % 4], ms=3, lw=0.7, label=f"seed {seed}, 95% Wilson")
        for s, seed in enumerate(one["seed"].values)
    ]
    handles.append(plt.Rectangle((0, 0), 1, 1, color=PALETTE[7], alpha=0.45, label="range of random sets"))
    handles.append(plt.Line2D([], [], color="black", lw=0.8, ls="--", label="unmodified model"))
    style = {"title": "share of answers", "frameon": False}
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4), **style)
    figure.get_layout_engine().set(w_pad=0.08)


def steering_sentences(summary: xr.Dataset) -> str:
    """For every crosscoder and model, which set moves which behaviour most beyond the random sets, and at what cost."""
    lines = []
    for name in crosscoders(summary):
        one = _steered(summary, name)
        for side, done in (("base", "added to"), ("chat", "ablated from")) if one is not None else ():
            part, sets, strengths = _of_side(one, side)
            asked = [b for b in BEHAVIOUR_LABELS if (part["steering_prompts"].sel(steered_behaviour=b) > 0).all()]
            words = {b: BEHAVIOUR_LABELS[b].replace("\n", " ") for b in asked}
            told = {b: _moved(part.sel(steered_behaviour=b), words[b], sets, strengths) for b in asked}
            moved, same = [text for text in told.values() if text], [words[b] for b in asked if not told[b]]
            if same:
                moved.append(f"No set takes how often it {', '.join(same)} beyond the range of the random sets.")
            lines.append(f"- **{name}**, {done} {summary.attrs[side]}: {' '.join(moved)}")
    return "\n".join(lines)


def _moved(one: xr.Dataset, words: str, sets: list[str], strengths: list[float]) -> str:
    """The set that moves a behaviour furthest from the unmodified model, of those beyond the random sets; else nothing.

    Rates are means over seeds, and intervals the widest of the seeds.
    """
    before, furthest = float(_chosen(one, np.nan, UNMODIFIED)["steering_rate"].mean()), None
    for strength in strengths:
        null = np.append(_chosen(one, strength, RANDOM)["steering_rate"].values, before)
        for name in sets:
            rate = float(_chosen(one, strength, name)["steering_rate"].mean())
            beyond = rate < null.min() or rate > null.max()
            if beyond and (furthest is None or abs(rate - before) > abs(furthest[2] - before)):
                furthest = name, strength, rate, null[:-1]
    if furthest is None:
        return ""
    name, strength, rate, null = furthest
    here = _chosen(one, strength, name)
    low, high = float(here["steering_rate_low"].min()), float(here["steering_rate_high"].max())
    beside = f"; random sets {null.min():.0%} to {null.max():.0%}" if null.size else ""
    at = "" if np.isnan(strength) else f" at {strength:g} times the unit"
    return (
        f"It {words} in {before:.0%} of its answers, and in {rate:.0%} ({low:.0%} to {high:.0%}{beside}) with the set "
        f"{name!r}{at}, where {float(here['steering_not_fluent_to_both'].mean()):.0%} of answers are fluent to neither model."
    )


# -- causal equivalence ------------------------------------------------------------------------------------------------


def _compared(summary: xr.Dataset) -> dict[str, xr.Dataset]:
    """The crosscoders whose latents were compared."""
    every = {name: summary.sel(crosscoder=name) for name in crosscoders(summary)}
    return {name: one for name, one in every.items() if np.isfinite(one["effect_correlation"]).any()}


def cosine_against_causal(summary: xr.Dataset) -> plt.Figure:
    """ours-cosine-vs-causal: correlation of a latent's effects in two models against the cosine of its decoder vectors."""
    measured = _compared(summary)
    if not measured:
        raise NothingToDraw("No shared latent of this setting is active on enough test documents to be compared.")
    figure, axes = grid(len(measured), 2, 3.4, sharey=True)
    for axis, (name, one) in zip(axes, measured.items(), strict=True):
        for s, seed in enumerate(one["seed"].values):
            _effects(axis, one.sel(seed=seed), SEED_MARKS[s % 4], f"seed {seed}")
            axis.axhline(
                float(one["effect_null_limit"].sel(seed=seed)),
                color="black",
                lw=0.8,
                ls="--",
                label="95% of the null" if s == 0 else None,
            )
        axis.set(xlabel="cosine of the two decoder vectors", title=name, ylim=(None, 1.05))
    label_rows(dict(zip(measured, axes, strict=True)), "correlation of effects on logits")
    handles, labels = axes[0].get_legend_handles_labels()
    style = {"title": "bars: 95% over documents", "frameon": False}
    figure.legend(handles, labels, loc="outside lower center", ncols=1 if len(measured) == 1 else 3, **style)
    sns.despine(figure)
    return figure


def _effects(axis: plt.Axes, one: xr.Dataset, mark: str, label: str) -> None:
    """The compared latents of one training: their null in grey, themselves with intervals."""
    cosine = one["effect_cosine"].values
    for name, colour, shown in (
        ("effect_null_correlation", PALETTE[7], f"{label}, another latent of the token"),
        ("effect_correlation", PALETTE[3], label),
    ):
        value = one[name].values
        bars = np.abs([value - one[f"{name}_low"].values, one[f"{name}_high"].values - value])
        axis.errorbar(cosine, value, yerr=bars, fmt=mark, ms=3, lw=0.5, alpha=0.7, color=colour, label=shown)


def equivalence_sentences(summary: xr.Dataset) -> str:
    """How alike latents' effects are, beside the null, and how often one direction is another role."""
    lines = []
    for name, one in _compared(summary).items():
        for seed in seeds(summary, name):
            here = one.sel(seed=seed)
            medians = [float(here[f"effect_{key}"].median()) for key in ("cosine", "correlation", "null_correlation")]
            share = [float(here[f"effect_other_role_share{end}"]) for end in ("", "_low", "_high")]
            compared, same = int(np.isfinite(here["effect_correlation"]).sum()), int(here["effect_same_direction"])
            line = (
                f"- **{name}, seed {seed}**: over {compared} shared latents the decoder vectors' cosine has median "
                f"{medians[0]:.2f}, the correlation of their effects {medians[1]:.2f}, and that of different latents at one "
                f"token {medians[2]:.2f}."
            )
            if np.isfinite(share[0]):
                line += (
                    f" Of {same} latents of one direction, {share[0]:.0%} [{share[1]:.0%}, {share[2]:.0%}] have effects that "
                    "are no more alike than 95% of the null's."
                )
            lines.append(line)
    return "\n".join(lines)
