"""Intervals by bootstrap over documents, never over tokens: tokens of one document are not independent."""

from __future__ import annotations

import numpy as np


def resamples(documents: int, replicates: int, seed: int) -> np.ndarray:
    """How often each document is drawn in each replicate.

    Parameters
    ----------
    documents, replicates, seed : int

    Returns
    -------
    (replicates, documents)
        Counts as float64; every row sums to `documents`.
    """
    generator = np.random.default_rng(seed)
    return generator.multinomial(documents, np.full(documents, 1 / documents), size=replicates).astype(np.float64)


def interval(replicates: np.ndarray, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval over the first axis; replicates that are NaN are left out.

    Parameters
    ----------
    replicates : (replicates, ...)
    confidence : float
        Probability that the interval holds, in (0, 1).

    Returns
    -------
    low, high : (...)
        NaN where every replicate is.
    """
    tail = (1 - confidence) / 2
    with np.errstate(all="ignore"):
        ordered = np.sort(replicates, axis=0)  # NaN sorts last
    valid = (~np.isnan(replicates)).sum(axis=0)

    def quantile(share: float) -> np.ndarray:
        place = np.clip(share * (valid - 1), 0, None)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, np.maximum(valid - 1, 0))
        a, b = (np.take_along_axis(ordered, at[None], axis=0)[0] for at in (low, high))
        return np.where(valid > 0, a + (place - low) * (b - a), np.nan)

    return quantile(tail), quantile(1 - tail)


def ratio_interval(
    numerators: np.ndarray, denominators: np.ndarray, weights: np.ndarray, confidence: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A ratio of sums over documents, with its interval.

    Parameters
    ----------
    numerators, denominators : (documents, ...)
        Sums within each document.
    weights : (replicates, documents)
        From :func:`resamples`.
    confidence : float

    Returns
    -------
    estimate, low, high : (...)
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = numerators.sum(0) / denominators.sum(0)
        replicates = np.tensordot(weights, numerators, 1) / np.tensordot(weights, denominators, 1)
    return estimate, *interval(np.where(np.isfinite(replicates), replicates, np.nan), confidence)
