"""Sentences that say what the figures show, made from the numbers of a summary, never from the papers."""

from __future__ import annotations

import json

import numpy as np
import xarray as xr

from crosscoders.report import figures, layer_figures


def _over_seeds(values: list[float], form: str = "{:.2f}") -> str:
    """A value, or the range of several."""
    low, high = min(values), max(values)
    shown = form.format(low), form.format(high)
    return shown[0] if shown[0] == shown[1] else f"{shown[0]} to {shown[1]}"


def _trainings(summary: xr.Dataset, crosscoder: str) -> list[xr.Dataset]:
    return [summary.sel(crosscoder=crosscoder, seed=seed) for seed in figures.seeds(summary, crosscoder)]


def _with_interval(value: float, low: float, high: float, form: str = "{:.2f}") -> str:
    """A value and its interval; the value alone where no interval is known, as for one document."""
    shown = form.format(value)
    return f"{shown} [{form.format(low)}, {form.format(high)}]" if np.isfinite([low, high]).all() else shown


def _silent(summary: xr.Dataset, crosscoder: str) -> str:
    """A line that says so where a crosscoder has, in some seed, no latent that fires; else nothing."""
    seeds = [str(one["seed"].values) for one in _trainings(summary, crosscoder) if not len(figures.alive(one))]
    return f"- **{crosscoder}**: no latent fires on the test documents (seed {', '.join(seeds)})." if seeds else ""


def evaluation(summary: xr.Dataset) -> str:
    """Reconstruction, sparsity and dead share of every crosscoder, after what part of the text is compared."""
    lines = _compared(summary)
    for name in figures.crosscoders(summary):
        trainings = _trainings(summary, name)
        explained = "; ".join(
            f"{source}: {_over_seeds(values, '{:.3f}')}"
            for source in summary["source"].values
            for values in [[float(one["fraction_variance_explained"].sel(source=source)) for one in trainings]]
            if np.isfinite(values).all()
        )
        l0 = _over_seeds([float(one["l0"]) for one in trainings], "{:.1f}")
        dead = _over_seeds([100 * float(one["dead_fraction"]) for one in trainings], "{:.1f}")
        lines.append(
            f"- **{name}** explains, of the variance of held-out documents, {explained}; "
            f"{l0} latents are active per token; {dead}% of latents never fire on the test tokens."
            + (_recovered(summary, trainings) if "cross_entropy_recovered" in summary else "")
        )
    return "\n".join([*lines, *(f"- {line}" for line in (figures.budget(summary),) if line)])


def _compared(summary: xr.Dataset) -> list[str]:
    """A line on the share of the test tokens that is compared, where it is not all of them."""
    lines = []
    if "lacked_share" in summary:
        lines.append(
            f"- A model lacks {float(summary['lacked_share']):.2%} of the test tokens in its vocabulary. It reads its "
            "unknown token there, and these tokens are counted nowhere."
        )
    if "covered_share" in summary:
        shares = zip(summary["tokenizer"].values, summary["covered_share"].values, strict=True)
        listed = " and ".join(f"{share:.1%} of the tokens of {name}" for name, share in shares)
        lines.append(
            "- The models have different tokenizers. They are compared where a token of each ends at the same character: "
            f"these are {listed}. Losses are per token of each model's own tokenizer."
        )
    return lines


def _recovered(summary: xr.Dataset, trainings: list[xr.Dataset]) -> str:
    """Loss recovered, and the losses it is made of."""
    parts = []
    for source in summary["source"].values:
        chosen = [one.sel(source=source) for one in trainings]
        if not np.isfinite(chosen[0]["cross_entropy_recovered"]).all():
            continue
        shares = ", ".join(
            f"{_over_seeds([float(one['cross_entropy_recovered'].sel(ablation=ablation)) for one in chosen], '{:.3f}')}"
            f" of {ablation}"
            for ablation in summary["ablation"].values
        )
        losses = ", ".join(
            f"{replacement} {_over_seeds([float(one['cross_entropy'].sel(replacement=replacement)) for one in chosen])}"
            for replacement in summary["replacement"].values
        )
        parts.append(f"{source} {shares} (nats per token: {losses})")
    return (
        f" Spliced into its model it recovers, of the loss that an ablation costs: {'; '.join(parts)}." if parts else ""
    )


def classes(summary: xr.Dataset) -> str:
    """Class counts by relative norm, and how many latents pass latent scaling, with intervals over documents."""
    limits, lines = figures.thresholds(summary), []
    for name in figures.crosscoders(summary):
        if line := _silent(summary, name):
            lines.append(line)
            continue
        counts = [_counted(figures.of(summary, name), label) for label in figures.CLASSES]
        top = [float(one["relative_norm"].values[figures.alive(one)].max()) for one in _trainings(summary, name)]
        lines.append(
            f"- **{name}**: {', '.join(counts)}. The largest Δ is {_over_seeds(top)}. Of latents that pass latent "
            "scaling on validation documents and on test documents: "
            f"{_counted(figures.of(summary, name), 'chat-specific')}, "
            f"{_counted(figures.of(summary, name), 'base-specific')}."
        )
        if not figures.of(summary, name)["called"].sel(call="chat-only").any():
            lines.append(
                f"  No latent reaches Δ ≥ {limits['chat_only_above']:g}: counts of exclusive latents say nothing on "
                "this pair, and the evidence is the enrichment along the ranking below."
            )
    return "\n".join(lines)


def relative_norms(summary: xr.Dataset) -> str:
    """Where relative norms lie, every seed."""
    first, last, lines = summary.attrs["base"], summary.attrs["chat"], []
    for name in figures.crosscoders(summary):
        if line := _silent(summary, name):
            lines.append(line)
            continue
        shares = []
        for one in _trainings(summary, name):
            delta = one["relative_norm"].values[figures.alive(one)]
            shares.append([100 * (delta <= 0.1).mean(), 100 * (delta >= 0.9).mean(), np.median(delta)])
        lows, highs, medians = zip(*shares, strict=True)
        lines.append(
            f"- **{name}**: of alive latents {_over_seeds(list(lows), '{:.1f}')}% are written to {first} alone "
            f"(Δ ≤ 0.1), {_over_seeds(list(highs), '{:.1f}')}% to {last} alone (Δ ≥ 0.9); the median Δ is "
            f"{_over_seeds(list(medians))}."
        )
    return "\n".join(lines)


def _counted(one: xr.Dataset, call: str) -> str:
    """Count of a call, every seed with its 95% interval over documents."""
    chosen = one.sel(call=call)
    columns = (chosen[name].values.tolist() for name in ("called", "called_low", "called_high"))
    return f"{call} " + " and ".join(
        _with_interval(count, np.clip(low, 0, None), np.clip(high, 0, None), "{:,.0f}")
        for count, low, high in zip(*columns, strict=True)
    )


def similarity(summary: xr.Dataset) -> str:
    """CKA and SVCCA of neighbouring sources and of the first and the last."""
    names = [str(name) for name in summary["compared_source"].values]
    lines = []
    for measure in ("cka", "svcca"):
        shown = []
        for a, b in dict.fromkeys([*zip(names, names[1:], strict=False), (names[0], names[-1])]):
            cell = summary.sel(source=a, compared_source=b)
            value, low, high = (float(cell[f"{measure}{end}"]) for end in ("", "_low", "_high"))
            shown.append(f"{a} and {b} {_with_interval(value, low, high)}")
        lines.append(f"- **{measure.upper()}**: {'; '.join(shown)}.")
    return "\n".join(lines)


def scaling(summary: xr.Dataset) -> str:
    """Median ν of chat-leaning and of shared latents."""
    lines = []
    for name in figures.crosscoders(summary):
        one = figures.select(summary, name)
        chosen, shared = figures.leaning(one), figures.shared(one)
        parts = []
        for target in ("error", "reconstruction"):
            values = one[f"nu_{target}"].values
            if not np.isfinite(values[chosen]).any():
                parts.append(f"ν of the {target} is undefined for all of them")
                continue
            low, high = one[f"nu_{target}_low"].values[chosen], one[f"nu_{target}_high"].values[chosen]
            median, low, high = (float(np.nanmedian(part)) for part in (values[chosen], low, high))
            parts.append(f"ν of the {target} has median {median:.2f}")
            if np.isfinite([low, high]).all():
                parts[-1] += f" (median interval {low:.2f} to {high:.2f})"
            if np.isfinite(values[shared]).any():
                parts[-1] += f" against {np.nanmedian(values[shared]):.2f} for shared latents"
        lines.append(f"- **{name}**, {len(chosen)} most chat-leaning latents: " + "; ".join(parts) + ".")
    return "\n".join(lines)


def causal(summary: xr.Dataset) -> str:
    """How much of the gap between the models each patch closes, over all response tokens, beside its controls."""
    lines = []
    for name in figures.crosscoders(summary):
        one = figures.of(summary, name).sel(segment="all")
        shown = []
        for condition in (
            "all",
            "error",
            "best half by Δ",
            "worst half by Δ",
            "best half by ν",
            "worst half by ν",
            "template",
            "mean difference",
        ):
            if condition in one["condition"].values and np.isfinite(one["gap_closed"].sel(condition=condition)).all():
                shown.append(f"{condition} {_interval(one, condition)}")
        random = [str(c) for c in one["condition"].values if str(c).startswith("random")]
        if random and np.isfinite(one["gap_closed"].sel(condition=random)).all():
            values = one["gap_closed"].sel(condition=random).values.ravel().tolist()
            shown.append(f"random sets as frequent and as large {_over_seeds(values)}")
        lines.append(f"- **{name}**, share of the divergence that is gone: {'; '.join(shown)}.")
    return "\n".join(lines)


def _interval(one: xr.Dataset, condition: str) -> str:
    """Gap closed by a condition, mean over seeds, with the widest ends of the intervals."""
    chosen = one.sel(condition=condition)
    low, high = float(chosen["gap_closed_low"].min()), float(chosen["gap_closed_high"].max())
    return _with_interval(float(chosen["gap_closed"].mean()), low, high)


def enrichment(summary: xr.Dataset) -> str:
    """Lift of planted behaviours and template tokens at the top of the ranking."""
    if bool(summary["enrichment_lift"].sel(category="planted_or_template").isnull().all()):
        raise figures.NothingToDraw("No test token belongs to a planted behaviour or to a chat template.")
    lines = []
    for name in figures.crosscoders(summary):
        for seed, one in zip(figures.seeds(summary, name), _trainings(summary, name), strict=True):
            top = one.isel(group=-1)
            either = top.sel(category="planted_or_template")
            lines.append(
                f"- **{name}, seed {seed}**: the {int(top['group_latents'])} latents of highest Δ put "
                f"{100 * float(either['enrichment_share']):.0f}% of their firings on planted behaviours and template "
                f"tokens, {float(either['enrichment_lift']):.1f} times the base rate (95% over documents: "
                f"{float(either['enrichment_lift_low']):.1f} to {float(either['enrichment_lift_high']):.1f}; latents "
                f"permuted: {float(either['enrichment_null_low']):.1f} to {float(either['enrichment_null_high']):.1f})"
                f"{_most_enriched(top)}."
            )
    return "\n".join(lines)


def _most_enriched(top: xr.Dataset) -> str:
    """Which behaviour the highest latents fire on most; empty where the documents hold none."""
    lifts = top["enrichment_lift"].drop_sel(category=["planted_or_template"])
    if bool(lifts.isnull().all()):
        return ""
    best = lifts.isel(category=int(lifts.fillna(-1).values.argmax()))
    named = str(best["category"].item()).replace("_", " ")
    return f"; the most enriched behaviour is {named} ({float(best):.1f} times)"


def behaviours(summary: xr.Dataset) -> str:
    """Rates of the planted behaviours before and after fine-tuning."""
    lines = []
    for behaviour in summary["measured_behaviour"].values:
        one = summary.sel(measured_behaviour=behaviour)
        rates = ", ".join(
            f"{model} {100 * float(one['behaviour_rate'].sel(model=model)):.0f}% "
            f"({100 * float(one['behaviour_rate_low'].sel(model=model)):.0f} to "
            f"{100 * float(one['behaviour_rate_high'].sel(model=model)):.0f})"
            for model in summary["model"].values
        )
        lines.append(f"- {str(behaviour).replace('_', ' ')}: {rates}")
    return "\n".join(lines)


def strongest_examples(summary: xr.Dataset, crosscoder: str, latents: int = 6, shown: int = 3) -> str:
    """The most chat-leaning latents with their strongest test examples, as Markdown."""
    one, blocks = figures.select(summary, crosscoder), []
    present = summary["enrichment_lift"].notnull().any([d for d in summary["enrichment_lift"].dims if d != "category"])
    for row in range(min(latents, one.sizes["ranked_latent"] // 2)):
        index = int(one["ranked_latent_index"].values[row])
        planted = one["planted_share"].values[index]
        shares = [
            *zip(summary["behaviour"].values, planted, strict=True),
            ("template", float(one["template_share"].values[index])),
        ]
        listed = ", ".join(
            f"{str(label).replace('_', ' ')} {100 * value:.0f}%"
            for label, value in shares
            if present.sel(category=label)
        )
        falls = f"; activation on {listed}" if listed else ""
        blocks.append(f"**Latent {index}**, Δ {float(one['relative_norm'].values[index]):.2f}{falls}")
        for text in one["example_text"].values[row][:shown]:
            if text:
                blocks.append(f"> `{json.dumps(str(text), ensure_ascii=False)[1:-1].replace('`', 'ˋ')}`")
    return "\n\n".join(blocks)


def all_strongest_examples(summary: xr.Dataset) -> str:
    """:func:`strongest_examples` of every crosscoder that reads both sources of the contrast."""
    pair = figures.contrasted(summary)
    return "\n\n".join(f"#### {name}\n\n{strongest_examples(pair, name)}" for name in figures.crosscoders(pair))


def layers(summary: xr.Dataset) -> str:
    """Persistence of latents and similarity of their directions across layers."""
    lines = []
    sources = [str(name) for name in summary["source"].values]
    for name in figures.crosscoders(summary):
        if line := _silent(summary, name):
            lines.append(line)
            continue
        one = figures.select(summary, name)
        indices = figures.alive(one)
        peaks = np.bincount(one["peak_source"].values[indices].astype(int), minlength=len(sources))
        persistence = one["persistence"].values[indices]
        matrix = layer_figures.mean_cosine(one, indices)
        listed = ", ".join(f"{source} {count:,}" for source, count in zip(sources, peaks, strict=True))
        lines.append(
            f"- **{name}**: peaks by source: {listed}. A latent keeps at least half its peak norm in "
            f"{persistence.mean():.1f} of {len(sources)} sources on average; "
            f"{100 * (persistence == len(sources)).mean():.0f}% keep it in all."
        )
        if np.isfinite(matrix).all():
            lines[-1] += (
                f" Directions in neighbouring sources have mean cosine {np.diag(matrix, 1).min():.2f} to "
                f"{np.diag(matrix, 1).max():.2f}, first and last {matrix[0, -1]:.2f}."
            )
    return "\n".join(lines)


def sizes(summary: xr.Dataset) -> str:
    """What SAEs per source need to reach the crosscoders' loss: features and FLOPs, read off between measured sizes."""
    lines = []
    names = layer_figures.same_coefficient(summary)
    for x, unit, form in (
        ("dictionary_size", "latents", ",.0f"),
        ("training_flops", "floating-point operations of training", ".3g"),
    ):
        curves = layer_figures.curves(summary, names, x, "loss")
        if len(curves) < 2:
            return "Only one kind of dictionary was trained with one coefficient."
        ours, theirs = curves["crosscoder"], curves["SAEs per source"]
        order = np.argsort(theirs[:, 1])
        for size, loss in ours[:, :2]:
            if theirs[:, 1].min() <= loss <= theirs[:, 1].max():
                needed = np.exp(np.interp(loss, theirs[order, 1], np.log(theirs[order, 0])))
                lines.append(
                    f"- The loss {loss:,.0f} takes the crosscoder {size:{form}} {unit}, SAEs per source "
                    f"{needed:{form}}: {needed / size:.2g} times as many."
                )
    best = {label: float(rows[:, 1].min()) for label, rows in curves.items()}
    lines.append("- Lowest losses: " + ", ".join(f"{label} {value:,.0f}" for label, value in best.items()) + ".")
    if len(lines) == 1:
        lines.append("- No size of one kind reaches a loss that lies among those of the other.")
    return "\n".join(lines)


def sparsities(summary: xr.Dataset) -> str:
    """Latents per token that crosscoders and SAEs per source need for one error, read off between measured points."""
    rows: dict[str, list] = {}
    for name in figures.crosscoders(summary):
        one = figures.of(summary, name)
        error = 1 - float(one["fraction_variance_explained"].mean())
        rows.setdefault(layer_figures.kind(one), []).append((error, float(one["l0"].mean())))
    if len(rows) < 2:
        return "Only one kind of dictionary was trained."
    ours, theirs = np.array(sorted(rows["crosscoder"])), np.array(sorted(rows["SAEs per source"]))
    lines = []
    for error, l0 in ours:
        if theirs[:, 0].min() <= error <= theirs[:, 0].max():
            needed = float(np.exp(np.interp(error, theirs[:, 0], np.log(theirs[:, 1]))))
            lines.append(
                f"- At an error of {error:.3f} of the variance: crosscoder {l0:.0f} latents per token, SAEs per source "
                f"{needed:.0f} together ({needed / l0:.1f} times as many)."
            )
    return "\n".join(lines) or "No error of one kind lies among those of the other."


def circuits(summary: xr.Dataset) -> str:
    """Nodes, edges, identity share and faithfulness, every seed with its interval."""

    def shown(name: str, form: str = "{:.1f}", **where) -> str:
        parts = []
        for seed in summary["seed"].values:
            one = summary.sel(seed=seed, **where)
            parts.append(_with_interval(*(float(one[f"circuit_{name}{end}"]) for end in ("", "_low", "_high")), form))
        return " and ".join(parts)

    trainings = [summary.sel(seed=seed) for seed in summary["seed"].values]
    explained, l0 = {}, {}
    for name in ("crosscoder", "saes"):
        explained[name] = _over_seeds([float(one[f"circuit_{name}_explained"].mean()) for one in trainings], "{:.3f}")
        l0[name] = _over_seeds([float(one[f"circuit_{name}_l0"]) for one in trainings], "{:.1f}")
    lines = [
        f"- **Nodes**, SAEs at the threshold at which they explain {explained['saes']} of the variance (crosscoder "
        f"{explained['crosscoder']}): {l0['saes']} SAE latents per token over all sources, {l0['crosscoder']} of the "
        "crosscoder."
    ]
    for way in summary["collapse"].values:
        if way == "none":
            continue
        factors = [float(one["circuit_collapse_factor"].sel(collapse=way)) for one in trainings]
        factor = f", {_over_seeds(factors)} per node" if np.isfinite(factors).all() else ""
        share = _over_seeds(
            [100 * float(one["circuit_matched_share"].sel(collapse=way)) for one in trainings], "{:.0f}"
        )
        lines.append(
            f"- **Collapsed by {way}**: {share}% of SAE latents have a node{factor}; nodes per token "
            f"{shown('nodes_per_token', collapse='none')} to {shown('nodes_per_token', collapse=way)}; edges for 80% "
            f"of the attribution {shown('edges_per_token', collapse='none')} to "
            f"{shown('edges_per_token', collapse=way)}; identity edges carry {shown('identity_share', '{:.2f}', collapse=way)}."
        )
    if "circuit_recall" in summary:
        return "\n".join([*lines, *_recalls(trainings)])
    lines.append(
        "- **Faithfulness**: measured and predicted changes of logits correlate "
        f"{shown('faithfulness', '{:.2f}', prediction='same latent')}; "
        f"predicted with another active latent {shown('faithfulness', '{:.2f}', prediction='another latent')}."
    )
    return "\n".join(lines)


def _recalls(trainings: list[xr.Dataset]) -> list[str]:
    """Planted persistent concepts that collapsed nodes hold."""
    parts = []
    for way in ("crosscoder", "clustering", "shuffled tokens"):
        whole, known = (
            _over_seeds([float(one[name].sel(collapse=way)) for one in trainings])
            for name in ("circuit_recall", "circuit_recall_of_known")
        )
        parts.append(f"{way} {whole} (of those with a latent in every source {known})")
    return [f"- **Recall of planted persistent concepts**: {'; '.join(parts)}."]
