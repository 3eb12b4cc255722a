"""Causal equivalence: whether a latent that both models write does the same in both.

A latent is ablated in each model at the same tokens: its part f d_j^s is taken out of source s at one token, with the code
f of both models' activations there. Its effect δ^s is the change of the next-token logits at that token, less its mean over
the vocabulary, which no probability depends on. How alike the effects are is said by the correlation of δ^base and
δ^chat over the vocabulary, averaged over tokens. The null takes, at the same tokens, the effect in chat of another shared
latent that is active there: how alike any two effects at one token are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import transformers
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.analysis import bootstrap
from crosscoders.analysis.classification import Pairs
from crosscoders.interventions.ablate_nodes import unembedded
from crosscoders.interventions.patching import Directions
from crosscoders.language_models.anatomy import replaced_below
from crosscoders.language_models.hooks import forward
from crosscoders.language_models.windows import batches, padded
from crosscoders.study.settings.analysis import Bootstrap
from crosscoders.study.settings.comparisons import Equivalence

LEAST_TOKENS = 2
"""A latent is compared on at least so many tokens."""
NULL_QUANTILE = 0.95
"""Two effects are called one role where their correlation reaches this quantile of the null over latents."""


@dataclass
class Ablations:
    """What is ablated, (ablations,) each: no token twice, and of one latent no two tokens of one document.

    Attributes
    ----------
    latent, other
        The latent, and another shared one that is active on the same token.
    value, other_value
        Their activations.
    token
        Index of the token among those that the crosscoder sees.
    """

    latent: np.ndarray
    other: np.ndarray
    value: np.ndarray
    other_value: np.ndarray
    token: np.ndarray


def evenly_spaced(eligible: np.ndarray, cosine: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of some latents, evenly spaced by the rank of their cosine, so that they are like all of them.

    Parameters
    ----------
    eligible : (latents,)
        Indices of latents.
    cosine : (m,)
        Of the two decoder vectors of every latent.
    count : int

    Returns
    -------
    (at most count,)
    """
    ranked = eligible[np.argsort(cosine[eligible], kind="stable")]
    if len(ranked) <= count:
        return ranked
    return ranked[np.round(np.linspace(0, len(ranked) - 1, count)).astype(int)]


def draw(
    pairs: Pairs, document: np.ndarray, shared: np.ndarray, cosine: np.ndarray, settings: Equivalence
) -> Ablations:
    """What to ablate: latents evenly spaced by cosine, each on tokens of different documents drawn at random.

    Parameters
    ----------
    pairs : Pairs
        Active pairs of token and latent, by ascending token, on the tokens at which latents may be ablated.
    document : (tokens,)
        Document of every token.
    shared : (m,) bool
        Latents that may be compared.
    cosine : (m,)
    settings : Equivalence

    Returns
    -------
    Ablations
    """
    inside = shared[pairs.latent]
    token, latent, value = pairs.token[inside], pairs.latent[inside], pairs.value[inside]
    first = np.searchsorted(token, token, side="left")
    several = np.searchsorted(token, token, side="right") - first > 1  # another shared latent is active there
    cells = np.unique(latent[several] * (document.max(initial=0) + 1) + document[token[several]])
    documents = np.bincount(cells // (document.max(initial=0) + 1), minlength=len(shared))
    eligible = np.flatnonzero(shared & (documents >= LEAST_TOKENS))
    generator, used, drawn = np.random.default_rng(settings.seed), set(), []
    for j in evenly_spaced(eligible, cosine, settings.latents):
        seen: set[int] = set()
        for pair in generator.permutation(np.flatnonzero(several & (latent == j))):
            at = int(token[pair])
            if at in used or int(document[at]) in seen:
                continue
            others = np.arange(first[pair], np.searchsorted(token, at, side="right"))
            other = generator.choice(others[others != pair])
            drawn.append((j, latent[other], value[pair], value[other], at))
            used.add(at)
            seen.add(int(document[at]))
            if len(seen) == settings.tokens_per_latent:
                break
    columns = np.array(drawn, float).reshape(-1, 5).T
    return Ablations(*columns[:2].astype(int), *columns[2:4], columns[4].astype(int))


def effect(
    model: transformers.PreTrainedModel, layer: int, hidden: torch.Tensor, rows: torch.Tensor, ends: torch.Tensor, part
) -> torch.Tensor:
    """Logits at the ends of windows with a part, (batch, width), taken out of the hidden states there, (batch, vocabulary).

    `hidden`, (batch, position, width), stands after `layer`; the layers below are not run.
    """
    each = torch.arange(len(rows), device=hidden.device)
    changed = hidden.index_put((each, ends), hidden[each, ends] - part.to(hidden))
    with replaced_below(model, layer, changed):
        last = model.base_model(input_ids=rows, use_cache=False).last_hidden_state
    return unembedded(model, last[each, ends])


def centred(change: torch.Tensor) -> torch.Tensor:
    """Changes of logits, (batch, vocabulary), less their mean."""
    return change - change.mean(1, keepdim=True)


def correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Correlation of rows of two centred matrices, (batch,); NaN where a row is 0."""
    a, b = a.double(), b.double()
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


@torch.inference_mode()
def compare(
    models: tuple[transformers.PreTrainedModel, transformers.PreTrainedModel],
    layer: int,
    where: Directions,
    ablations: Ablations,
    tokens: xr.Dataset,
    token_index: np.ndarray,
    batch_tokens: int,
    label: str,
) -> dict[str, np.ndarray]:
    """How alike the effects of every ablation are in two models.

    Parameters
    ----------
    models : (base, chat)
    layer : int
        Decoder layer of the compared site, hook `resid_post`.
    where : Directions
        Raw decoder vectors of both models.
    ablations : Ablations
    tokens : xarray.Dataset
        The split's tokens.
    token_index : (tokens that the crosscoder sees,)
        Where they stand in `tokens`.
    batch_tokens : int
        Tokens per forward pass.
    label : str
        For progress.

    Returns
    -------
    `correlation`, `null`, `norm_base` and `norm_chat`, (ablations,) each
    """
    ids, sink = tokens["token_id"].values, int(tokens.attrs["sink_token_id"])
    stop = token_index[ablations.token] + 1
    start = stop - tokens["position"].values[token_index[ablations.token]]
    ending = {int(end): i for i, end in enumerate(stop)}  # one each: no token is drawn twice
    parts = [
        torch.from_numpy(value.astype(np.float32))[:, None] * direction[latent]
        for value, direction, latent in (
            (ablations.value, where.base, ablations.latent),
            (ablations.value, where.chat, ablations.latent),
            (ablations.other_value, where.chat, ablations.other),
        )
    ]
    found = {name: np.full(len(stop), np.nan) for name in ("correlation", "null", "norm_base", "norm_chat")}
    common = min(len(model.get_output_embeddings().weight) for model in models)  # one may have added tokens
    progress = stage.Progress(label, len(stop), "ablations")
    for group in batches([slice(int(a), int(b)) for a, b in zip(start, stop, strict=True)], batch_tokens):
        chosen = np.array([ending[span.stop] for span in group])
        rows, ends = padded(ids, group, sink), torch.tensor([span.stop - span.start for span in group])
        changes = []
        for model, own in zip(models, (parts[:1], parts[1:]), strict=True):
            given, last = rows.to(model.device), ends.to(model.device)
            hidden = forward(model, [(layer, "resid_post")], given)[layer, "resid_post"]
            clean = effect(model, layer, hidden, given, last, torch.zeros_like(own[0][chosen]))
            changes += [
                centred((effect(model, layer, hidden, given, last, part[chosen]) - clean)[:, :common]) for part in own
            ]
        base, chat, other = changes
        found["correlation"][chosen] = correlation(base, chat.to(base)).cpu().numpy()
        found["null"][chosen] = correlation(base, other.to(base)).cpu().numpy()
        found["norm_base"][chosen], found["norm_chat"][chosen] = (x.norm(dim=1).cpu().numpy() for x in (base, chat))
        progress.update(len(group))
    return found


def to_dataset(
    found: dict[str, np.ndarray],
    latent: np.ndarray,
    document: np.ndarray,
    cosine: np.ndarray,
    settings: Equivalence,
    options: Bootstrap,
) -> xr.Dataset:
    """Correlation of effects of every compared latent beside its null, and how often one direction is another role.

    Parameters
    ----------
    found : what :func:`compare` returned
    latent, document : (ablations,)
    cosine : (m,)
    settings, options
        What was compared, and how intervals are made.

    Returns
    -------
    xarray.Dataset
        Over `compared_latent`. `effect_other_role_share` is the share of latents of one direction (cosine at least
        `same_direction_above`) whose correlation lies below `effect_null_limit`, the 95th percentile of the null over
        latents. Intervals are over documents.
    """
    latents, place = np.unique(latent, return_inverse=True)
    latents, place = _by_cosine(latents, place, cosine)
    numbers, inside = np.unique(document, return_inverse=True)
    valid = np.isfinite(found["correlation"]) & np.isfinite(found["null"])
    shape = (len(numbers), len(latents))

    def sums(values: np.ndarray) -> np.ndarray:
        cells = inside[valid] * shape[1] + place[valid]
        return np.bincount(cells, values[valid], shape[0] * shape[1]).reshape(shape)

    counts = sums(np.ones(len(latent)))
    weights = bootstrap.resamples(max(len(numbers), 1), options.bootstrap_replicates, options.seed)[:, : len(numbers)]
    v, dim = artifacts.variable, "compared_latent"
    variables = {
        "effect_latent": v(dim, latents.astype(np.int64), "latent, by ascending cosine"),
        "effect_cosine": v(dim, cosine[latents], "cosine of the two decoder vectors"),
        "effect_tokens": v(dim, counts.sum(0).astype(np.int64), "tokens on which the latent was ablated"),
    }
    for name, key, label in (
        ("effect_correlation", "correlation", "correlation of the latent's effects on the logits of the two models"),
        ("effect_null_correlation", "null", "correlation with the effect of another shared latent of the same token"),
    ):
        value, low, high = bootstrap.ratio_interval(sums(found[key]), counts, weights, options.confidence)
        variables[name] = v(dim, value, label)
        variables[f"{name}_low"] = v(dim, low, "lower end of its interval over documents")
        variables[f"{name}_high"] = v(dim, high, "upper end of its interval over documents")
    for side in ("base", "chat"):
        with np.errstate(invalid="ignore", divide="ignore"):
            norm = sums(found[f"norm_{side}"]).sum(0) / counts.sum(0)
        variables[f"effect_norm_{side}"] = v(dim, norm, f"norm of the effect in {side}, mean over tokens", "logits")
    same = cosine[latents] >= settings.same_direction_above
    return xr.Dataset(variables).merge(
        _roles(sums(found["correlation"]), sums(found["null"]), counts, same, weights, options)
    )


def _by_cosine(latents: np.ndarray, place: np.ndarray, cosine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latents in the order of their cosine, and the places of ablations among them."""
    order = np.argsort(cosine[latents], kind="stable")
    rank = np.empty(len(order), int)
    rank[order] = np.arange(len(order))
    return latents[order], rank[place]


def _roles(
    own: np.ndarray, null: np.ndarray, counts: np.ndarray, same: np.ndarray, weights: np.ndarray, options: Bootstrap
) -> xr.Dataset:
    """The limit that the null sets, and the share of latents of one direction below it, with intervals over documents."""

    def shares(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(invalid="ignore", divide="ignore"):
            total = drawn @ counts
            correlations, nulls = drawn @ own / total, drawn @ null / total
        limits, found = np.full(len(drawn), np.nan), np.full(len(drawn), np.nan)
        for r, (row, other) in enumerate(zip(correlations, nulls, strict=True)):
            if np.isfinite(other).any():
                limits[r] = np.nanquantile(other, NULL_QUANTILE)
            kept = row[same & np.isfinite(row)]
            found[r] = (kept < limits[r]).mean() if len(kept) else np.nan
        return limits, found

    (limit,), (share,) = shares(np.ones((1, len(counts))))
    low, high = bootstrap.interval(shares(weights)[1], options.confidence)
    v, label = artifacts.variable, "share of latents of one direction whose effects are no more alike than the null's"
    return xr.Dataset(
        {
            "effect_null_limit": v((), np.float64(limit), "95th percentile of the null's correlation over latents"),
            "effect_same_direction": v((), np.int64(same.sum()), "compared latents of one direction"),
            "effect_other_role_share": v((), np.float64(share), label),
            "effect_other_role_share_low": v((), np.float64(low), "lower end of its interval over documents"),
            "effect_other_role_share_high": v((), np.float64(high), "upper end of its interval over documents"),
        }
    )
