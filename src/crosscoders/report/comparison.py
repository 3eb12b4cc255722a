"""Which crosscoder a study should use: members trained on one set of activations, compared from a summary alone."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import xarray as xr

from crosscoders.report.figures import PALETTE, SEED_MARKS, NothingToDraw, budget, crosscoders, grid, seeds
from crosscoders.report.null_figures import rates

MATCHED = 0.2
"""Largest relative distance of L0 from the median of the members at which it counts as matched."""
COLUMNS = {
    "fve": "fraction of variance explained\n(mean of its sources)",
    "l0": "L0",
    "dead": "dead share",
    "chat_only": "chat-only by norm\n(share of alive latents)",
    "specific": "chat-specific by ν\n(share of alive latents)",
    "lift": "lift at the highest Δ of planted\nand template tokens",
}

FORMS = {
    "fve": "{:.3f}",
    "l0": "{:.1f}",
    "dead": "{:.3f}",
    "chat_only": "{:.4f}",
    "specific": "{:.4f}",
    "lift": "{:.1f}",
}


def series(summary: xr.Dataset) -> dict[str, list[str]]:
    """The crosscoders of every member of the family, by rising tokens seen in training."""
    found: dict[str, list[str]] = {}
    for name in sorted(crosscoders(summary), key=lambda name: tokens_seen(summary, name)):
        member = summary["member"].sel(crosscoder=name).item() if "member" in summary else name
        found.setdefault(member, []).append(name)
    return found


def tokens_seen(summary: xr.Dataset, crosscoder: str) -> int:
    """Tokens that a crosscoder saw in training; −1 where that is not known."""
    return int(summary["training_tokens"].sel(crosscoder=crosscoder).max())


def measures(summary: xr.Dataset, crosscoder: str, seed: int) -> dict[str, tuple[float, float, float]]:
    """What is compared, for one training: value and ends of its 95% interval; NaN where there is none.

    Intervals are over documents; those of rates of latents are as in :func:`null_figures.rates`.
    """
    one = summary.sel(crosscoder=crosscoder, seed=seed)
    called = rates(summary.sel(seed=[seed]), crosscoder) if float(one["called"].sel(call="alive")) > 0 else {}

    def of(variable: xr.DataArray, name: str) -> tuple[float, float, float]:
        return tuple(float(variable[f"{name}{end}"].mean()) for end in ("", "_low", "_high"))

    lift = (np.nan,) * 3
    if "category" in one.dims:
        lift = of(one.sel(category="planted_or_template").isel(group=-1), "enrichment_lift")
    return {
        "fve": of(one, "fraction_variance_explained"),
        "l0": of(one, "l0"),
        "dead": (float(one["dead_fraction"]), np.nan, np.nan),
        "chat_only": called.get("chat-only", (np.nan,) * 3)[:3],
        "specific": called.get("chat-specific", (np.nan,) * 3)[:3],
        "lift": lift,
    }


def table(summary: xr.Dataset) -> dict[str, dict[str, np.ndarray]]:
    """Measures of every member, (seeds, 3): value, lower and upper end."""
    by_member: dict[str, dict[str, np.ndarray]] = {}
    for name in crosscoders(summary):
        rows = [measures(summary, name, int(seed)) for seed in seeds(summary, name)]
        by_member[name] = {key: np.array([row[key] for row in rows]) for key in COLUMNS}
    return by_member


def compare(summary: xr.Dataset) -> plt.Figure:
    """ours-compare: every measure by member; a mark per seed, with its interval."""
    by_member = table(summary)
    figure, axes = grid(len(COLUMNS), 3, 0.75 + 0.21 * len(by_member), sharey=True)
    for axis, (key, label) in zip(axes, COLUMNS.items(), strict=True):
        for row, columns in enumerate(by_member.values()):
            value, low, high = columns[key].T
            place = row + 0.16 * (np.arange(len(value)) - (len(value) - 1) / 2)
            bars = np.nan_to_num([value - low, high - value]).clip(min=0)
            axis.errorbar(value, place, xerr=bars, fmt="none", capsize=2, color=PALETTE[0])
            for seed, (at, along) in enumerate(zip(place, value, strict=True)):
                axis.plot(along, at, SEED_MARKS[seed % 4], ms=4, color=PALETTE[0])
        axis.set_xlabel(label)
        axis.grid(axis="y", lw=0.4)
        axis.locator_params(axis="x", nbins=4)
    axes[0].set_yticks(range(len(by_member)), list(by_member))
    axes[0].set_ylim(len(by_member) - 0.5, -0.5)
    axes[0].set_xlim(None, 1)
    figure.suptitle("a mark per seed; bars: 95% over documents, of rates also over latents")
    sns.despine(figure, left=True)
    return figure


def shown(values: np.ndarray, form: str) -> str:
    """The mean over seeds of a measure, and the widest ends of the seeds' intervals, as text."""
    if np.isnan(values[:, 0]).all():
        return "–"
    text = form.format(np.nanmean(values[:, 0]))
    if np.isnan(values[:, 1:]).all():
        return text
    return f"{text} [{form.format(np.nanmin(values[:, 1]))}, {form.format(np.nanmax(values[:, 2]))}]"


def as_markdown(summary: xr.Dataset) -> str:
    """The table in Markdown: the mean over seeds, and the widest ends of their intervals."""
    heads = ["member", "tokens", "FVE", "L0", "dead", "chat-only", "chat-specific", "lift"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    for name, columns in table(summary).items():
        seen = tokens_seen(summary, name)
        tokens = f"{seen:,}" if seen > 0 else "–"
        lines.append(
            "| " + " | ".join([name, tokens, *(shown(columns[key], form) for key, form in FORMS.items())]) + " |"
        )
    return "\n".join(lines)


def answer(summary: xr.Dataset) -> str:
    """Four lines: the best reconstruction at matched L0, the best ranking, who claims most, and the tokens seen.

    Of a member that is trained for several numbers of tokens the longest training counts.

    Raises
    ------
    NothingToDraw
        No member has latents of which a relative norm is known.
    """
    longest = {names[-1] for names in series(summary).values()}
    summary = summary.sel(crosscoder=[name for name in crosscoders(summary) if name in longest])
    means = {
        name: {key: np.mean(values[:, 0]) for key, values in columns.items()}
        for name, columns in table(summary).items()
    }
    middle = float(np.median([columns["l0"] for columns in means.values()]))
    diffing = {name: columns for name, columns in means.items() if np.isfinite(columns["chat_only"])}
    if not diffing:
        raise NothingToDraw("No member has latents that fire on the test documents in every seed.")
    claims = _best(diffing, "chat_only")
    return "\n".join(
        [
            f"- **Reconstruction**: {_reconstruction(diffing, middle)}",
            f"- **Ranking**: {_ranking(diffing)}",
            f"- **Claims**: {claims} calls the largest share of its latents chat-only "
            f"({means[claims]['chat_only']:.2%}); {means[claims]['specific']:.2%} pass latent scaling.",
            f"- **Budget**: {budget(summary)}",
        ]
    )


def _best(group: dict[str, dict[str, float]], key: str) -> str:
    """The member with the largest mean of a measure."""
    return max(group, key=lambda name: np.nan_to_num(group[name][key], nan=-1))


def _reconstruction(diffing: dict[str, dict[str, float]], middle: float) -> str:
    """Who explains most among members whose L0 is near that of the middle one."""
    matched = {name: columns for name, columns in diffing.items() if abs(columns["l0"] / middle - 1) <= MATCHED}
    if not matched:
        return f"no member has an L0 within {MATCHED:.0%} of {middle:.0f}, so that none can be compared."
    rebuilt, outside = _best(matched, "fve"), sorted(set(diffing) - set(matched))
    return (
        f"{rebuilt} explains most ({matched[rebuilt]['fve']:.3f}) among members with L0 within "
        f"{MATCHED:.0%} of {middle:.0f}" + (f"; not matched: {', '.join(outside)}." if outside else ".")
    )


def _ranking(diffing: dict[str, dict[str, float]]) -> str:
    """Whose highest relative norms fall on what was planted."""
    ranked = _best(diffing, "lift")
    if not np.isfinite(diffing[ranked]["lift"]):
        return "no test token belongs to a planted behaviour or to a chat template, so that none can be ranked."
    return (
        f"the highest Δ of {ranked} fall most on what was planted ({diffing[ranked]['lift']:.1f} times the base rate)."
    )
