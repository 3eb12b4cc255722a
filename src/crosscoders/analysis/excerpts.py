"""Excerpts of test documents by which latents are labelled and labels are scored.

One half of the documents is for writing labels, the other for scoring them. An excerpt is at most 23 tokens of one document.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

from crosscoders.analysis.active_pairs import ActivePairs
from crosscoders.study.settings.comparisons import ExplainedLatents

BEFORE, AFTER = 16, 6
"""Tokens of an excerpt before and after the strongest one."""
LEANS_ABOVE = 0.5
"""Relative norm above which a latent leans to the second source."""
FEWEST_DOCUMENTS = 2
"""A latent is labelled where it fires in so many documents of either half."""
DRAWS = 200
"""Places that are tried for an excerpt in which a latent does not fire."""
REASONS = ("relative_norm", "nu", "planted_share", "random")
"""What a latent is chosen by."""


def halves(document: np.ndarray, seed: int) -> np.ndarray:
    """Of every token, whether its document is for scoring, (T,) bool; otherwise it is for writing labels."""
    names, place = np.unique(document, return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(names)) % 2 == 1)[place]


def eligible(firings: ActivePairs, document: np.ndarray, scoring: np.ndarray, latents: int) -> np.ndarray:
    """Latents that fire in enough documents of either half, (m,) bool."""
    counts, documents = [], int(document.max()) + 1
    for half in (~scoring, scoring):
        inside = half[firings.token]
        pairs = np.unique(firings.latent[inside].astype(np.int64) * documents + document[firings.token[inside]])
        counts.append(np.bincount(pairs // documents, minlength=latents))
    return np.minimum(*counts) >= FEWEST_DOCUMENTS


def choose(
    latents: xr.Dataset, allowed: np.ndarray, counts: ExplainedLatents, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Latents to label, and by which of `REASONS` each is chosen, the first that applies.

    Parameters
    ----------
    latents : xarray.Dataset
        What the stage classify_latents wrote.
    allowed : (m,) bool
    counts : ExplainedLatents
    seed : int
        Of the random sample.

    Returns
    -------
    latent, reason : (K,) int
    """
    delta = latents["relative_norm"].values
    nu = np.fmax(latents["nu_error"].values, latents["nu_reconstruction"].values)
    share = latents["planted_share"].values.max(axis=1)
    ranked = [
        _largest(delta, allowed, counts.relative_norm),
        _largest(-nu, allowed & (delta > LEANS_ABOVE), counts.nu),
        _largest(share, allowed & (share > 0), counts.planted_share),
    ]
    taken: dict[int, int] = {}
    for reason, found in enumerate(ranked):
        for latent in found.tolist():
            taken.setdefault(latent, reason)
    others = np.setdiff1d(np.flatnonzero(allowed), list(taken))
    drawn = np.random.default_rng(seed).permutation(others)[: counts.random]
    taken |= dict.fromkeys(np.sort(drawn).tolist(), REASONS.index("random"))
    return np.array(list(taken), int), np.array(list(taken.values()), int)


def _largest(values: np.ndarray, allowed: np.ndarray, count: int) -> np.ndarray:
    """The latents of the largest finite values, largest first."""
    among = np.flatnonzero(allowed & np.isfinite(values))
    return among[np.argsort(-values[among], kind="stable")][:count]


@dataclass
class Corpus:
    """The tokens that excerpts are taken from.

    Attributes
    ----------
    words : (T,) str
    document : (T,) int
        Ascending within the split, every document in one piece.
    scoring : (T,) bool
    """

    words: np.ndarray
    document: np.ndarray
    scoring: np.ndarray

    def around(self, at: int) -> np.ndarray:
        """Tokens of the excerpt around a token."""
        shown = np.arange(max(0, at - BEFORE), min(len(self.words), at + AFTER + 1))
        return shown[self.document[shown] == self.document[at]]

    def text(self, shown: np.ndarray, marked: np.ndarray | None = None) -> str:
        """An excerpt in one line; marked tokens stand between « and »."""
        pieces = [_one_line(self.words[i]) for i in shown]
        if marked is not None:
            edges = np.diff(np.r_[0, np.isin(shown, marked).astype(int), 0]).tolist()
            for i, piece in enumerate(pieces):
                pieces[i] = "«" * (edges[i] == 1) + piece + "»" * (edges[i + 1] == -1)
        return "".join(pieces)


def _one_line(word: str) -> str:
    return word.replace("\r", "").replace("\n", "\\n")


def _strongest_by_document(token: np.ndarray, value: np.ndarray, document: np.ndarray) -> np.ndarray:
    """Places of the strongest firing in every document, strongest first."""
    order = np.argsort(-value, kind="stable")
    first = np.sort(np.unique(document[token[order]], return_index=True)[1])
    return order[first]


def examples(corpus: Corpus, token: np.ndarray, value: np.ndarray, count: int) -> list[str]:
    """The strongest excerpts of a latent, each of another document for writing labels.

    Tokens on which it fires at least half as strongly as on the strongest are marked.
    """
    inside = ~corpus.scoring[token]
    token, value = token[inside], value[inside]
    texts = []
    for place in _strongest_by_document(token, value, corpus.document)[:count]:
        marked = token[value >= value[place] / 2]
        texts.append(corpus.text(corpus.around(int(token[place])), marked))
    return texts


def held_out(
    corpus: Corpus, token: np.ndarray, value: np.ndarray, count: int, generator: np.random.Generator
) -> tuple[list[str], list[bool]]:
    """Excerpts of documents for scoring, in random order, and whether the latent fires in each.

    Half of them are around firings, spread evenly over the documents ordered by how strongly the latent fires in them. For
    each of these there is one as long in which it does not fire, at a random place. Nothing is marked.

    Parameters
    ----------
    corpus : Corpus
    token, value : (P,)
        ActivePairs of one latent.
    count : int
        Excerpts at most; even.
    generator : numpy.random.Generator

    Returns
    -------
    texts : list of str
    active : list of bool
        As many true as false.
    """
    inside = corpus.scoring[token]
    ordered = _strongest_by_document(token[inside], value[inside], corpus.document)
    spread = np.unique(np.linspace(0, len(ordered) - 1, min(count // 2, len(ordered))).round().astype(int))
    places = np.flatnonzero(corpus.scoring)
    rows = []
    for at in token[inside][ordered[spread]]:
        shown = corpus.around(int(at))
        silent = _silent(corpus, token, len(shown), places, generator)
        if silent is not None:
            rows += [(corpus.text(shown), True), (corpus.text(silent), False)]
    order = generator.permutation(len(rows))
    return [rows[i][0] for i in order], [rows[i][1] for i in order]


def _silent(
    corpus: Corpus, token: np.ndarray, length: int, places: np.ndarray, generator: np.random.Generator
) -> np.ndarray | None:
    """A random excerpt of a document for scoring in which a latent does not fire; None where none is found."""
    for start in generator.choice(places, DRAWS):
        last = start + length - 1
        if last >= len(corpus.words) or corpus.document[last] != corpus.document[start]:
            continue
        if np.searchsorted(token, start) == np.searchsorted(token, last, side="right"):
            return np.arange(start, last + 1)
    return None
