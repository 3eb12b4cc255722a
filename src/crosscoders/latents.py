"""Stage classify_latents: what every latent is like, in one streaming pass over the test documents.

Relative norm, cosine and classes [M25 §2]; latent scaling ν with intervals by bootstrap over documents [M25 §2.3];
density; the share of each latent's activation on template tokens and on each planted behaviour; enrichment of the
planted behaviours by quantile of the relative norm, against a permutation of latents.

Only active (token, latent) pairs contribute, so cost is tokens · L0 · width, and no (tokens × m × width) array exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, bootstrap, crosscoder, sparse, stage
from crosscoders.chats import BEHAVIOURS, ROLES
from crosscoders.crosscoder import Crosscoder
from crosscoders.feed import Activations, consecutive
from crosscoders.settings import Classification

NORM_CLASSES = ("base-only", "shared", "chat-only", "other")
SPECIFIC = ("none", "base", "chat")
CATEGORIES = (*BEHAVIOURS[1:], "template", "planted_or_template")
TARGETS = ("error", "reconstruction", "activation")
BATCH = 2048
CONTEXT_TOKENS = 24
"""Tokens shown before an example's strongest token."""
CONTEXT_AFTER = 6


# -- geometry ----------------------------------------------------------------------------------------------------------


def relative_norm(base: np.ndarray, chat: np.ndarray) -> np.ndarray:
    """Δ = ½ [1 + (n_chat − n_base) / max(n_chat, n_base)], in [0, 1]; NaN where both norms are 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return 0.5 * (1 + (chat - base) / np.maximum(chat, base))


def norm_class(delta: np.ndarray, settings: Classification) -> np.ndarray:
    """Index into NORM_CLASSES by thresholds on Δ."""
    low, high = settings.shared_between
    found = np.full(delta.shape, NORM_CLASSES.index("other"))
    found[delta <= settings.base_only_below] = NORM_CLASSES.index("base-only")
    found[(delta >= low) & (delta <= high)] = NORM_CLASSES.index("shared")
    found[delta >= settings.chat_only_above] = NORM_CLASSES.index("chat-only")
    return found


def source_cosine(decoders: list[torch.Tensor]) -> np.ndarray:
    """Cosine between a latent's decoder vectors, (m, S, S); NaN where widths differ or a vector is 0."""
    found = np.full((len(decoders[0]), len(decoders), len(decoders)), np.nan)
    for i, a in enumerate(decoders):
        for j, b in enumerate(decoders):
            if a.shape == b.shape:
                norms = a.norm(dim=1) * b.norm(dim=1)
                found[:, i, j] = torch.where(norms > 0, (a * b).sum(1) / norms, torch.nan).numpy()
    return found


# -- latent scaling ----------------------------------------------------------------------------------------------------


@dataclass
class Scaling:
    """Sums over tokens from which β and ν follow, for each resample of documents (replicate 0 is the data itself).

    With d_j the decoder of the direction source (first axis of `activation`, `reconstruction`):
    activation[i, s, r, j] = Σ_t f ⟨d_j, x_s⟩, reconstruction[i, s, r, j] = Σ_t f ⟨d_j, x̂_s⟩, squares[r, j] = Σ_t f².
    """

    activation: np.ndarray
    reconstruction: np.ndarray
    squares: np.ndarray
    own: np.ndarray
    """⟨d_j^i, W_dec,j^s⟩, (2, 2, m): what a latent's own part adds to the error."""

    def beta(self, target: str) -> np.ndarray:
        """Numerators of β_j^s for a target, (direction, source, replicate, latent); denominators cancel in ν."""
        if target == "activation":
            return self.activation
        if target == "reconstruction":
            return self.reconstruction
        return self.activation - self.reconstruction + self.squares * self.own[:, :, None, :]

    def nu(self, target: str, direction: int) -> np.ndarray:
        """ν of every replicate and latent: β of the other source over β of the direction's source."""
        beta = self.beta(target)[direction]
        with np.errstate(divide="ignore", invalid="ignore"):
            return beta[1 - direction] / beta[direction]


@dataclass
class Pairs:
    """All active pairs of a split: token, latent and value."""

    token: np.ndarray
    latent: np.ndarray
    value: np.ndarray


def document_batches(document: np.ndarray, count: int) -> Iterator[slice]:
    """Slices of whole documents, `count` tokens or a little more at a time."""
    starts = np.r_[np.flatnonzero(np.r_[True, document[1:] != document[:-1]]), len(document)]
    first = 0
    for edge in starts[1:]:
        if edge - first >= count or edge == len(document):
            yield slice(int(first), int(edge))
            first = edge


def scan(
    coder: Crosscoder, data: Activations, document: np.ndarray, contrast: tuple[int, int], weights: np.ndarray
) -> tuple[Scaling, Pairs]:
    """One pass over the split: sums for latent scaling under every resample, and all active pairs.

    Parameters
    ----------
    document : (tokens,)
        Consecutive document numbers.
    contrast : pair of source indices
        (base, chat).
    weights : (replicates, documents)
        Resamples; a row of ones for the data itself is put before them.
    """
    weights = np.vstack([np.ones(weights.shape[1]), weights])
    m, columns = coder.latents, [coder.columns[s] for s in contrast]
    decoders = [coder.decoder[:, c].contiguous() for c in columns]
    shape = (2, 2, len(weights), m)
    activation, reconstruction = np.zeros(shape), np.zeros(shape)
    squares = np.zeros(shape[2:])
    pairs: list[tuple[np.ndarray, ...]] = []
    for chosen in document_batches(document, BATCH):
        x = data.rows(np.arange(chosen.start, chosen.stop))
        code = sparse.encode(coder, x)
        rebuilt = sparse.decode(code, coder.decoder, coder.decoder_bias)
        tokens, latents = code.tokens.numpy(), code.latents.numpy()
        f = code.values.double().numpy()
        inside = document[chosen]
        cell = (inside[tokens] - inside[0]) * m + latents
        drawn = weights[:, inside[0] : inside[-1] + 1]

        def spread(values: np.ndarray, cell: np.ndarray = cell, drawn: np.ndarray = drawn) -> np.ndarray:
            return drawn @ np.bincount(cell, values, drawn.shape[1] * m).reshape(-1, m)

        squares += spread(f * f)
        for direction, decoder in enumerate(decoders):
            for s, column in enumerate(columns):
                for total, target in ((activation, x), (reconstruction, rebuilt)):
                    if decoder.shape[1] == column.stop - column.start:
                        inner = sparse.value_gradients(code, target[:, column].contiguous(), decoder)
                        total[direction, s] += spread(f * inner.double().numpy())
        pairs.append((tokens + chosen.start, latents, f))
    joined = Pairs(*(np.concatenate(parts) for parts in zip(*pairs, strict=True)))
    equal = decoders[0].shape == decoders[1].shape
    own = np.array([[(a * b).sum(1).double().numpy() if equal or a is b else np.full(m, np.nan) for b in decoders] for a in decoders])  # fmt: skip
    return Scaling(activation, reconstruction, squares, own), joined


def specific(error: np.ndarray, reconstruction: np.ndarray, settings: Classification) -> np.ndarray:
    """Index into SPECIFIC from ν of (direction base, direction chat), each (2, m): both ν below their limits [M25]."""
    below = (error < settings.specific_error_below) & (reconstruction < settings.specific_reconstruction_below)
    return np.where(below[1], SPECIFIC.index("chat"), np.where(below[0], SPECIFIC.index("base"), 0))


# -- behaviours --------------------------------------------------------------------------------------------------------


def categories(metadata: xr.Dataset) -> np.ndarray:
    """(categories, tokens) bool: planted behaviours, template tokens, either."""
    planted = metadata["planted_behaviour"].values
    template = metadata["role"].values == ROLES.index("template")
    rows = [planted == i for i in range(1, len(BEHAVIOURS))]
    return np.array([*rows, template, template | (planted > 0)])


def enrichment(
    delta: np.ndarray, alive: np.ndarray, pairs: Pairs, document: np.ndarray, category: np.ndarray,
    weights: np.ndarray, settings: Classification,
) -> xr.Dataset:  # fmt: skip
    """Share of firings on each category, for alive latents grouped by quantile of Δ.

    Returns
    -------
    xarray.Dataset
        Over `group` and `category`: `enrichment_share`, `enrichment_lift` over the token base rate with its interval
        over documents, and the interval of the lift under permutations of the latents' Δ.
    """
    edges = np.quantile(delta[alive], settings.delta_quantiles)
    groups = len(edges) - 1
    group = np.full(len(delta), -1)
    rank = np.empty(alive.sum(), int)
    rank[np.argsort(delta[alive], kind="stable")] = np.arange(alive.sum())
    limits = np.round(np.array(settings.delta_quantiles) * alive.sum()).astype(int)
    group[alive] = np.clip(np.searchsorted(limits, rank, side="right") - 1, 0, groups - 1)

    documents = weights.shape[1]
    chosen = group[pairs.latent]
    cell = document[pairs.token] * groups + chosen
    fired = np.bincount(cell, minlength=documents * groups).reshape(documents, groups)
    hits = np.array([np.bincount(cell, row[pairs.token], documents * groups) for row in category])
    hits = hits.reshape(len(category), documents, groups).transpose(1, 2, 0)
    tokens = np.bincount(document, minlength=documents)
    base = np.array([np.bincount(document, row, documents) for row in category]).T

    def lift(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.tensordot(weight, hits, 1) / np.tensordot(weight, fired, 1)[..., None]
            rate = (weight @ base) / (weight @ tokens)[..., None]
            return share, share / rate[..., None, :]

    share, estimate = lift(np.ones(documents))
    low, high = bootstrap.interval(lift(weights)[1], settings.confidence)
    null_low, null_high = _permuted(group, alive, pairs, category, base.sum(0) / tokens.sum(), groups, settings)
    v, dims = artifacts.variable, ("group", "category")
    return xr.Dataset(
        {
            "delta_edge": v("edge", edges, "relative norm at the edges of the groups"),
            "delta_quantile": v("edge", np.array(settings.delta_quantiles), "quantile of the edge"),
            "group_latents": v("group", np.bincount(group[alive], minlength=groups), "alive latents in the group"),
            "enrichment_share": v(dims, share, "share of the group's firings on the category"),
            "enrichment_lift": v(dims, estimate, "that share over the share of tokens in the category"),
            "enrichment_lift_low": v(dims, low, "lower end of its interval over documents"),
            "enrichment_lift_high": v(dims, high, "upper end of its interval over documents"),
            "enrichment_null_low": v(dims, null_low, "lower end of the lift under permutation of latents"),
            "enrichment_null_high": v(dims, null_high, "upper end of the lift under permutation of latents"),
            "base_rate": v("category", base.sum(0) / tokens.sum(), "share of tokens in the category"),
        },
        coords={"category": np.array(CATEGORIES, dtype=object)},
    )


def _permuted(group, alive, pairs: Pairs, category, rate, groups: int, settings: Classification):
    """Interval of the lift where groups are dealt to alive latents at random."""
    m = len(group)
    fired = np.bincount(pairs.latent, minlength=m)[alive]
    hits = np.array([np.bincount(pairs.latent, row[pairs.token], m)[alive] for row in category])
    generator = np.random.default_rng(settings.seed)
    lifts = np.empty((settings.null_permutations, groups, len(category)))
    for i in range(settings.null_permutations):
        dealt = generator.permutation(group[alive])
        total = np.bincount(dealt, fired, groups)
        with np.errstate(divide="ignore", invalid="ignore"):
            for c, row in enumerate(hits):
                lifts[i, :, c] = np.bincount(dealt, row, groups) / total / rate[c]
    return bootstrap.interval(lifts, settings.confidence)


def examples(
    delta: np.ndarray, alive: np.ndarray, pairs: Pairs, data: Activations, tokens: xr.Dataset, settings
) -> xr.Dataset:
    """Strongest test examples of the latents at both ends of the ranking by Δ.

    Each is from another document; the strongest token stands between ⟦ and ⟧.
    """
    ranked = np.flatnonzero(alive)[np.argsort(delta[alive], kind="stable")]
    count = min(settings.top_latents, len(ranked) // 2)
    chosen = np.concatenate([ranked[::-1][:count], ranked[:count]])
    texts = np.full((len(chosen), settings.top_examples), "", dtype=object)
    strengths = np.full(texts.shape, np.nan)
    index, document = data.metadata["token_index"].values, tokens["document"].values
    words = tokens["token_text"].values
    order = np.lexsort((-pairs.value, pairs.latent))
    sorted_latents = pairs.latent[order]
    for row, latent in enumerate(chosen):
        first, last = np.searchsorted(sorted_latents, [latent, latent + 1])
        seen: set[int] = set()
        for pair in order[first:last]:
            at = int(index[pairs.token[pair]])
            if document[at] in seen:
                continue
            texts[row, len(seen)], strengths[row, len(seen)] = _excerpt(words, document, at), pairs.value[pair]
            seen.add(document[at])
            if len(seen) == settings.top_examples:
                break
    v, dims = artifacts.variable, ("ranked_latent", "example")
    return xr.Dataset(
        {
            "ranked_latent_index": v("ranked_latent", chosen, "latents of highest, then of lowest relative norm"),
            "example_text": v(dims, texts, "strongest test examples"),
            "example_activation": v(dims, strengths, "activation at the marked token"),
        }
    )


def _excerpt(words: np.ndarray, document: np.ndarray, at: int) -> str:
    inside = [i for i in range(max(0, at - CONTEXT_TOKENS), min(len(words), at + CONTEXT_AFTER + 1)) if document[i] == document[at]]  # fmt: skip
    return "".join(f"⟦{words[i]}⟧" if i == at else words[i] for i in inside)


# -- the stage ---------------------------------------------------------------------------------------------------------


def geometry_dataset(coder: Crosscoder, contrast: tuple[int, int], settings: Classification) -> xr.Dataset:
    """Decoder norms and what follows from them alone."""
    norms = coder.decoder_norms().double().numpy()
    base, chat = contrast
    delta = relative_norm(norms[:, base], norms[:, chat])
    angles = source_cosine([coder.decoder[:, c].double() for c in coder.columns])
    v = artifacts.variable
    dims = ("latent", "source")
    return xr.Dataset(
        {
            "decoder_norm": v(dims, norms, "norm of the decoder vector"),
            "relative_norm": v("latent", delta, "relative decoder norm Δ"),
            "decoder_cosine": v("latent", angles[:, base, chat], "cosine of the two decoder vectors"),
            "norm_class": artifacts.flags(
                "latent", norm_class(delta, settings), NORM_CLASSES, "class by relative norm"
            ),
            "peak_source": v(
                "latent", norms.argmax(1).astype(np.int32), "index of the source with the largest decoder norm"
            ),
            "persistence": v(
                "latent",
                (norms >= 0.5 * norms.max(1, keepdims=True)).sum(1),
                "sources with at least half the peak norm",
            ),
            "source_cosine": v((*dims, "other_source"), angles, "cosine of decoder vectors of two sources"),
        },
        coords={"source": ("source", np.array(coder.sources, dtype=object), {"long_name": "source"})},
    )


def scaling_dataset(scaling: Scaling, settings: Classification) -> xr.Dataset:
    """ν of every latent for the three targets and both directions, with intervals, and `specific`."""
    v, found, estimates = artifacts.variable, {}, {}
    for target in TARGETS:
        for direction, suffix in ((1, ""), (0, "_reversed")):
            nu = scaling.nu(target, direction)
            nu = np.where(np.isfinite(nu), nu, np.nan)
            low, high = bootstrap.interval(nu[1:], settings.confidence)
            estimates[target, direction] = nu[0]
            toward = "base over chat" if direction else "chat over base"
            name = f"nu_{target}{suffix}"
            found[name] = v("latent", nu[0], f"latent scaling of the {target}, {toward}")
            found[f"{name}_low"] = v("latent", low, "lower end of its interval over documents")
            found[f"{name}_high"] = v("latent", high, "upper end of its interval over documents")
    both = [np.stack([estimates[target, d] for d in (0, 1)]) for target in TARGETS[:2]]
    found["specific"] = artifacts.flags("latent", specific(*both, settings), SPECIFIC, "passes latent scaling")
    return xr.Dataset(found)


def usage_dataset(pairs: Pairs, category: np.ndarray, latents: int, tokens: int) -> xr.Dataset:
    """Density, and the share of each latent's activation on template tokens and planted behaviours."""
    total = np.bincount(pairs.latent, pairs.value, latents)
    with np.errstate(invalid="ignore"):
        shares = [np.bincount(pairs.latent, pairs.value * row[pairs.token], latents) / total for row in category[:-1]]
    v = artifacts.variable
    density = np.bincount(pairs.latent, minlength=latents) / tokens
    return xr.Dataset(
        {
            "density": v("latent", density, "share of test tokens on which the latent is active"),
            "template_share": v("latent", shares[-1], "share of activation on template tokens"),
            "planted_share": v(
                ("latent", "behaviour"), np.stack(shares[:-1], axis=1), "share of activation on a behaviour"
            ),
        },
        coords={"behaviour": np.array(BEHAVIOURS[1:], dtype=object)},
    )


def main(arguments) -> None:
    """Classify the latents of one crosscoder."""
    section = arguments.settings
    settings = Classification.model_validate(section["classification"])
    torch.set_grad_enabled(False)
    coder = crosscoder.from_dataset(artifacts.read(arguments.crosscoder))
    data = Activations(arguments.activations, artifacts.read(arguments.normalisation))
    tokens = artifacts.read(arguments.tokens)
    document = consecutive(data.metadata["document"].values)
    contrast = tuple(coder.sources.index(name) for name in section["contrast"])
    weights = bootstrap.resamples(int(document[-1]) + 1, settings.bootstrap_replicates, settings.seed)
    scaling, pairs = scan(coder, data, document, contrast, weights)
    category = categories(data.metadata)
    geometry = geometry_dataset(coder, contrast, settings)
    usage = usage_dataset(pairs, category, coder.latents, len(data))
    delta = geometry["relative_norm"].values
    alive = (usage["density"].values > 0) & np.isfinite(delta)
    parts = [geometry, scaling_dataset(scaling, settings), usage]
    parts.append(enrichment(delta, alive, pairs, document, category, weights, settings))
    parts.append(examples(delta, alive, pairs, data, tokens, settings))
    dataset = xr.merge(parts, combine_attrs="override", compat="no_conflicts")
    dataset.attrs = artifacts.provenance(section["study"], "classify_latents", section, section["seed"])
    dataset.attrs |= {"title": "latents", "base": section["contrast"][0], "chat": section["contrast"][1]}
    artifacts.write(dataset, arguments.output)
    classes = np.bincount(dataset["norm_class"].values[alive], minlength=len(NORM_CLASSES))
    counts = ", ".join(f"{name} {count}" for name, count in zip(NORM_CLASSES, classes, strict=True))
    stage.say(f"classify_latents: of {alive.sum():,} alive: {counts}")


if __name__ == "__main__":
    flags = ("crosscoder", "normalisation", "tokens", "output")
    stage.run(main, stage.parser(__doc__, *flags, lists=("activations",)).parse_args())
