"""Examples of latents: where each fires, how strongly, and what the sources add there to its pre-activation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr

from crosscoders.activations.dataset import Activations
from crosscoders.analysis.active_pairs import ActivePairs
from crosscoders.crosscoder.crosscoder import Crosscoder

BATCH = 2048
BEFORE, AFTER = 16, 6
"""Tokens shown before and after the strongest token of an example."""
LEVELS = 61
"""Activations in examples are whole numbers up to this one, which the strongest token of a latent has."""
READ_LEVELS = 30
"""What a source adds is a whole number from minus this one to this one, the largest of a latent's examples."""
UNKNOWN = -128
"""Level of a token whose activations are not stored: a sink, or a token that no token of the other model ends with."""
BARS = 20
"""Bars of the histogram of a latent's activations."""
SPREAD = 8
"""Firings of a group that are looked at for each example that is drawn from it, since several may share a document."""


@dataclass(frozen=True)
class Firings:
    """All active pairs of a crosscoder on a split, sorted by latent and then by token.

    Attributes
    ----------
    latent, token, value : (pairs,)
        `token` counts all tokens of the split.
    document : (tokens,)
        Document of every token of the split.
    """

    latent: np.ndarray
    token: np.ndarray
    value: np.ndarray
    document: np.ndarray

    @classmethod
    def of(cls, coder: Crosscoder, data: Activations, document: np.ndarray) -> Firings:
        """The pairs of a split, from its stored activations."""
        pairs = ActivePairs.of(coder, data)
        return cls(pairs.latent, pairs.token, pairs.value, document)

    def by_latent(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Every latent that fires, with the tokens on which it does and its values there."""
        edges = np.flatnonzero(np.r_[True, self.latent[1:] != self.latent[:-1], True])
        for first, last in zip(edges, edges[1:], strict=False):
            yield int(self.latent[first]), self.token[first:last], self.value[first:last]


@dataclass(frozen=True)
class Example:
    """A stretch of one document around a firing.

    Attributes
    ----------
    tokens : (n,)
        The tokens shown; they count all tokens of the split.
    at : int
        Place of the firing among them.
    value : float
        Activation there.
    levels : (n,)
        Activations as whole numbers from 0 to LEVELS, the latent's largest.
    """

    tokens: np.ndarray
    at: int
    value: float
    levels: np.ndarray


def numbers(values: np.ndarray, digits: int) -> list:
    """Values rounded, with None for those that are not known."""
    rounded = np.round(values.astype(float), digits)
    return [value if np.isfinite(value) else None for value in rounded.tolist()]


def histogram(value: np.ndarray) -> list[int]:
    """Firings of a latent in each of BARS equal steps from 0 to its largest activation."""
    return np.histogram(value, BARS, (0, float(value.max())))[0].tolist()


def chosen(latent: int, token: np.ndarray, value: np.ndarray, document: np.ndarray, count: int, quantiles: int):
    """Firings of one latent to show: its strongest, then some of each of `quantiles` equal groups by rank.

    Parameters
    ----------
    latent : int
        Seeds the draw from the groups.
    token, value : (firings,)
    document : (tokens,)
    count : int
        Strongest firings, each in a document of its own. Half as many, at least one, are drawn from each group, in documents
        that are not shown yet; fewer where there are none.
    quantiles : int

    Returns
    -------
    list of (indices into the firings)
        The strongest, strongest first; then the groups from the largest activations to the smallest, in the order drawn.
    """
    of_each = max(1, count // 2)
    generator, falling = np.random.default_rng(latent), np.argsort(-value, kind="stable")
    first = np.sort(np.unique(document[token[falling]], return_index=True)[1])[:count]
    shown, groups = set(document[token[falling[first]]].tolist()), [falling[first]]
    for group in np.array_split(falling, quantiles) if quantiles else []:
        drawn = []
        for place in group[generator.permutation(len(group))[: SPREAD * of_each]].tolist():
            if len(drawn) < of_each and document[token[place]] not in shown:
                shown.add(int(document[token[place]]))
                drawn.append(place)
        groups.append(np.array(drawn, np.int64))
    return groups


def examples(firings: Firings, count: int, quantiles: int) -> Iterator[tuple[int, np.ndarray, list[list[Example]]]]:
    """Every latent that fires, with its values and its examples by group, as :func:`chosen` orders them."""
    tokens = len(firings.document)
    for latent, token, value in firings.by_latent():
        largest, groups = float(value.max()), []
        for group in chosen(latent, token, value, firings.document, count, quantiles):
            groups.append([])
            for place in group:
                at = int(token[place])
                shown = np.arange(max(0, at - BEFORE), min(tokens, at + AFTER + 1))
                shown = shown[firings.document[shown] == firings.document[at]]
                where = np.searchsorted(token, shown).clip(max=len(token) - 1)
                levels = np.where(token[where] == shown, np.ceil(LEVELS * (value[where] / largest)), 0)
                groups[-1].append(Example(shown, at - int(shown[0]), float(value[place]), levels.astype(int)))
        yield latent, value, groups


class Reads:
    """What some sources add to the pre-activation of a latent, Σ_s W_enc^s x_s + b, token by token.

    Parameters
    ----------
    coder : Crosscoder
    data : Activations
        Of the sources of the crosscoder.
    sources : list of str
        Those wanted.
    tokens : int
        Tokens of the split.
    """

    def __init__(self, coder: Crosscoder, data: Activations, sources: list[str], tokens: int):
        self.coder, self.data = coder, data
        self.columns = {name: coder.columns[coder.sources.index(name)] for name in sources}
        self.row = np.full(tokens, -1)
        self.row[data.metadata["token_index"].values] = np.arange(len(data))

    def of(self, latent: int, groups: list[list[Example]]) -> tuple[float, list[list[dict[str, np.ndarray]]]]:
        """The largest amount that a source adds at a token shown, and per example and source its levels, (n,)."""
        shown = [example for group in groups for example in group]
        tokens = np.concatenate([example.tokens for example in shown])
        rows = self.row[tokens]
        x, weights = self.data.rows(rows[rows >= 0]), self.coder.encoder[latent]
        added = {name: (x[:, at] @ weights[at]).numpy() for name, at in self.columns.items()}
        largest = max((float(np.abs(one).max()) for one in added.values() if len(one)), default=0.0)
        levels = {}
        for name, one in added.items():
            levels[name] = np.full(len(tokens), UNKNOWN)
            levels[name][rows >= 0] = np.rint(READ_LEVELS * one / (largest or 1.0))
        edges = np.cumsum([len(example.tokens) for example in shown])[:-1]
        pieces = {name: iter(np.split(one, edges)) for name, one in levels.items()}
        return largest, [[{name: next(piece) for name, piece in pieces.items()} for _ in group] for group in groups]


@dataclass(frozen=True)
class OwnTokens:
    """The tokens of a model that has a tokenizer of its own.

    Attributes
    ----------
    token_id : (own tokens,)
    place : (tokens,)
        The own token that ends where a token of the split does, -1 where none does.
    """

    token_id: np.ndarray
    place: np.ndarray

    @classmethod
    def of(cls, tokens: xr.Dataset, model: str) -> OwnTokens | None:
        """Those of one model, where the tokens of a split have them."""
        if f"token_id_of_{model}" not in tokens:
            return None
        return cls(tokens[f"token_id_of_{model}"].values, tokens[f"place_of_{model}"].values)

    def beside(self, example: Example, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Own token ids over the text of an example, and the levels where a token of the split ends with them."""
        place = self.place[example.tokens]
        paired = place >= 0
        if not paired.any():
            return np.empty(0, self.token_id.dtype), np.empty(0, int)
        first, last = place[paired].min(), place[paired].max()
        own = np.full(last - first + 1, UNKNOWN)
        own[place[paired] - first] = levels[paired]
        return self.token_id[first : last + 1], own


def nearest(
    decoder: torch.Tensor, alive: np.ndarray, count: int, other: tuple[torch.Tensor, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Of every alive latent, the alive latents whose decoder vectors have the largest cosine with its own.

    Parameters
    ----------
    decoder : (m, D)
        Decoder vectors of all sources side by side.
    alive : (a,)
    count : int
    other : ((m', D), (b,)), optional
        Decoder vectors and alive latents of another crosscoder, in which to look in place of this one.

    Returns
    -------
    latents, cosines : (a, count)
        Nearest first; fewer where there are not as many.
    """
    directions = torch.nn.functional.normalize(decoder[alive], dim=1)
    there, among = directions, alive
    if other is not None:
        there, among = torch.nn.functional.normalize(other[0][other[1]], dim=1), other[1]
    count = max(0, min(count, len(among) - (other is None)))
    latents, cosines = np.empty((len(alive), count), np.int64), np.empty((len(alive), count), np.float32)
    for first in range(0, len(alive), BATCH):
        likeness = directions[first : first + BATCH] @ there.T
        if other is None:
            own = torch.arange(len(likeness))
            likeness[own, first + own] = -torch.inf
        best = likeness.topk(count, dim=1)
        latents[first : first + BATCH] = among[best.indices.numpy()]
        cosines[first : first + BATCH] = best.values.numpy()
    return latents, cosines
