"""Stage classify_latents: what every latent is like, on the test documents.

Classes and latent scaling are those of :mod:`crosscoders.analysis.classification`. The stage also measures density, the
share of each latent's activation on template tokens and on each planted behaviour, and the enrichment of the planted
behaviours by quantile of the relative norm, against a permutation of latents.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from crosscoders import artifacts, stage
from crosscoders.activations.dataset import Activations
from crosscoders.activations.shuffle import consecutive
from crosscoders.analysis import bootstrap
from crosscoders.analysis.classification import (
    CALLS,
    Pairs,
    compared_sources,
    geometry_dataset,
    scaling_dataset,
    scan,
    twins,
    twins_dataset,
)
from crosscoders.analysis.sections import ClassifyLatentsSection
from crosscoders.analysis.simplex import simplex_dataset
from crosscoders.crosscoder.files import from_dataset
from crosscoders.data.chats import BEHAVIOURS, ROLES
from crosscoders.device import chosen_device
from crosscoders.kernels import backends
from crosscoders.study.contrasts import SEVERAL, contrast_attributes
from crosscoders.study.settings.analysis import Classification

CONTEXT_TOKENS = 24
"""Tokens shown before an example's strongest token."""
CONTEXT_AFTER = 6
"""Tokens shown after it."""


# -- behaviours --------------------------------------------------------------------------------------------------------


def categories(metadata: xr.Dataset) -> np.ndarray:
    """What a token belongs to, (categories, tokens) bool: each planted behaviour that the split names, the template, either."""
    planted = metadata["planted_behaviour"].values
    template = metadata["role"].values == ROLES.index("template")
    named = len(metadata["planted_behaviour"].attrs["flag_meanings"].split())
    return np.array([*(planted == i for i in range(1, named)), template, template | (planted > 0)])


def category_names(category: np.ndarray) -> np.ndarray:
    """Names of the rows of :func:`categories`."""
    return np.array([*BEHAVIOURS[1 : len(category) - 1], "template", "planted_or_template"], dtype=object)


@dataclass
class Groups:
    """Alive latents grouped by quantile of Δ.

    Attributes
    ----------
    edges : (groups + 1,)
        Δ at the edges of the groups; NaN where no latent is alive.
    group : (m,)
        Group of every latent, −1 for those that are not alive.
    alive : (m,) bool
    """

    edges: np.ndarray
    group: np.ndarray
    alive: np.ndarray

    @property
    def count(self) -> int:
        """Number of groups."""
        return len(self.edges) - 1

    @classmethod
    def of(cls, delta: np.ndarray, alive: np.ndarray, quantiles: list[float]) -> Groups:
        """Alive latents cut into groups at quantiles of Δ; the cut is by rank and can part latents of equal Δ."""
        edges = np.quantile(delta[alive], quantiles) if alive.any() else np.full(len(quantiles), np.nan)
        group, rank = np.full(len(delta), -1), np.empty(alive.sum(), int)
        rank[np.argsort(delta[alive], kind="stable")] = np.arange(alive.sum())
        limits = np.round(np.array(quantiles) * alive.sum()).astype(int)
        group[alive] = np.clip(np.searchsorted(limits, rank, side="right") - 1, 0, len(edges) - 2)
        return cls(edges, group, alive)


@dataclass
class Firings:
    """Sums within documents.

    Attributes
    ----------
    fired : (documents, groups)
        Firings of every group.
    hits : (documents, groups, categories)
        Firings of every group on every category.
    tokens : (documents,)
    base : (documents, categories)
        Tokens of every category.
    """

    fired: np.ndarray
    hits: np.ndarray
    tokens: np.ndarray
    base: np.ndarray

    @classmethod
    def of(cls, groups: Groups, pairs: Pairs, document: np.ndarray, category: np.ndarray, documents: int) -> Firings:
        """Sums over the active pairs of a split; `category`, (categories, tokens), says what a token belongs to."""
        counted = groups.alive[pairs.latent]  # latents that write neither source of the contrast have no relative norm
        token, latent = pairs.token[counted], pairs.latent[counted]
        cell, count = document[token] * groups.count + groups.group[latent], groups.count
        fired = np.bincount(cell, minlength=documents * count).reshape(documents, count)
        hits = np.array([np.bincount(cell, row[token], documents * count) for row in category])
        hits = hits.reshape(len(category), documents, count).transpose(1, 2, 0)
        base = np.array([np.bincount(document, row, documents) for row in category]).T
        return cls(fired, hits, np.bincount(document, minlength=documents), base)

    def lift(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Share of each group's firings on each category, and that share over the category's share of tokens.

        `weight`, (..., documents), says how often each document counts.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.tensordot(weight, self.hits, 1) / np.tensordot(weight, self.fired, 1)[..., None]
            rate = (weight @ self.base) / (weight @ self.tokens)[..., None]
            return share, share / rate[..., None, :]


def enrichment(
    groups: Groups,
    pairs: Pairs,
    document: np.ndarray,
    category: np.ndarray,
    weights: np.ndarray,
    settings: Classification,
) -> xr.Dataset:
    """Share of firings on each category, for alive latents grouped by quantile of Δ.

    Parameters
    ----------
    groups, pairs
        Alive latents by Δ, and all active pairs of the split.
    document, category : (tokens,), (categories, tokens)
        Consecutive document numbers, and what a token belongs to.
    weights : (replicates, documents)
        Resamples of documents.

    Returns
    -------
    xarray.Dataset
        Over `group` and `category`: `enrichment_share`, `enrichment_lift` over the token base rate with its interval
        over documents, and the interval of the lift under permutations of the latents' Δ.
    """
    firings = Firings.of(groups, pairs, document, category, weights.shape[1])
    (share, estimate), rate = firings.lift(np.ones(weights.shape[1])), firings.base.sum(0) / firings.tokens.sum()
    low, high = bootstrap.interval(firings.lift(weights)[1], settings.confidence)
    null_low, null_high = _permuted(groups, pairs, category, rate, settings)
    v, dims = artifacts.variable, ("group", "category")
    latents = np.bincount(groups.group[groups.alive], minlength=groups.count)
    variables = {
        "delta_edge": v("edge", groups.edges, "relative norm at the edges of the groups"),
        "delta_quantile": v("edge", np.array(settings.delta_quantiles), "quantile of the edge"),
        "group_latents": v("group", latents, "alive latents in the group"),
        "enrichment_share": v(dims, share, "share of the group's firings on the category"),
        "enrichment_lift": v(dims, estimate, "that share over the share of tokens in the category"),
        "enrichment_lift_low": v(dims, low, "lower end of its interval over documents"),
        "enrichment_lift_high": v(dims, high, "upper end of its interval over documents"),
        "enrichment_null_low": v(dims, null_low, "lower end of the lift under permutation of latents"),
        "enrichment_null_high": v(dims, null_high, "upper end of the lift under permutation of latents"),
        "base_rate": v("category", rate, "share of tokens in the category"),
    }
    return xr.Dataset(variables, coords={"category": category_names(category)})


def _permuted(
    groups: Groups, pairs: Pairs, category: np.ndarray, rate: np.ndarray, settings: Classification
) -> tuple[np.ndarray, np.ndarray]:
    """Interval of the lift where alive latents are assigned to groups at random."""
    m, alive = len(groups.group), groups.alive
    fired = np.bincount(pairs.latent, minlength=m)[alive]
    hits = np.array([np.bincount(pairs.latent, row[pairs.token], m)[alive] for row in category])
    generator = np.random.default_rng(settings.seed)
    lifts = np.empty((settings.null_permutations, groups.count, len(category)))
    for i in range(settings.null_permutations):
        dealt = generator.permutation(groups.group[alive])
        total = np.bincount(dealt, fired, groups.count)
        with np.errstate(divide="ignore", invalid="ignore"):
            for c, row in enumerate(hits):
                lifts[i, :, c] = np.bincount(dealt, row, groups.count) / total / rate[c]
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
    inside = [
        i
        for i in range(max(0, at - CONTEXT_TOKENS), min(len(words), at + CONTEXT_AFTER + 1))
        if document[i] == document[at]
    ]
    return "".join(f"⟦{words[i]}⟧" if i == at else words[i] for i in inside)


# -- the stage ---------------------------------------------------------------------------------------------------------


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
        coords={"behaviour": category_names(category)[:-2]},
    )


def main(arguments) -> None:
    """Classify the latents of one crosscoder."""
    section: ClassifyLatentsSection = arguments.settings
    settings = section.classification
    torch.set_grad_enabled(False)
    trained = artifacts.read(arguments.crosscoder)
    coder = from_dataset(trained)
    normalisation = artifacts.read(arguments.normalisation)
    data, held_out = (
        Activations(paths, normalisation, coder.sources, section.null)
        for paths in (arguments.activations, arguments.validation)
    )
    tokens = artifacts.read(arguments.tokens)
    document = consecutive(data.metadata["document"].values)
    contrast = compared_sources(coder, section.contrast)
    weights = bootstrap.resamples(int(document[-1]) + 1, settings.bootstrap_replicates, settings.seed)
    backend = backends.choose_for_evaluation(chosen_device(section.device), coder.latents)
    scaling, pairs = scan(coder, data, document, contrast, weights, backend)
    validation, _ = scan(coder, held_out, consecutive(held_out.metadata["document"].values), contrast, backend=backend)
    category = categories(data.metadata)
    geometry = geometry_dataset(coder, contrast, settings)
    usage = usage_dataset(pairs, category, coder.latents, len(data))
    delta = geometry["relative_norm"].values
    alive = (usage["density"].values > 0) & np.isfinite(delta)
    groups = Groups.of(delta, alive, settings.delta_quantiles)
    parts = [geometry, scaling_dataset(scaling, validation, delta, settings), usage]
    parts.append(enrichment(groups, pairs, document, category, weights, settings))
    parts.append(examples(delta, alive, pairs, data, tokens, settings))
    by_norm = np.where(alive, geometry["norm_class"].values, -1)
    if len(contrast) >= SEVERAL:
        norms = geometry["decoder_norm"].values[:, list(contrast)]
        parts.append(simplex_dataset(norms, section.contrast, scaling, validation, settings))
    parts.append(trained[["training_tokens"]])
    parts.append(twins_dataset(twins(coder, pairs, by_norm, contrast) if contrast else ((),) * 4))
    dataset = xr.merge(parts, combine_attrs="override", compat="no_conflicts")
    dataset.attrs = section.provenance() | {"title": "latents"} | contrast_attributes(section.contrast)
    artifacts.write(dataset, arguments.output)
    counts = ", ".join(f"{name} {count}" for name, count in zip(CALLS, dataset["called"].values.tolist(), strict=True))
    stage.say(f"classify_latents: {counts}")


if __name__ == "__main__":
    flags = ("crosscoder", "normalisation", "tokens", "output")
    stage.run(
        main, stage.parser(ClassifyLatentsSection, __doc__, *flags, lists=("activations", "validation")).parse_args()
    )
