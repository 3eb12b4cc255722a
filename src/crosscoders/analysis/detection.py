"""How well latents or directions tell tokens of a planted behaviour from others: AUC and average precision of their sum.

A method names its latents in an order of its own, or they are chosen with the labels of validation documents, which is an
upper bound. Either way the score of a token is the sum of the chosen latents, and it is measured on test documents. Tokens
of other planted behaviours count neither as hits nor as false alarms.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import scipy.sparse
import scipy.stats
import xarray as xr

from crosscoders.analysis.classification import Pairs

ANY = "any"
"""All planted behaviours together."""
RANKINGS = {
    "delta": "largest relative norm Δ",
    "nu": "lowest ranks by ν of error and of reconstruction, of latents with Δ ≥ 0.5",
    "energy": "largest share of the models' difference",
    "labels": "largest AUC on labelled validation tokens",
}
"""How latents are chosen; the first three ask for no labels."""


@dataclass
class Labels:
    """Tokens of one behaviour, and tokens that show none, (tokens,) bool each."""

    positive: np.ndarray
    negative: np.ndarray


@dataclass
class Method:
    """A method's latents or directions on two splits.

    Attributes
    ----------
    validation, test : Pairs
        Active (token, latent) pairs. Values are above 0 wherever a latent is silent on some token.
    latents : int
    orders : {ranking: (n,) int}
        Latents that the method names, the best first, without labels.
    """

    validation: Pairs
    test: Pairs
    latents: int
    orders: dict[str, np.ndarray] = field(default_factory=dict)


def labels(planted_behaviour: xr.DataArray) -> dict[str, Labels]:
    """The labels of a split by behaviour, and of all behaviours together.

    Parameters
    ----------
    planted_behaviour : (tokens,)
        A flag variable, 0 where a token belongs to no behaviour.

    Returns
    -------
    {behaviour: Labels}
    """
    names, values = planted_behaviour.attrs["flag_meanings"].split()[1:], planted_behaviour.values
    made = {name: Labels(values == number, values == 0) for number, name in enumerate(names, 1)}
    return made | {ANY: Labels(values > 0, values == 0)}


def auc_and_precision(
    score: np.ndarray, of: Labels, document: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Area under the ROC curve and average precision under every resample of documents, ties counted half.

    Parameters
    ----------
    score : (tokens,)
    of : Labels
    document : (tokens,)
        Consecutive document numbers.
    weights : (replicates, documents)
        How often each document counts.

    Returns
    -------
    auc, average_precision : (replicates,)
        NaN where no positive or no negative token counts.
    """
    _, level = np.unique(-score, return_inverse=True)  # the highest score is level 0
    shape = (weights.shape[1], int(level.max()) + 1)

    def counted(chosen: np.ndarray) -> np.ndarray:
        at = (document[chosen], level[chosen])
        return (scipy.sparse.csr_matrix((np.ones(len(at[0])), at), shape).T @ weights.T).T

    hits, alarms = counted(of.positive), counted(of.negative)
    above, below = hits.cumsum(1), alarms.cumsum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        auc = (alarms * (above - hits / 2)).sum(1) / (above[:, -1] * below[:, -1])
        precision = np.divide(above, above + below, out=np.zeros_like(above), where=hits > 0)
        average = (hits * precision).sum(1) / above[:, -1]
    return auc, np.where(below[:, -1] > 0, average, np.nan)


def latent_aucs(pairs: Pairs, of: Labels, latents: int) -> np.ndarray:
    """The AUC of every latent by itself, (m,), from its active pairs alone, ties counted half; a silent latent has 0.5.

    Parameters
    ----------
    pairs : Pairs
        With values above 0, but for latents that have a pair for every token.
    of : Labels
    latents : int
        m.

    Returns
    -------
    (m,)
        NaN where there is no positive or no negative token.
    """
    order = np.lexsort((pairs.value, pairs.latent))
    latent, value, token = pairs.latent[order], pairs.value[order], pairs.token[order]
    starts = np.flatnonzero(np.r_[True, (latent[1:] != latent[:-1]) | (value[1:] != value[:-1])])[: len(order)]
    hits, alarms = (
        np.add.reduceat(row[token].astype(float), starts) if len(starts) else np.zeros(0)
        for row in (of.positive, of.negative)
    )
    owner = latent[starts]
    active = [np.bincount(owner, row, latents) for row in (hits, alarms)]
    silent = [of.positive.sum() - active[0], of.negative.sum() - active[1]]
    before = np.r_[0.0, active[1].cumsum()[:-1]]  # false alarms of all latents before a latent
    lower = silent[1][owner] + alarms.cumsum() - alarms - before[owner]
    won = np.bincount(owner, hits * (lower + alarms / 2), latents) + silent[0] * silent[1] / 2
    with np.errstate(invalid="ignore"):
        return won / (float(of.positive.sum()) * float(of.negative.sum()) or np.nan)


def token_scores(pairs: Pairs, chosen: np.ndarray, tokens: int) -> np.ndarray:
    """The sum of some latents on every token, (tokens,)."""
    inside = np.isin(pairs.latent, chosen)
    return np.bincount(pairs.token[inside], pairs.value[inside], tokens)


def rank_sum(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Sum of two ascending ranks; what is not finite ranks last."""
    return sum(scipy.stats.rankdata(np.where(np.isfinite(row), row, np.inf)) for row in (first, second))


def measure(
    method: Method,
    validation: dict[str, Labels],
    test: dict[str, Labels],
    best: int,
    document: np.ndarray,
    weights: np.ndarray,
) -> np.ndarray:
    """AUC and average precision of a method on test tokens.

    Parameters
    ----------
    method : Method
    validation, test : {behaviour: Labels}
    best : int
        Latents whose sum is the score.
    document : (test tokens,)
        Consecutive document numbers.
    weights : (replicates, documents)
        The first row counts every document once.

    Returns
    -------
    (2, replicates, rankings, behaviours)
        NaN for rankings that the method does not have; a single direction has no labelled one.
    """
    made = np.full((2, len(weights), len(RANKINGS), len(test)), np.nan)
    for b, (name, of) in enumerate(test.items()):
        if not of.positive.any():
            continue
        aucs = latent_aucs(method.validation, validation[name], method.latents)
        chooses = method.latents > 1 and np.isfinite(aucs).all()
        labelled = {"labels": np.argsort(-aucs, kind="stable")} if chooses else {}
        for ranking, order in (method.orders | labelled).items():
            score = token_scores(method.test, order[:best], len(document))
            made[:, :, list(RANKINGS).index(ranking), b] = auc_and_precision(score, of, document, weights)
    return made


def measure_random(
    method: Method, test: dict[str, Labels], best: int, document: np.ndarray, weights: np.ndarray, seed: int
) -> np.ndarray:
    """AUC of latents chosen by chance among those that fire, other ones for every resample of documents.

    Parameters
    ----------
    method : Method
    test : {behaviour: Labels}
    best : int
        Latents whose sum is the score.
    document : (tokens,)
        Consecutive document numbers.
    weights : (replicates, documents)
    seed : int

    Returns
    -------
    (replicates, behaviours)
        NaN for a method that has no choice.
    """
    generator, fires = np.random.default_rng(seed), np.unique(method.test.latent)
    made = np.full((len(weights), len(test)), np.nan)
    if len(fires) <= best:
        return made
    for row, counts in zip(made, weights, strict=True):
        score = token_scores(method.test, generator.choice(fires, best, replace=False), len(document))
        for b, of in enumerate(test.values()):
            row[b] = auc_and_precision(score, of, document, counts[None])[0][0]
    return made
